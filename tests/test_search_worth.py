"""What the recommended is worth: how often its 95 % interval holds it, among equals and with a clear winner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from test_search_winner import BEST, QUALITY, chosen, contest, outcomes, tally

from evocluster.search.evidence import Measured, means
from evocluster.search.objectives import FOUR, Interval, wilson
from evocluster.search.race import TAKEN
from evocluster.search.winner import Candidate, crossfit, folds
from evocluster.search.worth import equals, widened

Floats = NDArray[np.float64]


class Cover(NamedTuple):
    """Shares of simulated selections whose interval holds what the recommended is worth, and how wide they are."""

    before: float
    """Of left-out examples alone."""
    after: float
    wider: float
    """The mean width, as a multiple of that of left-out examples alone."""


def of(row: Floats) -> Interval:
    """A mean of outcomes, the interval as if they were independent."""
    value, n = float(row.mean()), len(row)
    half = 1.96 * float(row.std(ddof=1)) / n**0.5
    low, high = wilson(value, n) if np.isin(row, (0.0, 1.0)).all() else (value - half, value + half)
    return Interval(value=value, low=low, high=high)


def left_out(table: Floats, fold: NDArray[np.int64], prices: Floats) -> Floats:
    """The outcomes of whoever the other folds choose."""
    parts = crossfit(fold, lambda kept: chosen(table[:, kept], prices))
    return np.concatenate([table[winner, left] for left, winner in parts])


def cover(worths: Sequence[float], examples: int, times: int, hard: float = 0.0, answers: int = 1) -> Cover:
    """Selections among candidates of these worths; `hard`: spread of the examples' difficulty."""
    rng = np.random.default_rng([len(worths), examples, answers])
    fold = folds([f"v{at}" for at in range(examples)])
    worth = np.array(worths)
    held, widths = np.zeros(2), np.zeros(2)
    for _ in range(times):
        chance = worth[:, None] + hard * rng.uniform(-1, 1, examples)
        table = (rng.random((answers, *chance.shape)) < chance).mean(axis=0)
        prices = rng.random(len(worths))
        at = chosen(table, prices)
        before = of(left_out(table, fold, prices))
        after = widened(before, of(table[at]), means(table, np.ones_like(table)), at, QUALITY)
        assert after.value == before.value
        held += [one.low <= worth[at] <= one.high for one in (before, after)]
        widths += [one.high - one.low for one in (before, after)]
    return Cover(float(held[0] / times), float(held[1] / times), float(widths[1] / widths[0]))


def test_among_equals_the_interval_holds_what_the_recommended_is_worth() -> None:
    for count, examples, before in ((2, 60, 0.94), (6, 60, 0.86), (7, 100, 0.9), (20, 100, 0.9)):
        found = cover([0.6] * count, examples, 120)
        assert found.before < before
        assert found.after >= 0.93
        assert found.wider < 1.3


def test_a_clear_winner_keeps_the_interval_it_had() -> None:
    found = cover([0.9, 0.4], 60, 150)
    assert found.before == found.after
    assert found.wider == pytest.approx(1.0, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "examples", "hard", "answers", "before"),
    [
        (2, 60, 0.0, 1, 0.89),
        (6, 60, 0.0, 1, 0.83),
        (7, 100, 0.0, 1, 0.86),
        (20, 100, 0.0, 1, 0.86),
        (3, 15, 0.0, 1, 0.82),
        (7, 100, 0.3, 1, 0.9),
        (7, 100, 0.3, 3, 0.92),
    ],
)
def test_among_equals_it_holds_over_2000_selections(
    count: int, examples: int, hard: float, answers: int, before: float
) -> None:
    found = cover([0.6] * count, examples, 2000, hard, answers)
    assert found.before < before
    assert found.after >= 0.95
    assert found.wider < 1.3


@pytest.mark.slow
def test_of_different_candidates_it_holds_too_and_is_not_too_wide() -> None:
    ladder = cover([0.7, 0.67, 0.64, 0.61, 0.58, 0.55, 0.5], 100, 2000)
    assert ladder.after >= 0.93
    assert ladder.wider < 1.25
    for worths, examples in (([0.8] + [0.5] * 6, 100), ([0.9, 0.4], 60)):
        clear = cover(worths, examples, 2000)
        assert 0.92 <= clear.after <= 0.99
        assert clear.after - clear.before < 0.01
        assert clear.wider < 1.03


def told(before: Interval, own: Interval, tables: Sequence[Floats]) -> Interval:
    table = np.array(tables)
    return widened(before, own, means(table, np.ones_like(table)), 0, QUALITY)


def test_it_reaches_from_left_out_examples_to_the_equals() -> None:
    rest = [outcomes(at, 0.7, 80) for at in range(6)]
    lucky = np.maximum(rest[0], outcomes(8, 0.3, 80))
    alone = of(lucky)
    assert told(alone, alone, [lucky]) == alone
    found = told(alone, alone, [lucky, *rest])
    assert found.low < alone.low
    assert found.high == alone.high
    unlucky = Interval(value=0.6, low=0.5, high=0.7)
    assert told(unlucky, alone, [lucky, *rest]).low == 0.5
    assert told(unlucky, alone, [lucky]) == Interval(value=0.6, low=0.5, high=alone.high)
    perfect = np.ones(80)
    assert told(of(perfect), of(perfect), [perfect, perfect]) == of(perfect)
    gone = Interval(value=-np.inf, low=-np.inf, high=-np.inf)
    assert told(gone, gone, [lucky]) == gone


def test_equals_are_those_within_some_errors_of_the_difference() -> None:
    value, cov = np.array([0.8, 0.75, 0.5, np.inf]), np.diag([0.001] * 4)
    found = Measured(value, cov, np.full(4, 0.001), np.zeros(4), np.zeros(4), 50)
    assert equals(found, 0).tolist() == [0, 1]
    assert equals(found, 2).tolist() == [2]


def test_a_contest_gives_every_measure_an_interval() -> None:
    candidates = [Candidate(f"g{at}", tally(outcomes(at, 0.6, 60), 100 + at, 1e-6 * (9 - at))) for at in range(5)]
    found = contest(candidates, BEST.text)
    id, _ = found.decide()
    parts = found.honest([f"v{at}" for at in range(60)])
    assert parts is not None
    wider = 0
    for one in FOUR:
        rng = (np.random.default_rng(0) for _ in range(2))
        own = next(candidate for candidate in candidates if candidate.id == id).decided.interval(one, next(rng))
        before = parts[0].interval(one, next(rng))
        said = found.worth(id, one, before, own)
        assert said.value == before.value
        assert 0 <= said.low <= min(before.low, said.value) <= max(before.high, said.value) <= said.high
        assert said.high <= 1 or one.source in TAKEN
        wider += said.high - said.low > before.high - before.low
    assert wider
    assert found.worth("nobody", QUALITY, before, own) == before
