"""Restarts: when they are due, who stays, and what comes in their place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_world import space

from evocluster.records import Evaluation, Genome, Item, Usage
from evocluster.search.objectives import Composite, Objective, Tally
from evocluster.search.population import Individual, Population
from evocluster.search.restart import Restart
from evocluster.search.settings import Search

TWO = (Objective.model_validate("quality"), Objective.model_validate("cost_usd"))


@pytest.mark.parametrize(
    ("history", "due"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5, 0.5], False),
        ([0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.5, 0.6, 0.6], False),
        ([0.5, 0.6, 0.6, 0.6, 0.6], True),
        ([0.5, 0.7, 0.6, 0.6, 0.65], True),
        ([0.0, 0.0, 0.0, 0.0], True),
    ],
)
def test_due_after_generations_without_progress(history: list[float], due: bool) -> None:
    assert Restart(3).due(history) is due
    assert not Restart(None).due(history)


def test_a_restart_is_given_time() -> None:
    restart = Restart(2)
    history = [0.5, 0.5, 0.5]
    assert restart.due(history)
    restart.began(history)
    due = []
    for value in (0.5, 0.5, 0.5, 0.9, 0.9, 0.9):
        history.append(value)
        due.append(restart.due(history))
    assert due == [False, True, True, False, False, True]
    assert restart.count == 1


def people(values: list[tuple[int, float]]) -> Population:
    """Members that get so many of 20 examples right at such a cost."""
    found = Population(len(values), TWO)
    for n, (right, usd) in enumerate(values):
        one = Individual(Genome(genes={"rubric": str(n)}), lambda split: Tally(Composite()))
        one.learn(
            [
                Evaluation(
                    item=Item(split="train", example=f"e{at}"),
                    quality=float(at < right),
                    validator=float(at < right),
                    usage=Usage(calls=1, usd=usd),
                )
                for at in range(20)
            ],
            TWO,
            20,
        )
        found.insert(one)
    return found


def test_the_best_stay() -> None:
    found = people([(20, 0.9), (15, 0.5), (10, 0.1), (9, 0.8), (8, 0.8), (7, 0.9), (2, 0.9), (1, 0.9)])
    kept = [found.get(id) for id in Restart.keep(found)]
    names = [one.genome["rubric"] for one in kept if one is not None]
    assert len(names) == 4
    assert set(names[:2]) == {"0", "2"}, "elites and extremes"
    assert set(names) == {"0", "1", "2", "3"}
    found.retain([one.genome.id for one in kept if one is not None])
    assert len(found) == 4
    assert len(found.front()) == 3


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.integers(0, 99))
def test_what_is_fresh_is_new_inside_and_far(count: int, seed: int) -> None:
    where = space()
    rng = np.random.default_rng(seed)
    stay = [where.sample(rng) for _ in range(4)]
    known = {one.id for one in stay}
    fresh = Restart.fresh(where, known, np.random.default_rng(seed), count, stay)
    assert len(fresh) == len({one.id for one in fresh} - known) == count
    assert all(where.contains(one) for one in fresh)
    assert fresh == Restart.fresh(where, known, np.random.default_rng(seed), count, stay)


def test_the_fresh_lie_farther_from_what_stays_than_chance_has_it() -> None:
    where = space(demos=[], rubric={"texts": ["Sort this.", "Which queue is it?"], "fixed": True})
    rng = np.random.default_rng(1)
    (one,) = stay = [where.sample(rng)]

    def apart(many: list[Genome]) -> float:
        return float(np.mean([sum(other[name] != one[name] for name in where.free) for other in many]))

    fresh = Restart.fresh(where, {one.id}, rng, 3, stay)
    assert apart(fresh) > apart([where.sample(rng) for _ in range(200)]) + 0.5


def test_some_of_the_fresh_lie_near_what_stays() -> None:
    where = space(mine={"low": 0, "high": 1000})
    rng = np.random.default_rng(2)
    stay = [where.complete({"rubric": "Evolved beyond all seeds."})]
    fresh = Restart.fresh(where, set(), rng, 24, stay)
    crossed = [one for one in fresh if one["rubric"] == "Evolved beyond all seeds."]
    assert 1 <= len(crossed) <= 24 // 4
    assert not any(one["rubric"] == "Evolved beyond all seeds." for one in Restart.fresh(where, set(), rng, 24))


def test_a_small_space_has_fewer() -> None:
    where = space(rubric="One.", temperature=0, max_tokens=[4, 8], model="able", demos=[], demo_style="chat",
                  constrain=[False, True], label_names="as_is")  # fmt: skip
    known = {where.complete({"max_tokens": 4}).id}
    fresh = Restart.fresh(where, known, np.random.default_rng(0), 10)
    assert len(fresh) == 3
    assert Restart.fresh(where, {*known, *(one.id for one in fresh)}, np.random.default_rng(0), 10) == []


def test_the_setting() -> None:
    assert Search().restart_after == 3
    assert Search.model_validate({"restart_after": None}).restart_after is None
