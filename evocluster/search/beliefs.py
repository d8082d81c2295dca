"""What a genome is believed to be worth, from its own few examples and from genomes like it.

Means of few examples lie, so they are shrunk: not towards one number for all, but towards what similar genomes gave. A
Gaussian process over genomes says how alike two are (the same model, demos in common, ...): genes add up, they
interact, and every genome has something of its own. Observed are means over examples, freed of how hard those are
(a two-way additive model), with the noise that so few leave. The posterior mean is the shrunken value, the posterior
deviation says how far to trust it, and a genome that was never tried has both, too.

Gaussian processes with a kernel per variable, summed and multiplied: Rasmussen and Williams 2006, chapters 2 and 4;
shrinkage as empirical Bayes: Efron and Morris 1975.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Genome, Json, canonical
from evocluster.search.genes import is_number

Floats = NDArray[np.float64]
KEPT = 96
"""Genomes that beliefs rest on: members, and the latest of the others."""
ADDED, TOGETHER, OWN = 0.5, 0.3, 0.2
"""Shares of the variance between genomes: genes that add up, genes that act together, and what is only its own."""
NOISE = 0.2
"""Variance of one example's outcome given the genome, before there are data: that of a coin of 0.28 or 0.72."""
LEAST, MOST = 0.0025, 0.08
"""Bounds of the variance between genomes: deviations of 0.05 and 0.28."""
DIGITS = 8
"""Decimals of a belief."""
ROUNDS = 3
"""Of the two-way fit."""
EXACT = 2**53
"""Whole numbers below it are floats without loss."""


class Belief(NamedTuple):
    """Mean and standard deviation of what something is worth."""

    mean: float
    deviation: float


@dataclass(eq=False)
class Tried:
    """A genome and what is known of it. `outcomes`: mean quality by example, NaN where it was not tried."""

    genome: Genome
    outcomes: Floats
    extra: Floats
    """Means of further outcomes, such as the composite."""
    items: int


class Beliefs:
    """Call order: `learn` whenever a genome's evaluations grow, then `of` and `like` any genome."""

    def __init__(self, genes: Sequence[str], outcomes: int = 0) -> None:
        """`genes`: names of those that can differ; `outcomes`: how many means besides the quality."""
        self._genes = tuple(genes)
        self._values = [_Values() for _ in self._genes]
        self._extra = outcomes
        self._tried: dict[str, Tried] = {}
        self._alike = np.zeros((0, 0))
        self._order: list[str] = []
        self._fitted: _Fit | None = None

    def __len__(self) -> int:
        return len(self._tried)

    def learn(self, genome: Genome, by_example: NDArray[np.float32], extra: Sequence[float] = ()) -> None:
        """What is known of a genome now."""
        outcomes = np.asarray(by_example, dtype=np.float64)
        count = int((~np.isnan(outcomes)).sum())
        if not count:
            return
        means = np.nan_to_num(np.asarray(extra, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if genome.id not in self._tried:
            self._add(genome)
        self._tried[genome.id] = Tried(genome, outcomes, means, count)
        self._fitted = None

    def keep(self, members: Sequence[str]) -> None:
        """Forget the oldest beyond `KEPT`, members last."""
        surplus = len(self._order) - KEPT
        if surplus <= 0:
            return
        known = frozenset(members)
        gone = [id for id in self._order if id not in known][:surplus]
        stay = [i for i, id in enumerate(self._order) if id not in gone]
        self._alike = self._alike[np.ix_(stay, stay)]
        for values in self._values:
            values.keep(stay)
        self._order = [self._order[i] for i in stay]
        self._tried = {id: self._tried[id] for id in self._order}
        self._fitted = None

    def _add(self, genome: Genome) -> None:
        row = self._row(genome)
        size = len(self._order)
        grown = np.ones((size + 1, size + 1))
        grown[:size, :size] = self._alike
        grown[size, :size] = grown[:size, size] = row
        self._alike = grown
        self._order.append(genome.id)
        for gene, values in zip(self._genes, self._values, strict=True):
            values.add(genome.genes.get(gene))

    def _row(self, genome: Genome) -> Floats:
        """How alike a genome is to all that were tried, before what is only its own."""
        if not self._order or not self._genes:
            return np.ones(len(self._order))
        table = np.empty((len(self._order), len(self._genes)))
        for at, (gene, values) in enumerate(zip(self._genes, self._values, strict=True)):
            table[:, at] = values.column(genome.genes.get(gene))
        return np.asarray((ADDED * table.mean(axis=1) + TOGETHER * table.prod(axis=1)) / (ADDED + TOGETHER))

    def of(self, genome: Genome) -> tuple[Belief, ...]:
        """Quality, then the further outcomes, of a genome, tried or not."""
        fit = self._fit()
        if fit is None:
            return (Belief(0.5, 0.5),) * (1 + self._extra)
        if genome.id in self._tried:
            return fit.tried(genome.id)
        return fit.believed((ADDED + TOGETHER) * self._row(genome))

    def _fit(self) -> _Fit | None:
        if self._fitted is None and self._tried:
            kernel = (ADDED + TOGETHER) * self._alike + OWN * np.eye(len(self._order))
            self._fitted = _Fit(kernel, [self._tried[id] for id in self._order])
        return self._fitted


class _Fit:
    """The posterior of everything that was tried."""

    def __init__(self, kernel: Floats, tried: Sequence[Tried]) -> None:
        self._kernel = kernel
        self._places = {one.genome.id: place for place, one in enumerate(tried)}
        table = np.concatenate([one.outcomes for one in tried]).reshape(len(tried), -1)
        values, noise = adjusted(table)
        counts = np.array([one.items for one in tried], dtype=np.float64)
        seen = np.column_stack([values, *np.array([one.extra for one in tried]).T])
        self._centre = np.average(seen, axis=0, weights=np.minimum(counts, 8.0))
        spread = np.average((values - self._centre[0]) ** 2, weights=counts) - noise * len(counts) / counts.sum()
        self._scale = float(np.clip(spread, LEAST, MOST))
        matrix = self._scale * kernel + np.diag(noise / counts)
        self._inverse = np.linalg.inv(matrix)
        self._weights = self._inverse @ (seen - self._centre)

    def tried(self, id: str) -> tuple[Belief, ...]:
        """Of one that was tried, by its genome id."""
        means, deviations = self._known
        place = self._places[id]
        return _rounded(means[place].tolist(), float(deviations[place]))

    def believed(self, cross: Floats) -> tuple[Belief, ...]:
        """By the covariances (in shares) with all that were tried."""
        means, deviations = self._posterior(cross[None])
        return _rounded(means[0].tolist(), float(deviations[0]))

    @cached_property
    def _known(self) -> tuple[Floats, Floats]:
        return self._posterior(self._kernel)

    def _posterior(self, cross: Floats) -> tuple[Floats, Floats]:
        """Means and deviations, a row a genome."""
        cross = self._scale * cross
        means = self._centre + cross @ self._weights
        left = np.maximum(self._scale - ((cross @ self._inverse) * cross).sum(axis=1), 1e-6)
        return means, np.sqrt(left)


def _rounded(means: Sequence[float], deviation: float) -> tuple[Belief, ...]:
    # The last bits differ between kinds of CPU, and a run may be resumed on another one.
    deviation = round(deviation, DIGITS)
    return tuple(Belief(round(mean, DIGITS), deviation) for mean in means)


class _Values:
    """The values of one gene in everything that was tried: few of them differ, so each pair is compared once."""

    def __init__(self) -> None:
        self._known: list[Json] = []
        """Those that differ."""
        self._numbers = np.zeros(0)
        """The same where all are numbers."""
        self._parts: list[tuple[frozenset[object], int]] = []
        """What they have in them, and how many, where all are sequences that have something."""
        self._places: dict[tuple[type, Json], int] = {}
        """Type and value -> its place among them."""
        self._alike = np.ones((0, 0))
        """How alike each is to each."""
        self._at = np.zeros(0, dtype=np.int64)
        """The place of the value of each that was tried, in their order."""

    def column(self, value: Json) -> Floats:
        """How alike a value is to that of each that was tried."""
        place = self._places.get(_key(value))
        row = self._compared(value) if place is None else self._alike[place]
        return row[self._at]

    def add(self, value: Json) -> None:
        """One more was tried."""
        count = len(self._known)
        place = self._places.setdefault(_key(value), count)
        if place == count:
            grown = np.ones((count + 1, count + 1))
            grown[:count, :count] = self._alike
            grown[count, :count] = grown[:count, count] = self._compared(value)
            self._alike = grown
            self._known.append(value)
            self._note([value])
        self._at = np.append(self._at, place)

    def keep(self, stay: Sequence[int]) -> None:
        """Forget all but these of what was tried."""
        used, self._at = np.unique(self._at[stay], return_inverse=True)
        self._alike = self._alike[np.ix_(used, used)]
        self._known = [self._known[int(old)] for old in used]
        self._numbers, self._parts = np.zeros(0), []
        self._note(self._known)
        self._places = {_key(value): place for place, value in enumerate(self._known)}

    def _note(self, come: Sequence[Json]) -> None:
        """Values that are known from now on, in a form that is compared fast."""
        before = len(self._known) - len(come)
        if before == len(self._numbers) and all(is_number(value) and abs(value) < EXACT for value in come):
            self._numbers = np.append(self._numbers, np.array(come, dtype=np.float64))
        if before == len(self._parts) and all(isinstance(value, list | tuple) and value for value in come):
            self._parts += [(_members(value), len(value)) for value in come]

    def _compared(self, value: Json) -> Floats:
        """How alike a value is to each that is known; see `alike`."""
        count = len(self._known)
        if count == len(self._numbers) and is_number(value) and abs(value) < EXACT:
            return np.asarray(_distance(float(value), self._numbers))
        if count == len(self._parts) and isinstance(value, list | tuple) and value:
            own = _members(value), len(value)
            return np.array([_shared(*own, *other) for other in self._parts], dtype=np.float64)
        return np.array([alike(value, other) for other in self._known], dtype=np.float64)


def _key(value: Json) -> tuple[type, Json]:
    """What a value is known by; equal ones of one type are as alike to any other."""
    try:
        hash(value)
    except TypeError:  # it holds a mapping, which has no hash
        return type(value), canonical(value)
    return type(value), value


def adjusted(table: Floats) -> tuple[Floats, float]:
    """Means of the rows freed of how hard their examples are, and the variance of one outcome that is left.

    `table`: [genome, example], NaN where not tried. An additive fit, example effects shrunk by one observation.
    """
    seen = ~np.isnan(table)
    filled, there = np.where(seen, table, 0.0), seen.astype(np.float64)
    rows, columns = there.sum(axis=1), there.sum(axis=0)
    each, shrunk = np.maximum(rows, 1), columns + 1
    genomes = filled.sum(axis=1) / each
    hard = np.zeros(table.shape[1])
    # Products with `there` in place of np.where: several times as fast where what was tried lies scattered.
    left = np.empty_like(filled)
    for _ in range(ROUNDS):
        np.multiply(np.subtract(filled, genomes[:, None], out=left), there, out=left)
        hard = left.sum(axis=0) / shrunk
        hard -= (hard * columns).sum() / max(columns.sum(), 1)
        np.multiply(np.subtract(filled, hard, out=left), there, out=left)
        genomes = left.sum(axis=1) / each
    np.subtract(filled, genomes[:, None], out=left)
    np.multiply(np.subtract(left, hard, out=left), there, out=left)
    degrees = max(1, int(rows.sum()) - len(table) - int((columns > 0).sum()))
    # As if ten outcomes of the usual noise had been seen before.
    return genomes, float(((left**2).sum() + 10 * NOISE) / (degrees + 10))


def alike(one: Json, other: Json) -> float:
    """How alike two values of one gene are, 0 to 1; 1 where they are equal."""
    if one == other:
        return 1.0
    if is_number(one) and is_number(other):
        return float(_distance(one, other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return _overlap(one, other)
    if isinstance(one, str) and isinstance(other, str) and " " in one and " " in other:
        return _overlap(one.split(), other.split())
    return 0.0


def _distance(one: Any, other: Any) -> Any:
    """Of numbers, by the sum of their sizes; 1 where they are equal, exp(-2) where one is nothing or of other sign."""
    return np.exp(-2 * abs(one - other) / (abs(one) + abs(other) + 1e-9))


def _overlap(one: Sequence[Json], other: Sequence[Json]) -> float:
    """Half for being about as many, half for having the same."""
    if not one or not other:
        return 0.0
    return _shared(_members(one), len(one), _members(other), len(other))


def _members(values: Sequence[Json]) -> frozenset[object]:
    try:
        return frozenset(values)
    except TypeError:  # see `_key`
        return frozenset(map(canonical, values))


def _shared(first: frozenset[object], count: int, second: frozenset[object], size: int) -> float:
    both = len(first & second)
    alike_in_size = min(count, size) / max(count, size)
    return 0.5 * alike_in_size + 0.5 * both / (len(first) + len(second) - both)
