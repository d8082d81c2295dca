"""Means of few examples lie: what genomes are worth, adjusted for the examples they saw and drawn to what is usual.

    additive(table) -> Additive        genome effect + example effect: who saw hard examples is not blamed for them
    shrunken(table) -> Shrunken        the same, drawn to the mean of the population by empirical Bayes

The examples' effects are random ones (Henderson 1975), so that genomes without an example in common can be compared
too. The population's variance is that of DerSimonian and Laird (1986), none where Cochran's Q does not tell the genomes
apart; a genome keeps n / (n + sigma^2 / tau^2) of its distance from the mean (Efron and Morris 1973).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DOUBT = 0.2
"""Differences that chance alone makes more often than this count as chance."""
LEAST = 0.05
"""Example effects vary at most 1 / LEAST times as much as single outcomes: the equations stay well conditioned."""


ROUNDS = 3
"""Fits, each with the variances that the one before found."""


class Additive(NamedTuple):
    """Genomes on one scale, whatever examples each has seen."""

    value: Floats
    """[g] Mean outcome as if it had seen every example; the mean of all where it has seen none."""
    variance: Floats
    """[g] Of the value, as an estimate of the genome's own; infinite where it has seen none."""


class Shrunken(NamedTuple):
    """What genomes are worth by all that is known."""

    value: Floats
    """[g]"""
    error: Floats
    """[g] Standard errors."""
    mean: float
    tau2: float
    """Mean and variance of what genomes of this population are worth: the prior."""


def additive(table: Floats) -> Additive:
    """Fit `table` [g, e] of outcomes (0 to 1; NaN where not evaluated). Raises: ValueError when it holds none."""
    seen = ~np.isnan(table)
    each, columns = seen.sum(axis=1).astype(np.float64), seen.sum(axis=0).astype(np.float64)
    if not each.any():
        raise ValueError(f"got a table of shape {table.shape} with no outcome in it; give at least one")
    there, y = seen.astype(np.float64), np.where(seen, table, 0.0)
    rows, down, squares = y.sum(axis=1), y.sum(axis=0), float(y.ravel() @ y.ravel())
    mean = float(rows.sum() / each.sum())
    own = rows / np.maximum(each, 1)
    within = squares - each @ own**2
    noise, ratio = _components(within, down - own @ there, each, columns)
    patterns, at, times = _patterns(seen)
    known = np.flatnonzero(each)
    held, effect = patterns[known], np.zeros(len(table))
    for _ in range(ROUNDS):
        shares = 1.0 / (patterns.sum(axis=0) + ratio)
        normal = np.diag(each[known]) - (held * (times * shares)) @ held.T
        sums = rows - mean * each - there @ ((down - mean * columns) * shares[at])
        effect[known] = np.linalg.solve(normal, sums[known])
        if not np.isfinite(ratio):
            break
        hard = (down - mean * columns - effect @ there) * shares[at]
        fitted = mean + effect
        left = squares - fitted @ (2 * rows - each * fitted) - hard @ (2 * down - columns * hard)
        noise, ratio = _again(left + 2 * float(fitted @ (there @ hard)), hard, noise, ratio, each, columns)
    variance = np.full(len(table), np.inf)
    variance[known] = noise / each[known] * (1 + held @ (times * shares) / each[known])
    return Additive(mean + effect, variance)


def _components(squares: float, common: Floats, each: Floats, columns: Floats) -> tuple[float, float]:
    """The variance of an outcome, and how many times that of the example effects it is, at a first glance.

    Of outcomes less their genome's mean: the sum of `squares`, and their sums over the genomes on each example, for
    what genomes have in common on an example is the example's.
    """
    outcomes = float(each.sum())
    within = max(0.0, squares) / max(1.0, outcomes - float((each > 0).sum()))
    pairs = float((columns * (columns - 1)).sum())
    shared = float(common @ common - squares) / pairs if pairs else 0.0
    shared = min(max(shared, 0.0), within)
    return _joined(within - shared, shared, outcomes)


def _again(left: float, hard: Floats, noise: float, ratio: float, each: Floats, columns: Floats) -> tuple[float, float]:
    """The same from what a fit left over and the example effects it found (a step of EM)."""
    shares = columns / (columns + ratio)
    outcomes, seen = float(each.sum()), columns > 0
    freedom = max(1.0, outcomes - float((each > 0).sum()) - float(shares.sum()))
    shared = float((hard[seen] ** 2 + noise / (columns[seen] + ratio)).mean())
    return _joined(max(0.0, left) / freedom, shared, outcomes)


def _joined(noise: float, shared: float, outcomes: float) -> tuple[float, float]:
    # A quarter of variance as if one more outcome had been seen: few equal outcomes prove nothing.
    noise = (noise * outcomes + 0.25) / (outcomes + 1)
    return noise, max(LEAST, noise / shared) if shared > 0 else np.inf


def _patterns(seen: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int64], Floats]:
    """The different columns [g, p], which of them each example has, and how often each occurs: few, since examples
    are evaluated in blocks.
    """
    packed = np.ascontiguousarray(np.packbits(seen, axis=0).T)
    keys = packed.view(f"S{packed.shape[1]}").ravel()
    _, first, at, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return seen[:, first].astype(np.float64), at, times.astype(np.float64)


def shrunken(table: Floats, prior: tuple[float, float] | None = None) -> Shrunken:
    """What the genomes of `table` [g, e] (0 to 1; NaN where not evaluated) are worth.

    `prior`: mean and variance of what genomes are worth, where they are known; default: estimated from the table.
    Raises: ValueError when there is no outcome.
    """
    found = additive(table)
    weights = 1.0 / found.variance
    mean, tau2 = prior if prior is not None else (0.0, spread(found.value, found.variance))
    kept = tau2 * weights / (1 + tau2 * weights)
    doubt = 0.0
    if prior is None:
        mean, doubt = _centre(found.value, found.variance, tau2)
    value = mean + kept * (found.value - mean)
    return Shrunken(value, np.sqrt(tau2 * (1 - kept) + doubt * (1 - kept) ** 2), mean, tau2)


def _centre(values: Floats, variances: Floats, tau2: float) -> tuple[float, float]:
    """The weighted mean of all values, and its variance."""
    known = np.isfinite(variances)
    weights = 1.0 / (variances[known] + tau2)
    return float(weights @ values[known] / weights.sum()), float(1 / weights.sum())


def spread(values: Floats, variances: Floats, doubt: float = DOUBT) -> float:
    """The variance of what lies behind values of these variances; 0 where chance alone would spread them as much."""
    from scipy.special import chdtrc

    known = np.isfinite(variances)
    count = int(known.sum())
    if count < 2:
        return 0.0
    mean, _ = _centre(values, variances, 0.0)
    weights = 1.0 / variances[known]
    q = float(weights @ (values[known] - mean) ** 2)
    if float(chdtrc(count - 1, q)) > doubt:
        return 0.0
    return max(0.0, (q - (count - 1)) / float(weights.sum() - (weights @ weights) / weights.sum()))
