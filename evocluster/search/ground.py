"""What every strategy of the search stands on: who is known, the seeds, the blocks, and how a proposal is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from evocluster.records import Genome, Item, Proposal, Trial
from evocluster.search.across import Tasks
from evocluster.search.aim import Aim
from evocluster.search.believed import Believed
from evocluster.search.budget import Budget
from evocluster.search.cases import Focus
from evocluster.search.credit import Shares
from evocluster.search.memory import Memory
from evocluster.search.objectives import Objective
from evocluster.search.operators import EVALUATE, Operator
from evocluster.search.pedigree import Pedigree
from evocluster.search.population import Individual, Population
from evocluster.search.settings import Search
from evocluster.search.space import Space
from evocluster.search.stopping import Stopping
from evocluster.search.tabu import Tabu

Purpose = Literal["seed", "search", "extend", "validation", "test"]
Block = tuple[Item, ...]
AVOIDED = 128
"""How many recent genome ids a child is told to avoid."""


class Strategy(Protocol):
    """Decides what the search phase tries. Pure: the same trials and generators give the same questions.

    Call order: `draft`, then `handed` when the proposal goes out; `count` a trial when it is committed, in order.
    """

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """What to try next by what is committed; None: nothing, until more is."""
        ...

    def handed(self, proposal: Proposal) -> None:
        """A draft goes out."""
        ...

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a committed trial into account."""
        ...

    def barrier(self, number: int) -> int:
        """How many trials have to be committed before question `number`; 0: as the lookahead allows."""
        ...

    def finish(self) -> None:
        """The search phase is over and everything is committed."""
        ...

    def told(self) -> dict[str, Any]:
        """What `progress` tells besides the usual, as JSON values."""
        ...


@dataclass
class Ground:
    """The state of a search that does not depend on its strategy."""

    space: Space
    settings: Search
    objectives: tuple[Objective, ...]
    seed: int
    blocks: Sequence[Block]
    """Of train."""
    index: Mapping[str, int]
    """Id of a train example -> its number, which is its place in `Individual.by_example`."""
    make: Callable[[Genome, str, int, tuple[str, ...]], Individual]
    """An individual of: genome, operator, generation, ids of its parents."""
    operators: Mapping[str, Operator]
    credit: Shares
    stopping: Stopping
    population: Population
    starts: dict[str, Individual]
    seeds: deque[Proposal]
    pedigree: Pedigree = field(default_factory=Pedigree)
    children: int = 0
    """Proposals for children that are committed."""
    restarts: int = 0
    """How often part of the population was replaced (see restart.py)."""
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=AVOIDED))
    """Ids of the genomes that were made last."""
    budget: Budget = field(default_factory=Budget)
    kept: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
    """Calls and US dollars of the budget that the check after the search will take, as far as is known."""
    halfway: bool = False
    """Half of the time for the search is over."""
    memory: Memory = field(default_factory=Memory)
    """Of what was tried and what came of it, for whoever rewrites."""
    focus: Focus = field(default_factory=Focus)
    """What reflection is shown."""
    tasks: Tasks | None = None
    """Of the train examples, where there are several."""
    aim: Aim | None = None
    """What the rule asks for, where it is more than the best quality or composite."""
    believed: Believed | None = None
    """Set by a strategy whose members are worth what is believed of them."""
    barred: dict[str, None] = field(default_factory=dict)
    """Ids of genomes that nobody carries out any more, because they end the processes that do (see `bar`)."""
    tabu: Tabu = field(default_factory=Tabu)
    """What was rejected; `selection: steady` rejects nothing for good."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the train examples, in the order of `Individual.by_example`."""
        return tuple(self.index)

    @property
    def generation(self) -> int:
        """Populations' worth of children committed so far."""
        return self.children // self.settings.population

    def known(self, id: str) -> Individual | None:
        """A member or a start."""
        return self.population.get(id) or self.starts.get(id)

    def block_of(self, proposal: Proposal) -> int:
        """Which block of train a proposal evaluates."""
        return self.blocks.index(proposal.items)

    def bar(self, trial: Trial) -> None:
        """Let the genome of a trial go for good, if that is quarantined."""
        id = trial.quarantined
        if id is None:
            return
        self.barred[id] = None
        if self.population.get(id) is not None:
            self.population.retain({one.genome.id for one in self.population.members} - {id})

    def gone(self, proposal: Proposal) -> bool:
        """Whether what it evaluates is barred."""
        return proposal.operator == EVALUATE and proposal.parents[0].id in self.barred

    def born(self, proposal: Proposal, trial: Trial, genome: Genome) -> Individual:
        """The individual of a genome that a trial has made."""
        given = proposal.operator == EVALUATE
        parents = () if given else tuple(parent.id for parent in proposal.parents)
        self.recent.append(genome.id)
        one = self.make(genome, "warm" if given else proposal.operator, proposal.generation, parents)
        one.notes = {**self.pedigree.inherited(parents), **trial.notes}
        return one

    def learn(self, one: Individual, trial: Trial) -> None:
        """Count a trial's evaluations for its genome; where there are beliefs, everybody is worth what is believed
        since.
        """
        one.learn(trial.evaluations, self.objectives, len(self.index))
        if self.believed is not None:
            self.believed.learn(one, self.population.members)
            self.population.changed()
        elif self.aim is not None:
            self.aim.take(one, {})
        self.pedigree.seen(one, self.population.members)

    def propose(
        self,
        number: int,
        purpose: Purpose,
        operator: str,
        parents: Sequence[Individual],
        items: Block,
        rng: np.random.Generator,
        hints: Mapping[str, Any] | None = None,
    ) -> Proposal:
        """A proposal with a seed of its own."""
        oldest = max((one.generation for one in parents), default=-1)
        return Proposal(
            number=number,
            operator=operator,
            parents=tuple(one.genome for one in parents),
            generation=oldest + 1 if purpose == "search" else oldest,
            hints=dict(hints or {}),
            items=items,
            seed=int(rng.integers(2**53)),
            purpose=purpose,
        )

    def parent(self, rng: np.random.Generator) -> Individual:
        """By what it alone masters, or by tournament."""
        return self.population.winner(rng) if rng.random() < 0.5 else self.population.tournament(rng)

    def parents(self, count: int, rng: np.random.Generator) -> list[Individual]:
        """So many parents, different ones where possible."""
        chosen: list[Individual] = []
        while len(chosen) < count:
            one = self.parent(rng)
            for _ in range(4):
                if one not in chosen:
                    break
                one = self.parent(rng)
            chosen.append(one)
        return chosen
