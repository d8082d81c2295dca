"""Constraints: how they are written, the laws of constrained domination, and a whole search under them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from search_world import drive, search
from test_search_winner import tally as validated

from evocluster.errors import ConfigError
from evocluster.records import Evaluation, Genome, Item, Score, Trial, Usage
from evocluster.search.budget import Budget
from evocluster.search.feasible import NONE, Constraint, Limits
from evocluster.search.members import measures
from evocluster.search.nsga2 import Floats, front, order, rank_and_crowding, survive
from evocluster.search.objectives import FOUR, Composite, Objective, Tally
from evocluster.search.optimizer import Optimizer
from evocluster.search.population import Individual, Population
from evocluster.search.recommend import parse
from evocluster.search.settings import Search
from evocluster.search.winner import Candidate, Contest

SETTINGS = Search(population=8, block=8, finalists=3)
POLITE = Objective.model_validate({"name": "politeness", "source": "scores.polite"})


# How they are written.


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("quality >= 0.8", "quality >= 0.8"),
        ("quality>=0.8", "quality >= 0.8"),
        ("latency_ms < 900", "latency_ms < 900"),
        ("latency p95 <= 900", "latency p95 <= 900"),
        ("scores.polite > 0.95", "scores.polite > 0.95"),
        ("my own words <= 12", "my own words <= 12"),
        ("cost <= 0.00012345678", "cost <= 0.00012345678"),
        ({"objective": "latency", "aggregate": "p95", "max": 900}, "latency p95 <= 900"),
        ({"objective": "quality", "min": 0.8}, "quality >= 0.8"),
        ({"objective": "tokens", "below": 1e9}, "tokens < 1e+09"),
    ],
)
def test_forms(given: Any, text: str) -> None:
    one = Constraint.model_validate(given)
    assert str(one) == text
    assert json.loads(one.model_dump_json()) == text
    assert Constraint.model_validate(text) == one


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("quality", "got 'quality'; write one limit"),
        ("quality >= 0.8 and cost <= 1", "write one limit"),
        ("quality == 0.8", r"'==' is no comparison; allowed: >=, <=, >, <; did you mean '>=' \(at least\)\?"),
        ("quality=0.8", r"got 'quality=0.8': '=' is no comparison; allowed: >=, <=, >, <; did you mean '>='"),
        ("cost = 0.8", r"'=' is no comparison; .*; did you mean '<=' \(at most\)\?"),
        ("my own words = 3", "'=' is no comparison; .*; write '>=' for at least, '<=' for at most"),
        ("quality => 0.8", r"got 'quality => 0.8': '=>' is no comparison; allowed: .*; did you mean '>='\?"),
        ("latency p95=<900", r"got 'latency p95=<900': '=<' is no comparison; allowed: .*; did you mean '<='\?"),
        ("quality ≥0.8", r"got 'quality ≥0.8': '≥' is no comparison; allowed: .*; did you mean '>='\?"),
        ("quality != 0.8", "'!=' is no comparison; allowed: >=, <=, >, < "),
        ("quality >= high", "'high' is no number"),
        ("quality >= inf", "finite number"),
        ({"objective": "quality"}, "'quality' has no limit; give one of min, max, above, below"),
        ({"objective": "quality", "min": 0.1, "max": 0.2}, "has min and max; give one of"),
        ({"objective": "quality", "mim": 0.1}, "Extra inputs"),
    ],
)
def test_what_is_no_constraint(given: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Constraint.model_validate(given)


def test_limits_name_objectives_of_the_run_or_what_one_may_be_of() -> None:
    slow = Objective.model_validate({"name": "slow", "source": "latency_ms", "aggregate": "p95"})
    found = Limits(
        ("politeness >= 0.9", "slow <= 5", "latency <= 3", "latency p95 <= 4", "slow mean < 2"), (POLITE, slow)
    )
    assert [(one.name, one.source, one.aggregate) for one in found.measures] == [
        ("politeness", "scores.polite", "mean"),
        ("slow", "latency_ms", "p95"),
        ("latency_ms", "latency_ms", "mean"),
        ("latency_ms p95", "latency_ms", "p95"),
        ("slow mean", "latency_ms", "mean"),
    ]
    assert found.facts()[3] == {"name": "latency_ms p95", "operator": "<=", "limit": 4.0}
    with pytest.raises(ConfigError, match=r"constraints: 'qualty' is no objective.*did you mean 'quality'"):
        Limits(("qualty>=1.0",))
    with pytest.raises(ConfigError, match="constraints: got 'quality'; write one limit"):
        Limits(("quality",))


# By how much they are broken.


def tally(quality: Sequence[float], seconds: float = 0.1, **scores: float) -> Tally:
    made = Tally(Composite(), tuple(scores))
    made.add(
        [
            Evaluation(
                item=Item(split="train", example=f"e{n}"),
                quality=value,
                validator=value,
                scores={name: Score(value=score) for name, score in scores.items()},
                usage=Usage(calls=1, usd=0.001, seconds=seconds),
            )
            for n, value in enumerate(quality)
        ]
    )
    return made


def test_what_is_missed_is_a_share_of_the_limit() -> None:
    limits = Limits(("quality >= 0.8", "latency_ms <= 50", "scores.slips <= 0"))
    assert limits.violation(tally([1, 1], 0.05, slips=0)) == 0
    assert limits.violation(tally([1, 0], 0.05, slips=0)) == pytest.approx(0.3 / 0.8)
    assert limits.violation(tally([1, 1], 0.1, slips=0.25)) == pytest.approx(1 + 0.25)
    assert limits.violation(Tally(Composite(), ("slips",))) == np.inf
    assert limits.broken(tally([1, 0], 0.05, slips=0)) == "quality >= 0.8 (it has 0.5)"
    assert NONE.violation(Tally(Composite())) == 0
    assert not NONE
    edge = tally([1, 0], 0.05, slips=0)
    assert Limits(("quality >= 0.5",)).violation(edge) == 0 < Limits(("quality > 0.5",)).violation(edge) < 1e-6


def test_what_fails_keeps_no_limit_by_that() -> None:
    failed = Evaluation(item=Item(split="train", example="a"), error="model: Refused", usage=Usage(calls=1, seconds=1))
    nothing = Tally(Composite(), ("slips",))
    nothing.add([failed])
    assert Limits(("scores.slips <= 0.1",)).violation(nothing) == np.inf
    assert Limits(("tokens >= 5",)).violation(Tally(Composite())) == np.inf


# The laws.

Case = tuple[Floats, Floats]


def _case(shape: tuple[int, int]) -> st.SearchStrategy[Case]:
    broken = arrays(np.float64, shape[0], elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, np.inf]))
    return st.tuples(arrays(np.float64, shape, elements=st.integers(0, 4).map(float)), broken)


cases = st.tuples(st.integers(1, 20), st.integers(1, 4)).flatmap(_case)


def ahead(case: Case, one: int, other: int) -> bool:
    """As Deb et al. 2002 define it, section VI."""
    values, broken = case
    better = bool((values[one] <= values[other]).all() and (values[one] < values[other]).any())
    return bool(broken[one] < broken[other] or (broken[one] == broken[other] and better))


def dominates(case: Case, one: int, other: int) -> bool:
    """As the selection has it: it alone of the two is non-dominated."""
    values, broken = case
    pair = [one, other]
    return bool(front(values[pair], broken[pair]).tolist() == [0])


@settings(max_examples=60, deadline=None)
@given(cases, st.data())
def test_constrained_domination_is_a_strict_partial_order(case: Case, data: st.DataObject) -> None:
    a, b, c = (data.draw(st.integers(0, len(case[0]) - 1)) for _ in range(3))
    assert not dominates(case, a, a)
    assert not (dominates(case, a, b) and dominates(case, b, a))
    if dominates(case, a, b) and dominates(case, b, c):
        assert dominates(case, a, c)


@settings(max_examples=100, deadline=None)
@given(cases, st.data())
def test_it_is_feasibility_then_violation_then_values(case: Case, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, len(case[0]) - 1)) for _ in range(2))
    assert dominates(case, a, b) == ahead(case, a, b)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_nobody_on_the_front_is_dominated(case: Case) -> None:
    values, broken = case
    on = set(front(values, broken).tolist())
    assert on
    for at in range(len(values)):
        assert (at in on) == (not any(ahead(case, other, at) for other in range(len(values))))
    if (broken == 0).any():
        assert (broken[sorted(on)] == 0).all()


@settings(max_examples=80, deadline=None)
@given(cases)
def test_with_everybody_feasible_it_is_plain_nsga2(case: Case) -> None:
    values, _ = case
    plain, limited = rank_and_crowding(values), rank_and_crowding(values, np.zeros(len(values)))
    assert all(np.array_equal(one, other) for one, other in zip(plain, limited, strict=True))


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 20))
def test_whoever_survives_breaks_no_more_than_whoever_does_not(case: Case, k: int) -> None:
    values, broken = case
    kept = survive(values, k, broken)
    gone = np.setdiff1d(np.arange(len(values)), kept)
    assert len(kept) == min(k, len(values))
    assert broken[kept].max(initial=0) <= broken[gone].min(initial=np.inf)
    ranks, crowding = rank_and_crowding(values, broken)
    assert kept.tolist() == order(ranks, crowding)[:k].tolist()


# In a population.


def member(name: str, quality: float, seconds: float, limits: Limits) -> Individual:
    one = Individual(Genome(genes={"rubric": name}), lambda split: Tally(Composite()), limits=limits)
    right = round(20 * quality)
    found = [
        Evaluation(
            item=Item(split="train", example=f"e{n}"),
            quality=float(n < right),
            validator=float(n < right),
            usage=Usage(calls=1, usd=0.001, seconds=seconds),
        )
        for n in range(20)
    ]
    one.learn(found, TWO, 20)
    return one


TWO = (Objective.model_validate("quality"), Objective.model_validate("latency_ms"))
FAST = Limits(("latency_ms <= 100",))


def people(limits: Limits, size: int = 4) -> Population:
    found = Population(size, TWO)
    for name, quality, seconds in (("slow", 1.0, 0.9), ("fair", 0.6, 0.08), ("fast", 0.4, 0.02), ("near", 0.9, 0.12)):
        found.insert(member(name, quality, seconds, limits))
    return found


def names(members: Sequence[Individual]) -> list[str]:
    return [one.genome["rubric"] for one in members]


def test_front_elites_and_survival_are_of_the_feasible() -> None:
    found = people(FAST)
    assert names(found.front()) == ["fair", "fast"]
    assert names(found.elites()) == ["fair", "fast"][: len(found.elites())]
    found.insert(member("new", 0.5, 0.05, FAST))
    assert "slow" not in names(found.members)
    assert not found.insert(member("slower", 1.0, 2.0, FAST))
    assert names(people(NONE).front()) == ["slow", "fair", "fast", "near"]
    assert names(people(NONE).elites())[0] == "slow"


def test_only_feasible_members_have_a_hypervolume() -> None:
    free, limited, hopeless = people(NONE), people(FAST), people(Limits(("latency_ms <= 1",)))
    for found in (free, limited, hopeless):
        found.refer()
    assert 0 == hopeless.hypervolume() < limited.hypervolume() < free.hypervolume()
    assert names(hopeless.front()) == ["fast"]
    assert hopeless.feasible == []
    assert hopeless.contenders() == hopeless.members


def test_parents_are_drawn_by_feasibility() -> None:
    found = people(FAST)
    rng = np.random.default_rng(0)
    assert {found.winner(rng).genome["rubric"] for _ in range(40)} <= {"fair", "fast"}
    drawn = names([found.tournament(rng) for _ in range(300)])
    assert drawn.count("slow") < drawn.count("near") < min(drawn.count("fair"), drawn.count("fast"))


# Before a rule.


def answers(right: float, usd: float, examples: int = 60, **given: Any) -> Candidate:
    """One that has this share of validation right, at a price."""
    right_ones = np.arange(examples) < round(right * examples)
    train = given.pop("train", None)
    made = validated(right_ones.astype(np.float64), usd=usd, latency=given.pop("latency", 100.0))
    return Candidate(given.pop("id", f"{right} for {usd}"), made, train)


def settled(candidates: Sequence[Candidate], rule: str, *constraints: str) -> tuple[str, str]:
    limits, parsed = Limits(constraints, FOUR), parse(rule)
    named = measures(FOUR, parsed, "quality", limits.measures)
    return Contest(candidates, parsed, named, FOUR, 3, limits).decide()


def test_a_constraint_is_promised_as_a_bound_of_the_rule_is() -> None:
    rng = np.random.default_rng(5)
    broken: dict[str, list[bool]] = {"raw": [], "constraint": [], "rule": []}
    for _ in range(30):
        worth = rng.uniform(0.7, 0.95, 7)
        tables = (rng.random((7, 100)) < worth[:, None]).astype(np.float64)
        found = [Candidate(f"{at}", validated(tables[at], usd=worth[at] * 1e-5)) for at in range(7)]
        kept = [at for at in range(7) if tables[at].mean() >= 0.8]
        broken["raw"].append(min(worth[kept]) < 0.8)
        broken["constraint"].append(worth[int(settled(found, "cheapest", "quality >= 0.8")[0])] < 0.8)
        broken["rule"].append(worth[int(settled(found, "cheapest where quality >= 0.8")[0])] < 0.8)
    assert np.mean(broken["raw"]) > 0.3
    assert np.mean(broken["constraint"]) <= 0.1
    assert np.mean(broken["rule"]) <= 0.1


@pytest.mark.parametrize("rule", ["cheapest", "knee", "composite", "fastest where cost_usd <= 1"])
def test_who_surely_keeps_them_is_ahead_of_who_keeps_them_as_measured(rule: str) -> None:
    sure, near = answers(1.0, 2e-5, latency=200), answers(0.85, 1e-6)
    id, why = settled([sure, near], rule, "quality >= 0.8")
    assert id == sure.id
    assert why.startswith(rule)
    assert settled([sure, near], "cheapest")[0] == near.id
    assert settled([sure, near], "cheapest", "quality >= 0.5")[0] == near.id


def test_where_nobody_surely_keeps_them_the_nearest_is_recommended_and_says_so() -> None:
    found = [answers(0.8, 1e-6), answers(0.85, 2e-6), answers(0.7, 1e-7)]
    id, why = settled(found, "cheapest", "quality >= 0.8")
    assert id == found[1].id
    assert why.startswith("no member surely meets quality >= 0.8 (it has 0.85, surely no less than 0.7")
    assert why.endswith("this one is nearest to it")
    assert settled(found[2:], "cheapest", "quality >= 0.8")[1].startswith("cheapest: cost_usd")


def test_whoever_has_no_fault_is_as_near_to_what_nobody_can_promise() -> None:
    trained = [validated((np.arange(90) < right).astype(np.float64)) for right in (88, 60)]
    found = [
        answers(1.0, 2e-5, id="dear", train=trained[0], latency=50),
        answers(1.0, 1e-6, id="cheap", train=trained[1]),
    ]
    found.append(answers(0.95, 1e-7, id="flawed", train=trained[0]))
    id, why = settled(found, "cheapest", "quality >= 1")
    assert id == "cheap"
    assert why.startswith("no member surely meets quality >= 1 (it has 1, surely no less than 0.9")
    assert why.endswith("of 2 as near, cheapest: cost_usd 1e-06")


def test_limits_on_what_the_rule_does_not_name_and_from_the_other_side_hold_too() -> None:
    slow, fast = answers(1.0, 1e-6, latency=200), answers(0.6, 2e-6)
    assert settled([slow, fast], "best quality", "latency_ms p95 <= 170")[0] == fast.id
    assert settled([slow, fast], "best quality", "latency_ms p95 <= 170", "cost <= 1")[0] == fast.id
    assert settled([slow, fast], "fastest", "latency_ms >= 200")[0] == slow.id
    assert settled([slow, fast], "best quality", "quality <= 0.8")[0] == fast.id


# In a search.


def finished(constraints: Sequence[Any], calls: int = 1500, **given: Any) -> tuple[Optimizer, list[Trial]]:
    optimizer, world = search(SETTINGS, given.pop("budget", Budget(calls=calls)), constraints=constraints, **given)
    return optimizer, drive(optimizer, world.run)


def test_what_is_recommended_keeps_the_constraints() -> None:
    free, _ = finished((), 800)
    best = next(one for one in free.front() if one.recommended)
    latency = best.validation["latency_ms"].value
    limit = 0.8 * latency
    optimizer, _ = finished((f"latency_ms <= {limit}",), 800)
    assert all(one.feasible and one.validation["latency_ms"].value <= limit for one in optimizer.front())
    chosen = next(one for one in optimizer.front() if one.recommended)
    assert chosen.why.startswith("best quality")
    assert "constraint" not in chosen.why
    said = optimizer.progress()
    assert said["constraints"] == [{"name": "latency_ms", "operator": "<=", "limit": limit}]
    assert said["feasible"] >= 1
    assert any(one["feasible"] for one in said["front"])


def test_when_nobody_keeps_them_the_nearest_is_recommended_and_it_is_said() -> None:
    optimizer, _ = finished(("latency_ms <= 1", "quality >= 0.1"), 600)
    (only,) = optimizer.front()
    assert not only.feasible
    assert only.recommended
    assert "but it breaks latency_ms <= 1 (it has " in only.why
    assert "no member keeps all constraints" in only.why
    said = optimizer.progress()
    assert said["feasible"] == 0
    assert set(said["hypervolume"]) == {0.0}
    start = optimizer.start_member
    assert start is not None
    assert start.validation["latency_ms"].value >= only.validation["latency_ms"].value


def test_stall_and_target_are_of_the_feasible() -> None:
    optimizer, _ = finished(("latency_ms <= 1",), budget=Budget(generations=3, stall=1, target=0.01))
    assert optimizer.stop_reason == "generations"
    optimizer, _ = finished((), budget=Budget(generations=3, target=0.01))
    assert optimizer.stop_reason == "target"


def test_constraints_of_one_scorer_are_measured_and_reported() -> None:
    polite = {"objective": "scores.label", "aggregate": "p95", "min": 0.5}
    optimizer, _ = finished((polite,), 500)
    member_ = optimizer.front()[0]
    assert member_.validation["scores.label p95"].value == 1.0
    assert optimizer.scorers == ("label",)


def test_without_constraints_nothing_is_said_of_them() -> None:
    optimizer, trials = finished((), 600)
    said = optimizer.progress()
    assert "constraints" not in said
    assert "feasible" not in said
    assert all("feasible" not in one for one in said["front"])
    everybody, again = finished(("quality >= 0", "latency_ms <= 1e9"), 600)
    assert [trial.proposal for trial in again] == [trial.proposal for trial in trials]
    assert {one.genome.id for one in everybody.front()} == {one.genome.id for one in optimizer.front()}


@pytest.mark.parametrize("selection", ["steady", "race"])
def test_arrival_order_changes_nothing_under_constraints(selection: str) -> None:
    given = SETTINGS.model_copy(update={"selection": selection, "lookahead": 6})
    limited = ("latency_ms <= 90", "quality >= 0.3")
    first, world = search(given, Budget(calls=600), constraints=limited)
    reference = [trial.proposal for trial in drive(first, world.run)]
    second, _ = search(given, Budget(calls=600), constraints=limited)
    again = drive(second, world.run, np.random.default_rng(3), 7)
    assert [trial.proposal for trial in sorted(again, key=lambda one: one.proposal.number)] == reference
    assert second.front() == first.front()


def test_what_the_optimizer_refuses() -> None:
    with pytest.raises(ConfigError, match="'qualty' is no objective"):
        search(SETTINGS, constraints=("qualty >= 0.8",))
