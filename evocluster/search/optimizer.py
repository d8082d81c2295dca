"""The search itself, as ask and tell: steady-state NSGA-II over evaluations that arrive in any order.

Ordered commits make it reproducible. `ask` number n sees exactly the trials 0 to n - lookahead, committed in
the order of their numbers, whatever else has arrived; all it decides derives from those and from a generator
seeded with (seed, n). So the same trials give the same proposals on 1 worker or 1,000, and a run is resumed
by telling its trials again.

    search       start genomes on all of train, a diverse population on one block; then, by turns, more
                 blocks for promising members and children on the first block
    validation   finalists and start on all of validation; front and recommended member are settled there
    test         that front and start, once
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Genome, Item, Proposal, Split, Trial
from evocluster.search.across import Tasks
from evocluster.search.budget import Budget, Ledger
from evocluster.search.check import Check
from evocluster.search.members import Member, blocks, describe, enough, measures
from evocluster.search.objectives import Composite, Objective, Tally, built_in
from evocluster.search.operators import EVALUATE, Credit, portfolio
from evocluster.search.population import Individual, Population
from evocluster.search.recommend import parse
from evocluster.search.seeding import seeding
from evocluster.search.space import Space
from evocluster.search.stopping import Stopping

Purpose = Literal["seed", "search", "extend", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
QUALITY, COST = built_in("quality"), built_in("cost_usd")
AVOIDED = 128
"""How many recent genome ids a child is told to avoid."""
MARGIN = 1.5
"""The dollars kept back for the check are the mean price of an item times this."""
LEAST_KNOWN = 0.25
"""Share of the extensions that go to the member with the fewest blocks."""
PORTION = 4
"""Examples in a proposal of the check: small, so that all workers end it together."""
SHOWN = 100
"""Members of the front that `progress` lists at most."""


class Search(Part):
    """Settings of the search."""

    population: int = Field(default=20, ge=2, le=10_000)
    block: int = Field(default=16, ge=1)
    """Train examples a child is first tried on, and the size of every further portion."""
    finalists: int = Field(default=6, ge=1)
    """Members checked on validation, besides the start."""
    lookahead: int | None = Field(default=None, ge=1)
    """How many proposals may be out beyond the last committed one; default: from in_flight and block."""
    mode: Literal["steady", "generational"] = "steady"
    """generational (for comparison): a generation is asked for once all of the one before is committed."""
    rewriter: str | None = None
    """Name of the model that rewrites rubrics; default: the genome's own."""
    operators: tuple[str, ...] | None = None
    """Which operators may act; default: all that can."""
    extend: bool = True
    """Give promising members more blocks; false: a member is judged on its first block for ever."""
    immigrants: float = Field(default=0.05, ge=0, le=1)
    """Share of children that are random genomes."""

    def ahead(self, in_flight: int) -> int:
        """The lookahead: the setting, else enough to keep `in_flight` evaluations under way, whoever works."""
        return self.lookahead or max(4, ceil(3 * in_flight / self.block) + 1)


class Optimizer:
    """Decides what is tried next.

    Call order: any mix of `ask` and `tell` until `done`; single-threaded, no I/O.
    """

    def __init__(
        self,
        space: Space,
        settings: Search,
        objectives: Sequence[Objective],
        composite: Composite,
        recommend: str,
        budget: Budget,
        items: Mapping[Split, tuple[Item, ...]],
        start: Sequence[Genome],
        seed: int,
        in_flight: int,
        calls_per_item: int = 1,
        warm: Sequence[Genome] = (),
        tasks: Callable[[Iterable[str]], Tasks] | None = None,
    ) -> None:
        """`calls_per_item`: the most LLM calls of one item; `tasks`: of example ids, where there are several tasks.

        Raises: ConfigError.
        """
        if not items.get("train") or not objectives:
            raise ConfigError("the search needs at least one train item and one objective; give both")
        self._space, self._settings, self._seed = space, settings, seed
        self._objectives, self._composite = tuple(objectives), composite
        self._lookahead, self._calls_per_item = settings.ahead(in_flight), calls_per_item
        rule = parse(recommend)
        self._named = measures(self._objectives, rule, budget.target_objective)
        self._scorers = tuple(dict.fromkeys(one.scorer for one in self._named if one.scorer))
        portion = min(PORTION, settings.block)
        self._check_ahead = max(self._lookahead, ceil(3 * in_flight / portion) + 1)
        self._blocks = {
            split: blocks(items.get(split, ()), settings.block if split == "train" else portion) for split in SPLITS
        }
        self._index = {split: _numbered(items.get(split, ())) for split in SPLITS}
        self._tasks = {split: tasks(index) if tasks else None for split, index in self._index.items()}
        target = next(one for one in self._named if one.name == budget.target_objective)
        train = self._blocks["train"]
        self._stopping = Stopping(budget, target, settings.population, enough(train))
        self._ledger = Ledger(budget)
        self._check = Check(self._blocks, self._objectives, self._named, rule, settings.finalists)
        self._operators = portfolio(settings, space)
        self._credit = Credit([name for name in self._operators if name != "seed"] or ["seed"])
        self._population = Population(settings.population, self._objectives)
        self._starts = {genome.id: self._new(genome, "start") for genome in start}
        self._seeds = deque(seeding(space, start, warm, train, settings.population, seed))
        self._seed_count = len(self._seeds)
        self._refuse_if_too_small()

        self._phase: Literal["search", "validation", "test", "done"] = "search"
        self._ending: str | None = None
        self._asked = 0
        self._committed = 0
        self._children = 0
        self._evaluations = 0
        self._out: dict[int, Proposal] = {}
        self._arrived: dict[int, Trial] = {}
        self._recent: deque[str] = deque(self._starts, maxlen=AVOIDED)

    # What the loop uses.

    def ask(self) -> Proposal | None:
        """The next proposal; None: tell something first, or `done`."""
        while self._phase != "done":
            if not self._commit(self._horizon()):
                return None
            proposal = self._plan_search() if self._phase == "search" else self._plan_check()
            if proposal is not None:
                self._out[proposal.number] = proposal
                self._asked += 1
                return proposal
            if not self._outstanding:
                self._advance()
            elif not self._commit(self._committed + 1):
                return None
        return None

    def tell(self, trial: Trial) -> None:
        """Hand in a trial, in any order; a second one of the same number is ignored. Raises: ConfigError."""
        number = trial.proposal.number
        if number >= self._asked:
            raise ConfigError(
                f"trial {number!r} was never asked for; allowed: below {self._asked}; ask() before tell()"
            )
        if number >= self._committed:
            self._arrived.setdefault(number, trial)

    def stop(self, reason: str) -> None:
        """End the search phase; what is out still counts, then the check follows. No effect after the search.

        To repeat a run exactly, stop it when `asked` is the same.
        """
        if self.searching:
            self._ending = reason

    @property
    def done(self) -> bool:
        """Everything is committed and tested; becomes True in the `ask` after the last `tell`."""
        return self._phase == "done"

    @property
    def searching(self) -> bool:
        """The search phase has not been ended."""
        return self._phase == "search" and self._ending is None

    @property
    def stop_reason(self) -> str | None:
        """What ended the search.

        calls, usd, generations, target, stall, exhausted, 'failures: ...', or what `stop` was told.
        """
        return self._ending

    @property
    def asked(self) -> int:
        """Proposals handed out; the number of the next one."""
        return self._asked

    @property
    def committed(self) -> int:
        """Trials that count so far."""
        return self._committed

    @property
    def generation(self) -> int:
        """Populations' worth of children committed so far."""
        return self._children // self._settings.population

    def front(self) -> list[Member]:
        """The non-dominated members: those on validation once that is settled, before it those on train."""
        members = self._check.front if self._phase in ("test", "done") else self._population.front()
        return [describe(one, self._named, self._seed, self._check.choice) for one in members]

    @property
    def start_member(self) -> Member | None:
        """The first start genome with what was measured of it."""
        first = next(iter(self._starts.values()), None)
        return None if first is None else describe(first, self._named, self._seed, self._check.choice)

    def progress(self) -> dict[str, Any]:
        """Where the run stands, as JSON values; counts what is committed."""
        spent = self._ledger.spent
        members = sorted(self._population.front(), key=lambda one: one.careful[::-1], reverse=True)[:SHOWN]
        best = max((one.tally("train").value(QUALITY) for one in self._population.members), default=-np.inf)
        return {
            "phase": self._phase,
            "generation": self.generation,
            "asked": self._asked,
            "commits": self._committed,
            "evaluations": self._evaluations,
            "calls": spent.calls,
            "cached": spent.cached,
            "usd": spent.usd,
            "paid_usd": spent.paid_usd,
            "budget": self._ledger.limits(),
            "hypervolume": list(self._stopping.hypervolume),
            "objectives": [one.name for one in self._objectives],
            "front": [
                {
                    "genome": one.genome.id,
                    "values": {o.name: _json(one.tally("train").value(o)) for o in self._named},
                }
                for one in members
            ],
            "best_quality": _json(best),
            "operators": self._credit.state(),
            "stop_reason": self._ending,
        }

    # Commits.

    @property
    def _outstanding(self) -> bool:
        return self._committed < self._asked

    def _horizon(self) -> int:
        """How many trials the next ask must have seen."""
        if self._settings.mode == "generational" and self._phase == "search" and not self._seeds:
            size = self._settings.population
            return self._seed_count + (self._asked - self._seed_count) // size * size
        ahead = self._lookahead if self._phase == "search" else self._check_ahead
        return max(self._committed, self._asked - ahead + 1)

    def _commit(self, upto: int) -> bool:
        """Commit in order until `upto` trials count; False when the next one has not arrived."""
        while self._committed < upto:
            trial = self._arrived.pop(self._committed, None)
            if trial is None:
                return False
            proposal = self._out.pop(self._committed)
            self._committed += 1
            self._ledger.settle(proposal.number, trial.total, len(trial.evaluations))
            self._evaluations += len(trial.evaluations)
            if proposal.purpose in ("validation", "test"):
                self._check.count(trial)
            else:
                self._count(proposal, trial)
        return True

    def _count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial of the search into the population and the accounts."""
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            self._stopping.missed(trial.error)
            self._give_back(proposal)
            survived = False
        else:
            self._stopping.made()
            survived = self._join(proposal, trial, trial.genome)
        child = proposal.purpose == "search"
        if child:
            self._children += 1
            self._credit.count(proposal.operator, survived)
        if self._committed == self._seed_count:
            self._population.refer()
        elif not child or self._children % self._settings.population:
            return
        self._stopping.hypervolume.append(self._population.hypervolume())

    def _join(self, proposal: Proposal, trial: Trial, genome: Genome) -> bool:
        """Count a trial's evaluations for its genome; True when it is new and survives."""
        present = self._population.get(genome.id)
        known = present or self._starts.get(genome.id)
        if known is None and proposal.purpose == "extend":
            return False
        one = known or self._born(proposal, genome)
        one.blocks.add(self._block_of(proposal))
        one.learn(trial.evaluations, self._objectives, len(self._index["train"]))
        if proposal.purpose == "search":
            self._stopping.repeated(known is not None)
        if present is not None:
            self._population.changed()
            return False
        return self._population.insert(one) and known is None

    def _born(self, proposal: Proposal, genome: Genome) -> Individual:
        given = proposal.operator == EVALUATE
        parents = () if given else tuple(parent.id for parent in proposal.parents)
        self._recent.append(genome.id)
        return self._new(genome, "warm" if given else proposal.operator, proposal.generation, parents)

    def _new(self, genome: Genome, operator: str, generation: int = 0, parents: tuple[str, ...] = ()) -> Individual:
        def make(split: Split) -> Tally:
            return Tally(self._composite, self._scorers, self._index[split], self._tasks[split])

        return Individual(genome, make, generation, parents, operator)

    def _give_back(self, proposal: Proposal) -> None:
        """A block that came to nothing may be asked for again."""
        if proposal.operator == EVALUATE and (one := self._individual(proposal.parents[0])) is not None:
            one.blocks.discard(self._block_of(proposal))

    def _individual(self, genome: Genome) -> Individual | None:
        return self._population.get(genome.id) or self._starts.get(genome.id)

    def _block_of(self, proposal: Proposal) -> int:
        return self._blocks["train"].index(proposal.items)

    # The search phase.

    def _plan_search(self) -> Proposal | None:
        """The next proposal of the search; None: commit more first; with nothing out, the search is over."""
        tallies = [one.tally("train") for one in self._population.members]
        self._ending = self._ending or self._stopping.reason(self.generation, tallies)
        if self._ending is not None:
            return None
        proposal = self._draft()
        lack = self._lack(proposal) if proposal is not None else self._idle()
        if proposal is None or lack is not None:
            self._ending = None if self._outstanding else lack
            return None
        self._ledger.reserve(proposal.number, *self._price(proposal))
        if proposal.purpose == "seed":
            self._seeds.popleft()
        if proposal.operator == EVALUATE and (one := self._individual(proposal.parents[0])) is not None:
            one.blocks.add(self._block_of(proposal))
        return proposal

    def _idle(self) -> str:
        return "exhausted" if len(self._population) else self._stopping.failures

    def _draft(self) -> Proposal | None:
        """What to try next by what is committed: a seed, more of a member, or a child; None when there is
        nothing.
        """
        if self._seeds:
            return self._seeds[0]
        if not len(self._population):
            return None
        rng = np.random.default_rng([self._seed, self._asked])
        worn = not self._space.free or self._stopping.worn
        if self._settings.extend and (worn or self._asked % 2) and (one := self._allocate(rng)) is not None:
            train = self._blocks["train"]
            block = min(set(range(len(train))) - one.blocks)
            return self._proposal("extend", EVALUATE, (one,), train[block], rng)
        return None if worn else self._child(rng)

    def _allocate(self, rng: np.random.Generator) -> Individual | None:
        """Which member gets the next block, of the non-dominated that do not have them all; None when nobody
        is worth it.

        Sometimes the least known; else the most hopeful of those whose optimistic quality or composite still
        reaches the best careful one (as in Hoeffding races, Maron and Moore 1994): what is surely behind
        needs no exact numbers.
        """
        every = len(self._blocks["train"])
        partly = [one for one in self._population.front() if len(one.blocks) < every]
        if not partly:
            return None
        if rng.random() < LEAST_KNOWN:
            return min(partly, key=lambda one: (len(one.blocks), -one.careful[0], -one.careful[1]))
        best = np.max([one.careful for one in self._population.members], axis=0)
        open_ = [one for one in partly if np.any(np.array(one.hopeful) >= best)]
        by = int(rng.integers(2))
        return max(open_, key=lambda one: one.hopeful[by], default=None)

    def _child(self, rng: np.random.Generator) -> Proposal:
        name = "seed" if rng.random() < self._settings.immigrants else self._credit.draw(rng)
        parents: list[Individual] = []
        while len(parents) < self._operators[name].arity:
            one = self._parent(rng)
            for _ in range(4):
                if one not in parents:
                    break
                one = self._parent(rng)
            parents.append(one)
        avoid = {"avoid": tuple(self._recent)}
        return self._proposal("search", name, parents, self._blocks["train"][0], rng, avoid)

    def _parent(self, rng: np.random.Generator) -> Individual:
        return self._population.winner(rng) if rng.random() < 0.5 else self._population.tournament(rng)

    def _proposal(
        self,
        purpose: Purpose,
        operator: str,
        parents: Sequence[Individual],
        items: tuple[Item, ...],
        rng: np.random.Generator,
        hints: Mapping[str, Any] | None = None,
    ) -> Proposal:
        oldest = max((one.generation for one in parents), default=-1)
        return Proposal(
            number=self._asked,
            operator=operator,
            parents=tuple(one.genome for one in parents),
            generation=oldest + 1 if purpose == "search" else oldest,
            hints=dict(hints or {}),
            items=items,
            seed=int(rng.integers(2**53)),
            purpose=purpose,
        )

    # Money.

    def _price(self, proposal: Proposal) -> tuple[int, float]:
        """The most calls a proposal can take, and the US dollars it is reckoned at."""
        count = len(proposal.items)
        calls = count * self._calls_per_item
        if proposal.operator != EVALUATE:
            return calls + self._operators[proposal.operator].calls, count * self._ledger.dearest_usd
        one = self._individual(proposal.parents[0])
        each = np.inf if one is None else one.tally("train").value(COST)
        return calls, count * (float(each) if np.isfinite(each) else self._ledger.dearest_usd)

    def _lack(self, proposal: Proposal) -> str | None:
        """What the budget lacks for a proposal with all that must still be paid after it."""
        calls, usd = self._price(proposal)
        test = self._check.size(len(self._starts), "test")
        later = {"validation": test, "test": 0}.get(
            proposal.purpose, test + self._check.size(len(self._starts), "validation")
        )
        return self._ledger.lacks(calls + later * self._calls_per_item, usd + later * MARGIN * self._ledger.mean_usd)

    def _refuse_if_too_small(self) -> None:
        final = sum(self._check.size(len(self._starts), split) for split in SPLITS[1:]) * self._calls_per_item
        first = len(self._blocks["train"][0]) * self._calls_per_item * max(1, len(self._starts))
        self._ledger.refuse_if_too_small(final + first, final)

    # Validation and test.

    def _plan_check(self) -> Proposal | None:
        """The next part of the check; None: commit more first; with nothing out, the split is done."""
        part = self._check.next
        if part is None:
            return None
        one, split, items = part
        rng = np.random.default_rng([self._seed, self._asked])
        proposal = self._proposal(split, EVALUATE, (one,), items, rng)
        if self._lack(proposal) is not None:
            if not self._outstanding:
                self._check.give_up()
            return None
        self._check.take()
        self._ledger.reserve(proposal.number, *self._price(proposal))
        return proposal

    def _advance(self) -> None:
        """With everything committed: from search to validation to test to done."""
        starts = [one for one in self._starts.values() if one.tally("train").items]
        if self._phase == "search":
            self._check.validate(self._population, starts)
            self._phase = "validation"
        elif self._phase == "validation":
            self._check.settle(starts)
            self._phase = "test"
        else:
            self._phase = "done"


def _numbered(items: Sequence[Item]) -> dict[str, int]:
    return {example: number for number, example in enumerate(dict.fromkeys(item.example for item in items))}


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
