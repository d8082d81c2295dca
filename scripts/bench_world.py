"""The work the engine benchmarks give: a search on generated examples against any model entry of a config.

`write(folder, World(...))` leaves a config and its data there; `carry_out` runs one in a process of its own,
so that a meter outside sees all of it and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from schedule import Meter

LABELS = ("billing", "refund", "shipping", "returns", "account", "technical", "cancellation", "sales")
PRICE = {"prompt_usd_per_mtok": 0.15, "completion_usd_per_mtok": 0.60}
_WORDS = (
    "my",
    "order",
    "parcel",
    "card",
    "site",
    "app",
    "again",
    "never",
    "twice",
    "monday",
    "late",
    "wrong",
)
_SIZES = {"train": 400, "validation": 100, "test": 100}


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


def write(folder: Path, world: World) -> Path:
    """The config file of this world, its data beside it."""
    folder.mkdir(parents=True)
    for split, size in _SIZES.items():
        lines = [json.dumps(_example(split, number)) for number in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(_config(folder, world), sort_keys=False))
    return path


def _config(folder: Path, world: World) -> dict[str, Any]:
    rubric = "Which queue should this support message go to? Queues: {labels}."
    frozen = {"cot": False, "max_tokens": 16, "demo_style": "chat", "constrain": False}
    return {
        "name": "bench",
        "seed": world.seed,
        "task": {
            "kind": "classification",
            "data": {split: f"{split}.jsonl" for split in _SIZES},
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
        "search": {"population": world.population, "block": 16, "finalists": 4, "lookahead": world.lookahead},
        "budget": {"calls": world.calls},
        "engine": {"in_flight": world.in_flight, "runner": world.runner},
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


@dataclass(frozen=True)
class Sitting:
    """A search carried out in its own process. Moments are on the monotonic clock."""

    started_s: float
    ended_s: float
    meter: Meter
    growth: tuple[tuple[int, float], ...]
    """(evaluations so far, resident MiB of the process), twice a second."""
    run: dict[str, Any]
    """run.json"""


def carry_out(config: Path) -> Sitting:
    """Run a config to its end. Raises: RuntimeError with what the run said when it failed."""
    out = config.parent / "run"
    started = time.monotonic()
    command = [sys.executable, __file__, str(config), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, Meter(process.pid) as meter:
        said, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run of {config} ended with {process.returncode}: {complaint[-3000:]}")
    growth = tuple((int(n), float(mb)) for n, mb in (line.split() for line in said.splitlines()))
    return Sitting(started, time.monotonic(), meter, growth, json.loads((out / "run.json").read_text()))


def main() -> None:
    """In the process of its own: run the config, say evaluations and memory on every look."""
    from evocluster import build

    process = psutil.Process()

    def show(progress: dict[str, Any]) -> None:
        if "evaluations" in progress:
            print(progress["evaluations"], process.memory_info().rss / 2**20, flush=True)

    build.run(build.plan(Path(sys.argv[1])), Path(sys.argv[2]), show=show)


if __name__ == "__main__":
    main()
