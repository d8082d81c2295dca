"""A run, its export, and the exported file against the same endpoint: the same outputs, the same score."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import call
from portable_world import Loopback, Sent, loaded, noisy
from small import LABELS, write_config

from evocluster import build
from evocluster.llm.client import LLM
from evocluster.llm.scripted import Scripted
from evocluster.records import Evaluation, Genome, Item

PRICE = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}
COLOURS = {"red": "rouge", "green": "vert", "blue": "bleu", "black": "noir"}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": list(LABELS)}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
}
DEMOS = ["train-0", "train-5", "train-2"]
GENOMES: dict[str, dict[str, Any]] = {
    "chat with demos": {"demos": DEMOS},
    "inline": {"demos": DEMOS, "demo_style": "inline", "label_names": "spaced"},
    "completion": {"demos": DEMOS, "demo_style": "completion"},
    "cot": {"cot": True, "demos": DEMOS[:1]},
    "cot and constrain": {"cot": True, "constrain": True},
    "constrained": {"constrain": True, "demo_style": "completion"},
    "letters": {"label_names": "letters", "constrain": True, "demos": DEMOS},
    "mapping": {"label_names": "french", "demos": DEMOS},
    "votes": {"use_consensus": 3, "temperature": 0.9},
}
RULES = [
    {"pattern": f"(?s)looks {label}(?!.*looks)", "text": text}
    for label, text in (("red", "red"), ("green", "I would say Answer: Green."), ("blue", "B"))
]


def endpoint(url: str, **changes: Any) -> dict[str, Any]:
    """A model of kind direct at the loopback endpoint."""
    able = {"completion": True, "choices": "grammar", "json_schema": True, "price": PRICE}
    return {"kind": "direct", "base_url": url, "model": "tiny", **able, **changes}


def add(run: Path, genes: dict[str, Any]) -> str:
    """Write a configuration into the list of a run; its id."""
    genome = Genome(genes={"model": "tiny", "rubric": "Which colour?", "max_tokens": 8, **genes})
    line = {"id": genome.id, "generation": 0, "parents": [], "operator": "start", "genes": genome.genes}
    with (run / "genomes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return genome.id


async def _measured(plan: build.Plan, genes: dict[str, Any]) -> list[Evaluation]:
    llm: LLM = await plan.stack.open(None, 4)
    try:
        ids = [example.id for example in plan.splits.test]
        genome = Genome(genes=genes)
        return [await plan.evaluator.evaluate(Item(split="test", example=id), genome, llm) for id in ids]
    finally:
        await plan.stack.close()


def held_out(run: Path) -> list[dict[str, Any]]:
    """The test examples of a run folder."""
    rows = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "test"]


def compare(server: Loopback, run: Path, genome: str) -> tuple[list[str], list[str]]:
    """Outputs of evocluster and of the exported file for every test example; asserts that they asked the same."""
    export = build.exported(run, genome)
    server.sent.clear()
    evaluations = asyncio.run(_measured(build.plan(run / "config.yaml"), export["genes"]))
    ours: Sent = list(server.sent)
    server.sent.clear()
    winner = loaded(call("export", run, "--genome", genome, "--as", "openai").out)
    client = winner.connect()
    found = [winner.answer(client, row["input"], id=row["id"]).output for row in held_out(run)]
    client.close()
    texts = [sorted(json.dumps([path, body], sort_keys=True) for path, body in each) for each in (ours, server.sent)]
    assert texts[0] == texts[1]
    return [one.output for one in evaluations], found


def program(file: Path, lines: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """The exported file as a program, over lines of standard input."""
    command = [sys.executable, str(file)]
    told = "".join(f"{line}\n" for line in lines)
    return subprocess.run(
        command, input=told, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **variables}
    )


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loopback, Path]]:
    """A finished run of the small task over HTTP, and its endpoint."""
    folder = tmp_path_factory.mktemp("colours")
    model = Scripted(rules=RULES, default="no idea, black or red")
    with Loopback(model) as server:
        task = {
            "kind": "classification",
            "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
            "labels": list(LABELS),
            "label_names": {"french": COLOURS},
        }
        path = write_config(
            folder,
            task=task,
            models={"tiny": endpoint(server.url)},
            space={
                "rubric": ["Which colour?", "Name the colour out of {labels}."],
                "demos": {"max": 2},
                "model": ["tiny"],
                "constrain": [False, True],
                "max_tokens": [8],
            },
            budget={"generations": 1},
        )
        build.run(build.plan(path), folder / "run")
        yield server, folder / "run"


@pytest.mark.parametrize("name", GENOMES)
def test_the_exported_file_answers_as_the_run_did(colours: tuple[Loopback, Path], name: str) -> None:
    server, run = colours
    ours, theirs = compare(server, run, add(run, GENOMES[name]))
    assert theirs == ours
    assert len(set(ours)) > 1


def test_the_recommended_configuration_scores_what_the_run_says(colours: tuple[Loopback, Path], tmp_path: Path) -> None:
    _, run = colours
    export, file = build.exported(run), tmp_path / "winner.py"
    assert call("export", run, "--as", "openai", "--out", file).code == 0
    tests = held_out(run)
    done = program(file, [json.dumps(row) for row in tests])
    assert (done.returncode, done.stderr) == (0, "")
    right = [line == row["expected"] for line, row in zip(done.stdout.splitlines(), tests, strict=True)]
    assert sum(right) / len(right) == pytest.approx(export["scores"]["test"]["quality"]["value"])
    assert export["role"] == "recommended"


def test_extraction_is_repaired_and_templates_take_fields(tmp_path: Path) -> None:
    fields = {"colour": (*LABELS, "pink"), "count": (1, 2, "two")}
    for split, count in (("train", 6), ("validation", 4), ("test", 12)):
        rows = [
            {
                "id": f"{split}-{at}",
                "input": {"thing": f"{split} {{thing}} {at}", "note": None if at % 3 else [at]},
                "expected": {"colour": LABELS[at % 4], "count": at % 2 + 1},
            }
            for at in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Loopback(Scripted.using(noisy(LABELS, fields))) as server:
        files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
        path = tmp_path / "bookings.yaml"
        path.write_text(
            json.dumps(
                {
                    "name": "bookings",
                    "task": {"kind": "extraction", "data": files, "json_schema": SCHEMA, "repairs": 2},
                    "models": {"tiny": endpoint(server.url)},
                    "space": {"rubric": "Read.", "max_tokens": 60},
                    "start": [{"rubric": "Colour and count of {thing} ({note}):", "max_tokens": 60}],
                    "search": {"population": 2, "block": 2, "finalists": 1},
                    "budget": {"generations": 1},
                    "engine": {"runner": "local"},
                    "cache": {"enabled": False},
                }
            )
        )
        run = tmp_path / "run"
        build.run(build.plan(path), run)
        ours, theirs = compare(server, run, "start")
        repaired = [body for _, body in server.sent if "That is not valid" in body["messages"][-1]["content"]]
    assert theirs == ours
    assert len(repaired) > 3
    refused = call("export", run, "--genome", "start", "--as", "promptfoo")
    assert refused.code == 2
    assert "asks again when an answer does not parse" in refused.err
    assert "--as openai" in refused.err


def test_a_key_is_named_and_never_written(
    colours: tuple[Loopback, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, run = colours
    monkeypatch.setenv("TINY_KEY", "sk-very-secret-0123456789")
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (copy / file.name).write_text(file.read_text())
    (copy / "trials").symlink_to(run / "trials")
    text = (copy / "config.yaml").read_text()
    assert "key_env: null" in text
    (copy / "config.yaml").write_text(text.replace("key_env: null", "key_env: TINY_KEY"))
    for form in ("openai", "messages", "json", "litellm", "promptfoo"):
        out = call("export", copy, "--as", form).out
        assert "secret" not in out
        assert ("TINY_KEY" in out) == (form != "messages")
    file = tmp_path / "winner.py"
    file.write_text(call("export", copy, "--as", "openai").out)
    keyless = program(file, ["x"], TINY_KEY="")
    assert keyless.returncode == 1
    assert keyless.stderr.strip() == "the key is read from the environment: export TINY_KEY=..."
    server.sent.clear()
    assert program(file, ["it looks red"], TINY_BASE_URL=server.url).stdout == "red\n"
    assert len(server.sent) == 1
