"""Operators: what all of them keep, what each one does, and which of them can act."""

from __future__ import annotations

import numpy as np
import pytest
from contract_operator import OperatorContract
from search_world import echo, space

from evocluster.errors import ConfigError, OperatorFailed
from evocluster.llm.client import LLM, Reply, Request
from evocluster.records import Genome
from evocluster.search.operators import Crossover, Mutate, Operator, Seed
from evocluster.search.portfolio import portfolio
from evocluster.search.reflect import Reflect
from evocluster.search.rewrite import Merge, Rewrite, accepted, cleaned
from evocluster.search.settings import Search
from evocluster.search.tabu import Wary
from evocluster.search.typed import kinds


class TestSeed(OperatorContract):
    def operator(self) -> Operator:
        return Seed()


class TestMutate(OperatorContract):
    def operator(self) -> Operator:
        return Mutate()


class TestDemos(OperatorContract):
    def operator(self) -> Operator:
        return Mutate(name="demos", only=("demos",))


class TestCrossover(OperatorContract):
    def operator(self) -> Operator:
        return Crossover()


class TestRewrite(OperatorContract):
    def operator(self) -> Operator:
        return Rewrite()


class TestMerge(OperatorContract):
    def operator(self) -> Operator:
        return Merge()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


async def test_seed_takes_the_given_genome_as_it_is() -> None:
    genes = {"rubric": "outside", "anything": 1}
    child = (await Seed().vary(space(), (), {"genome": genes}, echo, rng())).genome
    assert child == Genome(genes=genes)


async def test_mutate_changes_one_to_three_genes() -> None:
    where, changed = space(), set()
    for seed in range(60):
        parent = where.sample(rng(seed))
        child = (await Mutate().vary(where, [parent], {}, echo, rng(seed + 1000))).genome
        changed.add(sum(child[name] != parent[name] for name in where.names))
    # A move to another model may bring demo_style and constrain along.
    assert {1, 2, 3} <= changed <= {1, 2, 3, 4, 5}


async def test_mutate_avoids_known_ids() -> None:
    where = space(
        temperature=0,
        label_names="as_is",
        rubric="One.",
        max_tokens=[1, 2, 3, 4],
        model="able",
        demos=[],
        demo_style="chat",
        constrain=False,
    )
    parent = where.sample(rng())
    others = [parent.replace(max_tokens=n) for n in (1, 2, 3, 4) if n != parent["max_tokens"]]
    hints = {"avoid": [genome.id for genome in others[:2]]}
    children = [(await Mutate().vary(where, [parent], hints, echo, rng(seed))).genome for seed in range(40)]
    assert sum(child == others[2] for child in children) > 35


async def test_demos_touches_nothing_else() -> None:
    where = space()
    for seed in range(20):
        parent = where.sample(rng(seed))
        child = (await Mutate(name="demos", only=("demos",)).vary(where, [parent], {}, echo, rng(seed))).genome
        assert child["demos"] != parent["demos"]
        assert child.replace(demos=()) == parent.replace(demos=())


async def test_crossover_takes_discrete_genes_from_either_parent() -> None:
    where = space()
    first, second = where.sample(rng(1)), where.sample(rng(2))
    for seed in range(20):
        child = (await Crossover().vary(where, [first, second], {}, echo, rng(seed))).genome
        for name in ("rubric", "label_names", "model"):
            assert child[name] in (first[name], second[name])
        assert set(child["demos"]) <= {*first["demos"], *second["demos"]}


def answering(text: str, seen: list[Request] | None = None) -> LLM:
    async def llm(request: Request) -> Reply:
        if seen is not None:
            seen.append(request)
        return Reply(text=text, prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=0.0)

    return llm


async def test_rewrite_asks_the_genomes_model_for_nothing_but_the_rubric() -> None:
    where, seen = space(), list[Request]()
    parent = where.sample(rng(4)).replace(rubric="Name the queue: {labels}.")
    child = (await Rewrite().vary(where, [parent], {}, answering("Pick one of {labels}.", seen), rng())).genome
    assert child == parent.replace(rubric="Pick one of {labels}.")
    assert (seen[0].model, seen[0].purpose, seen[0].temperature) == (parent["model"], "rewrite", 0.7)
    assert "Name the queue: {labels}." in seen[0].messages[0].content
    await Rewrite(model="able").vary(where, [parent], {}, answering("Pick {labels}.", seen), rng(1))
    assert (seen[1].model, seen[0].seed != seen[1].seed) == ("able", True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("  ", "empty"),
        ("Name the queue: {labels}.", "unchanged"),
        ("Pick a queue.", "placeholders"),
        ("Pick {labels} or {other}.", "placeholders"),
        ("{labels} " * 400, "characters"),
    ],
)
async def test_rewrite_rejects(answer: str, reason: str) -> None:
    parent = space().sample(rng(4)).replace(rubric="Name the queue: {labels}.")
    with pytest.raises(OperatorFailed, match=reason):
        await Rewrite().vary(space(), [parent], {}, answering(answer), rng())


async def test_merge_of_equal_rubrics_fails_without_a_call() -> None:
    parent, seen = space().sample(rng(4)), list[Request]()
    with pytest.raises(OperatorFailed, match="same rubric"):
        await Merge().vary(space(), [parent, parent], {}, answering("x", seen), rng())
    assert seen == []


def test_cleaned_takes_wrapping_off() -> None:
    assert cleaned('"Sort it."') == "Sort it."
    assert cleaned("```text\nSort it.\n```") == "Sort it."
    assert cleaned("New instruction: Sort it.") == "Sort it."
    assert accepted("Sort {labels}", ["x"], frozenset({"{labels}"}), "rewrite") == "Sort {labels}"


OLD = {"seed", "mutate", "demos", "crossover", "rewrite", "merge"}


def test_portfolio_leaves_out_what_cannot_act() -> None:
    steady = portfolio(Search(selection="steady"), space())
    assert list(steady) == ["seed", "mutate", "demos", "crossover", "rewrite", "merge"]
    assert {*portfolio(Search(), space())} - {*steady} == {"model", "calls", "numbers"}
    assert {*portfolio(Search(reflector="able"), space())} - {*steady} == {"model", "calls", "numbers", "reflect"}
    assert not {"rewrite", "reflect"} & set(portfolio(Search(reflector="able"), space(rubric="One.")))
    assert {"model", "merge"}.isdisjoint(portfolio(Search(), space(rubric="One.", model="able")))
    assert "rewrite" not in portfolio(Search(), space(rubric={"texts": ["a", "b"], "fixed": True}))
    assert "demos" not in portfolio(Search(), space(demos=[]))
    assert set(portfolio(Search(operators=("mutate",)), space())) == {"seed", "mutate"}
    frozen = space(rubric="a", temperature=0, max_tokens=4, model="able", demos=[], demo_style="chat",
                   constrain=False, label_names="as_is")  # fmt: skip
    assert set(portfolio(Search(), frozen)) == {"seed"}


def test_portfolio_gives_memory_to_rewrites_and_asks_the_reflector() -> None:
    able = portfolio(Search(rewriter="chatty", strategy="hybrid"), space())
    assert able["rewrite"].needs == able["merge"].needs == ("memory", "tabu")
    assert "memory" in able["reflect"].needs
    assert able["reflect"] == Wary(Reflect(model="chatty"))
    assert "reflect" not in portfolio(Search(rewriter="chatty"), space())
    assert portfolio(Search(rewriter="chatty", reflector="able"), space())["reflect"] == Wary(Reflect(model="able"))
    brief = portfolio(Search(reflector="able", reflect_tokens=300), space())["reflect"]
    assert brief == Wary(Reflect(model="able", tokens=300))
    old = portfolio(Search(selection="steady"), space())
    assert old["rewrite"] == Rewrite()
    assert old["merge"] == Merge()
    assert "reflect" in portfolio(Search(selection="steady", strategy="hybrid"), space())


async def test_rewrite_and_merge_are_told_the_memory() -> None:
    where, seen = space(), list[Request]()
    parents = [where.sample(rng(4)).replace(rubric=text) for text in ("Sort it.", "Name it.")]
    told = {"memory": "- worked: shorter"}
    for operator, old in ((Rewrite(), "rewrite"), (Merge(), "merge")):
        child = await operator.vary(where, parents, told, answering("Pick one.", seen), rng())
        assert "- worked: shorter" in seen[-1].messages[0].content
        assert child.notes["change"], old
        await operator.vary(where, parents, {}, answering("Pick one.", seen), rng())
        assert "tried before" not in seen[-1].messages[0].content


def test_one_kind_of_gene_has_an_operator_where_there_are_two() -> None:
    few = {"rubric": "One.", "demos": [], "demo_style": "chat", "label_names": "as_is", "constrain": False}
    numbers = space(model="able", spice={"low": 1, "high": 9}, **few)
    assert set(portfolio(Search(), numbers)) == {"seed", "mutate", "crossover"}
    both = kinds(space(spice={"low": 1, "high": 9}, hue=["red", "blue"], use_consensus=[1, 3], **few))
    assert both == {
        "model": ("model",),
        "calls": ("use_consensus",),
        "numbers": ("max_tokens", "spice", "temperature"),
    }


async def test_an_operator_of_one_kind_moves_nothing_else() -> None:
    where = space(temperature={"low": 0, "high": 1})
    for name, genes in kinds(where).items():
        if name == "model":
            continue  # Another model may bring demo_style and constrain along.
        operator = portfolio(Search(), where)[name]
        for seed in range(20):
            parent = where.sample(rng(seed)).replace(model="able")
            child = (await operator.vary(where, [parent], {}, echo, rng(seed))).genome
            assert {gene for gene in where.names if child[gene] != parent[gene]} <= {*genes}
            assert child != parent


def test_demos_alone_need_no_general_mutation() -> None:
    only = space(rubric="a", temperature=0, max_tokens=4, model="able", demo_style="chat", constrain=False,
                 label_names="as_is")  # fmt: skip
    assert set(portfolio(Search(), only)) == {"seed", "demos", "crossover"}
    assert set(portfolio(Search(selection="steady"), only)) == {"seed", "mutate", "crossover"}


def test_portfolio_names_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mutate'"):
        portfolio(Search(operators=("mutat",)), space())
    with pytest.raises(ConfigError, match="none of \\['rewrite'\\]"):
        portfolio(Search(operators=("rewrite",)), space(rubric="One."))
    assert set(portfolio(Search(operators=("model", "similar")), space())) == {"seed", "model"}
    with pytest.raises(ConfigError, match="got 'model'; allowed: seed, mutate, demos, crossover, rewrite, merge"):
        portfolio(Search(operators=("model",), selection="steady"), space())
