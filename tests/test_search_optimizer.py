"""The optimizer in a synthetic world: it gets better, it is reproducible, it keeps to its budget and its
splits.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_world import ITEMS, ONE, START, drive, items, search, space, truth

from evocluster.errors import ConfigError
from evocluster.records import Genome, Proposal, Trial, Usage
from evocluster.search.budget import Budget
from evocluster.search.optimizer import Optimizer
from evocluster.search.population import Individual
from evocluster.search.settings import Search

SMALL = Search(population=8, block=8, finalists=3, lookahead=6)


def finished(calls: int = 1200, **given: Any) -> tuple[Optimizer, list[Trial]]:
    optimizer, world = search(given.pop("settings", SMALL), given.pop("budget", Budget(calls=calls)), **given)
    return optimizer, drive(optimizer, world.run)


def proposals(trials: list[Trial]) -> list[Proposal]:
    return [trial.proposal for trial in sorted(trials, key=lambda trial: trial.proposal.number)]


def test_it_improves_on_the_start() -> None:
    gains = []
    for seed in range(2):
        optimizer, _ = finished(1600, seed=seed)
        best = next(member for member in optimizer.front() if member.recommended)
        start = optimizer.start_member
        assert start is not None
        assert best.test["quality"].value > start.test["quality"].value
        gains.append(truth(best.genome) - truth(start.genome))
    assert min(gains) > 0.3


def test_members_say_what_was_measured() -> None:
    optimizer, _ = finished()
    start = optimizer.start_member
    assert start is not None
    assert (start.operator, start.generation, start.parents) == ("start", 0, ())
    for member in [*optimizer.front(), start]:
        for split in (member.train, member.validation, member.test):
            assert set(split) >= {"quality", "latency_ms", "cost_usd", "robustness", "composite"}
            assert all(interval.low <= interval.value <= interval.high for interval in split.values())
    assert [member.recommended for member in optimizer.front()].count(True) == 1
    assert next(member.why for member in optimizer.front() if member.recommended).startswith("best quality")


def test_nobody_on_the_front_is_dominated_on_validation() -> None:
    optimizer, _ = finished()
    rows = [
        [sign * member.validation[name].value for name, sign in
         (("quality", -1), ("latency_ms", 1), ("cost_usd", 1), ("robustness", -1))]
        for member in optimizer.front()
    ]  # fmt: skip
    table = np.array(rows)
    for row in table[[not member.recommended for member in optimizer.front()]]:
        assert not any((other <= row).all() and (other < row).any() for other in table)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), workers=st.integers(1, 40))
def test_arrival_order_and_workers_change_nothing(seed: int, workers: int) -> None:
    budget = Budget(calls=700)
    first, world = search(SMALL, budget)
    reference = drive(first, world.run)
    second, _ = search(SMALL, budget)
    again = drive(second, world.run, np.random.default_rng(seed), workers)
    assert proposals(again) == proposals(reference)
    assert second.front() == first.front()
    assert second.progress() == first.progress()


def test_generations_are_as_reproducible() -> None:
    given = Search(population=6, block=8, finalists=2, mode="generational")
    first, world = search(given, Budget(calls=700))
    reference = drive(first, world.run)
    second, _ = search(given, Budget(calls=700))
    assert proposals(drive(second, world.run, np.random.default_rng(3), 9)) == proposals(reference)


def test_a_generation_waits_for_the_one_before() -> None:
    optimizer, world = search(Search(population=6, block=8, finalists=2, mode="generational"))
    asked = []
    while (proposal := optimizer.ask()) is not None:
        asked.append(proposal)
    assert {proposal.purpose for proposal in asked} == {"seed"}
    for proposal in asked[1:]:
        optimizer.tell(world.run(proposal))
    assert optimizer.ask() is None
    optimizer.tell(world.run(asked[0]))
    assert optimizer.ask() is not None


@pytest.mark.parametrize("cut", [1, 17, 70])
def test_a_run_is_resumed_by_telling_it_again(cut: int) -> None:
    optimizer, trials = finished()
    kept = {trial.proposal.number: Trial.model_validate_json(trial.model_dump_json()) for trial in trials[:cut]}
    again, world = search(SMALL, Budget(calls=1200))
    paid = 0

    def run(proposal: Proposal) -> Trial:
        nonlocal paid
        if proposal.number in kept:
            assert kept[proposal.number].proposal == proposal
            return kept[proposal.number]
        paid += 1
        return world.run(proposal)

    assert proposals(drive(again, run)) == proposals(trials)
    assert again.front() == optimizer.front()
    assert paid == len(trials) - cut


def test_a_stop_from_outside_is_repeated_at_the_same_question() -> None:
    def run(workers: int, order: np.random.Generator | None) -> tuple[Optimizer, list[Proposal]]:
        optimizer, world = search(SMALL, Budget(calls=5000))
        ask = optimizer.ask

        def asking() -> Proposal | None:
            if optimizer.asked == 41 and optimizer.searching:
                optimizer.stop("minutes")
            return ask()

        optimizer.ask = asking  # type: ignore[method-assign]
        return optimizer, proposals(drive(optimizer, world.run, order, workers))

    first, one = run(1, None)
    second, other = run(7, np.random.default_rng(0))
    assert first.stop_reason == second.stop_reason == "minutes"
    assert one == other
    assert [p.purpose in ("validation", "test") for p in one].index(True) == 41


def test_no_more_than_the_lookahead_is_out() -> None:
    optimizer, world = search(SMALL, Budget(calls=5000))
    out: list[Proposal] = []
    while (proposal := optimizer.ask()) is not None:
        out.append(proposal)
    assert len(out) == 6
    for late in out[1:]:
        optimizer.tell(world.run(late))
    assert optimizer.ask() is None
    assert optimizer.committed == 0
    optimizer.tell(world.run(out[0]))
    assert optimizer.ask() is not None
    assert optimizer.committed == 1


def test_the_lookahead_comes_from_flight_and_block_alone() -> None:
    assert Search(block=16).ahead(8) == 4
    assert Search(block=16).ahead(500) == 95
    assert Search(lookahead=9).ahead(500) == 9


@settings(max_examples=8, deadline=None)
@given(calls=st.integers(300, 1500), per_item=st.integers(1, 2), seed=st.integers(0, 99), workers=st.integers(1, 9))
def test_calls_are_never_exceeded_and_the_check_is_always_paid(
    calls: int, per_item: int, seed: int, workers: int
) -> None:
    try:
        optimizer, world = search(SMALL, Budget(calls=calls), seed=seed, calls_per_item=per_item)
    except ConfigError as error:
        assert f"calls={calls} is too small" in str(error)  # noqa: PT017
        return

    def dear(proposal: Proposal) -> Trial:
        trial = world.run(proposal)
        dearer = [
            one.model_copy(update={"usage": one.usage.model_copy(update={"calls": per_item})})
            for one in trial.evaluations
        ]
        assert optimizer.progress()["calls"] <= calls
        return trial.model_copy(update={"evaluations": tuple(dearer)})

    trials = drive(optimizer, dear, np.random.default_rng(seed), workers)
    assert sum(trial.total.calls for trial in trials) <= calls
    assert optimizer.stop_reason == "calls"
    start = optimizer.start_member
    assert start is not None
    for member in [*optimizer.front(), start]:
        assert member.validation
        assert member.test


@pytest.mark.parametrize("dearest", [1, 2])
def test_what_the_check_keeps_back_is_what_members_take_and_not_the_most_there_could_be(dearest: int) -> None:
    budget = Budget(calls=2000)
    optimizer, world = search(SMALL, budget, calls_per_item=4)

    def varying(proposal: Proposal) -> Trial:
        trial = world.run(proposal)
        calls = 1 + int(trial.genome is not None and int(trial.genome.id, 16) % dearest)
        told = [
            one.model_copy(update={"usage": one.usage.model_copy(update={"calls": calls})}) for one in trial.evaluations
        ]
        return trial.model_copy(update={"evaluations": tuple(told)})

    trials = drive(optimizer, varying, np.random.default_rng(1), 6)
    spent = sum(trial.total.calls for trial in trials)
    assert 1600 <= spent <= 2000
    start = optimizer.start_member
    assert start is not None
    assert all(member.validation and member.test for member in [*optimizer.front(), start])


def test_dollars_are_exceeded_by_no_more_than_was_out() -> None:
    budget = Budget(usd=0.006)
    optimizer, world = search(SMALL, budget)
    trials = drive(optimizer, world.run, np.random.default_rng(1), 6)
    dearest = max(trial.total.usd for trial in trials)
    assert optimizer.stop_reason == "usd"
    assert 0.003 < sum(trial.total.usd for trial in trials) <= 0.006 + 6 * dearest
    assert optimizer.front()


def test_cached_answers_count_like_the_first_time() -> None:
    def free(trial: Trial) -> Trial:
        cached = [
            one.model_copy(update={"usage": one.usage.model_copy(update={"cached": 1, "paid_usd": 0.0})})
            for one in trial.evaluations
        ]
        return trial.model_copy(update={"evaluations": tuple(cached)})

    _optimizer, trials = finished(700)
    warm, world = search(SMALL, Budget(calls=700))
    again = drive(warm, lambda proposal: free(world.run(proposal)))
    assert proposals(again) == proposals(trials)
    assert warm.progress()["cached"] > 0


def test_test_and_validation_are_not_touched_before_their_time() -> None:
    optimizer, trials = finished()
    asked = proposals(trials)
    phases = ["search" if p.purpose in ("seed", "search", "extend") else p.purpose for p in asked]
    assert phases == sorted(phases, key=["search", "validation", "test"].index)
    for proposal, phase in zip(asked, phases, strict=True):
        assert {item.split for item in proposal.items} == {"train" if phase == "search" else phase}
    tested = [(p.parents[0].id, item) for p in asked if p.purpose == "test" for item in p.items]
    assert len(tested) == len(set(tested))
    start = optimizer.start_member
    assert start is not None
    assert {id for id, _ in tested} == {start.genome.id, *(member.genome.id for member in optimizer.front())}
    assert len(tested) == len({id for id, _ in tested}) * len(ITEMS["test"])


def test_what_happens_on_test_settles_nothing() -> None:
    optimizer, trials = finished()
    upset, world = search(SMALL, Budget(calls=1200))

    def unlucky(proposal: Proposal) -> Trial:
        trial = world.run(proposal)
        if proposal.purpose != "test":
            return trial
        zero = [one.model_copy(update={"quality": 0.0, "validator": 0.0}) for one in trial.evaluations]
        return trial.model_copy(update={"evaluations": tuple(zero)})

    assert proposals(drive(upset, unlucky)) == proposals(trials)
    chosen = [[m.genome.id for m in one.front() if m.recommended] for one in (optimizer, upset)]
    assert chosen[0] == chosen[1]


def test_start_is_tried_on_all_of_train_at_once() -> None:
    optimizer, world = search(SMALL.model_copy(update={"lookahead": 30}))
    asked = []
    while (proposal := optimizer.ask()) is not None:
        asked.append(proposal)
    start = space().complete(START)
    first = [proposal for proposal in asked if proposal.parents == (start,)]
    assert [item for proposal in first for item in proposal.items] == list(ITEMS["train"])
    seeds = [world.run(proposal).genome for proposal in asked if proposal.purpose == "seed"]
    assert len({genome.id for genome in seeds if genome is not None}) == SMALL.population


def test_a_twin_stands_in_the_block_of_its_example() -> None:
    _, trials = finished(500)
    for proposal in proposals(trials):
        given = {item.example for item in proposal.items if item.twin == 0}
        assert {item.example for item in proposal.items} == given
        assert len(given) <= 8


def test_extensions_and_children_alternate() -> None:
    steady = Search(population=8, block=8, finalists=3, selection="steady")
    _, trials = finished(2000, settings=steady)
    later = [p for p in proposals(trials) if p.purpose in ("search", "extend")]
    extended = [p for p in later if p.purpose == "extend"]
    assert 0.2 < len(extended) / len(later) <= 0.5
    assert len({(p.parents[0].id, p.items) for p in extended}) == len(extended)
    only = Search(population=8, block=8, finalists=3, selection="steady", extend=False)
    assert not [p for p in proposals(finished(settings=only)[1]) if p.purpose == "extend"]


def test_frozen_genes_never_change() -> None:
    frozen = {"temperature": 0, "label_names": "spaced", "demo_style": "chat", "rubric": "Only this."}
    where = space(**frozen)
    start = where.complete({**START, **{k: frozen[k] for k in ("rubric", "label_names")}})
    optimizer, trials = finished(where=where, start=(start,))
    made = [trial for trial in trials if trial.error is None]
    assert len(made) > len(trials) / 2
    for trial in made:
        assert trial.genome is not None
        assert {gene: trial.genome[gene] for gene in frozen} == frozen
    assert "rewrite" not in optimizer.progress()["operators"]


def test_a_failing_operator_does_not_stall() -> None:
    optimizer, world = search(SMALL.model_copy(update={"screen": 1}), Budget(generations=6))
    world.broken = ("mutate", "crossover")
    drive(optimizer, world.run)
    credit = optimizer.progress()["operators"]
    assert optimizer.stop_reason == "generations"
    assert credit["mutate"]["successes"] == 0 < credit["mutate"]["uses"]
    assert credit["mutate"]["probability"] < credit["demos"]["probability"]


def test_when_every_operator_fails_it_ends_and_says_so() -> None:
    none: dict[str, Any] = {"immigrants": 0, "screen": 1, "restart_after": None}
    given = Search(population=8, block=8, finalists=3, operators=("mutate",), **none)
    optimizer, world = search(given, Budget(calls=10**6))
    world.broken = ("mutate",)
    drive(optimizer, world.run)
    assert optimizer.stop_reason is not None
    assert optimizer.stop_reason.startswith("failures: 40 proposals")
    assert "broken on purpose" in optimizer.stop_reason
    assert optimizer.front()


def test_when_nothing_can_be_evaluated_it_ends_without_a_front() -> None:
    optimizer, _ = search()
    drive(optimizer, lambda proposal: Trial(proposal=proposal, error="model: Unreachable: nobody there"))
    assert optimizer.done
    assert optimizer.front() == []
    assert "nobody there" in str(optimizer.stop_reason)


def test_a_genome_whose_calls_all_fail_is_no_winner() -> None:
    optimizer, world = search(SMALL, Budget(calls=1200))

    def run(proposal: Proposal) -> Trial:
        trial = world.run(proposal)
        if trial.genome is None or trial.genome["demo_style"] != "inline":
            return trial
        failed = [
            one.model_copy(update={"error": "model: BadReply", "usage": Usage(), "quality": 0.0})
            for one in trial.evaluations
        ]
        return trial.model_copy(update={"evaluations": tuple(failed)})

    drive(optimizer, run)
    assert all(member.genome["demo_style"] != "inline" for member in optimizer.front())


@pytest.mark.parametrize(
    ("budget", "reason", "given"),
    [
        (Budget(calls=700), "calls", {}),
        (Budget(usd=0.004), "usd", {}),
        (Budget(generations=2), "generations", {}),
        (Budget(calls=10**5, target=0.5), "target", {}),
        (Budget(calls=10**5, target=0.3, target_objective="composite"), "target", {}),
        (Budget(calls=10**5, stall=2), "stall", {}),
    ],
)
def test_stop_reasons(budget: Budget, reason: str, given: dict[str, Any]) -> None:
    optimizer, trials = finished(budget=budget, **given)
    assert optimizer.stop_reason == reason
    assert optimizer.done
    assert optimizer.front()
    assert {trial.proposal.purpose for trial in trials} >= {"seed", "validation", "test"}


def test_a_small_space_is_exhausted() -> None:
    where = space(rubric="One.", temperature=0, max_tokens=[4, 8], model="able", demos=[], demo_style="chat",
                  constrain=[False, True], label_names="as_is")  # fmt: skip
    optimizer, trials = finished(10**6, where=where, start=(where.complete({"constrain": True}),))
    assert optimizer.stop_reason == "exhausted"
    assert len({trial.genome.id for trial in trials if trial.genome}) == 4


def test_a_frozen_space_is_measured_and_done() -> None:
    where = space(rubric="One.", temperature=0, max_tokens=8, model="able", demos=[], demo_style="chat",
                  constrain=False, label_names="as_is")  # fmt: skip
    optimizer, _ = finished(10**6, where=where, start=())
    assert optimizer.stop_reason == "exhausted"
    assert len(optimizer.front()) == 1
    assert optimizer.front()[0].recommended


def test_too_small_a_budget_is_refused_before_anything_is_spent() -> None:
    with pytest.raises(ConfigError, match="calls=20 is too small"):
        search(SMALL, Budget(calls=20))


def test_warm_genomes_are_brought_into_the_space_and_tried() -> None:
    where = space()
    warm = where.sample(np.random.default_rng(5)).replace(max_tokens=999)
    _, trials = finished(warm=(warm, warm), where=where)
    first = [p for p in proposals(trials) if p.purpose == "seed" and p.parents == (where.fix(warm.genes),)]
    assert len(first) == 1


def test_a_start_outside_the_space_is_tried_as_it_is() -> None:
    start = space().complete({**START, "max_tokens": 200})
    optimizer, trials = finished(start=(start,))
    assert optimizer.start_member is not None
    assert optimizer.start_member.genome == start
    assert optimizer.start_member.test
    others = [t.genome for t in trials if t.genome is not None and t.genome != start]
    assert all(space().contains(genome) for genome in others)


def test_without_validation_and_test_the_front_is_that_of_train() -> None:
    optimizer, trials = finished(budget=Budget(generations=2), items=items({"train": 40}), objectives=ONE)
    assert optimizer.front()
    assert optimizer.front()[0].recommended
    assert {t.proposal.purpose for t in trials} <= {"seed", "search", "extend"}


def test_lineage_leads_back_to_the_seeds() -> None:
    optimizer, trials = finished(2000)
    born: dict[str, Proposal] = {}
    for trial in sorted(trials, key=lambda trial: trial.proposal.number):
        if trial.genome is not None and trial.proposal.operator != "evaluate":
            born.setdefault(trial.genome.id, trial.proposal)
    for proposal in born.values():
        parents = [born[parent.id].generation for parent in proposal.parents if parent.id in born]
        if proposal.purpose == "search":
            assert proposal.generation >= max(parents, default=-1) + 1
    assert max(member.generation for member in optimizer.front()) >= 1


def test_memory_does_not_grow_with_evaluations() -> None:
    optimizer, world = search(SMALL, Budget(calls=10**6))
    alive: list[int] = []
    for _ in range(300):
        proposal = optimizer.ask()
        assert proposal is not None
        optimizer.tell(world.run(proposal))
        if optimizer.committed in (100, 290):
            alive.append(len(_individuals(optimizer)))
    assert alive[-1] <= SMALL.population + 1 + 6
    assert max(len(optimizer._out), len(optimizer._arrived), len(optimizer._ledger._reserved)) <= 6


def _individuals(optimizer: Optimizer) -> list[Individual]:
    import gc

    gc.collect()
    made = [one for one in gc.get_objects() if isinstance(one, Individual)]
    return [
        one for one in made if one.make.__closure__ and optimizer in [c.cell_contents for c in one.make.__closure__]
    ]


def test_tells_are_forgiving_but_not_blind() -> None:
    optimizer, world = search()
    proposal = optimizer.ask()
    assert proposal is not None
    trial = world.run(proposal)
    optimizer.tell(trial)
    optimizer.tell(trial.model_copy(update={"genome": None, "error": "a second one"}))
    with pytest.raises(ConfigError, match="trial 9 was never asked for"):
        optimizer.tell(trial.model_copy(update={"proposal": proposal.model_copy(update={"number": 9})}))
    drive(optimizer, world.run)
    optimizer.tell(trial)
    assert optimizer.start_member is not None
    assert optimizer.start_member.train["quality"].value >= 0


def test_stop_after_the_end_changes_nothing() -> None:
    optimizer, _ = finished(700)
    optimizer.stop("too late")
    assert optimizer.stop_reason == "calls"
    assert optimizer.ask() is None


def test_progress_is_json_and_tells_where_it_stands() -> None:
    optimizer, world = search(SMALL, Budget(calls=1200))
    json.dumps(optimizer.progress(), allow_nan=False)
    proposal = optimizer.ask()
    assert proposal is not None
    optimizer.tell(world.run(proposal))
    drive(optimizer, world.run)
    now = optimizer.progress()
    json.dumps(now, allow_nan=False)
    assert now["phase"] == "done"
    assert now["commits"] == now["asked"]
    assert now["budget"]["calls"] == 1200
    assert len(now["hypervolume"]) == now["generation"] + 1
    assert now["hypervolume"][0] > 0
    assert set(now["front"][0]["values"]) >= {"quality", "latency_ms", "cost_usd", "robustness"}


def test_a_proposal_is_small_and_survives_a_file() -> None:
    _, trials = finished(2000)
    for proposal in proposals(trials):
        text = proposal.model_dump_json()
        assert Proposal.model_validate_json(text) == proposal
        assert len(text) < 12_000


def test_seeds_differ_and_give_different_searches() -> None:
    one, other = (proposals(finished(700, seed=seed)[1]) for seed in (1, 2))
    assert one != other
    assert len({proposal.seed for proposal in one if proposal.purpose == "search"}) > 5


def test_operators_read_no_example_texts() -> None:
    _, trials = finished()
    final = {item.example for split in ("validation", "test") for item in ITEMS[split]}
    for trial in trials:
        assert isinstance(trial.genome, Genome) or trial.error
        if trial.genome is not None:
            assert not final & set(trial.genome["demos"])


def test_what_was_spent_is_told_of_every_trial_handed_in() -> None:
    """Also of those that came before others that the next question waits for."""
    optimizer, world = search(Search(population=8, block=8, lookahead=6), Budget(calls=900))
    told: list[Trial] = []
    for _ in range(12):
        flying = []
        while (proposal := optimizer.ask()) is not None:
            flying.append(proposal)
        for one in [*flying[1:], flying[0]]:
            trial = world.run(one)
            optimizer.tell(trial)
            told.append(trial)
            progress = optimizer.progress()
            assert progress["evaluations"] == sum(len(trial.evaluations) for trial in told)
            for name in ("calls", "cached", "usd", "paid_usd"):
                assert progress[name] == pytest.approx(sum(getattr(trial.total, name) for trial in told)), name
    assert optimizer.progress()["commits"] < len(told)
