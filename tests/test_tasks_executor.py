"""A user's pipeline: what it gets, what it may return, what is counted, and what becomes of its failures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from evocluster.errors import ConfigError, Refused
from evocluster.llm.client import LLM
from evocluster.llm.scripted import Rule, Scripted
from evocluster.records import Evaluation, Example, Genome, Item
from evocluster.tasks.dataset import Splits
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.task import Task

PIPELINE = """
import asyncio

from evocluster import Calls, Example, Execution, Genome, Request, Usage


async def draft_and_check(example, genome, llm):
    drafts = await asyncio.gather(*(llm.ask(f"draft {example.input}", replicate=n) for n in range(genome["drafts"])))
    llm.note("pick", str(list(drafts)), drafts[0])
    return await llm.ask(f"check {drafts[0]}", step="check", temperature=0.5)


async def own(example, genome, llm):
    return Execution(output="Blue", usage=Usage(calls=2, prompt_tokens=5, usd=0.25, seconds=1.5))


async def judged_by_itself(example, genome, llm):
    return Execution(output="red!", parsed="blue", schema_ok=True, flags=("odd",), repairs=1)


async def as_json(example, genome, llm):
    return {"n": 3}


async def bad_json(example, genome, llm):
    return {"n": "three"}


async def wrong_type(example, genome, llm):
    return object()


async def nothing(example, genome, llm):
    return None


async def raises(example, genome, llm):
    await llm.ask("one")
    raise KeyError("no such thing")


async def greedy(example, genome, llm):
    for n in range(9):
        await llm.ask("again", replicate=n)


async def hangs(example, genome, llm):
    await asyncio.sleep(60)


async def leaves(example, genome, llm):
    raise SystemExit(3)


def plain(example, genome, llm):
    return "x"


async def two(example, genome):
    return "x"


class Chain:
    async def __call__(self, example, genome, llm):
        return "green"


chain = Chain()
"""
GENOME = Genome(genes={"model": "m", "drafts": 3, "max_tokens": 20, "temperature": 0.0})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.py"
    path.write_text(PIPELINE)
    return path


def evaluator(path: Path, function: str, kind: str = "classification", **settings: Any) -> Evaluator:
    """One task whose examples the function answers; pickled once, as on the way to a worker."""
    expected: Any = {"n": 3} if kind == "extraction" else "blue"
    more: dict[str, Any] = {"labels": ["red", "blue", "green"]} if kind == "classification" else {}
    if kind == "extraction":
        more = {"json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    task = Task.model_validate(
        {
            "kind": kind,
            "data": {"train": "t"},
            **more,
            "executor": {"function": f"{path}:{function}", **settings},
        }
    )
    one = Example(id="a", input="sky", expected=expected)
    made: Evaluator = pickle.loads(pickle.dumps(Evaluator(task, Splits((one,), (), ()))))
    return made


async def evaluated(one: Evaluator, llm: LLM | None = None) -> Evaluation:
    return await one.evaluate(Item(split="train", example="a"), GENOME, llm or Scripted(default="blue"))


async def test_calls_through_llm_are_counted_timed_and_written_down(pipeline: Path) -> None:
    model = Scripted(rules=(Rule(contains="check", text="it is blue"),), default="sky", latency_s=1.0, sigma=0.0)
    done = await evaluated(evaluator(pipeline, "draft_and_check"), model)
    assert (done.output, done.quality, done.error) == ("blue", 1.0, None)
    assert done.usage.calls == 4
    assert done.usage.seconds == pytest.approx(2.0)  # three drafts side by side, then the check
    assert done.usage.usd > 0
    assert [step["purpose"] for step in done.trace] == ["answer"] * 3 + ["pick", "check"]
    assert done.trace[-1] == {"purpose": "check", "prompt": "user: check sky", "reply": "it is blue"}


async def test_own_usage_is_taken_as_reported(pipeline: Path) -> None:
    done = await evaluated(evaluator(pipeline, "own"))
    assert (done.output, done.quality) == ("blue", 1.0)  # read as a label, as the task's kind says
    assert (done.usage.calls, done.usage.usd, done.usage.seconds) == (2, 0.25, 1.5)


async def test_without_calls_or_report_the_clock_counts(pipeline: Path) -> None:
    done = await evaluated(evaluator(pipeline, "chain"))
    assert done.output == "green"
    assert done.usage.calls == 0
    assert 0 < done.usage.seconds < 10


async def test_what_the_pipeline_decides_itself_stands(pipeline: Path) -> None:
    done = await evaluated(evaluator(pipeline, "judged_by_itself"))
    assert (done.output, done.quality, done.flags, done.repairs) == ("red!", 1.0, ("odd",), 1)


async def test_json_is_held_against_the_schema(pipeline: Path) -> None:
    good = await evaluated(evaluator(pipeline, "as_json", "extraction"))
    assert (good.output, good.schema_ok, good.quality) == ('{"n":3}', True, 1.0)
    bad = await evaluated(evaluator(pipeline, "bad_json", "extraction"))
    assert (bad.schema_ok, bad.quality, bad.error) == (False, 0.0, None)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "wrong_type",
            r"executor: TypeError: '.*:wrong_type' returned <object .*> \(object\); allowed: evocluster\.Ex",
        ),
        ("nothing", r"executor: TypeError: '.*' returned None \(NoneType\)"),
        ("raises", r"executor: KeyError: 'no such thing' \(pipeline\.py:\d+ in raises\)"),
        ("greedy", r"executor: TooManyCalls: more than 8 model calls for one example"),
        ("leaves", r"executor: RuntimeError: leaves raised SystemExit\(3\)"),
    ],
)
async def test_failures_are_the_examples(pipeline: Path, function: str, said: str) -> None:
    done = await evaluated(evaluator(pipeline, function, "text"))
    assert done.error is not None
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(done.error)
    assert (done.quality, done.schema_ok) == (0.0, False)


async def test_what_was_called_before_a_failure_is_counted(pipeline: Path) -> None:
    done = await evaluated(evaluator(pipeline, "raises", "text"))
    assert done.usage.calls == 1
    assert len(done.trace) == 1


async def test_deadline(pipeline: Path) -> None:
    done = await evaluated(evaluator(pipeline, "hangs", "text", timeout_s=0.05))
    assert done.error is not None
    assert done.error.startswith("executor: TimeoutError: hangs did not return within 0.05 s")


async def test_failures_of_models_are_theirs(pipeline: Path) -> None:
    failing = Scripted(fail=1.0)
    done = await evaluated(evaluator(pipeline, "draft_and_check"), failing)
    assert done.error is not None
    assert done.error.startswith("model: Overloaded")

    class Wrong:
        async def __call__(self, request: object) -> Any:
            raise Refused("401: no such key")

    with pytest.raises(Refused):
        await evaluated(evaluator(pipeline, "draft_and_check"), Wrong())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("plain", "allowed: `async def` "),
        ("two", r"has the signature \(example, genome\); allowed: \(example, genome, llm\)"),
        ("absent", "no 'absent' there; it holds"),
    ],
)
def test_functions_that_cannot_be_pipelines_are_refused_before_the_run(
    pipeline: Path, function: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluator(pipeline, function, "text")


def test_budget_reckons_by_what_the_config_says(pipeline: Path) -> None:
    assert evaluator(pipeline, "own").calls_per_item({}) == 8
    assert evaluator(pipeline, "own", calls=3).calls_per_item({}) == 3
    assert evaluator(pipeline, "own").sources()["code"].keys() == {f"{pipeline}:own"}
