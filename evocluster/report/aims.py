"""What a run aimed at: its objectives as config.yaml declares them, and how one row of the table counts for each.

config.yaml is the resolved one that the run wrote itself, so its flat parts can be read line by line; what is not
found there takes the default of its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

DOWN = ("latency_ms", "cost_usd", "tokens")
"""Sources that are better when lower."""
SHORT: Mapping[str, str] = {"latency": "latency_ms", "cost": "cost_usd"}
WEIGHTS: Mapping[str, float] = {
    "validator": 0.9,
    "accuracy": 0.85,
    "per_ms": 0.001,
    "per_token": 0.0005,
    "per_repair": 0.2,
    "usd_weight": 1.0,
}
"""The composite's settings where config.yaml names none."""
_FIELD = re.compile(r"^\s*(?:- )?(\w+): (.*)$")
_LIMIT = re.compile(r"^\s*- ['\"]?(.+?) ([<>])=? (\S+?)['\"]?$")


class Aim(NamedTuple):
    """One objective or other measure of a run."""

    name: str
    source: str
    """quality, latency_ms, cost_usd, robustness, tokens, composite or scores.SCORER."""
    direction: str
    """'max' or 'min'."""
    aggregate: str
    """'mean' or 'p95'."""
    threshold: float
    """Robustness only: what the validator must reach."""

    @property
    def sign(self) -> float:
        """What turns a value into one to minimise."""
        return -1.0 if self.direction == "max" else 1.0


def aims(config: str, names: Sequence[str]) -> tuple[Aim, ...]:
    """The aims of these names: from the `objectives` of config.yaml, else from its `constraints`, else by the defaults
    of the name.
    """
    declared: dict[str, dict[str, str]] = {}
    for line in section(config, "objectives"):
        if found := _FIELD.match(line):
            if line.lstrip().startswith("- "):
                one: dict[str, str] = {}
            one[found[1]] = found[2].strip("'\"")
            declared[one.get("name", "")] = one
    declared = {**_limited(config, declared), **declared}
    return tuple(_aim(name, declared.get(name, {})) for name in names)


def _limited(config: str, declared: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """What constraints measure: 'latency_ms p95 <= 900' is the 95th percentile of the objective latency_ms."""
    found = {}
    for line in section(config, "constraints"):
        if limit := _LIMIT.match(line):
            short, _, aggregate = limit[1].partition(" ")
            known = declared.get(short, {})
            source = known.get("source", SHORT.get(short, short))
            name = f"{known.get('name', source)} {aggregate}".strip()
            way = "max" if limit[2] == ">" else "min"
            found[name] = {**known, "source": source, "aggregate": aggregate or "mean", "direction": way}
    return found


def _aim(name: str, said: Mapping[str, str]) -> Aim:
    source = said.get("source", name)
    direction = said.get("direction") or ("min" if source in DOWN else "max")
    return Aim(name, source, direction, said.get("aggregate", "mean"), _number(said.get("threshold")) or 0.9)


def weights(config: str) -> dict[str, float]:
    """The settings of the composite score."""
    said = {found[1]: _number(found[2]) for line in section(config, "composite") if (found := _FIELD.match(line))}
    return {name: default if (value := said.get(name)) is None else value for name, default in WEIGHTS.items()}


def setting(config: str, part: str, name: str) -> float | None:
    """A number such as `search.population`; None where it is not said."""
    found = (_FIELD.match(line) for line in section(config, part))
    return next((_number(one[2]) for one in found if one and one[1] == name), None)


def section(config: str, name: str) -> list[str]:
    """The lines below a top-level key."""
    lines = config.splitlines()
    try:
        start = lines.index(f"{name}:") + 1
    except ValueError:
        return []
    end = next((at for at in range(start, len(lines)) if re.match(r"\w", lines[at])), len(lines))
    return lines[start:end]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


class Ruler:
    """Measures rows of the table by aims."""

    def __init__(self, measured: Sequence[Aim], composite: Mapping[str, float]) -> None:
        self.aims = tuple(measured)
        self.composite = dict(composite)
        self._scored = any(aim.source.startswith("scores.") for aim in measured)

    def measure(self, row: Mapping[str, Any]) -> list[float | None]:
        """What one evaluation counts for each aim; None where it does not count."""
        failed = row["error"] is not None
        scores = json.loads(row["scores"]) if self._scored and row["scores"] else {}
        return [self._one(aim, row, failed, scores) for aim in self.aims]

    def _one(self, aim: Aim, row: Mapping[str, Any], failed: bool, scores: Mapping[str, Any]) -> float | None:
        source = aim.source
        if source in DOWN:
            return None if failed and not row["calls"] else took(source, row)
        if source == "robustness":
            return float(clean(row) and not row["repairs"] and (row["validator"] or 0.0) >= aim.threshold)
        if source == "composite":
            return self._composite(row)
        if row["twin"]:
            return None
        if failed:
            return None if source.startswith("scores.") and aim.direction == "min" else 0.0
        if source.startswith("scores."):
            score = scores.get(source.removeprefix("scores."), {})
            return finite(score.get("value")) or 0.0
        return float(row["quality"] or 0.0)

    def _composite(self, row: Mapping[str, Any]) -> float:
        rule = self.composite
        right = clean(row) and row["validator"] >= rule["validator"] and row["quality"] >= rule["accuracy"]
        spent = rule["per_ms"] * took("latency_ms", row) + rule["per_token"] * took("tokens", row)
        spent += rule["per_repair"] * (row["repairs"] or 0) + rule["usd_weight"] * took("cost_usd", row)
        return max(float(right) - spent, 0.0)


def clean(row: Mapping[str, Any]) -> bool:
    """No error, the schema held, nothing flagged."""
    return row["error"] is None and row["schema_ok"] is not False and not row["flags"]


def took(source: str, row: Mapping[str, Any]) -> float:
    """Latency in ms, US dollars at list price, or tokens, of one row."""
    if source == "tokens":
        return float((row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0))
    return float(row[source] or 0.0)


def finite(value: Any) -> float | None:
    """A finite number at six digits, as the page needs it; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
