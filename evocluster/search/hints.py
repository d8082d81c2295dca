"""What an operator is told of the search so far: a function per hint, called where the child is planned.

Hints are part of the proposal, so they are JSON, small, and hold ids and outputs only; the worker looks up the texts
of the train examples that `cases` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Json
from evocluster.search import breed_hints
from evocluster.search.cases import DESCRIBED, RIGHT
from evocluster.search.ground import Ground
from evocluster.search.operators import Operator
from evocluster.search.population import Individual

FEW = 12
"""Examples that `failing` and `disputed` name at most."""
ASKED = 64
"""Members whose disagreement is looked at, at most."""


def failing(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> tuple[str, ...]:
    """Ids of scored train examples that the first parent does not get wholly right, the worst first; some of them."""
    quality = parents[0].by_example
    some = np.flatnonzero(quality < 1)
    return _first(ground, some, quality[some], rng)


def disputed(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> tuple[str, ...]:
    """Ids of scored train examples that members answer differently well, those with the highest variance first."""
    members = ground.population.members
    if len(members) > ASKED:
        members = [members[int(at)] for at in np.sort(rng.permutation(len(members))[:ASKED])]
    if not members:
        return ()
    table = np.stack([one.by_example for one in members]).astype(np.float64)
    seen = ~np.isnan(table)
    count = np.maximum(seen.sum(axis=0), 1)
    mean = np.where(seen, table, 0.0).sum(axis=0) / count
    variance = np.where(seen, (table - mean) ** 2, 0.0).sum(axis=0) / count
    some = np.flatnonzero(variance > 0)
    return _first(ground, some, -variance[some], rng)


def tabu(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """Rejected genomes near to the parents."""
    return ground.tabu.hint([one.genome for one in parents])


def _first(
    ground: Ground, some: NDArray[np.intp], by: NDArray[np.floating[Any]], rng: np.random.Generator
) -> tuple[str, ...]:
    """The ids of the examples with the lowest values; equals in random order."""
    shuffled = rng.permutation(len(some))
    chosen = shuffled[np.argsort(by[shuffled], kind="stable")][:FEW]
    return tuple(ground.ids[int(at)] for at in some[chosen])


Hint = Callable[[Ground, Sequence[Individual], np.random.Generator], Json]


def _cases(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    return tuple(one.told() for one in ground.focus.pick(parents[0].cases, rng))


def _counts(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """How many examples are right and how many fail, of the shown part and of the held one."""
    known = [(id, float(parents[0].by_example[at])) for id, at in ground.index.items() if len(parents[0].by_example)]
    told: dict[str, tuple[int, int]] = {}
    for part, held in (("shown", False), ("held", True)):
        values = [value for id, value in known if (id in ground.focus.held) is held and not isnan(value)]
        right = sum(value >= RIGHT for value in values)
        told[part] = (right, len(values) - right)
    return told


def _held(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    failing = [one for one in parents[0].cases.failing if one.example in ground.focus.held]
    return tuple(one.described() for one in failing[:DESCRIBED])


def _memory(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    return ground.memory.render()


def _preserve(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    return ground.focus.preserve


def _rejected(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    return ground.memory.rejected(parents[0].genome.id)


def _broken(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """The constraints that the first parent breaks and by what value, in words; empty where it keeps them."""
    return parents[0].limits.broken(parents[0].tally("train"))


HINTS: Mapping[str, Hint] = {
    "failing": failing,
    "disputed": disputed,
    "tabu": tabu,
    "cases": _cases,
    "counts": _counts,
    "held": _held,
    "memory": _memory,
    "preserve": _preserve,
    "rejected": _rejected,
    "broken": _broken,
    "mutation_prompt": breed_hints.mutation_prompt,
    "description": breed_hints.description,
    "ranked": breed_hints.ranked,
    "lineage": breed_hints.lineage,
    "right": breed_hints.right,
}
"""Name in `Operator.needs` -> what makes it of the ground, the parents and a generator."""
TOLD_AS: Mapping[str, str] = {"right": "cases"}
"""Hints told under another name than their own: cases, so that the worker adds their texts."""


def collect(
    ground: Ground, operator: Operator, parents: Sequence[Individual], rng: np.random.Generator
) -> dict[str, Json]:
    """The hints of one proposal. `avoid`: ids of genomes made lately, and of those barred."""
    told: dict[str, Json] = {"avoid": (*ground.recent, *ground.barred)}
    for name in operator.needs:
        told[TOLD_AS.get(name, name)] = HINTS[name](ground, parents, rng)
    return told
