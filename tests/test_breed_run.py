"""Whole runs of `strategy: breed` from a config: they climb, keep the mutation prompts, and are resumed after a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from small import LABELS, settings, small_config, write_config

from evocluster import build
from evocluster.config import Config
from evocluster.errors import ConfigError
from evocluster.search.operators import BREED

RULES = [
    {"pattern": r"(?s)Advice: (?P<old>[^\n]*)\n\nAnswer with the new advice", "text": r"\g<old> And be bold."},
    {"pattern": r"(?s)Advice:\Z", "text": "Ask for less."},
    {"pattern": r"(?s)Instruction: (?P<old>[^\n]*)\n\nChange", "text": r"\g<old> One word."},
    {"pattern": r"\n(?P<last>[^\n]*)\n\n(Go on|Number|Write)", "text": r"\g<last> Be exact."},
    {"pattern": r"The task in a few words: (?P<told>[^\n]*)", "text": r"Read it first. \g<told>"},
    {"pattern": r"Worked out: ", "text": "Name the colour of the thing."},
    *({"pattern": f"(?s)(One word|Be exact).*looks {label}", "text": label} for label in LABELS[2:]),
    *({"pattern": f"looks {label}", "text": label} for label in LABELS[:2]),
]


def breeding(folder: Path, **fake: Any) -> Config:
    """The small task, where half of the colours are named only when asked for exactly."""
    return small_config(
        folder,
        models={"fake": {**settings()["models"]["fake"], "rules": RULES, **fake}},
        space={"rubric": ["Which colour?"], "demos": {"max": 2}, "demo_style": ["completion"], "model": ["fake"]},
        search={"strategy": "breed", "population": 4, "block": 4, "finalists": 2},
        budget={"generations": 8},
    )


def rows(folder: Path) -> Any:
    return pandas.read_parquet(folder / "trials")


def test_a_run_breeds_better_prompts_and_keeps_their_mutation_prompts(tmp_path: Path) -> None:
    result = build.run(build.plan(breeding(tmp_path)), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["stop_reason"]) == ("finished", "generations")
    assert set(run["operators"]) == {*BREED}
    assert result.recommended is not None
    assert result.front["start"]["test"]["quality"]["value"] == 0.5
    assert result.recommended["test"]["quality"]["value"] == 1.0
    table = rows(tmp_path / "run")
    bred = table[table.operator.isin(BREED) & table.notes.notna()]
    carried = [json.loads(notes)["mutation_prompt"] for notes in bred.notes]
    assert len(bred) > 8
    assert all(carried)
    assert any("be bold" in text or text == "Ask for less." for text in carried)
    assert int(table.calls.sum()) == run["calls"]


@pytest.mark.slow
def test_a_run_that_was_cut_is_resumed_to_the_same_front(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    # It is asked twice a second whether to stop: by then no more than half of the search can have been answered.
    slow = breeding(tmp_path, time_scale=1.0, latency_s=0.12, sigma=0.1)
    cut = build.run(
        build.plan(slow), tmp_path / "cut", show=seen.update, interrupted=lambda: seen.get("commits", 0) > 8
    )
    assert cut.status == "interrupted"
    assert cut.run["phase"] == "search"
    before = rows(tmp_path / "cut")
    assert before.notes.notna().any()
    resumed = build.resume(tmp_path / "cut")
    whole = build.run(build.plan(breeding(tmp_path, latency_s=0.12, sigma=0.1)), tmp_path / "whole")
    assert resumed.status == "finished"
    assert len(rows(tmp_path / "cut")) > len(before)
    assert resumed.front == whole.front
    assert not rows(tmp_path / "cut").duplicated(["proposal", "kind", "example_id", "twin", "replicate"]).any()


def test_a_frozen_prompt_is_refused_before_anything_runs(tmp_path: Path) -> None:
    space = {**settings()["space"], "rubric": "Which colour?"}
    path = write_config(tmp_path, space=space, search={"strategy": "breed"})
    with pytest.raises(ConfigError, match=r"'breed' writes new prompts.*'Which colour\?'.*rubric: \["):
        build.run(build.plan(path), tmp_path / "run")
    assert not (tmp_path / "run" / "trials").exists()
