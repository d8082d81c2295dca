"""The bandit's laws: weights, assignment, forgetting, weighing, missing rewards."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.release.bandit import (
    Arm,
    assign,
    best,
    cap,
    episodes,
    held_out,
    missing,
    newcomer,
    observe,
    ramped,
    weight,
    weights,
)
from evocluster.release.settings import Bandit

SETTINGS = Bandit()
ARMS = st.dictionaries(
    st.sampled_from("abcde"),
    st.builds(Arm, alpha=st.floats(0, 2000), beta=st.floats(0, 2000), rewards=st.integers(0, 500)),
    min_size=1,
)
SHARES = st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 1), min_size=1)


@given(ARMS, st.floats(0.02, 1.0), st.data())
def test_weights_keep_floor_and_cap(arms: dict[str, Arm], most: float, data: st.DataObject) -> None:
    incumbent = data.draw(st.sampled_from(sorted(arms)))
    shares = weights(arms, incumbent, most, SETTINGS)
    challengers = [share for name, share in shares.items() if name != incumbent]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[incumbent] >= SETTINGS.floor - 1e-12
    assert sum(challengers) <= most + 1e-12
    lowest = min(SETTINGS.floor, most / max(1, len(challengers)))
    assert all(share >= lowest - 1e-12 for share in challengers)
    assert weights(dict(reversed(arms.items())), incumbent, most, SETTINGS) == shares


@given(ARMS)
def test_chances_are_a_distribution(arms: dict[str, Arm]) -> None:
    chances = best(arms)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert all(chance >= 0 for chance in chances.values())


def test_chances_are_those_of_draws() -> None:
    arms = {"a": Arm(alpha=30, beta=10), "b": Arm(alpha=7, beta=3), "c": Arm(alpha=300, beta=120)}
    rng = np.random.default_rng(1)
    draws = np.array([rng.beta(arm.a, arm.b, 400_000) for arm in arms.values()])
    seen = np.bincount(draws.argmax(axis=0), minlength=3) / draws.shape[1]
    assert list(best(arms).values()) == pytest.approx(list(seen), abs=0.005)


def test_incumbent_must_be_an_arm() -> None:
    with pytest.raises(ValueError, match="incumbent 'z' is no arm"):
        weights({"a": Arm()}, "z", 0.2, SETTINGS)


def test_ramp_waits_for_rewards_and_hours_then_goes_a_step_an_epoch() -> None:
    known, new = Arm(rewards=100), Arm(rewards=99)
    assert ramped(0, {"i": Arm(), "c": new}, "i", 48, SETTINGS) == 0
    assert ramped(0, {"i": Arm(), "c": known}, "i", 23.9, SETTINGS) == 0
    assert ramped(0, {"i": Arm(), "c": known, "d": new}, "i", 48, SETTINGS) == 0
    steps = [0]
    for _ in range(4):
        steps.append(ramped(steps[-1], {"i": Arm(), "c": known}, "i", 24, SETTINGS))
    assert steps == [0, 1, 2, 3, 3]
    assert [cap(step, SETTINGS) for step in steps] == [0.2, 0.35, 0.5, 1.0, 1.0]


@given(SHARES)
def test_shares_of_episodes_become_the_weights(shares: dict[str, float]) -> None:
    picks = Counter(assign(shares, "secret", "experiment", str(episode)).arm for episode in range(2000))
    total = sum(shares.values())
    for name, share in shares.items():
        p = share / total
        assert abs(picks[name] / 2000 - p) <= 5 * (p * (1 - p) / 2000) ** 0.5 + 1e-9


@given(SHARES, st.text(), st.text(), st.text())
def test_replicas_agree_and_propensity_is_the_weight(
    shares: dict[str, float], secret: str, experiment: str, episode: str
) -> None:
    pick = assign(shares, secret, experiment, episode)
    assert pick == assign(dict(reversed(shares.items())), secret, experiment, episode)
    assert pick.propensity == pytest.approx(shares[pick.arm] / sum(shares.values()))


@given(st.floats(0, 1), st.floats(0, 1))
def test_change_of_weights_moves_only_what_it_must(before: float, after: float) -> None:
    moved = 0
    for episode in range(500):
        first = assign({"a": 1 - before, "b": before}, "s", "e", str(episode)).arm
        second = assign({"a": 1 - after, "b": after}, "s", "e", str(episode)).arm
        if first != second:
            moved += 1
            assert second == ("b" if after > before else "a")
    assert moved / 500 <= abs(after - before) + 5 * (0.25 / 500) ** 0.5


def test_experiment_and_episode_cannot_be_shifted_into_each_other() -> None:
    pairs = [(("ab", "c"), ("a", "bc"))] + [((f"x{n}", "y"), ("x", f"{n}y")) for n in range(20)]
    halves = {"a": 0.5, "b": 0.5}
    assert any(assign(halves, "s", *one).arm != assign(halves, "s", *other).arm for one, other in pairs)


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="give no arm any episode"):
        assign({"a": 0.0}, "s", "e", "1")


def test_hold_out_is_an_assignment() -> None:
    shares = held_out("old", "new", 0.05)
    picks = Counter(assign(shares, "s", "holdout", str(n)).arm for n in range(4000))
    assert picks["old"] / 4000 == pytest.approx(0.05, abs=0.015)


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 3000))
def test_forgetting_goes_back_to_the_prior(rewards: list[float], idle: int) -> None:
    arms = {"a": newcomer(0.7, 50, SETTINGS), "b": Arm()}
    for reward in rewards:
        arms = observe(arms, "a", reward, SETTINGS)
    before = arms["a"]
    after = before.decayed(idle, SETTINGS.discount)
    prior = newcomer(0.7, 50, SETTINGS)
    assert abs(after.estimate - prior.estimate) <= abs(before.estimate - prior.estimate) + 1e-12
    assert after.alpha <= before.alpha
    assert after.rewards == len(rewards)
    assert arms["b"].estimate == 0.5
    assert before.decayed(10**6, SETTINGS.discount).a == pytest.approx(prior.a)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_arm_knows_mean_and_variance_and_survives_json(rewards: list[float]) -> None:
    arms = {"a": Arm()}
    for reward in rewards:
        arms = observe(arms, "a", reward, SETTINGS)
    assert arms["a"].mean == pytest.approx(np.mean(rewards))
    assert arms["a"].squares == pytest.approx(np.var(rewards) * len(rewards), abs=1e-9)
    assert Arm.model_validate(json.loads(arms["a"].model_dump_json())) == arms["a"]


def test_weight_is_one_until_thirty_rewards_then_what_their_variance_says() -> None:
    rng = np.random.default_rng(1)
    arms = {"a": Arm(), "b": Arm()}
    for n in range(300):
        if n < 30:
            assert weight(arms, "a", SETTINGS) == 1.0
        arms = observe(arms, "a", float(np.clip(rng.normal(0.7, 0.2), 0, 1)), SETTINGS)
    known = arms["a"]
    assert 4 < weight(arms, "a", SETTINGS) < 8
    assert weight(arms, "a", SETTINGS) == pytest.approx(known.mean * (1 - known.mean) / (known.squares / 299))
    assert weight(arms, "b", SETTINGS) == 1.0
    same = {"a": Arm()}
    for _ in range(40):
        same = observe(same, "a", 0.5, SETTINGS)
    assert weight(same, "a", SETTINGS) == SETTINGS.most_weight
    coins = {"a": Arm()}
    for n in range(40):
        coins = observe(coins, "a", float(n % 2), SETTINGS)
    assert weight(coins, "a", SETTINGS) == 1.0


def test_prior_of_a_new_arm_is_centred_on_its_estimate_with_little_mass() -> None:
    arm = newcomer(0.8, 5000, SETTINGS)
    assert arm.estimate == pytest.approx(0.8)
    assert arm.a + arm.b == pytest.approx(10)
    assert newcomer(0.8, 4, SETTINGS).a + newcomer(0.8, 4, SETTINGS).b == pytest.approx(4, abs=0.5)
    assert newcomer(None, 0, SETTINGS) == Arm()
    with pytest.raises(ValueError, match=r"shadow estimate 1\.2"):
        newcomer(1.2, 10, SETTINGS)


def test_reward_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward -0\.1 is not within"):
        observe({"a": Arm()}, "a", -0.1, SETTINGS)


def test_rewards_of_an_episode_average() -> None:
    assert episodes([("x", 1.0), ("y", 0.5), ("x", 0.0)]) == {"x": 0.5, "y": 0.5}


def test_unequal_missing_rates_are_a_warning() -> None:
    assert missing({"a": 800, "b": 200}, {"a": 400, "b": 100}) == ""
    assert "b: 75.0%" in missing({"a": 800, "b": 200}, {"a": 400, "b": 50})
    assert missing({"a": 8, "b": 4}, {"a": 8}) == ""
    assert missing({"a": 800}, {"a": 1}) == ""
    with pytest.raises(ValueError, match="more than exposures"):
        missing({"a": 1, "b": 1}, {"a": 2})
