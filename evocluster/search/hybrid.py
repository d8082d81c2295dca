"""Hybrid: a population explores, then its winner is refined; where that comes to a stand, the population goes on.

The switch is made where the population's front stops growing, or when half of what the search may use is used: of
calls and dollars without what the check afterwards takes, of generations, or of the time, of which the caller tells.
What is out then is waited for, so that the winner is chosen among all. Refinement is over when it has nothing left to
try or gave no prompt a successor for several rounds, as with a model that cannot reflect; the budget that is left then
is the population's, in which the refined stay. All else derives from committed trials.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evocluster.records import Proposal, Trial, Usage
from evocluster.search.ground import Ground, Strategy
from evocluster.search.refine import Refine, able, best_of
from evocluster.search.rounds import parts

STALL = 2
"""Generations without progress of the hypervolume after which exploring ends."""
SHARE = 0.5
"""Of what the search may use, for exploring."""


class Hybrid:
    """A strategy of `ground.Strategy`."""

    def __init__(self, ground: Ground, explore: Strategy) -> None:
        """Raises: ConfigError where the winner could not be refined."""
        able(ground)
        parts(ground.blocks)
        self._ground = ground
        self._explore = explore
        self._refine: Refine | None = None
        self._leaving = False
        self._back = False
        self._out = 0
        self._spent = Usage()

    @property
    def exploring(self) -> bool:
        """Nothing has been refined yet."""
        return self._refine is None

    @property
    def _now(self) -> Strategy:
        """Whose turn it is."""
        return self._explore if self._refine is None or self._back else self._refine

    def barrier(self, number: int) -> int:
        """That of the exploring strategy, while it explores."""
        return self._explore.barrier(number) if self._now is self._explore and not self._leaving else 0

    def finish(self) -> None:
        """The search phase is over."""
        self._now.finish()

    def told(self) -> dict[str, Any]:
        """For progress: what both strategies tell, and whether exploring has not been left yet."""
        refining = self._refine.told() if self._refine is not None else {}
        return {**self._explore.told(), **refining, "exploring": self._refine is None}

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """What the strategy whose turn it is wants to try."""
        self._leave_if(self._ground.halfway)
        if self._refine is None and not self._leaving:
            proposal = self._explore.draft(number, rng)
            if proposal is not None or self._out:
                return proposal
        if self._refine is None and not self._out and len(self._ground.population):
            self._take_over()
        if self._refine is not None and not self._back:
            proposal = None if self._refine.stands else self._refine.draft(number, rng)
            if proposal is not None or self._out:
                return proposal
            self._come_back()
        return self._explore.draft(number, rng) if self._back else None

    def handed(self, proposal: Proposal) -> None:
        """A draft goes out."""
        self._out += 1
        self._now.handed(proposal)

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial into account, and decide whether to leave exploring."""
        self._out -= 1
        self._spent = self._spent + trial.total
        self._now.count(proposal, trial)
        self._leave_if(self._stalled() or self._half())
        if self._leaving and self._refine is None:
            # A stall of what explored must not end the search before its winner is refined.
            self._ground.stopping.begin_anew()

    def _leave_if(self, due: bool) -> None:
        if due and self._refine is None and not self._ground.seeds:
            self._leaving = True

    def _take_over(self) -> None:
        self._ground.stopping.begin_anew()
        self._explore.finish()
        self._refine = Refine(self._ground, best_of(self._ground.population.members))

    def _come_back(self) -> None:
        assert self._refine is not None
        self._ground.stopping.begin_anew()
        self._refine.finish()
        self._leaving, self._back = False, True

    def _stalled(self) -> bool:
        return self._ground.stopping.stalled(min(STALL, self._ground.budget.stall or STALL))

    def _half(self) -> bool:
        """Half of the calls, US dollars or generations that the search may use."""
        budget, spent, (calls, usd) = self._ground.budget, self._spent, self._ground.kept()
        return any(
            most is not None and used >= SHARE * (most - kept)
            for most, kept, used in (
                (budget.calls, calls, spent.calls),
                (budget.usd, usd, spent.usd),
                (budget.generations, 0, self._ground.generation),
            )
        )
