"""Breeding from what went well: a prompt guessed from right answers; another's prompt; other examples in the prompt.

Fernando et al. 2023, sections 3.2.4 (Lamarckian mutation) and 3.2.5 (prompt crossover and context shuffling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evocluster.errors import OperatorFailed
from evocluster.records import Json, canonical
from evocluster.search.breed_form import MUTATION, Breeding, Unit
from evocluster.search.operators import Child
from evocluster.search.reflect import refuse_copy

INDUCE = """Somebody was given an instruction, and with it worked out the cases below, all of them rightly.

{cases}

What was the instruction? Write it so that it holds for every input of this kind and speaks of none of these
cases{kept}. Answer with the instruction only.
Instruction:"""
LONGEST = 600
"""Characters of an input that are shown."""


def _case(case: Mapping[str, Json]) -> str:
    given = case.get("input", "")
    text = given if isinstance(given, str) else canonical(given)
    return f"Input: {text[:LONGEST]}\nWorked out: {case.get('output', '')}"


@dataclass(frozen=True)
class Lamarck(Breeding):
    """A prompt that would have led to what the parent got right, guessed from right cases of train; no copy of one."""

    name: str = "lamarck"
    needs: tuple[str, ...] = (MUTATION, "right")

    async def breed(self, unit: Unit) -> Child:
        cases = [case for case in unit.hints.get("cases", ()) if case.get("right")]
        if not cases:
            raise OperatorFailed(f"{self.name}: the parent has no right case yet")
        text = INDUCE.format(cases="\n\n".join(map(_case, cases)), kept=unit.kept)
        child = unit.reworded(await unit.ask(text))
        told = [{**case, "expected": case.get("output")} for case in cases]
        refuse_copy(str(child.genome["rubric"]), told, unit.rubric, self.name)
        return child


@dataclass(frozen=True)
class Context(Breeding):
    """Another member's prompt, or other examples in the prompt, or both: whatever of it can change.

    The other member is chosen by fitness. Examples are filled up, or one is replaced, and their order is shuffled.
    Mutation prompts are not crossed.
    """

    name: str = "context"
    arity: int = 2
    calls: int = 0

    async def breed(self, unit: Unit) -> Child:
        ways: list[dict[str, Json]] = []
        theirs = [mate["rubric"] for mate in unit.mates if mate["rubric"] != unit.rubric]
        if theirs:
            ways.append({"rubric": theirs[0]})
        demos = unit.space.refill(unit.parent["demos"], unit.rng)
        if demos != unit.parent["demos"]:
            ways.append({"demos": demos})
        if not ways:
            raise OperatorFailed(f"{self.name}: both parents have the same rubric, and no other demos can be shown")
        if len(ways) > 1:
            ways.append({**ways[0], **ways[1]})
        return unit.child(ways[int(unit.rng.integers(len(ways)))])
