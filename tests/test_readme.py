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

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
DATA = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}


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


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_config_shown_is_one(block: str, tmp_path: Path) -> None:
    config = configs.parse(whole(block), tmp_path)
    assert config.task is not None
    assert f"kind: {config.task.kind}" in block


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
    ):
        assert part in shown


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
