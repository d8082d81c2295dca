"""Agreement: figures against published values and other ways to compute them, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evocluster.tasks.agreement import (
    Agreement,
    Array,
    Estimate,
    agreement,
    kappa,
    pearson,
    ranks,
    share,
    spearman,
    stability,
    verdict,
)

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def row(*values: float) -> Array:
    """One row of pairs."""
    return np.array([values], dtype=np.float64)


def found(judged: list[float], labels: list[float], bar: float = 0.5) -> Agreement:
    return agreement(np.array(judged, float), np.array(labels, float), bar, np.random.default_rng(0))


def test_pearson_of_anscombes_first_set() -> None:
    x = row(10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5)
    y = row(8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68)
    assert pearson(x, y)[0] == pytest.approx(0.81642, abs=1e-5)


def test_spearman_of_the_usual_example() -> None:
    iq = row(106, 100, 86, 101, 99, 103, 97, 113, 112, 110)
    hours = row(7, 27, 2, 50, 28, 29, 20, 12, 6, 17)
    assert spearman(iq, hours)[0] == pytest.approx(-29 / 165)


def test_kappa_of_two_readers_of_fifty_proposals() -> None:
    judged = row(*([1.0] * 25 + [0.0] * 25))
    labels = row(*([1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15))
    assert kappa(judged, labels)[0] == pytest.approx(0.4)


def test_wilson_interval_of_8_in_10() -> None:
    estimate = share(8, 10)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)


def weighted(judged: list[int], labels: list[int]) -> float:
    """Quadratic kappa as it is written in textbooks: by the table of counts."""
    observed = np.zeros((5, 5))
    for ours, theirs in zip(judged, labels, strict=True):
        observed[ours, theirs] += 1
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    distance = np.subtract.outer(np.arange(5), np.arange(5)) ** 2
    return float(1 - (distance * observed).sum() / (distance * expected).sum())


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


@settings(deadline=None)
@given(PAIRS)
def test_figures_are_those_of_other_formulas(pairs: list[tuple[int, int]]) -> None:
    judged, labels = [a for a, _ in pairs], [b for _, b in pairs]
    ours, theirs = row(*(a / 4 for a in judged)), row(*(b / 4 for b in labels))
    np.testing.assert_allclose(ranks(ours)[0], stats.rankdata(ours[0]))
    if len(set(labels)) > 1:
        assert kappa(ours, theirs)[0] == pytest.approx(weighted(judged, labels))
    else:
        assert math.isnan(kappa(ours, theirs)[0])
    if len(set(labels)) > 1 and len(set(judged)) > 1:
        assert pearson(ours, theirs)[0] == pytest.approx(stats.pearsonr(ours[0], theirs[0]).statistic)
        assert spearman(ours, theirs)[0] == pytest.approx(stats.spearmanr(ours[0], theirs[0]).statistic)
    else:
        assert math.isnan(pearson(ours, theirs)[0])
        assert math.isnan(spearman(ours, theirs)[0])


def test_rows_are_computed_apart() -> None:
    rng = np.random.default_rng(3)
    judged, labels = rng.choice(STEPS, (6, 20)), rng.choice(STEPS, (6, 20))
    for statistic in (pearson, spearman, kappa):
        alone = [statistic(judged[[at]], labels[[at]])[0] for at in range(6)]
        np.testing.assert_allclose(statistic(judged, labels), alone)


def test_all_figures_of_one_judge() -> None:
    labels = [0.0, 0.25, 0.5, 0.75, 1.0] * 8
    judged = [min(1.0, label + 0.25) for label in labels]
    result = found(judged, labels, bar=0.75)
    assert result.error.value == pytest.approx(0.2)
    assert result.bias.value == pytest.approx(0.2)
    assert (result.both, result.judge_only, result.label_only, result.neither) == (16, 8, 0, 16)
    assert result.accuracy.value == pytest.approx(0.8)
    for estimate in (result.error, result.bias, result.pearson, result.spearman, result.kappa, result.accuracy):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.high - estimate.low > 0


def test_the_interval_of_a_correlation_is_about_fishers() -> None:
    rng = np.random.default_rng(1)
    labels = rng.normal(size=200)
    judged = 0.7 * labels + rng.normal(scale=0.7, size=200)
    estimate = found(list(judged), list(labels)).pearson
    expected = stats.pearsonr(judged, labels).confidence_interval(0.95)
    assert estimate.low == pytest.approx(expected.low, abs=0.03)
    assert estimate.high == pytest.approx(expected.high, abs=0.03)


def test_intervals_narrow_with_labels_and_are_the_same_again() -> None:
    labels, judged = [0.0, 0.25, 0.5, 0.75, 1.0], [0.25, 0.0, 0.5, 1.0, 0.75]
    few, many = found(judged * 4, labels * 4), found(judged * 40, labels * 40)
    widths = [each.kappa.high - each.kappa.low for each in (few, many) if each.kappa.high and each.kappa.low]
    assert widths[1] < widths[0] / 2
    assert found(judged * 4, labels * 4) == few


def test_constant_sides_have_no_correlation_and_say_so() -> None:
    same_labels = found([0.0, 0.5, 1.0, 0.5, 0.25], [0.5] * 5)
    assert same_labels.pearson == same_labels.kappa == Estimate(note="not defined: all labels are equal")
    assert same_labels.error.value == pytest.approx(0.25)
    same_grades = found([0.1 + 0.2] * 5, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert same_grades.spearman == Estimate(note="not defined: all grades are equal")
    assert same_grades.kappa.value is not None
    assert same_grades.kappa.value <= 0


def test_nothing_and_next_to_nothing() -> None:
    nothing = found([], [])
    assert nothing.kappa == nothing.accuracy == Estimate(note="not defined: nothing was graded")
    two = found([0.0, 1.0], [0.25, 1.0])
    assert two.pearson.value == pytest.approx(1.0)
    assert (two.pearson.low, two.pearson.note) == (None, "too few labels for an interval")


def test_stability() -> None:
    steady = stability(np.array([[0.0, 0.5, 1.0, np.nan], [0.0, 0.5, 1.0, 1.0]]))
    assert (steady.answers, steady.identical, steady.spread, steady.kappa) == (3, 1.0, 0.0, 1.0)
    shaky = stability(np.array([[0.0, 0.5, 1.0], [0.0, 1.0, 0.5], [0.0, 0.5, 1.0]]))
    assert shaky.identical == pytest.approx(1 / 3)
    assert shaky.spread == pytest.approx(1 / 3)
    assert shaky.kappa is not None
    assert 0 < shaky.kappa < 1
    lost = stability(np.array([[np.nan], [1.0]]))
    assert (lost.answers, lost.kappa) == (0, None)


def said(judged: list[float], labels: list[float], failed: int = 0) -> str:
    return "\n".join(verdict(found(judged, labels), failed))


def test_the_verdict_follows_kappa() -> None:
    labels = list(STEPS) * 20
    assert said(labels, labels) == "kappa 1.00: it grades much like the labels"
    assert "do not trust it for selection" in said([1 - label for label in labels], labels)
    for turned, band in (
        (12, "good enough to select by"),
        (24, "use it beside other scorers"),
        (36, "do not trust it"),
    ):
        assert band in said([1 - label for label in labels[:turned]] + labels[turned:], labels)


def test_the_verdict_asks_for_what_is_missing() -> None:
    labels = list(STEPS) * 3
    assert "9 labels are too few to say anything: give it 10 or more" in said(labels[:9], labels[:9])
    shuffled = [0.25, 0.0, 0.75, 0.5, 1.0, 0.0, 0.5, 0.25, 0.75, 0.5, 0.0, 0.25, 1.0, 0.75, 1.0]
    wide = verdict(found(shuffled, labels), 0)
    assert any("more labels would bring it to +-0.15" in sentence for sentence in wide)
    assert "interval begins at" in wide[0]
    assert "from 15 labels only" in said(labels, labels)
    assert "labels only" not in said(labels * 2, labels * 2)
    assert "add labels of other grades" in said([0.0, 0.5, 1.0] * 4, [0.5] * 12)
    assert "the same grade" in said([0.5] * 15, labels)
    assert "no reply could be read" in said([], [], failed=3)


def test_the_verdict_tells_bias_failures_and_unsteadiness() -> None:
    labels = list(STEPS) * 6
    kinder = [min(1.0, label + 0.25) for label in labels]
    assert "kinder than the labels by 0.20" in said(kinder, labels)
    assert "stricter than the labels by 0.20" in said(labels, kinder)
    assert "2 of 32 answers got no grade" in said(labels, labels, failed=2)
    assert "got no grade" not in said(labels, labels)
    shaky = stability(np.array([labels, kinder]))
    assert any("only 20% of the answers the same 2 times" in each for each in verdict(found(labels, labels), 0, shaky))
