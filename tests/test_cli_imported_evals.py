"""The evals that an import writes: every family of assertions, and whole imported projects that run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from command import call

from evocluster import build
from evocluster.cli.promptfoo_assertions import OTHER, TEXTUAL
from evocluster.records import Example, Score, Usage
from evocluster.store.table import scan
from evocluster.tasks.execution import Execution, Step

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "evocluster/cli/starters/promptfoo/imported_evals.py"
EXAMPLES = Path(__file__).with_name("promptfoo")


def loaded(path: Path) -> ModuleType:
    """A file of evals as a module."""
    spec = importlib.util.spec_from_file_location("imported_evals_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evals() -> ModuleType:
    return loaded(SOURCE)


def scored(evals: ModuleType, output: str, *asserts: dict[str, Any], usd: float = 0.0, seconds: float = 0.0) -> Score:
    example = Example(id="t1", input="x", meta={"assert": list(asserts), "vars": {"q": "why"}})
    trace = (Step(purpose="answer", prompt="asked", reply=output),)
    found: Score = evals.checks(
        output, example, Execution(output=output, usage=Usage(usd=usd, seconds=seconds), trace=trace)
    )
    return found


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
RIGHT_AND_WRONG: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"type": "equals", "value": "yes"}, " yes\n", "yes, sir"),
    ({"type": "equals", "value": {"a": [1, 2]}}, '{"a": [1,2]}', '{"a": [2, 1]}'),
    ({"type": "not-equals", "value": "yes"}, "no", "yes"),
    ({"type": "contains", "value": "Paris"}, "in Paris.", "in paris."),
    ({"type": "icontains", "value": "Paris"}, "in paris.", "in Rome."),
    ({"type": "not-contains", "value": "bad"}, "good", "bad"),
    ({"type": "contains-all", "value": ["a", "b"]}, "b a", "a"),
    ({"type": "contains-any", "value": ["a", "b"]}, "b", "c"),
    ({"type": "icontains-all", "value": ["A", "b"]}, "B a", "B"),
    ({"type": "icontains-any", "value": ["A", "b"]}, "xa", "xy"),
    ({"type": "not-icontains-any", "value": ["A", "b"]}, "xy", "xa"),
    ({"type": "not-contains-all", "value": ["a", "b"]}, "a", "a b"),
    ({"type": "starts-with", "value": "Yes"}, "Yes, it is", "Oh Yes"),
    ({"type": "regex", "value": r"^\d+ km$"}, "70 km", "about 70 km"),
    ({"type": "not-regex", "value": r"\d"}, "none", "1"),
    ({"type": "is-json"}, "[1]", "so: [1]"),
    ({"type": "is-json", "value": SCHEMA}, '{"n": 1}', '{"n": "1"}'),
    ({"type": "not-is-json"}, "no", "{}"),
    ({"type": "contains-json", "value": SCHEMA}, 'so: [1] {"n": 2}.', 'so: [1] {"m": 2}.'),
    ({"type": "levenshtein", "value": "kitten", "threshold": 3}, "sitting", "nothing of it"),
    ({"type": "levenshtein", "value": "abcdef"}, "a", ""),
    ({"type": "rouge-n", "value": "the cat sat"}, "The cat sat down", "a dog"),
    ({"type": "bleu", "value": "the cat sat on the mat"}, "the cat sat on the mat", "dog"),
    ({"type": "gleu", "value": ["no", "the cat sat"]}, "the cat sat", "dog"),
    ({"type": "similar", "value": ["no", "was geht ab"]}, "Was geht ab?", "none"),
    ({"type": "word-count", "value": 3}, "one two three", "one two"),
    ({"type": "word-count", "value": {"min": 2}}, "one two", "one"),
    ({"type": "not-word-count", "value": {"max": 2}}, "one two three", "one"),
    ({"type": "assert-set", "assert": [{"type": "contains", "value": "a"}]}, "a", "b"),
)


@pytest.mark.parametrize(("check", "right", "wrong"), RIGHT_AND_WRONG, ids=lambda value: str(value)[:50])
def test_a_family_tells_right_from_wrong(evals: ModuleType, check: dict[str, Any], right: str, wrong: str) -> None:
    assert scored(evals, right, check) == Score(value=1.0)
    bad = scored(evals, wrong, check)
    assert bad.value == 0
    assert bad.reason


def test_every_kind_that_an_import_keeps_has_a_family(evals: ModuleType) -> None:
    assert set(evals.FAMILIES) == {*TEXTUAL, *OTHER}


def test_the_score_is_the_weighted_mean(evals: ModuleType) -> None:
    a, b = {"type": "contains", "value": "a", "weight": 3}, {"type": "contains", "value": "b"}
    assert scored(evals, "a", a, b) == Score(value=0.75, reason='contains "b"')
    assert scored(evals, "a", {**b, "weight": 0}, a).value == 1
    assert scored(evals, "a") == Score(value=1.0, reason="nothing to check")


def test_degrees_count_one_from_their_threshold_on(evals: ModuleType) -> None:
    check = {"type": "rouge-n", "value": "one two three four"}
    assert scored(evals, "one two three", {**check, "threshold": 0.7}).value == 1
    below = scored(evals, "one two", {**check, "threshold": 0.7})
    assert below.value == pytest.approx(0.5)
    assert below.reason == "rouge-n 0.50 is below 0.7"
    assert scored(evals, "one two", {"type": "similar", "value": "one two three four"}).value == pytest.approx(2 / 3)


def test_bleu_and_gleu_are_those_of_their_papers(evals: ModuleType) -> None:
    """By hand: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; gleu: 11 of 18 n-grams either way."""
    said, wanted = ["the", "cat", "sat", "on", "a", "mat"], ["the", "cat", "sat", "on", "the", "mat"]
    assert evals._bleu_of(said, wanted) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    short = scored(evals, "the cat sat on a mat", {"type": "gleu", "value": " ".join(wanted), "threshold": 0.9})
    assert short.value == pytest.approx(11 / 18)


def test_a_set_passes_from_its_threshold_on(evals: ModuleType) -> None:
    members = [{"type": "contains", "value": "a"}, {"type": "contains", "value": "b"}]
    assert scored(evals, "a", {"type": "assert-set", "assert": members, "threshold": 0.5}).value == 1
    assert scored(evals, "a", {"type": "assert-set", "assert": members, "threshold": 0.6}).value == 0
    assert scored(evals, "a", {"type": "assert-set", "assert": members}).value == 0.5


def test_what_an_evaluation_took_can_be_checked(evals: ModuleType) -> None:
    cost, latency = {"type": "cost", "threshold": 0.01}, {"type": "latency", "threshold": 500}
    assert scored(evals, "x", cost, latency, usd=0.01, seconds=0.5).value == 1
    late = scored(evals, "x", cost, latency, usd=0.02, seconds=0.6)
    assert late == Score(value=0.0, reason="cost 0.020000 is above 0.01; latency 600 ms is above 500")


@pytest.mark.parametrize(
    ("found", "threshold", "value"),
    [
        (True, None, 1.0),
        (False, None, 0.0),
        (0.4, None, 0.4),
        (0.4, 0.5, 0.0),
        (0.6, 0.5, 0.6),
        ({"pass": True, "score": 0.5, "reason": "half"}, None, 0.5),
        ({"pass": False, "score": 0.5, "reason": "no"}, None, 0.0),
        ({"pass_": True}, None, 1.0),
    ],
)
def test_python_of_the_config(evals: ModuleType, found: Any, threshold: float | None, value: float) -> None:
    seen: list[Any] = []

    def python_9(output: str, context: Any) -> Any:
        seen.append((output, context))
        return found

    evals.PYTHON["python_9"] = python_9
    check = {"type": "python", "value": "python_9", "config": {"days": 6}}
    assert scored(evals, "out", check if threshold is None else {**check, "threshold": threshold}).value == value
    output, context = seen[0]
    assert output == "out"
    assert context["vars"] == {"q": "why"}
    assert context["config"] == {"days": 6}
    assert context["prompt"] == "asked"


def test_no_schema_is_fetched(evals: ModuleType) -> None:
    with pytest.raises(Exception, match="Unresolvable"):
        scored(evals, "{}", {"type": "is-json", "value": {"$ref": "http://127.0.0.1:1/schema.json"}})


def test_the_evals_of_a_project_are_whole(tmp_path: Path) -> None:
    assert call("init", tmp_path, "--from", EXAMPLES / "facts/promptfooconfig.yaml").code == 0
    evals = loaded(tmp_path / "evals.py")
    rows = {
        row["id"]: Example(**row) for row in map(json.loads, (tmp_path / "examples.jsonl").read_text().splitlines())
    }
    hours = {day: "9:00-18:00" for day in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday")}
    good = Execution(output=json.dumps(hours))
    assert evals.checks(good.output, rows["t3"], good).value == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    few = Execution(output='{"monday": "9:00-18:00"}')
    assert evals.checks(few.output, rows["t3"], few) == Score(value=0.5, reason="python python_2; no saturday")
    price = Execution(output="A city bike costs 18 euros.")
    assert evals.metric_1(price.output, rows["t1"], price) == Score(value=1.0)
    assert evals.metric_2("word " * 41, rows["t1"], price).value == 0


def standing_in(folder: Path) -> Path:
    """The imported config with scripted models in place of its own; they answer what judges may say too."""
    path = folder / "config.yaml"
    made: dict[str, Any] = yaml.safe_load(path.read_text())
    answer = json.dumps({"reason": "fine", "score": 1, "item": "mug", "count": 2})
    made["models"] = {name: {"kind": "scripted", "default": answer} for name in made["models"]}
    made["search"] = {"population": 4, "block": 2, "finalists": 1}
    made["budget"] = {"generations": 2}
    made["cache"] = {"path": None}
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


@pytest.mark.parametrize("name", ["support", "translate", "facts", "shop", "odd"])
def test_an_imported_project_runs(tmp_path: Path, name: str) -> None:
    """Every import loads as it is, and runs without a failed evaluation."""
    source = next((EXAMPLES / name).glob("promptfooconfig.*"))
    assert call("init", tmp_path, "--from", source).code == 0
    assert "does not load yet" not in (tmp_path / "IMPORT.md").read_text()
    result = build.run(build.plan(standing_in(tmp_path)), tmp_path / "run")
    assert result.status == "finished"
    found = [row for chunk in scan(tmp_path / "run" / "trials") for row in chunk]
    assert found
    failures = {row["error"] for row in found if row["error"]}
    # A stand-in cannot rewrite prompts: those proposals fail, and they alone.
    assert {text for text in failures if not text.startswith("operator ")} == set()
