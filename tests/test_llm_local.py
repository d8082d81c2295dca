"""The embedded model: settings without a server, then real servers on real weights."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from contract_llm import ModelContract, opened
from pydantic import ValidationError

from evocluster.errors import BadReply, MissingModel, ModelError, PriceError, Refused, Unreachable
from evocluster.llm.client import Message, Model, Request
from evocluster.llm.local import Local
from evocluster.llm.prices import Price
from evocluster.llm.servers import Servers

PRICE = Price(prompt_usd_per_mtok=0.02, completion_usd_per_mtok=0.06)
SMOLLM2 = "smollm2-135m-instruct"
FIXED = "".join(f"Q: what is {n} plus one?\nA: {n + 1}\n\n" for n in range(12))


def _local(**settings: Any) -> Local:
    return Local(**{"name": SMOLLM2, "price": PRICE, "processes": 1, "n_ctx": 1024, **settings})


def _prompt(text: str, **settings: Any) -> Request:
    return Request(model="m", prompt=text, **settings)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'gpt-9'.*gemma3-270m-base, smollm2-135m-instruct"):
        _local(name="gpt-9")


async def test_an_unknown_price_is_an_error_before_anything_starts() -> None:
    model = _local(price=None)
    with pytest.raises(PriceError, match="prompt_usd_per_mtok"):
        await model.start()
    with pytest.raises(PriceError, match="prompt_usd_per_mtok"):
        await model.open()
    assert model.pids == ()


async def test_absent_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOCLUSTER_MODELS", str(tmp_path))
    with pytest.raises(MissingModel, match="evocluster models install smollm2-135m-instruct"):
        await _local().open()


def test_abilities_and_identity_need_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOCLUSTER_MODELS", str(tmp_path))
    chatty, plain = _local(), _local(name="gemma3-270m-base")
    assert chatty.abilities.chat
    assert not plain.abilities.chat
    assert plain.abilities.completion
    assert chatty.identity.startswith("local:smollm2-135m-instruct:b179c9523d0e6a0f:xllamacpp-")
    assert chatty.identity != plain.identity
    assert _local(slots=2).identity == chatty.identity


async def test_an_attached_model_pickles_and_starts_nothing() -> None:
    model = _local().attach(["http://127.0.0.1:9/v1"])
    copy = pickle.loads(pickle.dumps(model))
    for each in (model, copy):
        await each.open()
        with pytest.raises(Unreachable):
            await each(_prompt("one", max_tokens=2))
        await each.close()
        assert each.pids == ()


async def test_what_cannot_be_asked_is_refused() -> None:
    model = _local(name="gemma3-270m-base").attach(["http://127.0.0.1:9/v1"])
    chat = Request(model="m", messages=(Message(role="user", content="hello"),))
    with pytest.raises(ModelError, match=r"not open; await open\(\)"):
        await model(chat)
    async with opened(model):
        with pytest.raises(Refused, match="no chat template"):
            await model(chat)
    with pytest.raises(ModelError, match="no address"):
        _local().attach([])


def test_a_child_that_fails_is_quoted() -> None:
    script = "import sys; print('cannot load the weights', file=sys.stderr); sys.exit(3)"
    servers = Servers([[sys.executable, "-c", script]], os.environ)
    with pytest.raises(ModelError, match=r"(?s)ended with code 3.*cannot load the weights"):
        servers.start(20)
    assert servers.pids == ()


def test_a_child_that_is_not_ready_in_time_is_ended() -> None:
    servers = Servers([[sys.executable, "-c", "import sys; sys.stdin.read()"]], os.environ)
    with pytest.raises(ModelError, match="was not ready in time"):
        servers.start(0.3)
    assert servers.pids == ()


OWNER = """
import os, subprocess, sys, threading, time
from evocluster.llm.servers import Servers
CHILD = (
    "import os, time\\nfrom evocluster.llm.servers import follow_owner\\n"
    "follow_owner()\\nprint(os.getpid(), flush=True)\\ntime.sleep(60)"
)
servers = Servers([[sys.executable, "-c", CHILD]] * 2, os.environ)
starter = threading.Thread(target=lambda: print(*servers.start(30), flush=True))
starter.start()
starter.join()
time.sleep(60)
"""


def _gone(pids: list[int], within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        if not any(map(_runs, pids)):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_children_outlive_the_thread_but_not_the_process_that_started_them() -> None:
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.2)
        assert all(map(_runs, pids))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert _gone(pids, 10)


@pytest.fixture(scope="module")
def urls(smollm2: str) -> Iterator[tuple[str, ...]]:
    owner = _local(name=smollm2, processes=2)
    yield asyncio.run(owner.start())
    asyncio.run(owner.stop())


@pytest.mark.slow
class TestLocalIsAModel(ModelContract):
    calls_at_once = 6

    @pytest.fixture
    def unopened(self, urls: tuple[str, ...]) -> Model:
        return _local().attach(urls)

    @pytest.fixture
    async def model(self, unopened: Model) -> AsyncIterator[Model]:
        async with opened(unopened) as model:
            yield model

    async def test_a_completion_gets_no_chat_template_and_stops(self, model: Model) -> None:
        reply = await model(_prompt("The capital of France is", max_tokens=16, stop=("\n", ".")))
        assert reply.text.strip() == "Paris"
        assert reply.prompt_tokens == 5
        assert reply.finish_reason == "stop"

    async def test_cached_tokens_count_and_cost_like_any(self, model: Model) -> None:
        cold = await model(_prompt(FIXED + "Q: what is 20 plus one?\nA:", max_tokens=4))
        warm = await model(_prompt(FIXED + "Q: what is 30 plus one?\nA:", max_tokens=4))
        assert warm.prompt_tokens == cold.prompt_tokens > 100
        assert warm.usd == pytest.approx((warm.prompt_tokens * 0.02 + warm.completion_tokens * 0.06) / 1e6)
        assert warm.seconds < cold.seconds

    async def test_seeds_and_replicates_differ_and_repeat_when_sampled(self, model: Model) -> None:
        async def text(**settings: int) -> str:
            return (await model(_prompt("Once upon a time", temperature=1.0, max_tokens=12, **settings))).text

        first = await text(seed=1)
        assert await text(seed=1) == first
        assert len({first, await text(seed=2), await text(seed=1, replicate=1)}) == 3

    async def test_a_prompt_longer_than_the_context_fails_alone(self, model: Model) -> None:
        with pytest.raises(BadReply, match="exceeds the available context size"):
            await model(_prompt("hello " * 1100))

    async def test_both_processes_work(self, urls: tuple[str, ...], model: Model) -> None:
        assert len(set(urls)) == 2
        prompts = [letter * 3 + FIXED + f"Q: what is {n}?" for n in range(3) for letter in "xy"]
        replies = await asyncio.gather(*(model(_prompt(prompt, max_tokens=2)) for prompt in prompts))
        assert len(replies) == 6


@pytest.mark.slow
async def test_open_alone_starts_two_servers_and_close_ends_them(smollm2: str) -> None:
    model = _local(name=smollm2, processes=2)
    await model.open()
    pids = list(model.pids)
    assert len(pids) == 2
    assert all(map(_runs, pids))
    assert (await model(_prompt("One, two,", max_tokens=3))).text.strip()
    await model.close()
    assert _gone(pids, 5)
    assert model.pids == ()


@pytest.mark.slow
async def test_a_server_that_was_killed_is_left_out(smollm2: str) -> None:
    model = _local(name=smollm2, processes=2)
    async with opened(model):
        os.kill(model.pids[0], signal.SIGKILL)
        failures = 0
        for number in range(6):
            try:
                await model(_prompt(f"{number} is a number", max_tokens=2))
            except Unreachable:
                failures += 1
        assert failures <= 1


@pytest.mark.slow
async def test_a_taken_port_is_an_error_that_quotes_the_server(smollm2: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        model = _local(name=smollm2, port=taken.getsockname()[1])
        with pytest.raises(ModelError, match=r"a model server (ended|was not ready)"):
            await model.start()
    assert model.pids == ()


@pytest.mark.slow
def test_real_servers_die_with_their_owner(smollm2: str) -> None:
    script = (
        "import asyncio, time\nfrom evocluster.llm.local import Local\n"
        "async def main():\n"
        f"    model = Local(name={smollm2!r}, processes=2, n_ctx=512,\n"
        "        price={'prompt_usd_per_mtok': 0, 'completion_usd_per_mtok': 0})\n"
        "    await model.start()\n"
        "    print(*model.pids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        owner.kill()
        owner.wait()
    assert _gone(pids, 10)
