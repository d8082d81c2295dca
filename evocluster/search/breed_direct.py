"""Direct mutation: a prompt from nothing, or from one prompt (Fernando et al. 2023, section 3.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from evocluster.search.breed_form import MUTATION, Breeding, Unit
from evocluster.search.breed_words import STYLES, drawn
from evocluster.search.operators import Child

ZERO = """{style}

The task in a few words: {description}

Write an instruction that tells a language model how to do this task well{kept}. Answer with the instruction only.
Instruction:"""


@dataclass(frozen=True)
class ZeroOrder(Breeding):
    """A new prompt from the description of the problem and a thinking style; the parent's prompt is not looked at.

    It brings a line that has gone astray back to the problem.
    """

    name: str = "zero_order"
    needs: tuple[str, ...] = (MUTATION, "description")

    async def breed(self, unit: Unit) -> Child:
        style = drawn(STYLES, unit.rng)
        text = ZERO.format(style=style, description=unit.description, kept=unit.kept)
        return unit.reworded(await unit.ask(text))


@dataclass(frozen=True)
class FirstOrder(Breeding):
    """The parent's prompt changed as the parent's mutation prompt says."""

    name: str = "first_order"

    async def breed(self, unit: Unit) -> Child:
        return await unit.mutated(unit.mutation)
