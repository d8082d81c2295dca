"""Every genome of a run with what it was measured at: one pass over the trials, sums only.

`trials` yields each trial once; `Board.add` takes them in the order of the table.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from evocluster.errors import RunDamaged
from evocluster.report.aims import Aim, Ruler
from evocluster.store.table import scan

Row = Mapping[str, Any]
GIVEN = ("given", "start", "warm")
"""What stands as operator of a genome that nothing bred."""


def trials(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each trial, in the order they were kept; one kept twice counts once. Raises: errors.RunDamaged."""
    seen: set[int] = set()
    rows = (row for chunk in scan(folder / "trials") for row in chunk)
    for number, batch in groupby(rows, key=lambda row: int(row["proposal"])):
        if number not in seen:
            seen.add(number)
            yield list(batch)


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each whole line; none when there is no file, a torn last line is left out.

    Raises: errors.RunDamaged.
    """
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith("\n"):
                    return
                if not isinstance(row := json.loads(line), dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
                yield number, row
    except (OSError, ValueError) as failure:
        raise RunDamaged(f"{str(path)!r} cannot be read: {failure}; restore this file from a copy") from failure


class Tally:
    """One genome on one split: for each aim the sum of what counts, or all values where a quantile is asked for."""

    __slots__ = ("_counts", "_items", "_sums", "_values", "by_example")

    def __init__(self, aims: Sequence[Aim]) -> None:
        self._sums = [0.0] * len(aims)
        self._counts = [0] * len(aims)
        self._values = {at: array("d") for at, aim in enumerate(aims) if aim.aggregate == "p95"}
        self._items: set[tuple[str, int, int]] = set()
        self.by_example: dict[str, float] = {}
        """Quality on each example as given."""

    def add(self, row: Row, measured: Sequence[float | None]) -> bool:
        """Count a row; False when its item was counted before."""
        item = (row["example_id"], row["twin"], row["replicate"])
        if item in self._items:
            return False
        self._items.add(item)
        if not row["twin"]:
            self.by_example[row["example_id"]] = 0.0 if row["error"] is not None else float(row["quality"] or 0.0)
        for at, value in enumerate(measured):
            if value is not None:
                self._sums[at] += value
                self._counts[at] += 1
                if at in self._values:
                    self._values[at].append(value)
        return True

    @property
    def items(self) -> int:
        """Evaluations counted, twins included."""
        return len(self._items)

    def values(self) -> list[float]:
        """The value of each aim; NaN where nothing counts."""
        found = [total / count if count else np.nan for total, count in zip(self._sums, self._counts, strict=True)]
        for at, values in self._values.items():
            if values:
                found[at] = float(np.quantile(np.asarray(values), 0.95, method="inverted_cdf"))
        return found


@dataclass(slots=True)
class Bred:
    """A genome as the report knows it."""

    number: int
    id: str
    genes: Mapping[str, Any]
    generation: int
    parents: tuple[str, ...]
    """Ids; none for a genome that was given or drawn at random."""
    operator: str
    """What made it; one of GIVEN where the user or an earlier run gave it."""
    born: int
    """LLM calls of the run when its first trial came in."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """Split -> what was measured there."""
    extended: bool = False
    """It was given more than its first train examples."""
    own_calls: int = 0
    own_usd: float = 0.0
    """What the operator itself spent in making it."""
    calls: int = 0
    usd: float = 0.0
    """What its evaluations took, at list price."""
    paid_usd: float = 0.0

    def split(self, name: str, aims: Sequence[Aim]) -> Tally:
        """Its tally on a split."""
        if name not in self.tallies:
            self.tallies[name] = Tally(aims)
        return self.tallies[name]


class Board:
    """All genomes in the order of their first trial."""

    def __init__(self, folder: Path, ruler: Ruler, given: Mapping[str, str] | None = None) -> None:
        """Reads genomes.jsonl. `given`: id -> 'start' or 'warm', where that is known. Raises: errors.RunDamaged."""
        self.ruler = ruler
        self.genomes: dict[str, Bred] = {}
        self.calls = 0
        """LLM calls so far, operators' and judges' included."""
        self.evaluations = 0
        self.errors = 0
        """Evaluations that failed."""
        self.missed: dict[str, int] = {}
        """Operator -> children that could not be made."""
        self._given = given or {}
        self._lines: dict[str, dict[str, Any]] = {}
        for number, line in read_lines(folder / "genomes.jsonl"):
            if not isinstance(line.get("genes"), dict) or "id" not in line:
                raise RunDamaged(
                    f"{str(folder / 'genomes.jsonl')!r}, line {number}: no genome; restore this file from a copy"
                )
            self._lines[str(line["id"])] = line

    def add(self, trial: Sequence[Row]) -> Bred | None:
        """Count a trial; its genome, if one was made."""
        first = trial[0]
        one = self._bred(first) if first["genome_id"] else None
        self.calls += sum((row["calls"] or 0) + (row.get("judge_calls") or 0) for row in trial)
        if one is None:
            self.missed[first["operator"]] = self.missed.get(first["operator"], 0) + 1
            return None
        one.extended = one.extended or first["purpose"] == "extend"
        for row in trial:
            self._count(one, row)
        return one

    def _bred(self, row: Row) -> Bred:
        id = str(row["genome_id"])
        if id not in self.genomes:
            line = self._lines.get(id, {})
            parents = tuple(str(parent) for parent in row["parents"] or () if parent != id)
            operator = self._given.get(id, "given") if row["operator"] == "evaluate" else str(row["operator"])
            generation = int(row["generation"] or 0)
            number = len(self.genomes)
            self.genomes[id] = Bred(number, id, line.get("genes", {}), generation, parents, operator, self.calls)
        return self.genomes[id]

    def _count(self, one: Bred, row: Row) -> None:
        one.paid_usd += row["paid_usd"] or 0.0
        if row["kind"] != "evaluation":
            one.own_calls += row["calls"] or 0
            one.own_usd += row["cost_usd"] or 0.0
            return
        one.calls += row["calls"] or 0
        one.usd += row["cost_usd"] or 0.0
        self.evaluations += 1
        self.errors += row["error"] is not None
        one.split(str(row["split"]), self.ruler.aims).add(row, self.ruler.measure(row))
