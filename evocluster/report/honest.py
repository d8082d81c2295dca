"""What the recommended configuration is honestly worth, in one line: without the luck of having been chosen, and
against the start on examples that decided nothing.

Folders of versions that did not measure it have none of this in their front.json, and get no line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocluster.report.figures import cell, number
from evocluster.report.found import Found

Interval = Mapping[str, Any]


def honest_line(result: Found, name: str = "quality") -> str | None:
    """The line of an objective; None where nothing of it is known."""
    chosen = result.recommended or {}
    parts = [
        _worth(chosen, name),
        _gap((chosen.get("honest_gap") or {}).get(name), name),
        _versus((result.front.get("versus_start") or {}).get(name), name),
    ]
    said = [part for part in parts if part]
    return f"{name} {'; '.join(said)}" if said else None


def _worth(chosen: Interval, name: str) -> str:
    """The honest value, beside the one it was chosen by."""
    one = (chosen.get("honest") or {}).get(name)
    if not one or one.get("value") is None:
        return ""
    split = str(one.get("split", "validation"))
    by = (chosen.get(split) or {}).get(name) or {}
    naive = "" if by.get("value") is None else f"; {number(name, by['value'])} as chosen"
    also = ", which the search has selected by" if split == "train" else ""
    return (
        f"{' '.join(cell(name, one))} on {split} without the luck of the choice ({one.get('folds')} folds{naive}){also}"
    )


def _gap(one: Interval | None, name: str) -> str:
    if not one or one.get("value") is None:
        return ""
    return f"gap to test {signed(name, one)}"


def _versus(one: Interval | None, name: str) -> str:
    if not one or one.get("difference") is None:
        return ""
    p = one.get("p")
    said = "" if p is None else f", p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}"
    return (
        f"on test {signed(name, {**one, 'value': one['difference']})} against the start{said} ({one.get('n')} examples)"
    )


def signed(name: str, one: Interval) -> str:
    """A difference and its 95 % interval, each with its sign."""
    value, low, high = (_signed(name, one.get(end)) for end in ("value", "low", "high"))
    return f"{value} [{low}..{high}]"


def _signed(name: str, value: float | None) -> str:
    if value is None:
        return "?"
    text = number(name, value)
    if not text.strip("-0."):
        return text.lstrip("-")
    return text if value < 0 else f"+{text}"
