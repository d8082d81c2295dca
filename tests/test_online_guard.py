"""The breaker in one replica: opens at once and once, with or without the ledger, and hears what others count."""

from __future__ import annotations

from typing import Any

from fake_ledger import FakeLedger

from evocluster.errors import StoreError
from evocluster.online.guard import Guard, Trial
from evocluster.online.standing import tripped
from evocluster.release.breaker import Verdict
from evocluster.release.settings import Breaker

NOW = 1_800_000_000.0
NEW, OLD = "new", "old"


class World:
    """A ledger and who acts; `put_back` lists what was put back."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()
        self.put_back: list[tuple[str, str]] = []
        self.now = NOW

    def act(self, snapshot: str, verdict: Verdict) -> None:
        if self.ledger.away:
            raise StoreError("the ledger is away")
        self.put_back.append((snapshot, verdict.channel))

    def guard(self, replica: str = "a", **settings: Any) -> Guard:
        made = Guard(self.ledger, "d", Breaker(**settings), replica, self.act, clock=lambda: self.now)
        made.watch(Trial(NEW, OLD))
        return made


def answer(guard: Guard, snapshot: str, count: int, error: str = "", at: float = NOW, ms: float = 100.0) -> None:
    for _ in range(count):
        guard.observe(snapshot, error, ms, at)


async def test_the_fast_path_opens_at_once_and_acts_once() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 12)
    answer(guard, NEW, 2)
    answer(guard, NEW, 9, "provider")
    assert guard.allows(NEW)
    answer(guard, NEW, 1, "timeout")
    assert not guard.allows(NEW)
    assert guard.allows(OLD)
    assert world.put_back == []  # nobody waits for the ledger on the way of a request
    for _ in range(3):
        await guard.sync()
        answer(guard, NEW, 3, "provider")
    assert world.put_back == [(NEW, "hard")]


async def test_the_posterior_opens_on_a_rate_far_above_the_controls() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 190)
    answer(guard, OLD, 2, "timeout")
    for _ in range(12):
        answer(guard, NEW, 2)
        answer(guard, NEW, 1, "timeout")
    assert not guard.allows(NEW)
    await guard.sync()
    assert world.put_back == [(NEW, "hard")]


async def test_few_failures_and_healthy_traffic_open_nothing() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 300)
    answer(guard, OLD, 15, "timeout")
    answer(guard, NEW, 95)
    answer(guard, NEW, 5, "timeout")
    answer(guard, NEW, 50, "client")
    answer(guard, NEW, 50, "judge")
    await guard.sync()
    assert guard.allows(NEW)
    assert world.put_back == []


async def test_a_provider_incident_opens_nothing_and_is_told_until_it_is_over() -> None:
    world = World()
    guard = world.guard()
    for _ in range(12):
        answer(guard, OLD, 1, "provider")
        answer(guard, NEW, 1, "provider")
    await guard.sync()
    assert guard.allows(NEW)
    assert guard.provider is not None
    assert "not the candidate's doing" in guard.provider.reason
    guard.watch(Trial("", OLD))
    assert guard.provider is None


async def test_without_the_ledger_it_opens_here_and_acts_when_that_is_back() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 12)
    world.ledger.away = True
    answer(guard, NEW, 12, "provider")
    await guard.sync()
    assert not guard.allows(NEW)
    guard.watch(Trial(NEW, OLD))  # the same routing, read again
    assert not guard.allows(NEW)
    assert world.put_back == []
    world.ledger.away = False
    await guard.sync()
    assert world.put_back == [(NEW, "hard")]


async def test_what_was_put_back_may_serve_again_once_somebody_points_at_it_anew() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 12)
    answer(guard, NEW, 12, "provider")
    await guard.sync()
    assert not guard.allows(NEW)  # this routing still names it
    guard.watch(Trial("", OLD))
    assert guard.allows(NEW)
    guard.watch(Trial("", NEW))
    assert guard.allows(NEW)


async def test_it_stays_closed_while_it_is_not_put_back_for_everybody() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 12)
    answer(guard, NEW, 12, "provider")
    world.ledger.away = True
    guard.watch(Trial("", OLD))
    await guard.sync()
    assert not guard.allows(NEW)
    world.ledger.away = False
    await guard.sync()
    assert guard.allows(NEW)


async def test_what_two_replicas_count_adds_up() -> None:
    world = World()
    one, two = world.guard("a"), world.guard("b")
    for guard in (one, two):
        answer(guard, OLD, 100)
        answer(guard, NEW, 10)
        for _ in range(3):
            answer(guard, NEW, 1, "timeout")
            answer(guard, NEW, 1)
    assert one.allows(NEW)
    assert two.allows(NEW)
    await one.sync()
    await two.sync()
    await one.sync()
    assert (one.allows(NEW), two.allows(NEW)) == (False, False)
    rows = world.ledger.find("buckets", {"snapshot": NEW})
    assert sorted((row["replica"], row["total"], row["hard"]) for row in rows) == [("a", 16, 3), ("b", 16, 3)]
    verdict = tripped(world.ledger.find("buckets"), NEW, OLD, Breaker(), NOW)
    assert verdict.open
    assert verdict.evidence["candidate"] == (32, 6)


async def test_told_again_the_counts_are_the_same() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 10)
    for _ in range(3):
        await guard.sync()
    answer(guard, OLD, 5)
    world.now += 61
    answer(guard, OLD, 1, at=world.now)
    await guard.sync()
    await guard.sync()
    assert sum(row["total"] for row in world.ledger.find("buckets")) == 16


async def test_slow_is_above_twice_the_controls_p95() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 100, ms=100.0)
    await guard.sync()
    answer(guard, NEW, 30, ms=190.0)
    assert guard.allows(NEW)
    answer(guard, NEW, 30, ms=250.0)
    assert not guard.allows(NEW)
    await guard.sync()
    assert world.put_back == [(NEW, "slow")]


async def test_bad_verdicts_open_too_and_missing_ones_do_not() -> None:
    world = World()
    guard = world.guard()
    answer(guard, OLD, 100)
    answer(guard, NEW, 100)
    for _ in range(40):
        guard.judged(OLD, False, NOW)
    assert guard.allows(NEW)
    for _ in range(25):
        guard.judged(NEW, True, NOW)
    assert not guard.allows(NEW)
    await guard.sync()
    assert world.put_back == [(NEW, "judged")]


async def test_nothing_on_trial_nothing_to_put_back() -> None:
    world = World()
    guard = world.guard()
    guard.watch(Trial("", OLD))
    answer(guard, OLD, 50, "provider")
    await guard.sync()
    assert guard.allows(OLD)
    assert world.put_back == []


async def test_the_history_of_the_control_stands_in_for_one_that_is_not_asked_now() -> None:
    world = World()
    for day in range(1, 6):
        minute = int((NOW - day * 86400) // 60)
        row = {"deployment": "d", "snapshot": OLD, "replica": "z", "minute": minute, "total": 400, "hard": 4}
        world.ledger.put("buckets", row)
    guard = world.guard()
    await guard.sync()
    for _ in range(15):
        answer(guard, NEW, 2)
        answer(guard, NEW, 1, "timeout")
    assert not guard.allows(NEW)
