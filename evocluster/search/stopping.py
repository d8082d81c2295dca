"""When a search has done enough: what is counted along the way, and the reason it gives."""

from __future__ import annotations

from collections.abc import Sequence

from evocluster.search.budget import Budget
from evocluster.search.objectives import Objective, Tally

FAILURES = 40
"""Proposals in a row that came to nothing end the search."""
PROGRESS = 1e-3
"""Relative growth of the hypervolume that counts as progress."""


class Stopping:
    """Counts commits.

    Call order: `made` or `missed` and `repeated` a trial, `close` a generation, `reason` any time.
    """

    def __init__(self, budget: Budget, target: Objective, population: int, enough: int) -> None:
        """`enough`: how many train items a member needs before it can reach the target."""
        self._budget = budget
        self._target = target
        self._population = population
        self._enough = enough
        self._failed = 0
        self._failure = ""
        self._repeated = 0
        self._since = 0
        self.hypervolume: list[float] = []
        """After seeding and after every generation."""

    def made(self) -> None:
        """A trial gave evaluations."""
        self._failed = 0

    def missed(self, error: str | None) -> None:
        """A trial came to nothing."""
        self._failed += 1
        self._failure = error or self._failure or "no evaluations came back"

    def repeated(self, known: bool) -> None:
        """A child was a genome that is known already, or a new one."""
        self._repeated = self._repeated + 1 if known else 0

    def begin_anew(self) -> None:
        """Another strategy takes over: what was repeated or stalled before it is not held against it."""
        self._repeated = 0
        self._since = max(0, len(self.hypervolume) - 1)

    def stalled(self, k: int) -> bool:
        """The last k generations brought no progress of the hypervolume."""
        history = self.hypervolume[self._since :]
        return len(history) > k and max(history[-k:]) <= max(history[:-k]) * (1 + PROGRESS)

    @property
    def worn(self) -> bool:
        """Children are nothing but genomes that are known already."""
        return self._repeated >= max(20, 2 * self._population)

    @property
    def failures(self) -> str:
        """The reason of a search that nothing came of."""
        return f"failures: {self._failed} proposals in a row came to nothing; the last: {self._failure}"

    def reason(self, generation: int, tallies: Sequence[Tally]) -> str | None:
        """Why the search is over, if it is. `tallies`: of the feasible members, on train."""
        budget, history = self._budget, self.hypervolume
        if budget.generations is not None and generation >= budget.generations:
            return "generations"
        if self._failed >= FAILURES:
            return self.failures
        if budget.target is not None and history and self._reached(budget.target, tallies):
            return "target"
        # Who still looks for anything feasible has no hypervolume to make progress in.
        return "stall" if budget.stall is not None and tallies and self.stalled(budget.stall) else None

    def _reached(self, target: float, tallies: Sequence[Tally]) -> bool:
        sign = self._target.sign
        tried = [tally for tally in tallies if tally.items >= self._enough]
        return any(sign * tally.value(self._target) <= sign * target for tally in tried)
