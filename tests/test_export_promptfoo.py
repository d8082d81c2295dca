"""Exported promptfoo configs: rendered and scored as promptfoo's documentation says, they give evocluster's scores."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_world import JINJA, bodies, measured, rendered, scoring, single
from portable_world import noisy
from test_export_requests import FIELDS, LABELS, WORLDS, exported, world

from evocluster import build
from evocluster.cli.promptfoo_export import promptfoo
from evocluster.llm.client import Request
from evocluster.llm.scripted import Scripted
from evocluster.records import Example, Genome
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.execution import Execution
from evocluster.tasks.program import Program

Check = Callable[[str, dict[str, Any]], Any]
SCORERS: list[dict[str, Any]] = [
    {"kind": "exact"},
    {"kind": "normalised"},
    {"kind": "contains", "ignore_case": False},
    {"kind": "regex", "pattern": "^.?{expected}", "ignore_case": True},
    {"kind": "similarity"},
    {"kind": "includes", "texts": ["{{a}}", "Answer", "is", "o"], "name": "all"},
    {"kind": "includes", "texts": ["maybe", "{% b", "city"], "need": "any", "name": "any"},
    {"kind": "includes", "texts": ["label", "first"], "need": "none", "name": "none"},
    {"kind": "matches", "pattern": "(?m)^F.*$"},
    {"kind": "matches", "pattern": "[A-Z]{2,}", "present": False, "ignore_case": True, "name": "quiet"},
    {"kind": "one_of", "texts": ["red", "no. 5"]},
    {"kind": "length", "unit": "words", "min": 2, "max": 6, "name": "words"},
    {"kind": "length", "unit": "chars", "max": 20, "name": "chars"},
    {"kind": "length", "unit": "lines", "min": 2, "name": "lines"},
    {"kind": "number", "min": 1, "max": 3, "which": "all"},
]
"""What a text can be scored by; every one of them has an exact counterpart in inline Python."""
EXPECTED: dict[str, list[Any]] = {
    "text": ["red", "2", "nothing of the kind", "{{a}} Answer: is {% raw %}"],
    "classification": list(LABELS),
    "extraction": [{"city": "Bonn", "people": 2}, {"people": 9.0, "city": "X"}, {"city": "Ulm", "people": 1}],
}
OWN: dict[str, list[dict[str, Any]]] = {
    "text": SCORERS,
    "classification": [{"kind": "label"}, SCORERS[1]],
    "extraction": [{"kind": "json_equal"}, SCORERS[5], SCORERS[6]],
}


def said() -> list[str]:
    """Replies of every kind."""
    answer = noisy(LABELS, FIELDS)
    made = {answer(Request(model="x", prompt=str(number))) for number in range(40)}
    return sorted(made | {" A ", "B: because", '{"people": 2.0, "city": "Bonn"}', "Answer:\nFine", "First {{a}}\n3"})


async def _scores(plan: build.Plan, genome: Genome, example: Example, reply: str) -> dict[str, float]:
    """What evocluster's scorers give a reply."""
    assert isinstance(plan.evaluator, Evaluator)
    program = plan.evaluator.program
    assert isinstance(program, Program)
    answer = program._read(reply, program._frame(genome, example))
    execution = Execution(output=answer.output, raw=reply, parsed=answer.parsed, schema_ok=answer.ok)
    llm = Scripted()
    return {one.name: (await one.score(example, execution, llm)).value for one in plan.evaluator.task.scorers}


def inline(assertion: dict[str, Any]) -> Check:
    """promptfoo's inline Python: rendered by nunjucks, then the body of a function of output and context."""
    code = JINJA.from_string(assertion["value"]).render()
    space: dict[str, Any] = {}
    exec(f"def check(output, context):\n{textwrap.indent(code, '    ')}", space)
    check: Check = space["check"]
    return check


@pytest.mark.parametrize("cot", [False, True])
@pytest.mark.parametrize("kind", EXPECTED)
def test_python_assertions_score_as_evocluster_does(kind: str, cot: bool, tmp_path: Path) -> None:
    plan = scoring(tmp_path, kind, OWN[kind], EXPECTED[kind], repairs=0)
    names = {"label_names": "letters"} if kind == "classification" else {}
    genome = Genome(genes={"model": "one", "rubric": "Say {{x}}.", "cot": cot, **names})
    found = yaml.safe_load(promptfoo(exported(plan, genome)))
    asserts = {each["metric"]: each for each in found["defaultTest"]["assert"]}
    assert plan.config.task is not None
    assert list(asserts) == [scorer.name for scorer in plan.config.task.scorers]
    checks = {metric: inline(each) for metric, each in asserts.items() if each["type"] == "python"}
    plain = {"any", "matches"} if kind == "text" and not cot else set()
    assert set(asserts) - set(checks) == plain
    right = set()
    for test, example in zip(found["tests"], plan.splits.test, strict=True):
        variables = rendered(test["vars"], {})
        assert variables["input"] == example.input
        for reply in said():
            scores = asyncio.run(_scores(plan, genome, example, reply))
            for metric, check in checks.items():
                value = check(reply, {"vars": variables})
                assert float(value) == pytest.approx(scores[metric]), (metric, reply)
                assert check(reply, {"vars": test["vars"]}) == value
                right |= {metric} if value else set()
    assert right == set(checks)


def test_promptfoos_own_assertions_stand_where_they_score_alike(tmp_path: Path) -> None:
    scorers: list[dict[str, Any]] = [
        {"kind": "includes", "texts": ["a {{b}}", "c"], "need": "any", "ignore_case": False, "name": "one"},
        {"kind": "includes", "texts": ["sorry"], "need": "none", "name": "polite"},
        {"kind": "matches", "pattern": "^[A-Z]{2}"},
        {"kind": "is_json", "json_schema": {"type": "object"}},
        {"kind": "cost", "max_usd": 0.01},
        {"kind": "latency", "max_ms": 800},
        {"kind": "json_path", "path": "$.a"},
        {"kind": "length", "unit": "sentences", "max": 2},
        {"kind": "matches", "pattern": r"\p{L}+", "name": "letters"},
    ]
    plan = scoring(tmp_path, "text", scorers, ["x", "y"], weights={"polite": 0.5}, must_pass=["polite"])
    text = promptfoo(exported(plan, Genome(genes={"model": "one", "rubric": "Say."})))
    asserts = {each.pop("metric"): each for each in yaml.safe_load(text)["defaultTest"]["assert"]}
    inline_letters = asserts.pop("letters", None)
    assert inline_letters is None
    assert asserts == {
        "one": {"type": "contains-any", "value": ["{% raw %}a {{b}}{% endraw %}", "c"]},
        "polite": {"type": "not-icontains-any", "value": ["sorry"], "weight": 0.5},
        "matches": {"type": "regex", "value": "^[A-Z]{2}"},
        "is_json": {"type": "is-json", "value": {"type": "object"}},
        "cost": {"type": "cost", "threshold": 0.01},
        "latency": {"type": "latency", "threshold": 800.0},
    }
    for name in ("json_path (json_path)", "length (length)", "letters (matches)", "must_pass polite"):
        assert f"# Not in here: {name}" in text


def test_a_constrained_label_is_simply_equal() -> None:
    plan = world("classes")
    found = yaml.safe_load(promptfoo(measured(exported(plan, single(plan, constrain=True)))))
    assert found["defaultTest"]["assert"] == [{"type": "equals", "value": "{{expected}}", "metric": "label"}]
    assert found["providers"][0]["config"]["passthrough"]["grammar"].startswith("root ::= ")


@pytest.mark.parametrize(
    "genes",
    [
        {"demo_style": "chat", "rubric": WORLDS["extraction"]["rubric"][1], "demos": ["train1"]},
        {"demo_style": "completion", "retriever_topk": 2, "demos": ["train1", "train3"]},
        {"demo_style": "inline", "constrain": True, "rubric": WORLDS["extraction"]["rubric"][2], "retriever_topk": 2},
    ],
    ids=lambda genes: genes["demo_style"],
)
def test_promptfoo_asks_what_evocluster_asks(genes: dict[str, Any]) -> None:
    plan = world("extraction")
    genome = single(plan, **genes)
    found = yaml.safe_load(promptfoo(measured(exported(plan, genome))))
    (provider,), (prompt,) = found["providers"], found["prompts"]
    chat = genes["demo_style"] != "completion"
    assert provider["id"] == f"openai:{'chat' if chat else 'completion'}:tiny"
    settings = {name: value for name, value in provider["config"].items() if not name.startswith("api")}
    more = settings.pop("passthrough", {})
    told = []
    for test in found["tests"]:
        variables = rendered(test["vars"], {})
        # A prompt that is JSON is parsed first, and each text in it rendered by itself.
        shown = rendered(json.loads(prompt["raw"]) if chat else prompt["raw"], variables)
        told.append({"model": "tiny", "messages" if chat else "prompt": shown, **settings, **more})
    assert told == bodies(plan, genome)
