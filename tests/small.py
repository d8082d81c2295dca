"""A small task with the scripted model, for whole runs in tests: quality depends on the configuration, not on luck."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from evocluster.config import Config, load

LABELS = ("red", "green", "blue", "black")


def write_data(folder: Path, counts: dict[str, int] | None = None) -> None:
    """train, validation and test of colour words."""
    for split, count in (counts or {"train": 16, "validation": 8, "test": 12}).items():
        lines = []
        for index in range(count):
            label = LABELS[index % len(LABELS)]
            row = {"id": f"{split}-{index}", "input": f"the {split} thing {index} looks {label}", "expected": label}
            lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def settings(**changes: Any) -> dict[str, Any]:
    """The config as YAML data; `changes` replaces whole sections."""
    rules = [{"pattern": f"looks {label}", "text": label} for label in LABELS[:3]]
    return {
        "name": "small",
        "seed": 5,
        "task": {
            "kind": "classification",
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
            "labels": list(LABELS),
            "twins": {"share": 0.25},
        },
        "models": {"fake": {"kind": "scripted", "rules": rules, "default": "no idea", "latency_s": 0.05, "sigma": 0.6}},
        "space": {
            "rubric": ["Which colour?", "Name the colour out of {labels}."],
            "cot": [False, True],
            "temperature": {"low": 0.0, "high": 1.0},
            "max_tokens": [1, 8],
            "model": ["fake"],
            "demos": {"max": 4},
            "demo_style": ["chat", "inline", "completion"],
            "constrain": [False, True],
            "label_names": ["as_is", "letters"],
        },
        "start": [{"rubric": "Which colour?", "demos": [], "max_tokens": 8}],
        "search": {"population": 6, "block": 4, "finalists": 3},
        "budget": {"generations": 3},
        "engine": {"runner": "local", "in_flight": 12},
        "cache": {"path": "cache"},
        **changes,
    }


def write_config(folder: Path, **changes: Any) -> Path:
    """Data and config in a folder; the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return path


def edited(run: Path, name: str = "run.json", /, **changes: Any) -> None:
    """Change a JSON file of a run folder as an editor would, which leaves the folder without digests."""
    (run / "SHA256SUMS").unlink(missing_ok=True)
    kept = json.loads((run / name).read_text())
    kept.pop("sha256", None)
    (run / name).write_text(json.dumps({**kept, **changes}))


def small_config(folder: Path, **changes: Any) -> Config:
    """The same, loaded."""
    return load(write_config(folder, **changes))
