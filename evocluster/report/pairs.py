"""The start against the winner, evaluation by evaluation, on the most honest split both were evaluated on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from evocluster.report.aims import finite
from evocluster.report.texts import Texts

MOST = 4_000
"""Pairs kept at most, the changed ones first."""
TRACED = 40
"""Pairs that keep what was asked and replied step by step, where the table has it."""
ORDER = ("broken", "fixed", "both wrong", "both right", "not compared")

Row = Mapping[str, Any]
Item = tuple[str, int, int]
R = TypeVar("R", bound=Row)


def items(rows: Iterable[R]) -> dict[tuple[str, Item], R]:
    """(Split, (example, twin, replicate)) -> the first row of it."""
    found: dict[tuple[str, Item], R] = {}
    for row in rows:
        key = (str(row["split"]), (str(row["example_id"]), int(row["twin"]), int(row["replicate"])))
        found.setdefault(key, row)
    return found


def shared_split(start: Iterable[Row], winner: Iterable[Row]) -> str | None:
    """Test, else validation, else train: the first that both have evaluations of."""
    one, other = ({row["split"] for row in rows} for rows in (start, winner))
    return next((split for split in ("test", "validation", "train") if split in one and split in other), None)


def pairs(
    start: Sequence[Row],
    winner: Sequence[Row],
    examples: Mapping[tuple[str, str], Mapping[str, Any]],
    texts: Texts,
    right: float,
) -> dict[str, Any]:
    """Facts: `split`, `counts` by state, `left_out`, `rows`. `right`: the quality from which an answer is right."""
    split = shared_split(start, winner)
    if split is None:
        return {"split": None, "rows": [], "counts": {}, "left_out": 0}
    ours = {item: row for (where, item), row in items(winner).items() if where == split}
    theirs = {item: row for (where, item), row in items(start).items() if where == split}
    found = []
    for item in dict.fromkeys([*theirs, *ours]):
        before, after = theirs.get(item), ours.get(item)
        found.append((_state(before, after, right), _change(before, after), item, before, after))
    found.sort(key=lambda one: (ORDER.index(one[0]), -abs(one[1]), one[2]))
    counts = {state: sum(one[0] == state for one in found) for state in ORDER}
    rows = []
    for at, (state, _, item, before, after) in enumerate(found[:MOST]):
        row: dict[str, Any] = {
            "state": state,
            "example": texts.add(item[0]),
            "twin": item[1],
            "replicate": item[2],
            **given(examples.get((split, item[0])), texts),
            "start": answer(before, texts),
            "winner": answer(after, texts),
        }
        if at < TRACED and after is not None and (steps := trace(after, texts)):
            row["trace"] = steps
        rows.append(row)
    left_out = max(0, len(found) - MOST)
    return {"split": split, "rows": rows, "counts": {k: n for k, n in counts.items() if n}, "left_out": left_out}


def _state(before: Row | None, after: Row | None, right: float) -> str:
    if before is None or after is None:
        return "not compared"
    was, now = (_quality(row) >= right for row in (before, after))
    return {(True, True): "both right", (False, True): "fixed", (True, False): "broken"}.get((was, now), "both wrong")


def _change(before: Row | None, after: Row | None) -> float:
    return _quality(after) - _quality(before) if before is not None and after is not None else 0.0


def _quality(row: Row) -> float:
    return 0.0 if row["error"] is not None else float(row["quality"] or 0.0)


def given(example: Mapping[str, Any] | None, texts: Texts) -> dict[str, int]:
    """Input and expected of an example; -1 where the folder does not hold them."""
    one = example or {}
    return {"input": texts.add(one.get("input")), "expected": texts.add(one.get("expected"))}


def answer(row: Row | None, texts: Texts) -> dict[str, Any] | None:
    """One output with its scores; None where there was no evaluation."""
    if row is None:
        return None
    scores = json.loads(row["scores"]) if row["scores"] else {}
    return {
        "output": texts.add(row["output"]),
        "quality": finite(_quality(row)),
        "scores": [
            [name, finite(score.get("value")), texts.add(score.get("reason") or None)] for name, score in scores.items()
        ],
        "error": texts.add(row["error"]),
        "flags": list(row["flags"] or ()),
        "repairs": row["repairs"] or 0,
        "schema": row["schema_ok"] is not False,
        "latency_ms": finite(row["latency_ms"]),
        "usd": finite(row["cost_usd"]),
    }


def trace(row: Row, texts: Texts) -> list[list[Any]]:
    """[purpose, prompt, reply] of each step, where the table has them."""
    steps = json.loads(row["trace"]) if row.get("trace") else []
    return [
        [str(step.get("purpose")), texts.add(step.get("prompt")), texts.add(step.get("reply"))]
        for step in steps or ()
        if isinstance(step, dict)
    ]
