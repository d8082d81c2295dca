"""The winner: chosen by what is sure, and reported without the luck of having been chosen. Statistics by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evocluster.records import Evaluation, Item, Usage
from evocluster.search.across import Tasks
from evocluster.search.evidence import means, weigh
from evocluster.search.members import measures
from evocluster.search.objectives import FOUR, Composite, Objective, Tally, built_in
from evocluster.search.paired import versus
from evocluster.search.recommend import parse
from evocluster.search.shrink import Additive, additive
from evocluster.search.winner import Candidate, Contest, crossfit, folds, pick

Floats = NDArray[np.float64]
QUALITY = built_in("quality")
BEST = parse("best quality")
NAN = float("nan")


def chosen(table: Floats, prices: Floats, train: Additive | None = None) -> int:
    """Who is recommended for its quality on the examples of a table."""
    found = {"quality": weigh(means(table, np.ones_like(table)), train)}
    return pick(found, BEST, [QUALITY], [QUALITY], prices)[0]


def reported(table: Floats, fold: NDArray[np.int64], prices: Floats, train: Additive | None = None) -> float:
    """What is reported of the choice."""
    parts = crossfit(fold, lambda kept: chosen(table[:, kept], prices, train))
    return float(np.concatenate([table[winner, held] for held, winner in parts]).mean())


class Drawn(NamedTuple):
    """Means over simulated selections among equal candidates."""

    naive: float
    """The best mean less what it is worth."""
    honest: float
    """The reported value less what the recommended is worth."""


def equals(count: int, examples: int, times: int, hard: float = 0.0, answers: int = 1) -> Drawn:
    """Selections among `count` candidates that are all worth 0.6; `hard`: spread of the examples' difficulty."""
    rng = np.random.default_rng([count, examples, answers])
    fold = folds([f"v{at}" for at in range(examples)])
    naive, honest = [], []
    for _ in range(times):
        chance = 0.6 + hard * rng.uniform(-1, 1, examples)
        table = (rng.random((answers, count, examples)) < chance).mean(axis=0)
        prices = rng.random(count)
        naive.append(table.mean(axis=1).max() - 0.6)
        honest.append(reported(table, fold, prices) - 0.6)
    return Drawn(float(np.mean(naive)), float(np.mean(honest)))


def test_among_equals_the_best_mean_flatters_and_the_report_does_not() -> None:
    found = equals(20, 100, 250)
    assert found.naive > 0.085
    assert abs(found.honest) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "examples", "hard", "answers", "naive"),
    [
        (20, 100, 0.0, 1, 0.088),
        (20, 40, 0.0, 1, 0.13),
        (20, 80, 0.3, 1, 0.09),
        (20, 100, 0.3, 2, 0.055),
        (6, 60, 0.0, 1, 0.075),
    ],
)
def test_the_report_is_within_a_point_over_2000_selections(
    count: int, examples: int, hard: float, answers: int, naive: float
) -> None:
    found = equals(count, examples, 2000, hard, answers)
    assert found.naive > naive
    assert abs(found.honest) <= 0.01


class Finals(NamedTuple):
    """One simulated end of a search: finalists by train, and a bad and cheap start as the last one."""

    worth: Floats
    train: Floats
    validation: Floats
    prices: Floats


def finals(rng: np.random.Generator, bred: int, count: int, sizes: tuple[int, int], sd: float, drift: float) -> Finals:
    """The best `count` of `bred` on train, where they are worth something else by `drift`."""
    worth = 0.55 + np.clip(sd * rng.standard_normal(bred), -0.3, 0.3)
    train = _outcomes(rng, worth + drift * rng.standard_normal(bred), sizes[0])
    for row in train:
        row[int(rng.choice((sizes[0] // 2, sizes[0]))) :] = NAN
    best = np.argsort(-np.nanmean(train, axis=1))[:count]
    worth = np.append(worth[best], 0.45)
    train = np.vstack([train[best], _outcomes(rng, worth[-1:], sizes[0])])
    prices = rng.random(count + 1)
    prices[-1] = 0.01
    return Finals(worth, train, _outcomes(rng, worth, sizes[1]), prices)


def _outcomes(rng: np.random.Generator, worth: Floats, examples: int) -> Floats:
    chance = np.clip(worth[:, None] + 0.1 * rng.uniform(-1, 1, examples), 0, 1)
    return (rng.random(chance.shape) < chance).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bred", "count", "sizes", "sd", "drift"),
    [
        (200, 6, (40, 60), 0.03, 0.03),
        (200, 6, (160, 100), 0.05, 0.03),
        (60, 20, (100, 100), 0.05, 0.0),
        (200, 6, (160, 100), 0.05, 0.08),
        (20, 6, (40, 60), 0.12, 0.03),
    ],
)
def test_of_different_candidates_the_pick_is_as_good_as_the_best_mean_and_cheaper(
    bred: int, count: int, sizes: tuple[int, int], sd: float, drift: float
) -> None:
    rng = np.random.default_rng([bred, count, *sizes])
    fold = folds([f"v{at}" for at in range(sizes[1])])
    gain, price, honest, start = [], [], [], []
    for turn in range(800):
        one = finals(rng, bred, count, sizes, sd, drift)
        fitted, naive = additive(one.train), int(one.validation.mean(axis=1).argmax())
        at = chosen(one.validation, one.prices, fitted)
        gain.append(one.worth[at] - one.worth[naive])
        price.append(one.prices[at] - one.prices[naive])
        start.append(at == count)
        if turn % 2:
            honest.append(reported(one.validation, fold, one.prices, fitted) - one.worth[at])
    assert np.mean(gain) > -0.003
    assert np.mean(price) < 0
    assert np.mean(honest) <= 0.01
    assert np.mean(start) < 0.01


@pytest.mark.slow
def test_train_helps_where_finalists_were_not_chosen_narrowly() -> None:
    rng = np.random.default_rng(11)
    gain = []
    for _ in range(2000):
        one = finals(rng, 24, 12, (100, 60), 0.06, 0.03)
        alone, both = (chosen(one.validation, np.ones(13), train) for train in (None, additive(one.train)))
        gain.append(one.worth[both] - one.worth[alone])
    assert np.mean(gain) > 0.002


def test_a_bound_is_promised_only_where_it_is_sure() -> None:
    rng = np.random.default_rng(12)
    rule = parse("cheapest where quality >= 0.8")
    kept, broken = [], []
    for _ in range(300):
        worth = rng.uniform(0.7, 0.95, 7)
        table = (rng.random((7, 100)) < worth[:, None]).astype(np.float64)
        cost = worth + 0.02 * rng.random(7)
        found = {
            "quality": weigh(means(table, np.ones_like(table))),
            "cost_usd": weigh(means(np.repeat(cost[:, None], 100, axis=1), np.ones_like(table))),
        }
        at, why = pick(found, rule, FOUR, FOUR, cost)
        naive = int(min(np.flatnonzero(table.mean(axis=1) >= 0.8), key=lambda one: cost[one], default=0))
        if "no member surely meets" not in why:
            kept.append(worth[at] < 0.8)
        broken.append(worth[naive] < 0.8)
    assert len(kept) > 200
    assert np.mean(broken) > 0.3
    assert np.mean(kept) < 0.1


# Contests of tallies.


def tally(
    qualities: Sequence[float] | Floats,
    latency: float = 100.0,
    usd: float = 1e-6,
    index: dict[str, int] | None = None,
    **more: Any,
) -> Tally:
    """Outcomes on examples v0, v1, ...; NaN where there is none."""
    found = Tally(Composite(), (), index, more.get("tasks"))
    found.add(
        [
            Evaluation(
                item=Item(split="validation", example=f"v{at}", replicate=replicate),
                quality=quality,
                validator=quality,
                usage=Usage(calls=1, usd=usd, seconds=latency * (1 + at % 7 / 10) / 1000, prompt_tokens=9),
            )
            for at, quality in enumerate(qualities)
            for replicate in range(more.get("replicates", 0) + 1)
            if not np.isnan(quality)
        ]
    )
    return found


def contest(candidates: Sequence[Candidate], rule: str = "best quality", **given: Any) -> Contest:
    parsed = parse(rule)
    objectives: Sequence[Objective] = given.get("objectives", FOUR)
    return Contest(candidates, parsed, measures(objectives, parsed, "quality"), objectives, 3)


def outcomes(seed: int, worth: float, examples: int) -> Floats:
    return (np.random.default_rng(seed).random(examples) < worth).astype(np.float64)


RULES = ("best quality", "composite", "knee", "cheapest where quality >= 0.6", "fastest where quality > 0.5")


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(RULES))
def test_order_changes_nothing_and_a_copy_that_is_nowhere_better_neither(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    tables = [outcomes(seed + at, 0.5 + 0.08 * at, 40) for at in range(4)]
    trains = [outcomes(seed + 9 + at, 0.5 + 0.08 * at, 30) for at in range(4)]
    prices, names = rng.random((4, 2)), [f"v{at}" for at in range(40)]

    def made(at: int, worse: float = 1.0) -> Candidate:
        latency, usd = 50 + 100 * float(prices[at, 0]), 1e-6 * (1 + float(prices[at, 1]))
        return Candidate(
            f"{'copy' if worse > 1 else 'g'}{at}", tally(tables[at], latency * worse, usd * worse), tally(trains[at])
        )

    one = contest([made(at) for at in range(4)], rule)
    other = contest([made(int(at)) for at in rng.permutation(4)], rule)
    more = contest([made(at) for at in range(4)] + [made(2, 1.5)], rule)
    assert one.decide() == other.decide() == more.decide()
    values = [
        found[0].value(QUALITY) for found in (one.honest(names), other.honest(names), more.honest(names)) if found
    ]
    assert len(values) == 3
    assert len(set(values)) == 1


def test_the_order_of_examples_changes_nothing() -> None:
    tables = [outcomes(at, 0.6, 60) for at in range(5)]
    order = np.random.default_rng(1).permutation(60)
    index = {f"v{at}": place for place, at in enumerate(order)}
    one = contest([Candidate(f"g{at}", tally(table)) for at, table in enumerate(tables)])
    other = contest([Candidate(f"g{at}", tally(table, index=dict(index))) for at, table in enumerate(tables)])
    assert one.decide() == other.decide()
    first, second = one.honest([f"v{at}" for at in range(60)]), other.honest(list(index))
    assert first is not None
    assert second is not None
    assert first[0].value(QUALITY) == pytest.approx(second[0].value(QUALITY))


def test_equals_but_for_noise_go_to_the_cheaper_and_others_do_not() -> None:
    good, same, bad = outcomes(1, 0.8, 100), outcomes(1, 0.8, 100), outcomes(2, 0.5, 100)
    same[int(np.flatnonzero(same == 1)[0])] = 0
    same[int(np.flatnonzero(same == 0)[1])] = 1
    same[int(np.flatnonzero(same == 0)[2])] = 1
    found = [Candidate("dear", tally(same, usd=1e-5)), Candidate("cheap", tally(good, usd=1e-6))]
    id, why = contest([*found, Candidate("bad", tally(bad, usd=1e-9))]).decide()
    assert id == "dear"
    assert why.startswith("best quality: quality 0.")
    same[int(np.flatnonzero(same == 1)[0])] = 0
    id, why = contest(
        [*found[1:], Candidate("dear", tally(same, usd=1e-5)), Candidate("bad", tally(bad, usd=1e-9))]
    ).decide()
    assert id == "cheap"


def test_train_settles_what_validation_leaves_open() -> None:
    same = outcomes(4, 0.8, 60)
    other = same.copy()
    other[[int(np.flatnonzero(same == 1)[0]), int(np.flatnonzero(same == 0)[0])]] = (0, 1)
    better, worse = outcomes(5, 0.9, 200), outcomes(6, 0.7, 200)
    pair = [Candidate("a", tally(same), tally(better)), Candidate("b", tally(other), tally(worse))]
    assert contest(pair).decide()[0] == "a"
    swapped = [Candidate("a", tally(same), tally(worse)), Candidate("b", tally(other), tally(better))]
    assert contest(swapped).decide()[0] == "b"


def test_a_bound_that_nobody_surely_meets_is_named_with_what_is_sure() -> None:
    candidates = [Candidate("a", tally([1.0] * 26 + [0.0] * 4)), Candidate("b", tally([1.0] * 20 + [0.0] * 10))]
    id, why = contest(candidates, "cheapest where quality >= 0.85").decide()
    assert id == "a"
    assert why.startswith("no member surely meets quality >= 0.85 (it has 0.8667, surely no less than 0.7")
    assert why.endswith("this one is nearest to it")
    many = [Candidate(one.id, tally(list(np.tile([1.0] * 19 + [0.0], 20)))) for one in candidates]
    assert (
        contest(many, "cheapest where quality >= 0.85").decide()[1].startswith("cheapest where quality >= 0.85: cost")
    )
    assert "latency_ms <= 90" in contest(candidates, "best quality where latency_ms <= 90").decide()[1]


def test_several_tasks_and_p95_are_held_to_what_is_sure_too() -> None:
    index = {f"v{at}": at for at in range(40)}
    tasks = Tasks.among(index, lambda id: "one" if int(id[1:]) < 30 else "two", "worst")
    even, uneven = [1.0, 0.0, 1.0, 1.0] * 10, [1.0] * 30 + [0.0, 1.0] * 5
    candidates = [
        Candidate("even", tally(even, index=dict(index), tasks=tasks)),
        Candidate("uneven", tally(uneven, index=dict(index), tasks=tasks)),
    ]
    assert contest(candidates).decide()[0] == "even"
    slowest = Objective.model_validate({"latency": "p95"})
    fast = [Candidate("slow", tally(even, latency=100)), Candidate("fast", tally(even, latency=50))]
    assert contest(fast, "fastest", objectives=(QUALITY, slowest)).decide()[0] == "fast"
    assert contest(fast, "best quality where latency_ms < 90", objectives=(QUALITY, slowest)).decide()[0] == "fast"


def test_different_examples_each_are_adjusted_for() -> None:
    easy, hard = [1.0] * 30, [1.0, 0.0, 0.0] * 10
    easy[3] = 0.0
    index: dict[str, int] = {f"v{at}": at for at in range(60)}
    some, most = [*easy, *[NAN] * 30], [*([1.0] * 30), *hard]
    candidates = [
        Candidate("easy", tally(some, index=index)),
        Candidate("whole", tally(most, index=index)),
        Candidate("other", tally([*easy, *hard], index=index)),
    ]
    assert tally(some).value(QUALITY) > tally(most).value(QUALITY) + 0.2
    found = contest(candidates)
    assert found.decide()[0] == "whole"
    assert found.honest([f"v{at}" for at in range(60)]) is not None


def test_one_whose_calls_all_failed_is_nobody_s_winner() -> None:
    failed = Tally(Composite())
    failed.add([Evaluation(item=Item(split="validation", example=f"v{at}"), error="model: gone") for at in range(20)])
    candidates = [Candidate("failed", failed), Candidate("works", tally([1.0, 0.0] * 10))]
    for rule in RULES:
        assert contest(candidates, rule).decide()[0] == "works"
    with pytest.raises(ValueError, match="no candidate"):
        contest([])


def test_folds_go_by_name_alone_and_are_of_a_size() -> None:
    for count, parts in ((7, 7), (40, 10), (103, 5)):
        fold = folds([f"v{at}" for at in range(count)])
        assert sorted(set(fold.tolist())) == list(range(parts))
        assert np.ptp(np.bincount(fold)) <= 1
    names = [f"v{at}" for at in range(40)]
    assert folds(names[::-1])[::-1].tolist() == folds(names).tolist()
    # Labels that come round by turns must not make folds of one label each.
    labels = np.arange(100) % 5
    assert all(len(set(labels[folds([f"v{at}" for at in range(100)]) == one])) == 5 for one in range(5))
    assert contest([Candidate("a", tally([1.0]))]).honest(["v0"]) is None


def test_replicates_of_an_example_are_one_example() -> None:
    table = outcomes(8, 0.7, 30)
    once, thrice = tally(table), tally(table, replicates=2)
    widths = []
    for one in (once, thrice):
        found = one.interval(QUALITY, np.random.default_rng(0))
        widths.append(found.high - found.low)
    assert (once.once, thrice.once, thrice.items) == (30, 30, 90)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


# The paired test against the start.


def test_versus_counts_what_changed_exactly() -> None:
    found = versus(np.array([1.0] * 8 + [-1.0] + [0.0] * 31))
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert found.difference == pytest.approx(7 / 40)
    assert found.n == 40
    assert 0 < found.low < 7 / 40 < found.high < 0.4
    nothing = versus(np.zeros(20))
    assert (nothing.p, nothing.difference) == (1.0, 0.0)
    assert nothing.low < 0 < nothing.high
    with pytest.raises(ValueError, match="no example"):
        versus(np.zeros(0))


def test_versus_flips_signs_where_outcomes_are_graded() -> None:
    assert versus(np.array([0.5, 0.25, 0.4, 0.1, 0.3])).p == pytest.approx(2 / 32)
    rng = np.random.default_rng(4)
    found = versus(0.2 + 0.3 * rng.standard_normal(60))
    assert found.p < 0.01
    assert found.low > 0
    even = versus(0.3 * rng.standard_normal(60))
    assert even.p > 0.05
    assert even.low <= 0 <= even.high


@pytest.mark.slow
def test_versus_says_there_is_a_difference_in_one_of_twenty_where_there_is_none() -> None:
    rng = np.random.default_rng(6)
    exact = [versus(rng.choice((-1.0, 0.0, 1.0), 80, p=(0.15, 0.7, 0.15))).p for _ in range(2000)]
    assert np.mean(np.array(exact) < 0.05) <= 0.06
    graded = [versus(rng.standard_normal(40)).p for _ in range(300)]
    assert np.mean(np.array(graded) < 0.05) <= 0.09
