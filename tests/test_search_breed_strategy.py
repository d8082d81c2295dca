"""Breeding as a strategy: it climbs, mutation prompts live on, and it is as reproducible as any search here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from breed_world import ABLE, BREED, GENES, IDLE, USEFUL, BreedWorld, breeding, worth
from search_world import ITEMS, POOL, drive

from evocluster.errors import ConfigError, OperatorFailed
from evocluster.llm.client import Reply, Request
from evocluster.records import Proposal, Trial
from evocluster.search.breed_words import MUTATIONS
from evocluster.search.budget import Budget
from evocluster.search.operators import BREED as NINE
from evocluster.search.operators import EVALUATE
from evocluster.search.optimizer import Optimizer
from evocluster.search.space import Space


def finished(calls: int = 900, **given: Any) -> tuple[Optimizer, list[Trial]]:
    optimizer, world = breeding(budget=Budget(calls=calls), **given)
    return optimizer, in_order(drive(optimizer, world.run))


def in_order(trials: list[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: trial.proposal.number)


def children(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.proposal.purpose == "search"]


def test_it_climbs() -> None:
    for seed in range(2):
        optimizer, trials = finished(1500, seed=seed)
        best = next(member for member in optimizer.front() if member.recommended)
        start = optimizer.start_member
        assert start is not None
        assert worth(best.genome) > worth(start.genome) + 0.2
        assert best.test["quality"].value > start.test["quality"].value + 0.2
        assert best.generation >= 3
        assert {trial.proposal.operator for trial in children(trials)} == {*NINE} - {"context"}


def test_context_takes_part_where_there_are_demos_to_shuffle() -> None:
    optimizer, trials = finished(genes={"demos": {"max": 4}}, pool=POOL)
    assert {trial.proposal.operator for trial in children(trials)} == {*NINE}
    chances = {state["probability"] for state in optimizer.progress()["operators"].values()}
    assert chances == {1 / 9}


def test_a_population_without_genomes_is_filled_from_the_description() -> None:
    _, trials = finished()
    seeds = [trial for trial in trials if trial.proposal.purpose == "seed"]
    assert {trial.proposal.operator for trial in seeds} == {EVALUATE}
    first = children(trials)[: BREED.population - 1]
    assert {trial.proposal.operator for trial in first} == {"zero_order"}
    assert {trial.proposal.hints["description"] for trial in first} == {"Do the task."}


def test_a_population_that_seeds_fill_is_not_filled_by_prompts() -> None:
    genes = {"temperature": [0, 0.5, 1.0], "max_tokens": [4, 8, 16]}
    for seed in range(4):
        _, trials = finished(700, genes=genes, seed=seed)
        first = [trial.proposal for trial in children(trials)[: BREED.variants]]
        assert len({(proposal.parents[0].id, proposal.items) for proposal in first}) == 1


def test_more_starts_than_places_compete_for_them() -> None:
    starts = tuple(Space({**GENES}, models=ABLE).complete({"rubric": f"Do {word}."}) for word in (*USEFUL, *IDLE))
    optimizer, world = breeding(
        start=starts, settings=BREED.model_copy(update={"population": 4}), budget=Budget(calls=4000)
    )
    seeds = [trial for trial in drive(optimizer, world.run) if trial.proposal.purpose == "seed"]
    assert len({trial.proposal.parents[0].id for trial in seeds}) == len(starts)
    assert len(optimizer._ground.population) == 4


def test_a_winner_gets_its_variants_on_one_block() -> None:
    _, trials = finished(settings=BREED.model_copy(update={"variants": 4}))
    turns: list[tuple[Any, ...]] = []
    for trial in trials:
        proposal = trial.proposal
        if proposal.purpose == "extend" or (proposal.purpose == "search" and not turns):
            turns.append(())
        if proposal.purpose == "search":
            turns[-1] = (*turns[-1], (proposal.parents[0].id, proposal.items))
    whole = [turn for turn in turns[1:-1] if turn]
    assert len(whole) > 5
    for turn in whole:
        assert len(turn) % 4 == 0
        for at in range(0, len(turn), 4):
            assert len(set(turn[at : at + 4])) == 1


def test_a_child_takes_the_place_of_a_loser_that_it_beats_on_the_same_examples() -> None:
    # So many under way that several tournaments are about the same place.
    optimizer, world = breeding(BREED.model_copy(update={"lookahead": 40}), Budget(calls=2500))
    ground = optimizer._ground
    taken = 0
    swap = ground.population.swap

    def watched(gone: str, come: Any) -> None:
        nonlocal taken
        loser = ground.population.get(gone)
        assert loser is not None
        both = ~np.isnan(come.by_example) & ~np.isnan(loser.by_example)
        assert both.sum() >= BREED.block
        assert come.by_example[both].mean() > loser.by_example[both].mean()
        taken += 1
        swap(gone, come)

    ground.population.swap = watched  # type: ignore[method-assign]
    drive(optimizer, world.run, np.random.default_rng(1), 40)
    assert taken > 5
    assert len(ground.population) == BREED.population


def test_mutation_prompts_are_inherited_and_hyper_mutated() -> None:
    _, trials = finished(1500)
    carried: dict[str, set[str]] = {}
    inherited = made = 0
    for trial in children(trials):
        if trial.genome is None:
            continue
        told, mutation = trial.proposal.hints["mutation_prompt"], trial.notes["mutation_prompt"]
        mother = trial.proposal.parents[0].id
        if told:
            assert told in carried[mother]
        if trial.proposal.operator.startswith("hyper"):
            assert mutation.startswith("Advice ")
            made += 1
        elif told:
            assert mutation == told
            inherited += told.startswith("Advice ")
        else:
            assert mutation in MUTATIONS
        carried.setdefault(trial.genome.id, set()).add(mutation)
    assert made > 3
    assert inherited > 3


@pytest.mark.parametrize("workers", [1, 7, 40])
def test_arrival_order_and_workers_change_nothing(workers: int) -> None:
    given: dict[str, Any] = {"genes": {"demos": {"max": 4}}, "pool": POOL, "budget": Budget(calls=700)}
    first, world = breeding(**given)
    reference = drive(first, world.run)
    second, _ = breeding(**given)
    again = drive(second, world.run, np.random.default_rng(workers), workers)
    assert in_order(again) == in_order(reference)
    assert second.front() == first.front()
    assert second.progress() == first.progress()


@pytest.mark.parametrize("cut", [3, 30, 70])
def test_a_run_is_resumed_by_telling_it_again(cut: int) -> None:
    optimizer, trials = finished()
    assert cut < len(trials)
    kept = [Trial.model_validate_json(trial.model_dump_json()) for trial in trials[:cut]]
    again, world = breeding(budget=Budget(calls=900))
    paid = 0

    def run(proposal: Proposal) -> Trial:
        nonlocal paid
        if proposal.number < cut:
            assert kept[proposal.number].proposal == proposal
            return kept[proposal.number]
        paid += 1
        return world.run(proposal)

    repeated = in_order(drive(again, run))
    assert [trial.proposal for trial in repeated] == [trial.proposal for trial in trials]
    assert [trial.notes for trial in repeated] == [trial.notes for trial in trials]
    assert again.front() == optimizer.front()
    assert paid == len(trials) - cut


@pytest.mark.parametrize("calls", [400, 701, 1200])
def test_the_budget_holds_with_the_calls_of_the_operators(calls: int) -> None:
    optimizer, trials = finished(calls)
    spent = sum(trial.total.calls for trial in trials)
    assert spent == optimizer.progress()["calls"] <= calls
    assert sum(trial.usage.calls for trial in trials) >= 5
    assert optimizer.stop_reason == "calls"
    check = 2 * (BREED.finalists + 1) * sum(len(ITEMS[split]) for split in ("validation", "test"))
    assert spent > calls - check - 20


def test_thirty_generations_are_the_end_where_the_budget_names_none() -> None:
    optimizer, world = breeding(budget=Budget(stall=500), settings=BREED.model_copy(update={"population": 3}))
    trials = drive(optimizer, world.run)
    assert optimizer.stop_reason == "generations"
    assert 30 * 3 <= len(children(trials)) <= 30 * 3 + 6


def test_many_tournaments_are_under_way_at_once() -> None:
    optimizer, world = breeding(settings=BREED.model_copy(update={"lookahead": 40}))
    asked: list[Proposal] = []
    for _ in range(60):
        while (proposal := optimizer.ask()) is not None:
            asked.append(proposal)
        optimizer.tell(world.run(asked.pop(0)))
    waiting = [proposal for proposal in asked if proposal.purpose == "search"]
    assert len(waiting) > BREED.variants * BREED.population
    assert len({proposal.parents[0].id for proposal in waiting}) > 1


def test_models_that_write_nothing_new_end_the_search_with_the_reason() -> None:
    async def mute(request: Request) -> Reply:
        return Reply(text="", prompt_tokens=1, completion_tokens=0, usd=0.0, seconds=0.1)

    optimizer, world = breeding(llm=mute)
    drive(optimizer, world.run)
    assert (optimizer.stop_reason or "").startswith("failures: 40 proposals in a row came to nothing; the last:")
    assert "empty" in (optimizer.stop_reason or "")
    best = next(member for member in optimizer.front() if member.recommended)
    assert best.genome == (optimizer.start_member.genome if optimizer.start_member else None)


def test_seeds_that_fail_are_made_up_for() -> None:
    genes = {"temperature": [0, 0.5, 1.0], "max_tokens": [4, 8, 16]}
    optimizer, world = breeding(genes=genes, budget=Budget(calls=1200))

    def run(proposal: Proposal) -> Trial:
        if proposal.operator == "seed":
            return Trial(proposal=proposal, error=str(OperatorFailed("lost")))
        return world.run(proposal)

    drive(optimizer, run)
    assert len(optimizer._ground.population) == BREED.population


def test_operators_that_are_named_are_the_ones_that_breed() -> None:
    chosen = BREED.model_copy(update={"operators": ("first_order", "hyper_first")})
    _, trials = finished(settings=chosen)
    assert {trial.proposal.operator for trial in children(trials)} == {"first_order", "hyper_first"}


def test_a_frozen_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="'breed' writes new prompts"):
        breeding(genes={"rubric": "Do the task."})


def test_the_world_is_told_only_right_cases() -> None:
    optimizer, world = breeding(budget=Budget(calls=1500))
    trials = drive(optimizer, world.run)
    right = {
        (trial.genome.id, done.item.example)
        for trial in trials
        for done in trial.evaluations
        if trial.genome is not None and done.quality == 1 and done.item.twin == 0 and done.item.split == "train"
    }
    told = [trial.proposal for trial in trials if trial.proposal.operator == "lamarck"]
    assert len(told) > 3
    for proposal in told:
        cases = proposal.hints["cases"]
        assert 1 <= len(cases) <= 3
        assert all((proposal.parents[0].id, case["example"]) in right and case["right"] for case in cases)
    assert isinstance(world, BreedWorld)
