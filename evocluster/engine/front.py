"""front.json: the starting configuration and every member of the front, measured with intervals on every split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evocluster.records import Record
from evocluster.search.members import Member
from evocluster.search.objectives import Interval


def front_json(
    objectives: Sequence[str],
    start: Member | None,
    members: Sequence[Member],
    constraints: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of front.json.

    `gap` is validation minus test: what was lost where nothing had been selected on. Of the recommended member,
    `honest` is validation without the luck of having been chosen by it, `honest_gap` that less test; `versus_start` is
    its distance from the start on the test examples of both. With `constraints`, each {name, operator, limit}, every
    member says whether it is `feasible`.
    """
    limited = bool(constraints)
    versus = next((member.versus_start for member in members if member.versus_start), {})
    return {
        "objectives": list(objectives),
        **({"constraints": [dict(one) for one in constraints]} if limited else {}),
        "start": _member(start, limited) if start is not None else None,
        "members": [_member(member, limited) for member in members],
        **({"versus_start": {name: _numbers(one) for name, one in versus.items()}} if versus else {}),
    }


def _member(member: Member, limited: bool) -> dict[str, Any]:
    return {
        "genome": member.genome.id,
        "genes": dict(member.genome.genes),
        "generation": member.generation,
        "parents": list(member.parents),
        "operator": member.operator,
        "recommended": member.recommended,
        "why": member.why,
        **({"feasible": member.feasible} if limited else {}),
        "train": _intervals(member.train),
        "validation": _intervals(member.validation),
        "test": _intervals(member.test),
        "gap": {
            name: _finite(member.validation[name].value - member.test[name].value)
            for name in member.test
            if name in member.validation
        },
        **({"honest": {name: _numbers(one) for name, one in member.honest.items()}} if member.honest else {}),
        **({"honest_gap": _intervals(member.honest_gap)} if member.honest_gap else {}),
        **({"tasks": _tasks(member)} if member.tasks else {}),
    }


def _tasks(member: Member) -> dict[str, Any]:
    """Task -> split -> the intervals of its examples alone."""
    return {
        name: {split: _intervals(measured) for split, measured in splits.items()}
        for name, splits in member.tasks.items()
    }


def _intervals(measured: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {name: _numbers(one) for name, one in measured.items()}


def _numbers(record: Record) -> dict[str, Any]:
    """The fields of a record."""
    found = record.model_dump()
    return {name: _finite(value) if isinstance(value, float) else value for name, value in found.items()}


def _finite(value: float) -> float | None:
    """JSON has no infinity: the latency of a configuration whose every call failed is null."""
    return value if math.isfinite(value) else None
