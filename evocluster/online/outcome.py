"""What became of recorded requests: rows of the ledger joined, and the verdict that feedback adds up to.

A row is a dict with the fields of `release.exchange.Exchange`, `input` and `output` (None where the body was not kept)
and `feedback`: a list of rows of that table. `joined` makes them from the three tables as the ledger or a query over
sealed files gives them.

A verdict is taken from the strongest thing that was said: a correction, then `correct`, `quality`, `accepted`, then the
caller's signals and hard errors. Of one metric people outrank users, users code, and code judges; then the latest
counts. Nothing said is no verdict: missing is not failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evocluster.records import Json
from evocluster.release.exchange import HARD
from evocluster.release.settings import Metric
from evocluster.tasks.words import as_json, equal_json, plain

Row = Mapping[str, Any]
SOURCES = ("human", "user", "code", "judge")
"""Who says something, the one who counts most first; others count least."""
RIGHT = 0.8
"""Quality from which an answer counts as right."""
_LEVELS = {"correction": "text", "correct": "bool", "quality": "float", "accepted": "bool"}


class Verdict(NamedTuple):
    """How good an answer was."""

    quality: float | None = None
    """0 to 1; None: nobody said."""
    expected: Json = None
    """The right answer, where a correction gives it."""
    by: str = ""
    """What it was taken from: a metric, a signal, or `error`."""
    at: float = 0.0
    """When it was said."""

    @property
    def known(self) -> bool:
        """Somebody said."""
        return self.quality is not None

    def failed(self, right: float = RIGHT) -> bool:
        """It is known not to have been right."""
        return self.quality is not None and self.quality < right

    def succeeded(self, right: float = RIGHT) -> bool:
        """It is known to have been right."""
        return self.quality is not None and self.quality >= right


def joined(exchanges: Iterable[Row], bodies: Iterable[Row] = (), feedback: Iterable[Row] = ()) -> list[dict[str, Any]]:
    """Exchanges with their bodies and feedback, in their order.

    What is said of an episode is said of each of its requests; a correction only where the episode has but one.
    """
    kept = {body["request_id"]: body for body in bodies}
    by_request: dict[str, list[Row]] = defaultdict(list)
    by_episode: dict[str, list[Row]] = defaultdict(list)
    for said in feedback:
        if said.get("request_id"):
            by_request[said["request_id"]].append(said)
        elif said.get("episode_id"):
            by_episode[said["episode_id"]].append(said)
    exchanges = list(exchanges)
    sizes: dict[str, int] = defaultdict(int)
    for row in exchanges:
        sizes[row["episode_id"]] += not row.get("is_shadow")
    rows = []
    for row in exchanges:
        body = kept.get(row["request_id"], {})
        whole = [
            said
            for said in by_episode[row["episode_id"]]
            if said["metric"] != "correction" or sizes[row["episode_id"]] == 1
        ]
        rows.append(
            {
                **row,
                "input": body.get("input"),
                "output": body.get("output"),
                "feedback": [*by_request[row["request_id"]], *whole],
            }
        )
    return rows


def verdict(row: Row, metrics: Mapping[str, Metric] | None = None) -> Verdict:
    """What is known of a row's answer. `metrics`: their scales; without them `quality` is 0 to 1, up."""
    said = spoken(row.get("feedback") or ())
    for metric in ("correction", "correct", "quality", "accepted"):
        if metric in said and (found := _read(row, said[metric], metric, metrics or {})) is not None:
            return found
    if row.get("error_class") in HARD:
        return Verdict(0.0, by="error", at=float(row["at"]))
    return _signalled(row)


def spoken(feedback: Iterable[Row]) -> dict[str, Row]:
    """Metric -> the feedback that counts; what was superseded or is not a value of the metric's type does not."""
    rows = [row for row in feedback if row.get("state") != "superseded"]
    gone = {row.get("supersedes") for row in rows} - {None, ""}
    counted: dict[str, Row] = {}
    for row in sorted((row for row in rows if row.get("feedback_id") not in gone), key=_weight):
        counted[row["metric"]] = row
    return counted


def _weight(row: Row) -> tuple[int, float, str]:
    source = row.get("source") or ""
    rank = SOURCES.index(source) if source in SOURCES else len(SOURCES)
    return -rank, float(row.get("observed_at") or row.get("received_at") or 0.0), str(row.get("feedback_id", ""))


def _read(row: Row, said: Row, metric: str, metrics: Mapping[str, Metric]) -> Verdict | None:
    value, at = said["value"], float(said.get("observed_at") or said.get("received_at") or row["at"])
    if metric == "correction":
        if not isinstance(value, str | Mapping | list | tuple) or not plain(value).strip():
            return None
        same = row.get("output") is not None and equal_json(as_json(row["output"]), as_json(value), text=True)
        return Verdict(1.0 if same else 0.0, value, metric, at)
    if isinstance(value, bool):
        return Verdict(float(value), by=metric, at=at)
    if not isinstance(value, int | float):
        return None
    scale = metrics.get(metric, Metric(type="float"))
    share = min(1.0, max(0.0, (value - scale.low) / (scale.high - scale.low)))
    return Verdict(share if scale.direction == "up" else 1 - share, by=metric, at=at)


def _signalled(row: Row) -> Verdict:
    signals = row.get("signals") or {}
    for name, good in (("corrected", False), ("tool_success", True), ("accepted", True), ("retried", False)):
        value = signals.get(name)
        if isinstance(value, bool) and (value or good):  # that nothing was corrected or retried says little
            return Verdict(float(value is good), by=name, at=float(row["at"]))
    return Verdict()


def served(rows: Iterable[Row], tombstoned: Sequence[str] | frozenset[str] = frozenset()) -> list[Row]:
    """Rows that count: no shadow's, none of a user who was deleted, none whose request was wrong by itself."""
    gone = frozenset(tombstoned)
    return [
        row
        for row in rows
        if not row.get("is_shadow")
        and row.get("error_class") != "client"
        and not (row.get("user") and row["user"] in gone)
    ]
