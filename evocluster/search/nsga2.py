"""NSGA-II's selection: non-dominated ranks, crowding, survival, and the hypervolume of a front.

Deb, Pratap, Agarwal and Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm", sections III A
and B; the sorting, the crowding distance and the hypervolume are pymoo's. All values are minimised; NaN and
infinity are the worst.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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


def rank_and_crowding(values: Floats) -> tuple[Ints, Floats]:
    """Ranks (0: no other row dominates it) and crowding distances (inf: an extreme of its rank) of an [n, m]
    table.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    if not len(values):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    table = finite(values)
    ranks = np.zeros(len(table), dtype=np.int64)
    crowding = np.zeros(len(table))
    # Equal rows share a place: the first of them keeps its distance, the rest are crowded out before others.
    first = np.zeros(len(table), dtype=bool)
    first[np.unique(table, axis=0, return_index=True)[1]] = True
    for rank, front in enumerate(NonDominatedSorting().do(table)):
        ranks[front] = rank
        apart = front[first[front]]
        crowding[apart] = calc_crowding_distance(table[apart])
    return ranks, crowding


def order(ranks: Ints, crowding: Floats) -> Ints:
    """Row numbers from the best to the worst: by rank, then the least crowded, then the older row."""
    return np.lexsort((np.arange(len(ranks)), -crowding, ranks)).astype(np.int64)


def survive(values: Floats, k: int) -> Ints:
    """The `k` rows that stay, best first; all of them when there are no more than `k`."""
    return order(*rank_and_crowding(values))[:k]


def front(values: Floats) -> Ints:
    """The non-dominated rows, in their order."""
    return np.flatnonzero(rank_and_crowding(values)[0] == 0).astype(np.int64)


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
