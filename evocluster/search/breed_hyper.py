"""Hyper-mutation: a new mutation prompt, applied at once (Fernando et al. 2023, section 3.2.3).

Two calls: what a mutation prompt is worth shows only in the prompt that it makes.
"""

from __future__ import annotations

from dataclasses import dataclass

from evocluster.search.breed_form import MUTATION, Breeding, Unit, advice
from evocluster.search.breed_words import HYPER, STYLES, drawn
from evocluster.search.operators import Child

ZERO = """{style}

The task in a few words: {description}

Write one piece of advice on how to change an instruction for this task, so that a language model does the task better.
Answer with the advice only, in a sentence or two.
Advice:"""

FIRST = """{hyper}

Advice: {mutation}

Answer with the new advice only, in a sentence or two.
New advice:"""


@dataclass(frozen=True)
class HyperZero(Breeding):
    """A mutation prompt from the description of the problem and a thinking style, applied to the parent's prompt."""

    name: str = "hyper_zero"
    calls: int = 2
    needs: tuple[str, ...] = (MUTATION, "description")

    async def breed(self, unit: Unit) -> Child:
        text = ZERO.format(style=drawn(STYLES, unit.rng), description=unit.description)
        return await unit.mutated(advice(await unit.ask(text), unit.mutation, self.name))


@dataclass(frozen=True)
class HyperFirst(Breeding):
    """The parent's mutation prompt changed by a hyper-mutation prompt, then applied to the parent's prompt."""

    name: str = "hyper_first"
    calls: int = 2

    async def breed(self, unit: Unit) -> Child:
        text = FIRST.format(hyper=drawn(HYPER, unit.rng), mutation=unit.mutation)
        return await unit.mutated(advice(await unit.ask(text), unit.mutation, self.name))
