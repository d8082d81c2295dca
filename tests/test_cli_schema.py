"""The JSON schema for editors: it is one, takes every config that ships, and marks what people get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call
from jsonschema import Draft202012Validator
from small import settings

from evocluster import config as configs
from evocluster.cli.init import Kind, starter

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("clusters", "kuberay"))
SCHEMA = configs.schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def complaints(data: Any) -> list[str]:
    """What an editor would mark."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_it_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == "evocluster config"
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_config_that_ships_fits(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    if "task" not in data and "tasks" not in data:
        pytest.skip("not a config of a search")
    assert complaints(data) == []


@pytest.mark.parametrize("kind", list(Kind))
def test_every_starting_config_fits(kind: Kind) -> None:
    assert complaints(yaml.safe_load(starter(kind)["config.yaml"])) == []


def test_a_resolved_config_fits(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings()))
    assert complaints(yaml.safe_load(configs.dump(configs.load(tmp_path / "small.yaml")))) == []


FORMS: tuple[tuple[str, Any], ...] = (
    ("task", {**settings()["task"], "labels": [1, 2, True], "label_names": {"short": {"1": "one", "2": 2}}}),
    ("objectives", ["quality", "latency", {"latency": "p95"}, "scores.label"]),
    ("objectives", [{"name": "slow", "source": "latency_ms", "direction": "min", "aggregate": "p95"}]),
    ("objectives", [{"source": "cost_usd"}]),
    ("space", {"rubric": "x", "temperature": {"low": 0, "high": 1, "step": 0.1}, "demos": ["r1", "r2"], "mine": [1]}),
    ("space", {"rubric": {"texts": ["x"], "fixed": True}, "max_tokens": {"low": 1, "high": 8, "log": True}}),
    ("space", {"rubric": ["x"], "use_consensus": [1, 3, ["small", "big"]], "retriever_topk": [0, 2]}),
    ("constraints", ["quality >= 0.8", "latency p95<=900", "my own words > -1.5e3"]),
    ("constraints", [{"objective": "latency", "aggregate": "p95", "max": 900}, {"objective": "quality", "above": 0}]),
    ("budget", {"usd": 0.5}),
    ("engine", {"workers": None}),
)


@pytest.mark.parametrize(("section", "value"), FORMS)
def test_short_forms_are_allowed(section: str, value: Any) -> None:
    assert complaints({**settings(), section: value}) == []


TASK: dict[str, Any] = settings()["task"]
MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"bugdet": {}}, "$: Additional properties are not allowed ('bugdet' was unexpected)"),
    ({"task": {**TASK, "kind": "clasification"}}, "$.task.kind"),
    ({"task": {**TASK, "scorer": []}}, "'scorer' was unexpected"),
    ({"task": {**TASK, "scorers": [{"kind": "labl"}]}}, "$.task.scorers[0]"),
    ({"task": {**TASK, "scorers": [{"name": "no kind"}]}}, "$.task.scorers[0]"),
    ({"task": {**TASK, "twins": {"share": 2}}}, "$.task.twins.share"),
    ({"models": {"m": {"kind": "direct", "base_url": "http://127.0.0.1/v1"}}}, "$.models.m"),
    ({"models": {"m": {"kind": "scripted", "api_key": "x"}}}, "$.models.m"),
    ({"models": {"m": {"default": "no kind"}}}, "$.models.m"),
    ({"models": {}}, "$.models"),
    ({"space": {"rubric": "x", "temperature": [0, 3]}}, "$.space.temperature"),
    ({"space": {"rubric": "x", "cot": "yes"}}, "$.space.cot"),
    ({"space": {"rubric": "x", "demos": {"maximum": 3}}}, "$.space.demos"),
    ({"space": {"rubric": "x", "demo_style": ["chatty"]}}, "$.space.demo_style"),
    ({"objectives": ["qualty"]}, "$.objectives[0]"),
    ({"objectives": [{"latency": "p99"}]}, "$.objectives[0]"),
    ({"constraints": ["quality == 0.8"]}, "$.constraints[0]"),
    ({"constraints": ["quality"]}, "$.constraints[0]"),
    ({"constraints": [{"objective": "quality"}]}, "$.constraints[0]"),
    ({"constraints": [{"objective": "quality", "min": 0, "max": 1}]}, "$.constraints[0]"),
    ({"budget": {"usd": "two"}}, "$.budget.usd"),
    ({"engine": {"in_flight": 0}}, "$.engine.in_flight"),
    ({"seed": "one"}, "$.seed"),
    ({"name": "two words"}, "$.name"),
)


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_marked(changes: dict[str, Any], said: str) -> None:
    found = complaints({**settings(), **changes})
    assert len(found) == 1, found
    assert said in found[0]


def test_what_is_missing_is_marked() -> None:
    found = complaints({"name": "x"})
    assert [line.split(": ")[1] for line in found if line.startswith("$: ")] == [
        f"'{name}' is a required property" for name in SCHEMA["required"] if name != "name"
    ]


def test_fields_are_explained() -> None:
    parts = {"Config": SCHEMA, **SCHEMA["$defs"]}
    plain = {"kind", "name", "seed", "enabled", "train", "test"}
    fields = [
        (f"{part}.{name}", "description" in field or "$ref" in field)
        for part, node in parts.items()
        for name, field in node.get("properties", {}).items()
        if name not in plain
    ]
    unexplained = [name for name, explained in fields if not explained]
    assert len(unexplained) < len(fields) / 4, unexplained
    assert "environment variable" in parts["Endpoint"]["properties"]["key_env"]["description"]
    assert "first tried on" in parts["Search"]["properties"]["block"]["description"]
    assert parts["Genes"]["properties"]["demo_style"]["description"]


def test_the_verb_prints_and_writes_it(tmp_path: Path) -> None:
    printed = call("schema")
    assert json.loads(printed.out) == SCHEMA
    path = tmp_path / "config.schema.json"
    assert call("schema", "--out", path).code == 0
    assert json.loads(path.read_text()) == SCHEMA
    path.write_text(json.dumps({"title": "evocluster config"}))
    assert call("schema", "--out", path).code == 0
    assert json.loads(path.read_text()) == SCHEMA


@pytest.mark.parametrize("held", ["notes", '{"title": "another schema"}', "[1]"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, held: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(held)
    outcome = call("schema", "--out", path)
    assert outcome.code == 2
    assert "no schema of evocluster; choose another --out" in outcome.err
    assert path.read_text() == held


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    outcome = call("schema", "--out", tmp_path / "no" / "such" / "folder.json")
    assert outcome.code == 2
    assert "cannot be written: No such file or directory" in outcome.err
