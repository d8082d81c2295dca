"""The exported Python file as a file: formatted, linted, typed, and no longer than the configuration calls for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_world import scoring, single
from portable_world import loaded
from test_export_requests import exported, world

from evocluster.cli.standalone import standalone
from evocluster.records import Genome

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("classes", {}),
    "everything": (
        "classes",
        {
            "cot": True,
            "constrain": True,
            "use_consensus": ["one", "wrapped"],
            "demo_style": "inline",
            "demos": ["train0"],
        },
    ),
    "seedless": ("classes", {"model": "wrapped", "constrain": True}),
    "extraction": (
        "extraction",
        {"cot": True, "retriever_topk": 2, "rubric": "{context}\n\n{input}\nis what {city} wrote."},
    ),
    "json votes": ("extraction", {"use_consensus": 3, "demo_style": "completion"}),
    "text": ("text", {}),
    "judged": ("text", {"use_consensus": ["one", "guided", "one"], "cot": True}),
}


def variants(tmp_path: Path) -> list[str]:
    """Exported texts that between them hold every function there is."""
    texts = [standalone(exported(world(name), single(world(name), **genes))) for name, genes in VARIANTS.values()]
    (tmp_path / "models.py").write_text("from pydantic import BaseModel\n\n\nclass City(BaseModel):\n    city: str\n")
    for schema in ({"anyOf": [{"type": "object"}]}, "models.py:City"):
        plan = scoring(tmp_path, "extraction", [], [{"city": "Bonn"}] * 2, json_schema=schema)
        texts.append(standalone(exported(plan, Genome(genes={"model": "one", "rubric": "Read."}))))
    return texts


def written(tmp_path: Path) -> list[str]:
    """The variants as files."""
    names = []
    for number, text in enumerate(variants(tmp_path)):
        file = tmp_path / f"winner_{number}.py"
        file.write_text(text)
        names.append(str(file))
    return names


def test_every_variant_is_formatted_and_linted(tmp_path: Path) -> None:
    files = written(tmp_path)
    chosen = "E,F,W,I,UP,B,C90,SIM,PTH,PIE,PT,RET,TID"
    for command in (["check", "--select", chosen, "--isolated"], ["format", "--diff", "--isolated"]):
        line = ["--line-length", "120", "--target-version", "py310"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *line, *files], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_variant_is_typed(tmp_path: Path) -> None:
    files = written(tmp_path)
    (tmp_path / "models.py").unlink()
    for file in files:
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"), file],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_holds_what_its_configuration_needs(tmp_path: Path) -> None:
    plain = standalone(exported(world("text"), single(world("text"))))
    name, genes = VARIANTS["everything"]
    whole = standalone(exported(world(name), single(world(name), **genes)))
    parts = ("def vote(", "def follow(", "def read_label(", "def normalise(", "def read_json(", "only:", "# end")
    assert not [part for part in parts if part in plain]
    assert [part for part in parts if part in whole] == list(parts[:4])
    assert len(plain.splitlines()) < 230
    for text in variants(tmp_path):
        assert "evocluster." not in text.split('"""', 2)[2]


def test_a_context_needs_a_place() -> None:
    winner = loaded(standalone(exported(world("text"), single(world("text")))))
    with pytest.raises(ValueError, match="found without retrieval"):
        winner.render("x", "Context: y")
    plan = world("text")
    found = loaded(standalone(exported(plan, single(plan, retriever_topk=1))))
    block = found.passages_block([{"title": "T", "text": "one"}, {"text": "two"}])
    assert block == "Context:\n[1] T\none\n[2] two"
    assert found.render("x", block)[-1]["content"] == f"{block}\n\nx"
    assert found.render("x")[-1]["content"] == "x"
