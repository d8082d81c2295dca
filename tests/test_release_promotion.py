"""Promotion's laws: a bet that nobody wins by peeking, guards that hold back harm and nothing else, decisions."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evocluster.release.promotion import Comparison, EProcess, Evidence, Guard, Pair, Side, decide, guards, split
from evocluster.release.settings import Promotion

SETTINGS = Promotion()
DIFFERENCES = st.lists(st.floats(-1, 1), max_size=60)


def won(differences: list[float], process: EProcess | None = None) -> EProcess:
    process = process or EProcess()
    for each in differences:
        process = process.update(each)
    return process


def pairs(count: int, **candidate: float) -> tuple[Pair, ...]:
    usual = {"score": 0.8, "latency_ms": 100.0, "cost_usd": 0.01}
    return tuple(Pair(baseline=Side(**usual), candidate=Side(**{**usual, **candidate})) for _ in range(count))


def compared(count: int, lift: float, score: float = 0.8) -> Comparison:
    comparison = Comparison.begun(SETTINGS)
    for _ in range(count):
        comparison = comparison.update(score, score - lift)
    return comparison


def equal(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """250 differences of mean 0."""
    if kind == "noise":
        return rng.uniform(0, 1, 250) - rng.uniform(0, 1, 250)
    if kind == "coins":
        return rng.choice([-1.0, 0.0, 1.0], 250, p=[0.2, 0.6, 0.2])
    return rng.choice([-0.9, 0.1], 250, p=[0.1, 0.9])


@pytest.mark.parametrize("null", ["noise", "coins", "skewed"])
def test_equal_candidate_hardly_ever_gets_rich(null: str) -> None:
    rng = np.random.default_rng(5)
    rich = 0
    for _ in range(120):
        draws = equal(rng, null)
        rich += won(draws.tolist()).log_peak >= log(20)
    assert rich <= 120 * 0.05 + 2 * (120 * 0.05 * 0.95) ** 0.5


@given(DIFFERENCES, st.floats(0.01, 1))
def test_a_fair_pair_does_not_raise_the_expected_wealth(seen: list[float], size: float) -> None:
    process = won(seen)
    up, down = (process.update(each).log_wealth for each in (size, -size))
    assert 0 <= process.bet <= 0.5
    expected = (np.exp(up - process.log_wealth) + np.exp(down - process.log_wealth)) / 2
    assert expected == pytest.approx(1.0)


@given(DIFFERENCES, st.integers(0, 60))
def test_state_goes_on_after_a_restart(seen: list[float], at: int) -> None:
    stored = json.loads(json.dumps(won(seen[:at]).model_dump(mode="json")))
    assert won(seen[at:], EProcess.model_validate(stored)) == won(seen)


def test_order_counts() -> None:
    assert won([0.9] * 20 + [-0.9] * 5).log_wealth != won([-0.9] * 5 + [0.9] * 20).log_wealth
    assert won([0.5, -0.2]).total == pytest.approx(won([-0.2, 0.5]).total)


def test_scores_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"difference 1\.5"):
        EProcess().update(1.5)


def test_better_candidate_is_promoted_after_a_day() -> None:
    comparison = compared(100, 0.2)
    told = {"comparison": comparison, "pairs": pairs(100)}
    assert decide(Evidence(**told, hours=24), SETTINGS, 0.6, 72).move == "promote"
    early = decide(Evidence(**told, hours=23), SETTINGS, 0.6, 72)
    assert (early.move, early.reason) == ("wait", "23.0 of 24 h")
    assert json.loads(early.model_dump_json())["evidence"]["pairs"] == 100


def test_fewer_than_fifty_pairs_promote_and_reject_nobody() -> None:
    good = Evidence(comparison=compared(49, 0.9, 0.95), pairs=pairs(49), hours=30)
    bad = Evidence(comparison=compared(49, -0.5, 0.2), pairs=pairs(49), hours=30)
    assert [decide(each, SETTINGS, 0.6, 72).move for each in (good, bad)] == ["wait", "wait"]


def test_many_candidates_need_more() -> None:
    comparison = Comparison.begun(SETTINGS)
    while comparison.better.wealth < 25 or comparison.n < 50:
        comparison = comparison.update(0.85, 0.78)
    one, five = (Evidence(comparison=comparison, pairs=pairs(100), hours=30, candidates=k) for k in (1, 5))
    assert comparison.better.wealth < 100
    assert [decide(each, SETTINGS, 0.6, 72).move for each in (one, five)] == ["promote", "wait"]


def test_low_score_futility_and_harm_reject() -> None:
    low = decide(Evidence(comparison=compared(60, 0.2, 0.55), hours=1), SETTINGS, 0.6, 72)
    assert (low.move, low.reason) == ("reject", "mean judged score 0.550 is below 0.6")
    worse = decide(Evidence(comparison=compared(80, -0.1), hours=1), SETTINGS, 0.6, 72)
    assert worse.move == "reject"
    assert "futile" in worse.reason
    dear = Evidence(comparison=compared(80, 0.2), pairs=pairs(80, cost_usd=0.02), hours=30)
    assert decide(dear, SETTINGS, 0.6, 72).reason.startswith("cost: harm +1")


def test_time_runs_out_without_a_decision() -> None:
    told = Evidence(comparison=compared(60, 0.0), pairs=pairs(60), hours=72)
    decision = decide(told, SETTINGS, 0.6, 72)
    assert decision.move == "inconclusive"
    assert "E = " in decision.reason


def test_traffic_that_was_not_split_as_planned_promotes_nobody() -> None:
    assert split({"a": 790, "b": 210}, {"a": 800, "b": 200}) > 0.1
    assert split({"a": 700, "b": 300}, {"a": 800, "b": 200}) < 0.001
    assert split({}, {}) == 1.0
    with pytest.raises(ValueError, match="planned for nobody"):
        split({"z": 3}, {"a": 3})
    told = Evidence(
        comparison=compared(100, 0.2),
        pairs=pairs(100),
        hours=30,
        exposures={"a": 700, "b": 300},
        planned={"a": 800, "b": 200},
    )
    assert "not split as planned" in decide(told, SETTINGS, 0.6, 72).reason


@given(st.floats(0, 1), st.floats(0.001, 0.5))
def test_limit_of_harm_is_below_the_margin_and_half_an_error(error: float, margin: float) -> None:
    limit = Guard("x", 0.0, error, margin).limit
    assert 0 <= limit <= margin + error / 2
    assert Guard("x", 0.0, error, margin).passed
    assert not Guard("x", margin + error / 2 + 1e-6, error, margin).passed


def test_equal_sides_pass_every_guard_and_each_harm_fails_its_own() -> None:
    assert all(guard.passed for guard in guards(pairs(200), SETTINGS))
    harms = {"failed": ("failure", True), "malformed": ("format", True), "latency_ms": ("latency", 150.0)}
    for field, (name, value) in {**harms, "cost_usd": ("cost", 0.013)}.items():
        mixed = pairs(150) + pairs(50, **{field: value})
        mixed = mixed if name != "cost" else pairs(200, cost_usd=value)
        assert [guard.name for guard in guards(mixed, SETTINGS) if not guard.passed] == [name]


def test_worst_intent_may_not_lose() -> None:
    def intent(name: str, count: int, score: float) -> list[Pair]:
        return [each.model_copy(update={"intent": name}) for each in pairs(count, score=score)]

    small = intent("rare", 29, 0.5)
    large = intent("often", 30, 0.7)
    found = guards([*small, *large, *intent("good", 100, 0.9)], SETTINGS)
    assert [guard.name for guard in found if not guard.passed] == ["intent 'often'"]


def test_what_the_judge_missed_is_not_bad() -> None:
    unjudged = [Pair(baseline=Side(score=0.9), candidate=Side(score=None)) for _ in range(60)]
    assert [guard.name for guard in guards(unjudged, SETTINGS) if guard.name.startswith("intent")] == []
    assert guards([], SETTINGS) == []
