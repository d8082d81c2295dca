"""Deployments: versions, candidates, what is refused, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed_world import NAME, NOW, deployed, home, made
from postgres import postgres_url
from small import settings, write_config

from evocluster import build
from evocluster.deploying import Home, candidate, deploy, history, roll_back, status
from evocluster.deploying import deployed as loaded
from evocluster.errors import ConfigError, LedgerConflict
from evocluster.online.actuator import open_breaker
from evocluster.release.content import contents
from evocluster.release.snapshot import Snapshot

__all__ = ["postgres_url"]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    with deployed(tmp_path, ledger=url) as made_home:
        yield made_home


def other(where: Home, rubric: str = "Say the colour.") -> Snapshot:
    """What serves, with another instruction."""
    serves = where.snapshot(where.pointer(NAME)["snapshot"])
    genes = {**serves.prompt.genes, "rubric": rubric}
    return serves.changed(prompt=serves.prompt.model_copy(update={"genes": genes}))


def enter(where: Home, snapshot: Snapshot, now: float = NOW + 1, **how: Any) -> dict[str, Any]:
    given = {"layer": "prompt", "trigger": {"kind": "hand", "why": "tried"}, "now": now, **how}
    return candidate(where, NAME, snapshot, **given)


def point(where: Home, snapshot: Snapshot, action: str = "judge to live") -> None:
    pointer = where.pointer(NAME)
    audit = {"at": NOW, "actor": "controller", "action": action, "why": {}}
    state = {"experiment": "", "arms": {}, "eligible": [snapshot.id], "stage": "", "holdout": "", "stable": snapshot.id}
    where.ledger.move(NAME, pointer["epoch"], audit=audit, snapshot=snapshot.id, state=state)


def test_the_first_one_serves_at_once(where: Home) -> None:
    pointer = where.pointer(NAME)
    snapshot = where.snapshot(pointer["snapshot"])
    assert snapshot.prompt.genes["rubric"] == "Which colour?"
    assert (pointer["epoch"], snapshot.strategy.timeout_s) == (1, 60.0)
    deployment = loaded(where, NAME)
    assert deployment.config.tasks == {}
    assert deployment.task.labels == ("red", "green", "blue", "black")
    assert deployment.settings.gateway.poll_s == 0.02
    [version] = history(where, NAME)
    assert (version["version"], version["incumbent"], version["weight"]) == ("v1.0", True, 1.0)
    [audit] = where.ledger.find("audit")
    assert (audit["action"], audit["actor"], audit["from_snapshot"]) == ("deploy", "user", "")
    assert {row["genome"] for row in where.ledger.find("variants", {"deployment": NAME})}
    told = status(where, NAME, NOW + 5)
    assert (told["version"], told["requests"], told["arms"], told["experiments"]) == ("v1.0", 0, {}, [])


def test_a_second_run_is_a_candidate_under_a_new_major(where: Home) -> None:
    told = deploy(made(6), NAME, where, genome="recommended", now=NOW + 1)
    assert (told["version"], told["stage"], told["epoch"]) == ("v2.0", "candidate", 2)
    [row] = where.ledger.find("experiments")
    assert (row["candidate"], row["baseline"], row["stage"]) == (told["snapshot"], "", "candidate")
    assert where.pointer(NAME)["snapshot"] != told["snapshot"]
    assert where.ledger.find("audit", order="-id")[0]["action"] == "candidate"
    with pytest.raises(ConfigError, match=f"is a candidate of '{NAME}' already: experiment '{row['id']}'"):
        deploy(made(6), NAME, where, genome="recommended", now=NOW + 2)


def test_one_that_is_live_takes_its_share(where: Home) -> None:
    before = where.pointer(NAME)["snapshot"]
    told = deploy(made(6), NAME, where, genome="recommended", now=NOW + 1, live=True)
    pointer = where.pointer(NAME)
    assert (told["stage"], pointer["snapshot"], pointer["state"]["stage"]) == ("live", before, "live")
    assert pointer["state"]["arms"] == {before: 0.8, told["snapshot"]: 0.2}
    assert pointer["state"]["stable"] == before
    shown = {row["version"]: row["weight"] for row in history(where, NAME)}
    assert shown == {"v2.0": 0.2, "v1.0": 0.8}
    assert status(where, NAME)["arms"] == {"v1.0": 0.8, "v2.0": 0.2}
    with pytest.raises(ConfigError, match=rf"experiment '{told['experiment']}' under way.*evocluster rollback"):
        enter(where, other(where), live=True)


def test_what_serves_already_is_refused(where: Home) -> None:
    with pytest.raises(ConfigError, match="serves exactly this already"):
        deploy(made(), NAME, where, genome="start", now=NOW + 1)
    assert where.pointer(NAME)["epoch"] == 1


def test_another_task_is_refused_and_leaves_nothing(where: Home, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "other",
        task={**settings()["task"], "labels": ["red", "green", "blue", "black", "white"]},
        budget={"generations": 1},
        cache={"path": None},
    )
    build.run(build.plan(config), tmp_path / "run")
    before = {table: where.ledger.count(table) for table in ("snapshots", "layers", "variants", "versions")}
    with pytest.raises(ConfigError, match=r"another task.*another name"):
        deploy(tmp_path / "run", NAME, where, now=NOW + 1)
    assert {table: where.ledger.count(table) for table in before} == before


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 200])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with home(tmp_path) as where, pytest.raises(ConfigError, match="--as"):
        deploy(made(), name, where)


def test_nobody_of_that_name_names_those_there_are(where: Home) -> None:
    for ask in (history, status, roll_back):
        with pytest.raises(ConfigError, match=rf"'nobody'.*there are: {NAME}"):
            ask(where, "nobody")


@pytest.mark.parametrize("live", [False, True])
def test_what_was_rolled_back_by_the_breaker_does_not_come_back(where: Home, live: bool) -> None:
    worse = other(where, "Shout any colour, whatever is asked, and nothing but that.")
    enter(where, worse, live=True)
    assert open_breaker(where.ledger, NAME, "it fails", {}, NOW + 2, candidate=worse.id, contents=contents)
    with pytest.raises(ConfigError, match=r"barred|rolled back"):
        enter(where, worse, live=live)
    near = other(where, "Shout any colour, whatever is  asked, and nothing but that.")
    with pytest.raises(ConfigError, match=r"barred|rolled back"):
        enter(where, near, live=live)
    assert enter(where, other(where, "Name the colour that the thing has."), live=live)["version"] == "v1.2"


def test_a_candidate_that_lost_the_race_is_entered_anew(where: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    move = where.ledger.move
    raced: list[int] = []

    def race(name: str, epoch: int, **how: Any) -> int:
        if not raced:
            raced.append(epoch)
            move(name, epoch, audit={"at": NOW, "actor": "other", "action": "weights", "why": {}})
        return move(name, epoch, **how)

    monkeypatch.setattr(where.ledger, "move", race)
    told = enter(where, other(where))
    assert (told["epoch"], told["version"], where.ledger.count("experiments")) == (3, "v1.1", 1)


def test_a_first_one_that_lost_the_race_says_so(where: Home) -> None:
    from evocluster.deploying import first

    serves = where.snapshot(where.pointer(NAME)["snapshot"])
    with pytest.raises(LedgerConflict, match="there already"):
        first(where, NAME, loaded(where, NAME).config, serves, {"by": "user"}, NOW, {})
    assert where.ledger.count("versions") == 1


def test_back_by_version_layer_and_default(where: Home) -> None:
    first = where.pointer(NAME)["snapshot"]
    newer = other(where)
    enter(where, newer)
    point(where, newer)
    done = roll_back(where, NAME, "v1.0", why="it was better", wait_s=0.0)
    assert (done["version"], done["snapshot"], done["late"]) == ("v1.0", first, [])
    assert where.ledger.find("audit", order="-id")[0]["why"] == {"text": "it was better"}
    roll_back(where, NAME, "v1.1", wait_s=0.0)
    assert roll_back(where, NAME, wait_s=0.0)["version"] == "v1.0"
    with pytest.raises(ConfigError, match=r"v9\.9.*v1\.0, v1\.1"):
        roll_back(where, NAME, "v9.9", wait_s=0.0)
    with pytest.raises(ConfigError, match="'tone' is no layer; allowed: prompt, memory, strategy"):
        roll_back(where, NAME, "v1.1", layer="tone", wait_s=0.0)
    slower = where.snapshot(first)
    slower = slower.changed(strategy=slower.strategy.model_copy(update={"timeout_s": 77.0}))
    enter(where, slower, layer="strategy")
    point(where, slower)
    done = roll_back(where, NAME, "v1.1", layer="prompt", wait_s=0.0)
    mixed = where.snapshot(done["snapshot"])
    assert (mixed.prompt, mixed.strategy) == (newer.prompt, slower.strategy)
    assert done["version"] == "v1.3"
    assert roll_back(where, NAME, "v1.1", layer="prompt", wait_s=0.0)["version"] == "v1.3"


def test_the_one_before_is_never_what_was_taken_back(where: Home) -> None:
    first = where.pointer(NAME)["snapshot"]
    with pytest.raises(ConfigError, match="has served nothing before"):
        roll_back(where, NAME, wait_s=0.0)
    worse = other(where)
    enter(where, worse)
    point(where, worse)
    point(where, where.snapshot(first), "breaker")
    with pytest.raises(ConfigError, match="has served nothing before"):
        roll_back(where, NAME, wait_s=0.0)
    assert where.pointer(NAME)["snapshot"] == first


def test_back_from_a_candidate_that_is_live_ends_it(where: Home) -> None:
    first = where.pointer(NAME)["snapshot"]
    enter(where, other(where), live=True)
    assert roll_back(where, NAME, wait_s=0.0)["snapshot"] == first
    [row] = where.ledger.find("experiments")
    assert (row["stage"], row["outcome"]) == ("done", "rolled_back")
    assert where.pointer(NAME)["state"]["arms"] == {}


def test_it_waits_for_replicas_and_names_those_that_are_late(where: Home) -> None:
    import time

    enter(where, newer := other(where))
    point(where, newer)
    row = {"id": "slow", "deployment": NAME, "epoch": 1, "seen_at": time.time() + 60, "url": ""}
    where.ledger.put("replicas", row)
    assert roll_back(where, NAME, "v1.0", wait_s=0.2)["late"] == ["slow"]
