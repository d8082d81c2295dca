"""Evaluation: quality and validator, what is recorded instead of raised, and which items there are."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from typing import Literal

import pytest
from pydantic import ValidationError

from evocluster.errors import ConfigError, DeadlinePassed, Refused
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.scripted import Rule, Scripted
from evocluster.parts import Part
from evocluster.records import Evaluation, Example, Genome, Item, Json, Score
from evocluster.tasks.dataset import Splits
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.execution import Execution
from evocluster.tasks.safety import Pattern, flags
from evocluster.tasks.task import Task

GENOME = Genome(genes={"rubric": "Which?", "demos": ["train0"]})
ITEM = Item(split="validation", example="validation1")


def splits(count: int = 16) -> Splits:
    return Splits(
        *(
            [
                Example(
                    id=f"{name}{at}",
                    input=f"please handle the {name} {at}",
                    expected=["refund", "billing"][at % 2],
                )
                for at in range(count)
            ]
            for name in ("train", "validation", "test")
        )
    )


def evaluator(**settings: Json) -> Evaluator:
    return Evaluator(Task.model_validate({"kind": "classification", "data": {"train": "t"}, **settings}), splits())


def says(text: str) -> LLM:
    return Scripted(rules=(Rule(pattern=".", text=text),), fail=0)


class Broken(Part):
    """A scorer that does what it is told."""

    kind: Literal["broken"] = "broken"
    name: str = "broken"
    value: float = 1.0
    fails: bool = False

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        if self.fails:
            raise KeyError("colour")
        return Score(value=self.value)


def with_scorer(scorer: Broken, **settings: Json) -> Evaluator:
    """An evaluator with this scorer beside the default one."""
    made = evaluator()
    task = made.task.model_copy(update={"scorers": (*made.task.scorers, scorer), **settings})
    made.task = task
    return made


async def test_a_right_answer() -> None:
    evaluation = await evaluator().evaluate(ITEM, GENOME, says("Billing."))
    assert (evaluation.item, evaluation.output, evaluation.error) == (ITEM, "billing", None)
    assert (evaluation.quality, evaluation.validator, evaluation.schema_ok) == (1.0, 1.0, True)
    assert evaluation.scores["label"].value == 1.0
    assert evaluation.usage.calls == 1
    assert evaluation.usage.seconds > 0


async def test_an_unreadable_answer_is_no_failure() -> None:
    evaluation = await evaluator().evaluate(ITEM, GENOME, says("who knows"))
    assert (evaluation.quality, evaluation.schema_ok, evaluation.error) == (0.0, False, None)
    assert evaluation.output == "who knows"


async def test_quality_is_the_weighted_mean_and_validator_the_named_score() -> None:
    settings: dict[str, Json] = {
        "scorers": [
            {"kind": "label"},
            {"kind": "contains", "name": "c"},
            {"kind": "similarity", "name": "watched"},
        ],
        "weights": {"c": 3, "watched": 0},
        "validator": {"scorer": "label"},
        "labels": ["billing", "refund"],
    }
    made = evaluator(**settings)
    wrong = await made.evaluate(ITEM, GENOME, says("refund"))
    right = await made.evaluate(ITEM, GENOME, says("billing"))
    assert (wrong.quality, right.quality) == (0.0, 1.0)
    inside = Evaluator(
        Task.model_validate(
            {
                **made.task.model_dump(),
                "kind": "text",
                "labels": (),
                "label_names": {},
                "scorers": [{"kind": "exact"}, {"kind": "contains"}],
                "weights": {"contains": 3},
                "validator": {"scorer": "exact"},
            }
        ),
        splits(),
    )
    half = await inside.evaluate(ITEM, GENOME, says("billing it is"))
    assert (half.quality, half.validator) == (0.75, 0.0)


async def test_a_model_failure_is_a_record() -> None:
    def slow(request: Request) -> str:
        raise DeadlinePassed("no answer in 3 s")

    evaluation = await evaluator().evaluate(ITEM, GENOME, Scripted.using(slow))
    assert evaluation.error == "model: DeadlinePassed: no answer in 3 s"
    assert (evaluation.quality, evaluation.validator, evaluation.schema_ok) == (0.0, 0.0, False)
    assert evaluation.scores == {}


async def test_a_scorer_failure_is_a_record_and_the_others_still_score() -> None:
    evaluation = await with_scorer(Broken(fails=True)).evaluate(ITEM, GENOME, says("billing"))
    assert evaluation.error == "scorer broken: KeyError: 'colour'"
    assert (evaluation.quality, evaluation.validator) == (0.0, 0.0)
    assert list(evaluation.scores) == ["label"]


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not a finite number"), (1.5, "outside 0 to 1")])
async def test_scores_that_cannot_be_averaged_are_failures(value: float, message: str) -> None:
    evaluation = await with_scorer(Broken(value=value)).evaluate(ITEM, GENOME, says("billing"))
    assert evaluation.error is not None
    assert message in evaluation.error
    assert evaluation.quality == 0


async def test_a_watched_score_may_have_any_scale() -> None:
    made = with_scorer(Broken(value=-7.5), weights={"broken": 0.0})
    evaluation = await made.evaluate(ITEM, GENOME, says("billing"))
    assert (evaluation.error, evaluation.quality) == (None, 1.0)
    assert evaluation.scores["broken"].value == -7.5


async def test_what_stops_everything_is_raised() -> None:
    def refuse(request: Request) -> str:
        raise Refused("401: wrong key")

    with pytest.raises(Refused):
        await evaluator().evaluate(ITEM, GENOME, Scripted.using(refuse))
    with pytest.raises(ConfigError):
        await evaluator().evaluate(Item(split="test", example="nobody"), GENOME, says("x"))


async def test_cancellation_passes_through() -> None:
    async def forever(request: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    task = asyncio.ensure_future(evaluator().evaluate(ITEM, GENOME, forever))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_flags_are_raised_on_outputs() -> None:
    checks: list[Json] = [{"kind": "pattern", "flag": "email", "pattern": r"\S+@\S+"}]
    evaluation = await evaluator(safety=checks).evaluate(ITEM, GENOME, says("write to A@b.example"))
    assert evaluation.flags == ("email",)
    case = Pattern(flag="caps", pattern="STOP", ignore_case=False)
    example = Example(id="e", input="x")
    for output, raised in (("STOP", ("caps",)), ("stop", ())):
        assert await flags((case, case), example, Execution(output=output), says("x")) == (raised, ())


def test_items_hold_every_example_once_with_twins_directly_after() -> None:
    made = evaluator(twins={"kinds": ["case"], "share": 0.25, "count": 2})
    items = made.items("train", 7)
    assert items == made.items("train", 7) != made.items("train", 8)
    assert sorted(item.example for item in items if item.twin == 0) == sorted(e.id for e in made.splits.train)
    twins = [at for at, item in enumerate(items) if item.twin == 1]
    assert len(twins) == 4
    for at in twins:
        assert (items[at - 1].twin, items[at + 1].twin) == (0, 2)
        assert {items[at + step].example for step in (-1, 0, 1)} == {items[at].example}
    by_class = Counter(made.splits.get("train", items[at].example).expected for at in twins)
    assert by_class == {"refund": 2, "billing": 2}
    assert all(item.split == "train" for item in items)
    assert {item.twin for item in evaluator().items("test", 7)} == {0}


async def test_a_twin_is_asked_instead_of_its_example() -> None:
    made = evaluator(twins={"kinds": ["case"], "share": 1})
    asked: list[str] = []

    def answer(request: Request) -> str:
        asked.append(request.messages[-1].content)
        return "billing"

    model = Scripted.using(answer)
    twin = ITEM.model_copy(update={"twin": 1})
    assert (await made.evaluate(twin, GENOME, model)).item == twin
    await made.evaluate(ITEM, GENOME, model)
    assert asked[0] != asked[1] == "please handle the validation 1"
    assert asked[0].lower() == asked[1]


def test_twins_that_would_be_equal_are_not_asked() -> None:
    task = Task.model_validate(
        {"kind": "text", "data": {"train": "t"}, "twins": {"kinds": ["typos", "reorder"], "share": 1}}
    )
    alike = [Example(id=str(at), input=str(at), expected=str(at)) for at in range(4)]
    assert {item.twin for item in Evaluator(task, Splits(alike, alike, alike)).items("train", 0)} == {0}


async def test_an_evaluator_pickles_and_evaluations_are_json() -> None:
    again: Evaluator = pickle.loads(pickle.dumps(evaluator(twins={})))
    evaluation = await again.evaluate(ITEM, GENOME, says("billing"))
    assert Evaluation.model_validate_json(evaluation.model_dump_json()).quality == 1.0


def test_label_names_on_offer() -> None:
    named = {"short": {"refund": "r", "billing": "b"}}
    assert evaluator(label_names=named).label_names() == ("as_is", "spaced", "letters", "short")
    assert evaluator().calls_per_item({"cot": (True,), "constrain": (True,)}) == 2


async def test_a_scorer_that_must_pass_decides_alone() -> None:
    scorers: list[Json] = [{"kind": "label"}, {"kind": "length", "unit": "chars", "max": 3}]
    strict = evaluator(scorers=scorers, weights={"length": 0.0}, must_pass=["length"])
    lenient = evaluator(scorers=scorers, weights={"length": 0.0})
    for one, quality in ((lenient, 1.0), (strict, 0.0)):
        evaluation = await one.evaluate(ITEM, GENOME, says("billing"))
        assert evaluation.scores["label"].value == 1.0
        assert evaluation.scores["length"].value == 0.0
        assert evaluation.quality == quality
    assert strict.task.must_pass == {"length": 1.0}
    with pytest.raises(ValidationError, match="no scorer 'lenght'; scorers are label, length; did you mean 'length'"):
        evaluator(scorers=scorers, must_pass={"lenght": 0.5})


class Judging(Part):
    """A scorer that asks a model itself."""

    kind: Literal["judging"] = "judging"
    name: str = "judging"
    calls: int = 2

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        reply = await llm(Request(model="judge", purpose="judge", max_tokens=5))
        return Score(value=1.0, reason=reply.text)


async def test_what_judging_takes_is_counted_apart() -> None:
    one = evaluator()
    one.task = one.task.model_copy(update={"scorers": (Judging(),)})
    evaluation = await one.evaluate(ITEM, GENOME, says("billing"))
    assert (evaluation.usage.calls, evaluation.judging.calls) == (1, 1)
    assert evaluation.judging.usd > 0
    assert one.calls_per_item({}) == 3


async def test_steps_are_kept_when_asked_for() -> None:
    kept = await evaluator(keep_trace=True).evaluate(ITEM, GENOME, says("billing"))
    assert [step["reply"] for step in kept.trace] == ["billing"]
    assert kept.trace[0]["prompt"]
    assert (await evaluator().evaluate(ITEM, GENOME, says("billing"))).trace == ()
