"""PromptBreeder as a strategy: binary tournaments, and operators that change the advice they work by.

    tournament   two random units are held against each other on the train examples that both have; the winner gets
                 `variants` children, each by an operator drawn alike from those there are
    place        a child is tried on a block of train that the loser has, and takes its place when it is better there
    more         after every tournament the unit that may still be the best gets its next block

Fitness is quality: means over the examples in common. Constraints come before it: of two that break them unlike, the
one that breaks them by less is better. Units are the members of the population; who is not better than the loser is
gone, whatever else it is good at. A population that is not full (few genomes, seeds that failed) is filled by prompts
written from the description, as the paper begins.

Several tournaments are under way at once and nothing waits: tournaments for the same place try their children on the
same block, so a child meets whoever holds the place by then on the same examples.

Fernando et al. 2023, section 3 (the tournament: Harvey 2011, the microbial genetic algorithm).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evocluster.records import Genome, Proposal, Trial
from evocluster.search.credit import Credit
from evocluster.search.ground import Ground
from evocluster.search.hints import collect
from evocluster.search.operators import EVALUATE
from evocluster.search.population import Individual

FIRST = "zero_order"
"""The operator that fills a population."""
EQUAL = 1e-6
"""Means of quality less apart than this are equal."""


@dataclass(frozen=True)
class Turn:
    """A tournament that was held, and the children that its winner still gets."""

    winner: Individual
    place: int | None
    """Of the loser; None: there is nobody else."""
    block: int
    left: int


@dataclass(frozen=True)
class Aim:
    """What a child under way is for."""

    place: int | None
    block: int


class Even(Credit):
    """Operators are counted, and drawn alike."""

    def probabilities(self) -> dict[str, float]:
        """The same chance for each."""
        return dict.fromkeys(self._names, 1 / len(self._names))


class Breed:
    """A strategy of `ground.Strategy`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._names = tuple(name for name in ground.operators if name != "seed") or ("seed",)
        ground.credit = Even(self._names)
        self._seeds = len(ground.seeds)
        self._coming = {_seed(proposal) for proposal in ground.seeds}
        """Genome ids of the seeds that nothing came back of so far."""
        self._counted = 0
        self._fills = 0
        self._places: list[str] = []
        """Genome ids of the units; a child takes over the place of its loser."""
        self._turn: Turn | None = None
        self._drafted: Turn | None = None
        """The turn that the last draft belongs to; it begins when the draft is handed out."""
        self._aims: dict[int, Aim] = {}
        """Of the children under way, by number."""

    def barrier(self, number: int) -> int:
        """None: nothing waits."""
        return 0

    def finish(self) -> None:
        """Nothing is left: a child takes its place when it is counted."""

    def told(self) -> dict[str, Any]:
        """Nothing more for progress."""
        return {}

    # What is tried next.

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """A seed, a child to fill the population, a child of the tournament, or more of a unit."""
        ground = self._ground
        if ground.seeds:
            return ground.seeds[0]
        if not self._places:
            return None
        if ground.stopping.worn:
            return self._more(number, rng)
        if self._lacking():
            self._drafted = None
            return self._fill(number, rng)
        turn = self._turn
        if turn is not None and not turn.left and (more := self._more(number, rng)) is not None:
            return more
        if turn is None or not turn.left:
            turn = self._tournament(rng)
        self._drafted = turn
        return self._child(number, turn, rng)

    def _room(self) -> bool:
        """There are fewer units than there may be, those included that seeds will be."""
        return len(self._places) + len(self._coming) < self._ground.settings.population

    def _lacking(self) -> bool:
        """Units are missing that nobody is about to become; given up after as many tries as there may be units."""
        size = self._ground.settings.population
        filling = sum(aim.place is None for aim in self._aims.values())
        return len(self._places) + len(self._coming) + filling < size and self._fills < size

    def _fill(self, number: int, rng: np.random.Generator) -> Proposal:
        one = self._unit(int(rng.integers(len(self._places))))
        name = FIRST if FIRST in self._names else self._drawn(one, rng)
        return self._offspring(number, name, one, 0, rng)

    def _tournament(self, rng: np.random.Generator) -> Turn:
        variants = self._ground.settings.variants
        if len(self._places) == 1:
            only = self._unit(0)
            return Turn(only, None, min(only.blocks), variants)
        first, second = sorted(int(i) for i in rng.permutation(len(self._places))[:2])
        loser = first if self._before(self._unit(second), self._unit(first)) else second
        winner = self._unit(first + second - loser)
        known = sorted(self._unit(loser).blocks)
        busy = (aim.block for aim in self._aims.values() if aim.place == loser)
        return Turn(winner, loser, next(busy, known[int(rng.integers(len(known)))]), variants)

    def _child(self, number: int, turn: Turn, rng: np.random.Generator) -> Proposal:
        return self._offspring(number, self._drawn(turn.winner, rng), turn.winner, turn.block, rng)

    def _drawn(self, winner: Individual, rng: np.random.Generator) -> str:
        """The name of an operator; none that needs right cases of one who has none."""
        operators = self._ground.operators
        names = [
            name for name in self._names if winner.cases.right or "right" not in operators[name].needs
        ] or self._names
        return names[int(rng.integers(len(names)))]

    def _offspring(self, number: int, name: str, winner: Individual, block: int, rng: np.random.Generator) -> Proposal:
        ground = self._ground
        operator = ground.operators[name]
        parents = [winner, self._mate(winner, rng)][: operator.arity]
        hints = collect(ground, operator, parents, rng)
        return ground.propose(number, "search", name, parents, ground.blocks[block], rng, hints)

    def _mate(self, winner: Individual, rng: np.random.Generator) -> Individual:
        """Another unit, by chances in proportion to its fitness; the winner itself where there is no other. One that
        keeps the constraints, where there is one.
        """
        others = [one for one in map(self._unit, range(len(self._places))) if one is not winner]
        if not others:
            return winner
        others = _keeping(others)
        fitness = np.array([max(one.careful[0] + one.hopeful[0], 0.0) for one in others]) + 1e-6
        return others[int(rng.choice(len(others), p=fitness / fitness.sum()))]

    def _more(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """The next block of the unit with the highest optimistic quality; None when nobody is worth it. Of those that
        keep the constraints, where there are any.
        """
        ground = self._ground
        units = _keeping([self._unit(place) for place in range(len(self._places))])
        best = max(one.careful[0] for one in units)
        every = len(ground.blocks)
        partly = [one for one in units if len(one.blocks) < every and one.hopeful[0] >= best]
        if not partly:
            return None
        one = max(partly, key=lambda one: (one.hopeful[0], -len(one.blocks)))
        block = min(set(range(every)) - one.blocks)
        return ground.propose(number, "extend", EVALUATE, (one,), ground.blocks[block], rng)

    def handed(self, proposal: Proposal) -> None:
        """Its block is asked for."""
        ground = self._ground
        if proposal.purpose == "seed":
            ground.seeds.popleft()
        if proposal.operator == EVALUATE:
            if (one := ground.known(proposal.parents[0].id)) is not None:
                one.blocks.add(ground.block_of(proposal))
            if proposal.purpose == "extend":
                self._turn = None
            return
        if proposal.purpose != "search":
            return
        turn, self._drafted = self._drafted, None
        self._fills += turn is None
        if turn is not None:
            self._turn = replace(turn, left=turn.left - 1)
        self._aims[proposal.number] = Aim(turn.place if turn is not None else None, ground.block_of(proposal))

    # What came of it.

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial into the population and the accounts."""
        ground = self._ground
        self._counted += 1
        aim = self._aims.pop(proposal.number, None)
        if proposal.purpose == "seed":
            self._coming.discard(_seed(proposal))
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            ground.stopping.missed(trial.error)
            self._give_back(proposal)
            joined = False
        else:
            ground.stopping.made()
            joined = self._join(proposal, trial, trial.genome, aim)
        child = proposal.purpose == "search"
        if child:
            ground.children += 1
            ground.credit.count(proposal.operator, joined, trial.total.calls)
        if self._counted == self._seeds:
            ground.population.refer()
        elif not child or ground.children % ground.settings.population:
            return
        ground.stopping.hypervolume.append(ground.population.hypervolume())

    def _join(self, proposal: Proposal, trial: Trial, genome: Genome, aim: Aim | None) -> bool:
        """Count a trial's evaluations for its genome; True when it is new and gets a place."""
        ground = self._ground
        present = ground.population.get(genome.id)
        known = present or ground.starts.get(genome.id)
        if proposal.purpose == "search":
            ground.stopping.repeated(known is not None)
        if known is None and proposal.purpose == "extend":
            return False
        one = known or ground.born(proposal, trial, genome)
        one.blocks.add(ground.block_of(proposal))
        ground.learn(one, trial)
        if present is not None:
            ground.population.changed()
            return False
        if proposal.purpose == "seed":
            return self._settle(one)
        return proposal.purpose == "search" and self._place(one, aim.place if aim is not None else None)

    def _settle(self, one: Individual) -> bool:
        """Give a seed a place: a free one, else that of the least fit where it is better."""
        if len(self._places) < self._ground.settings.population:
            return self._append(one)
        places = range(len(self._places))
        least = min(places, key=lambda place: (-self._unit(place).violation, self._unit(place).careful[0]))
        return self._place(one, least)

    def _place(self, one: Individual, place: int | None) -> bool:
        """Give it the place where it is better than who holds it, else a free one."""
        if place is not None and self._better(one, self._unit(place)):
            self._ground.population.swap(self._places[place], one)
            self._places[place] = one.genome.id
            return True
        return self._room() and self._append(one)

    def _append(self, one: Individual) -> bool:
        self._ground.population.insert(one)
        self._places.append(one.genome.id)
        return True

    def _give_back(self, proposal: Proposal) -> None:
        """A block that came to nothing may be asked for again, unless the genome is barred: its place is free."""
        ground = self._ground
        if ground.gone(proposal):
            if (id := proposal.parents[0].id) in self._places:
                self._vacate(self._places.index(id))
            return
        if proposal.operator == EVALUATE and (one := ground.known(proposal.parents[0].id)) is not None:
            one.blocks.discard(ground.block_of(proposal))

    def _vacate(self, place: int) -> None:
        """Nobody holds this place any more; those after it move up, and the next child begins another turn."""
        del self._places[place]
        for number, aim in self._aims.items():
            if aim.place is not None and aim.place >= place:
                self._aims[number] = replace(aim, place=aim.place - 1 if aim.place > place else None)
        self._turn = self._drafted = None

    def _unit(self, place: int) -> Individual:
        one = self._ground.population.get(self._places[place])
        assert one is not None, "units are the members of the population"
        return one

    @staticmethod
    def _gap(one: Individual, other: Individual) -> float:
        """How much higher its mean quality is on the examples in common; by careful quality where there are none.
        Infinite where the two break the constraints unlike, below 0 for the one that breaks them by more.
        """
        if one.violation != other.violation:
            return np.inf if one.violation < other.violation else -np.inf
        both = ~np.isnan(one.by_example) & ~np.isnan(other.by_example)
        if not both.any():
            return one.careful[0] - other.careful[0]
        return float(one.by_example[both].mean() - other.by_example[both].mean())

    def _better(self, one: Individual, other: Individual) -> bool:
        return self._gap(one, other) > EQUAL

    def _before(self, one: Individual, other: Individual) -> bool:
        """It wins a tournament; the surer one where the examples in common do not tell."""
        gap = self._gap(one, other)
        return gap > EQUAL or (gap >= -EQUAL and one.careful[0] > other.careful[0])


def _keeping(units: list[Individual]) -> list[Individual]:
    """Those that keep the constraints; where nobody does, all."""
    return [one for one in units if not one.violation] or units


def _seed(proposal: Proposal) -> str:
    """The id of the genome that a seed is."""
    given = proposal.operator == EVALUATE
    return proposal.parents[0].id if given else Genome(genes=proposal.hints["genome"]).id
