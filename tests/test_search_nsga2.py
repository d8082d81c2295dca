"""Selection: the laws of dominance, survival and hypervolume."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evocluster.search.nsga2 import Floats, front, hypervolume, rank_and_crowding, ranking, survive

# Few distinct values, so that ties and repeated rows are common.
tables = st.tuples(st.integers(1, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 5).map(float))
)


def dominates(one: Floats, other: Floats) -> bool:
    return bool((one <= other).all() and (one < other).any())


@settings(max_examples=100, deadline=None)
@given(tables)
def test_rank_zero_is_exactly_what_nobody_dominates(values: Floats) -> None:
    ranks, _ = rank_and_crowding(values)
    for at, row in enumerate(values):
        assert (ranks[at] == 0) == (not any(dominates(other, row) for other in values))


@settings(max_examples=60, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_order(values: Floats, random: object) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = {tuple(values[order][i]) for i in front(values[order])}
    assert shuffled == {tuple(values[i]) for i in front(values)}


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 25))
def test_survivors_are_of_the_best_ranks(values: Floats, k: int) -> None:
    kept = survive(values, k)
    ranks, _ = rank_and_crowding(values)
    assert len(kept) == len(set(kept.tolist())) == min(k, len(values))
    assert list(ranks[kept]) == sorted(ranks)[: len(kept)]


def test_of_equal_rows_one_keeps_its_place() -> None:
    values = np.array([[0.0, 4.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [4.0, 0.0], [1.0, 3.0]])
    _, crowding = rank_and_crowding(values)
    assert sorted(crowding[1:4] > 0) == [False, False, True]
    assert set(survive(values, 4).tolist()) == {0, 1, 4, 5}


def test_extremes_are_never_crowded() -> None:
    values = np.array([[0.0, 1.0], [0.4, 0.6], [0.5, 0.5], [1.0, 0.0]])
    _, crowding = rank_and_crowding(values)
    assert np.isinf(crowding[[0, 3]]).all()
    assert np.isfinite(crowding[[1, 2]]).all()


def test_what_was_not_measured_is_the_worst() -> None:
    values = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, np.inf], [0.4, 0.6], [-np.inf, 0.9]])
    ranks, crowding = rank_and_crowding(values)
    assert [int(rank) for rank in ranks] == [0, 1, 1, 0, 0]
    assert not np.isnan(crowding).any()


def test_hypervolume_of_a_known_front() -> None:
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[0.5, 0.5]]), reference) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.25, 0.75], [0.75, 0.25], [0.9, 0.9]]), reference) == pytest.approx(0.3125)
    assert hypervolume(np.array([[1.0, 0.0], [np.nan, 0.0], [np.inf, 0.0]]), reference) == 0.0
    assert hypervolume(np.zeros((0, 2)), reference) == 0.0


@settings(max_examples=40, deadline=None)
@given(tables)
def test_hypervolume_never_shrinks_with_another_point(values: Floats) -> None:
    reference = np.full(values.shape[1], 6.0)
    assert hypervolume(values, reference) >= hypervolume(values[:-1], reference) - 1e-9


def test_a_thousand_members_survive_in_time() -> None:
    values = np.random.default_rng(0).random((1000, 4))
    survive(values, 500)
    seconds = []
    for _ in range(5):
        before = time.perf_counter()
        survive(values, 500)
        seconds.append(time.perf_counter() - before)
    assert median(seconds) < 0.05


def test_crowding_is_that_of_the_values_that_were_ranked() -> None:
    values = np.array([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0], [4.0, 4.0]])
    broken = np.array([0.0, 0.0, 0.0, 1.0])
    ranks, crowding = rank_and_crowding(values, broken)
    found = ranking(values, broken)
    values[:], broken[:] = 7.0, 2.0
    assert (found.ranks == ranks).all()
    assert (found.crowding == crowding).all()
