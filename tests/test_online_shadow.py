"""The shadow: it pairs within its budget, evenly, after production, and nothing that goes wrong in it gets out."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_ledger import FakeLedger
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import StoreError
from evocluster.llm.scripted import Scripted
from evocluster.online.effects import Unrecorded, effect
from evocluster.online.shadow import Candidate, Purse, Shadow, fault, shadowed
from evocluster.records import Example, Usage
from evocluster.release.exchange import ErrorClass, Exchange
from evocluster.release.settings import Shadow as Settings
from evocluster.tasks.calls import Calls
from evocluster.tasks.execution import Execution

QUESTION = Example(id="q", input="Where is my parcel?")
ALWAYS = Settings(budget=1.0, concurrency=100)


@dataclass
class Told:
    """An answer."""

    execution: Execution
    model: str = "cheap"
    escalated: bool = False
    notes: tuple[str, ...] = ()
    latency_ms: float = 90.0


def answer(text: str = "here", usd: float = 0.01, **known: Any) -> Told:
    return Told(Execution(output=text, schema_ok=True, usage=Usage(calls=1, usd=usd, paid_usd=usd), **known))


def exchange(number: int, intent: str = "", **known: Any) -> Exchange:
    said: dict[str, Any] = {"cost_usd": 0.01, "latency_ms": 100.0, "snapshot_id": "old", "model": "m", **known}
    return Exchange(request_id=f"r{number}", episode_id=f"e{number}", deployment="d", at=1.0, intent=intent, **said)


Answering = Callable[[str, Example, Exchange], Awaitable[Told]]


async def at_once(snapshot: str, example: Example, exchange: Exchange) -> Told:
    return answer(f"{snapshot} says")


class World:
    """A shadow with what it writes."""

    def __init__(self, rules: Settings = ALWAYS, answers: Answering = at_once, **known: Any) -> None:
        self.ledger = FakeLedger()
        self.records: list[tuple[Exchange, Example, Execution]] = []
        self.candidate: Candidate | None = Candidate("x", "new", "old")
        self.shadow = Shadow(
            rules,
            lambda: self.candidate,
            answers,
            lambda *told: self.records.append(told),
            self.ledger,
            np.random.default_rng(0),
            **known,
        )

    def offer(self, count: int, intent: str = "", start: int = 0, **known: Any) -> list[str]:
        return [
            pair
            for number in range(start, start + count)
            if (pair := self.shadow.offer(exchange(number, intent, **known), QUESTION, answer()))
        ]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return self.ledger.find("pairs")


async def test_a_pair_is_recorded_with_both_sides() -> None:
    world = World()
    pairs = world.offer(3)
    assert world.pairs == []  # nothing was waited for
    await world.shadow.drain()
    assert len(pairs) >= 2
    assert sorted(row["pair_id"] for row in world.pairs) == sorted(pairs)
    recorded, example, execution = world.records[0]
    row = next(one for one in world.pairs if one["pair_id"] == recorded.pair_id)
    assert recorded.is_shadow
    assert (recorded.snapshot_id, recorded.experiment, recorded.cost_usd) == ("new", "x", 0.01)
    assert (example, execution.output) == (QUESTION, "new says")
    assert row["shadow_id"] == recorded.request_id
    assert (row["experiment"], row["state"], row["judge"]) == ("x", "open", "")
    assert row["baseline"]["latency_ms"] == 100.0
    assert "here" not in str(row)  # bodies are the recorder's, which redacts them


async def test_both_sides_are_timed_alike_by_whoever_answers() -> None:
    """Reading the candidate's snapshot and waiting for a turn is none of its slowness."""

    async def late(snapshot: str, example: Example, exchange: Exchange) -> Told:
        await asyncio.sleep(0.2)
        return answer()

    world = World(answers=late)
    world.offer(2)
    await world.shadow.drain()
    assert {row["candidate"]["latency_ms"] for row in world.pairs} == {90.0}


async def test_what_is_offered_to_nobody() -> None:
    world = World()
    world.candidate = None
    assert world.offer(5) == []
    world.candidate = Candidate("x", "new", "old")
    assert world.offer(5, snapshot_id="held out") == []
    assert world.offer(5, error_class="client") == []
    assert world.offer(5, is_shadow=True) == []
    assert world.shadow.running == 0


async def test_production_that_fails_is_paired_too() -> None:
    world = World()
    assert world.offer(4, error_class="timeout")
    await world.shadow.drain()
    assert {row["baseline"]["error_class"] for row in world.pairs} == {"timeout"}


async def test_an_answer_that_raises_is_evidence_and_nobody_hears_of_it() -> None:
    async def broken(snapshot: str, example: Example, exchange: Exchange) -> Told:
        raise RuntimeError("boom")

    world = World(answers=broken)
    assert world.offer(2)
    await world.shadow.drain()
    assert {row["candidate"]["error_class"] for row in world.pairs} == {"provider"}
    assert world.shadow.counts["failed"] == len(world.pairs) > 0


async def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    async def never(snapshot: str, example: Example, exchange: Exchange) -> Told:
        await asyncio.sleep(60)
        return answer()

    world = World(answers=never, timeout_s=0.01)
    assert world.offer(2)
    await world.shadow.drain()
    assert {row["candidate"]["error_class"] for row in world.pairs} == {"timeout"}


async def test_a_ledger_or_a_clock_that_fails_reaches_nobody() -> None:
    world = World()

    def full(table: str, row: object) -> None:
        raise StoreError("disk full")

    world.ledger.put = full  # type: ignore[method-assign]
    assert world.offer(2)
    await world.shadow.drain()
    assert world.shadow.counts["unwritten"] >= 1

    def broken() -> float:
        raise ZeroDivisionError

    assert World(busy=broken).offer(3) == []


async def test_shed_first_when_the_gateway_is_busy() -> None:
    load = 0.9
    world = World(busy=lambda: load)
    assert world.offer(10) == []
    assert world.shadow.counts["shed"] > 0
    load = 0.1
    assert world.offer(1, start=10)
    await world.shadow.drain()


async def test_no_more_at_once_than_places() -> None:
    gate, most = asyncio.Event(), 0

    async def slow(snapshot: str, example: Example, exchange: Exchange) -> Told:
        nonlocal most
        most = max(most, world.shadow.running)
        await gate.wait()
        return answer()

    world = World(Settings(budget=1.0, concurrency=3), slow)
    world.offer(20)
    await asyncio.sleep(0)
    gc.collect()  # a task that nothing holds would be gone now
    assert world.shadow.running == 3
    assert world.shadow.counts["full"] > 0
    gate.set()
    await world.shadow.drain()
    assert (most, len(world.pairs)) == (3, 3)


async def test_close_calls_off_what_is_under_way() -> None:
    async def never(snapshot: str, example: Example, exchange: Exchange) -> Told:
        await asyncio.sleep(60)
        return answer()

    world = World(answers=never)
    world.offer(3)
    await asyncio.sleep(0)
    await world.shadow.close()
    assert (world.shadow.running, world.pairs) == (0, [])


async def spent(prices: list[tuple[float, float]], budget: float) -> tuple[float, float]:
    """What production and its shadow cost, given both sides' price of each request."""
    costs = {f"r{number}": theirs for number, (_, theirs) in enumerate(prices)}

    async def priced(snapshot: str, example: Example, exchange: Exchange) -> Told:
        return answer(usd=costs[exchange.request_id])

    world = World(Settings(budget=budget, concurrency=2), priced)
    for number, (ours, _) in enumerate(prices):
        world.offer(1, start=number, cost_usd=ours)
        await world.shadow.drain()
    return sum(ours for ours, _ in prices), sum(told.cost_usd for told, _, _ in world.records)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.floats(0.001, 0.1), st.floats(0.001, 0.1)), min_size=1, max_size=60),
    st.floats(0.05, 0.5),
)
def test_it_stays_within_its_share_but_for_the_price_of_the_last_one(
    prices: list[tuple[float, float]], budget: float
) -> None:
    production, own = asyncio.run(spent(prices, budget))
    assert own <= budget * production + max(theirs for _, theirs in prices) + 1e-9


async def test_the_budget_is_used() -> None:
    production, own = await spent([(0.01, 0.01)] * 500, 0.1)
    assert own == pytest.approx(0.1 * production, rel=0.1)


async def test_without_prices_it_is_a_share_of_the_requests() -> None:
    production, own = await spent([(0.0, 0.0)] * 10, 0.1)
    assert (production, own) == (0.0, 0.0)

    async def free(snapshot: str, example: Example, exchange: Exchange) -> Told:
        return answer(usd=0.0)

    world = World(Settings(budget=0.1), free)
    for number in range(500):
        world.offer(1, start=number, cost_usd=0.0)
        await world.shadow.drain()
    assert 45 <= len(world.pairs) <= 51


def test_a_first_price_ends_the_reckoning_in_requests() -> None:
    purse = Purse(0.5)
    for _ in range(10):
        purse.earn(0.0)
    assert purse.take() == 1.0
    purse.settle(1.0, 0.0)
    purse.earn(0.2)  # dollars from here on: nothing saved up in requests buys any
    assert purse.take() is None
    purse.earn(0.2)
    assert purse.take() == pytest.approx(0.2)


async def test_sampling_is_even_over_intents_and_models() -> None:
    rng = np.random.default_rng(1)
    asked = [("common" if rng.random() < 0.9 else "rare", "a" if rng.random() < 0.5 else "b") for _ in range(2000)]
    world = World(Settings(budget=0.2))
    for number, (intent, model) in enumerate(asked):
        world.offer(1, intent, number, model=model)
        await world.shadow.drain()
    paired = Counter((row["intent"], row["model"]) for row in world.pairs)
    for stratum, count in Counter(asked).items():
        assert abs(paired[stratum] - 0.2 * count) <= 3, stratum


async def test_rate_is_the_most_that_is_paired() -> None:
    world = World(Settings(budget=1.0, rate=0.25, concurrency=100))
    world.offer(200)
    await world.shadow.drain()
    assert 48 <= len(world.pairs) <= 51


class Mailbox:
    """A tool with a side effect, in a pipeline that calls it."""

    def __init__(self, to: str) -> None:
        self.to = to
        self.sent = 0

    async def send(self) -> dict[str, int]:
        self.sent += 1
        return {"number": self.sent}

    async def pipeline(self, to: str) -> Told:
        calls = Calls(Scripted())
        try:
            got = await effect(calls, "send_mail", {"to": to}, self.send)
        except Unrecorded as error:
            return Told(Execution(error=f"executor: Unrecorded: {error}"))
        return Told(Execution(output=str(got["number"]), schema_ok=True, trace=tuple(calls.trace)))


@pytest.mark.parametrize(("asked", "state"), [("ann@x.org", "open"), ("bob@x.org", "skipped")])
async def test_side_effects_are_replayed_or_the_pair_is_skipped(asked: str, state: str) -> None:
    mail = Mailbox("ann@x.org")
    primary = await mail.pipeline("ann@x.org")
    assert mail.sent == 1

    async def answers(snapshot: str, example: Example, exchange: Exchange) -> Told:
        return await mail.pipeline(asked)

    world = World(answers=answers)
    for number in range(3):
        world.shadow.offer(exchange(number), QUESTION, primary)
    await world.shadow.drain()
    assert mail.sent == 1  # never again
    assert {row["state"] for row in world.pairs} == {state}
    assert world.shadow.counts["effects"] == (len(world.pairs) if state == "skipped" else 0)
    if state == "open":
        assert world.records[0][2].output == "1"


async def test_an_executor_that_acts_outside_is_never_paired() -> None:
    world = World(acts=True)
    assert world.offer(10) == []
    assert world.shadow.counts["effects"] == 9 or world.shadow.counts["effects"] == 10


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        (Execution(output="a", schema_ok=True), ""),
        (Execution(output="a", schema_ok=False), "format"),
        (Execution(error="model: DeadlinePassed: late"), "timeout"),
        (Execution(error="model: Overloaded: 503"), "provider"),
    ],
)
def test_faults_have_their_class(execution: Execution, expected: ErrorClass) -> None:
    assert fault(execution) == expected


def test_what_is_shadowed_is_the_oldest_that_seeks_evidence() -> None:
    ledger = FakeLedger()
    assert shadowed(ledger, "d") is None
    for number, stage in enumerate(("gates", "judge", "shadow", "live")):
        row = {"id": f"x{number}", "deployment": "d", "candidate": f"c{number}", "baseline": "b", "stage": stage}
        ledger.put("experiments", {**row, "started_at": float(number)})
    assert shadowed(ledger, "d") == Candidate("x1", "c1", "b")
