"""Small plans whose configurations are exported, and how other tools fill in what leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from test_export_requests import MODELS, TRICKY, ours

from evocluster import build, config
from evocluster.records import Genome

JINJA = jinja2.Environment(keep_trailing_newline=True, autoescape=False)


def rendered(value: Any, variables: dict[str, str]) -> Any:
    """Every text inside, filled in as Jinja does."""
    if isinstance(value, str):
        return JINJA.from_string(value).render(variables)
    if isinstance(value, dict):
        return {name: rendered(each, variables) for name, each in value.items()}
    return [rendered(each, variables) for each in value] if isinstance(value, list) else value


def single(plan: build.Plan, **genes: Any) -> Genome:
    """A genome of one request: the first values of the space but for `genes`."""
    return Genome(genes={**plan.space.complete({"model": "one"}).genes, "use_consensus": 1, **genes})


def measured(export: dict[str, Any]) -> dict[str, Any]:
    """The same, after a run in which no answer was repaired."""
    return {**export, "used": {"evaluations": 9, "repaired": 0, "failed": 0}}


def shown(test: dict[str, Any], winner: dict[str, Any]) -> dict[str, str]:
    """What a user fills into the places for an example."""
    value = test["input"]
    if not isinstance(value, dict):
        return {"input": value, "context": test["context"]}
    fields = {name: each if isinstance(each, str) else json.dumps(each) for name, each in value.items()}
    whole = "\n".join(f"{name}: {each}" for name, each in fields.items())
    return {"input": whole, "context": test["context"], **(fields if winner["fields"] else {})}


def bodies(plan: build.Plan, genome: Genome) -> list[dict[str, Any]]:
    """What evocluster first posts for each test example, seeds aside."""
    _, sent = ours(plan, genome)
    found = [{name: value for name, value in body.items() if name != "seed"} for _, body in sent]
    return [body for body in found if "That is not valid" not in json.dumps(body)]


def scoring(folder: Path, kind: str, scorers: list[dict[str, Any]], expected: list[Any], **task: Any) -> build.Plan:
    """A plan of one task with these scorers; `expected` is of the test examples, whose inputs are tricky texts."""
    for split in ("train", "test"):
        rows = [
            {"id": f"{split}{at}", "input": TRICKY[at % len(TRICKY)], "expected": each}
            for at, each in enumerate(expected)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": "train.jsonl", "validation": "train.jsonl", "test": "test.jsonl", "allow_overlap": True}
    told = {"kind": kind, "data": files, "scorers": scorers, **task}
    space: dict[str, Any] = {"rubric": "Say.", "cot": [False, True]}
    made = {"name": kind, "task": told, "models": {"one": MODELS["one"]}, "space": space, "start": [{}]}
    return build.plan(config.parse(made, folder))
