"""Objectives, the composite and the tally: what counts, how, and how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.records import Evaluation, Item, Score, Usage
from evocluster.search.objectives import FOUR, Composite, Interval, Objective, Tally, built_in, wilson


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def done(example: str, twin: int = 0, quality: float = 1.0, **given: Any) -> Evaluation:
    usage = Usage(calls=1, prompt_tokens=10, completion_tokens=2, usd=0.001, seconds=given.pop("seconds", 0.1))
    fields: dict[str, Any] = {"quality": quality, "validator": quality, "usage": usage, **given}
    return Evaluation(item=Item(split="train", example=example, twin=twin), **fields)


def tally(*evaluations: Evaluation, scorers: tuple[str, ...] = ()) -> Tally:
    made = Tally(Composite(), scorers)
    made.add(evaluations)
    return made


def test_shorthands() -> None:
    assert [one.name for one in FOUR] == ["quality", "latency_ms", "cost_usd", "robustness"]
    assert [one.direction for one in FOUR] == ["max", "min", "min", "max"]
    assert Objective.model_validate({"latency": "p95"}) == Objective(
        name="latency_ms", source="latency_ms", direction="min", aggregate="p95"
    )
    own = Objective.model_validate({"name": "terse", "source": "scores.length", "direction": "min"})
    assert (own.scorer, own.sign) == ("length", 1.0)
    for one in (*FOUR, own):
        assert Objective.model_validate(one.model_dump(mode="json")) == one
    with pytest.raises(ValidationError, match="did you mean 'quality'"):
        Objective.model_validate("qualty")


def test_quality_counts_examples_as_given_and_robustness_all() -> None:
    found = tally(done("a"), done("a", 1, 0.0), done("b", quality=0.5), done("c", quality=0.9))
    assert found.value(built_in("quality")) == pytest.approx(0.8)
    assert found.value(built_in("robustness")) == 0.5
    assert found.value(built_in("tokens")) == 12


@pytest.mark.parametrize(
    "failing",
    [{"repairs": 1}, {"schema_ok": False}, {"flags": ("pii",)}, {"validator": 0.89}, {"error": "model: Refused"}],
)
def test_robustness_fails_by_each_of_its_reasons(failing: dict[str, Any]) -> None:
    assert tally(done("a", **failing)).value(built_in("robustness")) == 0.0
    assert tally(done("a", validator=0.9)).value(built_in("robustness")) == 1.0


def test_a_failed_evaluation() -> None:
    unanswered = done("b", error="model: DeadlinePassed", usage=Usage())
    half = done("c", error="scorer: ValueError", quality=0.7)
    found = tally(done("a"), unanswered, half)
    assert found.value(built_in("quality")) == pytest.approx(1 / 3)
    assert found.value(built_in("latency_ms")) == 100
    assert found.value(built_in("cost_usd")) == 0.001
    nothing = tally(unanswered)
    assert nothing.value(built_in("latency_ms")) == nothing.value(built_in("cost_usd")) == np.inf
    assert nothing.value(built_in("quality")) == 0.0
    assert tally().value(built_in("quality")) == -np.inf


def test_the_composite_takes_off_what_it_says() -> None:
    score = Composite().score
    assert score(done("a")) == pytest.approx(1 - 0.1 - 12 * 0.0005 - 0.001)
    assert score(done("a", repairs=2)) == pytest.approx(1 - 0.1 - 12 * 0.0005 - 0.001 - 0.4)
    assert score(done("a", seconds=3.0)) == 0.0
    assert score(done("a", quality=0.85, validator=0.9)) > 0.8
    for wrong in ({"quality": 0.84, "validator": 1.0}, {"validator": 0.89}, {"schema_ok": False}, {"flags": ("x",)}):
        assert score(done("a", **wrong)) == 0.0
    both = tally(done("a"), done("b", quality=0.0))
    assert both.value(built_in("composite")) == pytest.approx(score(done("a")) / 2)


def test_scores_of_one_scorer() -> None:
    one = Objective.model_validate("scores.brevity")
    found = tally(
        done("a", scores={"brevity": Score(value=3.0)}), done("b", scores={"brevity": Score(value=5.0)}),
        scorers=("brevity",),
    )  # fmt: skip
    assert found.value(one) == 4.0


def test_a_failure_is_never_the_best_of_a_scorer() -> None:
    values = {"a": -4.0, "b": -2.0}
    found = [done(name, scores={"mood": Score(value=value)}) for name, value in values.items()]
    found.append(done("c", error="model: Refused"))
    up, down = (Objective(name="mood", source="scores.mood", direction=way) for way in ("max", "min"))
    assert tally(*found, scorers=("mood",)).value(up) == pytest.approx((-4 - 2 - 4) / 3)
    assert tally(*found, scorers=("mood",)).value(down) == -3.0
    assert tally(found[-1], scorers=("mood",)).value(up) == 0.0
    assert tally(found[-1], scorers=("mood",)).value(down) == np.inf
    plain = [done("a", scores={"mood": Score(value=0.5)}), found[-1]]
    assert tally(*plain, scorers=("mood",)).value(up) == 0.25


def test_outcomes_by_example_and_their_noise() -> None:
    index = {"a": 0, "b": 1, "c": 2}
    found = Tally(Composite(), index=index)
    found.add([done("a", seconds=0.1), done("a", 1, seconds=0.3), done("c", seconds=0.2, repairs=1)])
    latency, robust = built_in("latency_ms"), built_in("robustness")
    assert np.allclose(found.outcomes(latency, 3), [200, np.nan, 200], equal_nan=True)
    assert np.allclose(found.outcomes(robust, 3), [1, np.nan, 0], equal_nan=True)
    assert found.noise(latency) == pytest.approx(100 / 3**0.5)
    assert tally(done("a")).noise(latency) == 0.0


def test_p95_is_a_value_that_was_measured() -> None:
    found = tally(*(done(f"e{i}", seconds=(i + 1) / 100) for i in range(100)))
    slow = Objective.model_validate({"latency": "p95"})
    assert found.value(slow) == pytest.approx(950)
    interval = found.interval(slow, rng())
    assert interval.low < 950 < interval.high <= 1000


evaluations = st.lists(
    st.builds(done, st.sampled_from("abcdef"), st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0])), max_size=20
)


@settings(max_examples=60, deadline=None)
@given(evaluations)
def test_an_item_counts_once_however_often_it_is_added(found: list[Evaluation]) -> None:
    first: dict[Item, Evaluation] = {}
    for one in found:
        first.setdefault(one.item, one)
    once, twice = tally(*first.values()), tally(*found)
    assert twice.add(found) == 0
    for objective in (*FOUR, built_in("composite")):
        assert once.value(objective) == pytest.approx(twice.value(objective))
    assert once.items == twice.items == len(first)


@settings(max_examples=40, deadline=None)
@given(evaluations.filter(bool))
def test_an_interval_holds_its_value_and_repeats(found: list[Evaluation]) -> None:
    for objective in (*FOUR, built_in("composite")):
        interval = tally(*found).interval(objective, rng())
        if np.isfinite(interval.value):
            assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9
            assert interval == tally(*found).interval(objective, rng())


def test_wilson_of_a_known_share() -> None:
    low, high = wilson(0.8, 100)
    assert low == pytest.approx(0.7112, abs=1e-3)
    assert high == pytest.approx(0.8666, abs=1e-3)
    assert wilson(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-3)


def test_twins_do_not_pass_for_more_examples() -> None:
    plain = tally(*(done(f"e{i}", quality=float(i % 2)) for i in range(10)))
    twins = tally(*(done(f"e{i}", twin, float(i % 2)) for i in range(10) for twin in range(4)))
    narrow, wide = (found.interval(built_in("robustness"), rng()) for found in (plain, twins))
    assert wide == narrow == Interval(value=0.5, low=narrow.low, high=narrow.high)
    fractions = tally(*(done(f"e{i}", quality=[0.2, 0.9][i % 2]) for i in range(40)))
    interval = fractions.interval(built_in("quality"), rng())
    assert 0.1 < interval.high - interval.low < 0.3


def test_the_careful_value_trusts_more_of_the_same_more() -> None:
    few = tally(*(done(f"e{i}") for i in range(4))).lower(built_in("quality"))
    many = tally(*(done(f"e{i}") for i in range(40))).lower(built_in("quality"))
    assert few < many < 1.0


def test_quality_by_example() -> None:
    index = {"a": 0, "b": 1, "c": 2}
    found = Tally(Composite(), index=index)
    found.add([done("c", quality=0.5), done("a"), done("a", 1, 0.0)])
    assert np.array_equal(found.by_example(3), [1.0, np.nan, 0.5], equal_nan=True)


def test_latency_survives_a_change_of_unit() -> None:
    for seconds in np.random.default_rng(1).random(200).tolist():
        there_and_back = (seconds * 1000) / 1000
        assert tally(done("a", seconds=seconds)).value(built_in("latency_ms")) == tally(
            done("a", seconds=there_and_back)
        ).value(built_in("latency_ms"))
