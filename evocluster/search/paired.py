"""Two configurations on the same examples: how far are they apart, and could it be chance?

    versus(gaps) -> Versus        gaps: the second's mean on each example less the first's

The unit is the example: twins and replicates of one are in its mean. 0/1 outcomes get the exact McNemar test (1947) and
Tango's score interval (Statistics in Medicine 17, 1998); others a sign-flip permutation test (Fisher 1935) and
Student's interval. `report/paired.py` does the same and more for any two configurations of any two runs, by their
tables.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

from evocluster.records import Record
from evocluster.search.objectives import Floats

Z = 1.959964
LEVEL = 0.05
EXACT = 12
"""Up to so many examples that differ, all 2**n sign flips are counted; beyond, `FLIPS` are drawn."""
FLIPS = 10_000
ROWS = 500
"""Flips held at once."""


class Versus(Record):
    """A difference with its 95 % interval and two-sided test."""

    difference: float
    low: float
    high: float
    p: float
    """How often chance alone would make a difference this large."""
    n: int
    """Examples."""


def versus(gaps: Floats) -> Versus:
    """Of differences example by example. Raises: ValueError when there are none."""
    if not len(gaps):
        raise ValueError("there is no example to compare on; give at least one")
    n, value = len(gaps), float(gaps.mean())
    if np.isin(gaps, (-1.0, 0.0, 1.0)).all():
        up, down = int((gaps > 0).sum()), int((gaps < 0).sum())
        p, (low, high) = mcnemar(up, down), tango(up, down, n)
    else:
        p, (low, high) = sign_flip(gaps), _student(gaps)
    if p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Versus(difference=value, low=min(low, value), high=max(high, value), p=p, n=n)


def mcnemar(up: int, down: int) -> float:
    """The exact two-sided test: of the pairs that differ, each way is a fair coin."""
    moved = up + down
    return min(1.0, float(2 * sum(comb(moved, k) for k in range(min(up, down) + 1)) / 2**moved))


def tango(up: int, down: int, n: int) -> tuple[float, float]:
    """Every difference of two shares of n that the score test would not reject."""

    def score(shift: float) -> float:
        linear = (2 * n - up + down) * shift - up - down
        root = np.sqrt(max(0.0, linear**2 + 8 * n * down * shift * (1 - shift)))
        spread = n * ((root - linear) / (2 * n) + shift * (1 - shift))
        distance = up - down - n * shift
        return float(distance / np.sqrt(spread)) if spread > 0 else float(np.sign(distance) * np.inf)

    middle = (up - down) / n
    low = -1.0 if down == n else _root(lambda shift: score(shift) - Z, -1.0, middle)
    high = 1.0 if up == n else _root(lambda shift: score(shift) + Z, middle, 1.0)
    return low, high


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where it crosses zero, by bisection."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def sign_flip(gaps: Floats) -> float:
    """The two-sided test that each difference might as well have had the other sign; seeded where flips are drawn."""
    moved = gaps[gaps != 0]
    count = len(moved)
    reached = abs(float(moved.sum())) - 1e-9 * float(np.abs(moved).sum())
    if count <= EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ moved) >= reached).mean())
    rng = np.random.default_rng([0, count])
    hits = 0
    for _ in range(0, FLIPS, ROWS):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (ROWS, count), dtype=np.int8)
        hits += int((np.abs(signs @ moved) >= reached).sum())
    return (1 + hits) / (1 + FLIPS)


def _student(gaps: Floats) -> tuple[float, float]:
    from scipy.special import stdtrit

    n, value = len(gaps), float(gaps.mean())
    if n < 2:
        return -np.inf, np.inf
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * float(gaps.std(ddof=1)) / np.sqrt(n)
    return value - half, value + half
