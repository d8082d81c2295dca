"""Steady state: a child is tried on the first block and joins; promising members get more blocks by turns.

Kept as it was before there was a race: run folders of that time go on with it, and it is a mode to compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evocluster.records import Genome, Proposal, Trial
from evocluster.search.ground import Ground
from evocluster.search.hints import collect
from evocluster.search.operators import EVALUATE
from evocluster.search.population import Individual

LEAST_KNOWN = 0.25
"""Share of the extensions that go to the member with the fewest blocks."""


class Steady:
    """A strategy of `ground.Strategy`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._seeds = len(ground.seeds)
        self._counted = 0

    def barrier(self, number: int) -> int:
        """In generations: all of the one before."""
        ground = self._ground
        if ground.settings.mode == "steady" or ground.seeds:
            return 0
        size = ground.settings.population
        return self._seeds + (number - self._seeds) // size * size

    def finish(self) -> None:
        """Nothing is left."""

    def told(self) -> dict[str, Any]:
        """Nothing more for progress."""
        return {}

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """A seed, more of a member, or a child."""
        ground = self._ground
        if ground.seeds:
            return ground.seeds[0]
        if not len(ground.population):
            return None
        worn = not ground.space.free or ground.stopping.worn
        if ground.settings.extend and (worn or number % 2) and (one := self._allocate(rng)) is not None:
            block = min(set(range(len(ground.blocks))) - one.blocks)
            return ground.propose(number, "extend", EVALUATE, (one,), ground.blocks[block], rng)
        return None if worn else self._child(number, rng)

    def handed(self, proposal: Proposal) -> None:
        """Its block is asked for."""
        ground = self._ground
        if proposal.purpose == "seed":
            ground.seeds.popleft()
        if proposal.operator == EVALUATE and (one := ground.known(proposal.parents[0].id)) is not None:
            one.blocks.add(ground.block_of(proposal))

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial into the population and the accounts."""
        ground = self._ground
        self._counted += 1
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            ground.stopping.missed(trial.error)
            self._give_back(proposal)
            survived = False
        else:
            ground.stopping.made()
            survived = self._join(proposal, trial, trial.genome)
        child = proposal.purpose == "search"
        if child:
            ground.children += 1
            ground.credit.count(proposal.operator, survived)
        if self._counted == self._seeds:
            ground.population.refer()
        elif not child or ground.children % ground.settings.population:
            return
        ground.stopping.hypervolume.append(ground.population.hypervolume())

    def _join(self, proposal: Proposal, trial: Trial, genome: Genome) -> bool:
        """Count a trial's evaluations for its genome; True when it is new and survives."""
        ground = self._ground
        present = ground.population.get(genome.id)
        known = present or ground.starts.get(genome.id)
        if known is None and proposal.purpose == "extend":
            return False
        one = known or ground.born(proposal, trial, genome)
        one.blocks.add(ground.block_of(proposal))
        ground.learn(one, trial)
        if proposal.purpose == "search":
            ground.stopping.repeated(known is not None)
        if present is not None:
            ground.population.changed()
            return False
        return ground.population.insert(one) and known is None

    def _give_back(self, proposal: Proposal) -> None:
        """A block that came to nothing may be asked for again, unless the genome is barred."""
        ground = self._ground
        if ground.gone(proposal):
            return
        if proposal.operator == EVALUATE and (one := ground.known(proposal.parents[0].id)) is not None:
            one.blocks.discard(ground.block_of(proposal))

    def _allocate(self, rng: np.random.Generator) -> Individual | None:
        """Which member gets the next block, of the non-dominated that do not have them all; None when nobody
        is worth it.

        Sometimes the least known; else the most hopeful of those whose optimistic quality or composite still
        reaches the best careful one (as in Hoeffding races, Maron and Moore 1994): what is surely behind
        needs no exact numbers.
        """
        population = self._ground.population
        every = len(self._ground.blocks)
        partly = [one for one in population.front() if len(one.blocks) < every]
        if not partly:
            return None
        if rng.random() < LEAST_KNOWN:
            return min(partly, key=lambda one: (len(one.blocks), -one.careful[0], -one.careful[1]))
        best = np.max([one.careful for one in population.contenders()], axis=0)
        open_ = [one for one in partly if np.any(np.array(one.hopeful) >= best)]
        by = int(rng.integers(2))
        return max(open_, key=lambda one: one.hopeful[by], default=None)

    def _child(self, number: int, rng: np.random.Generator) -> Proposal:
        ground = self._ground
        name = "seed" if rng.random() < ground.settings.immigrants else ground.credit.draw(rng)
        operator = ground.operators[name]
        parents = ground.parents(operator.arity, rng)
        hints = collect(ground, operator, parents, rng)
        return ground.propose(number, "search", name, parents, ground.blocks[0], rng, hints)
