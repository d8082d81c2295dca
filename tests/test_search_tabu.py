"""What was rejected does not come back: near twins, what a proposal tells of them, and operators wary of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from contract_operator import OperatorContract
from search_world import echo, space

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM, Reply, Request
from evocluster.records import Genome, Proposal, canonical
from evocluster.search.operators import Child, Crossover, Mutate, Operator
from evocluster.search.portfolio import portfolio
from evocluster.search.rewrite import Rewrite
from evocluster.search.settings import Search
from evocluster.search.space import Space
from evocluster.search.tabu import TOLD, TOLD_CHARS, TWIN, Tabu, Wary, barred, near, reworded

LONG = "Read the message of the customer with care and name the one queue that it belongs to, in one word and no more."


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestWary(OperatorContract):
    def operator(self) -> Operator:
        return Wary(Crossover())


class TestWaryOfHints(OperatorContract):
    def operator(self) -> Operator:
        return Wary(Mutate())

    def hints(self) -> Mapping[str, Any]:
        return {"tabu": ({"of": 0, "genes": {"max_tokens": 8}}, {"of": 0, "genes": {"constrain": True}})}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (LONG.upper().replace(",", " -"), True),
        (LONG.replace("the one queue", "the right queue"), True),
        (LONG.replace("Read the message of the customer with care and name", "Name"), False),
        ("Which queue?", False),
    ],
)
def test_rubrics_are_the_same_up_to_wording(other: str, same: bool) -> None:
    assert reworded(LONG, other) is same
    assert reworded(other, LONG) is same


def test_short_and_foreign_rubrics_are_not_all_the_same() -> None:
    assert not reworded("Name it.", "Sort it.")
    assert not reworded("", "Name it.")
    assert not reworded("!", "?")
    assert reworded("!  ?", "! ?")
    assert not reworded("客户的消息属于哪个队列", "请把这条消息翻译成英语")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"heat": 0.54}, True),
        ({"heat": 0.6}, False),
        ({"reach": 105}, True),
        ({"reach": 200}, False),
        ({"demos": ("t002", "t001")}, True),
        ({"demos": ("t002", "t003")}, False),
        ({"max_tokens": 16}, False),
        ({"constrain": True}, False),
        ({"rubric": LONG + "!"}, True),
        ({"rubric": "Which queue?"}, False),
        ({"rubric": LONG + "!", "heat": 0.52, "demos": ("t002", "t001")}, True),
    ],
)
def test_near_twins(changes: dict[str, Any], same: bool) -> None:
    where = space(heat={"low": 0, "high": 1.0}, reach={"low": 1, "high": 1000, "log": True})
    given = {"rubric": LONG, "model": "able", "max_tokens": 8, "demos": ("t001", "t002"), "heat": 0.5, "reach": 100}
    one = where.fix(where.sample(rng()).replace(**given, constrain=False).genes)
    other = where.fix(one.replace(**changes).genes)
    assert near(one, other, where) is near(other, one, where) is same


def test_hints_tell_of_rejected_genomes_near_to_the_parents_and_lead_back_to_them() -> None:
    where, tabu = space(), Tabu()
    parent, other = where.sample(rng(1)).replace(model="able", max_tokens=4), where.sample(rng(2))
    sibling = parent.replace(max_tokens=8)
    cousin = other.replace(label_names="letters" if other["label_names"] != "letters" else "spaced")
    far = [where.sample(rng(seed)) for seed in range(10, 30)]
    tabu.reject(sibling, parent.id)
    tabu.reject(cousin, "somebody")
    tabu.reject(far[0], parent.id)
    for one in far[1:]:
        tabu.reject(one, "somebody")
    told = tabu.hint([parent, other])
    found = barred(where, [parent, other], {"tabu": told})
    assert {sibling, cousin, far[0]} <= set(found)
    assert len(found) < 12
    assert told[0] in (
        {"of": 0, "genes": {"max_tokens": 8}},
        {"of": 1, "genes": {"label_names": cousin["label_names"]}},
    )
    back = Proposal.model_validate_json(Proposal(number=0, operator="x", hints={"tabu": told}).model_dump_json())
    assert barred(where, [parent, other], back.hints) == found
    assert tabu.hint([]) == ()


def test_memory_and_hints_stay_small() -> None:
    where, tabu = space(), Tabu(kept=50)
    parent = where.sample(rng())
    made = [parent.replace(rubric=f"{i} {LONG * 3}") for i in range(200)]
    for one in made:
        tabu.reject(one, parent.id)
    assert len(tabu) == 50
    told = tabu.hint([parent])
    assert 0 < len(told) <= TOLD
    assert len(canonical([one["genes"] for one in told])) <= TOLD_CHARS + 2 * len(told)
    assert told[0]["genes"]["rubric"].startswith("199 "), "the newest first"
    tabu.reject(made[150], "another")
    tabu.reject(made[0], parent.id)
    assert made[150].id in {one.id for one in barred(where, [parent], {"tabu": tabu.hint([parent])})}


FEW: dict[str, Any] = {
    "rubric": "One.", "temperature": 0, "label_names": "as_is", "model": "able", "demos": [], "demo_style": "chat",
    "constrain": False,
}  # fmt: skip


async def test_a_structured_operator_draws_again_until_it_is_no_twin() -> None:
    where = space(max_tokens=[1, 2, 3, 4], **FEW)
    parent = where.sample(rng()).replace(max_tokens=2)
    tabu = Tabu()
    tabu.reject(parent.replace(max_tokens=1), parent.id)
    tabu.reject(parent.replace(max_tokens=3), parent.id)
    hints = {"tabu": tabu.hint([parent])}
    made = [(await Wary(Mutate()).vary(where, [parent], hints, echo, rng(seed))).genome for seed in range(30)]
    assert {one["max_tokens"] for one in made} <= {2, 4}, "nothing new was found, or what is not rejected"
    assert [one["max_tokens"] for one in made].count(4) > 25
    tabu.reject(parent.replace(max_tokens=4), parent.id)
    hints = {"tabu": tabu.hint([parent])}
    for seed in range(20):
        with suppress(OperatorFailed):
            left = await Wary(Mutate()).vary(where, [parent], hints, echo, rng(seed))
            assert left.genome == parent, "all around is rejected, so nothing new is found"
    with pytest.raises(OperatorFailed, match=f"crossover: {TWIN}"):
        await Wary(Sure(parent.replace(max_tokens=4))).vary(where, [parent], hints, echo, rng())


@dataclass(frozen=True)
class Sure:
    """Makes the same child every time."""

    genome: Genome
    name: str = "crossover"
    arity: int = 1
    calls: int = 0
    needs: tuple[str, ...] = ()

    async def vary(self, space: Space, parents: Sequence[Genome], hints: object, llm: LLM, rng: object) -> Child:
        return Child(self.genome)


async def test_an_operator_that_asks_a_model_fails_and_is_not_asked_again() -> None:
    where, asked = space(), list[Request]()

    async def llm(request: Request) -> Reply:
        asked.append(request)
        return Reply(text=LONG, prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=0.0)

    parent = where.sample(rng()).replace(rubric="Name the queue.")
    told: Sequence[Any] = [{"of": 0, "genes": {"rubric": LONG.replace("customer", "client")}}]
    wary: tuple[Operator, LLM] = (Wary(Rewrite()), llm)
    with pytest.raises(OperatorFailed, match=f"rewrite: {TWIN}"):
        await wary[0].vary(where, [parent], {"tabu": told}, wary[1], rng())
    assert len(asked) == 1
    child = await wary[0].vary(where, [parent], {"tabu": told[:0]}, wary[1], rng())
    assert child.genome == parent.replace(rubric=LONG)


def test_steady_asks_for_no_hints_and_others_for_this_one() -> None:
    assert all(not one.needs for one in portfolio(Search(selection="steady"), space()).values())
    wary = portfolio(Search(), space())
    assert {name for name, one in wary.items() if "tabu" not in one.needs} == {"seed"}
    assert (wary["rewrite"].calls, wary["merge"].arity, wary["rewrite"].name) == (1, 2, "rewrite")


def test_a_genome_is_rejected_once_for_all_its_parents() -> None:
    tabu, child = Tabu(), Genome(genes={"a": 1, "b": 2, "c": 3, "d": 4})
    one, other = (Genome(genes={"a": 9, "b": 9, "c": 9, "d": at}) for at in (0, 1))
    tabu.reject(child, one.id)
    tabu.reject(child, other.id)
    assert len(tabu) == 1
    assert tabu.hint([one]) == tabu.hint([other]) == ({"of": 0, "genes": dict(child.genes)},)
