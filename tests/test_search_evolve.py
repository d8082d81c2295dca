"""Evolution by race: who gets evaluations, who is sent away, and what is compared with what."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from search_world import ITEMS, drive, search

from evocluster.records import Genome, Proposal, Trial
from evocluster.search.budget import Budget
from evocluster.search.members import blocks
from evocluster.search.operators import EVALUATE
from evocluster.search.optimizer import Optimizer
from evocluster.search.settings import Search

RACE = Search(population=8, block=8, finalists=3, lookahead=6)
TRAIN = blocks(ITEMS["train"], 8)


def ran(calls: int = 1500, settings: Search = RACE, **given: Any) -> tuple[Optimizer, list[Trial]]:
    optimizer, world = search(settings, Budget(calls=calls), **given)
    trials = drive(optimizer, world.run)
    return optimizer, sorted(trials, key=lambda trial: trial.proposal.number)


def tried(trials: list[Trial]) -> dict[str, list[int]]:
    """Blocks of each child that was made once, in order."""
    found: dict[str, list[int]] = defaultdict(list)
    made = [t.genome.id for t in trials if t.genome and t.proposal.purpose in ("seed", "search")]
    children = {t.genome.id for t in trials if t.genome and t.proposal.purpose == "search"}
    children = {id for id in children if made.count(id) == 1}
    for trial in trials:
        if trial.genome and trial.genome.id in children and trial.proposal.purpose in ("search", "extend"):
            found[trial.genome.id].append(TRAIN.index(trial.proposal.items))
    return found


def test_hopeless_children_take_fewer_examples_than_hopeful_ones() -> None:
    optimizer, trials = ran()
    from search_world import truth

    made = {t.genome.id: t.genome for t in trials if t.genome}
    taken = tried(trials)
    low = [len(taken[id]) for id in taken if truth(made[id]) < 0.5]
    high = [len(taken[id]) for id in taken if truth(made[id]) > 0.75]
    assert np.mean(low) < np.mean(high)
    race = optimizer.progress()["race"]
    assert 0.2 < race["saved"] / race["items"] < 1


def test_children_begin_on_different_blocks_and_none_is_asked_twice() -> None:
    _, trials = ran(2500)
    taken = tried(trials)
    assert len({order[0] for order in taken.values()}) > 1
    for order in taken.values():
        assert len(set(order)) == len(order)


def test_a_child_begins_on_a_block_that_its_rivals_have() -> None:
    _, trials = ran(2500)
    held: dict[str, set[int]] = defaultdict(set)
    for trial in trials:
        proposal = trial.proposal
        if proposal.purpose == "search":
            block = TRAIN.index(proposal.items)
            assert sum(block in had for had in held.values()) >= 1
        if trial.genome and proposal.purpose in ("seed", "extend", "search"):
            held[trial.genome.id].add(TRAIN.index(proposal.items))


def test_members_of_the_front_have_blocks_in_common() -> None:
    optimizer, _ = ran(2500)
    contenders = [one for one in optimizer._population.front() if len(one.blocks) > 1]
    assert contenders
    assert set.intersection(*(one.blocks for one in contenders))


def test_unfinished_races_take_part_in_the_end() -> None:
    optimizer, world = search(RACE, Budget(calls=10**6))
    flying: list[Proposal] = []
    while optimizer.searching and optimizer.committed < 80:
        while len(flying) < 6 and (proposal := optimizer.ask()) is not None:
            flying.append(proposal)
        optimizer.tell(world.run(flying.pop(0)))
    racing = optimizer.progress()["race"]["racing"]
    optimizer.stop("enough")
    drive_rest(optimizer, world.run, flying)
    assert racing > 0
    assert optimizer.progress()["race"]["racing"] == 0


def drive_rest(optimizer: Optimizer, run: Any, flying: list[Proposal]) -> None:
    for proposal in flying:
        optimizer.tell(run(proposal))
    drive(optimizer, run)


def test_a_block_that_came_to_nothing_is_asked_for_again() -> None:
    optimizer, world = search(RACE, Budget(calls=1500))
    lost: list[tuple[str, int]] = []

    def run(proposal: Proposal) -> Trial:
        if proposal.purpose == "extend" and len(lost) < 3:
            lost.append((proposal.parents[0].id, TRAIN.index(proposal.items)))
            return Trial(proposal=proposal, genome=proposal.parents[0], error="lost on the way")
        return world.run(proposal)

    trials = drive(optimizer, run)
    again = [
        (t.proposal.parents[0].id, TRAIN.index(t.proposal.items))
        for t in trials
        if t.proposal.purpose == "extend" and t.error is None
    ]
    assert lost
    assert set(lost) & set(again)


def test_screening_tries_children_that_are_believed_better() -> None:
    from search_world import truth

    def mean(screen: int) -> float:
        worth = []
        for seed in range(3):
            settings = RACE.model_copy(update={"screen": screen, "immigrants": 0.0, "restart_after": None})
            _, trials = ran(1200, settings, seed=seed)
            worth += [truth(t.genome) for t in trials if t.genome and t.proposal.operator not in ("seed", EVALUATE)]
        return float(np.mean(worth))

    assert mean(12) > mean(1)


@pytest.mark.parametrize("selection", ["generational", "random"])
def test_to_compare_with_everybody_is_tried_on_everything(selection: str) -> None:
    settings = RACE.model_copy(update={"selection": selection})
    optimizer, trials = ran(2500, settings)
    whole = tuple(item for block in TRAIN for item in block)
    searched = [t.proposal for t in trials if t.proposal.purpose in ("seed", "search")]
    assert searched
    assert all(proposal.items == whole for proposal in searched)
    assert not [t for t in trials if t.proposal.purpose == "extend"]
    assert optimizer.front()


def test_a_generation_of_plain_nsga2_waits_for_the_one_before() -> None:
    optimizer, world = search(RACE.model_copy(update={"selection": "generational"}), Budget(calls=10**5))
    flying: list[Proposal] = []
    children = 0
    while children < 20:
        while (proposal := optimizer.ask()) is not None:
            flying.append(proposal)
        children += sum(one.purpose == "search" for one in flying)
        assert len({one.purpose for one in flying}) == 1, "seeds and each generation apart"
        for one in flying:
            optimizer.tell(world.run(one))
        flying = []
    assert children % RACE.population == 0


def test_random_search_draws_from_the_whole_space() -> None:
    _, trials = ran(2500, RACE.model_copy(update={"selection": "random"}))
    assert {t.proposal.operator for t in trials if t.proposal.purpose == "search"} == {"seed"}
    assert len({t.genome for t in trials if t.genome}) > 10


def test_the_genome_of_a_screened_child_stands_in_its_proposal() -> None:
    _, trials = ran(1500, RACE.model_copy(update={"screen": 8}))
    screened = [t for t in trials if t.proposal.purpose == "search" and "genome" in t.proposal.hints]
    assert screened
    assert all(t.genome == Genome(genes=t.proposal.hints["genome"]) for t in screened)
    assert all(t.proposal.operator != EVALUATE for t in screened)
