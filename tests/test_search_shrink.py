"""Shrunken means: adjusted for the examples seen, drawn to the mean, and nothing invented where there is only noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evocluster.search.shrink import additive, shrunken, spread

Floats = NDArray[np.float64]
NAN = float("nan")


def world(
    seed: int, genomes: int = 24, examples: int = 200, sd: float = 0.1, hard: float = 0.2
) -> tuple[Floats, Floats]:
    """What genomes are worth, and a table of outcomes in which each has seen some blocks of 20."""
    rng = np.random.default_rng([seed, genomes, examples])
    worth = 0.6 + sd * rng.standard_normal(genomes)
    chance = np.clip(worth[:, None] + hard * rng.standard_normal(examples), 0.02, 0.98)
    table = (rng.random((genomes, examples)) < chance).astype(np.float64)
    for row in table:
        blocks = rng.permutation(examples // 20)[: rng.integers(1, examples // 20 + 1)]
        row[~np.isin(np.arange(examples) // 20, blocks)] = NAN
    return worth, table


def test_few_lucky_examples_do_not_win() -> None:
    table = np.full((3, 100), NAN)
    table[0] = np.arange(100) % 10 < 9
    table[1] = np.arange(100) % 10 < 5
    table[2, :4] = 1.0
    found = shrunken(table)
    assert np.nanmean(table, axis=1).argmax() == 2
    assert found.value.argmax() == 0
    assert found.error[2] > 2 * found.error[0]


def test_who_saw_hard_examples_is_not_blamed_for_them() -> None:
    rng = np.random.default_rng(3)
    easy = np.repeat((0.95, 0.25), 60)
    table = (rng.random((12, 120)) < easy).astype(np.float64)
    table[0, :60] = NAN
    table[1, 60:] = NAN
    raw, found = np.nanmean(table, axis=1), additive(table)
    assert raw[1] - raw[0] > 0.5
    assert abs(found.value[1] - found.value[0]) < 0.15
    assert np.ptp(shrunken(table).value) < 0.1


def test_estimates_are_nearer_to_the_truth_than_means_and_their_errors_are_right() -> None:
    raw, fitted, drawn, z = [], [], [], []
    for seed in range(40):
        worth, table = world(seed)
        found = shrunken(table)
        raw.append(np.square(np.nanmean(table, axis=1) - worth).mean())
        fitted.append(np.square(additive(table).value - worth).mean())
        drawn.append(np.square(found.value - worth).mean())
        z.append(((found.value - worth) / found.error).std())
    assert np.mean(fitted) < 0.97 * np.mean(raw)
    assert np.mean(drawn) < 0.75 * np.mean(raw)
    assert 0.8 < np.mean(z) < 1.3


def test_equal_genomes_are_told_apart_no_more_often_than_doubt_allows() -> None:
    found = [shrunken(world(seed, sd=0.0)[1]) for seed in range(100)]
    apart = np.mean([one.tau2 > 0 for one in found])
    assert apart <= 0.3
    assert all(np.ptp(one.value) < 1e-9 for one in found if one.tau2 == 0)


def test_different_genomes_are_told_apart_and_by_how_much() -> None:
    found = [shrunken(world(seed, sd=0.15)[1]).tau2 for seed in range(40)]
    assert np.median(np.sqrt(found)) == pytest.approx(0.15, abs=0.03)


def test_a_given_prior_is_taken_and_the_share_kept_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(5)
    table = (rng.random((6, 64)) < 0.7).astype(np.float64)
    found, fitted = shrunken(table, (0.4, 0.01)), additive(table)
    kept = 0.01 / (0.01 + fitted.variance)
    assert found.value == pytest.approx(0.4 + kept * (fitted.value - 0.4))
    assert found.error == pytest.approx(np.sqrt(0.01 * (1 - kept)))
    assert (found.mean, found.tau2) == (0.4, 0.01)


def test_genomes_without_an_example_in_common_are_compared_all_the_same() -> None:
    table = np.full((2, 80), NAN)
    table[0, :40] = np.arange(40) % 4 > 0
    table[1, 40:] = np.arange(40) % 4 == 0
    found = additive(table).value
    assert found == pytest.approx([0.75, 0.25])


def test_who_has_seen_nothing_is_worth_what_is_usual() -> None:
    _, table = world(1)
    table[3] = NAN
    found = shrunken(table)
    assert found.value[3] == pytest.approx(found.mean)
    assert found.error[3] >= found.error.max() - 1e-12
    with pytest.raises(ValueError, match="no outcome in it"):
        shrunken(np.full((2, 3), NAN))


def test_one_value_everywhere_is_that_value() -> None:
    for value in (0.0, 1.0):
        found = shrunken(np.full((4, 9), value))
        assert found.value == pytest.approx([value] * 4)
        assert (found.error > 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_genomes_and_examples_changes_nothing(seed: int) -> None:
    _, table = world(seed, genomes=9, examples=80)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(9), rng.permutation(80)
    one, other = shrunken(table), shrunken(table[rows][:, columns])
    assert other.value == pytest.approx(one.value[rows])
    assert other.error == pytest.approx(one.error[rows])


def test_a_single_one_has_no_spread() -> None:
    assert spread(np.array([0.4]), np.array([0.01])) == 0.0
    assert spread(np.array([0.4, 0.9]), np.array([0.001, np.inf])) == 0.0
