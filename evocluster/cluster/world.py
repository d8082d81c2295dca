"""The work the engine benchmarks give: a search on generated examples against any model entry of a config.

`write(folder, World(...))` leaves a config and its data there, for `evocluster run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LABELS = ("billing", "refund", "shipping", "returns", "account", "technical", "cancellation", "sales")
PRICE = {"prompt_usd_per_mtok": 0.15, "completion_usd_per_mtok": 0.60}
_WORDS = ("my", "order", "parcel", "card", "site", "app", "again", "never", "twice", "monday", "late", "wrong")


@dataclass(frozen=True)
class World:
    """One search to carry out."""

    model: Mapping[str, Any]
    """The entry under `models:`."""
    calls: int
    """Budget, the final check included; one call an evaluation."""
    in_flight: int
    runner: str = "ray"
    population: int = 50
    seed: int = 7
    lookahead: int | None = None
    checked: int = 100
    """Examples of validation, and of test; train has four times as many."""
    finalists: int = 4
    block: int = 16
    engine: Mapping[str, Any] = field(default_factory=dict)
    """More settings of the engine: its address, its workers."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """More settings of the search."""

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of every split."""
        return {"train": 4 * self.checked, "validation": self.checked, "test": self.checked}


def write(folder: Path, world: World) -> Path:
    """The config file of this world, its data beside it."""
    folder.mkdir(parents=True)
    for split, size in world.sizes.items():
        lines = [json.dumps(_example(split, number)) for number in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "bench.yaml"
    path.write_text(json.dumps(_config(folder, world), indent=1))  # JSON is YAML
    return path


def _config(folder: Path, world: World) -> dict[str, Any]:
    rubric = "Which queue should this support message go to? Queues: {labels}."
    frozen = {"cot": False, "max_tokens": 16, "demo_style": "chat", "constrain": False}
    return {
        "name": "bench",
        "seed": world.seed,
        "task": {
            "kind": "classification",
            "data": {split: f"{split}.jsonl" for split in world.sizes},
            "labels": list(LABELS),
            "scorers": [{"kind": "label"}],
        },
        "models": {"bench": {**world.model, "price": PRICE}},
        "space": {
            "rubric": {"texts": [rubric, "Name the queue. " + rubric], "fixed": True},
            "temperature": {"low": 0.0, "high": 1.0},
            "demos": {"max": 8},
            "model": ["bench"],
            **frozen,
        },
        "start": [{"rubric": rubric, "temperature": 0.5, "model": "bench", "demos": [], **frozen}],
        "search": {
            "population": world.population,
            "block": world.block,
            "finalists": world.finalists,
            "lookahead": world.lookahead,
            **world.search,
        },
        "budget": {"calls": world.calls},
        "engine": {"in_flight": world.in_flight, "runner": world.runner, **world.engine},
        "cache": {"path": str(folder / "cache")},
    }


def _example(split: str, number: int) -> dict[str, Any]:
    label = LABELS[number % len(LABELS)]
    words = [_WORDS[(number * step + step) % len(_WORDS)] for step in range(1, 13)]
    return {
        "id": f"{split}-{number}",
        "input": f"{split} {number}: {' '.join(words)} {label}",
        "expected": label,
    }
