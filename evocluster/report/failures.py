"""The winner's failures by kind: errors, schema, flags, repairs, and wrong answers by what was taken for what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evocluster.report.pairs import answer, given
from evocluster.report.texts import Texts, as_json

SHOWN = 5
"""Examples kept of each group."""
GROUPS = 60
"""Groups kept of a split, the largest first."""
LABEL = 40
"""An expected value and an output up to this length are told apart as a confused pair."""
_PARTS = re.compile(r"'[^']*'|\"[^\"]*\"|\b0x[0-9a-f]+\b|\d+(?:\.\d+)?")

Row = Mapping[str, Any]


def failures(
    rows: Sequence[Row], examples: Mapping[tuple[str, str], Mapping[str, Any]], texts: Texts, right: float
) -> dict[str, Any]:
    """Split -> {evaluations, failed, groups}; a group is {kind, label | expected and got, count, examples}.

    `right`: the quality from which an answer is right. An evaluation may stand in several groups.
    """
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(str(row["split"]), []).append(row)
    return {split: _split(found, examples, texts, right) for split, found in splits.items()}


def _split(
    rows: Sequence[Row], examples: Mapping[tuple[str, str], Mapping[str, Any]], texts: Texts, right: float
) -> dict[str, Any]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    failed = 0
    for row in rows:
        kinds = list(_kinds(row, examples.get((row["split"], row["example_id"])), right))
        failed += bool(kinds)
        for kind in kinds:
            groups.setdefault(kind, []).append(row)
    largest = sorted(groups.items(), key=lambda one: -len(one[1]))
    return {
        "evaluations": len(rows),
        "failed": failed,
        "left_out": max(0, len(groups) - GROUPS),
        "groups": [
            {
                "kind": kind[0],
                "label": [texts.add(part) for part in kind[1:]],
                "count": len(members),
                "examples": [_example(row, examples, texts) for row in members[:SHOWN]],
            }
            for kind, members in largest[:GROUPS]
        ],
    }


def _kinds(row: Row, example: Mapping[str, Any] | None, right: float) -> Iterator[tuple[str, ...]]:
    if row["error"] is not None:
        yield ("error", text_class(row["error"]))
        return
    if row["schema_ok"] is False:
        yield ("schema", "the output did not hold the schema")
    for flag in row["flags"] or ():
        yield ("flag", str(flag))
    if row["repairs"]:
        yield ("repair", f"asked again {row['repairs']} time{'s' if row['repairs'] > 1 else ''}")
    if (row["quality"] or 0.0) < right:
        yield _wrong(row, example)


def _wrong(row: Row, example: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Expected and got where both are short, else which scorer was worst."""
    expected = (example or {}).get("expected")
    said = expected if isinstance(expected, str) else None if expected is None else as_json(expected)
    got = row["output"] or ""
    if said is not None and len(said) <= LABEL and len(got) <= LABEL:
        return ("wrong", said, got)
    scores = json.loads(row["scores"]) if row["scores"] else {}
    if not scores:
        return ("wrong answer", "not right")
    worst = min(scores, key=lambda name: scores[name].get("value") or 0.0)
    whole = " ".join((scores[worst].get("reason") or "").split())
    if said is None and whole and len(whole) <= 2 * LABEL and len(got) <= LABEL:
        return ("wrong", whole, got)
    reason = text_class(whole)
    return ("wrong answer", f"{worst}: {reason}" if reason else worst)


def text_class(text: str) -> str:
    """A message without what differs from case to case: numbers and quoted parts."""
    return _PARTS.sub("…", " ".join(text.split()))[:160]


def _example(row: Row, examples: Mapping[tuple[str, str], Mapping[str, Any]], texts: Texts) -> dict[str, Any]:
    example = examples.get((row["split"], row["example_id"]))
    return {
        "example": texts.add(row["example_id"]),
        "twin": row["twin"],
        **given(example, texts),
        "answer": answer(row, texts),
    }
