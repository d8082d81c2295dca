"""All genomes as columns: what each is made of and was measured at; equal values stand once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evocluster.records import canonical
from evocluster.report.aims import finite
from evocluster.report.board import Board, Bred
from evocluster.report.limits import feasible
from evocluster.report.lineage import LONG
from evocluster.report.texts import Texts


def columns(board: Board, texts: Texts, kept: Sequence[str]) -> dict[str, Any]:
    """`id`, `operator`, ... one entry a genome; `genes`: name -> kind, values, at (index of the genome's value).

    `kept`: ids of genomes whose texts must stand whole.
    """
    ones = list(board.genomes.values())
    names = sorted({name for one in ones for name in one.genes})
    whole = {one.number for one in ones if one.id in kept}
    return {
        "id": [one.id for one in ones],
        "generation": [one.generation for one in ones],
        "operator": [one.operator for one in ones],
        "parents": [[board.genomes[id].number for id in one.parents if id in board.genomes] for one in ones],
        "born": [one.born for one in ones],
        "usd": [finite(one.usd + one.own_usd) for one in ones],
        "splits": {split: _measured(ones, board, split) for split in ("train", "validation", "test")},
        "genes": {name: _gene([one.genes.get(name) for one in ones], texts, whole) for name in names},
    }


def _measured(ones: Sequence[Bred], board: Board, split: str) -> dict[str, Any] | None:
    """`n` evaluations and the value of each aim; None where nobody was evaluated on the split."""
    tallies = [one.tallies.get(split) for one in ones]
    if not any(tallies):
        return None
    values = [tally.values() if tally else [None] * len(board.ruler.aims) for tally in tallies]
    return {
        "n": [tally.items if tally else 0 for tally in tallies],
        "values": {aim.name: [finite(row[at]) for row in values] for at, aim in enumerate(board.ruler.aims)},
    }


def _gene(values: Sequence[Any], texts: Texts, whole: set[int]) -> dict[str, Any]:
    distinct: dict[str, int] = {}
    shown: list[Any] = []
    at = []
    kind = _kind(values)
    for number, value in enumerate(values):
        name = canonical(value)
        if name not in distinct:
            distinct[name] = len(shown)
            shown.append(_shown(value, kind, texts))
        if kind == "text" and number in whole:
            texts.add(value, keep=True)
        at.append(distinct[name])
    return {"kind": kind, "values": shown, "at": at}


def _kind(values: Sequence[Any]) -> str:
    """number, list, text (long ones), or choice."""
    said = [value for value in values if value is not None]
    if said and all(isinstance(value, int | float) and not isinstance(value, bool) for value in said):
        return "number"
    if said and all(isinstance(value, list | tuple) for value in said):
        return "list"
    if said and all(isinstance(value, str) for value in said):
        return "text" if any(len(value) > LONG or "\n" in value for value in said) else "choice"
    return "choice"


def _shown(value: Any, kind: str, texts: Texts) -> Any:
    if kind == "number" or value is None:
        return value
    if kind == "text":
        return texts.add(value)
    if kind == "list":
        return [texts.add(one) for one in value]
    return value if isinstance(value, str) else canonical(value)


def member(found: Mapping[str, Any] | None, board: Board) -> dict[str, Any] | None:
    """A member of front.json with its values as [value, low, high]; None when it is not on the board."""
    if found is None or found["genome"] not in board.genomes:
        return None
    splits = {split: _intervals(found.get(split)) for split in ("train", "validation", "test")}
    tasks = {
        name: {split: _intervals(said) for split, said in parts.items()}
        for name, parts in (found.get("tasks") or {}).items()
    }
    return {
        "genome": board.genomes[found["genome"]].number,
        "recommended": bool(found.get("recommended")),
        "why": str(found.get("why") or ""),
        "feasible": feasible(found),
        "splits": {split: values for split, values in splits.items() if values},
        "gap": {name: finite(value) for name, value in (found.get("gap") or {}).items()},
        "tasks": tasks,
    }


def _intervals(measured: Mapping[str, Any] | None) -> dict[str, list[float | None]]:
    return {
        name: [finite(one.get(end)) for end in ("value", "low", "high")]
        for name, one in (measured or {}).items()
        if isinstance(one, dict)
    }
