"""`evocluster show`: readable at 80 columns and in a pipe, whatever was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import call, environment

START = {"cot": False, "demos": [], "model": "fake", "rubric": "Which queue should this message go to?"}
LONG = "Read the message of the customer and name the queue that should answer it. One word and nothing else. " * 2


def measured(quality: float, latency: float | None = 434.0) -> dict[str, Any]:
    """Intervals of one split."""
    return {
        "quality": {"value": quality, "low": quality - 0.1, "high": quality + 0.09},
        "latency_ms": {"value": latency, "low": latency and 1400.0, "high": latency and 1480.0},
        "cost_usd": {"value": 3.05e-6, "low": 2.93e-6, "high": 3.19e-6},
        "robustness": {"value": 0.5, "low": 0.41, "high": 0.6},
    }


def member(number: int, genes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A member of front.json, tested unless `test` is given."""
    return {
        "genome": f"{number:016x}"[::-1],
        "genes": {**START, **genes},
        "recommended": False,
        "why": "",
        "train": measured(0.6),
        "validation": measured(0.58),
        "test": measured(0.56),
        "gap": {"quality": 0.02},
        **more,
    }


def folder(path: Path, members: list[dict[str, Any]], start: dict[str, Any] | None, **run: Any) -> Path:
    """A run folder as `show` reads it."""
    path.mkdir(parents=True, exist_ok=True)
    names = ["quality", "latency_ms", "cost_usd", "robustness"]
    (path / "front.json").write_text(json.dumps({"objectives": names, "start": start, "members": members}))
    facts = {
        "status": "finished",
        "stop_reason": "calls",
        "examples": {"train": 9, "validation": 8, "test": 7},
        "evaluations": 1492,
        "calls": 1495,
        "cached": 5,
        "usd": 0.0349,
        "paid_usd": 0.0249,
        "elapsed_s": 6.2,
        "error": None,
        **run,
    }
    (path / "run.json").write_text(json.dumps(facts))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a start and two members."""
    best = member(1, {"rubric": LONG}, recommended=True, why="composite: composite 0.7476")
    other = member(2, {"cot": True, "demos": ["a", "b", "c", "d", "e"]})
    return folder(tmp_path / "run", [other, best], member(3, {}))


def test_at_80_columns_every_line_fits_and_nothing_is_squeezed(run: Path) -> None:
    printed = call("show", run, columns=80).out
    table = printed.split("Recommended on validation:")[0].splitlines()
    assert max(len(text) for text in table) <= 80
    row = next(number for number, text in enumerate(table) if text.startswith("*      10000000"))
    assert table[row].split() == ["*", "10000000", "0.56", "434", "ms", "3.05", "0.50", "+0.02"]
    assert table[row + 1].split() == ["[0.46-0.65]", "[1400-1480]", "[2.93-3.19]", "[0.41-0.60]"]
    configuration = [text for text in table if "customer" in text]
    assert len(configuration) == 2
    assert all(len(text) > 60 for text in configuration)


def test_in_a_pipe_a_row_is_one_line_of_at_most_100(run: Path) -> None:
    printed = call("show", run).out
    assert "\x1b" not in printed
    table = printed.split("Recommended on validation:")[0].splitlines()
    assert 80 < max(len(text) for text in table) <= 100
    row = next(text for text in table if text.startswith("*"))
    for text in ("0.56 [0.46-0.65]", "434 ms [1400-1480]", "3.05 [2.93-3.19]", "+0.02"):
        assert text in row


def test_what_stands_around_the_table(run: Path) -> None:
    printed = call("show", run).out
    for text in (
        "Front on test (7 examples), 95 % intervals, cost at list price",
        "start: where the search began, not on the front. *: recommended.",
        "Recommended on validation: 1000000000000000, composite: composite 0.7476",
        "Spent: 1492 evaluations, 1495 calls (5 from the cache), $0.0249 spent ($0.0349 without the cache), 6 s",
        "The search ended by: calls",
        f"Run folder: {run} (",
        f"Next: evocluster report {run}",
    ):
        assert text in printed


def test_the_start_stands_whole_and_first_and_the_others_by_their_difference(run: Path) -> None:
    below = call("show", run).out.split("what the others change.")[1].split("Recommended on validation:")[0]
    rows = below.strip().splitlines()
    assert rows[0].startswith("start  30000000  cot=False demos=0 model=fake rubric='Which queue")
    assert rows[1].startswith("*      10000000  rubric='Read the message")
    assert rows[-1].split() == ["20000000", "cot=True", "demos=5", "(a,", "b,", "c,", "d,", "…)"]


def test_values_that_were_not_finite(tmp_path: Path) -> None:
    broken = measured(0.5, None)
    broken["cost_usd"]["high"] = None
    run = folder(tmp_path, [member(1, {"cot": True}, test=broken, gap={})], None)
    row = next(text for text in call("show", run).out.splitlines() if "10000000" in text)
    assert row.split() == ["10000000", "0.50", "[0.40-0.59]", "-", "3.05", "[2.93-inf]", "0.50", "[0.41-0.60]", "-"]


def test_before_the_test_the_split_is_said(tmp_path: Path) -> None:
    untested = [member(number, {"cot": True}, test={}, gap={}) for number in (1, 2)]
    run = folder(tmp_path / "one", untested, None, status="interrupted", stop_reason=None)
    printed = call("show", run).out
    assert "Front on validation (8 examples)" in printed
    assert "The search ended by: nothing yet" in printed
    assert f"Next: evocluster resume {run}" in printed
    mixed = folder(tmp_path / "two", [untested[0], member(3, {})], None)
    printed = call("show", mixed).out
    assert "Front each on the split it names" in printed
    rows = {text.split()[0]: text.split()[1] for text in printed.splitlines() if "0.50" in text}
    assert rows == {"10000000": "validation", "30000000": "test"}


def test_a_start_on_the_front_stands_once(tmp_path: Path) -> None:
    start = member(3, {})
    chosen = {**start, "recommended": True, "why": "knee"}
    printed = call("show", folder(tmp_path, [chosen, member(1, {"cot": True})], start)).out
    assert printed.count("start*  30000000") == 2  # the numbers, and the genes
    assert "itself on the front" in printed


def test_full_prints_the_whole_recommended_configuration(run: Path) -> None:
    printed = call("show", run, "--full").out
    assert json.dumps(LONG) in printed
    assert json.dumps(LONG) not in call("show", run).out


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    wild = member(1, {"model": "\x1b[2J[red]evil\u202e"}, recommended=True, why="\x1b]8;;http://x\x07knee")
    printed = call("show", folder(tmp_path, [wild], None, error="\x9b31mlost", status="failed"), "--full").out
    assert not any(sign in printed for sign in "\x1b\x07\x9b\u202e")
    assert "model=[red]evil" in printed
    assert "error: lost" in printed


def test_a_narrow_encoding_is_no_error(tmp_path: Path) -> None:
    run = folder(tmp_path, [member(1, {"rubric": "Größe?", "demos": ["…"] * 9})], None)
    for extra in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "evocluster.cli.main", "show", str(run), *extra],
            capture_output=True,
            text=True,
            env={**environment(), "PYTHONIOENCODING": "ascii"},
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["front"]["members"][0]["genes"]["rubric"] == "Größe?"


def test_paths_are_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(tmp_path / "my runs" / "one", [member(1, {})], None)
    monkeypatch.chdir(tmp_path)
    assert "Next: evocluster report 'my runs/one'" in call("show", run).out


HONEST: dict[str, Any] = {
    "honest": {"quality": {"value": 0.52, "low": 0.4, "high": 0.63, "folds": 10, "split": "validation"}},
    "honest_gap": {"quality": {"value": -0.04, "low": -0.2, "high": 0.12}},
}


def test_the_honest_value_its_gap_and_the_test_against_the_start_are_one_line(tmp_path: Path) -> None:
    best = member(1, {"cot": True}, recommended=True, why="best quality: quality 0.58", **HONEST)
    run = folder(tmp_path / "run", [best], member(3, {}))
    front = json.loads((run / "front.json").read_text())
    front["versus_start"] = {"quality": {"difference": 0.17, "low": 0.05, "high": 0.28, "p": 0.0123, "n": 100}}
    (run / "front.json").write_text(json.dumps(front))
    lines = [text for text in call("show", run).out.splitlines() if text.startswith("Honestly:")]
    assert lines == [
        "Honestly: quality 0.52 [0.40-0.63] on validation without the luck of the choice (10 folds; 0.58 as chosen); "
        "gap to test -0.04 [-0.20..+0.12]; on test +0.17 [+0.05..+0.28] against the start, p = 0.012 (100 examples)"
    ]


def test_folds_of_train_are_said_to_be_of_train_and_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    by_train = {"quality": {**HONEST["honest"]["quality"], "split": "train"}}
    best = member(1, {}, recommended=True, why="x", validation={}, honest=by_train)
    printed = call("show", folder(tmp_path / "run", [best], None)).out
    assert (
        "on train without the luck of the choice (10 folds; 0.60 as chosen), which the search has selected by"
        in printed
    )
    assert "gap to test" not in printed
    older = folder(tmp_path / "older", [member(1, {}, recommended=True, why="x")], member(3, {}))
    assert "Honestly" not in call("show", older).out
