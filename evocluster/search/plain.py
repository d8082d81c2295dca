"""What the race is compared with: plain NSGA-II, and random search. Everybody is tried on everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from evocluster.records import Proposal, Trial
from evocluster.search.ground import Ground
from evocluster.search.hints import collect
from evocluster.search.population import Individual


class Plain:
    """A strategy of `ground.Strategy`: generational NSGA-II (Deb et al. 2002), or random search."""

    def __init__(self, ground: Ground, random: bool = False) -> None:
        """`ground.seeds` and `ground.blocks` hold all of train in one block."""
        self._ground = ground
        self._random = random
        self._seeds = len(ground.seeds)
        self._counted = 0
        self._offspring: list[Individual] = []

    def barrier(self, number: int) -> int:
        """All of the generation before."""
        if self._random or number < self._seeds:
            return 0
        size = self._ground.settings.population
        return self._seeds + (number - self._seeds) // size * size

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """A seed, then children of tournaments, or random genomes."""
        ground = self._ground
        if ground.seeds:
            return ground.seeds[0]
        if not len(ground.population) or not ground.space.free or ground.stopping.worn:
            return None
        names = ["seed"] if self._random else sorted(name for name in ground.operators if name != "seed") or ["seed"]
        operator = ground.operators[names[int(rng.integers(len(names)))]]
        parents = [ground.population.tournament(rng) for _ in range(operator.arity)]
        hints = collect(ground, operator, parents, rng)
        return ground.propose(number, "search", operator.name, parents, ground.blocks[0], rng, hints)

    def handed(self, proposal: Proposal) -> None:
        """A seed is gone."""
        if proposal.purpose == "seed":
            self._ground.seeds.popleft()

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Parents and children compete when the generation is whole; at random, at once."""
        ground = self._ground
        self._counted += 1
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            ground.stopping.missed(trial.error)
        else:
            ground.stopping.made()
            known = ground.known(trial.genome.id)
            one = known or ground.born(proposal, trial, trial.genome)
            ground.learn(one, trial)
            self._offspring.append(one)
            if proposal.purpose == "search":
                ground.stopping.repeated(known is not None)
        child = proposal.purpose == "search"
        ground.children += child
        if child:
            ground.credit.count(proposal.operator, trial.error is None, trial.total.calls)
        whole = self._counted == self._seeds or (child and ground.children % ground.settings.population == 0)
        if whole or self._random:
            self.finish()
        if self._counted == self._seeds:
            ground.population.refer()
        if whole:
            ground.stopping.hypervolume.append(ground.population.hypervolume())

    def finish(self) -> None:
        """Those who wait are taken into the population."""
        self._ground.population.extend(self._offspring)
        self._offspring = []

    def told(self) -> dict[str, Any]:
        """Nothing more for progress."""
        return {}
