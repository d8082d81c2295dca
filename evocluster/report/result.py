"""What a run found, read from its folder: `Result`, and the front as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evocluster.errors import RunDamaged
from evocluster.store.files import read_json

BEST_SPLIT = ("test", "validation", "train")
RUBRIC_CHARS = 240
DEMOS_NAMED = 4
EXCERPT = 80


class Result:
    """A run folder, finished or not. Raises: errors.RunDamaged when it holds no readable run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunDamaged(
                f"{str(self.path)!r} holds no run (no run.json in it); give the folder that `evocluster run` printed"
            )
        self.run: dict[str, Any] = _mapping(self.path / "run.json")
        """run.json: status, seed, spend, calls, stop reason, hypervolume."""
        front = self.path / "front.json"
        self.front: dict[str, Any] = _mapping(front) if front.exists() else {}
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

    @property
    def barren(self) -> str | None:
        """What to look at when no configuration got anything right on train; None when one did."""
        train = [(member.get("train") or {}).get("quality") for member in (self.start, *self.members) if member]
        measured = [quality["value"] for quality in train if quality]
        if not measured or any(measured):
            return None
        return (
            f"No configuration got anything right on train{self._answer()}. Compare the outputs in trials/*.parquet "
            "with what is expected: do the labels or the scorers fit them, does the rubric name the labels ({labels}), "
            "is max_tokens enough, can the model do it at all?"
        )

    def _answer(self) -> str:
        """The first answer in the table, to be read; or why there is none to show."""
        from evocluster.store.table import scan  # pyarrow: only where it is needed

        try:
            rows = (row for chunk in scan(self.path / "trials") for row in chunk)
            row = next((row for row in rows if row["kind"] == "evaluation" and row["output"] is not None), None)
        except RunDamaged as failure:
            return f" ({failure})"
        return f"; {row['example_id']!r} was answered {row['output'][:EXCERPT]!r}" if row else ""

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}, {self.status}, {len(self.members)} on the front)"


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunDamaged(
            f"{str(path)!r} holds a {type(found).__name__}, not a JSON object; put the file back from a copy, "
            "or start a new run with --out FOLDER"
        )
    return found


def best_split(member: Mapping[str, Any]) -> str:
    """The most honest split this member was measured on: test, else validation, else train."""
    return next((split for split in BEST_SPLIT if member.get(split)), "train")


def heading(name: str) -> str:
    """An objective's column title, with its unit where the cells do not say it."""
    return {"cost_usd": "USD per 1M", "latency_ms": "latency"}.get(name, name)


def number(name: str, value: float) -> str:
    """One value of an objective, short and without unit: latency in ms, cost in US dollars for a million queries."""
    if name == "latency_ms":
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
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


class Row(NamedTuple):
    """One configuration of the front table."""

    mark: str
    """'start', '*' (recommended), 'start*' (both) or nothing."""
    genome: str
    """The first 8 digits of its id."""
    split: str
    """The split its values are of."""
    cells: tuple[tuple[str, str], ...]
    """Value and interval of each objective."""
    gap: str
    """Validation quality minus test quality: what selection had flattered."""
    configuration: str
    """The start's genes whole; of the others those that differ from the start."""


def front_rows(result: Result) -> list[Row]:
    """The starting configuration, then the front, the recommended member first; nothing stands twice."""
    start = result.start
    reference = start["genes"] if start else None
    rows = []
    if start:
        chosen = bool(result.recommended and result.recommended["genome"] == start["genome"])
        rows.append(_row(result, start, "start*" if chosen else "start", describe(start["genes"])))
    for member in result.members:
        if start is None or member["genome"] != start["genome"]:
            text = describe(member["genes"], reference) or "as the start"
            rows.append(_row(result, member, "*" if member["recommended"] else "", text))
    return rows


def _row(result: Result, member: Mapping[str, Any], mark: str, configuration: str) -> Row:
    split = best_split(member)
    measured = member.get(split) or {}
    gap = (member.get("gap") or {}).get("quality")
    cells = tuple(cell(name, measured.get(name)) for name in result.objectives)
    said = "-" if gap is None else f"{gap:+.2f}"
    return Row(mark, str(member["genome"])[:8], split, cells, said, configuration)
