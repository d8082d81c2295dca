"""The check after the search: finalists and start on validation, then the front and start on test, once.

Finalists are chosen on train. Who is on the front and who is recommended is settled on validation, which no
decision of the search has seen; the test set settles nothing.

Validation is a race too: the finalists take their portions by turns, and at a quarter, half and three quarters of the
examples those leave that another one surely beats (`race.py`). The start runs to the end, to be compared with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from evocluster.records import Genome, Item, Split, Trial
from evocluster.search import nsga2
from evocluster.search.members import Choice, Honest, enough, intervals
from evocluster.search.objectives import Objective, Tally
from evocluster.search.population import NOWHERE, Individual, Population
from evocluster.search.race import behind, spent
from evocluster.search.recommend import Rule, choose
from evocluster.search.settings import Search
from evocluster.search.winner import Candidate, Contest

Blocks = Mapping[Split, Sequence[tuple[Item, ...]]]
Part = tuple[Individual, Literal["validation", "test"], tuple[Item, ...]]
ERROR = 0.05
"""The chance that the best finalist is sent away, over all looks and rivals."""
LOOKS = (0.25, 0.5, 0.75)
"""Shares of validation after which the finalists are looked at."""


class Check:
    """Call order: `validate`, parts until they run out, `settle`, parts until they run out."""

    def __init__(
        self,
        blocks: Blocks,
        objectives: Sequence[Objective],
        named: Sequence[Objective],
        rule: Rule,
        settings: Search,
        seed: int,
    ) -> None:
        """`named`: all that the rule may speak of; `seed`: of resamples."""
        self._blocks = blocks
        self._objectives = tuple(objectives)
        self._named = tuple(named)
        self._rule = rule
        self._settings = settings
        self._seed = seed
        # Run folders of before there was a race ask for everything, finalist by finalist.
        self._races = settings.selection != "steady"
        self._queue: deque[Part] = deque()
        self._members: dict[str, Individual] = {}
        self._running: dict[str, int] = {}
        self._kept: set[str] = set()
        self._looks = [max(1, int(len(blocks["validation"]) * share)) for share in LOOKS]
        self._given_up = False
        self.front: list[Individual] = []
        """The non-dominated on validation, and the recommended one, once settled."""
        self.choice = Choice()
        """The recommended member."""

    def size(self, starts: int, split: Split) -> int:
        """The most items that the check of a split takes."""
        times = 1 + self._settings.replicates if split == "validation" else 1
        return (self._settings.finalists + starts) * sum(len(block) for block in self._blocks[split]) * times

    def validate(self, population: Population, starts: Sequence[Individual]) -> None:
        """Choose the finalists and queue them, the starts first."""
        train, by = enough(self._blocks["train"]), self._rule.best if self._races else ""
        best = finalists(population, self._settings.finalists, train, by)
        self._members = {one.genome.id: one for one in (*starts, *best)}
        members, parts = list(self._members.values()), self._blocks["validation"]
        if self._races:
            self._running = {one.genome.id: 0 for one in members}
            self._kept = {one.genome.id for one in starts}
            self._queue.extend((one, "validation", block) for block in parts for one in members)
        else:
            self._enqueue(members, "validation")
        for number in range(1, self._settings.replicates + 1):
            again = [tuple(item.model_copy(update={"replicate": number}) for item in block) for block in parts]
            self._queue.extend((one, "validation", block) for block in again for one in members if drawn(one.genome))

    def settle(self, starts: Sequence[Individual]) -> None:
        """Settle front and recommended member; queue the starts and the front for the test, the recommended
        one early.
        """
        split: Split = "validation" if self._blocks["validation"] else "train"
        ready = self._ready(split)
        self.front = self._non_dominated(ready, split)
        if self.front:
            first = self._settle_choice(ready, starts, split)
            self._enqueue(list(dict.fromkeys([*starts, *sorted(self.front, key=lambda one: one is not first)])), "test")
        else:
            self._enqueue(starts, "test")

    def _settle_choice(self, ready: Sequence[Individual], starts: Sequence[Individual], split: Split) -> Individual:
        """Choose; the member that is tested first."""
        contest = self._contest(ready, split)
        id, why = (contest if self._races else self._contest(self.front, split)).decide()
        decided = self._members[id]
        why = decided.limits.reason(decided.tally(split), why)
        self.choice = Choice(id, why, self._honest(contest, id, split), starts[0] if starts else None)
        if not self._races:
            table = [{o.name: one.tally(split).value(o) for o in self._named} for one in self.front]
            return self.front[choose(table, self._rule, self._objectives)[0]]
        chosen = self._members[id]
        if chosen not in self.front:
            self.front.append(chosen)
        return chosen

    def _contest(self, members: Sequence[Individual], split: Split) -> Contest:
        candidates = [
            Candidate(one.genome.id, one.tally(split), _seen(one) if split != "train" else None) for one in members
        ]
        return Contest(candidates, self._rule, self._named, self._objectives, self._seed, members[0].limits)

    def _honest(self, contest: Contest, id: str, split: Split) -> dict[str, Honest]:
        """What the recommended is worth without the luck of the choice; nothing where there is a single example."""
        found = contest.honest(self._ids(split))
        if found is None:
            return {}
        left_out, own = (intervals(one, self._named, self._seed) for one in (found[0], self._members[id].tally(split)))
        told = {one.name: contest.worth(id, one, left_out[one.name], own[one.name]) for one in self._named}
        return {name: Honest(**one.model_dump(), folds=found[1], split=split) for name, one in told.items()}

    def _ids(self, split: Split) -> list[str]:
        """Examples in the order of their numbers."""
        return list(dict.fromkeys(item.example for block in self._blocks[split] for item in block))

    def _enqueue(self, members: Sequence[Individual], split: Literal["validation", "test"]) -> None:
        self._queue.extend((one, split, block) for one in members for block in self._blocks[split])

    def _ready(self, split: Split) -> list[Individual]:
        """Those with all items of the split, or those with the most where nobody has.

        Where the budget ended in the middle of a round, one part less is as good.
        """
        counts = {id: one.tally(split).once for id, one in self._members.items()}
        most = max(counts.values(), default=0)
        if split == "train":
            wanted = 1
        else:
            wanted = min(most, sum(len(block) for block in self._blocks[split]))
            if self._given_up and self._races:
                wanted -= max(len(block) for block in self._blocks[split])
        return [one for id, one in self._members.items() if counts[id] >= max(1, wanted)]

    def _non_dominated(self, ready: Sequence[Individual], split: Split) -> list[Individual]:
        if not ready:
            return []
        table = np.array([[o.sign * one.tally(split).value(o) for o in self._objectives] for one in ready])
        broken = np.array([one.limits.violation(one.tally(split)) for one in ready])
        return [ready[int(i)] for i in nsga2.front(table, broken)]

    @property
    def next(self) -> Part | None:
        """The part to hand out next."""
        return self._queue[0] if self._queue else None

    def take(self) -> None:
        """The next part was handed out."""
        self._queue.popleft()

    def give_up(self) -> None:
        """There is no budget for the rest of this split: who is not checked yet does not count."""
        self._given_up = True
        self._queue.clear()

    def count(self, trial: Trial) -> None:
        """Count a part's evaluations. A part that failed leaves its genome unchecked; of a quarantined one no more is
        asked.
        """
        split, id = trial.proposal.purpose, trial.proposal.parents[0].id
        if trial.quarantined:
            self._running.pop(id, None)
            self._queue = deque(part for part in self._queue if part[0].genome.id != id)
        if split in ("validation", "test") and trial.error is None:
            self._members[id].tally(split).add(trial.evaluations)
        if split == "validation" and id in self._running:
            self._running[id] += 1
            while self._looks and min(self._running.values()) >= self._looks[0]:
                self._looks.pop(0)
                self._look()

    def _look(self) -> None:
        """Who is surely behind another finalist that breaks constraints by no more leaves; what was queued for it is
        not asked for.
        """
        tallies = {id: self._members[id].tally("validation") for id in self._running}
        broken = {id: self._members[id].limits.violation(one) for id, one in tallies.items()}
        alpha = spent(ERROR, len(LOOKS) * max(1, len(tallies) - 1))
        beaten = {
            id
            for id, one in tallies.items()
            if id not in self._kept
            and any(
                broken[other] <= broken[id] and behind(one, rival, self._objectives, alpha)
                for other, rival in tallies.items()
                if other != id
            )
        }
        for id in beaten:
            del self._running[id]
        self._queue = deque(part for part in self._queue if part[0].genome.id not in beaten)


def drawn(genome: Genome) -> bool:
    """Its answers are drawn, so that another one of the same question may differ: a temperature, or votes."""
    votes = genome.genes.get("use_consensus", 1)
    return bool(genome.genes.get("temperature")) or (len(votes) if isinstance(votes, tuple | list) else int(votes)) > 1


def _seen(one: Individual) -> Tally | None:
    """What train says of it, where it was tried there."""
    return one.tally("train") if one.tally("train").items else None


def finalists(population: Population, count: int, enough: int, by: str = "") -> list[Individual]:
    """At most `count` members to check: by turns the surest composite, the surest quality, and the least
    crowded. What the rule asks for (`by`: the name of what it wants best) goes first, and twice as often.

    The non-dominated come first, and among them those with `enough` train items: means of one block lie. Who breaks
    constraints by more comes later.
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
            quality = {"quality": turn % 3 != 1, "composite": turn % 3 == 1}.get(by, turn % 2 == 1)
            if turn % 5 == 4:
                best = max(left, key=lambda one: (-one.violation, crowding[one.genome.id], *one.careful))
            elif turn % 3 != 1 and left[0].aim is not None:
                best = max(left, key=lambda one: (-one.violation, one.aim or NOWHERE))
            else:
                best = max(left, key=lambda one: (-one.violation, *(one.careful if quality else one.careful[::-1])))
            chosen[best.genome.id] = best
            left.remove(best)
    return list(chosen.values())
