"""The check after the search: finalists and start on validation, then the front and start on test, once.

Finalists are chosen on train. Who is on the front and who is recommended is settled on validation, which no
decision of the search has seen; the test set settles nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from evocluster.records import Item, Split, Trial
from evocluster.search import nsga2
from evocluster.search.members import enough
from evocluster.search.objectives import Objective
from evocluster.search.population import Individual, Population
from evocluster.search.recommend import Rule, choose

Blocks = Mapping[Split, Sequence[tuple[Item, ...]]]
Part = tuple[Individual, Literal["validation", "test"], tuple[Item, ...]]


class Check:
    """Call order: `validate`, parts until they run out, `settle`, parts until they run out."""

    def __init__(
        self,
        blocks: Blocks,
        objectives: Sequence[Objective],
        named: Sequence[Objective],
        rule: Rule,
        finalists: int,
    ) -> None:
        """`named`: all that the rule may speak of."""
        self._blocks = blocks
        self._objectives = tuple(objectives)
        self._named = tuple(named)
        self._rule = rule
        self._finalists = finalists
        self._queue: deque[Part] = deque()
        self._members: dict[str, Individual] = {}
        self.front: list[Individual] = []
        """The non-dominated on validation, once settled."""
        self.choice = ("", "")
        """Genome id of the recommended member and why."""

    def size(self, starts: int, split: Split) -> int:
        """The most items that the check of a split takes."""
        return (self._finalists + starts) * sum(len(block) for block in self._blocks[split])

    def validate(self, population: Population, starts: Sequence[Individual]) -> None:
        """Choose the finalists and queue them, the starts first."""
        best = finalists(population, self._finalists, enough(self._blocks["train"]))
        self._members = {one.genome.id: one for one in (*starts, *best)}
        self._enqueue(list(self._members.values()), "validation")

    def settle(self, starts: Sequence[Individual]) -> None:
        """Settle front and recommended member; queue the starts and the front for the test, the recommended
        one early.
        """
        split: Split = "validation" if self._blocks["validation"] else "train"
        self.front = self._settled(split)
        if self.front:
            table = [{o.name: one.tally(split).value(o) for o in self._named} for one in self.front]
            at, why = choose(table, self._rule, self._objectives)
            self.choice = (self.front[at].genome.id, why)
        tested = [*starts, *sorted(self.front, key=lambda one: one.genome.id != self.choice[0])]
        self._enqueue(list(dict.fromkeys(tested)), "test")

    def _enqueue(self, members: Sequence[Individual], split: Literal["validation", "test"]) -> None:
        self._queue.extend((one, split, block) for one in members for block in self._blocks[split])

    def _settled(self, split: Split) -> list[Individual]:
        """The non-dominated among those with all items of the split, or among those with the most where
        nobody has.
        """
        counts = {id: one.tally(split).items for id, one in self._members.items()}
        most = max(counts.values(), default=0)
        wanted = 1 if split == "train" else min(most, sum(len(block) for block in self._blocks[split]))
        ready = [one for id, one in self._members.items() if most and counts[id] >= wanted]
        if not ready:
            return []
        table = np.array([[o.sign * one.tally(split).value(o) for o in self._objectives] for one in ready])
        return [ready[int(i)] for i in nsga2.front(table)]

    @property
    def next(self) -> Part | None:
        """The part to hand out next."""
        return self._queue[0] if self._queue else None

    def take(self) -> None:
        """The next part was handed out."""
        self._queue.popleft()

    def give_up(self) -> None:
        """There is no budget for the rest of this split: who is not checked yet does not count."""
        self._queue.clear()

    def count(self, trial: Trial) -> None:
        """Count a part's evaluations. A part that failed leaves its genome unchecked."""
        split, parents = trial.proposal.purpose, trial.proposal.parents
        if split in ("validation", "test") and trial.error is None:
            self._members[parents[0].id].tally(split).add(trial.evaluations)


def finalists(population: Population, count: int, enough: int) -> list[Individual]:
    """At most `count` members to check: by turns the surest composite, the surest quality, and the least
    crowded.

    The non-dominated come first, and among them those with `enough` train items: means of one block lie.
    """
    crowding = population.crowding()
    front = {one.genome.id for one in population.front()}
    chosen: dict[str, Individual] = {}
    tested = [one for one in population.members if one.tally("train").items >= enough]
    for wanted in (
        [one for one in tested if one.genome.id in front],
        [one for one in tested if one.genome.id not in front],
        population.members,
    ):
        left = [one for one in wanted if one.genome.id not in chosen]
        for turn in range(min(len(left), count - len(chosen))):
            if turn % 5 == 4:
                best = max(left, key=lambda one: (crowding[one.genome.id], *one.careful))
            else:
                best = max(left, key=lambda one: one.careful if turn % 2 else one.careful[::-1])
            chosen[best.genome.id] = best
            left.remove(best)
    return list(chosen.values())
