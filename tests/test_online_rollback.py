"""Taking back: in one move, of a version or one layer, whoever was first; and done when every live replica knows."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_ledger import FakeLedger, Killed
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import ConfigError, LedgerConflict
from evocluster.online.actuator import (
    abort,
    labelled,
    open_breaker,
    rollback,
    rows_of,
    wait_acknowledged,
)
from evocluster.online.ledger import load, pointer
from evocluster.records import FrozenDict
from evocluster.release.snapshot import LAYERS, Layer, Note, Prompt, Snapshot, Strategy

NOW = 1_800_000_000.0


def snapshot(prompt: str = "a", note: str = "", model: str = "m") -> Snapshot:
    return Snapshot(
        prompt=Prompt(genes={"rubric": prompt}),
        memory=(Note(id="n", text=note),) if note else (),
        strategy=Strategy(genes=FrozenDict({"model": model})),
    )


OLD, NEW, FIRST = snapshot("a"), snapshot("b"), snapshot("first", "known", "dear")


def store(ledger: FakeLedger, *snapshots: Snapshot) -> None:
    for one in snapshots:
        for table, row in rows_of(ledger, one, "", {}, NOW):
            ledger.put(table, row)


def experiment(stage: str = "live", **known: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "deployment": "d",
        "candidate": NEW.id,
        "baseline": OLD.id,
        "layer": "prompt",
        "trigger": {},
        "stage": stage,
        "stage_at": NOW - 100,
        "started_at": NOW - 900,
        "ended_at": None,
        "outcome": "",
        "why": "",
        "shadow": {},
        "judge_score": 0.8,
        "active_s": 0.0,
        "work": {"live_at": NOW - 500},
        **known,
    }


def world(stage: str = "live") -> FakeLedger:
    """A deployment whose first version is FIRST, its second OLD; NEW is on trial."""
    ledger = FakeLedger()
    store(ledger, FIRST, OLD, NEW)
    incumbent = NEW if stage == "watch" else OLD
    state = {"experiment": "x", "arms": {OLD.id: 0.8, NEW.id: 0.2}, "eligible": sorted([OLD.id, NEW.id])}
    state |= {"stage": stage, "holdout": "", "stable": OLD.id}
    row = {"name": "d", "snapshot": incumbent.id, "state": state, "config": "", "facts": {}, "secret": "s", "at": NOW}
    ledger.deploy(row, {"at": NOW, "actor": "hand", "action": "deploy", "why": {}})
    for one in (FIRST, OLD):
        for table, version in labelled(ledger, "d", one.id, "", "", NOW):
            ledger.put(table, version)
    ledger.put("experiments", experiment(stage))
    return ledger


@pytest.mark.parametrize("stage", ["live", "watch"])
def test_an_open_breaker_is_one_move(stage: str) -> None:
    ledger = world(stage)
    before = ledger.writes
    opened = open_breaker(ledger, "d", "12 of 20 failed", {"n": 20}, NOW, candidate=NEW.id)
    assert opened is not None
    assert ledger.writes == before + 1
    at = pointer(ledger, "d")
    assert (at.snapshot, at.epoch, at.state["arms"], at.state["experiment"]) == (OLD.id, 2, {}, "")
    assert at.state["eligible"] == [OLD.id]
    [incident] = ledger.find("incidents")
    assert (incident["id"], incident["snapshot"], incident["evidence"]["n"]) == (opened.incident, NEW.id, 20)
    [barred] = ledger.find("barred")
    assert (barred["hash"], barred["incident"]) == (NEW.layers["prompt"], incident["id"])
    assert '"rubric":"b"' in barred["text"]
    row = ledger.first("experiments")
    assert row is not None
    assert (row["stage"], row["outcome"], row["active_s"]) == ("done", "rolled_back", 500.0)
    audit = ledger.find("audit")[-1]
    assert (audit["action"], audit["from_snapshot"] == OLD.id, audit["to_snapshot"]) == (
        "breaker",
        stage == "live",
        OLD.id,
    )


def test_a_breaker_opens_once() -> None:
    ledger = world()
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_breaker(ledger, "d", "failed", {}, NOW), range(8)))
    assert len([one for one in opened if one is not None]) == 1
    assert pointer(ledger, "d").epoch == 2
    assert open_breaker(ledger, "d", "again", {}, NOW) is None


def test_a_breaker_opens_for_what_is_live_only() -> None:
    assert open_breaker(world(), "d", "failed", {}, NOW, candidate=OLD.id) is None
    ledger = world("shadow")
    assert open_breaker(ledger, "d", "failed", {}, NOW) is None
    assert pointer(ledger, "d").epoch == 1


def test_a_breaker_opens_after_a_layer_was_erased() -> None:
    ledger = world()
    ledger.patch("layers", {"hash": NEW.layers["prompt"]}, erased=True, body=None)
    assert open_breaker(ledger, "d", "failed", {}, NOW) is not None
    assert (pointer(ledger, "d").snapshot, ledger.count("barred")) == (OLD.id, 0)


def test_a_kill_while_it_opens_leaves_all_or_nothing() -> None:
    ledger = world()
    ledger.kill_after = ledger.writes + 1
    with pytest.raises(Killed):
        open_breaker(ledger, "d", "failed", {}, NOW)
    ledger.kill_after = None
    assert (pointer(ledger, "d").snapshot, ledger.count("incidents")) == (OLD.id, 1)
    assert open_breaker(ledger, "d", "failed", {}, NOW) is None


def test_who_is_second_looks_again() -> None:
    ledger = world()
    move, first = ledger.move, True

    def late(*given: Any, **named: Any) -> int:
        nonlocal first
        if first:
            first = False
            move("d", 1, audit={"at": NOW, "actor": "bandit", "action": "weights", "why": {}})
        return move(*given, **named)

    ledger.move = late  # type: ignore[method-assign]
    assert open_breaker(ledger, "d", "failed", {}, NOW) is not None
    assert pointer(ledger, "d").epoch == 3

    def never(*given: Any, **named: Any) -> int:
        raise LedgerConflict("again")

    ledger.move = never  # type: ignore[method-assign]
    with pytest.raises(LedgerConflict, match="roll it back again"):
        rollback(ledger, "d", NOW, version="v1.0")


@pytest.mark.parametrize(
    ("stage", "outcome", "epoch"), [("live", "rolled_back", 2), ("watch", "rolled_back", 2), ("judge", "rejected", 2)]
)
def test_an_experiment_can_be_called_off_at_any_stage(stage: str, outcome: str, epoch: int) -> None:
    ledger = world(stage)
    called = abort(ledger, "x", "not wanted", NOW, actor="ann")
    assert called is not None
    row = ledger.first("experiments")
    assert row is not None
    assert (row["stage"], row["outcome"], row["why"]) == ("done", outcome, "not wanted")
    assert (pointer(ledger, "d").snapshot, pointer(ledger, "d").epoch) == (OLD.id, epoch)
    assert abort(ledger, "x", "again", NOW, actor="ann") is None
    with pytest.raises(ConfigError, match="'y'"):
        abort(ledger, "y", "", NOW, actor="ann")


@pytest.mark.parametrize("stage", ["live", "watch", "judge"])
def test_a_version_back_skips_the_gates_and_ends_what_is_live(stage: str) -> None:
    ledger = world(stage)
    before = ledger.writes
    done = rollback(ledger, "d", NOW, version="v1.0", actor="ann")
    assert ledger.writes == before + 1
    at = pointer(ledger, "d")
    assert (at.snapshot, at.epoch, at.state["arms"], at.state["stable"]) == (FIRST.id, done.epoch, {}, FIRST.id)
    row = ledger.first("experiments")
    assert row is not None
    assert row["outcome"] == ("" if stage == "judge" else "rolled_back")
    assert ledger.count("versions") == 2
    assert ledger.find("audit")[-1]["actor"] == "ann"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_back_keeps_todays_others_under_a_version_of_its_own(layer: Layer) -> None:
    ledger = world()
    done = rollback(ledger, "d", NOW, version="v1.0", layer=layer)
    made = load(ledger, done.snapshot)
    for each in LAYERS:
        assert made.layers[each] == (FIRST if each == layer else OLD).layers[each]
    version = ledger.first("versions", {"version": "v1.2"})
    assert version is not None
    assert (version["snapshot"], version["layer"]) == (done.snapshot, layer)
    assert pointer(ledger, "d").snapshot == done.snapshot


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, *LAYERS])), min_size=1, max_size=6))
def test_whatever_was_promoted_or_taken_back_can_be_taken_back(path: list[tuple[int, Layer | None]]) -> None:
    ledger = world()
    for number, layer in path:
        before = {row["version"]: row["snapshot"] for row in ledger.find("versions")}
        version = f"v1.{min(number, len(before) - 1)}"
        epoch = pointer(ledger, "d").epoch
        done = rollback(ledger, "d", NOW, version=version, layer=layer)
        assert done.epoch == epoch + 1
        assert load(ledger, done.snapshot).id == done.snapshot
        after = {row["version"]: row["snapshot"] for row in ledger.find("versions")}
        assert {version: after[version] for version in before} == before
        if layer is None:
            assert done.snapshot == before[version]


def test_what_is_not_there_or_was_erased_is_refused() -> None:
    ledger = world()
    with pytest.raises(ConfigError, match=r"v9.*v1\.0, v1\.1"):
        rollback(ledger, "d", NOW, version="v9")
    with pytest.raises(ConfigError, match="prompt, memory, strategy"):
        rollback(ledger, "d", NOW, version="v1.0", layer="tools")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'e'"):
        rollback(ledger, "e", NOW, version="v1.0")
    ledger.patch("layers", {"hash": FIRST.layers["memory"]}, erased=True, body=None)
    with pytest.raises(ConfigError, match="erased"):
        rollback(ledger, "d", NOW, version="v1.0")
    assert pointer(ledger, "d").epoch == 1


async def test_it_is_done_when_every_live_replica_serves_by_it() -> None:
    ledger = world()
    replicas = {"a": (1, NOW), "b": (1, NOW), "dead": (0, NOW - 60)}
    for id, (epoch, seen_at) in replicas.items():
        ledger.put("replicas", {"id": id, "deployment": "d", "epoch": epoch, "seen_at": seen_at, "url": ""})
    ledger.put("replicas", {"id": "z", "deployment": "other", "epoch": 0, "seen_at": NOW, "url": ""})
    epoch = rollback(ledger, "d", NOW, version="v1.0").epoch

    def wait(timeout_s: float) -> Any:
        return wait_acknowledged(ledger, "d", epoch, clock=lambda: NOW, timeout_s=timeout_s, poll_s=0.001)

    assert await wait(0.01) == ("a", "b")
    waiting = asyncio.create_task(wait(30))
    ledger.patch("replicas", {"id": "a"}, epoch=epoch)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    ledger.patch("replicas", {"id": "b"}, epoch=epoch + 1)
    assert await waiting == ()
