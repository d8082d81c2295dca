"""Few-shot operators: typed moves of the demos, and demos near to examples that fail or that divide the population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from contract_operator import OperatorContract
from hypothesis import given
from hypothesis import strategies as st
from search_world import LABELS, POOL, drive, echo, search, space

from evocluster.errors import OperatorFailed
from evocluster.records import Genome, Json
from evocluster.search.budget import Budget
from evocluster.search.fewshot import DemoMove, Nearby
from evocluster.search.operators import Child, Operator
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search
from evocluster.search.space import Space

NEAR = {f"s{at}": tuple(f"t{(at * 5 + step * 3) % 40:03}" for step in range(8)) for at in range(12)}
"""Scored example -> eight of the pool, of all labels in turn."""
MODELS = {"able": space().abilities("able"), "chatty": space().abilities("chatty")}


def world(**changes: Any) -> Space:
    """The usual space, whose pool has been compared with scored examples."""
    usual = space(**changes)
    return Space(usual.settings, pool=POOL, models=MODELS, label_names=("as_is", "spaced", "letters"), near=NEAR)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestDemoMove(OperatorContract):
    def operator(self) -> Operator:
        return DemoMove()


class TestSimilar(OperatorContract):
    def operator(self) -> Operator:
        return Nearby()

    def space(self, **changes: Any) -> Space:
        return world(**changes)

    def hints(self) -> Mapping[str, Any]:
        return {"failing": ("s1", "s4", "unknown")}


class TestDisputed(TestSimilar):
    def operator(self) -> Operator:
        return Nearby(name="disputed", by="disputed")

    def hints(self) -> Mapping[str, Any]:
        return {"disputed": ("s1", "s4")}


async def made(operator: Operator, where: Space, demos: tuple[str, ...], seed: int, **hints: Json) -> Child:
    parent = where.sample(rng(7)).replace(demos=demos)
    child = await operator.vary(where, [parent], hints, echo, rng(seed))
    assert child.genome == parent.replace(demos=child.genome["demos"])
    return child


async def test_every_typed_move_comes_and_is_told() -> None:
    where, demos, moves = world(), tuple(f"t{at:03}" for at in range(4)), set[str]()
    for seed in range(120):
        child = await made(DemoMove(), where, demos, seed)
        now, notes = child.genome["demos"], child.notes
        moves.add(notes["move"])
        assert set(notes["added"]) == set(now) - set(demos)
        assert set(notes["dropped"]) == set(demos) - set(now)
        changed = len(notes["added"]), len(notes["dropped"])
        if notes["move"] in ("add", "drop", "swap", "twin", "shuffle"):
            assert changed == {"add": (1, 0), "drop": (0, 1), "shuffle": (0, 0)}.get(notes["move"], (1, 1))
        if notes["move"] == "twin":
            assert int(notes["added"][0][1:]) % LABELS == int(notes["dropped"][0][1:]) % LABELS
    assert moves == {"add", "drop", "swap", "twin", "shuffle", "round", "less", "anew"}


async def test_demos_come_from_near_the_examples_that_fail() -> None:
    where, pool = world(), {*NEAR["s1"], *NEAR["s4"]}
    ranks = []
    for seed in range(60):
        child = await made(Nearby(), where, ("t000", "t013"), seed, failing=("s1", "s4", "unknown"))
        added = child.notes["added"]
        assert added
        assert {*added} <= pool
        assert child.notes["by"] == ["s1", "s4"]
        ranks += [NEAR["s1"].index(id) for id in added if id in NEAR["s1"]]
    assert ranks.count(0) > 2 * ranks.count(3), "the nearest most often"
    assert max(ranks) > 0


async def test_a_full_prompt_keeps_its_labels_as_even_as_they_are() -> None:
    where = world(demos={"max": 8})
    full = tuple(f"t{at:03}" for at in range(8))
    for seed in range(40):
        child = await made(Nearby(), where, full, seed, failing=tuple(NEAR))
        groups = [int(id[1:]) % LABELS for id in child.genome["demos"]]
        assert len(groups) == 8
        assert {groups.count(label) for label in range(LABELS)} == {2}


async def test_known_children_are_drawn_again() -> None:
    where = world()
    first = (await made(Nearby(), where, (), 3, failing=("s1",))).genome
    again = (await made(Nearby(), where, (), 3, failing=("s1",), avoid=(first.id,))).genome
    assert again != first


async def test_it_says_why_it_cannot_act() -> None:
    with pytest.raises(OperatorFailed, match="similar: no failing example has a demo near to it"):
        await made(Nearby(), world(), (), 0, failing=("unknown",))
    with pytest.raises(OperatorFailed, match=r"demos: the space has no free demos; write `demos: \{max: 8\}`"):
        await DemoMove().vary(space(demos=[]), [space(demos=[]).sample(rng())], {}, echo, rng())


@given(
    st.integers(0, 10**6),
    st.sets(st.sampled_from([one.id for one in POOL]), max_size=14),
    st.integers(1, 12),
    st.integers(0, 4),
    st.sets(st.sampled_from(sorted(NEAR)), min_size=1),
)
def test_demos_stay_distinct_examples_of_the_pool(
    seed: int, demos: set[str], most: int, least: int, failing: set[str]
) -> None:
    where = world(demos={"max": most, "min": min(most, least)})
    parent = where.sample(rng(seed)).replace(demos=tuple(sorted(demos)))
    for operator in (Nearby(), DemoMove()):
        steps = operator.vary(where, [parent], {"failing": tuple(sorted(failing))}, echo, rng(seed))
        with pytest.raises(StopIteration) as end:
            steps.send(None)
        child: Genome = end.value.value.genome
        now = child["demos"]
        assert where.contains(child)
        assert len(set(now)) == len(now)
        assert min(most, least) <= len(now) <= most
        assert set(now) <= {one.id for one in POOL}


def test_they_are_in_the_portfolio_where_examples_were_compared() -> None:
    assert {"similar", "disputed"} <= set(portfolio(Search(), world()))
    assert {"similar", "disputed"}.isdisjoint(portfolio(Search(), space()))
    assert {"similar", "disputed", "demos"}.isdisjoint(portfolio(Search(), world(demos=[])))
    assert {"similar", "disputed"}.isdisjoint(portfolio(Search(selection="steady"), world()))


def test_a_whole_search_uses_them() -> None:
    near = {f"t{at:03}": tuple(f"t{(at + step) % 40:03}" for step in range(4, 36, 4)) for at in range(40)}
    usual = space()
    where = Space(usual.settings, pool=POOL, models=MODELS, label_names=("as_is", "spaced", "letters"), near=near)
    settings = Search(population=8, block=8, finalists=3, operators=("similar", "disputed"), immigrants=0.2)
    optimizer, there = search(settings, Budget(generations=5), where)
    trials = drive(optimizer, there.run)
    used = {trial.proposal.operator for trial in trials if trial.proposal.purpose == "search" and trial.genome}
    assert {"similar", "disputed"} <= used
    assert all({*trial.notes.get("by", ())} <= {*near} for trial in trials)
    uses = optimizer.progress()["operators"]
    assert uses["similar"]["uses"] + uses["disputed"]["uses"] > 10
