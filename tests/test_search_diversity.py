"""Who is there twice: members that nothing measured tells apart stand on a front once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_world import drive, search

from evocluster.records import Evaluation, Genome, Item, Usage
from evocluster.search.budget import Budget
from evocluster.search.diversity import distinct, near, same, slack, twins
from evocluster.search.feasible import NONE, Limits
from evocluster.search.objectives import FOUR, Composite, Floats, Objective, Tally
from evocluster.search.population import Individual, Population
from evocluster.search.settings import Search

THREE = tuple(Objective.model_validate(name) for name in ("quality", "latency_ms", "cost_usd"))
EXAMPLES = 16


def rows(right: str, usd: float = 1e-3, seconds: float = 0.1, first: int = 0, spread: float = 0.2) -> list[Evaluation]:
    """An evaluation a letter: '1' right, '0' wrong, '-' not asked."""
    found = []
    for n, letter in enumerate(right, first):
        if letter != "-":
            value = float(letter)
            usage = Usage(calls=1, usd=usd, seconds=seconds * (1 + spread * (-1) ** n))
            item = Item(split="train", example=f"e{n:02}")
            found.append(Evaluation(item=item, quality=value, validator=value, usage=usage))
    return found


INDEX = {f"e{n:02}": n for n in range(EXAMPLES)}


def tally(*given: Any, **more: Any) -> Tally:
    made = Tally(Composite(), index=dict(INDEX))
    made.add(rows(*given, **more))
    return made


RIGHT = "1101110111011101"


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        (tally(RIGHT), 1),
        (tally(RIGHT[:8]), 1),  # the same on all that both have
        (tally(RIGHT[:7]), 2),  # too little in common to say so
        (tally("--------" + RIGHT[8:]), 1),
        (tally(RIGHT[:15] + "0"), 2),  # right elsewhere
        (tally("0" + RIGHT[1:]), 2),
        (tally(RIGHT, usd=1.009e-3), 1),
        (tally(RIGHT, usd=1.02e-3), 2),  # dearer
        (tally(RIGHT, seconds=0.103), 1),  # within the noise
        (tally(RIGHT, seconds=0.2), 2),  # slower for sure
    ],
)
def test_what_makes_two_alike(other: Tally, kept: int) -> None:
    assert len(distinct([tally(RIGHT), other], THREE, EXAMPLES)) == kept


def test_an_objective_of_its_own_tells_apart() -> None:
    robust = (*THREE, Objective.model_validate("robustness"))
    flagged = Tally(Composite(), index=dict(INDEX))
    flagged.add([one.model_copy(update={"flags": ("pii",)}) for one in rows(RIGHT)])
    assert distinct([tally(RIGHT), flagged], THREE, EXAMPLES) == [0]
    assert distinct([tally(RIGHT), flagged], robust, EXAMPLES) == [0, 1]


def test_what_was_not_measured_is_no_evidence() -> None:
    nothing = Tally(Composite(), index=dict(INDEX))
    assert distinct([nothing, nothing], THREE, EXAMPLES) == [0, 1]
    assert distinct([], THREE, EXAMPLES) == []
    assert slack(nothing, THREE).tolist() == [np.inf, 0.0, 0.0]


tables = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=n, max_size=n),
        st.lists(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=9, max_size=9), min_size=n, max_size=n),
    )
)


@settings(max_examples=80, deadline=None)
@given(tables)
def test_laws_of_twins(table: tuple[list[list[int]], list[list[float]]]) -> None:
    values = np.array(table[0], dtype=np.float64)
    outcomes = np.array(table[1])[:, None, :]
    room: Floats = np.full(values.shape, 0.4)
    found = twins(values, room, outcomes)
    for at, first in enumerate(found.tolist()):
        assert first <= at
        assert found[first] == first, "the twin of a twin is the first of them"
        if first != at:
            both = ~np.isnan(outcomes[at]) & ~np.isnan(outcomes[first])
            assert both.sum() >= 8
            assert (outcomes[at] == outcomes[first])[both].all()
            assert near(values[[first]], room[[first]], values[at], room[at]).all()
    for at in range(len(values)):
        firsts = [one for one in range(at) if found[one] == one]
        alike = near(values[firsts], room[firsts], values[at], room[at]) & same(outcomes[firsts], outcomes[at])
        assert found[at] == next((one for one, is_so in zip(firsts, alike, strict=True) if is_so), at)
    kept = [at for at, first in enumerate(found.tolist()) if at == first]
    assert twins(values[kept], room[kept], outcomes[kept]).tolist() == list(range(len(kept)))


def individual(name: str, right: str, limits: Limits = NONE, **given: Any) -> Individual:
    def make(split: str) -> Tally:
        return Tally(Composite(), index=dict(INDEX))

    one = Individual(Genome(genes={"rubric": name}), make, limits=limits)
    one.learn(rows(right, **given), THREE, EXAMPLES)
    return one


def test_the_older_stays() -> None:
    found = Population(4, THREE, distinct=True)
    assert found.insert(individual("old", RIGHT))
    assert not found.insert(individual("new", RIGHT, usd=0.999e-3))
    assert found.insert(individual("other", RIGHT, usd=0.5e-3))
    assert [one.genome["rubric"] for one in found.members] == ["old", "other"]
    plain = Population(4, THREE)
    assert plain.insert(individual("old", RIGHT))
    assert plain.insert(individual("new", RIGHT))
    assert len(plain) == 2


def test_a_member_put_in_again_is_not_its_own_twin() -> None:
    found = Population(4, THREE, distinct=True)
    one = individual("old", RIGHT)
    assert found.insert(one)
    assert found.insert(one)
    assert len(found) == 1


def test_the_one_that_keeps_the_constraints_stays() -> None:
    limits = Limits(("cost_usd <= 0.001",))
    found = Population(4, THREE, distinct=True)
    found.insert(individual("dear", RIGHT, limits, usd=1.005e-3))
    assert found.insert(individual("fits", RIGHT, limits, usd=1e-3))
    assert [one.genome["rubric"] for one in found.members] == ["fits"]


def test_members_that_have_become_alike_stand_on_the_front_once() -> None:
    found = Population(4, THREE, distinct=True)
    one, other = individual("old", RIGHT[:8]), individual("new", "--------" + RIGHT[8:], usd=1.005e-3, seconds=0.09)
    assert found.insert(one)
    assert found.insert(other)
    assert len(found.front()) == 2
    other.learn(rows(RIGHT[:8], usd=1.005e-3, seconds=0.09), THREE, EXAMPLES)
    found.changed()
    assert [member.genome["rubric"] for member in found.front()] == ["old"]
    assert len(found) == 2


def test_a_search_has_no_two_alike_unless_it_is_the_earlier_one() -> None:
    def alike(selection: str) -> int:
        given = Search.model_validate({"population": 12, "block": 8, "finalists": 3, "selection": selection})
        optimizer, world = search(given, Budget(generations=4), objectives=FOUR[:1])
        drive(optimizer, world.run)
        members = optimizer._population.front()
        tallies = [one.tally("train") for one in members]
        return len(members) - len(distinct(tallies, FOUR[:1], 40))

    assert alike("race") == 0
