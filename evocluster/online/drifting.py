"""Drift as recorded traffic shows it: every (intent, model) is a stream of right and wrong answers in their order.

The streams are told again from the rows at each look (release/drift.py is deterministic), so nothing has to be kept
between two of them, and two machines see the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from evocluster.online.outcome import Row, served, verdict
from evocluster.release.drift import Stream
from evocluster.release.settings import Online


def drifting(rows: Sequence[Row], settings: Online) -> list[dict[str, Any]]:
    """Warnings and alarms of every (intent, model), from the answers whose verdict is known, in their order.

    Of each stream the last alarm, else what its last answer says.
    """
    streams: dict[tuple[str, str], list[tuple[float, bool, str]]] = defaultdict(list)
    for row in sorted(served(rows), key=lambda row: (row["at"], row["request_id"])):
        known = verdict(row, settings.metrics)
        if known.known:
            right = known.succeeded(settings.evolution.quality)
            streams[row["intent"], row["model"]].append((row["at"], right, row["request_id"]))
    found = []
    for (intent, model), answers in streams.items():
        stream = Stream(settings.drift)
        told: dict[str, Any] = {}
        for at, right, id in answers:
            reading = stream.observe(right, at, len(streams))
            if reading.level == "alarm" or (reading.level == "warn" and told.get("state") != "alarm"):
                facts = {"by": reading.by, "reason": reading.reason, **reading.evidence}
                told = {"state": reading.level, "at": at, "request": id, **facts}
            elif told.get("state") == "warn":
                told = {}
        if told:
            found.append({"intent": intent, "model": model, **told})
    return found
