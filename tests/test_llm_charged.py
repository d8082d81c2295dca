"""A failed call is not free: what it may have cost reaches the accounts of the evaluation, the trial and the run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from contract_llm import chat, opened
from servers import FaultServer, Mode
from small import LABELS, small_config

from evocluster import build
from evocluster.engine.worker import Accounts, Meter
from evocluster.errors import BadReply, ModelError, Unreachable
from evocluster.llm.charged import CHARACTERS, Charged, charge, prompt_tokens
from evocluster.llm.client import Reply, Request
from evocluster.llm.direct import Direct
from evocluster.llm.prices import Price
from evocluster.llm.stack import Stack
from evocluster.records import Usage
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
                await Charged(model, PRICE)(request)
    used = failure.value.used
    assert used == (charge(request, PRICE) if mode in BILLED else Usage(calls=1))
    assert (used.paid_usd > 0) is (mode in BILLED)


async def test_a_connection_never_made_costs_nothing() -> None:
    model = Direct(base_url="http://127.0.0.1:9/v1", model="tiny", price=PRICE)
    async with opened(model):
        with pytest.raises(Unreachable) as failure:
            await Charged(model, PRICE)(chat("hi"))
    assert failure.value.used == Usage(calls=1)


def test_the_charge_is_never_below_what_the_words_take() -> None:
    request = Request(model="m", prompt="x" * 301, max_tokens=10)
    assert prompt_tokens(request) == -(-301 // CHARACTERS)
    assert charge(request, PRICE).usd == pytest.approx((101 * 1 + 10 * 2) / 1e6)


async def test_every_account_on_the_way_adds_it_once() -> None:
    async def broken(request: Request) -> Reply:
        raise BadReply("no usage")

    request = chat("hi", max_tokens=5)
    accounts = Accounts(Charged(broken, PRICE))
    meter = Meter(accounts)
    calls = Calls(meter)
    for _ in range(2):
        with pytest.raises(BadReply):
            await calls(request)
    twice = charge(request, PRICE) + charge(request, PRICE)
    assert calls.usage == meter.usage == accounts.lines()[0].usage == twice


async def test_a_run_pays_for_answers_it_could_not_use(tmp_path: Path) -> None:
    async with FaultServer(answer=lambda body: LABELS[len(str(body)) % len(LABELS)]) as server:
        # Some of the answers come without usage; what they cost is in the table, in run.json and in the budget's count.
        server.then([*GOOD * 20, *("no_usage", *GOOD * 2) * 8])
        declared = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 2}
        model = {"kind": "direct", "base_url": server.url, "model": "m", "completion": True, "choices": "grammar"}
        config = small_config(tmp_path, models={"fake": {**model, "price": declared}}, cache={"path": None})
        result = await asyncio.to_thread(build.run, build.plan(config), tmp_path / "run")
        asked = server.requests
    table = pandas.read_parquet(tmp_path / "run" / "trials")
    failed = table[table.error.notna() & (table.kind == "evaluation")]
    assert len(failed) == 8
    assert (failed.paid_usd > 0).all()
    assert (failed.completion_tokens > 0).all()
    assert table.calls.sum() - table.cached_calls.sum() == asked
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
    monkeypatch.setattr(build, "plan", lambda *_: dearer)
    ended = build.resume(tmp_path / "half")
    assert ended.status == "finished"
    assert ended.run["prices"] == told["prices"] == whole.run["prices"]
    assert ended.run["usd"] == pytest.approx(whole.run["usd"])
