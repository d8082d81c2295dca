"""What was seen of a fault, and whether it did harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Terms:
    """What a fault is given."""

    folder: Path
    """Its own, and not there yet."""
    short: bool

    def count(self, long: int, short: int) -> int:
        """How often."""
        return short if self.short else long


@dataclass
class Fault:
    """One row of the table."""

    name: str
    times: int = 0
    """How often it was injected."""
    seen: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What must not be."""
    not_run: str = ""
    seconds: float = 0.0

    def must(self, fine: bool, otherwise: str) -> None:
        """Note what is wrong, where it is not fine."""
        if not fine:
            self.wrong.append(otherwise)

    @property
    def state(self) -> str:
        """In a word or two."""
        return "not run" if self.not_run else "FAILED" if self.wrong else "passed"


Inject = Callable[[Terms], Fault]


def shown(fault: Fault) -> str:
    """The row, and below it what was seen."""
    lines = [f"{fault.name:<58} {fault.times:>6} {fault.seconds:>6.0f} s  {fault.state}"]
    lines += [f"    {name}: {value}" for name, value in fault.seen.items()]
    lines += [f"    ! {text}" for text in fault.wrong]
    if fault.not_run:
        lines.append(f"    {fault.not_run}")
    return "\n".join(lines)
