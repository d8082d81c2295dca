"""Which operator makes the next child, and of whom; what it is told of the population."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from search_world import evaluate, search, space
from test_search_fewshot import NEAR, world

from evocluster.records import Evaluation, Genome, Item, Score
from evocluster.search.ground import Ground
from evocluster.search.hints import FEW, collect, disputed, failing
from evocluster.search.mating import mates, pick_operator
from evocluster.search.population import Individual
from evocluster.search.settings import Search
from evocluster.search.space import Space

EXAMPLES = tuple(NEAR)


def rng(seed: int | list[int] = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ground(answers: Mapping[str, Sequence[float]], where: Space | None = None, **changes: Any) -> Ground:
    """A population whose members have these rubrics and this quality on each of the examples s0, s1, ..."""
    where = where or world()
    settings = Search(population=20, block=4, **{"immigrants": 0.0, **changes})
    items = tuple(Item(split="train", example=id) for id in EXAMPLES)
    optimizer, _ = search(settings, where=where, items={"train": items, "validation": items, "test": items})
    found = optimizer._ground
    found.population.refer()
    for at, (rubric, qualities) in enumerate(answers.items()):
        one = found.make(where.sample(rng(at)).replace(rubric=rubric.rstrip("'")), "seed", 0, ())
        done = [answered(one.genome, item, value) for item, value in zip(items, qualities, strict=False)]
        one.learn(done, found.objectives, len(found.index))
        found.population.insert(one)
    return found


def answered(genome: Genome, item: Item, quality: float) -> Evaluation:
    score = {"label": Score(value=quality)}
    return evaluate(genome, item).model_copy(update={"quality": quality, "validator": quality, "scores": score})


def drawn(found: Ground, count: int = 200) -> list[tuple[str, list[Individual]]]:
    return [pick_operator(found, rng(seed)) for seed in range(count)]


DIFFERENT = {"Sort.": (1, 0, 1, 0), "Name it.": (0, 1, 1, 1), "Which?": (0, 0, 0, 1)}


def test_every_operator_is_drawn_with_parents_that_suit_it() -> None:
    found = ground(DIFFERENT)
    seen = drawn(found, 400)
    assert {name for name, _ in seen} == set(found.operators) - {"seed"}
    for name, parents in seen:
        assert len(parents) == found.operators[name].arity
        if name == "merge":
            assert parents[0].genome["rubric"] != parents[1].genome["rubric"]
        if name == "crossover":
            assert parents[0] is not parents[1]


def test_merge_is_left_out_while_all_rubrics_are_equal() -> None:
    found = ground({"Sort.": (1, 0), "Sort.'": (0, 1), "Sort.''": (0, 0)})
    names = Counter(name for name, _ in drawn(found, 300))
    assert "merge" not in names
    assert names["crossover"] > 0


def test_merge_finds_the_one_other_rubric() -> None:
    found = ground({**{f"Sort.{chr(39) * at}": (1, 1) for at in range(9)}, "Name it.": (0, 0)})
    for seed in range(60):
        parents = mates(found, found.operators["merge"], rng(seed))
        if parents is not None:
            assert {one.genome["rubric"] for one in parents} == {"Sort.", "Name it."}


def test_one_member_alone_is_not_crossed() -> None:
    names = {name for name, _ in drawn(ground({"Sort.": (1, 0, 1)}))}
    assert {"merge", "crossover", "disputed"}.isdisjoint(names)
    assert {"mutate", "rewrite", "similar"} <= names


def test_without_failures_or_disagreement_nothing_is_near_to_them() -> None:
    names = {name for name, _ in drawn(ground({"Sort.": (1, 1, 1), "Name it.": (1, 1, 1)}))}
    assert {"similar", "disputed"}.isdisjoint(names)
    assert "disputed" in {name for name, _ in drawn(ground({"Sort.": (1, 1, 1), "Name it.": (1, 0, 1)}))}


def test_similar_gets_a_parent_that_fails() -> None:
    found = ground({"Sort.": (1, 1, 1), "Name it.": (1, 0, 1)})
    for seed in range(40):
        parents = mates(found, found.operators["similar"], rng(seed))
        assert parents is None or parents[0].genome["rubric"] == "Name it."


def test_immigrants_come_by_their_share_and_where_nobody_is() -> None:
    names = Counter(name for name, _ in drawn(ground(DIFFERENT, immigrants=0.3), 400))
    assert 80 < names["seed"] < 160
    assert pick_operator(ground({}), rng()) == ("seed", [])
    only = ground({"Sort.": (1, 1)}, operators=("merge",))
    assert pick_operator(only, rng()) == ("seed", [])


def test_draws_repeat() -> None:
    one, other = ground(DIFFERENT), ground(DIFFERENT)
    told = [[(name, [p.genome.id for p in parents]) for name, parents in drawn(each, 60)] for each in (one, other)]
    assert told[0] == told[1]


def test_failing_names_the_worst_first() -> None:
    found = ground({"Sort.": (1, 0.6, 0, 1, 0.3)})
    parent = found.population.members
    assert failing(found, parent, rng()) == ("s2", "s4", "s1")
    many = ground({"Sort.": (0,) * len(EXAMPLES)})
    orders = {failing(many, many.population.members, rng(seed)) for seed in range(5)}
    assert len(orders) == 5, "equals in random order"
    assert all(len(set(ids)) == min(FEW, len(EXAMPLES)) for ids in orders)


def test_disputed_names_what_divides_most_first() -> None:
    found = ground({"Sort.": (1, 1, 0, 1), "Name it.": (1, 0, 0.4, 1), "Which?": (1, 0, 0, 1), "Say.": (1, 1)})
    assert disputed(found, (), rng()) == ("s1", "s2")


def test_hints_of_a_proposal_are_those_its_operator_needs() -> None:
    found = ground(DIFFERENT)
    parents = [one for one in found.population.members if one.genome["rubric"] == "Which?"]
    child = parents[0].genome.replace(max_tokens=4 if parents[0].genome["max_tokens"] != 4 else 8)
    found.tabu.reject(child, parents[0].genome.id)
    told = collect(found, found.operators["similar"], parents, rng())
    assert set(told) == {"avoid", "failing", "tabu"}
    assert set(told["failing"]) == {"s0", "s1", "s2"}
    assert told["tabu"] == ({"of": 0, "genes": {"max_tokens": child["max_tokens"]}},)
    steady = ground(DIFFERENT, selection="steady")
    assert {*collect(steady, steady.operators["demos"], parents, rng())} == {"avoid"}


@pytest.mark.parametrize("seed", range(3))
def test_a_member_that_alone_masters_an_example_becomes_a_parent(seed: int) -> None:
    """Like GEPA's draw by wins: seldom for one example of ten, more often for three, though its mean is the lowest."""
    rows = {
        "Sort.": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
        "Name it.": (1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
        "Which?": (0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
    }
    found = ground(rows)
    wins = Counter(str(found.population.winner(rng([seed, at])).genome["rubric"]) for at in range(600))
    assert 35 < wins["Which?"] < 95, "one example in ten"
    assert wins["Sort."] > wins["Which?"] > 0
    assert wins["Name it."] == 0, "it wins nothing that another does not"
    more = ground({**rows, "Which?": (0, 0, 0, 0, 0, 0, 1, 1, 1, 1), "Sort.": (1, 1, 1, 1, 1, 1, 0, 0, 0, 0)})
    again = Counter(str(more.population.winner(rng([seed, at])).genome["rubric"]) for at in range(600))
    assert again["Which?"] > 1.5 * wins["Which?"]


def test_ids_stand_as_in_by_example() -> None:
    found = ground({"Sort.": (1, 0.5)})
    one = found.population.members[0]
    assert found.ids == EXAMPLES
    assert dict(zip(found.ids, one.by_example.tolist(), strict=True))["s1"] == 0.5
    assert space().near == {}
