"""`evocluster init`: starting projects that run at once, are checked by their schema, and overwrite nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import call, environment
from jsonschema import Draft202012Validator

from evocluster import build
from evocluster import config as configs
from evocluster.cli.init import Kind, starter, write
from evocluster.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
KINDS = tuple(kind.value for kind in Kind)
OWN: dict[str, tuple[str, ...]] = {
    "classification": (),
    "extraction": ("evals.py", "models.py"),
    "judge": ("labels.jsonl", "rubric.md"),
    "rag": ("docs/booking.md", "docs/help.md", "docs/opening.md", "docs/prices.md", "docs/riding.md"),
    "custom": ("pipeline.py",),
}
"""What a kind writes besides what all do."""
COMMON = ("README.md", "config.schema.json", "config.yaml", "test.jsonl", "train.jsonl", "validation.jsonl")


def files(folder: Path) -> list[str]:
    """Every file below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_writes_what_it_needs_and_says_what_comes_next(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "shop"
    outcome = call("init", folder, "--kind", kind, columns=80)
    assert outcome.code == 0, outcome
    assert files(folder) == sorted([*COMMON, *OWN[kind]])
    for name in files(folder):
        assert Path(name).name in outcome.out
    assert f"evocluster check {folder}/config.yaml" in outcome.out
    assert f"evocluster run {folder}/config.yaml" in outcome.out


@pytest.mark.parametrize("kind", KINDS)
def test_a_starting_config_fits_the_schema_it_names(tmp_path: Path, kind: str) -> None:
    call("init", tmp_path, "--kind", kind)
    text = (tmp_path / "config.yaml").read_text()
    named = re.match(r"# yaml-language-server: \$schema=\./(\S+)\n", text)
    assert named
    schema = json.loads((tmp_path / named[1]).read_text())
    assert list(Draft202012Validator(schema).iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_explained(tmp_path: Path, kind: str) -> None:
    lines = starter(Kind(kind))["config.yaml"].splitlines()
    sections = [number for number, line in enumerate(lines) if re.match(r"[a-z_]+:", line)]
    assert len(sections) >= 10
    for number in sections:
        assert "#" in lines[number] or lines[number - 1].startswith("#"), lines[number]
    assert any("SCORES MEAN NOTHING" in line for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_a_starting_project_runs_and_gets_better(tmp_path: Path, kind: str) -> None:
    """Without any key: the start is mediocre, and what the search recommends is clearly better."""
    call("init", tmp_path, "--kind", kind)
    sets = ["cache.path=null", "budget.generations=4", "search.finalists=2"]
    result = build.run(build.plan(tmp_path / "config.yaml", sets), tmp_path / "run")
    assert result.status == "finished"
    assert result.start is not None
    assert result.recommended is not None
    before = result.start["validation"]["quality"]["value"]
    after = result.recommended["validation"]["quality"]["value"]
    assert 0.1 <= before <= 0.7
    assert after >= before + 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_in_comments_only_wait_to_be_uncommented(tmp_path: Path, kind: str) -> None:
    call("init", tmp_path, "--kind", kind)
    path = tmp_path / "config.yaml"
    text = path.read_text()
    models = re.sub(r"^  # (?=( {2})?\w+:)", "  ", text, flags=re.MULTILINE)
    path.write_text(models.replace("model: [fake]", "model: [fake, gpt, small]"))
    config = configs.load(path)
    assert config.models["gpt"].kind == "direct"
    assert config.models["small"].kind == "local"
    assert set(yaml.safe_load(text)["models"]) <= {"fake", "grader"}


def test_examples_are_a_dozen_a_split_and_of_every_label() -> None:
    for kind in Kind:
        made = starter(kind)
        rows = {split: made[f"{split}.jsonl"].splitlines() for split in ("train", "validation", "test")}
        assert {split: len(lines) for split, lines in rows.items()} == {"train": 12, "validation": 12, "test": 12}
        inputs = [json.loads(line)["input"] for lines in rows.values() for line in lines]
        assert len(set(inputs)) == 36
    labels = [json.loads(line)["expected"] for line in starter(Kind.classification)["train.jsonl"].splitlines()]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(
        ("billing", "shipping", "account", "technical"), 3
    )


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "help.md").write_text("mine")
    (tmp_path / "train.jsonl").write_text("mine too")
    outcome = call("init", tmp_path, "--kind", "rag")
    assert outcome.code == 2
    assert "already holds docs/help.md, train.jsonl; nothing was written" in outcome.err
    assert files(tmp_path) == ["docs/help.md", "train.jsonl"]
    assert (tmp_path / "docs" / "help.md").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file where a folder is needed")
    with pytest.raises(ConfigError, match=r"cannot be written: .*; nothing was left behind"):
        write(tmp_path, {"a.txt": "1", "new/deep/c.txt": "2", "b/d.txt": "3", "z.txt": "4"})
    assert files(tmp_path) == ["b"]
    assert not (tmp_path / "new").exists()


def test_a_link_that_leads_nowhere_is_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert call("init", tmp_path, "--kind", "custom").code == 2
    assert not (tmp_path / "elsewhere.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ("--kind is missing; allowed:", "classification", "answer questions from your documents")),
        (("--kind", "rga"), ("'rga'", "'rag'")),
        (("--kind", "rag", "--from", "x.yaml"), ("contradict each other; keep one",)),
    ],
)
def test_what_to_start_must_be_clear(tmp_path: Path, words: tuple[str, ...], said: tuple[str, ...]) -> None:
    outcome = call("init", tmp_path / "new", *words)
    assert outcome.code == 2
    for text in said:
        assert text in outcome.err
    assert not (tmp_path / "new").exists()


def test_on_a_terminal_the_kind_is_asked_for(tmp_path: Path) -> None:
    """Through a real terminal; what is none of the kinds is asked again, a beginning is enough."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "evocluster.cli.main", "init", str(tmp_path / "new")]
    kept = {**environment(80), "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept, cwd=ROOT) as process:
        os.write(ours, b"poetry\nclass\n")
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            if not more:
                break
            said += more
        assert process.wait(30) == 0
    os.close(ours)
    assert b"'poetry' is none of them; allowed: classification, extraction" in said
    assert "config.yaml" in files(tmp_path / "new")
    assert "labels: [billing" in (tmp_path / "new" / "config.yaml").read_text()
