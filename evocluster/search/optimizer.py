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

from evocluster.errors import ConfigError
from evocluster.records import Evaluation, Genome, Item, Json, Proposal, Split, Trial
from evocluster.search import nsga2
from evocluster.search.across import Tasks
from evocluster.search.aim import Aim
from evocluster.search.breed_strategy import Breed
from evocluster.search.budget import Budget, Ledger
from evocluster.search.check import Check, drawn
from evocluster.search.credit import shares
from evocluster.search.evolve import Evolve
from evocluster.search.feasible import Constraint, Limits
from evocluster.search.ground import Ground, Strategy
from evocluster.search.hybrid import Hybrid
from evocluster.search.members import Member, blocks, describe, enough, measures
from evocluster.search.memory import Memory
from evocluster.search.objectives import Composite, Objective, Tally, built_in
from evocluster.search.operators import EVALUATE
from evocluster.search.plain import Plain
from evocluster.search.population import Individual, Population
from evocluster.search.portfolio import portfolio
from evocluster.search.recommend import parse
from evocluster.search.refine import Refine
from evocluster.search.seeding import seeding
from evocluster.search.settings import Search
from evocluster.search.space import Space
from evocluster.search.steady import Steady
from evocluster.search.stopping import Stopping

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
QUALITY, COST = built_in("quality"), built_in("cost_usd")
MARGIN = 1.5
"""The dollars kept back for the check are the mean price of an item times this."""
OVER = 2
"""In the check, so that a run that was paid for has a front, requests that failed may pass the limits by one for so
many places in flight: with those under way then they are no more than there are places.
"""
SPREAD = 32
"""Configurations looked at to tell whether any draws its answers."""
SPARE = 1.1
"""The calls kept back for the check are those of the dearest member times this."""
PORTION = 4
"""Examples in a proposal of the check: small, so that all workers end it together."""
SHOWN = 100
"""Members of the front that `progress` lists at most."""


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
        constraints: Sequence[Constraint | str | Mapping[str, Json]] = (),
        twice: float = 0.0,
    ) -> None:
        """`calls_per_item`: the most LLM calls of one item; `tasks`: of example ids, where there are several tasks;
        `constraints`: such as 'quality >= 0.8', which come before the objectives; `twice`: see Ledger.
        Raises: ConfigError.
        """
        if not items.get("train") or not objectives:
            raise ConfigError("the search needs at least one train item and one objective; give both")
        self._space, self._settings, self._seed = space, settings, seed
        self._objectives, self._composite = tuple(objectives), composite
        self._lookahead, self._calls_per_item = settings.ahead(in_flight), calls_per_item
        rule = parse(recommend, [one.name for one in self._objectives])
        self._limits = Limits(constraints, self._objectives)
        self._named = measures(self._objectives, rule, budget.target_objective, self._limits.measures)
        self._scorers = tuple(dict.fromkeys(one.scorer for one in self._named if one.scorer))
        portion, self._over = min(PORTION, settings.block), in_flight // OVER
        self._check_ahead = max(self._lookahead, ceil(3 * in_flight / portion) + 1)
        self._index = {split: _numbered(items.get(split, ())) for split in SPLITS}
        self._tasks = {split: tasks(index) if tasks else None for split, index in self._index.items()}
        earlier = settings.selection == "steady"
        self._blocks = {split: blocks(items.get(split, ()), portion) for split in SPLITS[1:]}
        self._blocks["train"] = blocks(items["train"], settings.block, None if earlier else self._tasks["train"])
        target = next(one for one in self._named if one.name == budget.target_objective)
        whole = settings.strategy == "evolve" and settings.selection in ("generational", "random")
        train = blocks(items["train"], len(self._index["train"])) if whole else self._blocks["train"]
        self._stopping = Stopping(budget, target, settings.population, enough(train))
        self._ledger = Ledger(budget, twice)
        self._check = Check(self._blocks, self._objectives, self._named, rule, settings, seed)
        operators = portfolio(settings, space)
        self._population = Population(
            settings.population, self._objectives, distinct=not earlier and settings.strategy in ("evolve", "hybrid")
        )
        self._starts = {genome.id: self._new(genome, "start") for genome in start}
        self._ground = Ground(
            space=space,
            settings=settings,
            objectives=self._objectives,
            seed=seed,
            blocks=train,
            index=self._index["train"],
            tasks=self._tasks["train"],
            aim=None if earlier else Aim.of(rule, self._named),
            make=self._new,
            operators=operators,
            credit=shares(settings.selection, [name for name in operators if name != "seed"] or ["seed"]),
            stopping=self._stopping,
            population=self._population,
            starts=self._starts,
            seeds=deque(seeding(space, start, warm, train, settings.population, seed)),
            budget=budget,
            kept=self._check_takes,
            memory=Memory(settings.memory_tokens),
        )
        self._ground.recent.extend(self._starts)
        self._strategy = strategy(self._ground)
        self._refuse_if_senseless(start)

        self._phase: Literal["search", "validation", "test", "done"] = "search"
        self._ending: str | None = None
        self._asked = 0
        self._committed = 0
        self._evaluations = 0
        self._out: dict[int, Proposal] = {}
        self._arrived: dict[int, Trial] = {}

    # What the loop uses.

    def ask(self) -> Proposal | None:
        """The next proposal; None: tell something first, or `done`."""
        if not self._asked:
            nsga2.ready()
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

    def halfway(self) -> None:
        """Half of the time for the search is over. To repeat a run exactly, say so when `asked` is the same."""
        self._ground.halfway = True

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
    def scorers(self) -> tuple[str, ...]:
        """Scorers whose own values count for anything."""
        return self._scorers

    @property
    def generation(self) -> int:
        """Populations' worth of children committed so far."""
        return self._ground.generation

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
        """Where the run stands, as JSON values.

        What was spent is of every trial handed in, as it is of every row that is kept; all else of those committed.
        """
        waiting = self._arrived.values()
        spent = sum((trial.total for trial in waiting), self._ledger.spent)
        members = sorted(self._population.front(), key=lambda one: one.careful[::-1], reverse=True)[:SHOWN]
        best = max((one.tally("train").value(QUALITY) for one in self._population.contenders()), default=-np.inf)
        return {
            "phase": self._phase,
            "generation": self.generation,
            "asked": self._asked,
            "commits": self._committed,
            "evaluations": self._evaluations + sum(len(trial.evaluations) for trial in waiting),
            "calls": spent.calls,
            "cached": spent.cached,
            "usd": spent.usd,
            "paid_usd": spent.paid_usd,
            "budget": self._ledger.limits(),
            "kept_usd": self._check_takes()[1],
            "hypervolume": list(self._stopping.hypervolume),
            "objectives": [one.name for one in self._objectives],
            "front": [
                {
                    "genome": one.genome.id,
                    "values": {o.name: _json(one.tally("train").value(o)) for o in self._named},
                    **({"feasible": not one.violation} if self._limits else {}),
                }
                for one in members
            ],
            "best_quality": _json(best),
            "operators": self._ground.credit.state(),
            "restarts": self._ground.restarts,
            "stop_reason": self._ending,
            **self._strategy.told(),
            **self._kept(),
        }

    def _kept(self) -> dict[str, Any]:
        """The constraints and how many members keep them; nothing without constraints."""
        if not self._limits:
            return {}
        return {"constraints": self._limits.facts(), "feasible": len(self._population.feasible)}

    # Commits.

    @property
    def _outstanding(self) -> bool:
        return self._committed < self._asked

    def _horizon(self) -> int:
        """How many trials the next ask must have seen."""
        searching = self._phase == "search"
        ahead = self._lookahead if searching else self._check_ahead
        barrier = self._strategy.barrier(self._asked) if searching else 0
        return max(self._committed, barrier or self._asked - ahead + 1)

    def _commit(self, upto: int) -> bool:
        """Commit in order until `upto` trials count; False when the next one has not arrived."""
        while self._committed < upto:
            trial = self._arrived.pop(self._committed, None)
            if trial is None:
                return False
            proposal = self._out.pop(self._committed)
            self._committed += 1
            self._ledger.settle(proposal.number, trial.total, len(trial.evaluations), trial.lost)
            if trial.genome is not None:
                self._ledger.observe(
                    trial.genome.id, sum(_calls(one) for one in trial.evaluations), len(proposal.items)
                )
            self._evaluations += len(trial.evaluations)
            self._ground.bar(trial)
            if proposal.purpose in ("validation", "test"):
                self._check.count(trial)
            else:
                self._strategy.count(proposal, trial)
        return True

    def _new(self, genome: Genome, operator: str, generation: int = 0, parents: tuple[str, ...] = ()) -> Individual:
        def make(split: Split) -> Tally:
            return Tally(self._composite, self._scorers, self._index[split], self._tasks[split])

        return Individual(genome, make, generation, parents, operator, limits=self._limits)

    # The search phase.

    def _plan_search(self) -> Proposal | None:
        """The next proposal of the search; None: commit more first; with nothing out, the search is over."""
        tallies = [one.tally("train") for one in self._population.feasible]
        self._ending = self._ending or self._stopping.reason(self.generation, tallies)
        if self._ending is not None:
            return None
        if self._outstanding and self._settings.selection != "steady" and self._ledger.priceless:
            return None
        proposal = self._strategy.draft(self._asked, np.random.default_rng([self._seed, self._asked]))
        lack = self._lack(proposal) if proposal is not None else self._idle()
        if proposal is None or lack is not None:
            self._ending = None if self._outstanding else lack
            return None
        self._ledger.reserve(proposal.number, *self._price(proposal))
        self._strategy.handed(proposal)
        return proposal

    def _idle(self) -> str:
        return "exhausted" if len(self._population) else self._stopping.failures

    # Money.

    def _price(self, proposal: Proposal) -> tuple[int, float]:
        """The most calls a proposal can take, and the US dollars it is reckoned at."""
        count = len(proposal.items)
        calls = count * self._calls_per_item
        if proposal.operator != EVALUATE:
            return calls + self._ground.operators[proposal.operator].calls, count * self._ledger.dearest_usd
        one = self._ground.known(proposal.parents[0].id)
        each = np.inf if one is None else one.tally("train").value(COST)
        return calls, count * (float(each) if np.isfinite(each) else self._ledger.dearest_usd)

    def _lack(self, proposal: Proposal) -> str | None:
        """What the budget lacks for a proposal with all that must still be paid after it."""
        calls, usd = self._price(proposal)
        test = self._check.size(len(self._starts), "test")
        later = {"validation": test, "test": 0}.get(proposal.purpose)
        kept_calls, kept_usd = self._check_takes(later)
        return self._ledger.lacks(calls + kept_calls, usd + kept_usd, None if later is None else self._over)

    def _check_takes(self, items: int | None = None) -> tuple[int, float]:
        """The most calls, and about the US dollars, that so many items of the check take; default: all of it."""
        if items is None:
            items = sum(self._check.size(len(self._starts), split) for split in SPLITS[1:])
        return ceil(items * self._calls_checked()), items * MARGIN * self._ledger.mean_usd

    def _calls_checked(self) -> float:
        """Calls kept back for each item of the check: what the dearest that may be checked took so far, not the most
        that an item of anybody could take, which may be a multiple.
        """
        if self._settings.selection == "steady":
            return self._calls_per_item
        known = [*self._starts, *(one.genome.id for one in self._population.members)]
        return min(self._calls_per_item, SPARE * self._ledger.dearest_calls(known, self._calls_per_item))

    def _refuse_if_senseless(self, start: Sequence[Genome]) -> None:
        """Too few calls, or replicates of answers that are never drawn. Raises: ConfigError."""
        final = sum(self._check.size(len(self._starts), split) for split in SPLITS[1:]) * self._calls_per_item
        first = len(self._blocks["train"][0]) * self._calls_per_item * max(1, len(self._starts))
        self._ledger.refuse_if_too_small(final + first, final, "search.replicates, " * bool(self._settings.replicates))
        if self._settings.replicates and not any(
            drawn(one) for one in (*start, *self._space.spread(SPREAD, np.random.default_rng(self._seed)))
        ):
            raise ConfigError(
                f"search.replicates={self._settings.replicates!r}: another answer to the same question would be the "
                "same, since no `temperature` is above 0 and no `use_consensus` above 1; allowed here: 0; free one of "
                "these genes under `space:`, or leave replicates out"
            )

    # Validation and test.

    def _plan_check(self) -> Proposal | None:
        """The next part of the check; None: commit more first; with nothing out, the split is done."""
        part = self._check.next
        if part is None:
            return None
        one, split, items = part
        rng = np.random.default_rng([self._seed, self._asked])
        proposal = self._ground.propose(self._asked, split, EVALUATE, (one,), items, rng)
        if self._lack(proposal) is not None:
            if not self._outstanding:
                self._check.give_up()
            return None
        self._check.take()
        self._ledger.reserve(proposal.number, *self._price(proposal))
        return proposal

    def _advance(self) -> None:
        """With everything committed: from search to validation to test to done."""
        barred = self._ground.barred
        starts = [one for id, one in self._starts.items() if id not in barred and one.tally("train").items]
        if self._phase == "search":
            self._strategy.finish()
            self._check.validate(self._population, starts)
            self._phase = "validation"
        elif self._phase == "validation":
            self._check.settle(starts)
            self._phase = "test"
        else:
            self._phase = "done"


def strategy(ground: Ground) -> Strategy:
    """The strategy that the settings name. Raises: ConfigError."""
    settings = ground.settings
    if settings.strategy == "breed":
        return Breed(ground)
    if settings.strategy == "refine":
        return Refine(ground)
    if settings.selection in ("generational", "random"):
        return Plain(ground, random=settings.selection == "random")
    population = Steady(ground) if settings.selection == "steady" else Evolve(ground)
    return Hybrid(ground, population) if settings.strategy == "hybrid" else population


def _calls(one: Evaluation) -> int:
    return one.usage.calls + one.judging.calls


def _numbered(items: Sequence[Item]) -> dict[str, int]:
    return {example: number for number, example in enumerate(dict.fromkeys(item.example for item in items))}


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
