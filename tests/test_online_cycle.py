"""The cycle: every stage in its turn, resumable wherever it is killed; what serves changes by what passed alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cycle_world import DAY, FIRST, HOUR, NOW, Gate, Told, World
from fake_ledger import Killed

from evocluster.errors import LedgerConflict, Overloaded
from evocluster.online.actuator import rollback
from evocluster.online.cycle import MOST_TRIES, Trigger
from evocluster.online.ledger import pointer
from evocluster.online.work import Judged, Tripped
from evocluster.release.settings import Online, Promotion


async def test_the_whole_way_of_a_candidate() -> None:
    world = World()
    row = await world.go(0)
    assert (row["stage"], row["baseline"], world.serves) == ("shadow", FIRST.id, FIRST.id)
    assert row["work"]["gates"] == [["syntax", True, []]]
    assert world.ledger.first("snapshots", {"id": row["candidate"]})["parent"] == FIRST.id  # type: ignore[index]
    assert world.ledger.count("variants") == 1
    row = await world.go(0.9)
    assert (row["stage"], world.state["arms"]) == ("shadow", {})
    row = await world.go(1)
    assert (row["stage"], row["judge_score"], row["shadow"]) == ("live", 0.8, {"pairs": 100})
    assert world.serves == FIRST.id
    assert world.state["arms"] == pytest.approx({FIRST.id: 0.8, row["candidate"]: 0.2})
    assert (world.state["stage"], world.state["experiment"], world.state["stable"]) == ("live", row["id"], FIRST.id)
    row = await world.go(1.9)
    assert row["stage"] == "live"
    row = await world.go(2)
    assert (row["stage"], world.serves) == ("watch", row["candidate"])
    assert (world.state["holdout"], world.state["stable"]) == (FIRST.id, FIRST.id)
    [version] = world.ledger.find("versions", {"version": "v1.1"})
    assert (version["snapshot"], version["layer"]) == (row["candidate"], "prompt")
    await world.go(3.5)
    assert world.state["stable"] == row["candidate"]
    row = await world.go(9)
    assert (row["stage"], row["outcome"], row["active_s"]) == ("done", "promoted", 8 * DAY)
    assert (world.serves, world.state["arms"], world.state["experiment"]) == (row["candidate"], {}, "")
    assert [notice.event for notice in world.notices] == ["live", "watch", "promoted"]


Action = Callable[[World], Awaitable[object]]


def script(*, trips: bool) -> list[Action]:
    """A month: two layers evolve; the breaker opens on the second, or both are promoted; an alarm evolves a third."""

    def promote(day: float) -> Action:
        return lambda world: world.cycle.promote("d", NOW + day * DAY)

    async def alarm(world: World) -> None:
        # From a replica, not from what is killed here.
        row = {"id": "f1", "deployment": "d", "at": NOW + 16 * DAY, "kind": "drift", "state": "open"}
        world.ledger.tables["findings"].setdefault(("f1",), {**row, "layer": "strategy", "evidence": {}})

    async def trip(world: World) -> None:
        world.work.trips = Tripped("12 of 20 failed", {"n": 20}) if trips else None

    async def pair(world: World) -> None:
        world.pair()

    async def calm(world: World) -> None:
        world.work.trips = None

    steps: list[Action] = [
        lambda world: world.cycle.analyze("d", NOW),
        lambda world: world.cycle.evolve("d", NOW, None, ("prompt", "memory")),
    ]
    for day in (0, 1, 2, 2.1, 3, 3.1, 4.2, 4.3, 5.4):
        steps += [promote(day), pair]
    steps += [trip, promote(5.5), calm, promote(13), alarm, promote(16)]
    return steps


async def run(steps: list[Action], kill_after: int | None, *, in_work: bool = False) -> World:
    """All of it, each action that is killed done again."""
    finding = {"id": "f0", "deployment": "d", "at": NOW, "kind": "cost", "severity": "low", "state": "open"}
    world = World(Told(findings=[finding], killed=in_work))
    world.ledger.kill_after = kill_after
    for action in steps:
        for _ in range(4):
            try:
                await action(world)
            except Killed:
                world.ledger.kill_after = None
                continue
            break
    return world


@pytest.mark.parametrize("trips", [False, True])
async def test_a_turn_that_is_killed_anywhere_ends_in_the_same_state(trips: bool) -> None:
    steps = script(trips=trips)
    whole = await run(steps, None)
    outcomes = [row["outcome"] for row in whole.rows]
    assert outcomes == ["promoted", "rolled_back" if trips else "promoted", ""]
    assert whole.rows[2]["trigger"]["finding"] == "f1"
    assert whole.ledger.writes > 30
    for number in range(1, whole.ledger.writes + 1):
        killed = await run(steps, number)
        assert killed.ledger.dump() == whole.ledger.dump(), f"killed after write {number}"
        assert {notice.id for notice in killed.notices} == {notice.id for notice in whole.notices}
    died = await run(steps, None, in_work=True)
    assert died.ledger.dump() == whole.ledger.dump()
    assert len(died.work.asked) > len(whole.work.asked)


async def test_an_epoch_names_one_routing() -> None:
    world = await run(script(trips=True), None)
    epochs = [row["epoch"] for row in world.ledger.find("audit")]
    assert epochs == list(range(1, len(epochs) + 1))


async def test_a_turn_with_nothing_to_do_writes_nothing() -> None:
    world = World()
    for days in (0, 0.5, 1, 1.5, 2, 3.5):
        await world.go(days)
        writes, epoch = world.ledger.writes, pointer(world.ledger, "d").epoch
        assert await world.cycle.promote("d", NOW + days * DAY) == 0
        assert (world.ledger.writes, pointer(world.ledger, "d").epoch) == (writes, epoch), days
    await world.go(9)
    assert await world.cycle.promote("d", NOW + 9 * DAY) == 0


async def test_gates_that_are_not_passed_reject() -> None:
    world = World(Told(gates=[Gate("syntax", True), Gate("scope", False, ("changes the model",))]))
    row = await world.go(0)
    assert (row["stage"], row["outcome"], row["why"]) == ("done", "rejected", "gates: scope: changes the model")
    assert world.serves == FIRST.id
    assert [notice.text for notice in world.notices] == ["the experiment on layer prompt is rejected"]
    none = World(Told(gates=[]))
    assert (await none.go(0))["outcome"] == "rejected"


async def test_what_cannot_be_made_is_rejected_with_its_reason() -> None:
    world = World(Told(unmade="11 examples, 40 are needed"))
    row = await world.go(0)
    assert (row["outcome"], row["why"]) == ("rejected", "11 examples, 40 are needed")


@pytest.mark.parametrize(("move", "outcome"), [("reject", "rejected"), ("inconclusive", "inconclusive")])
async def test_the_judge_ends_it_without_touching_what_serves(move: Any, outcome: str) -> None:
    world = World(Told(judged=Judged(move, "futile", 100, 0.7)))
    row = await world.go(0, 1)
    assert (row["outcome"], row["why"], world.serves) == (outcome, "futile", FIRST.id)
    assert world.ledger.first("audit", order="-epoch")["to_snapshot"] == FIRST.id  # type: ignore[index]


@pytest.mark.parametrize(("move", "outcome"), [("reject", "rolled_back"), ("inconclusive", "inconclusive")])
async def test_live_traffic_can_end_it(move: Any, outcome: str) -> None:
    world = World()
    await world.go(0, 1)
    world.work.lived = Judged(move, "failures +3 points")
    row = await world.go(1.5)
    assert (row["outcome"], world.serves, world.state["arms"]) == (outcome, FIRST.id, {})
    assert row["active_s"] == 0.5 * DAY


async def test_work_that_raises_is_tried_again_a_few_times() -> None:
    world = World(Told(raises=Overloaded("503")))
    for turn in range(MOST_TRIES):
        with pytest.raises(Overloaded):
            await world.go(turn / 100)
    assert world.rows[0]["work"]["failure"] == "Overloaded: 503"
    row = await world.go(0.5)
    assert (row["outcome"], row["why"]) == ("rejected", "evolution failed 5 times: Overloaded: 503")
    assert world.work.asked.count("evolve prompt") == MOST_TRIES


async def test_one_after_the_other_each_against_what_serves_then() -> None:
    world = World()
    await world.go(0, 1, 1.5, layers=("prompt", "memory"))
    assert [row["stage"] for row in world.rows] == ["live", "candidate"]
    assert world.work.asked.count("evolve memory") == 0  # the first may be what serves tomorrow
    await world.go(2)
    first, second = world.rows
    assert (first["stage"], second["stage"]) == ("watch", "shadow")
    assert second["baseline"] == world.serves == first["candidate"]
    world.work.trips = Tripped("failures", {})
    await world.go(2.5)  # the second was compared with what serves no more
    assert [row["outcome"] for row in world.rows] == ["rolled_back", "inconclusive"]
    assert world.serves == FIRST.id


async def test_one_that_is_ready_ends_the_holdout_of_another_after_its_day() -> None:
    world = World()
    await world.go(0, 1, 2)
    await world.cycle.evolve("d", NOW + 2 * DAY, Trigger(kind="hand"), ("memory",))
    await world.go(2.1, 2.9)
    assert [row["stage"] for row in world.rows] == ["watch", "shadow"]
    await world.go(3.2)
    assert [row["stage"] for row in world.rows] == ["done", "live"]
    assert (world.rows[0]["outcome"], world.state["experiment"]) == ("promoted", world.rows[1]["id"])
    assert set(world.state["arms"]) == {world.rows[0]["candidate"], world.rows[1]["candidate"]}


async def test_weights_are_published_by_time_or_by_rewards() -> None:
    world = World()
    await world.go(0, 1)
    live = NOW + DAY
    candidate = world.rows[0]["candidate"]

    async def weigh(after_s: float, share: float, rewards: int) -> tuple[float, int]:
        world.work.weighed = {"candidate": share, "rewards": rewards}
        await world.cycle.promote("d", live + after_s)
        return world.state["arms"][candidate], pointer(world.ledger, "d").epoch

    _, epoch = await weigh(0, 0.2, 0)
    assert await weigh(200, 0.1, 99) == (0.2, epoch)
    assert await weigh(201, 0.1, 100) == (0.1, epoch + 1)
    assert await weigh(300, 0.15, 150) == (0.1, epoch + 1)
    assert await weigh(501, 0.15, 150) == (0.15, epoch + 2)
    assert await weigh(900, 0.15, 500) == (0.15, epoch + 2)
    assert world.serves == FIRST.id
    assert world.ledger.find("audit")[-1]["action"] == "weights in live"


async def test_the_breaker_opens_in_watch_too() -> None:
    world = World()
    await world.go(0, 1, 2, 4)
    world.work.trips = Tripped("failures", {})
    row = await world.go(4.1)
    assert (row["outcome"], world.serves, world.ledger.count("incidents")) == ("rolled_back", FIRST.id, 1)
    assert world.ledger.count("barred") == 1


async def test_frozen_nothing_is_evolved_and_nothing_goes_on() -> None:
    world = World()
    await world.go(0)
    world.find({"id": "p", "kind": "probe", "title": "the judge takes '...' for an answer", "at": NOW})
    assert (await world.go(1))["stage"] == "shadow"
    said = await world.cycle.evolve("d", NOW + DAY, Trigger(kind="hand"), ("memory",))
    assert said["memory"].startswith("withheld: evolution is frozen: the judge takes")
    world.find({"id": "a", "kind": "drift", "layer": "memory", "at": NOW + DAY})
    await world.go(1.1)
    assert len(world.rows) == 1
    world.ledger.patch("findings", {"id": "p"}, state="closed")
    await world.go(1.2)
    assert [row["stage"] for row in world.rows] == ["live", "candidate"]


async def test_a_drift_alarm_evolves_its_layer_unless_it_changed_within_a_week() -> None:
    world = World()
    await world.go(0, 1, 2, 9)
    assert world.rows[0]["outcome"] == "promoted"
    for number, (days, layer) in enumerate(((8.9, "prompt"), (9, "prompt"), (9, "memory"))):
        world.find({"id": f"a{number}", "kind": "drift", "layer": layer, "at": NOW + days * DAY})
        await world.go(days)
    states = {row["id"]: row["state"] for row in world.ledger.find("findings")}
    assert states == {"a0": "withheld", "a1": "taken", "a2": "taken"}
    assert [row["trigger"]["kind"] for row in world.rows] == ["hand", "drift", "drift"]
    world.find({"id": "late", "kind": "drift", "layer": "strategy", "at": NOW + 9 * DAY})
    await world.go(11)
    assert len(world.rows) == 3  # of two days ago


def drifted(id: str = "a", **known: Any) -> dict[str, Any]:
    said = {"deployment": "d", "at": NOW, "kind": "drift", "severity": "high", "layer": "prompt", "state": "open"}
    return {"id": id, **said, "intent": "", "model": "", "title": "down", "evidence": {"right": 3}, **known}


async def test_a_turn_notices_drift_by_itself_and_takes_an_alarm_once() -> None:
    world = World(Told(drifts=[drifted()]))
    await world.cycle.promote("d", NOW)
    [row] = world.rows
    assert (row["stage"], row["trigger"]["kind"], row["trigger"]["finding"]) == ("shadow", "drift", "a")
    assert [notice.event for notice in world.notices] == ["alarm"]
    world.work.drifts = [drifted(at=NOW + 60, evidence={"right": 1})]  # the same one, seen again
    writes = world.ledger.writes
    await world.cycle.promote("d", NOW + 60)
    [finding] = world.ledger.find("findings")
    assert (finding["state"], finding["evidence"], len(world.rows)) == ("taken", {"right": 3}, 1)
    assert world.ledger.writes == writes
    world.work.drifts = [*world.work.drifts, drifted("b")]  # of another stream, while that experiment is under way
    for _ in range(3):
        await world.cycle.promote("d", NOW + 120)
    assert [row["state"] for row in world.ledger.find("findings", order="id")] == ["taken", "withheld"]
    assert len(world.rows) == 1
    assert [notice.event for notice in world.notices] == ["alarm", "alarm"]
    assert [row["action"] for row in world.ledger.find("audit")].count("evolve") == 2


async def test_what_serves_is_seen_to_also_where_drift_cannot_be_looked_for() -> None:
    world = World()
    row = await world.go(0, 1)
    assert row["stage"] == "live"
    world.work.trips, world.work.blind = Tripped("12 of 20 failed"), Overloaded("the traffic cannot be read")
    with pytest.raises(Overloaded, match="cannot be read"):
        await world.cycle.promote("d", NOW + 1.1 * DAY)
    assert (world.rows[0]["outcome"], world.state["arms"]) == ("rolled_back", {})


async def test_the_shadow_begins_when_the_candidate_was_made() -> None:
    """An evolution of hours takes none of the shadow's day."""
    world = World(Told(evolves_s=5 * HOUR))
    row = await world.go(0)
    assert (row["stage"], row["work"]["paired_at"]) == ("shadow", NOW + 5 * HOUR)
    audit = {one["action"]: one["at"] for one in world.ledger.find("audit")}
    assert (audit["begin"], audit["candidate to gates"]) == (NOW, NOW + 5 * HOUR)
    row = await world.go(1)
    assert row["stage"] == "shadow"
    row = await world.go(1 + 5.1 / 24)
    assert row["stage"] == "live"


async def test_an_experiment_on_every_layer_is_told_of_as_such() -> None:
    world = World()
    await world.go(0, 1)
    world.ledger.patch("experiments", {"id": world.rows[0]["id"]}, layer="")
    world.work.trips = Tripped("12 of 20 failed")
    await world.cycle.promote("d", NOW + 1.1 * DAY)
    assert world.notices[-1].text == "the experiment on every layer is rolled_back"


async def test_an_open_finding_is_brought_up_to_date() -> None:
    world = World(Told(findings=[drifted(kind="failures")]))
    await world.cycle.analyze("d", NOW)
    world.work.findings = [drifted(kind="failures", evidence={"right": 1})]
    assert await world.cycle.analyze("d", NOW + 60) == 0
    assert world.ledger.find("findings")[0]["evidence"] == {"right": 1}


async def test_a_schedule_evolves_all_layers_in_turn_but_those_at_rest() -> None:
    world = World()
    await world.go(0, 1, 2, 9)
    said = await world.cycle.evolve("d", NOW + 8 * DAY)
    assert "withheld: the layer changed 6.0 days ago" in said["prompt"]
    assert [row["layer"] for row in world.rows[1:]] == ["memory", "strategy"]
    assert {row["trigger"]["candidates"] for row in world.rows[1:]} == {2}
    again = await world.cycle.evolve("d", NOW + 8 * DAY)
    assert all(one.startswith("withheld") for one in again.values())


async def test_the_analysis_acts_on_nothing_and_keeps_what_people_said() -> None:
    finding = {"id": "f", "deployment": "d", "at": NOW, "kind": "failures", "severity": "critical", "layer": "prompt"}
    world = World(Told(findings=[{**finding, "title": "Where is MY parcel", "state": "open"}]))
    assert await world.cycle.analyze("d", NOW) == 1
    world.ledger.patch("findings", {"id": "f"}, state="closed")
    assert await world.cycle.analyze("d", NOW) == 0
    assert world.ledger.find("findings")[0]["state"] == "closed"
    assert (pointer(world.ledger, "d").epoch, world.rows) == (1, [])
    assert [notice.event for notice in world.notices] == ["alarm"]
    assert "parcel" not in str(world.notices)


async def test_a_rollback_by_hand_ends_what_was_under_way() -> None:
    world = World()
    await world.go(0, 1, 2, 9)
    await world.cycle.evolve("d", NOW + 9 * DAY, Trigger(kind="hand"), ("memory",))
    await world.go(9)
    rollback(world.ledger, "d", NOW + 9.5 * DAY, version="v1.0")
    await world.go(9.6)
    assert [row["outcome"] for row in world.rows] == ["promoted", "inconclusive"]
    assert world.serves == FIRST.id


async def test_a_controller_that_was_away_promotes_nothing_for_time_alone() -> None:
    world = World(Told(judged=Judged("wait", "n = 3"), lived=Judged("wait", "few requests")))
    await world.go(0)
    row = await world.go(30)
    assert (row["outcome"], world.serves) == ("inconclusive", FIRST.id)
    world = World(Told(lived=Judged("wait", "few requests")))
    await world.go(0, 1)
    state = world.state
    row = await world.go(30)
    assert state["stage"] == "live"
    assert (row["outcome"], world.serves, world.state["arms"]) == ("inconclusive", FIRST.id, {})


async def test_weights_of_a_third_arm_are_refused() -> None:
    world = World()
    await world.go(0, 1)

    async def odd(experiment: object, now: float) -> object:
        from evocluster.online.work import Weighed

        return Weighed({FIRST.id: 0.5, "other": 0.5}, 10)

    world.work.weigh = odd  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="'other'"):
        await world.go(1.1)


async def test_two_controllers_at_once_are_like_one() -> None:
    one = World()
    await one.go(0, 1, 2)
    two = World()
    await two.cycle.evolve("d", NOW, Trigger(kind="hand"), ("prompt",))
    for day in (0, 1, 2):
        now = NOW + day * DAY
        await asyncio.gather(*(two.cycle.promote("d", now) for _ in range(3)))
        two.pair()
    assert two.rows[0]["stage"] == one.rows[0]["stage"] == "watch"
    assert two.serves == one.serves
    assert two.state == one.state
    assert two.ledger.count("versions") == 2


async def test_a_move_that_never_succeeds_is_said() -> None:
    world = World()

    def never(*given: Any, **named: Any) -> int:
        raise LedgerConflict("somebody else")

    world.ledger.move = never  # type: ignore[method-assign]
    with pytest.raises(LedgerConflict):
        await world.cycle.evolve("d", NOW)


async def test_without_a_holdout_the_watch_sends_everything_to_the_candidate() -> None:
    rules = Promotion(holdout=0.0, holdout_days=0.0)
    world = World(Told(online=Online(promotion=rules)))
    row = await world.go(0, 1, 2)
    assert (world.serves, world.state["arms"], world.state["holdout"]) == (row["candidate"], {}, "")
    assert world.state["stable"] == FIRST.id
    assert (await world.go(2 + 24 * HOUR / DAY))["outcome"] == "promoted"


async def test_what_took_long_to_make_outlives_a_queue_by_hand() -> None:
    world = World()
    evolve = world.work.evolve

    async def meanwhile(experiment: Any, now: float) -> Any:
        if experiment["layer"] == "prompt":
            await world.cycle.evolve("d", now, Trigger(kind="hand"), ("memory",))
        return await evolve(experiment, now)

    world.work.evolve = meanwhile  # type: ignore[method-assign]
    row = await world.go(0)
    assert (row["stage"], world.rows[1]["stage"]) == ("shadow", "candidate")
    assert world.work.asked.count("evolve prompt") == 1


async def test_a_controller_that_was_overtaken_writes_nothing_over() -> None:
    world = World()
    evolve, first = world.work.evolve, True

    async def overtaken(experiment: Any, now: float) -> Any:
        nonlocal first
        if first:
            first = False
            await world.cycle.promote("d", now)  # another one does it all while this one makes the same
        made = await evolve(experiment, now)
        if experiment["work"]["tries"] == 1:
            raise Overloaded("503")
        return made

    world.work.evolve = overtaken  # type: ignore[method-assign]
    await world.go(0)
    row = world.rows[0]
    assert row["stage"] == "shadow"
    assert row["work"]["paired_at"] == NOW
    assert "failure" not in row["work"]
