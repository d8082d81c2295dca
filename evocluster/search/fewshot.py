"""Operators on the few-shot gene alone: one typed move of it, and demos near to examples that matter.

Which demos stand in the prompt moves small models more than any other gene. Examples near to the ones that fail help
most (Liu et al. 2022, "What makes good in-context examples for GPT-3?"), and what the population disagrees about is
where a demo tells the most (DSPy's SIMBA picks its examples by the spread of their scores). The demo pool and the
scored examples are disjoint, so "near" goes through `Space.near`, by ids: no operator sees a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM
from evocluster.records import Genome, Json
from evocluster.search.demos import Shots
from evocluster.search.operators import REDRAWS, Child, known
from evocluster.search.space import Space

ANEW = 0.3
"""Share of children whose demos are all chosen by the examples that matter; the others keep most of theirs."""
CONTRAST = 0.5
"""Chance that a newcomer brings along the nearest demo of another group, the one it is confused with."""
NEXT = 0.6
"""Chance of the nearest demo that is free, of the next one if not that, and so on."""


def _shots(space: Space, name: str) -> Shots:
    if space.shots is None:
        raise OperatorFailed(f"{name}: the space has no free demos; write `demos: {{max: 8}}` to free them")
    return space.shots


def _child(genome: Genome, before: Sequence[str], move: str) -> Child:
    now = genome["demos"]
    added, dropped = [id for id in now if id not in before], [id for id in before if id not in now]
    return Child(genome, {"move": move, "added": added, "dropped": dropped})


@dataclass(frozen=True)
class DemoMove:
    """One typed move: add, drop, swap, twin (swap within the label), shuffle, a round more or less, or all anew."""

    name: str = "demos"
    arity: int = 1
    calls: int = 0
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        """The notes: `move`, and the ids `added` and `dropped`."""
        shots, made = _shots(space, self.name), known(parents, hints)
        parent = space.fix(parents[0].genes)
        before = start = parent["demos"]
        for _ in range(1 + REDRAWS):
            move, now = shots.moved(start, rng)
            child = space.fix({**parent.genes, "demos": now})
            if child.id not in made:
                break
            start = now if rng.random() < 0.5 else before
        return _child(child, before, move)


@dataclass(frozen=True)
class Nearby:
    """Demos near to the scored examples that the hint `by` lists, in place of others of their group."""

    name: str = "similar"
    by: str = "failing"
    arity: int = 1
    calls: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        """The notes: `move`, the ids `added` and `dropped`, and the examples it went `by`."""
        shots, made = _shots(space, self.name), known(parents, hints)
        targets = [id for id in hints.get(self.by, ()) if space.near.get(id)]
        if not targets:
            raise OperatorFailed(f"{self.name}: no {self.by} example has a demo near to it")
        parent = space.fix(parents[0].genes)
        before = list(parent["demos"])
        for _ in range(1 + REDRAWS):
            anew = bool(before) and rng.random() < ANEW
            now = list[str]() if anew else before
            wanted = max(1, len(before), shots.low) if anew else 1 + int(rng.choice(3, p=(0.5, 0.3, 0.2)))
            newcomers = self._newcomers(space, shots, now, targets, wanted, rng)
            placed = _evened(shots, newcomers, before) if anew else _placed(shots, now, newcomers, rng)
            child = space.fix({**parent.genes, "demos": placed})
            if child.id not in made:
                break
        told = _child(child, before, "anew" if anew else "near")
        return Child(told.genome, {**told.notes, "by": targets})

    @staticmethod
    def _newcomers(
        space: Space, shots: Shots, now: Sequence[str], targets: Sequence[str], wanted: int, rng: np.random.Generator
    ) -> list[str]:
        """At most `wanted` ids that are not among the demos now, by turns of the targets in random order."""
        found: list[str] = []
        while len(found) < wanted:
            before = len(found)
            for at in rng.permutation(len(targets)):
                free = [id for id in space.near[targets[int(at)]] if id not in now and id not in found]
                if not free:
                    continue
                chosen = free[min(int(rng.geometric(NEXT)), len(free)) - 1]
                found.append(chosen)
                other = [id for id in free if shots.group(id) != shots.group(chosen)]
                if other and rng.random() < CONTRAST:
                    found.append(other[0])
                if len(found) >= wanted:
                    break
            if len(found) == before:
                break
        return found[:wanted]


def _evened(shots: Shots, newcomers: Sequence[str], before: Sequence[str]) -> list[str]:
    """As many demos as before: newcomers, where labels mean something no more of each than its share, and the rest
    from those of before.
    """
    share = -(-len(before) // shots.groups) if shots.rounds else len(before)
    placed: list[str] = []
    for id in dict.fromkeys([*newcomers, *before]):
        if sum(shots.group(other) == shots.group(id) for other in placed) < share and len(placed) < len(before):
            placed.append(id)
    left = [id for id in before if id not in placed]
    return [*left[: len(before) - len(placed)], *placed[::-1]]


def _placed(shots: Shots, now: Sequence[str], newcomers: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The demos with the newcomers: added at an end while there is room, else in place of one of the same group, so
    that labels stay as even as they are, or of the group with the most.
    """
    placed = list(now)
    fresh = set(newcomers)
    for id in newcomers:
        # Growth makes every call dearer, so half of the newcomers take a place even where there is room.
        if len(placed) < shots.high and (not placed or set(placed) <= fresh or rng.random() < 0.5):
            placed.insert(len(placed) if rng.random() < 0.5 else 0, id)
            continue
        old = [at for at, other in enumerate(placed) if other not in fresh]
        if not old:
            break
        groups = [shots.group(other) for other in placed]
        same = [at for at in old if groups[at] == shots.group(id)]
        most = max(groups.count(groups[at]) for at in old)
        choice = same or [at for at in old if groups.count(groups[at]) == most]
        placed[choice[int(rng.integers(len(choice)))]] = id
    return placed
