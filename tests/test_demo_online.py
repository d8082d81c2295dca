"""The closed loop as the demonstration shows it, on a model that answers by rules: every stage is in the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from demo_case import scripted
from demo_online import NAME, Loop, lacking, shown, told
from demo_story import Measured, difference
from demo_world import World

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_loop_closes_and_the_ledger_tells_of_every_stage(tmp_path: Path) -> None:
    said: list[str] = []
    world = World(tmp_path, NAME)
    case = scripted(ROOT / "configs" / "quickstart")
    facts = await shown(Loop(world, case, np.random.default_rng(1), said.append))
    assert not facts["lacking"], "\n".join(said)

    [promoted, forced] = world.rows("experiments", "started_at")
    assert (promoted["layer"], promoted["outcome"], promoted["trigger"]["kind"]) == ("prompt", "promoted", "drift")
    assert (forced["layer"], forced["outcome"]) == ("", "rolled_back")
    assert [name for name, passed, _ in promoted["work"]["gates"] if passed] == [
        "scope",
        "syntax",
        "injection",
        "barred",
        "replay",
    ]
    assert promoted["shadow"]["pairs"] >= 40
    actions = [row["action"] for row in world.rows("audit", "id") if not row["action"].startswith("weights")]
    assert actions == [
        "deploy",
        "evolve",
        "begin",
        "candidate to gates",
        "gates to shadow",
        "shadow to judge",
        "judge to live",
        "live to watch",
        "watch to done",
        "live",
        "breaker",
    ]
    [alarm] = [row for row in world.rows("findings") if row["kind"] == "drift"]
    assert (alarm["severity"], alarm["state"], promoted["trigger"]["finding"]) == ("high", "taken", alarm["id"])
    [incident] = world.rows("incidents")
    assert (incident["kind"], incident["snapshot"]) == ("breaker", forced["candidate"])
    assert {row["incident"] for row in world.rows("barred")} == {incident["id"]}
    versions = {row["version"]: row["snapshot"] for row in world.rows("versions")}
    assert versions == {"v1.0": promoted["baseline"], "v1.1": promoted["candidate"], "v2.0": forced["candidate"]}
    with world.ledger() as home:
        pointer = home.pointer(NAME)
    assert (pointer["snapshot"], pointer["state"]["arms"]) == (promoted["candidate"], {})
    assert facts["after"].low > facts["before"].high
    assert told(facts)["before"]["n"] == facts["before"].n
    events = "\n".join(said)
    for line in ("drift", "judge to live", "live to watch", "watch to done", "breaker", "near copies too"):
        assert line in events


def test_what_was_not_shown_is_named() -> None:
    assert lacking({"seconds": 10.0}) == [
        "no drift alarm",
        "no promotion",
        "no measured gain",
        "no roll-back",
        "nothing was barred",
    ]
    whole = {"alarms": 1, "outcome": "promoted", "gain": (0.3, 0.1, 0.5), "rolled_back": True, "barred": 2}
    assert lacking({**whole, "seconds": 599.0}) == []
    assert lacking({**whole, "seconds": 601.0}) == ["more than 600 s"]
    assert lacking({**whole, "seconds": 1.0, "gain": (0.3, -0.01, 0.6)}) == ["no measured gain"]


def test_the_interval_of_a_gain() -> None:
    """Newcombe (1998), example (a) of his table II: 56/70 against 48/80."""
    from evocluster.online.finding import wilson

    one, other = (Measured(right, n, *wilson(right, n)) for right, n in ((56, 70), (48, 80)))
    assert difference(one, other) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
