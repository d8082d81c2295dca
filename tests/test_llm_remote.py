"""The litellm client, and the choice between it and the direct one."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from contract_llm import ModelContract, chat, completion, opened
from leased import leased
from pydantic import ValidationError
from servers import FaultServer, Mode

from evocluster.errors import (
    BadReply,
    ConfigError,
    DeadlinePassed,
    MissingModel,
    ModelError,
    Overloaded,
    PriceError,
    RateLimited,
    Refused,
    Unreachable,
)
from evocluster.llm.client import Model
from evocluster.llm.direct import Direct
from evocluster.llm.endpoints import Endpoint
from evocluster.llm.limits import Limited
from evocluster.llm.prices import Price, list_price
from evocluster.llm.remote import Remote

PRICE = Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=2)
KEY = "sk-planted-0123456789abcdef"
slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture(scope="module")
def litellm_loaded() -> Iterator[None]:
    """Imported once, as `open` does it, so that no test pays for it alone."""
    from evocluster.llm import remote

    before = dict(os.environ)
    remote._load()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
async def server(litellm_loaded: None) -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


def remote(url: str | None, **settings: Any) -> Remote:
    given = {"model": "openai/tiny", "api_base": url, "no_key": True, "price": PRICE, "timeout_s": 5}
    return Remote(**{**given, **settings})


@slow
async def test_litellm_knows_the_price_and_tells_no_logger(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm
    from litellm.litellm_core_utils import litellm_logging

    heard: list[str] = []

    async def hear(self: Any, *args: Any, **kwargs: Any) -> None:
        heard.append("success")

    monkeypatch.setattr(litellm_logging.Logging, "async_success_handler", hear)
    async with opened(remote(server.url, model="openai/priced-here")) as model:
        await model(chat())
        await asyncio.sleep(0.1)
    assert heard == []
    assert litellm.model_cost["hosted_vllm/priced-here"]["output_cost_per_token"] == pytest.approx(2e-6)


@slow
class TestContract(ModelContract):
    settings: dict[str, Any] = {"completion": True, "json_schema": True}  # noqa: RUF012

    @pytest.fixture
    def unopened(self, server: FaultServer) -> Model:
        return remote(server.url, **self.settings)

    @pytest.fixture
    async def model(self, unopened: Model) -> AsyncIterator[Model]:
        async with opened(unopened) as model:
            yield model

    async def test_a_cancelled_call_leaves_the_model_usable(self, model: Model) -> None:
        await super().test_a_cancelled_call_leaves_the_model_usable(model)
        gc.collect()  # litellm's abandoned coroutine complains here, where that is expected


@slow
class TestContractOtherAbilities(TestContract):
    settings: dict[str, Any] = {"choices": "json_schema"}  # noqa: RUF012


FAULTS: list[tuple[Mode, type[ModelError], str]] = [
    ("html", BadReply, "cannot be read"),
    ("not_json", BadReply, "cannot be read"),
    ("empty_choices", BadReply, "without a choice"),
    ("null_content", BadReply, "NoneType"),
    ("no_usage", BadReply, "usage"),
    ("zero_usage", BadReply, "usage"),
    ("error_500", Overloaded, "500"),
    ("error_429", RateLimited, "429"),
    ("error_401", Refused, "401.*key_env"),
    ("error_400", BadReply, "context length"),
    ("cut", Unreachable, "no connection"),
    ("redirect", Refused, "redirect"),
]


@slow
@pytest.mark.parametrize("plain", [False, True], ids=["chat", "completion"])
@pytest.mark.parametrize(("mode", "error", "says"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_each_fault_is_its_own_error_after_one_request(
    server: FaultServer, mode: Mode, error: type[ModelError], says: str, plain: bool
) -> None:
    server.mode, server.retry_after = mode, "7"
    async with opened(remote(server.url, completion=True)) as model:
        with pytest.raises(error, match=says) as caught:
            await model(completion() if plain else chat())
    assert server.requests == 1
    assert type(caught.value) is error
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after_s == 7.0


@slow
@pytest.mark.parametrize("mode", ["drip", "hang"])
async def test_the_deadline_holds_however_slowly_bytes_arrive(server: FaultServer, mode: Mode) -> None:
    server.mode = mode
    async with opened(remote(server.url, timeout_s=0.35)) as model:
        started = time.monotonic()
        with pytest.raises(DeadlinePassed, match=r"timeout_s=0\.35"):
            await model(chat())
        assert time.monotonic() - started < 1.3


@slow
async def test_nobody_listens_there(litellm_loaded: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with opened(remote(f"http://127.0.0.1:{free.getsockname()[1]}/v1")) as model:
            with pytest.raises(Unreachable):
                await model(chat())


@slow
async def test_retries_are_ours_alone_and_counted_at_the_server(server: FaultServer) -> None:
    async def no_pause(seconds: float) -> None: ...

    server.mode = "error_500"
    async with opened(remote(server.url)) as model, leased() as lease:
        with pytest.raises(Overloaded):
            await Limited(model, lease, 30, 2, np.random.default_rng(1), sleep=no_pause)(chat())
    assert server.requests == 3


@slow
async def test_two_hundred_calls_are_in_flight_at_once(server: FaultServer) -> None:
    server.latency = lambda: 2.0
    async with opened(remote(server.url, timeout_s=30)) as model:
        await asyncio.gather(*(model(chat(seed=n)) for n in range(200)))
    assert server.peak == 200


@slow
async def test_the_users_openai_key_is_not_sent_to_another_host(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "LITELLM_API_KEY"):
        monkeypatch.setenv(name, KEY)
    async with opened(remote(server.url, completion=True)) as model:
        await model(chat())
        await model(completion())
    assert server.requests == 2
    assert KEY not in str(server.headers) + str(server.bodies)


@slow
async def test_the_key_goes_to_its_host_and_nowhere_else(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TINY_KEY", KEY)
    async with FaultServer() as foreign:
        server.elsewhere = f"{foreign.url}/chat/completions"
        server.then(["ok", "redirect", "error_401"])
        said = []
        async with opened(remote(server.url, key_env="TINY_KEY", no_key=False)) as model:
            await model(chat())
            said.append(repr(model))
            for _ in range(2):
                with pytest.raises(Refused) as caught:
                    await model(chat())
                said += [str(caught.value), str(caught.value.__cause__)]
        assert foreign.requests == 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(said) + caplog.text


@slow
async def test_what_is_sent(server: FaultServer) -> None:
    async with opened(remote(server.url, completion=True, extra={"top_p": 0.5})) as model:
        await model(chat("hi", max_tokens=9, stop=("\n",), seed=4, replicate=2, temperature=0.5))
        await model(completion("Once", max_tokens=3))
    wanted = {"temperature": 0.5, "max_tokens": 9, "stop": ["\n"], "seed": 4 + 2 * 1_000_003, "top_p": 0.5}
    assert wanted.items() <= server.bodies[0].items()
    assert server.bodies[0]["model"] == server.bodies[1]["model"] == "tiny"
    assert server.bodies[1]["prompt"] == "Once"
    assert server.paths == ["/v1/chat/completions", "/v1/completions"]


@slow
async def test_two_models_share_the_process_and_one_may_close(server: FaultServer) -> None:
    async with opened(remote(server.url)) as first:
        async with opened(remote(server.url, model="openai/other")) as second:
            await asyncio.gather(first(chat()), second(chat()))
        await first(chat())
    assert server.requests == 3


@slow
async def test_a_missing_key_is_named_before_anything_is_sent(
    litellm_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.delenv("TINY_KEY", raising=False)
    with pytest.raises(MissingModel, match="ANTHROPIC_API_KEY"):
        await Remote(model="anthropic/claude-haiku-4-5").open()
    with pytest.raises(MissingModel, match="'TINY_KEY'"):
        await Remote(model="anthropic/claude-haiku-4-5", key_env="TINY_KEY").open()


@slow
async def test_an_unknown_provider_is_named(litellm_loaded: None) -> None:
    with pytest.raises(ConfigError, match="'nobody'"):
        await Remote(model="nobody/tiny", price=PRICE).open()


async def test_an_unknown_price_is_an_error_before_anything_is_loaded() -> None:
    with pytest.raises(PriceError, match="'anthropic/claude-of-tomorrow'"):
        await Remote(model="anthropic/claude-of-tomorrow").open()
    with pytest.raises(PriceError, match="'openai/gpt-4o-mini'"):
        await remote("http://127.0.0.1:9/v1", model="openai/gpt-4o-mini", price=None).open()


def test_list_prices_by_name_and_provider() -> None:
    listed = list_price("openai/gpt-4o-mini")
    assert listed == Price(prompt_usd_per_mtok=0.15, completion_usd_per_mtok=0.6, cached_prompt_usd_per_mtok=0.075)
    assert list_price("anthropic/claude-haiku-4-5") is not None
    assert list_price("anthropic/gpt-4o-mini") is None, "another provider's price is not this one's"
    assert list_price("nobody/tiny") is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "openai/tiny", "api_base": "http://host/v1"}, "OPENAI_API_KEY.*no_key"),
        ({"model": "openai/tiny", "api_base": "http://169.254.169.254/", "no_key": True}, "link-local"),
        ({"model": "openai/tiny", "key_env": "A", "no_key": True}, "contradict"),
        ({"model": "anthropic/tiny", "completion": True}, "into chats"),
        ({"model": "openai/tiny", "extra": {"api_key": "x"}}, "api_key"),
        ({"model": "tiny"}, "pattern"),
    ],
)
def test_settings_that_would_surprise_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){says}"):
        Remote(**settings)


def test_settings_load_without_litellm() -> None:
    code = (
        "import sys; from evocluster.llm.endpoints import Endpoint; "
        "Endpoint(model='openai/gpt-4o-mini').resolve(); "
        "heavy = {'litellm', 'openai', 'aiohttp'} & sys.modules.keys(); sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_auto_takes_the_cheap_client_where_it_can() -> None:
    own = Endpoint(
        model="Qwen/Qwen3-8B", base_url="http://host/v1", price=PRICE, choices="grammar", retries=2
    ).resolve()
    assert own == Direct(base_url="http://host/v1", model="Qwen/Qwen3-8B", price=PRICE, choices="grammar", retries=2)
    openai = Endpoint(model="openai/gpt-4o-mini").resolve()
    assert isinstance(openai, Direct)
    assert (openai.base_url, openai.model, openai.key_env) == (
        "https://api.openai.com/v1",
        "gpt-4o-mini",
        "OPENAI_API_KEY",
    )
    assert openai.price == list_price("openai/gpt-4o-mini")
    hosted = Endpoint(model="hosted_vllm/tiny", api_base="http://host/v1", price=PRICE).resolve()
    assert hosted == Direct(base_url="http://host/v1", model="tiny", price=PRICE)
    other = Endpoint(model="anthropic/claude-haiku-4-5", key_env="K", timeout_s=7).resolve()
    assert other == Remote(model="anthropic/claude-haiku-4-5", key_env="K", timeout_s=7)
    assert pickle.loads(pickle.dumps(other)) == other


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "anthropic/x", "choices": "grammar"}, "goes through litellm"),
        ({"model": "openai/x", "base_url": "http://a/v1", "api_base": "http://b/v1"}, "both say where"),
        ({"model": "azure/x", "api_base": "http://b/v1"}, "OPENAI_API_KEY"),
        ({"model": "x", "base_url": "nowhere"}, "not an http"),
    ],
)
def test_auto_refuses_what_neither_client_could_do(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){says}"):
        Endpoint(**settings)
