"""The daemon: each due job once, however many daemons; a job that fails stops nothing; whatever it leaves goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cycle_world import DAY, HOUR, NOW, Told, World

from evocluster.errors import ConfigError, Overloaded, StoreError
from evocluster.online.daemon import JOBS, Daemon
from evocluster.online.notify import Notice
from evocluster.release.settings import Schedule

QUIET = dict.fromkeys(JOBS, "0 0 1 1 *")
"""Once a year."""


def daemon(world: World, owner: str = "one", *, now: float = NOW + DAY, **known: Any) -> Daemon:
    rules = Schedule(**{**QUIET, **{name: known.pop(name) for name in JOBS if name in known}})
    return Daemon(world.ledger, world.cycle, lambda name: rules, owner, clock=lambda: now, **known)


async def test_two_daemons_do_each_due_job_once() -> None:
    world = World()
    rules: Any = {"analyze": "0 * * * *", "seal": "30 * * * *"}
    one, two = daemon(world, "one", **rules), daemon(world, "two", **rules)
    start = NOW - NOW % HOUR
    for minute in range(60, 60 + 240, 10):
        begun = await asyncio.gather(*(each.look(start + minute * 60) for each in (one, two)))
        assert sum(begun) == (2 if minute == 60 else minute % 30 == 0)
        await asyncio.gather(one.idle(), two.idle())
    assert (world.work.asked.count("analyze"), world.work.asked.count("seal")) == (4, 5)
    done = world.ledger.find("schedules")
    assert {row["state"] for row in done} == {"done"}
    assert len(done) == 9


async def test_after_downtime_it_is_done_once() -> None:
    world = World()
    late = daemon(world, analyze="0 * * * *")
    assert await late.look(NOW + 30 * DAY) == 1
    await late.idle()
    assert await late.look(NOW + 30 * DAY + 60) == 0
    assert world.work.asked == ["analyze"]


async def test_every_deployment_has_its_own_jobs() -> None:
    world = World(None, "d", "e")
    both = daemon(world, seal="0 * * * *", now=NOW + DAY)
    assert await both.look(NOW + DAY) == 2
    await both.idle()
    assert sorted(row["deployment"] for row in world.ledger.find("schedules")) == ["d", "e"]


async def test_a_job_that_fails_is_noted_and_stops_nothing() -> None:
    world, told = World(), list[Notice]()

    async def broken(deployment: str, now: float) -> object:
        raise Overloaded("503 from the judge")

    async def tell(notice: Notice) -> None:
        told.append(notice)

    world.work.analyze = broken  # type: ignore[method-assign, assignment]
    every = daemon(world, tell=tell, analyze="0 * * * *", seal="0 * * * *")
    await every.look(NOW + DAY)
    await every.idle()
    notes = {row["job"]: (row["state"], row["note"]) for row in world.ledger.find("schedules")}
    assert notes == {"analyze": ("done", "Overloaded: 503 from the judge"), "seal": ("done", "")}
    assert [(notice.event, notice.text) for notice in told] == [
        ("failed", "analyze failed with Overloaded; the log says more")
    ]


async def test_a_turn_is_for_cron() -> None:
    world = World(None, "d", "e")
    one, two = daemon(world, "one"), daemon(world, "two")
    assert await one.turn("seal", NOW + 5) == {"d": "", "e": ""}
    assert await two.turn("seal", NOW + 15) == {}  # the cron of another machine, the same minute
    assert await two.turn("seal", NOW + 65, "d") == {"d": ""}
    assert world.work.asked == ["seal"] * 3
    with pytest.raises(ConfigError, match="promote, probe, analyze, evolve, seal"):
        await one.turn("rest", NOW)
    with pytest.raises(ConfigError, match="there are: d, e"):
        await one.turn("seal", NOW, "f")


async def test_turns_carry_an_experiment_to_its_end() -> None:
    world = World()
    one = daemon(world)
    await one.turn("evolve", NOW + 60)
    for day in (0.1, 1.2, 2.3, 9.5):
        assert await one.turn("promote", NOW + day * DAY) == {"d": ""}
        world.pair()
    assert [row["outcome"] for row in world.rows] == ["promoted", "", ""]
    assert world.rows[1]["stage"] == "live"


async def test_what_died_in_the_middle_is_done_by_another_when_its_lease_ran_out() -> None:
    world = World()
    never = asyncio.Event()

    async def hangs(deployment: str, now: float) -> None:
        await never.wait()

    one, two = daemon(world, "one", seal="0 0 * * *", grace_s=0.01), daemon(world, "two", seal="0 0 * * *")
    working, world.work.seal = world.work.seal, hangs  # type: ignore[method-assign]
    at = NOW + DAY
    assert await one.look(at) == 1
    await asyncio.sleep(0)
    await one.close()  # called off: nothing is finished
    world.work.seal = working  # type: ignore[method-assign]
    assert await two.look(at + 60) == 0
    assert await two.look(at + 130) == 1
    await two.idle()
    assert world.work.asked == ["seal"]


async def test_the_claim_of_long_work_is_renewed() -> None:
    world, gate = World(), asyncio.Event()
    now = NOW + DAY

    async def long(deployment: str, at: float) -> None:
        await gate.wait()

    world.work.seal = long  # type: ignore[method-assign, assignment]
    rules = Schedule(**{**QUIET, "seal": "0 0 * * *"})
    one = Daemon(world.ledger, world.cycle, lambda name: rules, "one", clock=lambda: now, lease_s=0.03)
    await one.look(now)
    now += 500
    for _ in range(200):
        await asyncio.sleep(0.01)
        row = world.ledger.find("schedules")[0]
        if row["lease_until"] > now:
            break
    assert row["lease_until"] == pytest.approx(now + 0.03)
    gate.set()
    await one.idle()
    assert world.ledger.find("schedules")[0]["state"] == "done"


async def test_the_loop_lives_through_a_ledger_that_is_away_and_ends_when_told() -> None:
    world, stop = World(), asyncio.Event()
    find, looks = world.ledger.find, 0

    def away(table: str, *given: Any, **named: Any) -> Any:
        nonlocal looks
        looks += table == "deployments"
        if looks < 3:
            raise StoreError("the ledger cannot be reached")
        return find(table, *given, **named)

    world.ledger.find = away  # type: ignore[method-assign]
    one = daemon(world, seal="0 0 * * *", poll_s=0.001)
    running = asyncio.create_task(one.run(stop))
    for _ in range(500):
        await asyncio.sleep(0.005)
        if world.work.asked:
            break
    stop.set()
    await running
    assert world.work.asked == ["seal"]
    assert looks >= 3


async def test_a_daemon_that_is_gone_leaves_what_serves() -> None:
    """All that routes is the pointer, and nothing but a step changes it."""
    world = World(Told())
    await world.go(0, 1)
    serves, state = world.serves, world.state
    one = daemon(world)
    await one.close()
    assert (world.serves, world.state) == (serves, state)
    assert await one.look(NOW + 400 * DAY) == len(JOBS)  # and when it is back it takes one step after the other
    await one.idle()
    assert world.serves in (serves, world.rows[0]["candidate"])
