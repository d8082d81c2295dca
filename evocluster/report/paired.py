"""Two configurations on the same examples: is the difference real, how large is it, and what could have been seen?

    paired(example, a, b) -> Paired

Differences are B minus A. The unit is the example: replicates and twins of one stay together, since they are alike; an
example counts by its evaluations, as it does on the front. 0/1 values get the exact McNemar test and Tango's score
interval (Statistics in Medicine 17, 1998), which does not shrink to a point when nothing changed; others a sign-flip
permutation test and a bootstrap of examples, its percentiles widened for small samples (Hesterberg, The American
Statistician 69, 2015). Everything random is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
"""`Paired.visible` would be found this often."""
EXACT = 14
"""Up to so many examples that differ, all 2**n sign flips are counted; beyond, `FLIPS` are drawn."""
FLIPS = 10_000
EXACT_P95 = 10
FLIPS_P95 = 4_000
"""The same for p95, where each flip takes longer."""
RESAMPLES = 2_000
CELLS = 2_000_000
"""Numbers held at once while resampling."""
TIE = 1e-9
"""Relative difference below which two sums in another order are the same number."""


class Paired(NamedTuple):
    """What comparing A with B on one measure came to."""

    examples: int
    evaluations: int
    """Pairs behind them, twins and replicates included."""
    a: float
    b: float
    difference: float
    """b - a"""
    low: float
    high: float
    """Ends of the 95 % interval of the difference; it holds 0 where the test does not tell A and B apart."""
    p: float
    """How often a difference this large would come about if A and B were the same; two-sided."""
    test: str
    """'exact McNemar', 'exact sign flips', 'sign flips', 'exact swaps of p95' or 'swaps of p95'."""
    up: int
    """Examples whose value is higher under B."""
    down: int
    visible: float | None
    """The smallest difference that so many examples would show with 80 % power; None where it cannot be said."""


def paired(
    examples: Sequence[str], a: Sequence[float] | Floats, b: Sequence[float] | Floats, aggregate: str = "mean"
) -> Paired:
    """The comparison of a[i] with b[i], measured on examples[i].

    `aggregate`: 'mean' or 'p95' of all values, the test then on the difference of the p95.
    Raises: ValueError when there is nothing to compare.
    """
    if not len(examples) == len(a) == len(b) or not len(examples):
        raise ValueError(
            f"got {len(examples)} examples, {len(a)} and {len(b)} values; give as many of each, at least 1"
        )
    _, unit = np.unique(np.asarray(examples, dtype=str), return_inverse=True)
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sizes = np.bincount(unit)
    sums: Floats = np.bincount(unit, right - left).astype(np.float64)
    sums[np.abs(sums) <= TIE * np.bincount(unit, np.abs(left) + np.abs(right))] = 0.0
    up, down, count = int((sums > 0).sum()), int((sums < 0).sum()), len(sizes)
    change = sums * (count / len(left))
    means = np.concatenate([np.bincount(unit, left) / sizes, np.bincount(unit, right) / sizes])
    if aggregate == "p95":
        value_a, value_b = float(_p95(left)), float(_p95(right))
        low, high = bootstrap_p95(unit, left, right)
        p, test = swap_p95(unit, left, right)
    elif bool(np.isin(means, (0.0, 1.0)).all() and (sizes == sizes[0]).all()):
        value_a, value_b = float(left.mean()), float(right.mean())
        low, high = tango(up, down, count)
        p, test = mcnemar(up, down), "exact McNemar"
    else:
        value_a, value_b = float(left.mean()), float(right.mean())
        low, high = bootstrap(sums, sizes)
        p, test = sign_flip(change)
    seen = visible(change, low, high)
    if p >= 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Paired(count, len(left), value_a, value_b, value_b - value_a, low, high, p, test, up, down, seen)


def mcnemar(up: int, down: int) -> float:
    """The exact two-sided McNemar test: of the pairs that differ, each way is a fair coin."""
    from scipy.special import bdtr

    return min(1.0, 2.0 * float(bdtr(min(up, down), up + down, 0.5))) if up + down else 1.0


def tango(up: int, down: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval of (up - down) / n: every difference that the score test would not reject."""
    z = NormalDist().inv_cdf(0.5 + level / 2)

    def score(shift: float) -> float:
        """Tango's T, falling in `shift`."""
        linear = (2 * n - up + down) * shift - up - down
        root = np.sqrt(max(0.0, linear**2 + 8 * n * down * shift * (1 - shift)))
        spread = n * ((root - linear) / (2 * n) + shift * (1 - shift))
        distance = up - down - n * shift
        return float(distance / np.sqrt(spread)) if spread > 0 else float(np.sign(distance) * np.inf)

    middle = (up - down) / n
    low = -1.0 if down == n else _falling_root(lambda shift: score(shift) - z, -1.0, middle)
    high = 1.0 if up == n else _falling_root(lambda shift: score(shift) + z, middle, 1.0)
    return low, high


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def sign_flip(change: Floats, seed: int = 0) -> tuple[float, str]:
    """(p, name) of the two-sided test that each example's difference might as well have had the other sign.

    All flips are counted when few examples differ; otherwise a seeded sample with the observed one in it, so that p is
    never 0 and the test keeps its level.
    """
    moved = change[change != 0]
    count = len(moved)
    if not count:
        return 1.0, "exact sign flips"
    reached = abs(float(moved.sum())) - TIE * float(np.abs(moved).sum())
    if count <= EXACT:
        signs = 1.0 - 2.0 * _all_flips(count, 0, 2**count)
        return float((np.abs(signs @ moved) >= reached).mean()), "exact sign flips"
    rng = np.random.default_rng([seed, count])
    hits = sum(
        int((np.abs((1.0 - 2.0 * rng.integers(0, 2, (rows, count), dtype=np.int8)) @ moved) >= reached).sum())
        for rows in _blocks(FLIPS, count)
    )
    return (1 + hits) / (1 + FLIPS), "sign flips"


def bootstrap(sums: Floats, sizes: NDArray[Any], seed: int = 0, level: float = LEVEL) -> tuple[float, float]:
    """The interval of the mean difference, over resamples of examples. `sums`, `sizes`: the differences of each
    example added up, and how many they are.
    """
    count = len(sums)
    rng = np.random.default_rng([seed, count])
    drawn = np.concatenate(
        [
            sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
            for picked in (rng.integers(0, count, (rows, count)) for rows in _blocks(RESAMPLES, count))
        ]
    )
    return _ends(drawn, float(sums.sum() / sizes.sum()), count, level)


def visible(change: Floats, low: float, high: float) -> float | None:
    """The difference that would be found four times in five, from the width of the interval; never below what a
    two-sided test at 5 % could show at all: that six examples change, all one way.
    """
    count = len(change)
    if count < 6 or high <= low:
        return None
    normal = NormalDist()
    error = (high - low) / (2 * normal.inv_cdf(0.5 + LEVEL / 2))
    seen = error * (normal.inv_cdf(0.5 + LEVEL / 2) + normal.inv_cdf(POWER))
    moved = np.abs(change[change != 0])
    return max(seen, 6 * float(moved.mean()) / count) if len(moved) else max(seen, 6 / count)


def bootstrap_p95(unit: NDArray[Any], a: Floats, b: Floats, seed: int = 0) -> tuple[float, float]:
    """The interval of the difference of two p95, over resamples of examples; `unit`: the example of each value."""
    count = int(unit.max()) + 1
    rng = np.random.default_rng([seed, count])
    order_a, order_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")

    def weighted(values: Floats, order: NDArray[Any], times: NDArray[Any]) -> Floats:
        weight = np.cumsum(times[:, unit[order]], axis=1)
        return np.asarray(values[order][np.argmax(weight >= 0.95 * weight[:, -1:] - TIE, axis=1)])

    drawn = np.concatenate(
        [
            weighted(b, order_b, times) - weighted(a, order_a, times)
            for times in (
                rng.multinomial(count, np.full(count, 1 / count), size=rows) for rows in _blocks(RESAMPLES, len(a))
            )
        ]
    )
    return _ends(drawn, float(_p95(b) - _p95(a)), count, LEVEL)


def swap_p95(unit: NDArray[Any], a: Floats, b: Floats, seed: int = 0) -> tuple[float, str]:
    """(p, name) of the test that the values of an example under A and B might as well have been swapped."""
    count = int(unit.max()) + 1
    reached = abs(_p95(b) - _p95(a)) - TIE * max(_p95(np.abs(a)), _p95(np.abs(b)))
    exact = count <= EXACT_P95
    rng = np.random.default_rng([seed, count])
    hits, done = 0, 0
    for rows in _blocks(2**count if exact else FLIPS_P95, len(a)):
        flips = _all_flips(count, done, rows) if exact else rng.integers(0, 2, (rows, count))
        swapped = flips.astype(bool)[:, unit]
        apart = _p95(np.where(swapped, a, b)) - _p95(np.where(swapped, b, a))
        hits += int((np.abs(apart) >= reached).sum())
        done += rows
    return (hits / done, "exact swaps of p95") if exact else ((1 + hits) / (1 + done), "swaps of p95")


def _p95(values: Floats) -> Any:
    """The lowest value that 95 % do not exceed, of each row; as the front has it."""
    return np.quantile(values, 0.95, axis=-1, method="inverted_cdf")


def _all_flips(count: int, start: int, rows: int) -> NDArray[Any]:
    """Rows start to start + rows of all 2**count ways to flip."""
    return (np.arange(start, start + rows)[:, None] >> np.arange(count)) & 1


def _ends(drawn: Floats, value: float, count: int, level: float) -> tuple[float, float]:
    """Percentiles of what was drawn, at a level as much wider as Student's interval is wider than the plain one."""
    from scipy.special import ndtr, stdtrit

    tail = (1 - level) / 2
    if count > 1:
        tail = float(ndtr(np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail)))
    low, high = (float(end) for end in np.quantile(drawn, (tail, 1 - tail)))
    return min(low, value), max(high, value)


def _blocks(total: int, width: int) -> list[int]:
    """`total` rows of this width in blocks that fit into memory."""
    rows = max(1, CELLS // max(1, width))
    return [min(rows, total - done) for done in range(0, total, rows)]
