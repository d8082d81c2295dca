"""What a run found, read from its folder: `Result`, and the front as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged
from evocluster.store.files import read_json

BEST_SPLIT = ("test", "validation", "train")


class Result:
    """A run folder, finished or not. Raises: errors.RunDamaged when it holds no readable run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunDamaged(
                f"{str(self.path)!r} holds no run (no run.json in it); give the folder that `evocluster run` printed"
            )
        self.run: dict[str, Any] = read_json(self.path / "run.json")
        """run.json: status, seed, spend, calls, stop reason, hypervolume."""
        front = self.path / "front.json"
        self.front: dict[str, Any] = read_json(front) if front.exists() else {}
        """front.json; empty before the search has a front."""

    @property
    def status(self) -> str:
        """'running', 'finished', 'interrupted' or 'failed'."""
        return str(self.run.get("status"))

    @property
    def members(self) -> list[dict[str, Any]]:
        """The members of the front, the recommended one first."""
        members: list[dict[str, Any]] = self.front.get("members", [])
        return sorted(members, key=lambda member: not member["recommended"])

    @property
    def start(self) -> dict[str, Any] | None:
        """The user's starting configuration, measured like the members."""
        return self.front.get("start")

    @property
    def recommended(self) -> dict[str, Any] | None:
        """The recommended member."""
        return next((member for member in self.members if member["recommended"]), None)

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives, in the config's order."""
        return list(self.front.get("objectives", []))

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}, {self.status}, {len(self.members)} on the front)"


def best_split(member: Mapping[str, Any]) -> str:
    """The most honest split this member was measured on: test, else validation, else train."""
    return next((split for split in BEST_SPLIT if member.get(split)), "train")


def cell(name: str, interval: Mapping[str, float] | None) -> str:
    """One value with its 95 % interval, short."""
    if not interval:
        return "-"
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if name == "cost_usd":
        return f"{value * 1e6:.3g} [{low * 1e6:.3g}, {high * 1e6:.3g}]"
    if name == "latency_ms":
        return f"{value:.0f} [{low:.0f}, {high:.0f}]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def heading(name: str) -> str:
    """An objective's column title with its unit."""
    return {"cost_usd": "cost, USD per 1M queries", "latency_ms": "latency, ms"}.get(name, name)


def describe(genes: Mapping[str, Any], rubric_chars: int = 60) -> str:
    """A genome's genes in one line."""
    parts = []
    for name in sorted(genes):
        value = genes[name]
        if name == "rubric":
            text = " ".join(str(value).split())
            value = repr(text if len(text) <= rubric_chars else text[: rubric_chars - 1] + "…")
        elif name == "demos":
            value = len(value)
        elif isinstance(value, float):
            value = f"{value:.3g}"
        parts.append(f"{name}={value}")
    return " ".join(parts)


def front_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows: the starting configuration, then the front. Values are of the most honest split."""
    titles = [
        "",
        "genome",
        *(heading(name) for name in result.objectives),
        "validation - test",
        "configuration",
    ]
    rows = []
    members: Sequence[dict[str, Any]] = [*([result.start] if result.start else []), *result.members]
    for index, member in enumerate(members):
        mark = "start" if result.start and index == 0 else ("recommended" if member["recommended"] else "")
        measured = member.get(best_split(member)) or {}
        gap = (member.get("gap") or {}).get("quality")
        rows.append(
            [
                mark,
                member["genome"][:8],
                *(cell(name, measured.get(name)) for name in result.objectives),
                "-" if gap is None else f"{gap:+.3f}",
                describe(member["genes"]),
            ]
        )
    return titles, rows
