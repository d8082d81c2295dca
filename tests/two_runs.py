"""Two finished small runs whose starting configurations differ in a known way, for what reads run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small import LABELS, small_config

from evocluster import build
from evocluster.report.result import Result

COUNTS = {"train": 16, "validation": 12, "test": 60}
PLAIN = {"rubric": "Which colour?", "demos": [], "max_tokens": 8, "demo_style": "completion", "constrain": False}
ASKED = {**PLAIN, "rubric": "Name the colour out of {labels}."}
"""What is black is answered rightly under this one only; a quarter of all examples is black."""
RULES = [
    {"pattern": r"(?s)out of.*looks black\W*\w*\W*$", "text": "black"},
    *({"pattern": f"looks {label}", "text": label} for label in LABELS[:3]),
]


def finished(folder: Path, start: dict[str, Any], counts: dict[str, int] | None = None, **changes: Any) -> Result:
    """A run of a few trials that begins at `start`, finished; its folder keeps the examples."""
    models = {"fake": {"kind": "scripted", "rules": RULES, "default": "no idea", "latency_s": 0.05, "sigma": 0.6}}
    config = small_config(folder, **{"start": [start], "models": models, "budget": {"generations": 1}, **changes})
    for split, count in (counts or COUNTS).items():
        rows = [
            {"id": f"{split}-{at}", "input": f"the {split} thing {at} looks {label}", "expected": label}
            for at, label in ((at, LABELS[at % len(LABELS)]) for at in range(count))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = build.run(build.plan(config), folder / "run")
    keep_examples(result, folder)
    return result


def keep_examples(result: Result, folder: Path) -> None:
    """examples.jsonl of a run folder, from the data files beside it."""
    lines = []
    for split in ("train", "validation", "test"):
        for text in (folder / f"{split}.jsonl").read_text().splitlines():
            lines.append(json.dumps({"split": split, **json.loads(text), "meta": {}}))
    (result.path / "examples.jsonl").write_text("\n".join(lines) + "\n")
