"""What a run cost: by model and purpose, by split, by operator; cached against paid.

The column `spend` says it trial by trial. Folders older than that column get the model from the genome's gene `model`
and the purpose from the kind of row, and the facts say so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from evocluster.report.board import Bred

FIELDS = ("calls", "cached", "prompt_tokens", "completion_tokens", "usd", "paid_usd")
"""What is added up. usd is at list price, as if nothing had been cached; paid_usd is what was paid."""
OWN = ("calls", "cached_calls", "prompt_tokens", "completion_tokens", "cost_usd", "paid_usd")
"""Their columns in the table; those of judging are `JUDGE`."""
JUDGE = tuple(f"judge_{name}" for name in FIELDS)
UNKNOWN = "unknown"
Sums = list[float]


class Spend:
    """Call order: `add` every trial, then `facts`."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Sums] = defaultdict(_zeros)
        self._splits: dict[str, Sums] = defaultdict(_zeros)
        self._operators: dict[str, Sums] = defaultdict(_zeros)
        self._told = 0
        self._guessed = 0

    def add(self, trial: Sequence[Mapping[str, Any]], genome: Bred | None) -> None:
        """Count one trial of this genome."""
        told = trial[0].get("spend")
        made_by = self._operators[genome.operator if genome else str(trial[0]["operator"])]
        model = str((genome.genes if genome else {}).get("model", UNKNOWN))
        for row in trial:
            evaluation = row["kind"] == "evaluation"
            own, judge = _part(row, OWN), _part(row, JUDGE) if row.get("judge_calls") else None
            split = self._splits[str(row["split"]) if evaluation else "making genomes"]
            for part in (own, judge):
                if part:
                    _add(split, part)
                    _add(made_by, part)
            if told is None:
                _add(self._models[model, "evaluate" if evaluation else "rewrite"], own)
                if judge:
                    _add(self._models[UNKNOWN, "judge"], judge)
        self._told += told is not None
        self._guessed += told is None
        for one in json.loads(told) if told is not None else ():
            _add(self._models[str(one["model"]), str(one["purpose"])], _part(one, FIELDS))

    def facts(self) -> dict[str, Any]:
        """`models`, `splits`, `operators`: lists of {name..., FIELDS}, the dearest first; `guessed`: trials that did
        not say their spend, `told`: those that did.
        """
        models = [
            {"model": model, "purpose": purpose, **_rounded(sums)}
            for (model, purpose), sums in self._models.items()
            if sums[0]
        ]
        operators = [{"name": name, **_rounded(sums)} for name, sums in self._operators.items() if sums[0]]
        return {
            "models": _dearest(models),
            "splits": [{"name": name, **_rounded(sums)} for name, sums in self._splits.items() if sums[0]],
            "operators": _dearest(operators),
            "guessed": self._guessed,
            "told": self._told,
        }


def _zeros() -> Sums:
    return [0.0] * len(FIELDS)


def _part(row: Mapping[str, Any], names: Sequence[str]) -> Sums:
    return [row.get(name) or 0 for name in names]


def _add(sums: Sums, part: Sums) -> None:
    for at, value in enumerate(part):
        sums[at] += value


def _rounded(sums: Sums) -> dict[str, float | int]:
    pairs = zip(FIELDS, sums, strict=True)
    return {name: round(value, 9) if name.endswith("usd") else int(value) for name, value in pairs}


def _dearest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (-row["usd"], -row["calls"]))
