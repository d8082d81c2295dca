"""The constraints of a run as its files tell them, and who breaks which."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from evocluster.report.aims import finite
from evocluster.report.figures import best_split
from evocluster.report.found import Found

KEPT: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def limits(result: Found) -> list[dict[str, Any]]:
    """Each {name, operator, limit}; none where the run had no constraints."""
    found = result.front.get("constraints") or result.run.get("constraints") or []
    return [dict(one) for one in found]


def said(limit: Mapping[str, Any]) -> str:
    """One of them as a sentence."""
    return f"{limit['name']} {limit['operator']} {limit['limit']:g}"


def feasible(member: Mapping[str, Any]) -> bool:
    """It kept the constraints where that was decided: on validation, before that on train."""
    return bool(member.get("feasible", True))


def broken(result: Found, member: Mapping[str, Any], split: str | None = None) -> list[str]:
    """What a member breaks on a split and by which value; None: the most honest split."""
    measured = member.get(split or best_split(member)) or {}
    found = []
    for limit in limits(result):
        value = finite((measured.get(limit["name"]) or {}).get("value"))
        if value is None or not KEPT[limit["operator"]](value, limit["limit"]):
            found.append(f"{said(limit)} (it has {'nothing measured' if value is None else f'{value:.4g}'})")
    return found
