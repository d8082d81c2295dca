"""Evolve by race: NSGA-II selects, the race allocates.

A child is tried block by block, in an order of its own, on blocks that the members worth comparing with have. It is
sent away as soon as one of them is surely ahead (`race.py`); it joins the population when it has all of those blocks,
or as soon as it can no longer become the recommended one, for then exact numbers of it are not needed. Ranks and
crowding decide who stays. Meanwhile the contenders among the non-dominated with the fewest examples get the next block,
all in one order, so that they keep blocks in common.

Incumbents, blocks and least-evaluated first: MO-CAPO (Buessing et al. 2026); the test is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.records import Genome, Json, Proposal, Trial
from evocluster.search.believed import Believed
from evocluster.search.ground import Ground
from evocluster.search.hints import collect
from evocluster.search.mating import pick_operator
from evocluster.search.operators import EVALUATE, Operator, nobody, now
from evocluster.search.population import Floats, Individual
from evocluster.search.race import behind, spent
from evocluster.search.restart import Restart
from evocluster.search.tabu import Wary

QUALITY = 0.7
"""How often children are screened by quality, or by the outcome that the rule wants best; else by the composite."""
SCREENED = 0.5
"""Share of children that are screened, of those that cost no call; the others find what only genes together bring."""
HOPE = 0.5
"""Deviations, on average a little less, by which a screened child counts for more than is believed of it."""
REDRAWS = 3
"""How often another operator is drawn where one made nothing new."""
RIVALS = 3
"""Incumbents that a child is held against."""
SHARE = 1.0
"""Items given to incumbents for each given to children."""


@dataclass
class Runner:
    """A child in the race."""

    one: Individual
    operator: str
    order: list[int]
    """Blocks of train in the order it takes them."""
    parent: Individual | None = None
    """The first one, where it was alive when the child came."""
    calls: int = 0
    """What making and trying it took."""
    out: bool = False
    """A block of it is under way."""
    looks: int = field(default=0)


class Evolve:
    """A strategy of `ground.Strategy`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._seeds = len(ground.seeds)
        self._counted = 0
        self._racing: dict[str, Runner] = {}
        self._children_items = 0
        self._incumbents_items = 0
        self._tried = self._saved = 0
        self._sizes = [len(block) for block in ground.blocks]
        self._believed = Believed(ground.space.free, ground.objectives, ground.tasks, ground.aim)
        self._believed.racing = self._racing
        ground.believed = self._believed
        self._restart = Restart(ground.settings.restart_after if ground.space.free else None)
        self._fresh: deque[Genome] = deque()

    def barrier(self, number: int) -> int:
        """None: nothing waits."""
        return 0

    # What is tried next.

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """A seed, the next block of a child, more of an incumbent, or a new child."""
        ground = self._ground
        if ground.seeds:
            return ground.seeds[0]
        if not len(ground.population):
            return None
        waiting = next((runner for runner in self._racing.values() if not runner.out), None)
        if waiting is not None:
            return self._more(number, waiting.one, self._next(waiting), rng)
        if self._fresh:
            return self._begun("seed", number, [], {"genome": self._fresh[0].genes}, rng)
        worn = not ground.space.free or ground.stopping.worn
        if worn or self._incumbents_items < SHARE * self._children_items:
            one = self._least_known()
            if one is not None:
                return self._more(number, one, min(self._lacks(one)), rng)
        return None if worn else self._child(number, rng)

    def _more(self, number: int, one: Individual, block: int, rng: np.random.Generator) -> Proposal:
        return self._ground.propose(number, "extend", EVALUATE, (one,), self._ground.blocks[block], rng)

    def _next(self, runner: Runner) -> int:
        """Its next block."""
        return next(block for block in runner.order if block not in runner.one.blocks)

    def _lacks(self, one: Individual) -> set[int]:
        return set(range(len(self._sizes))) - one.blocks

    def _least_known(self) -> Individual | None:
        """The contender with the fewest blocks; the better one of two."""
        partly = [one for one in self._contenders() if self._lacks(one)]
        return min(partly, key=lambda one: (len(one.blocks), -one.careful[0], -one.careful[1]), default=None)

    def _contenders(self) -> list[Individual]:
        """The non-dominated that may still turn out to be the best by quality, by the composite, or by the rule.

        That is, whose optimistic value reaches the best careful one (as in Hoeffding races, Maron and Moore 1994).
        """
        bars = self._bars()
        return [one for one in self._ground.population.front() if _reaches(one, *bars)]

    def _bars(self) -> tuple[Floats, tuple[float, float] | None]:
        """The best careful quality and composite there are, and the best careful aim."""
        rivals = self._ground.population.contenders()
        aims = [one.aim for one in rivals if one.aim is not None]
        return np.max([one.careful for one in rivals], axis=0), max(aims, default=None)

    def _child(self, number: int, rng: np.random.Generator) -> Proposal:
        ground = self._ground
        for _ in range(1 + REDRAWS):
            name, parents = pick_operator(ground, rng)
            operator = ground.operators[name]
            hints = self._hints(operator, parents, rng)
            if operator.calls or ground.settings.screen <= 1 or rng.random() >= SCREENED:
                break
            screened = self._screened(operator, parents, hints, rng)
            if screened is not None:
                hints = {"genome": screened.genes}
                break
            # It makes nothing new of these parents: another draw.
        return self._begun(name, number, parents, hints, rng)

    def _hints(self, operator: Operator, parents: list[Individual], rng: np.random.Generator) -> dict[str, Json]:
        """Members and those in the race are to be avoided, too."""
        hints = collect(self._ground, operator, parents, rng)
        known = [*hints["avoid"], *(one.genome.id for one in self._ground.population.members), *self._racing]
        return {**hints, "avoid": tuple(dict.fromkeys(known))}

    def _begun(
        self, name: str, number: int, parents: list[Individual], hints: Mapping[str, Json], rng: np.random.Generator
    ) -> Proposal:
        """A child on one of the blocks that its rivals have."""
        block = int(rng.choice(self._common()))
        return self._ground.propose(number, "search", name, parents, self._ground.blocks[block], rng, hints)

    def _screened(
        self, operator: Operator, parents: list[Individual], hints: Mapping[str, Json], rng: np.random.Generator
    ) -> Genome | None:
        """Of several children the one that is believed best, by quality or by the composite, and by how much is
        hoped for; None where none of them is new.
        """
        ground = self._ground
        genomes = [one.genome for one in parents]
        if isinstance(operator, Wary):
            operator = operator.knowing(ground.space, genomes, hints)
        made: dict[str, Genome] = {}
        for _ in range(ground.settings.screen):
            try:
                child = now(operator.vary(ground.space, genomes, hints, nobody, rng)).genome
            except OperatorFailed:
                # Near twins of what was rejected; should there be nothing else, the worker says so.
                continue
            made.setdefault(child.id, child)
        known = {*ground.recent, *self._racing, *ground.barred}
        left = [child for id, child in made.items() if id not in known and ground.known(id) is None]
        by, hope = (self._believed.wanted if rng.random() < QUALITY else 1), HOPE * abs(float(rng.normal()))
        if not left:
            return None
        worth = [(belief.mean + hope * belief.deviation) for belief in (self._believed.of(one)[by] for one in left)]
        return left[int(np.argmax(worth))]

    def _common(self) -> list[int]:
        """The blocks that all contenders have; the first where they have none in common."""
        held = [one.blocks for one in self._contenders()]
        return sorted(set.intersection(*held)) if held and set.intersection(*held) else [0]

    def handed(self, proposal: Proposal) -> None:
        """Its block is asked for."""
        ground = self._ground
        if proposal.purpose == "seed":
            ground.seeds.popleft()
        if proposal.operator != EVALUATE:
            self._children_items += len(proposal.items) * (proposal.purpose == "search")
            if self._fresh and proposal.hints.get("genome") == self._fresh[0].genes:
                self._fresh.popleft()
            return
        id = proposal.parents[0].id
        if id in self._racing:
            self._racing[id].out = True
            self._racing[id].one.blocks.add(ground.block_of(proposal))
            self._children_items += len(proposal.items)
        elif (one := ground.known(id)) is not None:
            one.blocks.add(ground.block_of(proposal))
            self._incumbents_items += len(proposal.items) * (proposal.purpose == "extend")

    # What came of it.

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial into the race, the population and the accounts."""
        ground = self._ground
        self._counted += 1
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            ground.stopping.missed(trial.error)
            self._give_back(proposal)
            if proposal.purpose == "search":
                ground.credit.pay(proposal.operator, 0.0, trial.usage.calls)
        else:
            ground.stopping.made()
            self._take(proposal, trial, trial.genome)
        if proposal.purpose == "search":
            ground.children += 1
        if self._counted == self._seeds:
            ground.population.refer()
        elif proposal.purpose != "search" or ground.children % ground.settings.population:
            return
        ground.stopping.hypervolume.append(ground.population.hypervolume())
        if self._restart.due(ground.stopping.hypervolume):
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Part of the population makes room for genomes from afar, which race as children do."""
        ground = self._ground
        population, history = ground.population, ground.stopping.hypervolume
        stay = self._restart.keep(population)
        known = {
            *ground.recent,
            *self._racing,
            *ground.barred,
            *(one.genome.id for one in population.members),
            *ground.starts,
        }
        rng = np.random.default_rng([ground.seed, 2, len(history)])
        count = ground.settings.population - len(stay)
        near = [one.genome for one in population.members if one.genome.id in stay]
        self._fresh.extend(self._restart.fresh(ground.space, known, rng, count, near))
        population.retain(stay)
        self._restart.began(history)
        ground.restarts += 1

    def _take(self, proposal: Proposal, trial: Trial, genome: Genome) -> None:
        ground = self._ground
        block = ground.block_of(proposal)
        runner, known = self._racing.get(genome.id), ground.known(genome.id)
        if proposal.purpose == "search":
            ground.stopping.repeated(known is not None or runner is not None)
        if runner is not None:
            self._look(runner, trial, block)
        elif known is not None:
            known.blocks.add(block)
            ground.learn(known, trial)
            if ground.population.get(genome.id) is None:
                ground.population.insert(known)
            ground.population.changed()
            if proposal.purpose == "search":
                ground.credit.pay(proposal.operator, 0.0, trial.calls)
        elif proposal.purpose == "seed":
            one = ground.born(proposal, trial, genome)
            one.blocks.add(block)
            ground.learn(one, trial)
            ground.population.insert(one)
        elif proposal.purpose == "search":
            one = ground.born(proposal, trial, genome)
            # An order of its own, so that no block decides about everybody.
            rng = np.random.default_rng([proposal.seed, 1])
            common = self._common()
            order = [common[int(i)] for i in rng.permutation(len(common))]
            parent = self._ground.known(proposal.parents[0].id) if proposal.parents else None
            runner = Runner(one, proposal.operator, order, parent)
            self._racing[genome.id] = runner
            self._tried += sum(self._sizes)
            self._look(runner, trial, block)

    def _look(self, runner: Runner, trial: Trial, block: int) -> None:
        """After a block: sent away, in the population, or on to the next block."""
        one = runner.one
        one.blocks.add(block)
        self._ground.learn(one, trial)
        runner.calls += trial.calls
        runner.out = False
        runner.looks += 1
        if self._beaten(one):
            self._leave(runner, False)
        elif not _reaches(one, *self._bars()) or all(block in one.blocks for block in runner.order):
            self._leave(runner, True)

    def _beaten(self, child: Individual) -> bool:
        """One of the ablest rivals that have examples in common with it is surely ahead.

        A few, chosen by what they are worth over all their examples, and the error shared among them: among many there
        is always one that is ahead by luck.
        """
        ground = self._ground
        rivals = [one for one in ground.population.front() if one.blocks & child.blocks]
        # Constraints come first: who breaks them by more sends nobody away.
        rivals = [one for one in rivals if one.violation <= child.violation]
        if not rivals:
            return False
        alpha = spent(ground.settings.alpha, len(self._sizes))
        ablest = sorted(rivals, key=lambda one: one.careful, reverse=True)[:RIVALS]
        tally = child.tally("train")
        return any(behind(tally, one.tally("train"), ground.objectives, alpha / len(ablest)) for one in ablest)

    def _leave(self, runner: Runner, stays: bool) -> None:
        """The race of a child is over."""
        ground = self._ground
        self._racing.pop(runner.one.genome.id, None)
        self._saved += sum(self._sizes[block] for block in self._lacks(runner.one))
        before = ground.population.hypervolume() if stays else 0.0
        survived = stays and ground.population.insert(runner.one)
        gain = ground.population.hypervolume() - before if survived else 0.0
        ground.credit.pay(runner.operator, gain, runner.calls)
        if not survived:
            ground.tabu.reject(runner.one.genome, *runner.one.parents)
        ground.memory.tell(runner.one, runner.parent, survived)

    def _give_back(self, proposal: Proposal) -> None:
        """A block that came to nothing may be asked for again, unless the genome is barred: its race is over."""
        if proposal.operator != EVALUATE:
            return
        id = proposal.parents[0].id
        if self._ground.gone(proposal):
            self._racing.pop(id, None)
            return
        runner = self._racing.get(id)
        one = runner.one if runner is not None else self._ground.known(id)
        if runner is not None:
            runner.out = False
        if one is not None:
            one.blocks.discard(self._ground.block_of(proposal))

    def finish(self) -> None:
        """The search is over: who was not beaten so far takes part in the end."""
        for runner in list(self._racing.values()):
            self._leave(runner, True)

    def told(self) -> dict[str, Any]:
        """For progress: items that everybody on everything would have taken, and those the race saved."""
        return {"race": {"items": self._tried, "saved": self._saved, "racing": len(self._racing)}}


def _reaches(one: Individual, careful: Floats, aim: tuple[float, float] | None) -> bool:
    """It may still turn out to be the best by quality, by the composite, or by the rule."""
    by_rule = aim is not None and one.reach is not None and one.reach >= aim
    return by_rule or bool(np.any(np.array(one.hopeful) >= careful))
