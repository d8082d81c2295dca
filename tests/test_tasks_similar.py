"""Train dealt into demo pool and scored examples, and which of the first are like which of the second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small import write_config

from evocluster import build
from evocluster.records import Example
from evocluster.search.portfolio import portfolio
from evocluster.tasks import similar
from evocluster.tasks.dataset import Splits
from evocluster.tasks.similar import FEW, Dealt, deal, near

POOL = (
    "Book a table for two tonight",
    "What is the weather in Bern",
    "Play some jazz by Miles Davis",
    "Will it rain in Bern tomorrow",
    "Reserve a table at an Italian restaurant",
    "Where is my order",
)


def examples(inputs: Sequence[Any], prefix: str, expected: Sequence[str] = ("",)) -> tuple[Example, ...]:
    return tuple(
        Example(id=f"{prefix}{at}", input=given, expected=expected[at % len(expected)])
        for at, given in enumerate(inputs)
    )


def test_the_nearest_come_first_and_what_shares_no_word_is_left_out() -> None:
    scored = examples(("Is rain likely in Bern", "a table for four please", "zzz", "WHERE, is my ORDER?"), "s")
    found = near([Dealt(examples(POOL, "p"), scored)])
    assert found["s0"][0] == "p3"
    assert set(found["s0"]) == {"p1", "p3", "p5"}
    assert found["s1"][:2] == ("p0", "p4")
    assert found["s2"] == ()
    assert found["s3"][0] == "p5"


def test_function_words_count() -> None:
    pool = examples(("Who painted it?", "Where was it painted?", "When did they paint it?"), "p")
    asked = examples(("Where did it happen?", "Who did that?", "When is it?"), "s")
    assert [ids[0] for ids in near([Dealt(pool, asked)]).values()] == ["p1", "p0", "p2"]


def test_only_inputs_are_compared_and_an_example_is_not_its_own_neighbour() -> None:
    inputs = [{"question": text, "lang": "en"} for text in POOL]
    one = examples(inputs, "p", ("spam", "rain in Bern"))
    other = examples(inputs, "p", ("Book a table",))
    found = near([Dealt(one, one)])
    assert found == near([Dealt(other, other)])
    assert found["p1"][0] == "p3"
    assert all(id not in ids for id, ids in found.items())


def test_tasks_are_kept_apart_and_lists_are_short() -> None:
    many = examples(["the same words again"] * 20, "a/")
    found = near([Dealt(many, many), Dealt(examples(POOL, "b/p"), examples(("the same words", "a table"), "b/s"))])
    assert found["a/0"] == tuple(f"a/{at}" for at in range(1, FEW + 1)), "equals in the order of the pool"
    assert found["a/19"] == tuple(f"a/{at}" for at in range(FEW))
    assert found["b/s0"] == ("b/p1",) or all(id.startswith("b/") for id in found["b/s0"])
    assert found["b/s1"][0] == "b/p0"
    assert found == near(
        [Dealt(many, many), Dealt(examples(POOL, "b/p"), examples(("the same words", "a table"), "b/s"))]
    )


def test_other_scripts_and_texts_without_words() -> None:
    pool = examples(("今天天气怎么样", "预订一张桌子", "播放音乐"), "p")
    assert near([Dealt(pool, examples(("明天天气好吗", "订桌子"), "s"))])["s0"][0] == "p0"
    assert near([Dealt(examples(("!", "?"), "p"), examples(("why?",), "s"))]) == {"s0": ()}
    assert near([Dealt((), examples(("why?",), "s"))]) == {"s0": ()}
    assert near([]) == {}


def test_large_sets_are_compared_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "COMPARED", 3)
    found = near([Dealt(examples(POOL, "p"), examples(POOL, "s"))])
    assert set(found) == {"s0", "s1", "s2"}
    assert {id for ids in found.values() for id in ids} <= {"p0", "p1", "p2"}


@pytest.mark.parametrize("share", [None, 1, 0.5, 0.1])
def test_dealing_keeps_every_example_and_a_scored_one(share: float | None) -> None:
    train = examples([f"text {at}" for at in range(12)], "t", ("a", "b", "c"))
    pool, scored = deal(Splits(train, (), ()), share)
    if share is None or share == 1:
        assert pool == scored == train
        return
    assert len(pool) == max(1, round(share * 12))
    assert {one.id for one in pool}.isdisjoint(one.id for one in scored)
    assert sorted(one.id for one in (*pool, *scored)) == sorted(one.id for one in train)
    if share == 0.5:
        assert sorted(one.expected for one in pool) == ["a", "a", "b", "b", "c", "c"]


def test_a_plan_compares_where_demos_are_free(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    found = build.plan(path)
    assert found.space.shots is not None
    pool = {one.id for one in found.splits.train} - found.scored
    assert set(found.space.near) == set(found.scored)
    assert all(ids and set(ids) <= pool for ids in found.space.near.values())
    assert {"similar", "disputed"} <= set(portfolio(found.config.search, found.space))
    assert build.plan(path, ["search.selection=steady"]).space.near == {}
    assert build.plan(path, ["space.demos=[]"]).space.near == {}
