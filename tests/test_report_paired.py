"""Paired tests and intervals: against scipy, published values, exact laws, and their own error rates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from evocluster.report.paired import bootstrap, mcnemar, paired, sign_flip, swap_p95, tango

Floats = NDArray[np.float64]
UNITS = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)


def names(count: int) -> list[str]:
    return [f"example-{number}" for number in range(count)]


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 5), (6, 0), (9, 1), (7, 1), (12, 9), (40, 20)])
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(up: int, down: int) -> None:
    expected = stats.binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
    assert mcnemar(up, down) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(up, down) == mcnemar(down, up)


def test_tango_gives_the_published_interval() -> None:
    """Bentur et al. 2009 in Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): -0.286 (-0.517, -0.026)."""
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_tango_is_symmetric_inside_and_holds_the_estimate(up: int, down: int, same: int) -> None:
    n = up + down + same
    low, high = tango(up, down, n)
    assert -1 <= low <= (up - down) / n <= high <= 1
    assert tango(down, up, n) == pytest.approx((-high, -low), abs=1e-9)
    assert high - low > 0.01, "it never shrinks to a point"
    beyond = (up - down) ** 2 > stats.chi2.ppf(0.95, 1) * (up + down)
    assert (low > 0 or high < 0) == beyond, "it excludes 0 exactly where McNemar's score test does"


def test_sign_flips_count_every_way() -> None:
    change = np.array([0.3, -0.1, 0.25, 0.0, 0.4, 0.05])
    moved = [x for x in change if x]
    sums = [abs(sum(s * x for s, x in zip(signs, moved, strict=True))) for signs in product((1, -1), repeat=5)]
    by_hand = sum(value >= abs(sum(moved)) - 1e-12 for value in sums) / 32
    assert sign_flip(change) == (by_hand, "exact sign flips")
    assert by_hand == 6 / 32, "0.9, 1.0 and 1.1, either way"


@pytest.mark.parametrize("count", [5, 10, 13])
def test_exact_sign_flips_are_scipys(count: int) -> None:
    change = np.random.default_rng(count).normal(0.3, 1, count)
    theirs = stats.permutation_test((change,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(change)[0] == pytest.approx(theirs.pvalue, rel=1e-12)


def test_drawn_sign_flips_come_near_the_exact_ones_and_are_the_same_again() -> None:
    change = np.random.default_rng(3).normal(0.35, 1, 15)
    theirs = stats.permutation_test((change,), np.mean, permutation_type="samples", n_resamples=np.inf)
    p, test = sign_flip(change)
    assert test == "sign flips"
    assert p == pytest.approx(theirs.pvalue, abs=0.02)
    assert sign_flip(change) == (p, test)
    assert sign_flip(np.full(60, 0.5))[0] == pytest.approx(1 / 10_001), "never zero"


def test_equal_changes_are_ties_however_they_are_added_up() -> None:
    assert sign_flip(np.array([0.1] * 3 + [0.2, 0.3]) / 3)[0] == 2 / 32
    found = paired(names(7), [0.1 + 0.2] * 7, [0.3] * 7)
    assert (found.up, found.down, found.p) == (0, 0, 1.0), "0.1 + 0.2 is 0.3"


def rates(draw: NDArray[np.float64], aggregate: str = "mean") -> tuple[float, float, float]:
    """Shares of p up to 0.05 and up to 0.5, and of intervals that hold 0; `draw`: a and b of each simulation."""
    found = [paired(names(a.size), a.tolist(), b.tolist(), aggregate) for a, b in draw]
    ps = np.array([one.p for one in found])
    held = np.mean([one.low <= 0 <= one.high for one in found])
    return float((ps <= 0.05).mean()), float((ps <= 0.5).mean()), float(held)


def test_where_nothing_differs_p_is_uniform_and_intervals_hold_zero() -> None:
    rng = np.random.default_rng(7)
    early, half, held = rates(rng.gamma(2.0, 1.0, (200, 2, 20)))
    assert 0.005 <= early <= 0.1
    assert 0.4 <= half <= 0.6
    assert held >= 0.91
    early, _, held = rates((rng.random((200, 2, 30)) < 0.7).astype(float))
    assert early <= 0.07, "exact: never above its level"
    assert held >= 0.93
    early, half, held = rates(rng.gamma(2.0, 1.0, (60, 2, 15)), "p95")
    assert early <= 0.12
    assert 0.25 <= half <= 0.75
    assert held >= 0.9


def test_a_real_difference_is_found_as_often_as_promised() -> None:
    rng = np.random.default_rng(8)
    a = rng.normal(0, 1, (150, 40))
    promised = float(np.mean([paired(names(40), x, x + rng.normal(0, 1, 40)).visible or 0 for x in a[:20]]))
    assert promised == pytest.approx(2.8 / np.sqrt(40), rel=0.15)
    hits = [paired(names(40), x, x + rng.normal(promised, 1, 40)).p < 0.05 for x in a]
    assert 0.65 <= np.mean(hits) <= 0.92


def test_the_bootstrap_covers_also_where_there_are_few() -> None:
    rng = np.random.default_rng(9)
    for count in (6, 12, 40):
        draws = rng.normal(1, 1, (200, count))
        covered = np.mean([low <= 1 <= high for low, high in (bootstrap(x, np.ones(count)) for x in draws)])
        assert 0.89 <= covered <= 0.995, count


@given(UNITS)
def test_zeros_and_ones_are_counted(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = paired(names(len(pairs)), a, b)
    assert (found.up, found.down) == (pairs.count((0.0, 1.0)), pairs.count((1.0, 0.0)))
    assert found.test == "exact McNemar"
    assert found.difference == pytest.approx((found.up - found.down) / len(pairs))
    assert found.low <= found.difference <= found.high
    assert (found.low <= 0 <= found.high) or found.p < 0.05, "interval and test never contradict one another"
    other = paired(names(len(pairs)), b, a)
    assert other.p == found.p
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_replicates_and_twins_are_not_new_examples() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random(12), rng.random(12) + 0.2
    once = paired(names(12), a, b)
    often = paired(names(12) * 5, [*a] * 5, [*b] * 5)
    assert (often.examples, often.evaluations) == (12, 60)
    assert often.p == once.p
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_values_are_those_of_the_front_where_examples_have_unequal_twins() -> None:
    found = paired(["x", "x", "x", "y"], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0])
    assert (found.a, found.b, found.difference) == (0.5, 0.75, 0.25)
    assert (found.examples, found.up, found.test) == (2, 1, "exact sign flips")
    assert found.visible is None, "two examples show nothing"


def test_p95_is_compared_as_p95() -> None:
    a = np.arange(1.0, 41.0)
    b = a.copy()
    b[-3:] += 100
    found = paired(names(40), a, b, "p95")
    assert (found.a, found.b, found.test) == (38.0, 138.0, "swaps of p95")
    assert found.p > 0.05
    few, values = 8, np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    p, test = swap_p95(np.arange(few), values, values + 10)
    assert (p, test) == (2 / 2**8, "exact swaps of p95"), "only all of them swapped, or none, are as far apart"


def test_what_could_have_been_seen() -> None:
    assert paired(names(5), [0.0] * 5, [1.0] * 5).visible is None, "five examples cannot show anything at 5 %"
    few, many = (paired(names(n), [1.0] * n, [1.0] * n).visible for n in (12, 200))
    assert few is not None
    assert many is not None
    assert few >= 6 / 12 > many >= 6 / 200


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], []), ([1.0, 2.0], [1.0, 2.0])])
def test_nothing_to_compare_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="give as many of each"):
        paired(names(len(a) if len(a) != 2 else 1), a, b)
