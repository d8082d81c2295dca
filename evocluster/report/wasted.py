"""Operators that asked a model for a new prompt and mostly got none: what came instead, and what helps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container

from evocluster.errors import RunDamaged
from evocluster.report.found import Found

MANY = 6
"""Tries that brought no prompt and are worth a word."""
SHARE = 0.5
"""Of all tries of an operator."""
EXCERPT = 120
"""Characters shown of a reason."""


def wasted(result: Found) -> list[str]:
    """A sentence for every operator that mostly brought no prompt, with the reason that came most often."""
    told: dict[str, dict[str, int]] = result.run.get("operators") or {}
    asking = {name for name, one in told.items() if one.get("calls") and one.get("uses", 0) >= MANY}
    if not asking:
        return []
    try:
        tries, reasons = _counted(result, asking)
    except RunDamaged as failure:
        return [f"Whether calls were wasted cannot be told: {failure}"]
    said = []
    for name in sorted(asking):
        mine = Counter({why: count for (whose, why), count in reasons.items() if whose == name})
        if mine.total() >= MANY and mine.total() > SHARE * tries[name]:
            said.append(_sentence(name, tries[name], mine))
    return said


def _counted(result: Found, asking: Container[str]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Tries of each operator, and how often it brought nothing for which reason."""
    from evocluster.store.table import scan  # pyarrow: only where it is needed

    tries, reasons = Counter[str](), Counter[tuple[str, str]]()
    for row in (row for chunk in scan(result.path / "trials") for row in chunk if row["kind"] == "operator"):
        name, mark = row["operator"], f"OperatorFailed: {row['operator']}: "
        if name in asking:
            tries[name] += 1
            if mark in (row["error"] or ""):
                reasons[name, row["error"].split(mark, 1)[1]] += 1
    return tries, reasons


def _sentence(name: str, tries: int, reasons: Counter[str]) -> str:
    kinds = Counter[str]()
    for why, count in reasons.items():
        kinds[_kind(why)] += count
    ((kind, count),) = kinds.most_common(1)
    why = next(why for why in reasons if _kind(why) == kind)
    why = why if len(why) <= EXCERPT else f"{why[:EXCERPT].rstrip()}…"
    setting = "reflector" if name == "reflect" else "rewriter"
    return (
        f"{name} brought no prompt in {reasons.total()} of {tries} tries, most often ({count}) since {why}. "
        f"A stronger model makes more of these calls: name it under search.{setting}."
    )


def _kind(why: str) -> str:
    """A reason without what differs between answers: what it quotes, and its figures."""
    return re.sub(r"""(['"]).*\1|\d+""", "", why, flags=re.DOTALL)
