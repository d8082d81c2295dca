"""The form that the nine operators of breeding share: a unit in hand, and a child that carries its mutation prompt.

A unit is a genome with a mutation prompt: advice on how its prompt (the gene `rubric`) is to be changed. The genome's
name is by content and must not know of it, so it travels in the notes: `Child.notes["mutation_prompt"]`, kept with the
trial, becomes `Individual.notes`, and is handed on to its children as the hint `mutation_prompt`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM
from evocluster.records import Genome, Json
from evocluster.search.breed_words import MUTATIONS, drawn
from evocluster.search.operators import Child
from evocluster.search.rewrite import accepted, ask, asked, cleaned, kept, placeholders
from evocluster.search.space import Space

MUTATION = "mutation_prompt"
"""The note, and the hint, that a unit's mutation prompt is."""
LONGEST = 400
"""Characters of a mutation prompt."""

APPLY = """{mutation}

Instruction: {rubric}

Change the instruction as advised above{kept}. Answer with the new instruction only.
New instruction:"""


@dataclass(frozen=True)
class Unit:
    """A parent in the hands of an operator, with its mutation prompt and all it takes to ask."""

    name: str
    """Of the operator."""
    model: str | None
    """Whom to ask; None: the parent's own model."""
    space: Space
    parent: Genome
    """Inside the space."""
    mates: tuple[Genome, ...]
    """Further parents, inside the space."""
    hints: Mapping[str, Json]
    llm: LLM
    rng: np.random.Generator
    mutation: str

    @property
    def rubric(self) -> str:
        """The prompt to be changed."""
        return str(self.parent["rubric"])

    @property
    def kept(self) -> str:
        """What to say of the placeholders that a new prompt must have."""
        return kept(placeholders(self.rubric))

    @property
    def description(self) -> str:
        """What the task is, in the words the search was started with."""
        return str(self.hints.get("description") or self.rubric)

    async def ask(self, text: str) -> str:
        """The model's answer. Raises: errors.ModelError."""
        return await ask(self.space, self.llm, asked(self.model, self.parent, self.name), text, self.rng)

    async def mutated(self, mutation: str) -> Child:
        """The child that a mutation prompt makes of the rubric; it carries that mutation prompt."""
        text = APPLY.format(mutation=mutation, rubric=self.rubric, kept=self.kept)
        return self.reworded(await self.ask(text), mutation=mutation)

    def reworded(self, answer: str, old: Sequence[str] = (), mutation: str | None = None) -> Child:
        """The child with the rubric in an answer, which must be none of the old ones. Raises: OperatorFailed."""
        text = accepted(answer, [self.rubric, *old], placeholders(self.rubric), self.name)
        return self.child({"rubric": text}, mutation)

    def child(self, genes: Mapping[str, Json], mutation: str | None = None) -> Child:
        """The parent with other genes. Raises: OperatorFailed when it is known: trying it again tells nothing."""
        genome = self.space.fix({**self.parent.genes, **genes})
        if genome.id in (self.parent.id, *self.hints.get("avoid", ())):
            raise OperatorFailed(f"{self.name}: the child is known already")
        return Child(genome, {MUTATION: mutation or self.mutation})


@dataclass(frozen=True)
class Breeding(ABC):
    """An operator of breeding. Subclasses say in `breed` what they do with a unit."""

    name: str = ""
    model: str | None = None
    arity: int = 1
    calls: int = 1
    needs: tuple[str, ...] = (MUTATION,)

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        """See `operators.Operator`. A parent without a mutation prompt gets one of the first by `rng`."""
        first, *others = (space.fix(parent.genes) for parent in parents)
        mutation = str(hints.get(MUTATION) or drawn(MUTATIONS, rng))
        return await self.breed(Unit(self.name, self.model, space, first, tuple(others), hints, llm, rng, mutation))

    @abstractmethod
    async def breed(self, unit: Unit) -> Child:
        """A child of the unit. Raises: errors.OperatorFailed, errors.ModelError."""


def advice(answer: str, old: str, name: str) -> str:
    """The mutation prompt in an answer. Raises: OperatorFailed with what is wrong with it."""
    text = re.sub(r"^(the )?(new )?advice:\s*", "", cleaned(answer), flags=re.IGNORECASE)
    if not text:
        raise OperatorFailed(f"{name}: the model gave an empty mutation prompt")
    if text == old:
        raise OperatorFailed(f"{name}: the model gave the mutation prompt back unchanged")
    if len(text) > LONGEST:
        raise OperatorFailed(f"{name}: the new mutation prompt has {len(text)} characters; allowed: {LONGEST}")
    return text
