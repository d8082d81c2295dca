"""A finding of the daily analysis: what was seen, how sure that is, and what would help.

Rates carry Wilson intervals (Wilson 1927) on as many observations as there are independent ones: requests of one
episode may all fail together, so that n requests count as n^2 / sum(n_e^2) (Kish 1965). Nothing is found from fewer
than `LEAST` observations or `FEWEST` hits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from evocluster.online.outcome import Row, verdict
from evocluster.records import FrozenDict, FrozenMap, Json, Record, digest

Severity = Literal["low", "medium", "high"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
LEAST = 20
"""Observations that anything is found from."""
FEWEST = 5
"""Hits among them."""
HIGH, MEDIUM = 0.05, 0.01
"""Share of all requests (for costs: of the spend) that is surely concerned, from which severity is high, or medium."""
NAMED = 10
"""Requests that a finding names as evidence, the latest ones."""
DAY_S = 86_400.0


class Rate(NamedTuple):
    """A share with its interval."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share itself; 0 of nothing."""
        return self.hits / self.of if self.of else 0.0

    def told(self) -> dict[str, Json]:
        """As evidence."""
        return {
            "hits": self.hits,
            "of": self.of,
            "share": _round(self.share),
            "interval": [_round(self.low), _round(self.high)],
        }

    def text(self) -> str:
        """As a title tells it."""
        return f"{self.hits} of {self.of} ({self.share:.0%}, {self.low:.0%} to {self.high:.0%})"


class Finding(Record):
    """One thing that the analysis found."""

    kind: str
    """failures, confusion, format, repairs, refusals, unsure, cost, slower, outliers, memory, fact or drift."""
    severity: Severity
    layer: Literal["prompt", "memory", "strategy", ""]
    """That could set it right; empty: none of them."""
    intent: str = ""
    model: str = ""
    title: str
    evidence: FrozenMap = FrozenDict()
    """Requests, counts, intervals."""
    recommendation: str
    key: str = ""
    """Tells it from others of its kind, intent and model."""

    def row(self, deployment: str, at: float) -> dict[str, Json]:
        """A row of the table `findings`; found again on the same day (UTC) it has the same id."""
        named = [deployment, int(at // DAY_S), self.kind, self.layer, self.intent, self.model, self.key]
        told = self.model_dump(mode="json", exclude={"key"})
        return {"id": digest(named)[:16], "deployment": deployment, "at": at, "state": "open", **told}


def wilson(hits: float, of: float, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Wilson interval of a share; everything where nothing was observed."""
    if of <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / of
    middle = share + z * z / (2 * of)
    spread = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = (middle - spread) / (1 + z * z / of), (middle + spread) / (1 + z * z / of)
    return max(0.0, low) if hits > 0 else 0.0, min(1.0, high) if hits < of else 1.0


def rate(rows: Sequence[Row], hit: Iterable[bool], confidence: float = 0.95) -> Rate:
    """The share of these rows that are hits, its interval by independent episodes."""
    hits = sum(map(bool, hit))
    sizes = Counter(row["episode_id"] for row in rows)
    independent = len(rows) ** 2 / sum(size**2 for size in sizes.values()) if rows else 0.0
    low, high = wilson(hits / len(rows) * independent if rows else 0, independent, confidence)
    return Rate(hits, len(rows), low, high)


def severity(share: float) -> Severity:
    """By the share of all requests, or of the spend, that is surely concerned."""
    return "high" if share >= HIGH else "medium" if share >= MEDIUM else "low"


def concerned(rows: Sequence[Row], everything: Sequence[Row]) -> Severity:
    """The severity of what these rows of all rows are hit by."""
    ids = {row["request_id"] for row in rows}
    return severity(rate(everything, (row["request_id"] in ids for row in everything)).low)


def named(rows: Iterable[Row]) -> list[str]:
    """The latest of these requests, by id."""
    return [row["request_id"] for row in sorted(rows, key=lambda row: (-float(row["at"]), row["request_id"]))[:NAMED]]


def streams(rows: Iterable[Row], by: Sequence[str] = ("intent", "model")) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Rows by the values of these fields, sorted by them."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row.get(field) or "") for field in by), []).append(row)
    return sorted(found.items())


def of_intent(intent: str, model: str = "") -> str:
    """How titles call a stream."""
    parts = [f"intent {intent!r}" if intent else "", f"model {model!r}" if model else ""]
    return ", ".join(filter(None, parts)) or "all requests"


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first."""
    return tuple(
        sorted(
            findings, key=lambda each: (SEVERITIES.index(each.severity), each.kind, each.intent, each.model, each.key)
        )
    )


def table(findings: Iterable[Finding]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headings, rows) for a terminal."""
    heads = ("severity", "kind", "layer", "intent", "model", "finding", "recommendation")
    return heads, [
        (each.severity, each.kind, each.layer, each.intent, each.model, each.title, each.recommendation)
        for each in findings
    ]


def as_json(findings: Iterable[Finding]) -> list[dict[str, Json]]:
    """Plain JSON."""
    return [each.model_dump(mode="json") for each in findings]


def told(**evidence: Any) -> FrozenDict:
    """Evidence with rates written out."""
    return FrozenDict({name: value.told() if isinstance(value, Rate) else value for name, value in evidence.items()})


def _round(value: float) -> float:
    return round(value, 4)


def totals(rows: Iterable[Row], by: Sequence[str] = ("intent", "model")) -> list[dict[str, Json]]:
    """Requests, verdicts, errors, latency and cost of every stream: what `group by` over the same rows would give."""
    told: list[dict[str, Json]] = []
    for values, members in streams(rows, by):
        verdicts = [found for row in members if (found := verdict(row)).known]
        latencies = [float(row["latency_ms"]) for row in members]
        errors: Mapping[str, int] = Counter(row["error_class"] for row in members if row.get("error_class"))
        told.append(
            {
                **dict(zip(by, values, strict=True)),
                "requests": len(members),
                "episodes": len({row["episode_id"] for row in members}),
                "judged": len(verdicts),
                "failed": sum(found.failed() for found in verdicts),
                "errors": dict(sorted(errors.items())),
                "p50_ms": float(np.quantile(latencies, 0.5)),
                "p95_ms": float(np.quantile(latencies, 0.95)),
                "tokens": sum(int(row["prompt_tokens"]) + int(row["completion_tokens"]) for row in members),
                "cost_usd": sum(float(row["cost_usd"]) for row in members),
            }
        )
    return told
