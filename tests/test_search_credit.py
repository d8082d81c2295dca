"""Credit: who gets the next draw, and whether that is better than drawing evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.search.credit import FLOORS, Bandit, Credit, Shares, shares

NAMES = tuple("abcdefgh")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_credit_shares_draws_by_success_with_a_floor() -> None:
    credit = Credit(["mutate", "crossover", "demos"])
    for _ in range(200):
        credit.count("mutate", True)
        credit.count("crossover", False)
        credit.count("unknown", True)
    chances = credit.probabilities()
    assert sum(chances.values()) == pytest.approx(1)
    assert chances["mutate"] > chances["demos"] > chances["crossover"] >= Credit.FLOOR
    draws = [credit.draw(rng(seed)) for seed in range(400)]
    assert 0.02 < draws.count("crossover") / 400 < 0.12
    assert credit.state()["mutate"]["uses"] == 200


def test_steady_keeps_its_credit() -> None:
    assert isinstance(shares("steady", NAMES), Credit)
    assert isinstance(shares("race", NAMES), Bandit)


payments = st.lists(
    st.tuples(st.sampled_from((*NAMES, "unknown")), st.floats(0, 1e12) | st.just(0.0), st.integers(0, 10_000)),
    max_size=60,
)


@given(payments, st.sampled_from((1, 3, 8)))
def test_chances_are_shares_with_a_floor(paid: list[tuple[str, float, int]], count: int) -> None:
    bandit = Bandit(NAMES[:count])
    for name, gain, calls in paid:
        bandit.pay(name, gain, calls)
    chances = bandit.probabilities()
    assert sum(chances.values()) == pytest.approx(1)
    assert min(chances.values()) >= FLOORS / count - 1e-9
    assert bandit.draw(rng(), among=NAMES[count - 1 :]) == NAMES[count - 1]


@given(payments, st.floats(1e-9, 1e9))
def test_only_relative_gains_matter(paid: list[tuple[str, float, int]], scale: float) -> None:
    one, other = Bandit(NAMES), Bandit(NAMES)
    for name, gain, calls in paid:
        gain = gain if gain > 1e-3 else 0.0
        one.pay(name, gain, calls)
        other.pay(name, gain * scale, calls)
    assert one.probabilities() == pytest.approx(other.probabilities(), abs=1e-6)


def test_without_any_gain_the_prior_rules() -> None:
    bandit = Bandit(NAMES, {"a": 0.2})
    at_first = bandit.probabilities()
    assert at_first["b"] == at_first["h"] > 2 * at_first["a"]
    draws = rng(4)
    for _ in range(300):
        bandit.pay(bandit.draw(draws), 0.0, 20)
    chances = bandit.probabilities()
    assert max(chances.values()) < 2 / len(NAMES)
    assert min(chances.values()) == chances["a"]


def test_a_child_that_gains_the_same_for_fewer_calls_pays_more() -> None:
    bandit = Bandit(("cheap", "dear"), {})
    for _ in range(30):
        bandit.pay("cheap", 1.0, 10)
        bandit.pay("dear", 1.0, 40)
    assert bandit.probabilities()["cheap"] > 0.8
    assert bandit.state()["dear"] == {
        "uses": 30, "successes": 30, "gain": 30.0, "calls": 1200,
        "probability": bandit.probabilities()["dear"],
    }  # fmt: skip


def test_one_lucky_child_is_no_rule() -> None:
    lucky, even = Bandit(NAMES, {}), Bandit(NAMES, {})
    for bandit, gain in ((lucky, 1e9), (even, 5.0)):
        for _ in range(5):
            for name in NAMES:
                bandit.pay(name, 1.0, 10)
        bandit.pay("a", gain, 10)
    assert lucky.probabilities()["a"] < 1.2 * even.probabilities()["a"]
    draws = rng(1)
    for _ in range(150):
        name = lucky.draw(draws)
        lucky.pay(name, float(name == "b"), 10)
    assert lucky.probabilities()["b"] > 0.5


def test_an_operator_that_always_fails_for_nothing_loses_its_draws() -> None:
    bandit = Bandit(("works", "fails"), {})
    for at in range(60):
        bandit.pay("works", float(at % 4 == 0), 20)
        bandit.pay("fails", 0.0, 0)
    assert bandit.probabilities()["fails"] < 0.2


def test_survivors_count_where_gains_are_not_known() -> None:
    bandit = Bandit(NAMES, {})
    for _ in range(20):
        bandit.count("c", True)
        bandit.count("d", False)
    assert max(bandit.probabilities(), key=bandit.probabilities().__getitem__) == "c"


def test_there_is_no_draw_among_none() -> None:
    with pytest.raises(ValueError, match="no operator to draw among \\['x'\\]"):
        Bandit(NAMES).draw(rng(), among=["x"])


class Even(Credit):
    """Draws evenly, for comparison."""

    def probabilities(self) -> dict[str, float]:
        return dict.fromkeys(NAMES, 1 / len(NAMES))


def gained(make: Callable[[Sequence[str]], Shares], seed: int, budget: int = 6000, lag: int = 12) -> list[float]:
    """What a run gains before and after its best operator changes from b to g, in usual gains of each moment, while
    gains shrink and payment comes late; and what it then gives to b and g.
    """
    draws, one, waiting, spent, total = rng(seed), make(NAMES), list[tuple[str, float, int]](), 0, [0.0, 0.0]
    while spent < budget:
        late, scale = int(spent >= budget / 2), np.exp(-4 * spent / budget)
        name = one.draw(draws)
        won = draws.random() < (0.35 if name == "bg"[late] else 0.05)
        gain = float(draws.lognormal()) if won else 0.0
        calls = 24 if won else 12
        spent += calls
        total[late] += gain
        waiting.append((name, gain * scale, calls))
        if len(waiting) > lag:
            one.pay(*waiting.pop(0))
    chances = one.probabilities()
    return [*total, chances["b"], chances["g"]]


def test_it_gains_more_than_even_draws_and_notices_a_change() -> None:
    mine, even, old = (np.mean([gained(make, seed) for seed in range(8)], axis=0) for make in (Bandit, Even, Credit))
    assert mine[0] > 1.5 * even[0]
    assert mine[1] > 1.1 * even[1]
    assert mine[:2].sum() > 1.2 * old[:2].sum()
    assert mine[3] > 2 * mine[2]
