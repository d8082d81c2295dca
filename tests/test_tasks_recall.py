"""The scorer of what was retrieved."""

from __future__ import annotations

from typing import Any

import pytest
from contract_scorer import silent

from evocluster.errors import DataError
from evocluster.records import Example
from evocluster.tasks.documents import Passage
from evocluster.tasks.execution import Execution
from evocluster.tasks.recall import Recall


def example(**meta: Any) -> Example:
    return Example(id="e1", input="x", meta=meta)


async def recall(meta: dict[str, Any], *ids: str, **settings: Any) -> tuple[float, str]:
    passages = tuple(Passage(id=id, text="t") for id in ids)
    score = await Recall(**settings).score(example(**meta), Execution(passages=passages), silent)
    return score.value, score.reason


async def test_the_share_of_relevant_documents_that_came() -> None:
    wanted = {"documents": ["a.md", "b.md"]}
    assert await recall(wanted, "a.md#2", "b.md#1", "c.md#1") == (1.0, "")
    assert await recall(wanted, "a.md#2", "a.md#3") == (0.5, "not retrieved: b.md")
    assert await recall(wanted) == (0.0, "not retrieved: a.md, b.md")
    assert await recall(wanted, "a.md", "b.md") == (1.0, "")


async def test_a_passage_counts_only_when_it_came_itself() -> None:
    assert await recall({"documents": "a.md#2"}, "a.md#2") == (1.0, "")
    assert await recall({"documents": ["a.md#2"]}, "a.md#21", "a.md#1") == (0.0, "not retrieved: a.md#2")


async def test_ids_may_repeat_be_numbers_or_stand_elsewhere() -> None:
    assert await recall({"documents": [7, 7, "8"]}, "7#1") == (0.5, "not retrieved: 8")
    assert await recall({"gold": "a"}, "a#1", field="gold") == (1.0, "")


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"document": ["a"]}, "'documents' is not in meta ['document']; did you mean 'document'?; list"),
        ({"documents": []}, "'documents' is ()"),
        ({"documents": None}, "'documents' is None"),
        ({"documents": ["a", {}]}, "'documents' is ('a', {})"),
        ({"documents": [True]}, "'documents' is (True,)"),
    ],
)
async def test_an_example_must_name_what_is_relevant(meta: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="example 'e1'") as raised:
        await recall(meta, "a")
    assert said in str(raised.value)


def test_ids_that_no_document_has_are_found_before_anything_runs() -> None:
    ids = ["plans.md#1", "plans.md#2", "refunds.md#1"]
    Recall().fits([example(documents=["plans.md", "refunds.md#1"])], ids)
    with pytest.raises(DataError, match=r"example 'e1' names 'plan.md' in meta.documents; .*did you mean 'plans.md'"):
        Recall().fits([example(documents=["plan.md"])], ids)
    with pytest.raises(DataError, match="scorer 'recall': example 'e1': 'documents' is not in meta"):
        Recall().fits([example()], ids)
