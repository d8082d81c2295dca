"""Checks that raise a flag on an output. A flag fails robustness and the composite, whatever the score.

A new kind of check is a Part with `kind`, `flag` and `raised(output)`, added to the union.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from evocluster.parts import Part


class Pattern(Part):
    """Flags outputs in which a regular expression is found."""

    kind: Literal["pattern"] = "pattern"
    flag: str
    """Name of the flag, e.g. 'email'."""
    pattern: str
    ignore_case: bool = True

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return checked_pattern(pattern)

    def raised(self, output: str) -> bool:
        """The pattern occurs in the output."""
        return re.search(self.pattern, output, re.IGNORECASE if self.ignore_case else 0) is not None


AnyCheck = Pattern


def flags(checks: tuple[AnyCheck, ...], output: str) -> tuple[str, ...]:
    """The flags raised, each once, in the order of the checks."""
    return tuple(dict.fromkeys(check.flag for check in checks if check.raised(output)))


def checked_pattern(pattern: str) -> str:
    """The pattern, once it compiles. Raises: ValueError."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return pattern
