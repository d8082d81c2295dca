"""The race: paired looks that send a child away only when it is surely behind, with the declared error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from evocluster.records import Evaluation, Item, Usage
from evocluster.search.across import Tasks
from evocluster.search.objectives import FOUR, Composite, Objective, Tally
from evocluster.search.race import behind, chance, spent

QUALITY = (Objective.model_validate("quality"),)
OUTCOMES = (*QUALITY, Objective.model_validate("robustness"))


def tally(
    outcomes: Sequence[float], ms: float = 100.0, usd: float = 1e-5, first: int = 0, tasks: Tasks | None = None
) -> Tally:
    """Outcomes of examples `first`, `first + 1`, ..., all taking the same."""
    made = Tally(Composite(), index={f"e{i}": i for i in range(200)}, tasks=tasks)
    usage = Usage(calls=1, usd=usd, seconds=ms / 1000)
    made.add(
        [
            Evaluation(item=Item(split="train", example=f"e{first + i}"), quality=q, validator=q, usage=usage)
            for i, q in enumerate(outcomes)
        ]
    )
    return made


def test_chance_is_the_exact_test_of_discordant_pairs() -> None:
    worse = np.array([1.0] * 6 + [-1.0] + [0.0] * 9)
    assert chance(worse) == pytest.approx(binomtest(6, 7, alternative="greater").pvalue)
    assert chance(np.zeros(30)) == 1.0


def test_chance_of_graded_outcomes_is_more_careful_than_students_t() -> None:
    worse = np.random.default_rng(1).normal(0.2, 0.3, 24)
    assert ttest_1samp(worse, 0, alternative="greater").pvalue < chance(worse) < 0.1
    assert chance(np.full(3, 0.1)) > 0.25, "few equal differences prove little"


def test_a_child_that_takes_clearly_less_is_not_behind() -> None:
    wrong, right = [0.0] * 16, [1.0] * 16
    assert behind(tally(wrong), tally(right), FOUR, 0.05)
    assert behind(tally(wrong, usd=0.95e-5, ms=96), tally(right), FOUR, 0.05), "a few per cent are no saving"
    assert not behind(tally(wrong, usd=0.8e-5), tally(right), FOUR, 0.05)
    assert not behind(tally(wrong, ms=80), tally(right), FOUR, 0.05)


def test_only_shared_examples_are_compared() -> None:
    rival = tally([1.0] * 8, first=0)
    assert not behind(tally([0.0] * 8, first=8), rival, QUALITY, 0.2)
    assert behind(tally([0.0] * 12, first=2), rival, QUALITY, 0.2)


def test_a_child_has_to_be_behind_in_every_outcome() -> None:
    right, wrong = tally([1.0] * 12), tally([0.0] * 12)
    assert behind(wrong, right, OUTCOMES, 0.05)
    mended = Tally(Composite(), index={f"e{i}": i for i in range(200)})
    mended.add(
        [
            Evaluation(item=Item(split="train", example=f"e{i}"), quality=1.0, validator=1.0, repairs=1)
            for i in range(12)
        ]
    )
    # Wrong on quality, yet never repaired: as robust as the other, so it is kept.
    assert not behind(wrong, mended, OUTCOMES, 0.05)


def test_with_the_worst_task_counting_it_has_to_be_behind_in_each() -> None:
    names = Tasks(("a", "b"), np.arange(200) % 2, "worst")
    better_in_b = [float(i % 2) for i in range(24)]
    other = [float(1 - i % 2) for i in range(24)]
    assert not behind(tally(better_in_b, tasks=names), tally(other, tasks=names), QUALITY, 0.05)
    assert behind(tally([0.0] * 24, tasks=names), tally([1.0] * 24, tasks=names), QUALITY, 0.05)


def test_with_the_mean_of_tasks_a_small_task_counts_as_much() -> None:
    # Of 40 examples 8 are task b; the child loses all of b and wins less than all of a.
    names = Tasks(("a", "b"), np.array([int(i % 5 == 4) for i in range(200)]), "mean")
    child = tally([0.0 if i % 5 == 4 else float(i % 4 == 0) for i in range(40)], tasks=names)
    rival = tally([1.0 if i % 5 == 4 else 0.0 for i in range(40)], tasks=names)
    assert behind(child, rival, QUALITY, 0.05)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.floats(0.01, 0.5))
def test_nobody_is_behind_its_equal(outcomes: list[float], alpha: float) -> None:
    assert not behind(tally(outcomes), tally(outcomes), FOUR, alpha)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.floats(0.01, 0.49))
def test_two_are_never_behind_each_other(pairs: list[tuple[bool, bool]], alpha: float) -> None:
    one, other = tally([float(a) for a, _ in pairs]), tally([float(b) for _, b in pairs])
    assert not (behind(one, other, QUALITY, alpha) and behind(other, one, QUALITY, alpha))


@pytest.mark.parametrize(("best", "rivals"), [(0.6, 0.6), (0.65, 0.6), (0.7, 0.6)])
def test_the_best_is_sent_away_no_more_often_than_declared(best: float, rivals: float) -> None:
    alpha, block, looks, against, races = 0.2, 8, 5, 3, 150
    rng = np.random.default_rng(11)
    lost = 0
    for _ in range(races):
        size = block * looks
        child = (rng.random(size) < best).astype(float)
        others = [tally((rng.random(size) < rivals).astype(float).tolist()) for _ in range(against)]
        error = spent(alpha, looks) / against
        lost += any(
            behind(tally(child[: block * look].tolist()), other, QUALITY, error)
            for look in range(1, looks + 1)
            for other in others
        )
    assert lost / races <= alpha
    assert best > rivals or lost > 0, "with equals, an error that is never made is no test"


def test_a_bad_child_is_sent_away_after_few_looks() -> None:
    rng = np.random.default_rng(3)
    needed = []
    for _ in range(100):
        child, rival = (rng.random(40) < 0.1).astype(float), (rng.random(40) < 0.75).astype(float)
        looks = [
            look
            for look in range(1, 6)
            if behind(tally(child[: 8 * look].tolist()), tally(rival.tolist()), QUALITY, spent(0.2, 5) / 3)
        ]
        needed.append(looks[0] if looks else 6)
    assert np.median(needed) <= 2
    assert np.mean(np.array(needed) <= 3) > 0.9
