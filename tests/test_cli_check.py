"""`evocluster check`: what it shows before a run is paid for, and how it leaves when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command import call
from small import settings, write_config, write_data


def test_example_and_forecast_are_shown(tmp_path: Path) -> None:
    done = call("check", write_config(tmp_path), columns=100)
    assert done.code == 0, done.err
    assert "examples   16 train, 8 validation, 12 test; classification" in done.out
    assert "model      fake: scripted:" in done.out
    assert "  system: Which colour?" in done.out
    assert "score      label " in done.out
    assert "1 call(s)" in done.out
    assert "about      " in done.out
    assert "ends by    generations (budget: generations 3)" in done.out
    assert not (tmp_path / "runs").exists()


def test_the_example_is_not_paid_again_by_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    call("check", config)
    again = json.loads(call("check", config, "--json").out)
    assert again["ok"] is True
    assert again["evaluation"]["usage"]["cached"] == again["evaluation"]["usage"]["calls"] == 1
    assert again["evaluation"]["usage"]["paid_usd"] == 0
    assert again["forecast"]["calls"] > 100


def test_without_a_call(tmp_path: Path) -> None:
    done = call("check", write_config(tmp_path), "--no-call")
    assert done.code == 0
    assert "everything it names is there" in done.out
    assert "One example" not in done.out
    assert json.loads(call("check", tmp_path / "small.yaml", "--no-call", "--json").out)["ok"] is True


@pytest.mark.parametrize(("count", "said"), [(1, "1 validation example:"), (39, "39 validation examples:"), (40, "")])
def test_too_few_validation_examples_are_warned_of(tmp_path: Path, count: int, said: str) -> None:
    config = write_config(tmp_path)
    write_data(tmp_path, {"validation": count})
    done, data = call("check", config, "--no-call"), json.loads(call("check", config, "--no-call", "--json").out)
    run = call("run", config, "--out", tmp_path / "run", "--set", "budget.generations=1")
    assert (done.code, run.code) == (0, 0)
    for shown in (done.out, run.err):
        assert shown.count("warning") == bool(said)
        assert f"Only {said}" in shown or not said
    assert f"warning    Only {said} below 40, intervals are wider than most differences" in done.out or not said
    assert len(data["warnings"]) == bool(said)
    assert all("add examples" in text and "data.validation" in text for text in data["warnings"])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    config = write_config(tmp_path, budget={"calls": 20})
    done = call("check", config)
    assert done.code == 2
    assert "budget.calls=20 is too small" in done.err
    (tmp_path / "train.jsonl").unlink()
    done = call("check", config)
    assert done.code == 2
    assert "no such file" in done.err


def test_a_model_that_fails_and_a_scorer_that_fails(tmp_path: Path) -> None:
    fake = settings()["models"]["fake"]
    done = call("check", write_config(tmp_path / "a", models={"fake": {**fake, "fail": 1.0, "retries": 0}}))
    assert done.code == 7
    assert "the starting configuration on 'train-" in done.err
    assert "Overloaded" in done.err
    folder = tmp_path / "b"
    folder.mkdir()
    write_data(folder)
    (folder / "evals.py").write_text("def picky(output, example):\n    raise KeyError('colour')\n")
    task = settings()["task"]
    scorers = [{"kind": "label"}, {"kind": "function", "function": "evals.py:picky", "name": "picky"}]
    given = settings(task={**task, "scorers": scorers})
    (folder / "small.yaml").write_text(yaml.safe_dump(given))
    done = call("check", folder / "small.yaml")
    assert done.code == 1
    assert "fails on its first example: scorer picky: " in done.err
    assert "KeyError" in done.err
    assert "evals.py:2" in done.err
    assert "error      scorer picky" in done.out
