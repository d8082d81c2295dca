"""How far a judge agrees with labels, and with itself: figures with 95 % intervals, and what they mean in words.

Everything is on 0 to 1 and pure numpy. Kappa is Cohen's with quadratic weights (Cohen 1968), computed from the
moments, which needs no binning and is the same number (Fleiss and Cohen 1973, section 3). Its words follow Landis and
Koch 1977. Intervals are percentiles of resampled pairs (Efron 1979), but for shares, which have Wilson's (1927).
A bootstrap knows nothing of errors that are not among the labels: few labels flatter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Record

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]
"""(judged, labels), both (rows, pairs) -> one figure a row, NaN where it is not defined."""
RESAMPLES = 2000
CELLS = 2_000_000
"""Resampled values held in memory at once."""
FEWEST = 5
"""Pairs from which there is an interval."""


class Estimate(Record):
    """A figure and its 95 % interval; `note` says why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Agreement(Record):
    """A judge against labels, all on 0 to 1."""

    pairs: int
    error: Estimate
    """Mean absolute difference."""
    bias: Estimate
    """Judge minus label, mean: above 0 it is kinder than the labels."""
    pearson: Estimate
    spearman: Estimate
    kappa: Estimate
    bar: float
    """From which score on something passes."""
    accuracy: Estimate
    """Share of pairs on the same side of the bar."""
    both: int
    """Pairs that pass by both."""
    judge_only: int
    label_only: int
    neither: int


class Stability(Record):
    """A judge against itself."""

    asked: int
    """How often each answer was graded."""
    answers: int
    """Answers whose grades could all be read."""
    identical: float
    """Share of answers that always got the same grade."""
    spread: float
    """Highest minus lowest grade, mean over answers."""
    kappa: float | None
    """Between two gradings, mean over all pairs of them."""


def agreement(judged: Array, labels: Array, bar: float, rng: np.random.Generator) -> Agreement:
    """Every figure for these pairs; `rng` draws the resamples."""
    pairs = len(judged)
    index = rng.integers(0, max(pairs, 1), (RESAMPLES if pairs >= FEWEST else 0, pairs))
    passes, right = judged >= bar - 1e-9, labels >= bar - 1e-9
    both, neither = int((passes & right).sum()), int((~passes & ~right).sum())

    def figure(statistic: Statistic) -> Estimate:
        return _estimate(statistic, judged, labels, index)

    return Agreement(
        pairs=pairs,
        error=figure(absolute_error),
        bias=figure(difference),
        pearson=figure(pearson),
        spearman=figure(spearman),
        kappa=figure(kappa),
        bar=bar,
        accuracy=share(both + neither, pairs),
        both=both,
        judge_only=int((passes & ~right).sum()),
        label_only=int((~passes & right).sum()),
        neither=neither,
    )


def stability(grades: Array) -> Stability:
    """Of grades of the shape (times asked, answers); NaN where a reply could not be read."""
    whole = grades[:, np.isfinite(grades).all(axis=0)]
    asked, answers = whole.shape
    spread = np.ptp(whole, axis=0) if answers else np.zeros(0)
    pairs = [(whole[a], whole[b]) for a in range(asked) for b in range(a + 1, asked)] if answers else []
    kappas = kappa(np.array([one for one, _ in pairs]), np.array([other for _, other in pairs])) if pairs else None
    known = kappas[np.isfinite(kappas)] if kappas is not None else np.zeros(0)
    return Stability(
        asked=asked,
        answers=answers,
        identical=float((spread < 1e-9).mean()) if answers else 0.0,
        spread=float(spread.mean()) if answers else 0.0,
        kappa=float(known.mean()) if known.size else None,
    )


# ---------------------------------------------------------------- figures, a row at a time


def absolute_error(judged: Array, labels: Array) -> Array:
    """Mean absolute difference."""
    return np.asarray(np.abs(judged - labels).mean(axis=1))


def difference(judged: Array, labels: Array) -> Array:
    """Mean of judge minus label."""
    return np.asarray((judged - labels).mean(axis=1))


def pearson(judged: Array, labels: Array) -> Array:
    """Pearson's correlation; NaN where either side is constant."""
    ours, theirs = (side - side.mean(axis=1, keepdims=True) for side in (judged, labels))
    defined = _varies(judged) & _varies(labels)
    scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum(axis=1))
    return np.where(defined, (ours * theirs).sum(axis=1) / np.where(defined, scale, 1.0), np.nan)


def spearman(judged: Array, labels: Array) -> Array:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing their mean rank."""
    return pearson(ranks(judged), ranks(labels))


def kappa(judged: Array, labels: Array) -> Array:
    """Cohen's kappa with quadratic weights; NaN where the labels are constant: chance explains them all."""
    expected = judged.var(axis=1) + labels.var(axis=1) + (judged.mean(axis=1) - labels.mean(axis=1)) ** 2
    defined = _varies(labels)
    return np.where(defined, 1 - ((judged - labels) ** 2).mean(axis=1) / np.where(defined, expected, 1.0), np.nan)


def ranks(values: Array) -> Array:
    """Ranks from 1 within each row, equal values sharing their mean rank."""
    rows, size = values.shape
    order = values.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    new = np.ones((rows, size), dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = new.ravel().cumsum() - 1
    place = np.tile(np.arange(1.0, size + 1), rows)
    mean = (np.bincount(group, weights=place) / np.bincount(group))[group].reshape(rows, size)
    ranked = np.empty((rows, size))
    np.put_along_axis(ranked, order, mean, axis=1)
    return ranked


def share(count: int, of: int) -> Estimate:
    """A share with Wilson's interval."""
    if not of:
        return Estimate(note="not defined: nothing was graded")
    z, p = 1.959964, count / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return Estimate(value=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def _varies(values: Array) -> NDArray[np.bool_]:
    return np.asarray(np.ptp(values, axis=1) > 1e-12)


def _estimate(statistic: Statistic, judged: Array, labels: Array, index: NDArray[np.int64]) -> Estimate:
    if not len(judged):
        return Estimate(note="not defined: nothing was graded")
    value = float(statistic(judged[None], labels[None])[0])
    if not math.isfinite(value):
        side = "labels" if not _varies(labels[None])[0] else "grades"
        return Estimate(note=f"not defined: all {side} are equal")
    drawn = np.concatenate([np.zeros(0), *(statistic(judged[part], labels[part]) for part in _parts(index))])
    known = drawn[np.isfinite(drawn)]
    if not known.size or known.size < len(drawn) / 2:
        return Estimate(value=value, note="too few labels for an interval")
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))


def _parts(index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    step = max(1, CELLS // max(1, index.shape[1]))
    for start in range(0, len(index), step):
        yield index[start : start + step]


# ---------------------------------------------------------------- in words

BANDS = (
    (0.8, "it grades much like the labels"),
    (0.6, "good enough to select by"),
    (0.4, "a rough signal: use it beside other scorers, not alone"),
    (-1.0, "do not trust it for selection: sharpen the rubric or take a stronger model"),
)
"""Kappa from which on -> what to make of it."""
FEW = 10
"""Labels below which nothing is said."""
ENOUGH = 30
"""Labels below which even a narrow interval is not believed."""
WIDE = 0.15
"""Half an interval of kappa that is wide."""
LOST = 0.02
"""Share of replies that could not be read from which it is said."""


def verdict(found: Agreement, failed: int, steady: Stability | None = None) -> tuple[str, ...]:
    """What the figures mean, the most important first; `failed` answers got no grade."""
    said = [*_of_kappa(found), *_of_width(found), *_of_bias(found)]
    asked = found.pairs + failed
    if failed and failed / asked >= LOST:
        said.append(
            f"{failed} of {asked} answers got no grade, and in a run each is a failed evaluation; where replies could "
            "not be read, raise max_tokens, or set constrain: true or choices: true if the model can do that"
        )
    if steady and steady.answers and steady.identical < 0.9:
        said.append(
            f"it graded only {steady.identical:.0%} of the answers the same {steady.asked} times: "
            "set temperature: 0, or give the rubric clearer steps"
        )
    return tuple(said)


def _of_kappa(found: Agreement) -> list[str]:
    if not found.pairs:
        return ["no reply could be read, so nothing is known of it: do not use it"]
    if found.pairs < FEW:
        return [f"{found.pairs} labels are too few to say anything: give it {FEW} or more, better 50"]
    value, low = found.kappa.value, found.kappa.low
    if value is None:
        return [f"kappa is {found.kappa.note}: add labels of other grades"]
    said = f"kappa {value:.2f}: {_band(value)}"
    if low is not None and _band(low) != _band(value):
        said += f"; its interval begins at {low:.2f}, which would be '{_band(low).split(':')[0]}'"
    return [
        said,
        *(["it gives every answer the same grade"] if found.pearson.note.endswith("grades are equal") else []),
    ]


def _of_width(found: Agreement) -> list[str]:
    low, high = found.kappa.low, found.kappa.high
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    if found.pairs < FEW:
        return []
    if half <= WIDE:
        few = (
            f"from {found.pairs} labels only: what it seldom gets wrong is not among them; {ENOUGH} or more are better"
        )
        return [few] if found.pairs < ENOUGH else []
    more = math.ceil(found.pairs * ((half / WIDE) ** 2 - 1))
    return [f"the interval of kappa is wide: about {more} more labels would bring it to +-{WIDE:g}"]


def _of_bias(found: Agreement) -> list[str]:
    value, low, high = found.bias.value, found.bias.low, found.bias.high
    if value is None or low is None or high is None or abs(value) < 0.05 or low <= 0 <= high:
        return []
    return [f"it is {'kinder' if value > 0 else 'stricter'} than the labels by {abs(value):.2f} on 0 to 1"]


def _band(value: float) -> str:
    return next((words for least, words in BANDS if value >= least), BANDS[-1][1])
