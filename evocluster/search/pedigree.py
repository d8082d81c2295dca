"""Who descends from whom, as far as breeding asks: the elites in a genome's line, and the mutation prompt it carries.

Ancestors leave the population, so this is kept apart from it; bounded, however long a search is. Call order: `seen`
whenever something was learned of an individual, `of` and `inherited` any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evocluster.records import Json
from evocluster.search.breed_form import MUTATION
from evocluster.search.population import Individual

KEPT = 4096
"""Genomes remembered; who was not seen for longest is forgotten first."""
ELITES = 8
"""Elites of a line that are remembered, the latest ones."""
CLIPPED = 400
"""Characters of a rubric that are remembered and shown."""


class Line(NamedTuple):
    """What is remembered of one genome."""

    elites: tuple[str, ...]
    """Rubrics of those of its line, itself included, that were the best of their time; the oldest first."""
    mutation: str
    """'' where it carries none."""


class Pedigree:
    """Lines by genome id."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def of(self, id: str) -> tuple[str, ...]:
        """Rubrics of the elites in a genome's line, the oldest first; () where it is forgotten."""
        line = self._lines.get(id)
        return line.elites if line is not None else ()

    def inherited(self, parents: Sequence[str]) -> Mapping[str, Json]:
        """The note of the mutation prompt that a child of these has unless it got another: its first parent's."""
        line = self._lines.get(parents[0]) if parents else None
        return {MUTATION: line.mutation} if line is not None and line.mutation else {}

    def seen(self, one: Individual, members: Sequence[Individual]) -> None:
        """Something was learned of it. It is an elite when none of the others is as surely right."""
        id = one.genome.id
        line = self._lines.pop(id, None)
        elites = line.elites if line is not None else self.of(one.parents[0]) if one.parents else ()
        if all(one.careful[0] > other.careful[0] for other in members if other is not one):
            text = str(one.genome.genes.get("rubric", ""))[:CLIPPED]
            elites = elites if text in elites else (*elites, text)[-ELITES:]
        self._lines[id] = Line(elites, str(one.notes.get(MUTATION, "")))
        if len(self._lines) > self._kept:
            del self._lines[next(iter(self._lines))]
