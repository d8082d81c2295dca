"""Every way a command can go wrong: one message that says what to do, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command import Outcome, call
from small import write_config

from evocluster.telemetry import log

FREE = {"prompt_usd_per_mtok": 0, "completion_usd_per_mtok": 0}
NOWHERE = {"kind": "direct", "base_url": "http://127.0.0.1:1/v1", "model": "x", "retries": 0}


def refused(outcome: Outcome, code: int, *said: str) -> None:
    """One error message with these words, and nothing else of note."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err
    for words in said:
        assert words in outcome.err


def one_model(**model: Any) -> dict[str, Any]:
    """Sections of a config with this model alone."""
    return {"models": {"m": model}, "space": {"rubric": "x", "model": ["m"]}, "start": [{"rubric": "x"}]}


def lines(config: Path, split: str) -> list[str]:
    """The rows of a data file."""
    return (config.parent / f"{split}.jsonl").read_text().splitlines()


def misspell(config: Path) -> None:
    config.write_text(config.read_text().replace("budget:", "bugdet:"))


def lose_test(config: Path) -> None:
    (config.parent / "test.jsonl").unlink()


def empty_validation(config: Path) -> None:
    (config.parent / "validation.jsonl").write_text("")


def repeat_id(config: Path) -> None:
    rows = lines(config, "train")
    rows[3] = rows[1]
    (config.parent / "train.jsonl").write_text("\n".join(rows) + "\n")


class Spoilt(NamedTuple):
    """A config or data file made wrong, and what must be said of it."""

    spoil: Callable[[Path], None]
    said: tuple[str, ...]


SPOILT = (
    Spoilt(misspell, ("small.yaml:", "bugdet: unknown setting", "did you mean 'budget'?")),
    Spoilt(lose_test, ("test.jsonl", "no such file", "train.jsonl")),
    Spoilt(empty_validation, ("validation.jsonl:1:", "no rows")),
    Spoilt(repeat_id, ("train.jsonl:4:", "'train-1'", "line 2")),
)


@pytest.mark.parametrize("case", SPOILT, ids=lambda case: str(case.spoil.__name__))
def test_wrong_files_are_refused_before_anything_starts(tmp_path: Path, case: Spoilt) -> None:
    config = write_config(tmp_path)
    case.spoil(config)
    refused(call("run", config, "--out", tmp_path / "run"), 2, *case.said)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_section_is_named_by_its_line(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    misspell(config)
    line = config.read_text().splitlines().index("bugdet:") + 1
    refused(call("run", config), 2, f"small.yaml:{line}: bugdet")


SETS = (
    ("space.model=[fkae]", ("nothing of this name under models", "'fkae'", "did you mean 'fake'?")),
    ("seed=many", ("seed", "'many'", "a whole number")),
    ("budget.calls=3", ("budget.calls=3 is too small", "at least", "raise it")),
    ("engine.runner=rya", ("engine.runner", "did you mean 'ray'?")),
    ("seed", ("--set seed", "path.to.key=value")),
)


@pytest.mark.parametrize(("text", "said"), SETS)
def test_wrong_values_are_refused(tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
    refused(call("run", write_config(tmp_path), "--out", tmp_path / "run", "--set", text), 2, *said)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    write_config(tmp_path)
    refused(call("run", tmp_path / "smal.yaml"), 2, "smal.yaml", "No such file", "did you mean 'small.yaml'?")


def test_a_key_that_is_not_set_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, **one_model(kind="auto", model="openai/gpt-4o-mini", key_env="UNSET_KEY"))
    refused(call("run", config, "--out", tmp_path / "run"), 2, "'UNSET_KEY'", "export UNSET_KEY=")


def test_an_unknown_price_is_not_taken_for_zero(tmp_path: Path) -> None:
    config = write_config(tmp_path, **one_model(**NOWHERE))
    refused(call("run", config, "--out", tmp_path / "run"), 2, "price of model 'x' is unknown", "prompt_usd_per_mtok")


def test_an_endpoint_that_does_not_answer(tmp_path: Path) -> None:
    config = write_config(tmp_path, **one_model(**NOWHERE, price=FREE))
    run = tmp_path / "run"
    refused(call("run", config, "--out", run), 7, "http://127.0.0.1:1/v1", f"evocluster resume {run}")
    shown = call("show", run)
    assert shown.code == 0
    assert "Status: failed, no front yet" in shown.out
    assert f"Next: evocluster resume {run}" in shown.out
    refused(call("resume", run), 7, "http://127.0.0.1:1/v1")


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    assert call("run", config, "--out", run).code == 0
    before = (run / "front.json").read_bytes()
    refused(call("run", config, "--out", run), 3, f"evocluster resume {run}", "--out FOLDER")
    assert (run / "front.json").read_bytes() == before


@pytest.mark.parametrize("verb", ["show", "resume"])
def test_a_folder_that_is_no_run_or_a_damaged_one(tmp_path: Path, verb: str) -> None:
    refused(call(verb, tmp_path / "nothing"), 4, "holds no run", "give the folder")
    config, run = write_config(tmp_path), tmp_path / "run"
    assert call("run", config, "--out", run).code == 0
    (run / "run.json").write_text("{")
    refused(call(verb, run), 4, "run.json", "it is cut")
    (run / "run.json").write_text("[]\n")
    refused(call(verb, run), 4, "run.json", "not a JSON object")


def test_a_front_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}))
    (tmp_path / "front.json").write_text('{"members": [')
    refused(call("show", tmp_path), 4, "front.json")


def test_usage_errors_are_2(tmp_path: Path) -> None:
    for words in (("run",), ("bogus",), ("show", str(tmp_path), "--nothing")):
        wrong = call(*words)
        assert wrong.code == 2
        assert "Error" in wrong.err
        assert "Usage: evocluster" in wrong.err


def test_an_error_prints_no_terminal_sequence(tmp_path: Path) -> None:
    run = tmp_path / "run\x1b[31m[bold]"
    run.mkdir()
    (run / "config.yaml").write_text("")
    outcome = call("run", write_config(tmp_path), "--out", run)
    refused(outcome, 3, "[bold]")
    assert "\x1b" not in outcome.err


def test_an_unknown_embedded_model_is_2() -> None:
    refused(call("models", "install", "nope"), 2, "'nope'", "smollm2-135m-instruct")


def test_a_warning_of_the_log_is_a_line_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def text() -> str:
        log.warning("the token [bold]file[/bold] is open")
        log.error("told by whoever catches it")
        return "{}"

    monkeypatch.setattr("evocluster.cli.schema.text", text)
    left = call("schema")
    assert left.err == "warning: the token [bold]file[/bold] is open\n"
    assert left.out.strip() == "{}"
