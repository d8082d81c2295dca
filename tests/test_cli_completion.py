"""Completion in shells and help: what they list, in a fresh process, without a heavy library."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command import call, environment

from evocluster.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
ONLINE = ("sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "duckdb", "sklearn", "river", "croniter")
HEAVY = ("ray", "litellm", "pymoo", "pyarrow", "numpy", "yaml", "jsonschema", "aiohttp", "evocluster.config", *ONLINE)
COMMAND = "import sys; sys.argv[0] = 'evocluster'; from evocluster.cli.main import main; main()"


def asked(**variables: str) -> str:
    """What a fresh `evocluster` answers to a shell."""
    kept = {**environment(), "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.run([sys.executable, "-c", COMMAND], env=kept, capture_output=True, text=True, check=False)
    assert process.stderr == ""
    return process.stdout


def bash(line: str) -> list[str]:
    """What bash is told to offer after this line."""
    at = len(line.split()) - (0 if line.endswith(" ") else 1)
    return asked(COMP_WORDS=line, COMP_CWORD=str(at), _EVOCLUSTER_COMPLETE="complete_bash").split()


def test_bash_is_told_verbs_options_and_values() -> None:
    assert {"init", "run", "resume", "show", "schema", "models"} <= set(bash("evocluster "))
    assert bash("evocluster res") == ["resume"]
    assert {"--set", "--out", "--runner", "--json"} <= set(bash("evocluster run --"))
    assert bash("evocluster init --kind c") == ["classification", "custom"]
    assert {"list", "install"} <= set(bash("evocluster models "))


def test_zsh_and_fish_are_told_the_same() -> None:
    zsh = asked(_TYPER_COMPLETE_ARGS="evocluster init --kind ", _EVOCLUSTER_COMPLETE="complete_zsh")
    assert "_arguments" in zsh
    assert '"extraction"' in zsh
    fish = {"_EVOCLUSTER_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "resume\t" in asked(_TYPER_COMPLETE_ARGS="evocluster re", **fish)


def test_folders_and_files_are_completed_as_paths() -> None:
    assert bash("evocluster show ru") == []
    assert asked(_TYPER_COMPLETE_ARGS="evocluster show ru", _EVOCLUSTER_COMPLETE="complete_zsh").strip() == "_files"


@pytest.mark.parametrize(
    ("shell", "said"), [("bash", "-o default"), ("zsh", "#compdef evocluster"), ("fish", "complete --command")]
)
def test_the_script_of_a_shell_is_printed(shell: str, said: str) -> None:
    script = asked(_EVOCLUSTER_COMPLETE=f"source_{shell}")
    assert said in script
    assert "evocluster" in script


def test_a_real_bash_completes(tmp_path: Path) -> None:
    """The script is sourced by bash, and its function asked as the terminal would."""
    program = tmp_path / "evocluster"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{COMMAND}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    lines = (
        'eval "$(_EVOCLUSTER_COMPLETE=source_bash evocluster)"',
        "complete -p evocluster",
        "COMP_WORDS=(evocluster init --kind r); COMP_CWORD=3; _evocluster_completion evocluster",
        'echo "[${COMPREPLY[*]}]"',
        "COMP_WORDS=(evocluster show conf); COMP_CWORD=2; _evocluster_completion evocluster",
        'echo "(${#COMPREPLY[@]})"',
    )
    kept = {**environment(), "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)], env=kept, capture_output=True, text=True, check=True
    )
    assert "-o default" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["[rag]", "(0)"]


def test_completion_loads_no_heavy_library() -> None:
    code = f"{COMMAND.replace('; main()', '')}\ntry:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    kept = {**environment(), "PYTHONPATH": str(ROOT), "COMP_WORDS": "evocluster ru", "COMP_CWORD": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "_EVOCLUSTER_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.split() == ["run"]
    assert {*HEAVY} & set(process.stderr.split()) == set()


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every verb, groups opened."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_the_help_of_every_verb_has_an_example(words: tuple[str, ...]) -> None:
    outcome = call(*words, "--help", columns=80)
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"evocluster {' '.join(words)}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
