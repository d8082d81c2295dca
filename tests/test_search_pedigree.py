"""Lines of descent and what breeding is told of them: elites in order of time, ranks, twins left out, bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from breed_world import BREED, breeding
from search_world import drive

from evocluster.records import Genome, Proposal, Trial
from evocluster.search import breed_hints
from evocluster.search.ground import Ground
from evocluster.search.hints import collect
from evocluster.search.operators import Crossover
from evocluster.search.pedigree import CLIPPED, ELITES, Pedigree
from evocluster.search.population import Individual


def unit(rubric: str, quality: float, parents: Sequence[Individual] = (), **notes: str) -> Individual:
    one = Individual(
        Genome(genes={"rubric": rubric}),
        make=lambda split: pytest.fail("nothing is counted here"),
        parents=tuple(parent.genome.id for parent in parents),
    )
    one.careful = (quality, quality)
    one.notes = notes
    return one


def ground(members: Sequence[Individual]) -> Ground:
    """A ground with these members."""
    made: Ground = breeding(BREED.model_copy(update={"population": 40}))[0]._ground
    for one in members:
        made.population.insert(one)
    return made


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_line_holds_the_ancestors_that_were_the_best_of_their_time() -> None:
    pedigree = Pedigree()
    first = unit("first", 0.2)
    members: list[Individual] = []
    for one in (
        first,
        worse := unit("worse", 0.1, [first]),
        better := unit("better", 0.5, [worse]),
        equal := unit("equal", 0.5, [better]),
        best := unit("best", 0.6, [equal]),
    ):
        pedigree.seen(one, members)
        members.append(one)
    assert pedigree.of(best.genome.id) == ("first", "better", "best")
    assert pedigree.of(worse.genome.id) == ("first",)
    assert pedigree.of("somebody") == ()


def test_who_becomes_the_best_later_is_an_elite_of_the_children_born_after() -> None:
    pedigree = Pedigree()
    king, slow = unit("king", 0.5), unit("slow", 0.1)
    early, late = unit("early", 0.0, [slow]), unit("late", 0.0, [slow])
    for one in (king, slow, early):
        pedigree.seen(one, [king, slow])
    slow.careful = (0.9, 0.9)
    pedigree.seen(slow, [king, slow])
    pedigree.seen(late, [king, slow])
    assert (pedigree.of(early.genome.id), pedigree.of(late.genome.id)) == ((), ("slow",))


def test_the_line_of_an_ancestor_that_left_the_population_goes_on() -> None:
    pedigree = Pedigree()
    old = unit("old", 0.4, mutation_prompt="Be brave.")
    pedigree.seen(old, [])
    child = unit("child", 0.5, [old])
    pedigree.seen(child, [])
    assert pedigree.of(child.genome.id) == ("old", "child")
    assert pedigree.inherited(child.parents) == {"mutation_prompt": "Be brave."}
    assert pedigree.inherited([child.genome.id]) == pedigree.inherited([]) == pedigree.inherited(["gone"]) == {}


def test_what_is_remembered_is_bounded() -> None:
    pedigree = Pedigree(kept=50)
    one = unit("0 " + "x" * 5000, 0.0)
    for number in range(1, 300):
        pedigree.seen(one, [])
        one = unit(f"{number} " + "x" * 5000, number / 300, [one])
    pedigree.seen(one, [])
    line = pedigree.of(one.genome.id)
    assert len(pedigree) == 50
    assert len(line) == ELITES
    assert [text.split()[0] for text in line] == [str(number) for number in range(300 - ELITES, 300)]
    assert {len(text) for text in line} == {CLIPPED}


def test_ranked_ascends_and_shows_one_of_near_twins() -> None:
    long = "Read the message and name the one queue that it belongs to, in a single word"
    members = [
        unit(f"{long}.", 0.3),
        unit(f"{long}!", 0.8),
        unit("Sort.", 0.5),
        unit("What is it?", 0.1),
        unit("z" * 900, 0.9),
    ]
    told = breed_hints.ranked(ground(members), members, rng())
    assert told == ["What is it?", "Sort.", f"{long}!", "z" * CLIPPED]


def test_ranked_shows_the_best_and_not_many() -> None:
    words = ("ash", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper", "kapok", "larch")
    members = [unit(f"{word} {number}" * 3, number / 20) for number, word in enumerate(words)]
    told = breed_hints.ranked(ground(members[::-1]), members, rng())
    assert told == [one.genome["rubric"] for one in members[-breed_hints.SHOWN :]]


def test_equal_prompts_count_once_with_the_best_of_their_members() -> None:
    low, high = unit("same", 0.2), unit("same", 0.9)
    high.genome = high.genome.replace(temperature=1)
    told = breed_hints.ranked(ground([low, high, unit("other", 0.5)]), [], rng())
    assert told == ["other", "same"]


@pytest.mark.parametrize(("one", "other", "alike"), [("abcdefghij", "abcdefghij!", True), ("abc", "xyz", False)])
def test_twins(one: str, other: str, alike: bool) -> None:
    assert breed_hints.twins(one, other) is alike


def test_hints_are_told_under_their_names_and_right_cases_as_cases() -> None:
    optimizer, world = breeding()
    drive(optimizer, world.run)
    here = optimizer._ground
    winner = max(here.population.members, key=lambda one: len(one.cases.right))
    told = {name: collect(here, operator, [winner, winner], rng()) for name, operator in here.operators.items()}
    assert told["zero_order"]["description"] == "Do the task."
    assert told["first_order"]["mutation_prompt"] == winner.notes["mutation_prompt"]
    assert told["lineage"]["lineage"] == list(here.pedigree.of(winner.genome.id)) != []
    assert told["ranked"]["ranked"] == told["distribution"]["ranked"]
    examples = [case["example"] for case in told["lamarck"]["cases"]]
    assert set(examples) <= {case.example for case in winner.cases.right}
    assert [set(case) for case in told["lamarck"]["cases"]] == [{"example", "twin", "output", "right"}] * 3


def test_a_child_of_an_operator_that_knows_nothing_of_it_inherits_the_mutation_prompt() -> None:
    here: Any = breeding()[0]._ground
    mother = unit("mother", 0.5, mutation_prompt="Be brave.")
    here.pedigree.seen(mother, [])
    proposal = Proposal(number=1, operator=Crossover().name, parents=(mother.genome,))
    child = Genome(genes={"rubric": "child"})
    assert here.born(proposal, Trial(proposal=proposal), child).notes == {"mutation_prompt": "Be brave."}
    told = Trial(proposal=proposal, notes={"mutation_prompt": "Be wise."})
    assert here.born(proposal, told, child).notes == {"mutation_prompt": "Be wise."}
