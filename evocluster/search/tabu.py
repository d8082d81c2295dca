"""What was rejected, so that it does not come back: a bounded memory, and the check a child passes before it is
evaluated.

A race costs dozens of calls, and a reworded copy of what lost one will lose again (compare the novelty rejection of
Lange et al. 2025, ShinkaEvolve). Call order: `reject` a child in the search; `hint` goes with the proposals, small,
as differences from the parents; in the worker `Wary` makes an operator draw again where its child is a near twin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM
from evocluster.records import Genome, Json, canonical
from evocluster.search.operators import REDRAWS, Child, Operator
from evocluster.search.space import Space

KEPT = 512
"""Rejected genomes that are remembered; the oldest are forgotten first."""
TOLD = 24
"""Rejected genomes that a proposal tells of, at most."""
TOLD_CHARS = 6000
"""Characters that they may take."""
APART = 3
"""Genes by which a rejected genome may differ from a parent of the proposal and still be told of: as many as a
mutation moves. Those of the same parent always are.
"""
ALIKE = 0.95
"""Rubrics with this similarity of their words (difflib's ratio, 0 to 1) count as one."""
TWIN = "near twin of a rejected child"
"""What the error of a trial says that came to nothing for this reason alone: the search is short of new ground."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def reworded(one: str, other: str) -> bool:
    """Two texts that differ by little more than case, punctuation and spacing."""
    first, second = (_WORD.findall(text.casefold()) for text in (one, other))
    if first == second:
        return bool(first) or one.split() == other.split()
    match = SequenceMatcher(None, first, second, autojunk=False)
    return match.quick_ratio() >= ALIKE and match.ratio() >= ALIKE


def near(genome: Genome, rejected: Genome, space: Space) -> bool:
    """The same up to wording: equal genes, numbers of a range closer than `genes.CLOSE` of its width, demos in any
    order, rubrics that are `reworded`. Both are genomes of the space.
    """
    for name in space.names:
        one, other = genome[name], rejected[name]
        if one == other or name == "rubric":
            continue
        if name == "demos":
            if set(one) != set(other):
                return False
        elif not space.alike(name, one, other):
            return False
    return "rubric" not in space.names or reworded(str(genome["rubric"]), str(rejected["rubric"]))


class Tabu:
    """The genomes that were rejected last, and whose children they were."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._rejected: dict[str, tuple[Genome, frozenset[str]]] = {}

    def __len__(self) -> int:
        return len(self._rejected)

    def reject(self, genome: Genome, *parents: str) -> None:
        """Remember a child that was sent away. `parents`: ids."""
        before = self._rejected.pop(genome.id, (genome, frozenset[str]()))
        self._rejected[genome.id] = (genome, before[1] | frozenset(parents))
        while len(self._rejected) > self._kept:
            del self._rejected[next(iter(self._rejected))]

    def hint(self, parents: Sequence[Genome]) -> tuple[Mapping[str, Json], ...]:
        """The rejected genomes near to these parents, the nearest and newest first: {of: which parent, genes: what
        is not as in that parent}.
        """
        found: list[tuple[int, int, dict[str, Json]]] = []
        for genome, of in self._rejected.values():
            ways = [(_changes(parent, genome), at) for at, parent in enumerate(parents)]
            changes, at = min(ways, key=lambda way: (len(way[0]), way[1]), default=({}, -1))
            if at >= 0 and (len(changes) <= APART or any(parent.id in of for parent in parents)):
                found.append((len(changes), at, changes))
        told: list[Mapping[str, Json]] = []
        chars = 0
        for _, at, changes in sorted(reversed(found), key=lambda one: one[0])[:TOLD]:
            chars += len(canonical(changes))
            if chars > TOLD_CHARS:
                break
            told.append({"of": at, "genes": changes})
        return tuple(told)


def _changes(parent: Genome, genome: Genome) -> dict[str, Json]:
    return {name: value for name, value in genome.genes.items() if parent.genes.get(name) != value}


def barred(space: Space, parents: Sequence[Genome], hints: Mapping[str, Json]) -> list[Genome]:
    """The rejected genomes that the hints of a proposal tell of."""
    return [space.fix({**parents[one["of"]].genes, **one["genes"]}) for one in hints.get("tabu", ())]


@dataclass(frozen=True)
class Wary:
    """An operator whose child is no near twin of a rejected one: drawn again where that costs nothing, else failed."""

    inner: Operator
    rejected: tuple[Genome, ...] | None = None
    """What the hints bar, where that is known already."""

    def knowing(self, space: Space, parents: Sequence[Genome], hints: Mapping[str, Json]) -> Wary:
        """The same for several draws with these hints: what they bar is worked out once."""
        return Wary(self.inner, tuple(barred(space, parents, hints)))

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def arity(self) -> int:
        return self.inner.arity

    @property
    def calls(self) -> int:
        return self.inner.calls

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.inner.needs, "tabu")

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        """Raises: errors.OperatorFailed with `TWIN` in it; what the operator raises."""
        rejected = self.rejected if self.rejected is not None else barred(space, parents, hints)
        hints = {**hints, "avoid": (*hints.get("avoid", ()), *(one.id for one in rejected))}
        for _ in range(1 if self.calls else 1 + REDRAWS):
            child = await self.inner.vary(space, parents, hints, llm, rng)
            if not any(near(child.genome, one, space) for one in rejected):
                return child
        raise OperatorFailed(f"{self.name}: {TWIN}; nothing was evaluated")
