"""Which arm answers an episode: Thompson sampling over Beta posteriors, published as weights once an epoch.

Rewards go into an arm's posterior (`observe`), posteriors become weights (`weights`), and weights and an episode's name
become the arm (`assign`): a pure function, so that all replicas agree without asking anybody. Sources: Thompson
(Biometrika 25, 1933); forgetting: Raj & Kalyani, "Taming non-stationary bandits" (2017); weights published in batches:
Kalkanli & Özgür (2021). P(best) is integrated, not sampled: the same posteriors always give the same weights.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evocluster.records import Record, born
from evocluster.release.settings import Bandit

Floats = NDArray[np.float64]

LEAST_VARIANCE = 0.01
"""Of rewards, when they are weighed: a few that happen to be alike are not certain."""
LEAST_PRIOR = 0.5
"""Either parameter of a prior is at least this (Jeffreys): an estimate of 0 or 1 is not certain."""
NODES = 257
"""Quantiles of each arm between which P(best) is integrated."""
MISSING_P = 0.001
"""Below this p of the chi-square test rewards are missing from the arms unequally."""
LEAST_EXPECTED = 5.0
"""Exposures a cell of that test must expect; with fewer its p means nothing."""
NO_CHANCE = 1e-12
"""Where nobody has a chance to be measured by, shares are alike."""
UNIT = 2.0**-53


class Arm(Record):
    """What is known of one arm: a Beta posterior of its mean reward, and the rewards' own mean and variance."""

    prior_alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    prior_beta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Excess over the prior, discounted."""
    beta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    rewards: int = Field(default=0, ge=0)
    """Matured rewards so far, not discounted."""
    mean: float = 0.0
    """Of all of them."""
    squares: float = Field(default=0.0, ge=0)
    """Sum of their squared deviations from the mean (Welford)."""

    @property
    def a(self) -> float:
        """First parameter of the posterior."""
        return self.prior_alpha + self.alpha

    @property
    def b(self) -> float:
        """Second parameter of the posterior."""
        return self.prior_beta + self.beta

    @property
    def estimate(self) -> float:
        """Posterior mean of the reward."""
        return self.a / (self.a + self.b)

    def decayed(self, observations: int, discount: float) -> Arm:
        """The arm after so many observations: its posterior goes back toward the prior, its counts stay."""
        kept = discount**observations
        return born(Arm, {**self.__dict__, "alpha": self.alpha * kept, "beta": self.beta * kept})

    def rewarded(self, reward: float, weight: float) -> Arm:
        """The arm after one more reward in [0, 1], which counts as `weight` trials."""
        count = self.rewards + 1
        off = reward - self.mean
        mean = self.mean + off / count
        return born(
            Arm,
            {
                **self.__dict__,
                "alpha": self.alpha + weight * reward,
                "beta": self.beta + weight * (1.0 - reward),
                "rewards": count,
                "mean": mean,
                "squares": self.squares + off * (reward - mean),
            },
        )


class Pick(NamedTuple):
    """The arm of an episode, and the probability with which it was picked."""

    arm: str
    propensity: float


def newcomer(estimate: float | None, samples: int, settings: Bandit) -> Arm:
    """A new arm, its prior centred on its shadow estimate; of mass `samples`, at most `prior_mass`.

    Without an estimate: uniform. Give the incumbent its own side of the same pairs, so that neither starts ahead.
    """
    mass = min(settings.prior_mass, float(samples))
    if estimate is None or mass <= 0:
        return Arm()
    _within(estimate, "shadow estimate")
    return Arm(
        prior_alpha=max(LEAST_PRIOR, estimate * mass),
        prior_beta=max(LEAST_PRIOR, (1.0 - estimate) * mass),
    )


def observe(arms: Mapping[str, Arm], arm: str, reward: float, settings: Bandit) -> dict[str, Arm]:
    """The arms after one matured reward of an episode of `arm`: all forget a little, that one learns.

    All forget, because time passes for all (Raj & Kalyani, algorithm 1): an arm that is hardly played grows uncertain.

    Raises: ValueError (reward outside [0, 1]); KeyError (no such arm: rewards of arms that are gone are not for these).
    """
    _within(reward, "reward")
    after = {name: state.decayed(1, settings.discount) for name, state in arms.items()}
    after[arm] = after[arm].rewarded(reward, weight(arms, arm, settings))
    return after


def weight(arms: Mapping[str, Arm], arm: str, settings: Bandit) -> float:
    """Bernoulli trials that a reward of this arm is worth: clip(m(1 - m) / s^2, 1, `most_weight`).

    A Beta posterior takes a reward for a coin; judged scores vary less than coins do, so each says more. s^2 is pooled
    over the arms; until `weigh_after` rewards of this arm a reward is one trial.
    """
    known = arms[arm]
    if known.rewards < settings.weigh_after:
        return 1.0
    freedom = sum(max(0, each.rewards - 1) for each in arms.values())
    variance = max(LEAST_VARIANCE, sum(each.squares for each in arms.values()) / max(1, freedom))
    return min(settings.most_weight, max(1.0, known.mean * (1.0 - known.mean) / variance))


def episodes(rewards: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Episode -> its reward: several rewards of an episode average, since the episode is what was assigned."""
    sums: dict[str, list[float]] = {}
    for episode, reward in rewards:
        sums.setdefault(episode, []).append(reward)
    return {episode: sum(each) / len(each) for episode, each in sums.items()}


def best(arms: Mapping[str, Arm]) -> dict[str, float]:
    """Arm -> P(its mean reward is the highest); they sum to 1.

    The integral of dF_k times the product of the others' F, by trapezoids between the quantiles of all arms: for two
    arms it is exact but for the grid (an error below 1e-4), and no draws are needed.
    """
    from scipy.special import betainc, betaincinv

    names = sorted(arms)
    if len(names) == 1:
        return {names[0]: 1.0}
    levels = (np.arange(NODES) + 0.5) / NODES
    grid = np.unique(np.concatenate([[0.0, 1.0], *(betaincinv(arms[name].a, arms[name].b, levels) for name in names)]))
    below: Floats = np.array([betainc(arms[name].a, arms[name].b, grid) for name in names])
    steps = np.diff(below, axis=1)
    chances = []
    for row in range(len(names)):
        others = np.prod(np.delete(below, row, axis=0), axis=0)
        chances.append(float(np.sum(steps[row] * (others[1:] + others[:-1]) / 2)))
    total = sum(chances)
    return {name: chance / total for name, chance in zip(names, chances, strict=True)}


def ramped(step: int, arms: Mapping[str, Arm], incumbent: str, hours: float, settings: Bandit) -> int:
    """The next step of the ramp, once an epoch: 0 until every challenger has `matured` rewards and `hours` passed."""
    least = min((arm.rewards for name, arm in arms.items() if name != incumbent), default=0)
    if least < settings.matured or hours < settings.hours:
        return 0
    return min(step + 1, len(settings.ramp))


def cap(step: int, settings: Bandit) -> float:
    """Most of the traffic that the challengers may have together at this step of the ramp."""
    return settings.start if step <= 0 else settings.ramp[min(step, len(settings.ramp)) - 1]


def weights(arms: Mapping[str, Arm], incumbent: str, most: float, settings: Bandit) -> dict[str, float]:
    """Arm -> its share of the episodes of the next epoch: P(best), each at least `floor`, challengers at most `most`.

    They sum to 1. Where the floors of the challengers are more than `most`, they share `most` alike.

    Raises: ValueError (the incumbent is not among the arms).
    """
    if incumbent not in arms:
        raise ValueError(f"incumbent {incumbent!r} is no arm; it always is one, beside {sorted(arms)!r}")
    challengers = sorted(name for name in arms if name != incumbent)
    if not challengers:
        return {incumbent: 1.0}
    floor = min(settings.floor, 1.0 / len(arms))
    chances = best(arms)
    highest = min(most, 1.0 - floor)
    floor_each = min(floor, highest / len(challengers))
    together = min(highest, max(floor_each * len(challengers), sum(chances[name] for name in challengers)))
    shares = _floored({name: chances[name] for name in challengers}, together, floor_each)
    return {incumbent: 1.0 - sum(shares.values()), **shares}


def held_out(old: str, new: str, share: float) -> dict[str, float]:
    """Weights of a promoted snapshot with a hold-out: `share` of the episodes stay on the old one."""
    _within(share, "hold-out share")
    return {old: share, new: 1.0 - share}


def assign(weights: Mapping[str, float], secret: str, experiment: str, episode: str) -> Pick:
    """The arm of an episode: where HMAC-SHA256(experiment, episode) falls among the weights.

    The arms' intervals lie side by side in the order of their names, so replicas agree whatever order they read, and
    a change of weights moves only the episodes between the old and the new borders.

    Raises: ValueError (no arm has a weight).
    """
    order = sorted(weights)
    total = sum(weights[name] for name in order)
    if not total > 0:
        raise ValueError(f"weights {dict(weights)!r} give no arm any episode; at least one must be above 0")
    key = hmac.digest(secret.encode(), f"{len(experiment)}:{experiment}{episode}".encode(), "sha256")
    place = (int.from_bytes(key[:8], "big") >> 11) * UNIT * total
    last = ""
    for name in order:
        each = weights[name]
        if each > 0:
            last = name
            if place < each:
                break
            place -= each
    return Pick(last, weights[last] / total)


def missing(exposures: Mapping[str, int], rewards: Mapping[str, int]) -> str:
    """A warning where rewards are missing from the arms unequally (chi-square p < 0.001); empty: they are not.

    `exposures` are episodes older than the reward window, `rewards` those of them that have one. What is missing is no
    failure; but when an arm's answers keep people from answering, the rewards that did come are of a chosen few.
    """
    from scipy.special import chdtrc

    names = sorted(name for name, count in exposures.items() if count > 0)
    shown = np.array([exposures[name] for name in names], dtype=float)
    had = np.array([rewards.get(name, 0) for name in names], dtype=float)
    if np.any(had > shown):
        raise ValueError(f"rewards {dict(rewards)!r} are more than exposures {dict(exposures)!r}; one each, at most")
    share = had.sum() / max(1.0, shown.sum())
    expected = np.array([shown * share, shown * (1.0 - share)])
    if len(names) < 2 or expected.min() < LEAST_EXPECTED:
        return ""
    off = np.array([had, shown - had]) - expected
    p = float(chdtrc(len(names) - 1, np.sum(off**2 / expected)))
    if p >= MISSING_P:
        return ""
    rates = ", ".join(f"{name}: {1 - got / of:.1%}" for name, got, of in zip(names, had, shown, strict=True))
    return f"rewards are missing unequally (p = {p:.2g}): {rates}; what came may be of a chosen few"


def _floored(chances: Mapping[str, float], total: float, floor: float) -> dict[str, float]:
    """`total` shared in proportion to the chances, nobody below `floor`, of which there is enough for all."""
    high = {name: chance + NO_CHANCE for name, chance in chances.items()}
    while high:
        scale = (total - floor * (len(chances) - len(high))) / sum(high.values())
        above = {name: chance for name, chance in high.items() if chance * scale >= floor}
        if len(above) == len(high):
            return {name: high[name] * scale if name in high else floor for name in chances}
        high = above
    return dict.fromkeys(chances, total / len(chances))


def _within(value: float, what: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} {value!r} is not within [0, 1]; a metric is scaled to it by its low and high")
