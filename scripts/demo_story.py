"""What the ledger tells of a loop, for people: audit, experiments, findings, incidents and bars in one timeline."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

from demo_world import Sent, World, share

from evocluster.online.finding import wilson

WIDE = 110
"""Characters of a detail."""


class Event(NamedTuple):
    """One line."""

    at: float
    table: str
    what: str
    detail: str


class Measured(NamedTuple):
    """Accuracy, with its 95 % interval (Wilson)."""

    right: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, sent: Sequence[Sent]) -> Measured:
        """Of these answers."""
        right, n = share(sent)
        return cls(right, n, *wilson(right, n))

    @property
    def share(self) -> float:
        """Right ones of all."""
        return self.right / self.n if self.n else 0.0

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.right} of {self.n}; 95 % interval {self.low:.1%} to {self.high:.1%})"


def difference(after: Measured, before: Measured) -> tuple[float, float, float]:
    """(gain, low, high) at 95 %: Newcombe's interval for two independent shares (Statistics in Medicine 17, 1998)."""
    gain = after.share - before.share
    low = gain - sqrt((after.share - after.low) ** 2 + (before.high - before.share) ** 2)
    high = gain + sqrt((after.high - after.share) ** 2 + (before.share - before.low) ** 2)
    return gain, low, high


def timeline(world: World) -> list[Event]:
    """Everything that was written down, in its order."""
    versions = {row["snapshot"]: row["version"] for row in world.rows("versions")}

    def named(id: str) -> str:
        return versions.get(id) or (f"snapshot {id[:8]}" if id else "nothing")

    events = [
        Event(row["at"], "audit", row["action"], _moved(row, named(row["from_snapshot"]), named(row["to_snapshot"])))
        for row in world.rows("audit")
    ]
    for row in world.rows("findings"):
        reason = row["evidence"].get("reason", "")
        told = f"{row['title']}{': ' if reason else ''}{reason} [{row['state']}]"
        events.append(Event(row["at"], "finding", f"{row['severity']} {row['kind']}", told))
    for row in world.rows("incidents"):
        told = f"{named(row['snapshot'])}: {row['evidence'].get('why', '')}"
        events.append(Event(row["at"], "incident", row["kind"], told))
    for row in world.rows("barred"):
        told = f"content {row['hash']} of {named(row['snapshot'])}"
        events.append(Event(row["at"], "barred", "near copies too" if row["text"] else "exactly this", told))
    for row in world.rows("experiments"):
        told = (
            f"{row['layer'] or 'whole'} layer, {named(row['candidate'])} against {named(row['baseline'])}: {row['why']}"
        )
        events.append(Event(row["ended_at"] or row["stage_at"], "experiment", row["outcome"] or row["stage"], told))
    return sorted(events, key=lambda event: event.at)


def _moved(row: dict[str, Any], before: str, after: str) -> str:
    why = row["why"] or {}
    text = why.get("text") or why.get("run") or why.get("trigger") or ""
    serves = f"{before} -> {after}; " if before != after else ""
    return f"epoch {row['epoch']}, by {row['actor']}: {serves}{text}"


def table(events: Sequence[Event], began: float) -> str:
    """Lines: seconds since the beginning, where it is written, what, and the rest."""
    rows = [(f"{event.at - began:7.1f} s", event.table, event.what, event.detail) for event in events]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else [0, 0, 0]
    lines = []
    for row in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        detail = row[3] if len(row[3]) <= WIDE else f"{row[3][: WIDE - 1]}…"
        lines.append(f"{head}  {detail}".rstrip())
    return "\n".join(lines)
