"""NSGA-II's selection: non-dominated ranks, crowding, survival, and the hypervolume of a front.

Deb, Pratap, Agarwal and Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm", sections III A
and B; the sorting, the crowding distance and the hypervolume are pymoo's. All values are minimised; NaN and
infinity are the worst. With violations domination is constrained (section VI): the less violating row is ahead, and
among rows that violate alike, above all those that do not, the values decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def ready() -> None:
    """Load what is imported below: a quarter of a second, which nobody should wait for between two answers."""
    hypervolume(np.zeros((1, 1)), np.ones(1))
    rank_and_crowding(np.zeros((1, 1)))


def finite(values: Floats) -> Floats:
    """The same [n, m] table with NaN and +inf replaced by something worse than everything in the column, -inf
    by better.
    """
    table = np.array(values, dtype=np.float64, ndmin=2)
    for column in table.T:
        known = column[np.isfinite(column)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
        margin = 1.0 + (high - low)
        column[np.isnan(column) | np.isposinf(column)] = high + margin
        column[np.isneginf(column)] = low - margin
    return table


class Ranking:
    """Ranks (0: no other row dominates it) and crowding distances (inf: an extreme of its rank) of rows."""

    def __init__(self, ranks: Ints, spread: Callable[[], Floats]) -> None:
        """`spread`: the crowding distances, worked out when they are first asked for."""
        self.ranks = ranks
        self._spread = spread

    @cached_property
    def crowding(self) -> Floats:
        """Of each row."""
        return self._spread()


def ranking(values: Floats, violations: Floats | None = None) -> Ranking:
    """Of an [n, m] table as it is now. `violations`: by how much each row breaks constraints; 0: it is feasible."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    if not len(values):
        return Ranking(np.zeros(0, dtype=np.int64), lambda: np.zeros(0))
    table = finite(values)
    ranks = np.zeros(len(table), dtype=np.int64)
    fronts: list[Ints] = []
    for alike in _levels(violations, len(table)):
        for within in NonDominatedSorting().do(table[alike]):
            ranks[alike[within]] = len(fronts)
            fronts.append(alike[within])
    rows = table if violations is None else np.column_stack([table, violations])
    return Ranking(ranks, lambda: _crowding(table, rows, fronts))


def _crowding(table: Floats, rows: Floats, fronts: Sequence[Ints]) -> Floats:
    """`rows`: what makes equal."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    crowding = np.zeros(len(table))
    # Equal rows share a place: the first of them keeps its distance, the rest are crowded out before others.
    first = np.zeros(len(table), dtype=bool)
    first[np.unique(rows, axis=0, return_index=True)[1]] = True
    for front in fronts:
        apart = front[first[front]]
        crowding[apart] = calc_crowding_distance(table[apart])
    return crowding


def rank_and_crowding(values: Floats, violations: Floats | None = None) -> tuple[Ints, Floats]:
    """Both at once, see `ranking`."""
    found = ranking(values, violations)
    return found.ranks, found.crowding


def _levels(violations: Floats | None, count: int) -> list[Ints]:
    """The rows that violate alike, the least violating first: all of one dominate all of the next."""
    if violations is None:
        return [np.arange(count)]
    worst = np.where(np.isnan(violations), np.inf, violations)
    return [np.flatnonzero(worst == level) for level in np.unique(worst)]


def order(ranks: Ints, crowding: Floats) -> Ints:
    """Row numbers from the best to the worst: by rank, then the least crowded, then the older row."""
    return np.lexsort((np.arange(len(ranks)), -crowding, ranks)).astype(np.int64)


def survive(values: Floats, k: int, violations: Floats | None = None) -> Ints:
    """The `k` rows that stay, best first; all of them when there are no more than `k`."""
    return order(*rank_and_crowding(values, violations))[:k]


def front(values: Floats, violations: Floats | None = None) -> Ints:
    """The non-dominated rows, in their order."""
    return np.flatnonzero(ranking(values, violations).ranks == 0).astype(np.int64)


def hypervolume(values: Floats, reference: Floats) -> float:
    """The volume between a front and the reference point (worse than it in every objective); 0 when no row is
    better.
    """
    from pymoo.indicators.hv import HV

    table = np.array(values, dtype=np.float64, ndmin=2)
    inside = table[np.all(np.isfinite(table) & (table < reference), axis=1)] if table.size else table[:0]
    if not len(inside):
        return 0.0
    return float(HV(ref_point=np.asarray(reference, dtype=np.float64)).do(inside))
