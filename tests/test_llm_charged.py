"""A failed call is not free: what it may have cost reaches the accounts of the evaluation, the trial and the run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from contract_llm import chat, opened
from servers import FaultServer, Mode
from small import LABELS, small_config

from evocluster import build
from evocluster.engine.worker import Accounts, Meter
from evocluster.errors import BadReply, ModelError, Overloaded, Unreachable
from evocluster.llm.charged import CHARACTERS, charge, prompt_tokens
from evocluster.llm.client import Reply, Request
from evocluster.llm.direct import Direct
from evocluster.llm.leases import Leases, OwnKeeper
from evocluster.llm.limits import Limited
from evocluster.llm.prices import Price
from evocluster.llm.quota import Terms
from evocluster.llm.stack import Stack
from evocluster.records import LOST, Lost, Proposal, Trial, Usage
from evocluster.tasks.calls import Calls

PRICE = Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=2)
BILLED: tuple[Mode, ...] = (
    "html",
    "not_json",
    "empty_choices",
    "null_content",
    "no_usage",
    "zero_usage",
    "cut",
    "hang",
)
GOOD: tuple[Mode, ...] = ("ok",)
FREE: tuple[Mode, ...] = ("error_500", "error_429", "error_401", "error_400", "redirect")


@pytest.mark.parametrize("mode", BILLED + FREE)
async def test_each_failure_says_what_it_may_have_cost(mode: Mode) -> None:
    request = chat("What colour?", max_tokens=7)
    async with FaultServer(mode) as server:
        server.elsewhere = server.url
        model = Direct(base_url=server.url, model="tiny", price=PRICE, timeout_s=0.3)
        async with opened(model):
            with pytest.raises(ModelError) as failure:
                await model(request)
    used = charge(failure.value, request, PRICE)
    assert used.calls == 1
    assert (used.paid_usd > 0) is (used.usd > 0) is (used.completion_tokens == 7) is (mode in BILLED)


async def test_a_connection_never_made_costs_nothing() -> None:
    model = Direct(base_url="http://127.0.0.1:9/v1", model="tiny", price=PRICE)
    async with opened(model):
        with pytest.raises(Unreachable) as failure:
            await model(chat("hi"))
    assert charge(failure.value, chat("hi"), PRICE) == Usage(calls=1)


def test_the_charge_is_never_below_what_the_words_take() -> None:
    request = Request(model="m", prompt="x" * 301, max_tokens=10)
    assert prompt_tokens(request) == -(-301 // CHARACTERS)
    assert charge(BadReply("x"), request, PRICE).usd == pytest.approx((101 * 1 + 10 * 2) / 1e6)


async def asked(*outcomes: str) -> tuple[Reply | ModelError, Meter, Accounts, Calls]:
    """One call through everything that counts, to a model whose attempts end like this."""
    ends = iter(outcomes)

    async def model(request: Request) -> Reply:
        end = next(ends)
        if end == "ok":
            return Reply(text="x", prompt_tokens=1, completion_tokens=1, usd=0.25, seconds=1)
        lost = (
            Unreachable("broken off") if end == "cut" else Overloaded("full") if end == "full" else BadReply("no usage")
        )
        lost.billable = end in ("cut", "bad")
        raise lost

    leases = Leases(OwnKeeper(), "me")
    lease = leases.of("m", Terms())
    await leases.open()
    limited = Limited(model, lease, 5, 3, np.random.default_rng(1), sleep=no_pause, price=PRICE)
    accounts = Accounts(limited)
    meter = Meter(accounts)
    calls = Calls(meter)
    try:
        return await calls(REQUEST), meter, accounts, calls
    except ModelError as failure:
        return failure, meter, accounts, calls
    finally:
        await leases.close()


async def no_pause(seconds: float) -> None:
    """Retries at once."""


REQUEST = chat("hi", max_tokens=5)
PROPOSAL = Proposal(number=0, operator="mutate", parents=())


async def test_every_account_on_the_way_adds_a_failure_once() -> None:
    failure, meter, accounts, calls = await asked("bad")
    assert isinstance(failure, BadReply)
    expected = charge(failure, REQUEST, PRICE)
    assert expected.paid_usd > 0
    assert calls.usage == meter.usage == accounts.lines()[0].usage == expected


async def test_a_failure_pays_for_every_attempt_that_may_have_been_worked_on() -> None:
    failure, meter, accounts, calls = await asked("cut", "full", "cut", "cut")
    assert isinstance(failure, Unreachable)
    each = charge(BadReply("x"), REQUEST, PRICE)
    for used in (meter.usage, accounts.lines()[0].usage, calls.usage):
        assert (used.calls, used.usd) == (1, each.usd)
        assert used.paid_usd == pytest.approx(3 * each.paid_usd)
    assert accounts.noted({}) == {LOST: {"calls": 2, "usd": pytest.approx(2 * each.paid_usd)}}, "one is its own"


async def test_what_lost_attempts_may_have_cost_is_paid_but_no_price_of_the_answer() -> None:
    reply, meter, accounts, calls = await asked("cut", "full", "cut", "ok")
    assert isinstance(reply, Reply)
    lost = 2 * charge(BadReply("x"), REQUEST, PRICE).paid_usd
    assert reply.extra_usd == reply.lost_usd == pytest.approx(lost)
    assert reply.lost_calls == 2
    noted = accounts.noted({"change": "x"})
    assert noted == {"change": "x", LOST: {"calls": 2, "usd": pytest.approx(lost)}}
    assert Trial(proposal=PROPOSAL, notes=noted).lost == Lost(2, lost)
    for used in (meter.usage, accounts.lines()[0].usage, calls.usage):
        assert (used.calls, used.usd) == (1, 0.25)  # the attempt that was refused cost nothing
        assert used.paid_usd == pytest.approx(0.25 + lost)


async def test_a_run_pays_for_answers_it_could_not_use(tmp_path: Path) -> None:
    async with FaultServer(answer=lambda body: LABELS[len(str(body)) % len(LABELS)]) as server:
        # Some of the answers come without usage; what they cost is in the table, in run.json and in the budget's count.
        server.then([*GOOD * 20, *("no_usage", *GOOD * 2) * 8])
        declared = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 2}
        model = {"kind": "direct", "base_url": server.url, "model": "m", "completion": True, "choices": "grammar"}
        config = small_config(tmp_path, models={"fake": {**model, "price": declared}}, cache={"path": None})
        result = await asyncio.to_thread(build.run, build.plan(config), tmp_path / "run")
        sent = server.requests
    table = pandas.read_parquet(tmp_path / "run" / "trials")
    failed = table[table.error.notna() & (table.kind == "evaluation")]
    assert len(failed) == 8
    assert (failed.paid_usd > 0).all()
    assert (failed.completion_tokens > 0).all()
    assert table.calls.sum() - table.cached_calls.sum() == sent
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["calls"] == table.calls.sum()
    assert told["paid_usd"] == pytest.approx(table.paid_usd.sum())
    assert told["prices"] == {"fake": {**declared, "cached_prompt_usd_per_mtok": None}}
    assert result.status == "finished"


async def test_models_may_be_put_at_other_prices() -> None:
    stack = Stack({"m": Direct(base_url="http://127.0.0.1:9/v1", model="tiny", price=PRICE)})
    dear = Price(prompt_usd_per_mtok=50, completion_usd_per_mtok=60)
    assert stack.prices() == {"m": PRICE}
    assert stack.priced({"m": dear}).prices() == {"m": dear}
    assert stack.priced({}).prices() == {"m": PRICE}


def test_a_resume_goes_on_at_the_prices_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = {"kind": "scripted", "default": "red", "latency_s": 0.1, "sigma": 0.1, "time_scale": 1.0}
    config = small_config(tmp_path, models={"fake": fake}, budget={"generations": 2}, cache={"path": None})
    whole = build.run(build.plan(config), tmp_path / "whole")
    build.run(build.plan(config), tmp_path / "half", interrupted=lambda: True)
    told = json.loads((tmp_path / "half" / "run.json").read_text())
    assert told["status"] == "interrupted"
    # The list of prices changed between the sittings: what the models would cost now is something else.
    now = build.plan(tmp_path / "half" / "config.yaml")
    dearer = replace(now, stack=now.stack.priced({"fake": PRICE}))
    monkeypatch.setattr(build, "plan", lambda *_, **__: dearer)
    ended = build.resume(tmp_path / "half")
    assert ended.status == "finished"
    assert ended.run["prices"] == told["prices"] == whole.run["prices"]
    assert ended.run["usd"] == pytest.approx(whole.run["usd"])
