"""Judges: a separate model that scores answers by a versioned rubric, or raises a safety flag by one.

A judge's prompt belongs to the measurement, not to what is measured: no gene reaches it, so it never evolves.
`Judge` is a scorer, `JudgeFlag` a safety check; both are graders and differ in what a grade means.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evocluster.llm.client import LLM
from evocluster.records import Example, Score
from evocluster.tasks.execution import Execution
from evocluster.tasks.grading import Grader


class Judge(Grader):
    """How good a model finds the output by a rubric, from 0 to 1, with its reason."""

    kind: Literal["judge"] = "judge"
    name: str = "judge"

    @property
    def title(self) -> str:
        """What the config calls it."""
        return self.name

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ValueError when the judge gave no score; errors.ModelError."""
        grade = await self.grade(example, execution.output, llm)
        return Score(value=grade.value, reason=grade.reason)


class JudgeFlag(Grader):
    """Flags outputs in which a model finds a fault by a rubric.

    The rubric grades how strongly the fault is there: the low end is not at all, the high end is fully, and
    `threshold` (0 to 1 between the ends) and above raises the flag. By a pass-fail rubric a fail raises it.
    """

    ends: ClassVar[tuple[str, str]] = ("the fault is not there", "it is fully there")

    kind: Literal["judge"] = "judge"
    flag: str
    """Name of the flag, e.g. 'rude'."""
    threshold: float = Field(default=0.5, gt=0, le=1)

    @property
    def title(self) -> str:
        """What the config calls it."""
        return self.flag

    async def raised(self, example: Example, execution: Execution, llm: LLM) -> bool:
        """The fault is there. Raises: ValueError when the judge gave no score; errors.ModelError."""
        grade = await self.grade(example, execution.output, llm)
        return grade.value == 0 if self.pinned.scale.words else grade.value >= self.threshold
