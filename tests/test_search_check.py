"""The check after the search: a race on validation that the start runs to the end, replicates, and what is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from search_world import ONE, START, drive, hashed, items, search, space

from evocluster.engine.front import front_json
from evocluster.errors import ConfigError
from evocluster.records import Genome, Proposal, Split, Trial
from evocluster.search.budget import Budget
from evocluster.search.check import drawn, finalists
from evocluster.search.members import Member
from evocluster.search.objectives import Composite, Tally, wilson
from evocluster.search.optimizer import Optimizer
from evocluster.search.population import Individual, Population
from evocluster.search.settings import Search

SIZES: dict[Split, int] = {"train": 40, "validation": 60, "test": 30}
RACE = Search(population=8, block=8, finalists=4)
STEADY = RACE.model_copy(update={"selection": "steady"})


def ran(
    settings: Search = RACE,
    change: Callable[[Trial], Trial] = lambda trial: trial,
    sizes: Mapping[Split, int] = SIZES,
    **given: Any,
) -> tuple[Optimizer, list[Trial]]:
    """A finished search; `change`: what becomes of each trial on validation."""
    budget = given.pop("budget", Budget(generations=3))
    optimizer, world = search(settings, budget, **{"items": items(sizes), "objectives": ONE, **given})

    def run(proposal: Proposal) -> Trial:
        trial = world.run(proposal)
        return change(trial) if proposal.purpose == "validation" else trial

    return optimizer, drive(optimizer, run, np.random.default_rng(0), 9)


def asked(trials: list[Trial], purpose: str = "validation") -> list[Proposal]:
    return sorted((t.proposal for t in trials if t.proposal.purpose == purpose), key=lambda one: one.number)


def per_genome(trials: list[Trial]) -> Counter[str]:
    """Validation items of each genome."""
    return Counter(p.parents[0].id for p in asked(trials) for _ in p.items)


def graded(trial: Trial, quality: float) -> Trial:
    made = [one.model_copy(update={"quality": quality, "validator": quality}) for one in trial.evaluations]
    return trial.model_copy(update={"evaluations": tuple(made)})


def recommended(optimizer: Optimizer) -> Member:
    return next(member for member in optimizer.front() if member.recommended)


def start_id(optimizer: Optimizer) -> str:
    assert optimizer.start_member is not None
    return optimizer.start_member.genome.id


def test_who_is_surely_behind_leaves_and_the_start_runs_to_the_end() -> None:
    probe, trials = ran()
    order = list(dict.fromkeys(p.parents[0].id for p in asked(trials)))
    assert order[0] == start_id(probe)
    assert len(order) == 5
    best = order[2]

    def change(trial: Trial) -> Trial:
        return graded(trial, float(trial.proposal.parents[0].id == best))

    optimizer, trials = ran(change=change)
    counts, whole = per_genome(trials), len(items(SIZES)["validation"])
    assert counts[order[0]] == counts[best] == whole
    assert all(counts[other] < 0.6 * whole for other in order if other not in (order[0], best))
    assert recommended(optimizer).genome.id == best
    assert {member.genome.id for member in optimizer.front()} == {best}


def test_who_keeps_a_constraint_is_not_sent_away_by_who_breaks_it() -> None:
    """Tokens are no objective here, so that who takes many is better in all of them."""
    limited = ("tokens <= 60",)
    order = list(dict.fromkeys(p.parents[0].id for p in asked(ran(constraints=limited)[1])))
    greedy = order[1]

    def change(trial: Trial) -> Trial:
        big = trial.proposal.parents[0].id == greedy
        usage = {"prompt_tokens": 90 if big else 9, "completion_tokens": 1}
        made = [one.model_copy(update={"usage": one.usage.model_copy(update=usage)}) for one in trial.evaluations]
        return graded(trial.model_copy(update={"evaluations": tuple(made)}), 1.0 if big else 0.25)

    optimizer, trials = ran(change=change, constraints=limited)
    assert set(per_genome(trials).values()) == {len(items(SIZES)["validation"])}
    assert recommended(optimizer).genome.id != greedy
    assert "no member" not in recommended(optimizer).why


def test_the_recommended_keeps_constraints_surely_and_stands_on_the_front() -> None:
    """All keep them as measured; the dearest finalist alone surely does."""
    limited, rule = ("quality >= 0.8",), "cheapest"
    order = list(dict.fromkeys(p.parents[0].id for p in asked(ran(constraints=limited, recommend=rule)[1])))
    sure = order[2]

    def change(trial: Trial) -> Trial:
        best = trial.proposal.parents[0].id == sure
        made = [
            one.model_copy(
                update={
                    "quality": float(best or int(one.item.example.removeprefix("validation")) % 6 > 0),
                    "usage": one.usage.model_copy(update={"usd": 0.00003 if best else 0.00001}),
                }
            )
            for one in trial.evaluations
        ]
        return trial.model_copy(update={"evaluations": tuple(made)})

    optimizer, _ = ran(change=change, constraints=limited, recommend=rule)
    member = recommended(optimizer)
    assert member.genome.id == sure
    assert member.why.startswith("cheapest: cost_usd")
    assert all(one.feasible for one in optimizer.front())
    assert member.honest["quality"].low > 0.8


def test_equals_run_to_the_end() -> None:
    _, trials = ran(change=lambda trial: graded(trial, 1.0))
    assert set(per_genome(trials).values()) == {len(items(SIZES)["validation"])}


def test_portions_are_taken_by_turns_and_steady_asks_finalist_by_finalist() -> None:
    def places(settings: Search) -> list[int]:
        genomes = [p.parents[0].id for p in asked(ran(settings, lambda trial: graded(trial, 1.0))[1])]
        known = list(dict.fromkeys(genomes))
        return [known.index(one) for one in genomes]

    race, steady = places(RACE), places(STEADY)
    assert race[:10] == [0, 1, 2, 3, 4] * 2
    assert steady == sorted(steady)
    assert sorted(race) == steady


def test_steady_asks_for_everything_whoever_is_behind() -> None:
    _, trials = ran(STEADY, change=lambda trial: graded(trial, float(trial.proposal.number % 2)))
    assert set(per_genome(trials).values()) == {len(items(SIZES)["validation"])}


def test_the_order_in_which_trials_arrive_changes_nothing() -> None:
    first = ran()
    optimizer, world = search(RACE, Budget(generations=3), items=items(SIZES), objectives=ONE)
    again = drive(optimizer, world.run)
    assert asked(again) == asked(first[1])
    assert optimizer.front() == first[0].front()


def test_an_end_of_the_money_in_the_middle_leaves_a_winner_among_the_contenders() -> None:
    class Dear:
        """Validation costs five times as much as was reckoned."""

        def __call__(self, trial: Trial) -> Trial:
            dear = [
                one.model_copy(update={"usage": one.usage.model_copy(update={"usd": 5 * one.usage.usd})})
                for one in trial.evaluations
            ]
            return trial.model_copy(update={"evaluations": tuple(dear)})

    optimizer, trials = ran(change=Dear(), budget=Budget(usd=0.008))
    counts = per_genome(trials)
    whole = len(items(SIZES)["validation"])
    assert optimizer.stop_reason == "usd"
    assert 0 < max(counts.values()) < whole
    assert recommended(optimizer).genome.id != start_id(optimizer)


def test_replicates_are_for_those_whose_answers_are_drawn() -> None:
    settings = RACE.model_copy(update={"replicates": 2})
    with pytest.raises(ConfigError, match=r"replicates=2: another answer .* allowed here: 0"):
        ran(settings, where=space(temperature=0))
    where = space(temperature=[0, 0.3])
    warm_start = where.complete({**START, "temperature": 0.3})
    optimizer, warm = ran(settings, lambda trial: graded(trial, 1.0), where=where, start=(warm_start,))
    whole, counts = len(items(SIZES)["validation"]), per_genome(warm)
    genomes = {p.parents[0].id: p.parents[0] for p in asked(warm)}
    assert counts[warm_start.id] == 3 * whole
    for id, genome in genomes.items():
        assert counts[id] == (3 * whole if drawn(genome) else whole)
    assert {item.replicate for p in asked(warm, "test") for item in p.items} == {0}
    assert optimizer.start_member is not None
    quality = optimizer.start_member.validation["quality"]
    assert quality.value == 1.0


def test_replicates_are_within_the_budget_or_refused() -> None:
    settings = RACE.model_copy(update={"replicates": 3})
    with pytest.raises(ConfigError, match="too small"):
        ran(settings, budget=Budget(calls=1500))
    where = space(temperature=0.3)
    start = where.complete({**START, "temperature": 0.3})
    _, trials = ran(settings, budget=Budget(calls=2600), where=where, start=(start,))
    assert sum(trial.total.calls for trial in trials) <= 2600
    assert max(item.replicate for p in asked(trials) for item in p.items) == 3


@pytest.mark.parametrize(
    ("genes", "more"),
    [
        ({"temperature": 0.7}, True),
        ({"use_consensus": 3}, True),
        ({"use_consensus": ["a", "b"]}, True),
        ({"temperature": 0.0}, False),
        ({"use_consensus": 1}, False),
        ({}, False),
    ],
)
def test_drawn_answers_are_those_of_a_temperature_or_of_votes(genes: dict[str, Any], more: bool) -> None:
    genome = space().complete(START)
    assert drawn(genome.model_copy(update={"genes": {**genes}})) is more


def test_front_json_holds_the_honest_value_its_gap_and_the_test_against_the_start() -> None:
    optimizer, _ = ran()
    front = front_json(["quality"], optimizer.start_member, optimizer.front())
    member = next(one for one in front["members"] if one["recommended"])
    honest, gap, versus = (part["quality"] for part in (member["honest"], member["honest_gap"], front["versus_start"]))
    assert set(honest) == {"value", "low", "high", "folds", "split"}
    assert (honest["folds"], honest["split"]) == (10, "validation")
    assert honest["low"] <= honest["value"] <= honest["high"]
    assert honest["value"] <= member["validation"]["quality"]["value"]
    assert gap["value"] == pytest.approx(honest["value"] - member["test"]["quality"]["value"])
    assert gap["low"] < gap["value"] < gap["high"]
    assert set(versus) == {"difference", "low", "high", "p", "n"}
    start = front["start"]["test"]["quality"]["value"]
    assert versus["difference"] == pytest.approx(member["test"]["quality"]["value"] - start)
    assert (versus["n"], versus["p"] < 0.01) == (30, True)
    assert "honest" not in front["start"]


def test_among_equals_the_honest_interval_is_wider_than_that_of_left_out_examples() -> None:
    def change(trial: Trial) -> Trial:
        id = trial.proposal.parents[0].id
        coins = [float(hashed("coin", id, one.item.example) < 0.6) for one in trial.evaluations]
        made = [one.model_copy(update={"quality": coin}) for one, coin in zip(trial.evaluations, coins, strict=True)]
        return trial.model_copy(update={"evaluations": tuple(made)})

    wider = []
    for seed in range(6):
        found = recommended(ran(change=change, seed=seed)[0]).honest["quality"]
        low, high = wilson(found.value, SIZES["validation"])
        assert found.low <= low
        assert high <= found.high
        wider.append((found.high - found.low) / (high - low))
    assert max(wider) > 1.05


def test_without_validation_the_folds_are_of_train_and_say_so() -> None:
    optimizer, _ = ran(sizes={"train": 40, "test": 30})
    member = recommended(optimizer)
    assert member.honest["quality"].split == "train"
    assert member.honest["quality"].folds == 10
    assert member.honest_gap["quality"].value == pytest.approx(
        member.honest["quality"].value - member.test["quality"].value
    )
    bare, _ = ran(sizes={"train": 40})
    assert recommended(bare).versus_start == {}
    assert recommended(bare).honest_gap == {}


def test_a_start_that_is_recommended_is_not_compared_with_itself() -> None:
    where = space(rubric="One.", temperature=0, max_tokens=8, model="able", demos=[], demo_style="chat",
                  constrain=False, label_names="as_is")  # fmt: skip
    optimizer, _ = ran(where=where, start=(where.complete({}),), budget=Budget(calls=10**6))
    front = front_json(["quality"], optimizer.start_member, optimizer.front())
    assert [one["recommended"] for one in front["members"]] == [True]
    assert "versus_start" not in front
    assert front["members"][0]["honest"]["quality"]["value"] == pytest.approx(
        front["members"][0]["validation"]["quality"]["value"]
    )


def test_of_two_finalists_one_is_surely_good_at_what_the_rule_asks_for_and_one_for_its_price() -> None:
    population = Population(8, ONE)
    worth = {"best": (0.9, 0.1), "near": (0.8, 0.2), "cheap": (0.4, 0.7), "poor": (0.1, 0.0)}
    for name, careful in worth.items():
        one = Individual(Genome(genes={"rubric": name}), make=lambda split: Tally(Composite()), values=np.zeros(1))
        one.careful = careful
        population.insert(one)

    def chosen(count: int, by: str) -> list[object]:
        return [one.genome.genes["rubric"] for one in finalists(population, count, 0, by)]

    assert chosen(2, "quality") == ["best", "cheap"]
    assert chosen(3, "quality") == ["best", "cheap", "near"]
    assert chosen(3, "composite") == ["cheap", "best", "near"]
    assert chosen(2, "") == ["cheap", "best"]
    assert chosen(9, "quality")[:3] == ["best", "cheap", "near"]
