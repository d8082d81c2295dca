"""Checks that raise a flag on an output. A flag fails robustness and the composite, whatever the score.

A new kind of check is a Part with `kind`, `flag` and `async raised(example, execution, llm)`, added to the union. It
may raise: that is a failure of this evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, Field

from evocluster.errors import FATAL
from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example
from evocluster.tasks.execution import Execution
from evocluster.tasks.judge import JudgeFlag
from evocluster.tasks.patterns import Expression, search
from evocluster.tasks.pii import Kind, checked_region, personal, stands_in
from evocluster.tasks.words import plain


class Check(Protocol):
    """Looks at one execution."""

    @property
    def flag(self) -> str:
        """Name of the flag, e.g. 'email'."""
        ...

    async def raised(self, example: Example, execution: Execution, llm: LLM) -> bool:
        """The output has what the flag is for."""
        ...


class Pattern(Part):
    """Flags outputs in which a regular expression is found."""

    kind: Literal["pattern"] = "pattern"
    flag: str
    """Name of the flag, e.g. 'email'."""
    pattern: Expression
    ignore_case: bool = True

    async def raised(self, example: Example, execution: Execution, llm: LLM) -> bool:
        """The pattern occurs in the output. Raises: TimeoutError where it backtracks without end."""
        return search(self.pattern, execution.output, self.ignore_case) is not None


class Pii(Part):
    """Flags outputs that hold personal data."""

    kind: Literal["pii"] = "pii"
    flag: str = "pii"
    types: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("email", "phone", "card", "iban", "ssn", "ip")
    """ssn: of the United States."""
    region: Annotated[str, AfterValidator(checked_region)] = "US"
    """Two letters: the country whose phone numbers stand without a country code."""
    given: bool = True
    """What stands in the example's input, or is expected, is not flagged: the output only repeats it."""

    async def raised(self, example: Example, execution: Execution, llm: LLM) -> bool:
        """Personal data stands in the output that the example did not bring."""
        found = personal(execution.output, self.types, self.region)
        if not found or not self.given:
            return bool(found)
        brought = f"{plain(example.input)}\n{plain(example.expected)}"
        return not all(stands_in(each, brought) for each in found)


AnyCheck = Annotated[Pattern | Pii | JudgeFlag, Field(discriminator="kind")]


async def flags(
    checks: Iterable[Check], example: Example, execution: Execution, llm: LLM
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the flags raised, each once, in the order of the checks; why checks failed). Raises: FATAL errors only."""
    raised, failures = [], []
    for check in checks:
        try:
            if await check.raised(example, execution, llm):
                raised.append(check.flag)
        except FATAL:
            raise
        except Exception as failure:
            failures.append(f"safety check {check.flag}: {type(failure).__name__}: {failure}")
    return tuple(dict.fromkeys(raised)), tuple(failures)
