"""What is measured of one row of the trials table: the objectives of a run, as functions of a row.

They count as the search counts: quality and single scorers the examples as given, the others the robustness twins too;
latency, cost and tokens only where a call succeeded or none was needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from evocluster.report.aims import Ruler, aims, weights
from evocluster.report.figures import number
from evocluster.report.found import Found

Row = Mapping[str, Any]
Value = Callable[[Row], float | None]

UNITS: Mapping[str, str] = {"latency_ms": " ms", "cost_usd": " USD per 1M"}


@dataclass(frozen=True)
class Measure:
    """One objective, read from rows of trials."""

    name: str
    direction: Literal["max", "min"]
    aggregate: Literal["mean", "p95"]
    value: Value
    """Of one row; None where the row does not count."""

    def amount(self, value: float, sign: bool = False) -> str:
        """A value with its unit."""
        return self.bare(value, sign) + UNITS.get(self.name, "")

    def bare(self, value: float, sign: bool = False) -> str:
        """A value without unit, '+' before what is not negative when `sign`."""
        text = number(self.name, value)
        if text.startswith("-") and not text.strip("-0."):
            text = text[1:]
        return f"+{text}" if sign and not text.startswith("-") else text


def measure(
    name: str,
    source: str | None = None,
    direction: Literal["max", "min"] | None = None,
    aggregate: Literal["mean", "p95"] = "mean",
    threshold: float = 0.9,
    composite: Value | None = None,
) -> Measure | None:
    """The measure of an objective; None where its source is unknown here.

    Without `source` the name says what it is. `threshold`: what robustness asks of the validator; `composite`: the
    composite score of a row, whose weights only the config knows.
    """
    source = source or name
    known: dict[str, Value | None] = {
        "quality": _quality,
        "latency_ms": partial(_taken, column="seconds", scale=1000.0),
        "cost_usd": partial(_taken, column="cost_usd"),
        "tokens": _tokens,
        "robustness": partial(_robust, threshold=threshold),
        "composite": composite,
    }
    if source.startswith("scores."):
        known[source] = partial(_score, scorer=source.removeprefix("scores."), down=direction == "min")
    value = known.get(source)
    if value is None:
        return None
    down = source in ("latency_ms", "cost_usd", "tokens")
    return Measure(name, direction or ("min" if down else "max"), aggregate, value)


def declared(result: Found) -> dict[str, Measure]:
    """The objectives of a run by name, as its own config.yaml declares them; none where there is no such file."""
    try:
        config = (result.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    rulers = {aim: Ruler((aim,), weights(config)) for aim in aims(config, result.objectives)}
    return {
        aim.name: Measure(
            aim.name,
            "max" if aim.direction == "max" else "min",
            "p95" if aim.aggregate == "p95" else "mean",
            partial(_ruled, ruler=ruler),
        )
        for aim, ruler in rulers.items()
    }


def _ruled(row: Row, ruler: Ruler) -> float | None:
    return ruler.measure(row)[0]


def _quality(row: Row) -> float | None:
    if row["twin"]:
        return None
    return 0.0 if row["error"] is not None else float(row["quality"])


def _score(row: Row, scorer: str, down: bool) -> float | None:
    if row["twin"] or (down and row["error"] is not None):
        return None
    scores = json.loads(row["scores"] or "{}")
    return float(scores[scorer]["value"]) if row["error"] is None and scorer in scores else 0.0


def _taken(row: Row, column: str, scale: float = 1.0) -> float | None:
    return None if row["error"] is not None and not row["calls"] else float(row[column]) * scale


def _tokens(row: Row) -> float | None:
    spent = _taken(row, "prompt_tokens")
    return None if spent is None else spent + float(row["completion_tokens"])


def _robust(row: Row, threshold: float) -> float:
    clean = row["error"] is None and row["schema_ok"] and not row["flags"] and not row["repairs"]
    return float(bool(clean) and row["validator"] >= threshold)
