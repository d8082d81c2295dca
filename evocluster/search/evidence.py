"""What is known of candidates on one objective, so that one of them can be chosen: estimates and how sure they are.

    measured(tallies, objective) -> Measured      values on the split that decides, and how they err together
    weigh(measured, train) -> Weighed             with what train says; bounds that the luck of the draw does not move

Candidates stand on the same examples, so their differences are surer than their values: `Measured.cov` says how much.
Train counts too, as far as it can be believed: the search has read it and selected by it, so what a candidate is worth
there may differ from what it is worth by `DRIFT` (the variances are added, as in a random-effects meta-analysis).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evocluster.search.objectives import RESAMPLES, Floats, Objective, Tally
from evocluster.search.race import TAKEN
from evocluster.search.shrink import Additive, additive, spread

Z = 1.6449
"""Of a one-sided bound at 95 %."""
DRIFT = 0.05
"""Standard deviation of what a candidate is worth on train less on other examples. With it train weighs at most as
much as about 80 examples of 0/1 outcomes: it improves the choice by up to a quarter of a point of quality, and costs a
tenth at most where finalists were chosen so narrowly that train has no more to say (simulated)."""


class Measured(NamedTuple):
    """Candidates on one objective, by the examples of one split."""

    value: Floats
    """[g] As reported."""
    cov: Floats
    """[g, g] Of the values; the difference of two has cov[a, a] + cov[b, b] - 2 cov[a, b]."""
    own: Floats
    """[g] Variance of what is not shared with the others: the difference of two has about own[a] + own[b]."""
    below: Floats
    above: Floats
    """[g] From the value to its lower and upper bound at 95 %, one-sided."""
    examples: int
    binary: bool = False
    """All outcomes are 0 or 1, one an example: the bounds are Wilson's."""

    def between(self, one: int) -> Floats:
        """[g] Standard errors of the differences from one candidate."""
        variances = np.diag(self.cov)
        return np.asarray(np.sqrt(np.maximum(variances + variances[one] - 2 * self.cov[one], 0.0)))

    def around(self, centre: Floats) -> tuple[Floats, Floats]:
        """[g], [g] The bounds as if these were the values."""
        if self.binary:
            return _wilson(np.clip(centre, 0.0, 1.0), self.examples)
        return centre - self.below, centre + self.above


class Weighed(NamedTuple):
    """Candidates on one objective, by all that is known."""

    measured: Measured
    estimate: Floats
    """[g] The value, with what train says: what candidates are ordered by."""
    low: Floats
    high: Floats
    """[g] Bounds at 95 %, one-sided, around the estimate."""
    surely_low: Floats
    surely_high: Floats
    """[g] The same around the estimate drawn to the mean of the candidates: what promises are held to."""


def measured(tallies: Sequence[Tally], objective: Objective, seed: int) -> Measured:
    """What these tallies of one split say. `seed`: of the resamples."""
    plain = objective.aggregate == "mean" and not tallies[0].tasks
    even = all(np.array_equal(one.examples, tallies[0].examples) for one in tallies)
    if not plain:
        draws = np.array([_draws(one, objective, seed) for one in tallies])
        examples = max(len(one.examples) for one in tallies)
        return _by_resamples(np.array([one.value(objective) for one in tallies]), draws, examples)
    sums, counts = (np.array(part) for part in zip(*(one.sums(objective) for one in tallies), strict=True))
    there = counts.any(axis=0)
    found = means(sums[:, there], counts[:, there]) if even else _uneven(_table(sums, counts), objective)
    return found._replace(value=np.where(counts.any(axis=1), found.value, objective.sign * np.inf))


def means(sums: Floats, counts: Floats) -> Measured:
    """Of outcomes on the same examples: `sums` [g, e] added up per example, `counts` [g, e] how many they are."""
    size, examples = np.maximum(counts.sum(axis=1), 1.0), sums.shape[1]
    value = sums.sum(axis=1) / size
    pull = (sums - value[:, None] * counts) / size[:, None] * np.sqrt(examples / max(1, examples - 1))
    cov = pull @ pull.T
    count = len(value)
    apart = (np.trace(cov) - cov.sum() / count) / (count - 1) if count > 1 else float(cov[0, 0])
    half = Z * np.sqrt(np.diag(cov))
    binary = bool(((sums == 0) | (sums == 1)).all() and (counts == 1).all())
    return Measured(value, cov, np.full(count, max(0.0, apart)), half, half, examples, binary)


def _table(sums: Floats, counts: Floats) -> Floats:
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def _uneven(table: Floats, objective: Objective) -> Measured:
    """Of different examples each: adjusted for which they are; what takes time or money as it was measured."""
    if objective.source in TAKEN or np.isnan(table).all():
        seen = np.maximum((~np.isnan(table)).sum(axis=1), 1)
        value = np.nansum(table, axis=1) / seen
        variance = np.nansum((table - value[:, None]) ** 2, axis=1) / seen**2
    else:
        value, variance = additive(table)
        variance = np.where(np.isfinite(variance), variance, 0.0)
    half = Z * np.sqrt(variance)
    return Measured(value, np.diag(variance), variance, half, half, table.shape[1])


def _draws(tally: Tally, objective: Objective, seed: int) -> Floats:
    if not np.isfinite(tally.value(objective)):
        return np.zeros(RESAMPLES)
    return tally.resampled(objective, np.random.default_rng(seed))


def _by_resamples(value: Floats, draws: Floats, examples: int) -> Measured:
    """Of aggregates that are no plain means."""
    cov = np.atleast_2d(np.cov(draws))
    low, high = np.quantile(draws, (0.05, 0.95), axis=1)
    known = np.isfinite(value)
    centre = np.where(known, value, 0.0)
    below, above = np.where(known, np.maximum(centre - low, 0), 0.0), np.where(known, np.maximum(high - centre, 0), 0.0)
    return Measured(value, cov, np.diag(cov).copy(), below, above, examples)


def trained(tallies: Sequence[Tally], objective: Objective) -> Additive | None:
    """What train says of the candidates; None for what is no plain mean of outcomes from 0 to 1."""
    if objective.source in TAKEN or objective.aggregate != "mean" or tallies[0].tasks:
        return None
    sums, counts = (np.array(part) for part in zip(*(one.sums(objective) for one in tallies), strict=True))
    return additive(_table(sums, counts)) if counts.any() else None


def weigh(found: Measured, train: Additive | None = None) -> Weighed:
    """Measured values with what train says, and their bounds."""
    known = np.isfinite(found.value)
    estimate = firm = found.value.copy()
    if known.any():
        level = float(found.value[known].mean())
        apart, own = found.value[known] - level, found.own[known]
        if train is not None:
            # Equal outcomes prove nothing: as if one more example told candidates apart.
            apart, own = _with(train, known, apart, own + 0.25 / (found.examples + 1) ** 2)
        estimate[known] = level + apart
        firm = estimate.copy()
        firm[known] = level + drawn(apart, own)
    return Weighed(found, estimate, *found.around(estimate), *found.around(firm))


def _with(train: Additive, known: NDArray[np.bool_], apart: Floats, own: Floats) -> tuple[Floats, Floats]:
    """Differences from the mean of the candidates, and their variances, with those on train."""
    there = np.isfinite(train.variance[known])
    if not there.any():
        return apart, own
    value = train.value[known]
    weight = np.where(there, 1.0 / (train.variance[known] + DRIFT**2), 0.0)
    shift = np.where(there, value - value[there].mean(), 0.0)
    total = 1.0 / own + weight
    return (apart / own + shift * weight) / total, 1.0 / total


def drawn(apart: Floats, own: Floats) -> Floats:
    """Differences drawn to their mean as far as they may be chance."""
    sure = np.maximum(own, 1e-18)
    behind = spread(apart, sure, 1.0)
    mean = float((apart / (sure + behind)).sum() / (1 / (sure + behind)).sum())
    return mean + (apart - mean) * behind / (behind + sure)


def _wilson(share: Floats, n: int) -> tuple[Floats, Floats]:
    """Wilson's bounds (1927) of shares of n."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
