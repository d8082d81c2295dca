"""The front as a table: the start first, then the recommended member, then the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evocluster.report.figures import best_split, cell, describe
from evocluster.report.found import Found
from evocluster.report.limits import feasible, limits


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
    feasible: bool = True
    """It kept the constraints of the run."""


def front_rows(result: Found) -> list[Row]:
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


def task_names(result: Found) -> list[str]:
    """Names of the tasks where the run had several."""
    return list(
        next((member["tasks"] for member in (result.start, *result.members) if member and "tasks" in member), {})
    )


def task_rows(result: Found) -> list[tuple[str, str, list[str]]]:
    """Per configuration its mark, genome and, task by task, the first objective with its interval."""
    rows = []
    for row, member in zip(front_rows(result), _shown(result), strict=True):
        cells = [
            " ".join(filter(None, cell(result.objectives[0], splits.get(row.split, {}).get(result.objectives[0]))))
            for splits in member.get("tasks", {}).values()
        ]
        rows.append((row.mark, row.genome, cells))
    return rows


def _shown(result: Found) -> list[dict[str, Any]]:
    """The configurations in the order of `front_rows`."""
    start = result.start
    others = [member for member in result.members if start is None or member["genome"] != start["genome"]]
    return [*([start] if start else []), *others]


def _row(result: Found, member: Mapping[str, Any], mark: str, configuration: str) -> Row:
    split = best_split(member)
    measured = member.get(split) or {}
    gap = (member.get("gap") or {}).get("quality")
    cells = tuple(cell(name, measured.get(name)) for name in result.objectives)
    said = "-" if gap is None else f"{gap:+.2f}"
    return Row(mark, str(member["genome"])[:8], split, cells, said, configuration, feasible(member))


def table(result: Found) -> list[dict[str, Any]]:
    """The start, then the front, the recommended first, with all that was measured on the split each row names."""
    start = [result.start] if result.start else []
    rest = [member for member in result.members if member["genome"] not in [one["genome"] for one in start]]
    chosen = result.recommended["genome"] if result.recommended else None
    rows = []
    for member in (*start, *rest):
        roles = ["start"] * (member in start) + ["recommended"] * (member["genome"] == chosen)
        split = best_split(member)
        row: dict[str, Any] = {"role": ", ".join(roles), "genome": member["genome"], "split": split}
        if limits(result):
            row["feasible"] = feasible(member)
        for name in result.objectives:
            measured = (member.get(split) or {}).get(name) or {}
            row |= {
                name: measured.get("value"),
                f"{name}_low": measured.get("low"),
                f"{name}_high": measured.get("high"),
            }
        rows.append({**row, "gap": (member.get("gap") or {}).get("quality"), "genes": dict(member["genes"])})
    return rows
