"""A search that makes no progress begins anew with half of its population: the best stay, the rest comes from afar.

Partial restarts keep what has been found and give the search other places to start from (compare Eshelman 1991, CHC,
which restarts from its best one). What is fresh covers the space evenly and lies as far as possible from what stays;
some of it is crossed with the front.

    due(history)                      every generation; then
    keep(population)                  ids of those that stay: `Population.retain` them
    fresh(space, known, rng, count)   genomes in place of the others
    began(history)                    the restart is carried out
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil

import numpy as np

from evocluster.records import Genome, canonical
from evocluster.search import nsga2
from evocluster.search.population import Individual, Population
from evocluster.search.seeding import NEAR, diverse
from evocluster.search.space import Space
from evocluster.search.stopping import PROGRESS

STAY = 0.5
"""Share of the population that stays at most; two always do."""
DRAWN, MORE = 4, 200
"""Genomes drawn for each that is wanted, at most so many more than wanted; those farthest from what stays are taken."""


class Restart:
    """When, who stays, and what comes. Its state is how many restarts there were, and when the last was."""

    def __init__(self, after: int | None) -> None:
        """`after`: generations without progress of the hypervolume; None: never."""
        self._after = after
        self._last = 0
        self.count = 0
        """Restarts carried out."""

    def due(self, history: Sequence[float]) -> bool:
        """`history`: the hypervolume after seeding and after every generation.

        True when the best of the last generations is no better than what was reached before, and as many have passed
        since the last restart.
        """
        k = self._after
        if k is None or len(history) - max(1, self._last) < k:
            return False
        return max(history[-k:]) <= max(history[:-k]) * (1 + PROGRESS)

    def began(self, history: Sequence[float]) -> None:
        """A restart is carried out now."""
        self._last = len(history)
        self.count += 1

    @staticmethod
    def keep(population: Population) -> list[str]:
        """Ids of the members that stay, the most important first.

        The elites, the best of every objective, then by rank and crowding.
        """
        members = population.members
        places, ranked = {one.genome.id: at for at, one in enumerate(members)}, population.ranked
        first = [places[one.genome.id] for one in (*population.elites(), *_extremes(population))]
        ordered = dict.fromkeys([*first, *map(int, nsga2.order(ranked.ranks, ranked.crowding))])
        stay = max(2, ceil(STAY * len(members)))
        return [members[at].genome.id for at in list(ordered)[:stay]]

    @staticmethod
    def fresh(
        space: Space, known: Collection[str], rng: np.random.Generator, count: int, near: Sequence[Genome] = ()
    ) -> list[Genome]:
        """`count` genomes whose ids are not `known` (fewer in a small space), far from each other and from `near`.

        `near`: what stays; every NEAR-th genome is crossed with one of it.
        """
        crossed = count // NEAR if near else 0
        afar = diverse(space, _drawn(count - crossed), {}, rng, known)
        chosen = _farthest(afar, near, count - crossed)
        taken = {*known, *(one.id for one in chosen)}
        partners = diverse(space, _drawn(crossed), {}, rng, taken)
        for at, partner in enumerate(partners):
            child = space.mix(near[at % len(near)], partner, rng)
            if len(chosen) < count and child.id not in taken:
                taken.add(child.id)
                chosen.append(child)
        return chosen + [one for one in afar if one.id not in taken][: count - len(chosen)]


def _extremes(population: Population) -> list[Individual]:
    """The best of every objective among the feasible, each once; the older of two that are as good."""
    members = population.contenders()
    if not members:
        return []
    best = nsga2.finite(np.array([one.values for one in members])).argmin(axis=0)
    return [members[int(at)] for at in dict.fromkeys(best.tolist())]


def _drawn(count: int) -> int:
    return min(DRAWN * count, count + MORE)


def _farthest(drawn: Sequence[Genome], stay: Sequence[Genome], count: int) -> list[Genome]:
    """`count` of the drawn, each time the one that differs in the most genes from the nearest of all that is there."""
    names = sorted(drawn[0].genes) if drawn else []
    texts = [[canonical(one.genes.get(name)) for one in (*stay, *drawn)] for name in names]
    table = np.array([np.unique(column, return_inverse=True)[1] for column in texts]).T
    away = np.full(len(drawn), np.inf)
    for row in table[: len(stay)]:
        away = np.minimum(away, (table[len(stay) :] != row).sum(axis=1))
    chosen: list[Genome] = []
    for _ in range(min(count, len(drawn))):
        at = int(np.argmax(away))
        chosen.append(drawn[at])
        away = np.minimum(away, (table[len(stay) :] != table[len(stay) + at]).sum(axis=1))
        away[at] = -1.0
    return chosen
