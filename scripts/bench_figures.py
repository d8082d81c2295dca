"""The arithmetic of the search benchmark: curves, intervals, calls to reach, what a race saved. No I/O, no clocks.

A curve is (calls, value) where the value changed, in the order of calls. What is missing is None and stays None: a
figure is never made up from part of what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Genome
from evocluster.search import nsga2
from evocluster.search.beliefs import Beliefs

Floats = NDArray[np.float64]
Curve = Sequence[tuple[int, float]]
RESAMPLES = 2000
LEVEL = 0.95
ENLARGED = 0.1
"""The reference of hypervolumes lies this share beyond the worst of all fronts compared."""


class Incumbent:
    """Whom an onlooker would recommend: the best mean quality on train less one deviation, both as believed from all
    trials so far (see search/beliefs.py). Of the trials alone, so it is the same for every strategy: who knows few
    examples of many configurations is believed no less than who knows many of few.
    """

    def __init__(self, genes: Sequence[str], examples: Iterable[str]) -> None:
        """`genes`: names of those that can differ; `examples`: of train."""
        self._numbers = {example: number for number, example in enumerate(examples)}
        self._beliefs = Beliefs(genes)
        self._known: dict[str, tuple[Genome, Floats]] = {}
        self.best: str | None = None
        """Genome id."""

    def add(self, genome: Genome, outcomes: Iterable[tuple[str, float]]) -> None:
        """Count (example, quality) of a genome; each example counts once."""
        known = self._known.get(genome.id, (genome, np.full(len(self._numbers), np.nan)))[1].copy()
        for example, quality in outcomes:
            number = self._numbers[example]
            if np.isnan(known[number]):
                known[number] = quality
        if np.isnan(known).all():
            return
        self._known[genome.id] = (genome, known)
        self._beliefs.learn(genome, known.astype(np.float32))
        believed = {id: self._beliefs.of(one)[0] for id, (one, _) in self._known.items()}
        self.best = max(believed, key=lambda id: believed[id].mean - believed[id].deviation)

    @property
    def tried(self) -> int:
        """How many genomes were evaluated."""
        return len(self._known)


def at(curve: Curve, calls: float, before: float = math.nan) -> float:
    """The value after so many calls; `before` where the curve begins later."""
    return next((value for made, value in reversed(curve) if made <= calls), before)


def sampled(curves: Sequence[Curve], calls: Sequence[int], before: float = math.nan) -> Floats:
    """Every curve at these calls, [curves, calls]."""
    return np.array([[at(curve, one, before) for one in calls] for curve in curves]).reshape(len(curves), len(calls))


def calls_to_reach(curve: Curve, target: float) -> int | None:
    """The first calls after which the value is no less than the target; None where it never is."""
    return next((calls for calls, value in curve if value >= target - 1e-9), None)


def mean_curve(curves: Sequence[Curve], before: float) -> list[tuple[int, float]]:
    """The mean of several curves, wherever one of them changes; each is `before` until it begins."""
    calls = sorted({made for curve in curves for made, _ in curve})
    return list(zip(calls, sampled(curves, calls, before).mean(axis=0).tolist(), strict=True))


def calls_ratio(
    ours: Sequence[Curve], theirs: Sequence[Curve], before: float, rng: np.random.Generator, resamples: int = 200
) -> tuple[float | None, float | None, float | None]:
    """Calls of our mean curve to the final value of their mean curve, over the calls theirs took to it; and the ends of
    its interval over seeds, ours and theirs resampled. None: never reached, or theirs began with it.
    """
    if not ours or not theirs:
        return None, None, None
    calls = sorted({made for curve in (*ours, *theirs) for made, _ in curve})
    mine, other = sampled(ours, calls, before), sampled(theirs, calls, before)
    value = _ratio(mine.mean(axis=0), other.mean(axis=0), calls)
    drawn = [_ratio(_again(mine, rng), _again(other, rng), calls) for _ in range(resamples)]
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), method="inverted_cdf")
    return _finite(value), _finite(float(low)), _finite(float(high))


def _ratio(mine: Floats, other: Floats, calls: Sequence[int]) -> float:
    target = other[-1] - 1e-9
    took = calls[int(np.argmax(other >= target))]
    return calls[int(np.argmax(mine >= target))] / took if took and mine.max() >= target else math.inf


def _again(curves: Floats, rng: np.random.Generator) -> Floats:
    """The mean of as many curves, drawn with replacement."""
    return np.asarray(curves[rng.integers(len(curves), size=len(curves))].mean(axis=0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def crossed(outcomes: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """The mean of [seeds, examples] and its interval: seeds and examples are both drawn with replacement, the same
    examples for every seed, as all seeds were tested on the same ones (Owen 2007, the pigeonhole bootstrap).
    """
    seeds, examples = outcomes.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    columns = rng.multinomial(examples, np.full(examples, 1 / examples), size=RESAMPLES) / examples
    drawn = np.einsum("rs,se,re->r", rows, outcomes, columns)
    low, high = _ends(drawn)
    return float(outcomes.mean()), low, high


def paired(differences: Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    """The mean of differences, one a seed, and its bootstrap interval over seeds."""
    drawn = differences[rng.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(axis=1)
    low, high = _ends(drawn)
    return float(differences.mean()), low, high


def _ends(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def saved(evaluated: int, tried: int, items: int) -> float | None:
    """The share of train evaluations that everybody on everything would have taken and this search did not."""
    return 1 - evaluated / (tried * items) if tried and items else None


def hypervolumes(fronts: Mapping[str, Floats], signs: Floats, ideal: Floats) -> dict[str, float]:
    """Of each front [members, objectives], with one reference for all: a little beyond the worst of them all."""
    tables = {name: values * signs for name, values in fronts.items()}
    every = np.concatenate([*tables.values()]) if tables else np.zeros((0, len(signs)))
    finite = np.where(np.isfinite(every), every, -np.inf)
    width = finite.max(axis=0, initial=-np.inf) - ideal * signs
    scale = np.where(np.isfinite(width) & (width > 0), width, 1.0) * (1 + ENLARGED)
    ones = np.ones(len(signs))
    return {name: nsga2.hypervolume((table - ideal * signs) / scale, ones) for name, table in tables.items()}


def alike(found: Mapping[str, Sequence[object]]) -> list[str]:
    """Strategies that came to the same as an earlier one in every run: not there yet, or with nothing to decide."""
    names = list(found)
    return [name for n, name in enumerate(names) if any(found[name] == found[other] for other in names[:n])]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None where nothing is there or one is missing."""
    kept = list(values)
    known = [one for one in kept if one is not None and math.isfinite(one)]
    return float(np.mean(known)) if known and len(known) == len(kept) else None


def figures(
    test: Mapping[str, Mapping[str, float | None]],
    ratios: Sequence[float | None],
    gaps: Sequence[float | None],
    saved_shares: Sequence[float | None],
) -> dict[str, object]:
    """The watched line: test quality by task and strategy, and of `evolve` over the tasks the calls ratio, the gap in
    points and the share of evaluations saved; null where a part is missing. `gaps`: a task's mean over seeds each;
    the line has the mean of their absolute values, so that tasks off in opposite directions do not cancel out.
    """
    return {
        "test": {task: {name: rounded(value) for name, value in row.items()} for task, row in test.items()},
        "calls_ratio_to_generational": rounded(mean(ratios)),
        "gap_points": rounded(mean(None if gap is None else abs(gap) for gap in gaps)),
        "evaluations_saved": rounded(mean(saved_shares)),
    }


def rounded(value: float | None) -> float | None:
    """Four digits after the point; None stays None."""
    return None if value is None or not math.isfinite(value) else round(value, 4)
