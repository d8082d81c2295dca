"""The way of a candidate: no stage is skipped, each can be left for what is stable, a step asked twice is one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.release.lifecycle import (
    DAY,
    HOUR,
    SERVING,
    STAGES,
    Evidence,
    Move,
    Stage,
    Step,
    restored,
    step,
    withheld,
)
from evocluster.release.settings import Online

SETTINGS = Online()
NOW = 1_800_000_000.0


def evidence(**known: Any) -> Evidence:
    """Of a candidate `new` beside `old`, its stage and its shadow just begun."""
    said = {"experiment": "e", "candidate": "new", "baseline": "old", "incumbent": "old", "stage_at": NOW}
    return Evidence(**{**said, "paired_at": NOW, **known})


GOOD: dict[Stage, dict[str, Any]] = {
    "candidate": {},
    "gates": {"gates": True},
    "shadow": {"pairs": 100, "paired_at": NOW - 24 * HOUR},
    "judge": {"pairs": 100, "judged": 100, "score": 0.8, "move": "promote", "why": "E = 40"},
    "live": {"move": "promote", "why": "no harm", "stage_at": NOW - 24 * HOUR},
    "watch": {"incumbent": "new", "stage_at": NOW - 7 * DAY},
}
"""What it takes to leave a stage for the next one."""

anything = st.builds(
    Evidence,
    experiment=st.just("e"),
    candidate=st.sampled_from(["", "new", "old"]),
    baseline=st.just("old"),
    incumbent=st.sampled_from(["old", "new", "other"]),
    stage_at=st.floats(NOW - 30 * DAY, NOW),
    paired_at=st.floats(NOW - 30 * DAY, NOW),
    unmade=st.sampled_from(["", "none"]),
    gates=st.sampled_from([None, True, False]),
    pairs=st.integers(0, 300),
    judged=st.integers(0, 300),
    score=st.none() | st.floats(0, 1),
    move=st.sampled_from(get_args(Move)),
    weights=st.sampled_from([{}, {"old": 0.65, "new": 0.35}]),
    tripped=st.sampled_from(["", "failures"]),
    aborted=st.sampled_from(["", "called off"]),
    frozen=st.sampled_from(["", "frozen"]),
    occupied=st.booleans(),
    waiting=st.booleans(),
)
stages = st.sampled_from(STAGES)


@given(stages, anything)
def test_no_stage_is_skipped(stage: Stage, known: Evidence) -> None:
    taken = step(stage, known, SETTINGS, NOW)
    if taken.stage not in (stage, "done"):
        assert STAGES.index(taken.stage) == STAGES.index(stage) + 1
    if taken.outcome == "promoted":
        assert stage == "watch"
    assert (taken.stage == "done") == bool(taken.outcome) or stage == "done"


@given(st.lists(anything, max_size=40))
def test_whoever_is_promoted_went_through_every_stage(seen: list[Evidence]) -> None:
    stage: Stage = "candidate"
    been, outcome = [stage], ""
    for known in seen:
        taken = step(stage, known, SETTINGS, NOW)
        if taken.stage != stage:
            been.append(taken.stage)
        stage, outcome = taken.stage, taken.outcome or outcome
    if outcome == "promoted":
        assert tuple(been) == STAGES


def test_the_whole_way() -> None:
    """What is enough for each stage leads to the next, so that the laws above are not empty."""
    for stage, after in pairwise(STAGES):
        taken = step(stage, evidence(**GOOD[stage]), SETTINGS, NOW)
        assert taken.stage == after, stage
    assert taken.outcome == "promoted"
    assert taken.routing == restored("new")


@given(stages, anything)
def test_a_step_asked_again_says_the_same(stage: Stage, known: Evidence) -> None:
    assert step(stage, known, SETTINGS, NOW) == step(stage, known, SETTINGS, NOW)
    ended = step("done", known, SETTINGS, NOW)
    assert (ended.stage, ended.outcome, ended.routing) == ("done", "", None)


@given(st.sampled_from([one for one in STAGES if one != "done"]), anything)
def test_any_stage_can_be_called_off(stage: Stage, known: Evidence) -> None:
    taken = step(stage, known.model_copy(update={"aborted": "called off", "tripped": ""}), SETTINGS, NOW)
    assert taken.stage == "done"
    if stage in SERVING:
        assert taken.outcome == "rolled_back"
        assert taken.routing == restored("old")
    else:  # it never served, so what serves stays as it is, another one's arms included
        assert taken.outcome == "rejected"
        assert taken.routing is None


@given(stages, anything)
def test_only_what_is_live_changes_what_serves(stage: Stage, known: Evidence) -> None:
    routing = step(stage, known, SETTINGS, NOW).routing
    if routing is None:
        return
    assert stage in ("judge", *SERVING)
    assert {routing.incumbent, routing.stable, *routing.arms} <= {"old", "new", known.candidate}
    if routing.arms:
        assert sum(routing.arms.values()) == pytest.approx(1)
    if stage in ("judge", "live") and routing.stage == "live":
        assert routing.incumbent == routing.stable == "old"


@given(st.sampled_from(STAGES), anything)
def test_while_frozen_nothing_goes_on(stage: Stage, known: Evidence) -> None:
    taken = step(stage, known.model_copy(update={"frozen": "frozen"}), SETTINGS, NOW)
    if stage != "watch":
        assert taken.stage in (stage, "done")
        assert taken.outcome != "promoted"


@given(st.floats(0, 365 * DAY))
def test_without_evidence_the_baseline_is_kept(away_s: float) -> None:
    """A controller that comes back after any time promotes nothing for time alone."""
    now = NOW + away_s
    for stage in ("shadow", "judge", "live"):
        taken = step(stage, evidence(pairs=100), SETTINGS, now)
        assert taken.outcome in ("", "inconclusive")
        if stage == "live":
            assert taken.routing is not None
            assert taken.routing.incumbent == "old"
        elif stage == "judge":
            assert (taken.outcome == "inconclusive") == (away_s >= 72 * HOUR)
            assert taken.routing is None


def shadow(hours: float, pairs: int) -> Step:
    return step("shadow", evidence(pairs=pairs), SETTINGS, NOW + hours * HOUR)


def test_shadow_takes_a_day_and_a_hundred_pairs() -> None:
    assert shadow(23.9, 5000).stage == "shadow"
    assert shadow(24, 99).stage == "shadow"
    assert shadow(24, 100).stage == "judge"
    late = shadow(72, 99)
    assert (late.stage, late.outcome) == ("done", "inconclusive")
    assert "99 of 100 pairs" in late.reason


def test_judged_below_the_mark_is_rejected() -> None:
    below = evidence(judged=50, score=0.59, move="promote", why="better")
    assert step("judge", below, SETTINGS, NOW).outcome == "rejected"
    few = evidence(judged=49, score=0.59, move="wait")
    assert step("judge", few, SETTINGS, NOW).stage == "judge"
    unscored = evidence(judged=0, score=None, move="promote")
    assert step("judge", unscored, SETTINGS, NOW).stage == "judge"


def test_live_begins_with_a_fifth_and_keeps_what_the_bandit_says() -> None:
    begun = step("judge", evidence(**GOOD["judge"]), SETTINGS, NOW).routing
    assert begun is not None
    assert begun.arms == pytest.approx({"old": 0.8, "new": 0.2})
    assert begun.state["eligible"] == ["new", "old"]
    later = step("live", evidence(weights={"old": 0.5, "new": 0.5}), SETTINGS, NOW).routing
    assert later is not None
    assert later.arms == {"old": 0.5, "new": 0.5}


def test_watch_holds_out_for_a_week_and_keeps_the_old_one_ready_for_a_day() -> None:
    def watched(days: float, **known: Any) -> Step:
        return step("watch", evidence(incumbent="new", **known), SETTINGS, NOW + days * DAY)

    first = watched(0.5).routing
    assert first is not None
    assert (first.incumbent, first.stable, first.holdout) == ("new", "old", "old")
    assert first.arms == pytest.approx({"new": 0.95, "old": 0.05})
    second = watched(1.5).routing
    assert second is not None
    assert (second.stable, second.holdout) == ("new", "old")
    assert watched(0.9, waiting=True).stage == "watch"
    assert watched(1, waiting=True).outcome == "promoted"
    assert watched(6.9).stage == "watch"
    assert watched(7).outcome == "promoted"


def test_ready_waits_for_the_traffic_of_another() -> None:
    held = step("judge", evidence(**GOOD["judge"], occupied=True), SETTINGS, NOW + 99 * HOUR)
    assert (held.stage, held.routing) == ("judge", None)


def test_compared_with_what_serves_no_more() -> None:
    for stage in ("candidate", "gates", "shadow", "judge"):
        taken = step(stage, evidence(**{**GOOD[stage], "incumbent": "third"}), SETTINGS, NOW)
        assert (taken.outcome, taken.routing) == ("inconclusive", None), stage
    for stage in SERVING:
        taken = step(stage, evidence(**{**GOOD[stage], "incumbent": "third"}), SETTINGS, NOW)
        assert (taken.outcome, taken.routing) == ("rolled_back", None), stage


def test_a_layer_rests_for_a_week_unless_somebody_asks() -> None:
    changed = NOW - 6.9 * DAY
    assert "rests for 7" in withheld("schedule", changed, SETTINGS, NOW)
    assert "rests for 7" in withheld("drift", changed, SETTINGS, NOW)
    assert withheld("hand", changed, SETTINGS, NOW) == ""
    assert withheld("drift", NOW - 7 * DAY, SETTINGS, NOW) == ""
    assert withheld("schedule", None, SETTINGS, NOW) == ""
    assert withheld("hand", None, SETTINGS, NOW, frozen="frozen: why") == "frozen: why"
    assert "under way" in withheld("hand", None, SETTINGS, NOW, under_way=True)
