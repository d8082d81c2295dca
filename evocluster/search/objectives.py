"""What is good: objectives, the composite score, and the tally of one genome's evaluations they are computed
from.

An objective is a source (what is measured in one evaluation) and an aggregate over evaluations. Quality and
the scores of single scorers count the examples as given; latency, cost, tokens, robustness and the composite
count the robustness twins too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from evocluster.parts import Part
from evocluster.records import Evaluation, Json, Record
from evocluster.search.across import Tasks
from evocluster.search.space import nearest

Floats = NDArray[np.float64]

BUILT_IN = ("quality", "latency_ms", "cost_usd", "robustness", "tokens", "composite")
SHORT: Mapping[str, str] = {"latency": "latency_ms", "cost": "cost_usd"}
DOWN = ("latency_ms", "cost_usd", "tokens")
"""Sources that are better when lower."""
RESAMPLES = 1000


class Objective(Part):
    """One thing to optimise.

    YAML: `quality`, `latency: p95`, or all fields: {name, direction, source, aggregate}.
    """

    name: str
    """Under which it is reported; the source where nothing else is said."""
    source: str
    """quality, latency_ms, cost_usd, robustness, tokens, composite, or scores.SCORER."""
    direction: Literal["max", "min"]
    aggregate: Literal["mean", "p95"] = "mean"
    threshold: float = Field(default=0.9, ge=0, le=1)
    """Robustness only: what the validator must reach."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Json) -> Json:
        if isinstance(given, str):
            given = {"source": given}
        if not isinstance(given, Mapping):
            return given
        known = cls.model_fields
        if len(given) == 1 and (key := next(iter(given))) not in known:
            given = {"source": key, "aggregate": given[key]}
        full = dict(given)
        source = full.get("source", full.get("name"))
        if isinstance(source, str):
            source = SHORT.get(source, source)
            full["source"] = source
            full.setdefault("name", source)
            full.setdefault("direction", "min" if source in DOWN else "max")
        return full

    @classmethod
    def in_editors(cls, made: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema with the short forms too: a source, or {source: aggregate}."""
        whole = {name: made.pop(name) for name in ("type", "properties", "additionalProperties")}
        aggregates = whole["properties"]["aggregate"]["enum"]
        sources = "|".join((*BUILT_IN, *SHORT, r"scores\..+"))
        short = {"patternProperties": {f"^({sources})$": {"enum": aggregates}}, "minProperties": 1, "maxProperties": 1}
        made.pop("required")
        made["anyOf"] = [
            {"enum": [*BUILT_IN, *SHORT]},
            {"type": "string", "pattern": r"^scores\..+"},
            {**whole, "minProperties": 1},
            {"type": "object", **short, "additionalProperties": False},
        ]
        return made

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source in BUILT_IN or (source.startswith("scores.") and len(source) > len("scores.")):
            return source
        raise ValueError(
            f"got {source!r}; allowed: {', '.join(BUILT_IN)}, or scores.SCORER for one scorer's value"
            f"{nearest(source, BUILT_IN)}"
        )

    @property
    def scorer(self) -> str | None:
        """The scorer it reads, where it reads one."""
        return self.source.removeprefix("scores.") if self.source.startswith("scores.") else None

    @property
    def sign(self) -> float:
        """What turns a value into one to minimise."""
        return -1.0 if self.direction == "max" else 1.0

    def ideal(self) -> float:
        """The best value there could be: 1 upward, 0 downward.

        No more than a first guess for what has another scale: tokens upward, scorers of weight 0.
        """
        return 1.0 if self.direction == "max" else 0.0


def built_in(source: str) -> Objective:
    """The objective of a built-in source with its defaults."""
    return Objective.model_validate(source)


FOUR = tuple(built_in(name) for name in BUILT_IN[:4])
"""The objectives of a config that names none."""


class Composite(Part):
    """The one number that ranks and recommends: right and clean counts 1, minus what it took, never below 0.

    Per evaluation: 1 when the schema holds, nothing was flagged, the validator and the accuracy reach their
    thresholds, else 0; minus the weights; floored at 0. A genome's composite is the mean over its
    evaluations.
    """

    validator: float = Field(default=0.9, ge=0, le=1)
    """Threshold of the validator's score."""
    accuracy: float = Field(default=0.85, ge=0, le=1)
    """Threshold of the quality."""
    per_ms: float = Field(default=0.001, ge=0)
    """Taken off for each millisecond of one evaluation."""
    per_token: float = Field(default=0.0005, ge=0)
    """Taken off for each token of one evaluation."""
    per_repair: float = Field(default=0.2, ge=0)
    """Taken off for each time an answer had to be asked for again."""
    usd_weight: float = Field(default=1.0, ge=0)
    """Taken off for each US dollar of one evaluation."""

    def score(self, evaluation: Evaluation) -> float:
        """The composite of one evaluation, 0 to 1."""
        return float(self.scores(_rows([evaluation], {})[0])[0])

    def scores(self, rows: Floats) -> Floats:
        """The composite of each row of a tally."""
        right = (rows[:, CLEAN] > 0) & (rows[:, VALIDATOR] >= self.validator) & (rows[:, QUALITY] >= self.accuracy)
        took = self.per_ms * rows[:, LATENCY] + self.per_token * rows[:, TOKENS]
        took = took + self.per_repair * rows[:, REPAIRS] + self.usd_weight * rows[:, USD]
        return np.maximum(right - took, 0.0)


class Interval(Record):
    """An estimate and the interval it lies in."""

    value: float
    low: float
    high: float


EXAMPLE, TWIN, QUALITY, VALIDATOR, LATENCY, USD, TOKENS, REPAIRS, CLEAN, MEASURED = range(10)
COLUMNS = 10
"""Of a tally's rows; CLEAN: no error, schema held, nothing flagged; MEASURED: a call succeeded, or none was
needed.
"""


def _rows(evaluations: Sequence[Evaluation], index: dict[str, int]) -> tuple[Floats, NDArray[np.int64]]:
    """A row and an integer key of each evaluation's item; new examples are added to `index`."""
    rows = np.zeros((len(evaluations), COLUMNS))
    keys = np.zeros(len(evaluations), dtype=np.int64)
    for row, (at, done) in zip(rows, enumerate(evaluations), strict=True):
        item, usage = done.item, done.usage
        example = index.setdefault(item.example, len(index))
        failed = done.error is not None
        row[EXAMPLE], row[TWIN] = example, item.twin
        row[QUALITY] = 0.0 if failed else done.quality
        row[VALIDATOR] = 0.0 if failed else done.validator
        # Rounded so that a value that went through a file in other units is still the same value.
        row[LATENCY], row[USD] = round(usage.seconds * 1000.0, 6), usage.usd
        row[TOKENS] = usage.prompt_tokens + usage.completion_tokens
        row[REPAIRS] = done.repairs
        row[CLEAN] = not failed and done.schema_ok and not done.flags
        row[MEASURED] = not failed or usage.calls > 0
        keys[at] = (example << 32) | (item.twin << 16) | item.replicate
    return rows, keys


class Tally:
    """All evaluations of one genome on one split, as numbers only. Adding the same item twice counts once."""

    def __init__(
        self,
        composite: Composite,
        scorers: Sequence[str] = (),
        index: dict[str, int] | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        """`scorers`: whose values to keep; `index`: example id -> number, shared within a split; `tasks`: where there
        are several.
        """
        self._tasks = tasks
        self._composite = composite
        self._scorers = tuple(scorers)
        self._index: dict[str, int] = {} if index is None else index
        self._keys = np.zeros(0, dtype=np.int64)
        self._rows: Floats = np.zeros((0, COLUMNS + len(self._scorers)))
        self._values: dict[tuple[str, str, str, float], float] = {}
        """What was asked for since something was added."""

    @property
    def items(self) -> int:
        """How many items were evaluated."""
        return len(self._keys)

    def add(self, evaluations: Sequence[Evaluation]) -> int:
        """Count these evaluations; returns how many were new. A failed one has quality 0."""
        rows, keys = _rows(evaluations, self._index)
        _, first = np.unique(keys, return_index=True)
        new = np.zeros(len(keys), dtype=bool)
        new[first] = True
        new &= ~np.isin(keys, self._keys)
        extra = np.array([[_score(done, name) for name in self._scorers] for done in evaluations])
        wide = np.hstack([rows, extra.reshape(len(rows), len(self._scorers))])
        self._keys = np.concatenate([self._keys, keys[new]])
        self._rows = np.concatenate([self._rows, wide[new]])
        self._values = {}
        return int(new.sum())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks where there are several."""
        return self._tasks.names if self._tasks is not None else ()

    def part(self, task: str) -> Tally:
        """What belongs to one of several tasks."""
        if self._tasks is None or task not in self._tasks.names:
            return Tally(self._composite, self._scorers, self._index)
        own = self._tasks.of[self._rows[:, EXAMPLE].astype(np.int64)] == self._tasks.names.index(task)
        part = self._kept(own)
        part._tasks = None
        return part

    def _kept(self, rows: NDArray[Any]) -> Tally:
        """Some of its rows: a mask, or places in their new order."""
        part = Tally(self._composite, self._scorers, self._index, self._tasks)
        part._keys, part._rows = self._keys[rows], self._rows[rows]
        return part

    def within(self, examples: NDArray[np.int64]) -> Tally:
        """What it has of these example numbers."""
        return self._kept(np.isin(self._rows[:, EXAMPLE].astype(np.int64), examples))

    def joined(self, other: Tally) -> Tally:
        """Both as if of one genome, on examples that they do not share."""
        both = self._kept(np.ones(len(self._keys), dtype=bool))
        both._keys = np.concatenate([self._keys, other._keys])
        both._rows = np.concatenate([self._rows, other._rows])
        return both

    @property
    def examples(self) -> NDArray[np.int64]:
        """Numbers of the examples it has, sorted."""
        return np.unique(self._rows[:, EXAMPLE].astype(np.int64))

    @property
    def once(self) -> int:
        """How many items were evaluated, further replicates of an item not counted."""
        return len(np.unique(self._keys >> 16))

    def sums(self, objective: Objective) -> tuple[Floats, Floats]:
        """Per example of the split: the objective's values added up, and how many they are."""
        values, examples = self._series(objective)
        at, count = examples.astype(np.int64), len(self._index)
        added = np.bincount(at, values, minlength=count).astype(np.float64)
        return added, np.bincount(at, minlength=count).astype(np.float64)

    def by_example(self, count: int) -> Floats:
        """Mean quality on each of the first `count` examples as given; NaN where there is none."""
        given = self._rows[self._rows[:, TWIN] == 0]
        return _by_example(given[:, QUALITY], given[:, EXAMPLE], count)

    def outcomes(self, objective: Objective, count: int) -> Floats:
        """The mean of what an objective aggregates on each of the first `count` examples; NaN where there is none."""
        return _by_example(*self._series(objective), count)

    def noise(self, objective: Objective) -> float:
        """The standard error of the mean; 0 where there are not two values."""
        values, examples = self._series(objective)
        if self._tasks is None:
            return _deviation(values)
        errors = np.array([_deviation(values[own]) for own in self._tasks.split(examples)])
        return float(np.sqrt(np.square(errors).sum()) / max(1, len(errors)))

    def _series(self, objective: Objective) -> tuple[Floats, Floats]:
        """The values an objective aggregates, and the example of each."""
        rows, source = self._rows, objective.source
        if source == "composite":
            return self._composite.scores(rows), rows[:, EXAMPLE]
        if source == "robustness":
            passed = (rows[:, CLEAN] > 0) & (rows[:, REPAIRS] == 0) & (rows[:, VALIDATOR] >= objective.threshold)
            return passed.astype(np.float64), rows[:, EXAMPLE]
        column = {"latency_ms": LATENCY, "cost_usd": USD, "tokens": TOKENS}.get(source)
        if column is not None:
            kept = rows[rows[:, MEASURED] > 0]
            return kept[:, column], kept[:, EXAMPLE]
        kept = rows[rows[:, TWIN] == 0]
        if objective.scorer is None:
            return kept[:, QUALITY], kept[:, EXAMPLE]
        column = COLUMNS + self._scorers.index(objective.scorer)
        kept = kept[~np.isnan(kept[:, column])]
        failed = np.isinf(kept[:, column])
        if objective.direction == "min":
            # A failure is no small amount of anything.
            return kept[~failed, column], kept[~failed, EXAMPLE]
        # It counts 0, or like the worst there was where a scorer goes below that.
        worst = kept[~failed, column].min(initial=0.0)
        return np.where(failed, worst, kept[:, column]), kept[:, EXAMPLE]

    def both(self, other: Tally) -> tuple[Tally, Tally]:
        """The two on the items that both have, in one order."""
        _, mine, theirs = np.intersect1d(self._keys, other._keys, assume_unique=True, return_indices=True)
        return self._kept(mine), other._kept(theirs)

    def differences(self, other: Tally, objective: Objective) -> list[Floats]:
        """This one's means less the other's, example by example, where both have `both` each other's items.

        With several tasks: weighted so that every task counts alike; a series per task where the worst counts.
        """
        (own, at), (others, where) = self._series(objective), other._series(objective)
        if np.array_equal(at, where):  # nearly always, since both have the same items
            both, firsts = np.unique(at, return_inverse=True)
            times = np.bincount(firsts)
            gaps = np.bincount(firsts, own) / times - np.bincount(firsts, others) / times if len(own) else own
            return self._weighted(both, gaps)
        examples, firsts = np.unique(at, return_inverse=True)
        known, seconds = np.unique(where, return_inverse=True)
        both = np.intersect1d(examples, known)
        own_means = np.bincount(firsts, own) / np.bincount(firsts) if len(own) else own
        other_means = np.bincount(seconds, others) / np.bincount(seconds) if len(others) else others
        gaps = own_means[np.isin(examples, both)] - other_means[np.isin(known, both)]
        return self._weighted(both, gaps)

    def _weighted(self, both: Floats, gaps: Floats) -> list[Floats]:
        """Gaps on these examples, as the tasks have it."""
        if self._tasks is None:
            return [gaps]
        masks = self._tasks.split(both)
        if self._tasks.how == "worst":
            return [gaps[mask] for mask in masks]
        return [sum((mask * (len(both) / len(masks) / mask.sum()) for mask in masks), np.zeros(len(both))) * gaps]

    def value(self, objective: Objective) -> float:
        """Its value; the worst there is (-inf upward, inf downward) where nothing was measured."""
        key = (objective.source, objective.aggregate, objective.direction, objective.threshold)
        if key not in self._values:
            self._values[key] = self._value(objective)
        return self._values[key]

    def _value(self, objective: Objective) -> float:
        values, examples = self._series(objective)
        if not len(values):
            return objective.sign * np.inf
        if self._tasks is None:
            return _aggregate(values, objective)
        parts = [_aggregate(values[own], objective) for own in self._tasks.split(examples)]
        return float(self._tasks.join(parts, objective.direction))

    def lower(self, objective: Objective) -> float:
        """A careful estimate: the mean minus (for `min`, plus) one standard error, wider when little was
        seen.
        """
        values, examples = self._series(objective)
        if not len(values):
            return objective.sign * np.inf
        if self._tasks is None:
            return float(self.value(objective) + objective.sign * _error(values))
        owned = self._tasks.split(examples)
        errors = [_error(values[own]) for own in owned]
        if self._tasks.how == "worst":
            careful = [_aggregate(values[own], objective) + objective.sign * _error(values[own]) for own in owned]
            return float(self._tasks.join(careful, objective.direction))
        return float(self.value(objective) + objective.sign * np.sqrt(np.square(errors).sum()) / len(errors))

    def resampled(self, objective: Objective, rng: np.random.Generator) -> Floats:
        """The value over each of `RESAMPLES` resamples of whole examples; for tallies of the same examples, the same
        generator draws the same.
        """
        values, examples = self._series(objective)
        if self._tasks is None:
            return _resampled(values, examples, objective, rng)
        parts = [_resampled(values[own], examples[own], objective, rng) for own in self._tasks.split(examples)]
        return self._tasks.join(parts, objective.direction)

    def interval(self, objective: Objective, rng: np.random.Generator, level: float = 0.95) -> Interval:
        """The value and its interval: Wilson's where every value is 0 or 1 and nothing was replicated, else a bootstrap
        of whole examples.

        Wilson 1927, with examples (not evaluations, which are alike within one) as the sample size; the
        bootstrap draws examples with replacement, `RESAMPLES` times, so twins and replicates stay together, and
        with several tasks within each of them.
        """
        values, examples = self._series(objective)
        value = self.value(objective)
        if not len(values):
            return Interval(value=value, low=value, high=value)
        plain = self._tasks is None and objective.aggregate == "mean" and self.once == self.items
        if plain and bool(np.isin(values, (0.0, 1.0)).all()):
            low, high = wilson(float(values.mean()), len(np.unique(examples)), level)
        else:
            low, high = _middle(self.resampled(objective, rng), level)
        # Summing in another order may put the ends a rounding error beyond the value.
        return Interval(value=value, low=min(low, value), high=max(high, value))


def _score(done: Evaluation, scorer: str) -> float:
    """A scorer's value: infinite for a failed evaluation, NaN where the task has no such scorer."""
    if done.error is not None:
        return float("inf")
    if scorer not in done.scores:
        return float("nan")
    score = done.scores[scorer]
    return float(score["value"] if isinstance(score, Mapping) else score.value)


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n (Wilson 1927)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _by_example(values: Floats, examples: Floats, count: int) -> Floats:
    """The mean of the values of each example; NaN where there is none."""
    at = examples.astype(np.int64)
    sums = np.bincount(at, values, minlength=count)[:count]
    seen = np.bincount(at, minlength=count)[:count]
    return np.where(seen > 0, sums / np.maximum(seen, 1), np.nan)


def _deviation(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _aggregate(values: Floats, objective: Objective) -> float:
    if objective.aggregate == "p95":
        return float(np.quantile(values, 0.95, method="inverted_cdf"))
    return float(values.mean())


def _error(values: Floats) -> float:
    """The standard error of a mean, a quarter of variance added as if one more example had been seen."""
    n = len(values)
    return float(np.sqrt((values.var() * n + 0.25) / (n + 1) / n))


def _resampled(values: Floats, examples: Floats, objective: Objective, rng: np.random.Generator) -> Floats:
    """The aggregate over each of `RESAMPLES` resamples of whole examples."""
    _, cluster = np.unique(examples, return_inverse=True)
    count = int(cluster.max()) + 1
    times = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    if objective.aggregate == "p95":
        by_value = np.argsort(values, kind="stable")
        weight = np.cumsum(times[:, cluster[by_value]], axis=1)
        return np.asarray(values[by_value][np.argmax(weight >= 0.95 * weight[:, -1:] - 1e-9, axis=1)])
    sums, sizes = np.bincount(cluster, values), np.bincount(cluster)
    return np.asarray((times @ sums) / (times @ sizes))


def _middle(drawn: Floats, level: float) -> tuple[float, float]:
    """The percentile interval."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return float(low), float(high)
