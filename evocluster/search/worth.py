"""What a chosen candidate is worth: an interval that holds it whichever way the luck of the choice went.

Outcomes that were left out by turns are not independent of each other: each has helped to choose who stands for the
others, and no variance can be estimated from them without bias (Bengio and Grandvalet 2004), so that the intervals of
cross-validation are too short (Bates, Hastie and Tibshirani 2021). Among equals, a candidate that all folds agree on
was lucky in all of them, and its value is too high by up to two standard errors; where folds disagree it is too low.
What no selection moves is the mean of a posterior (Dawid 1994; Efron 2011): the candidate's value, drawn to those that
it is not told apart from. The interval reported reaches from the lower of both ends to the higher.

Of 95 % intervals of the choice among 2 to 20 equals, 80 to 87 % hold what it is worth as left-out examples alone have
them, and 97 % and more as they are here, a tenth to a fifth wider; who is surely apart from all others keeps the
interval it had (simulated).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evocluster.search.evidence import Measured, drawn
from evocluster.search.objectives import Interval, Objective
from evocluster.search.race import TAKEN

Z = 1.959964
APART = 2.5
"""Standard errors of their difference from which on two candidates are told apart, however many there are."""
Places = NDArray[np.int64]


def widened(left_out: Interval, own: Interval, found: Measured, at: int, objective: Objective) -> Interval:
    """The value of left-out examples, with an interval that holds the value drawn to equals too.

    `own`: of the recommended, as it was measured; `at`: its place among the candidates of `found`, on the same split.
    """
    if not np.isfinite([left_out.value, own.value]).all():
        return left_out
    near = equals(found, at)
    low, high = own.low, own.high
    if len(near) > 1:
        centre, error = among(found, near, at)
        least, most = _scale(objective, found.binary)
        low, high = max(least, centre - Z * error), min(most, centre + Z * error)
    return Interval(value=left_out.value, low=min(left_out.low, low), high=max(left_out.high, high))


def equals(found: Measured, at: int) -> Places:
    """The places of those that one is not told apart from, its own among them."""
    return np.flatnonzero(np.abs(found.value - found.value[at]) <= APART * found.between(at) + 1e-12)


def among(found: Measured, near: Places, at: int) -> tuple[float, float]:
    """The value of one drawn to those of at least two equals `near`, and its standard error.

    The variance is that of their mean, what is kept of its own, and the doubt about how much to keep (as in Morris
    1983, with k + 1 for k - 3, since two candidates are often all there are).
    """
    count, cov = len(near), found.cov[np.ix_(near, near)]
    value, level = float(found.value[at]), float(found.value[near].mean())
    own = max(0.0, float(np.trace(cov) - cov.sum() / count) / (count - 1))
    centre = level + float(drawn(found.value[near] - level, np.full(count, own))[near == at][0])
    kept = (centre - level) / (value - level) if abs(value - level) > 1e-12 else 0.0
    doubt = 2 / (count + 1) * (value - centre) ** 2
    variance = float(cov.mean()) + min(max(kept, 0.0), 1.0) * own * (1 - 1 / count) + doubt
    return centre, float(np.sqrt(max(0.0, variance)))


def _scale(objective: Objective, binary: bool) -> tuple[float, float]:
    """The least and the most that it can be."""
    if objective.source in TAKEN:
        return 0.0, np.inf
    return (0.0, 1.0) if binary or objective.scorer is None else (-np.inf, np.inf)
