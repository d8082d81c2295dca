"""How the winner came about: its ancestors as a graph, and the main line with what each step changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Any

from evocluster.report.board import Board, Bred
from evocluster.report.texts import as_json

NODES = 60
"""Ancestors drawn at most, the nearest to the winner."""
WORDS = 4_000
"""Words of a prompt that are compared at most."""
LONG = 48
"""A text gene longer than this is shown as a word-level difference."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")

Segment = tuple[str, str]
"""('=', '-' or '+', text): kept, taken out, put in."""


def lineage(board: Board, winner: Bred) -> dict[str, Any]:
    """`nodes`: {genome, parents, depth}; `left_out`: ancestors not drawn; `steps`: the main line, oldest first."""
    depth = _ancestors(board, winner)
    nodes = [
        {
            "genome": board.genomes[id].number,
            "parents": [board.genomes[parent].number for parent in board.genomes[id].parents if parent in depth],
            "depth": steps,
        }
        for id, steps in list(depth.items())[:NODES]
    ]
    return {"nodes": nodes, "left_out": max(0, len(depth) - NODES), "steps": _steps(board, winner)}


def _ancestors(board: Board, winner: Bred) -> dict[str, int]:
    """Id -> steps back from the winner, the nearest first."""
    depth = {winner.id: 0}
    wave = [winner]
    while wave:
        ahead: list[Bred] = []
        for one in wave:
            for id in one.parents:
                if id not in depth and id in board.genomes:
                    depth[id] = depth[one.id] + 1
                    ahead.append(board.genomes[id])
        wave = ahead
    return depth


def _steps(board: Board, winner: Bred) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    seen: set[str] = set()
    one: Bred | None = winner
    while one is not None and one.id not in seen:
        seen.add(one.id)
        parents = [board.genomes[id] for id in dict.fromkeys(one.parents) if id in board.genomes]
        nearest = min(parents, key=partial(_distance, one), default=None)
        steps.append(_step(one, nearest, [parent.number for parent in parents if parent is not nearest]))
        one = nearest
    return steps[::-1]


def _step(one: Bred, parent: Bred | None, others: Sequence[int]) -> dict[str, Any]:
    return {
        "genome": one.number,
        "parent": parent.number if parent else None,
        "others": list(others),
        "changes": changes(parent.genes, one.genes) if parent else [],
    }


def _distance(child: Bred, parent: Bred) -> float:
    """Genes that differ; of a text that differs, the share that is new."""
    total = 0.0
    for name in parent.genes.keys() | child.genes.keys():
        old, new = parent.genes.get(name), child.genes.get(name)
        if old != new:
            both = isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > LONG
            total += 1 - SequenceMatcher(None, _words(str(old)), _words(str(new))).quick_ratio() if both else 1
    return total


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Genes that differ: {gene, before, after} as short texts, or {gene, diff} of a long text or a list."""
    found: list[dict[str, Any]] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > LONG:
            found.append({"gene": name, "diff": diff(old, new)})
        elif isinstance(old, list) and isinstance(new, list):
            found.append({"gene": name, "added": _beyond(new, old), "removed": _beyond(old, new), "count": len(new)})
        else:
            found.append({"gene": name, "before": as_json(old), "after": as_json(new)})
    return found


def _beyond(these: Sequence[Any], those: Sequence[Any]) -> list[str]:
    return [one if isinstance(one, str) else as_json(one) for one in these if one not in those]


def diff(before: str, after: str) -> list[Segment]:
    """A word-level difference; joined without '+' it is the text before, without '-' the text after."""
    old, new = _words(before), _words(after)
    segments: list[Segment] = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            segments.append(("=", "".join(old[a:b])))
            continue
        if b > a:
            segments.append(("-", "".join(old[a:b])))
        if d > c:
            segments.append(("+", "".join(new[c:d])))
    return segments


def _words(text: str) -> list[str]:
    """Words, signs and gaps; what lies beyond the limit is one word."""
    words = _WORDS.findall(text)
    return words if len(words) <= WORDS else [*words[:WORDS], "".join(words[WORDS:])]
