"""The nine operators of breeding: what all keep, what each asks, and the mutation prompts that they hand on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from breed_world import writer
from contract_operator import OperatorContract
from search_world import POOL, space

from evocluster.errors import ConfigError, OperatorFailed
from evocluster.llm.client import LLM, Reply, Request
from evocluster.records import Genome
from evocluster.search import breed
from evocluster.search.breed_form import LONGEST
from evocluster.search.breed_lists import continued
from evocluster.search.breed_words import HYPER, MUTATIONS, STYLES
from evocluster.search.operators import BREED, NAMES, Child, Operator
from evocluster.search.portfolio import portfolio
from evocluster.search.rewrite import placeholders
from evocluster.search.settings import Search

NINE = {one.name: one for one in breed.ALL}
CASES = ({"example": "t001", "twin": 0, "input": "the bin is full", "output": "waste", "right": True},)


async def keeping(request: Request) -> Reply:
    """`writer`, with the placeholders that it was told to keep and left out."""
    reply = await writer(request)
    named = re.search(r"and keep (.+?) exactly as written", request.messages[-1].content)
    missing = [name for name in named[1].split(", ") if name not in reply.text] if named else []
    return reply.model_copy(update={"text": " ".join([reply.text, *missing])})


class Bred(OperatorContract):
    """The contract, with cases to learn from and a model that writes, and what the nine keep besides."""

    name = ""
    llm: LLM = staticmethod(keeping)

    def operator(self) -> Operator:
        return NINE[self.name]

    def hints(self) -> Mapping[str, Any]:
        return {"cases": CASES, "description": "Sort post."}

    async def test_placeholders_are_kept(self) -> None:
        where, seen = space(), set()
        for seed in range(20):
            rng = np.random.default_rng(seed)
            parents = [where.sample(rng).replace(rubric="Name the queue: {labels}.") for _ in range(2)]
            parents[1] = parents[1].replace(rubric="Out of {labels}, which?")
            hints = {**self.hints(), "ranked": ["Sort into {labels}."], "lineage": ["Sort into {labels}."]}
            child = (await vary(self.name, where, parents, hints, self.llm, seed)).genome
            seen.add(child["rubric"])
            assert placeholders(child["rubric"]) == {"{labels}"}
        assert len(seen) > 1

    async def test_the_mutation_prompt_is_handed_on_and_no_part_of_the_genome(self) -> None:
        where = space()
        parents = [where.sample(np.random.default_rng(seed)) for seed in (1, 2)]
        hints = {**self.hints(), "mutation_prompt": "Make it shine."}
        child = await vary(self.name, where, parents, hints, self.llm, 5)
        assert set(child.genome.genes) == set(where.names)
        if self.name.startswith("hyper"):
            assert str(child.notes["mutation_prompt"]).startswith("Advice ")
        else:
            assert child.notes == {"mutation_prompt": "Make it shine."}

    async def test_who_has_none_draws_one_of_the_first(self) -> None:
        if self.name.startswith("hyper"):
            return
        where = space()
        parents = [where.sample(np.random.default_rng(seed)) for seed in (1, 2)]
        told = {"mutation_prompt": "", **self.hints()}
        drawn = [(await vary(self.name, where, parents, told, self.llm, seed)).notes for seed in range(6)]
        assert {note["mutation_prompt"] for note in drawn} <= set(MUTATIONS)
        assert len({note["mutation_prompt"] for note in drawn}) > 1


class TestZeroOrder(Bred):
    name = "zero_order"


class TestFirstOrder(Bred):
    name = "first_order"


class TestDistribution(Bred):
    name = "distribution"


class TestRanked(Bred):
    name = "ranked"


class TestLineage(Bred):
    name = "lineage"


class TestHyperZero(Bred):
    name = "hyper_zero"


class TestHyperFirst(Bred):
    name = "hyper_first"


class TestLamarck(Bred):
    name = "lamarck"


class TestContext(Bred):
    name = "context"


async def vary(
    name: str, where: Any, parents: Sequence[Genome], hints: Mapping[str, Any], llm: LLM, seed: int = 0
) -> Child:
    operator = NINE[name]
    return await operator.vary(where, parents[: operator.arity], hints, llm, np.random.default_rng(seed))


def answering(*texts: str) -> tuple[LLM, list[str]]:
    """A model that gives these answers in turn, and what it was asked."""
    asked: list[str] = []

    async def llm(request: Request) -> Reply:
        asked.append(request.messages[-1].content)
        return Reply(text=texts[len(asked) - 1], prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=0.0)

    return llm, asked


def parent(rubric: str = "Sort this.") -> Genome:
    return space().sample(np.random.default_rng(4)).replace(rubric=rubric)


def test_there_are_nine_and_the_lists_are_long_enough() -> None:
    assert tuple(NINE) == BREED
    assert len(BREED) == 9
    assert [len(set(texts)) for texts in (STYLES, MUTATIONS, HYPER)] == [30, 30, 12]
    assert all(len(text) <= LONGEST and "{" not in text for text in (*STYLES, *MUTATIONS, *HYPER))


async def test_zero_order_sees_the_problem_and_a_style_and_not_the_parents_prompt() -> None:
    llm, asked = answering("Put it in its queue.")
    child = await vary("zero_order", space(), [parent("Gone astray.")], {"description": "Sort post."}, llm)
    assert child.genome["rubric"] == "Put it in its queue."
    assert "Sort post." in asked[0]
    assert any(style in asked[0] for style in STYLES)
    assert "Gone astray." not in asked[0]


async def test_first_order_applies_the_mutation_prompt() -> None:
    llm, asked = answering("Sort this fast.")
    child = await vary("first_order", space(), [parent()], {"mutation_prompt": "Make it faster."}, llm)
    assert child.genome == parent().replace(rubric="Sort this fast.")
    assert asked[0].startswith("Make it faster.\n\nInstruction: Sort this.")


@pytest.mark.parametrize("name", ["hyper_zero", "hyper_first"])
async def test_hyper_mutation_applies_the_new_mutation_prompt_at_once(name: str) -> None:
    llm, asked = answering("Advice: Make it slower.", "Sort this slowly.")
    child = await vary(name, space(), [parent()], {"mutation_prompt": "Make it faster."}, llm)
    assert child.genome["rubric"] == "Sort this slowly."
    assert child.notes == {"mutation_prompt": "Make it slower."}
    assert len(asked) == NINE[name].calls == 2
    assert ("Make it faster." in asked[0]) == (name == "hyper_first")
    assert any(text in asked[0] for text in (HYPER if name == "hyper_first" else STYLES))
    assert asked[1].startswith("Make it slower.\n\nInstruction: Sort this.")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(" ", "empty mutation prompt"), ("Make it faster.", "unchanged"), ("x" * 401, "401 characters; allowed: 400")],
)
async def test_a_mutation_prompt_that_is_none_fails_with_its_reason(answer: str, reason: str) -> None:
    llm, asked = answering(answer)
    with pytest.raises(OperatorFailed, match=reason):
        await vary("hyper_first", space(), [parent()], {"mutation_prompt": "Make it faster."}, llm)
    assert len(asked) == 1


async def test_distribution_shuffles_and_ranked_keeps_the_ascending_order_it_calls_descending() -> None:
    texts = ["worst", "poor", "fair", "good", "best"]
    orders = {}
    for name in ("distribution", "ranked"):
        llm, asked = answering(*["6. A new one.\n7. And another."] * 8)
        for seed in range(8):
            child = await vary(name, space(), [parent()], {"ranked": texts}, llm, seed)
            assert child.genome["rubric"] == "A new one."
        orders[name] = {tuple(re.findall(r"^\d+\. (\w+)$", text, flags=re.MULTILINE)) for text in asked}
        assert all(text.endswith("\n6.") for text in asked)
    assert orders["ranked"] == {tuple(texts)}
    assert len(orders["distribution"]) > 1
    assert {frozenset(order) for order in orders["distribution"]} == {frozenset(texts)}
    assert "the highest score first" in asked[0]
    assert "more in common with number 5 than with number 1" in asked[0]


async def test_lineage_lists_the_elites_in_the_order_of_time() -> None:
    llm, asked = answering("The next.")
    hints = {"lineage": ["Oldest.", "Middle.", "Latest."], "mutation_prompt": "Go on."}
    await vary("lineage", space(), [parent()], hints, llm)
    assert "1. Oldest.\n2. Middle.\n3. Latest.\n" in asked[0]


@pytest.mark.parametrize("name", ["distribution", "ranked", "lineage"])
async def test_a_list_gone_on_with_by_one_of_its_own_entries_fails(name: str) -> None:
    llm, _ = answering("2. Best of all.")
    listed = ["Fair.", "Best of all."]
    with pytest.raises(OperatorFailed, match="unchanged"):
        await vary(name, space(), [parent()], {"ranked": listed, "lineage": listed}, llm)


@pytest.mark.parametrize(
    ("answer", "entry"),
    [
        ("Sort it.", "Sort it."),
        ("4. Sort it.\n5. Or not.", "Sort it."),
        ("  12) Sort it\nby name.", "Sort it\nby name."),
        ("- Sort it.\n- Or not.", "Sort it."),
        ("2024 is the year.", "2024 is the year."),
    ],
)
def test_continued_takes_the_first_entry(answer: str, entry: str) -> None:
    assert continued(answer) == entry


async def test_lamarck_sees_right_cases_only() -> None:
    llm, asked = answering("Name the kind of post.")
    wrong = {"example": "t002", "input": "a wrong one", "output": "nonsense", "right": False}
    unjudged = {"example": "t003", "input": "an unjudged one", "output": "whatever"}
    child = await vary("lamarck", space(), [parent()], {"cases": [wrong, *CASES, unjudged]}, llm)
    assert child.genome["rubric"] == "Name the kind of post."
    assert "Input: the bin is full\nWorked out: waste" in asked[0]
    assert not any(text in asked[0] for text in ("a wrong one", "nonsense", "unjudged", "whatever", "Sort this."))
    with pytest.raises(OperatorFailed, match="no right case"):
        await vary("lamarck", space(), [parent()], {"cases": [wrong]}, llm)


@pytest.mark.parametrize(
    "copy", ["The bin is  FULL", "the bin, is full!", "is a long one that was worked out in two steps"]
)
async def test_lamarck_refuses_a_copy_of_a_case_that_it_saw(copy: str) -> None:
    worked = {"example": "t004", "twin": 0, "input": "another", "right": True}
    worked["output"] = "This is a long one that was worked out in two steps and a half."
    llm, _ = answering(*[f"Name the kind of post. '{copy}' is waste."] * 2)
    with pytest.raises(OperatorFailed, match="lamarck: the new text copies a training case"):
        await vary("lamarck", space(), [parent()], {"cases": [*CASES, worked]}, llm)
    old = parent(f"Where it says {copy}, sort this.")
    assert await vary("lamarck", space(rubric=[old["rubric"]]), [old], {"cases": [*CASES, worked]}, llm)


async def test_context_takes_anothers_prompt_and_shows_other_demos() -> None:
    where, seen = space(), set()
    one = where.fix(parent().replace(demos=("t001", "t002")).genes)
    mate = where.fix(parent("Name the queue: {labels}.").genes)
    for seed in range(30):
        child = (await vary("context", where, [one, mate], {}, writer, seed)).genome
        assert child.replace(rubric="", demos=()) == one.replace(rubric="", demos=())
        assert child["rubric"] in (one["rubric"], mate["rubric"])
        seen.add((child["rubric"] != one["rubric"], child["demos"] != one["demos"]))
    assert seen == {(True, False), (False, True), (True, True)}


async def test_context_that_can_change_nothing_fails() -> None:
    where = space(demos=[])
    with pytest.raises(OperatorFailed, match="the same rubric"):
        await vary("context", where, [parent(), parent()], {}, writer)


def test_refill_fills_up_replaces_one_when_full_and_shuffles() -> None:
    where = space(demos={"max": 4})
    full, few = ("t001", "t002", "t003", "t004"), ("t001",)
    refilled = [where.refill(full, np.random.default_rng(seed)) for seed in range(60)]
    assert all(len(set(ids)) == 4 and set(ids) <= {one.id for one in POOL} for ids in refilled)
    kept = [len(set(ids) & set(full)) for ids in refilled]
    assert kept.count(3) > 40
    assert min(kept) < 3
    assert len({ids.index("t001") for ids in refilled if "t001" in ids}) == 4
    sizes = {len(where.refill(few, np.random.default_rng(seed))) for seed in range(60)}
    assert sizes >= {2, 3, 4}
    assert space(demos=["t001"]).refill(("t001",), np.random.default_rng(0)) == ("t001",)


async def test_a_child_that_is_known_already_fails_before_it_costs_evaluations() -> None:
    known = parent().replace(rubric="Known.")
    llm, _ = answering("Known.")
    with pytest.raises(OperatorFailed, match="known already"):
        await vary("first_order", space(), [parent()], {"avoid": [known.id]}, llm)


BROKEN: Mapping[str, str] = {"  ": "empty", "Pick a queue.": "placeholders", "{labels} " * 400: "characters"}


@pytest.mark.parametrize("name", [name for name in BREED if name != "context"])
@pytest.mark.parametrize("answer", BROKEN)
async def test_a_broken_prompt_fails_with_its_reason(name: str, answer: str) -> None:
    llm, _ = answering(*(["Be exact."] if name.startswith("hyper") else []), answer)
    with pytest.raises(OperatorFailed, match=BROKEN[answer]):
        await vary(name, space(), [parent("Name {labels}.")], {"cases": CASES}, llm)


def test_portfolio_has_the_nine_only_where_they_are_named() -> None:
    usual = {"seed", "mutate", "demos", "crossover", "rewrite", "merge"}
    assert set(portfolio(Search(), space())) == {*usual, "model", "calls", "numbers"}
    assert set(portfolio(Search(operators=("mutate", "breed")), space())) == {"seed", "mutate", *BREED}
    assert set(portfolio(Search(operators=("lamarck", "mutate")), space())) == {"seed", "mutate", "lamarck"}
    assert set(portfolio(Search(strategy="breed"), space())) == {"seed", *BREED}
    mixed = Search(strategy="breed", operators=("first_order", "mutate"))
    assert set(portfolio(mixed, space())) == {"seed", "first_order", "mutate"}
    asked = portfolio(Search(strategy="breed", rewriter="chatty"), space())
    assert all(one.model == "chatty" for name, one in asked.items() if name != "seed")  # type: ignore[attr-defined]


def test_portfolio_leaves_out_of_the_nine_what_cannot_act() -> None:
    named = Search(operators=("breed", "mutate"))
    assert set(portfolio(named, space(rubric="One."))) == {"seed", "mutate", "context"}
    assert set(portfolio(named, space(rubric="One.", demos=[]))) == {"seed", "mutate"}
    bare: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "model": "able", "demos": [], "demo_style": "chat"}
    only = space(**bare, constrain=False, label_names="as_is")
    assert set(portfolio(Search(strategy="breed"), only)) == {"seed", *BREED} - {"context"}


FROZEN: Mapping[str, Callable[[], Any]] = {
    "'One.'": lambda: space(rubric="One."),
    "'fixed': True": lambda: space(rubric={"texts": ["One.", "Two."], "fixed": True}),
}


@pytest.mark.parametrize("given", FROZEN)
def test_breeding_where_the_prompt_is_frozen_is_refused_with_the_fix(given: str) -> None:
    with pytest.raises(ConfigError, match=f"'breed' .*{given}.*rubric: \\[") as failure:
        portfolio(Search(strategy="breed"), FROZEN[given]())
    assert "another strategy" in str(failure.value)


def test_names_are_in_the_message_and_in_editors() -> None:
    with pytest.raises(ConfigError, match=r"hyper_first, lamarck, context, breed; did you mean 'lamarck'"):
        portfolio(Search(operators=("lamark",)), space())
    schema = Search.in_editors(Search.model_json_schema())
    assert schema["properties"]["operators"]["anyOf"][0]["items"] == {"enum": [*NAMES, "breed"]}
