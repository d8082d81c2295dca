"""An exported file sends what evocluster sends, reads what it reads and decides as it decides, whatever the genome."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAIError
from portable_world import Sent, completion, in_process, loaded, noisy, request_of

from evocluster import build, config
from evocluster.cli.standalone import standalone
from evocluster.llm.client import Reply, Request
from evocluster.llm.direct import Direct
from evocluster.llm.portable import Portable, call
from evocluster.llm.scripted import Scripted
from evocluster.records import Example, Genome
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.handover import handed_over

PRICE = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}
LABELS = ("red", "dark green", "C++", "No. 5")
TRICKY = (
    "it looks {{input}} and {input} to me",
    "{% raw %}{{ 1 + 1 }}{% endraw %} {% if context %}no{% endif %}",
    "a {# comment #} and {context} and \ue000\ue0012\ue001 and {",
    'JSON: {"a": {"b": {}}}, "quoted" \\ ünïcode\u2028 ☃',
)
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "people": {"type": "integer", "minimum": 1, "exclusiveMaximum": 9},
        "when": {"enum": ["today", "tomorrow"]},
        "tags": {"type": ["array", "null"], "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 2},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "city": ("Bonn", "X", 3),
    "people": (2, 0, 9, True, 2.0),
    "when": ("today", "later"),
    "tags": (None, ["a"], ["A"], ["a", "b", "c"]),
}


def endpoint(**changes: Any) -> dict[str, Any]:
    """A model of kind direct that can do everything."""
    able = {"completion": True, "choices": "grammar", "json_schema": True, "price": PRICE}
    return {"kind": "direct", "base_url": "http://127.0.0.1:1/v1", "model": "tiny", **able, **changes}


MODELS = {
    "one": endpoint(),
    "wrapped": endpoint(
        choices="json_schema", completion=False, send_seed=False, extra={"temperature": None, "top_k": 3}
    ),
    "guided": endpoint(choices="guided_choice", max_tokens_field="max_completion_tokens", extra={"seed": 7}),
    "structured": endpoint(choices="structured_outputs", headers={"X-Team": "a"}),
}
GENES = {
    "cot": [False, True],
    "temperature": {"low": 0.0, "high": 1.0},
    "max_tokens": [1, 6, 40],
    "model": list(MODELS),
    "demos": {"max": 3},
    "demo_style": ["chat", "inline", "completion"],
    "constrain": [False, True],
    "use_consensus": [1, 3, ["one", "structured", "one"]],
}
WORDS = {"input_name": "Thing", "output_name": "Colour"}
CLASSES = {
    "task": {
        "kind": "classification",
        "labels": list(LABELS),
        "label_names": {"mine": dict(zip(LABELS, ("{red}", "{{green}}", "c plus plus", "5"), strict=True))},
        "repairs": 2,
        **WORDS,
    },
    "rubric": [
        "Which?",
        "Out of {labels}, {{not}} {% this %}:",
        "{context}Say {labels} for: {input} {",
        "<{{input}}> is {labels}; {unknown}",
    ],
    "space": {**GENES, "label_names": ["as_is", "letters", "spaced", "mine"]},
    "inputs": TRICKY,
    "expected": LABELS,
}
EXTRACTION = {
    "task": {"kind": "extraction", "json_schema": SCHEMA, "repairs": 1},
    "rubric": [
        "Read the booking.",
        "City {city}, {n} people, {missing}: {{city}}",
        "{context}\n\n{input}\nis what {city} wrote.",
        "Only {context} here",
    ],
    "space": {**GENES, "retriever_topk": [0, 2]},
    "inputs": (
        {"city": "Bonn", "n": 2},
        {"city": TRICKY[0], "n": {"of": [1]}},
        {"n": None},
        {"city": TRICKY[1], "o": "{n}"},
    ),
    "expected": ({"city": "Bonn", "people": 2}, {"city": "Ulm", "people": 3}),
    "retrieval": True,
}
TEXT = {
    "task": {"kind": "text", "consensus": {"decide": "judge", "model": "structured"}},
    "rubric": ["Shorten this.", "{input} {input}"],
    "space": {**GENES, "constrain": False, "retriever_topk": [0, 1, 3]},
    "inputs": (*TRICKY, {"input": "mine", "context": "own {input}"}),
    "expected": ("short", "{{shorter}}"),
    "retrieval": True,
}
WORLDS: dict[str, dict[str, Any]] = {"classes": CLASSES, "extraction": EXTRACTION, "text": TEXT}


class InProcess(Direct):
    """Kind direct without a connection: what it posts is kept and answered by the scripted model."""

    async def _post(self, session: object, path: str, body: bytes) -> tuple[int, str | None, bytes]:
        read, chat = json.loads(body), path == "/chat/completions"
        SENT.append((f"/v1{path}", read))
        reply = await ANSWERING.__call__(request_of(read, chat))
        return 200, None, json.dumps(completion(read, chat, reply)).encode()


SENT: Sent = []
ANSWERING = Scripted.using(noisy(LABELS, FIELDS))


@cache
def world(name: str) -> build.Plan:
    """The plan of a world; its files live as long as the process."""
    told = WORLDS[name]
    folder = Path(mkdtemp(prefix="evocluster-export-"))
    for split, count in (("train", 6), ("validation", 2), ("test", 5)):
        rows = [
            {
                "id": f"{split}{at}",
                "input": told["inputs"][at % len(told["inputs"])],
                "expected": told["expected"][at % len(told["expected"])],
            }
            for at in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "docs.jsonl").write_text(
        "".join(
            json.dumps({"id": f"d{at}", "title": "T" * (at % 2), "text": f"{text} Bonn {at}"}) + "\n"
            for at, text in enumerate(TRICKY)
        )
    )
    files = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    task = {**told["task"], "data": {**files, "allow_overlap": True}}
    if told.get("retrieval"):
        task["retrieval"] = {"documents": "docs.jsonl"}
    made = {
        "name": name,
        "task": task,
        "models": MODELS,
        "space": {**told["space"], "rubric": {"texts": told["rubric"], "fixed": True}},
        "start": [{"model": "one"}],
    }
    return build.plan(config.parse(made, folder))


def exported(plan: build.Plan, genome: Genome) -> dict[str, Any]:
    """What build.exported says of a genome that no run has scored."""
    models = {name: Portable(name, model) for name, model in plan.config.resolved_models().items()}
    assert isinstance(plan.evaluator, Evaluator)
    made = asyncio.run(handed_over(plan.evaluator, genome, lambda name, request: call(models, name, request), True))
    return {
        "run": {"name": plan.config.name, "task": None, "versions": {}},
        "genome": genome.id,
        "genes": genome.genes,
        "role": "",
        "why": "",
        "scores": {},
        **made,
        "endpoints": {name: models[name].endpoint for name in made["winner"]["calls"]},
        "used": {"evaluations": 0, "repaired": 0, "failed": 0},
    }


async def _ours(plan: build.Plan, genome: Genome, examples: tuple[Example, ...]) -> list[tuple[str, str, str | None]]:
    models = {name: InProcess.model_validate(one.model_dump()) for name, one in plan.config.resolved_models().items()}
    for model in models.values():
        await model.open()

    async def llm(request: Request) -> Reply:
        return await models[request.model](request)

    assert isinstance(plan.evaluator, Evaluator)
    program = plan.evaluator.program
    found = [await program.run(example, genome, llm) for example in examples]
    for model in models.values():
        await model.close()
    return [(one.output, repr(one.parsed) if one.schema_ok else "", one.error) for one in found]


def ours(plan: build.Plan, genome: Genome) -> tuple[list[tuple[str, str, str | None]], Sent]:
    """Output, parsed value and error of every test example, and what was sent for them."""
    SENT.clear()
    found = asyncio.run(_ours(plan, genome, plan.splits.test))
    return found, list(SENT)


def theirs(winner: ModuleType, tests: list[dict[str, Any]]) -> tuple[list[tuple[str, str, str | None]], Sent]:
    """The same from the exported file and the openai package."""
    sent: Sent = []
    found: list[tuple[str, str, str | None]] = []
    with in_process(ANSWERING, sent) as client:
        for test in tests:
            try:
                one = winner.answer(client, test["input"], test["context"], test["id"])
                parsed = None if one.parsed is None else frozen(one.parsed)
                found.append(
                    (
                        one.output,
                        repr(parsed if winner.WINNER["read"]["kind"] != "text" else one.output) if one.ok else "",
                        None,
                    )
                )
            except OpenAIError as failure:
                found.append(("", "", str(failure)))
    return found, sent


def frozen(value: Any) -> Any:
    """A JSON value as records hold it."""
    return Example(id="", input=value).input


def in_order(sent: Sent) -> list[str]:
    """Requests as comparable texts; votes of evocluster are under way at once, so their order is no promise."""
    return sorted(json.dumps([path, body], sort_keys=True) for path, body in sent)


@pytest.mark.parametrize("name", WORLDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_requests_and_the_same_answers(name: str, seed: int) -> None:
    plan = world(name)
    genome = plan.space.sample(np.random.default_rng(seed))
    export = exported(plan, genome)
    answers, sent = ours(plan, genome)
    again, resent = theirs(loaded(standalone(export)), export["tests"])
    assert in_order(resent) == in_order(sent)
    failed = [error is not None for *_, error in answers]
    assert [error is not None for *_, error in again] == failed
    for one, other, bad in zip(answers, again, failed, strict=True):
        assert bad or one[:2] == other[:2]
