"""front.json: the starting configuration and every member of the front, measured with intervals on every split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evocluster.search.members import Member
from evocluster.search.objectives import Interval


def front_json(objectives: Sequence[str], start: Member | None, members: Sequence[Member]) -> dict[str, Any]:
    """The content of front.json. `gap` is validation minus test: what was lost where nothing had been selected on."""
    return {
        "objectives": list(objectives),
        "start": _member(start) if start is not None else None,
        "members": [_member(member) for member in members],
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "genome": member.genome.id,
        "genes": dict(member.genome.genes),
        "generation": member.generation,
        "parents": list(member.parents),
        "operator": member.operator,
        "recommended": member.recommended,
        "why": member.why,
        "train": _intervals(member.train),
        "validation": _intervals(member.validation),
        "test": _intervals(member.test),
        "gap": {
            name: _finite(member.validation[name].value - member.test[name].value)
            for name in member.test
            if name in member.validation
        },
        **({"tasks": _tasks(member)} if member.tasks else {}),
    }


def _tasks(member: Member) -> dict[str, Any]:
    """Task -> split -> the intervals of its examples alone."""
    return {
        name: {split: _intervals(measured) for split, measured in splits.items()}
        for name, splits in member.tasks.items()
    }


def _intervals(measured: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": _finite(one.value), "low": _finite(one.low), "high": _finite(one.high)}
        for name, one in measured.items()
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: the latency of a configuration whose every call failed is null."""
    return value if math.isfinite(value) else None
