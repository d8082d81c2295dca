"""Figures and genes as people read them: one value, its interval, a configuration in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

BEST_SPLIT = ("test", "validation", "train")
"""From the most honest split to the one that the search selects by."""
RUBRIC_CHARS = 240
DEMOS_NAMED = 4


def best_split(member: Mapping[str, Any]) -> str:
    """The most honest split this member was measured on: test, else validation, else train."""
    return next((split for split in BEST_SPLIT if member.get(split)), "train")


def heading(name: str) -> str:
    """An objective's column title, with its unit where the cells do not say it."""
    return {"cost_usd": "USD per 1M", "latency_ms": "latency"}.get(name, name)


def number(name: str, value: float) -> str:
    """One value of an objective, short and without unit: latency in ms, cost in US dollars for a million queries."""
    if name == "latency_ms":
        return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"
    if name == "cost_usd":
        value *= 1e6
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.3g}"


def cell(name: str, interval: Mapping[str, float | None] | None) -> tuple[str, str]:
    """A value, and its 95 % interval in brackets. What is null in front.json was not finite.

    A null value ('-': nothing was measured, or every call failed) has no interval; a null bound is 'inf'.
    """
    value = (interval or {}).get("value")
    if interval is None or value is None:
        return "-", ""
    low, high = (_bound(name, interval.get(end)) for end in ("low", "high"))
    dash = ".." if low.startswith("-") or high.startswith("-") else "-"
    return number(name, value) + (" ms" if name == "latency_ms" else ""), f"[{low}{dash}{high}]"


def _bound(name: str, value: float | None) -> str:
    return "inf" if value is None else number(name, value)


def describe(genes: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> str:
    """Genes in one line; with a `reference` only those that differ from it."""
    changed = [name for name in sorted(genes) if reference is None or genes[name] != reference.get(name)]
    return " ".join(f"{name}={_GENES.get(name, _gene)(genes[name])}" for name in changed)


def _gene(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rubric(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= RUBRIC_CHARS else text[: RUBRIC_CHARS - 1] + "…")


def _demos(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return _gene(value)
    named = ", ".join(str(demo) for demo in value[:DEMOS_NAMED])
    return f"{len(value)} ({named}{', …' if len(value) > DEMOS_NAMED else ''})" if value else "0"


_GENES: Mapping[str, Callable[[Any], str]] = {"rubric": _rubric, "demos": _demos}
