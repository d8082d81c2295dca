"""What the README shows works: its configs load, its commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from evocluster import config as configs
from evocluster.cli.main import app
from evocluster.search.settings import Search

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```yaml\n(.*?)```", flags=re.DOTALL)
BLOCKS = BLOCK.findall(README)
CASES = README.split("## Your case")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| (.+?) \| `(configs/[^`]+)` \| `(.+?)` \|$", CASES, flags=re.MULTILINE)
"""(case, config, command) of the table."""
HEARTS = {
    "Classification": "configs/quickstart.yaml",
    "Extraction with a schema": "configs/extraction.yaml",
    "Free text with a judge": "configs/judge.yaml",
    "RAG, top-k searched": "configs/rag.yaml",
    "Several tasks": "configs/several_tasks.yaml",
    "Prompt only": "configs/prompt_only.yaml",
    "Nothing leaves this machine": "configs/local.yaml",
}
"""Section -> the config that its block is taken from."""
DATA = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}


def sections() -> dict[str, str]:
    """The cases by their title."""
    parts = [part.partition("\n") for part in CASES.split("\n### ")[1:]]
    return {title: text for title, _, text in parts}


def missing(shown: Any, there: Any) -> list[str]:
    """What is shown and is not there as it is shown; texts and lists are compared whole."""
    if not isinstance(shown, dict) or not isinstance(there, dict):
        return [] if shown == there else [f"{shown!r} is {there!r}"]
    return [
        f"{name}: {problem}"
        for name, value in shown.items()
        for problem in (missing(value, there[name]) if name in there else ["is not there"])
    ]


def whole(block: str) -> dict[str, Any]:
    """A block as a config; what it leaves out is as in the first block, which is one."""
    base: dict[str, Any] = yaml.safe_load(BLOCKS[0])
    given: dict[str, Any] = yaml.safe_load(block)
    if block == BLOCKS[0]:
        return base
    task = {"data": DATA, **given["task"]}
    models = {**base["models"], "big": {"kind": "scripted"}}
    space = {"model": list(models), **given.get("space", {"rubric": ["Answer."]})}
    return {**base, "models": models, "task": task, "space": space, "start": [{}]}


@pytest.mark.parametrize("title", HEARTS)
def test_what_a_case_shows_stands_in_its_config(title: str) -> None:
    block = BLOCK.findall(sections()[title])[0]
    there = yaml.safe_load((ROOT / HEARTS[title]).read_text(encoding="utf-8"))
    assert missing(yaml.safe_load(block), there) == []


def test_every_other_config_shown_is_one(tmp_path: Path) -> None:
    taken = [block for title in HEARTS for block in BLOCK.findall(sections()[title])]
    others = [block for block in BLOCKS if block not in taken]
    assert others[0] == BLOCKS[0]
    for block in others:
        config = configs.parse(whole(block), tmp_path)
        assert config.task is not None
        assert f"kind: {config.task.kind}" in block


def test_the_table_of_cases_leads_to_configs_and_commands_that_are_there() -> None:
    assert {config for _, config, _ in ROWS} == {*HEARTS.values(), "configs/pipelines/"}
    for _, config, command in ROWS:
        _, verb, path = command.split()
        assert verb == "run"
        assert path == config or path.startswith(config)
        assert (ROOT / path).is_file(), path


def test_every_file_of_the_project_named_is_there() -> None:
    named = set(re.findall(r"\b((?:configs|scripts)/[\w./-]*\w)", README)) - {"configs/real/NAME.yaml"}
    assert len(named) > 12
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_kind_is_shown() -> None:
    shown = "".join(BLOCKS)
    for part in (
        "classification",
        "extraction",
        "kind: judge",
        "retrieval:",
        "executor:",
        "json_schema:",
        "must_pass:",
        "tasks:",
        "kind: local",
    ):
        assert part in shown


def test_every_setting_of_the_search_is_in_its_table() -> None:
    table = README.split("| setting under `search:` |")[1].split("\n\n")[0]
    first = "".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert set(Search.model_fields) <= set(re.findall(r"`(\w+)`", first))
    for line in table.splitlines()[2:]:
        names, default = re.findall(r"`(\w+)`", line.split("|")[1]), line.split("|")[2].strip()
        if len(names) == 1 and names[0] in Search.model_fields and re.fullmatch(r"[\d.]+|evolve|race", default):
            assert str(Search.model_fields[names[0]].default) == default, names[0]


def commands() -> list[list[str]]:
    """Command lines of the shell blocks, comments taken off."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "evocluster"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_shown_exists(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", None), f"no such command: {words}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_verb_is_in_the_table() -> None:
    table = README.split("## Commands")[1].split("## ")[0]
    for verb in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`{verb} " in table or f"`{verb}`" in table, verb
