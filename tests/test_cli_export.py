"""`evocluster export`: which configuration leaves, where it goes, and what people are told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call, environment
from small import LABELS, edited, settings, write_config, write_data

from evocluster import build
from evocluster.cli.screen import inert


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the scripted model."""
    folder = tmp_path_factory.mktemp("small")
    build.run(build.plan(write_config(folder, budget={"generations": 1})), folder / "run")
    return folder / "run"


def front(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "front.json").read_text())
    return found


def test_the_recommended_configuration_leaves_unless_another_is_named(run: Path) -> None:
    members = front(run)["members"]
    recommended = next(member for member in members if member["recommended"])
    told = json.loads(call("export", run, "--as", "json").out)
    assert (told["genome"], told["role"]) == (recommended["genome"], "recommended")
    assert told["scores"]["test"] == recommended["test"]
    start = json.loads(call("export", run, "--as", "json", "--genome", "start").out)
    assert (start["genome"], start["role"]) == (front(run)["start"]["genome"], "start")
    other = next(json.loads(line) for line in (run / "genomes.jsonl").read_text().splitlines()[1:])
    named = json.loads(call("export", run, "--as", "json", "--genome", other["id"][:8]).out)
    assert (named["genome"], named["genes"]) == (other["id"], other["genes"])
    again = json.loads(call("export", run, "--as", "json").out)
    assert again["digest"] == told["digest"] != start["digest"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--genome", "zzzz"], 2, "--genome 'zzzz' is none of the "),
        (["--genome", ""], 2, "--genome '' is none of the "),
        (["--task", "first"], 2, "task 'first': this run has one task, which has no name; leave it out"),
        (["--out", "{run}/config.yaml"], 3, "is already there; choose another file, or replace it with --force"),
        (["--out", "{run}/none/x.py"], 6, "No such file or directory; name a file in a folder that is there"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(run: Path, words: list[str], code: int, said: str) -> None:
    before = (run / "config.yaml").read_text()
    outcome = call("export", run, "--as", "openai", *(word.replace("{run}", str(run)) for word in words))
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert (run / "config.yaml").read_text() == before


def test_no_run_and_no_front_are_told_apart(tmp_path: Path, run: Path) -> None:
    assert "holds no run" in call("export", tmp_path, "--as", "json").err
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(run / "run.json", young)
    edited(young, status="interrupted")
    outcome = call("export", young, "--as", "json")
    assert outcome.code == 2
    assert "has no recommended configuration (status: interrupted); finish it with evocluster resume" in outcome.err


def test_a_file_is_written_once_and_told_about_on_standard_error(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "winner.py"
    outcome = call("export", run, "--as", "openai", "--out", file, columns=80)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith(f"{file}: small: configuration ")
    assert "Measured there on test: quality " in outcome.err
    assert outcome.err == inert(outcome.err)
    first = file.read_text()
    assert call("export", run, "--as", "openai", "--out", file).code == 3
    assert call("export", run, "--as", "openai", "--genome", "start", "--out", file, "--force").code == 0
    assert file.read_text() != first
    assert call("export", run, "--as", "openai").out == first


def test_data_that_changed_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, budget={"generations": 1})
    build.run(build.plan(path), tmp_path / "run")
    write_data(tmp_path, {"train": 17, "validation": 8, "test": 12})
    outcome = call("export", tmp_path / "run", "--as", "json")
    assert outcome.code == 4
    assert "the train data changed since the run" in outcome.err


def test_every_format_leaves_a_whole_document(run: Path) -> None:
    texts = {
        form: call("export", run, "--as", form, "--genome", "start").out for form in ("messages", "json", "openai")
    }
    assert json.loads(texts["messages"])["messages"][-1] == {"role": "user", "content": "{{input}}"}
    assert set(json.loads(texts["json"])["winner"]["read"]["names"]) == set(LABELS)
    compile(texts["openai"], "winner.py", "exec")
    litellm = yaml.safe_load(call("export", run, "--as", "litellm", "--genome", "start").out)
    assert litellm["model_list"][0]["litellm_params"]["model"] == "hosted_vllm/scripted"
    promptfoo = yaml.safe_load(call("export", run, "--as", "promptfoo", "--genome", "start").out)
    assert [test["vars"]["expected"] for test in promptfoo["tests"]] == [LABELS[at % 4] for at in range(12)]


def test_one_of_several_tasks_leaves(tmp_path: Path) -> None:
    write_data(tmp_path)
    changed = settings()
    task = changed.pop("task")
    changed["tasks"] = {
        "first": task,
        "second": {**task, "label_names": {"short": {name: name[:3] for name in LABELS}}},
    }
    changed["start"] = [{"rubric": "Which colour?", "demos": ["first::train-0", "second::train-1"], "max_tokens": 8}]
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**changed, "budget": {"generations": 1}}))
    build.run(build.plan(path), tmp_path / "run")
    run = tmp_path / "run"
    for words in ([], ["--task", "third"]):
        outcome = call("export", run, "--as", "json", *words)
        assert outcome.code == 2
        assert "first, second" in outcome.err
    told = json.loads(call("export", run, "--as", "json", "--genome", "start", "--task", "second").out)
    shown = [message["content"] for message in told["winner"]["ask"]["messages"]]
    assert shown == ["Which colour?", "the train thing 1 looks green", "green", "{{input}}"]
    assert told["scores"] == {
        split: front(run)["start"]["tasks"]["second"][split] for split in ("test", "validation", "train")
    }


def test_standard_output_is_utf8_in_any_locale(tmp_path: Path) -> None:
    changed = settings(budget={"generations": 1}, start=[{"rubric": "Farbe für ☃ {labels}?", "max_tokens": 8}])
    write_data(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(changed))
    build.run(build.plan(path), tmp_path / "run")
    words = [sys.executable, "-m", "evocluster.cli.main", "export", str(tmp_path / "run"), "--genome", "start", "--as"]
    variables = {**environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*words, "messages"], capture_output=True, check=True, env=variables)
    assert "Farbe für ☃ red, green" in json.loads(done.stdout.decode())["messages"][0]["content"]


def test_help_names_every_format_and_an_example() -> None:
    text = call("export", "--help", columns=100).out
    for word in ("openai", "messages", "json", "litellm", "promptfoo", "--genome", "--force", "Examples"):
        assert word in text
