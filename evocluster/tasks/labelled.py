"""Labelled answers: outputs that people have graded, to hold a judge against.

    {"input": ..., "output": ..., "score": 0.75, "expected": ..., "id": ...}      the last two may be left out

A row has either `score` (0 to 1, true, false, pass or fail) or `rating` (on the rubric's own scale, e.g. 4 of 1-5), so
that a 1 never means two things. JSONL, CSV or Parquet; further columns are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from evocluster.errors import DataError
from evocluster.records import Example, Record, canonical
from evocluster.tasks.dataset import ReadParquet, rows
from evocluster.tasks.rubrics import Scale
from evocluster.tasks.words import nearest, plain

SHAPE = '{"input": ..., "output": ..., "score": ...}'
WORDS = {"pass": 1.0, "fail": 0.0, "true": 1.0, "false": 0.0}


class Labelled(Record):
    """One output with the grade that people gave it."""

    example: Example
    output: str
    value: float
    """0 to 1."""


def read_labelled(
    path: Path, scale: Scale, read_parquet: ReadParquet | None = None, limit: int | None = None
) -> tuple[Labelled, ...]:
    """The labelled answers of a file in its order, at most `limit`. Raises: DataError: `file:line:`, and why."""
    found: list[Labelled] = []
    lines: dict[str, int] = {}
    for line, row in islice(rows(path, read_parquet, SHAPE), limit):
        one = _labelled(path, line, row, scale)
        if one.example.id in lines:
            _fail(path, line, f"id {one.example.id!r} is already used in line {lines[one.example.id]}; change one")
        lines[one.example.id] = line
        found.append(one)
    if not found:
        _fail(path, 1, "the file has no rows; give it labelled answers, 30 or more to say anything")
    return tuple(found)


def _labelled(path: Path, line: int, row: Mapping[str, Any], scale: Scale) -> Labelled:
    for name in ("input", "output"):
        if name not in row:
            _fail(path, line, f"no column {name!r}; columns here: {', '.join(map(str, row))}{nearest(name, row)}")
    for name in ("input", "output", "expected"):
        try:
            canonical(row.get(name)).encode()
        except (TypeError, ValueError) as error:
            _fail(path, line, f"{name} {row[name]!r:.80} is not JSON: {error}; store it as text")
    given, output, expected = row["input"], row["output"], row.get("expected")
    if given is None or isinstance(given, list | tuple):
        _fail(path, line, f"input {given!r:.80} must be text or an object")
    example = Example(
        id=str(row.get("id") or f"line {line}"),
        input=given if isinstance(given, Mapping) else plain(given),
        expected=None if expected == "" else expected,
    )
    return Labelled(
        example=example,
        output="" if output is None else plain(output),
        value=_value(path, line, row, scale),
    )


def _value(path: Path, line: int, row: Mapping[str, Any], scale: Scale) -> float:
    """The label from 0 to 1."""
    named = [name for name in ("score", "rating") if row.get(name) not in (None, "")]
    if len(named) != 1:
        what = "both 'score' and 'rating'" if named else "neither 'score' nor 'rating'"
        _fail(path, line, f"has {what}; write one: score from 0 to 1, or rating on the rubric's scale {scale.name}")
    given = row[named[0]]
    word = str(given).strip().lower()
    if word in WORDS:
        return WORDS[word]
    low, high = (0, 1) if named[0] == "score" else (scale.low, scale.high)
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not low <= value <= high:
        on_scale = named[0] == "score" and value > 1
        hint = f"; a grade on the rubric's scale {scale.name} stands in a column 'rating'" if on_scale else ""
        _fail(path, line, f"{named[0]} {given!r} must be from {low} to {high}, or pass or fail{hint}")
    return (value - low) / (high - low)


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise DataError(f"{path}:{line}: {message}")
