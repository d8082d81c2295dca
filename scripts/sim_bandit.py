"""An incumbent and a challenger that share traffic: what is lost to the better one under each way of sharing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evocluster.release.bandit import assign, best, cap, newcomer, observe, ramped, weights
from evocluster.release.settings import Bandit

SETTINGS = Bandit()
PER_HOUR = 100.0
DELAY_H = 1.0
"""Until a reward has matured."""
NOISE = 0.2
Share = Callable[[float], float]


@dataclass(frozen=True)
class Case:
    """Quality of the incumbent and of the challenger, before and after it changes."""

    incumbent: float
    challenger: float
    later: float
    hours: float = 48.0
    changes: float = 34.0
    """Hours after which the challenger is so good as `later`."""


@dataclass(frozen=True)
class Regret:
    """Quality lost to always the better arm, summed over the episodes."""

    ours: float
    free: float
    """Ours without the ramp."""
    half: float
    """Fixed, 50/50."""
    thompson: float
    """Thompson sampling that never forgets, each reward one coin, without ramp or floor."""
    wrong: float
    """Share that ours gives the worse arm in the last tenth."""
    wrong_thompson: float


def regret(rng: np.random.Generator, case: Case) -> Regret:
    """All ways, on the same qualities."""
    never = SETTINGS.model_copy(update={"discount": 1.0, "floor": 0.0, "most_weight": 1.0})
    ours, wrong = _shared(rng, case, SETTINGS, ramp=True)
    free, _ = _shared(rng, case, SETTINGS, ramp=False)
    thompson, wrong_thompson = _shared(rng, case, never, ramp=False)
    hours = np.arange(int(case.hours * PER_HOUR)) / PER_HOUR
    gaps = np.where(hours < case.changes, abs(case.incumbent - case.challenger), abs(case.incumbent - case.later))
    return Regret(ours, free, float(gaps.sum()) / 2, thompson, wrong, wrong_thompson)


def _shared(rng: np.random.Generator, case: Case, settings: Bandit, ramp: bool) -> tuple[float, float]:
    """Regret, and share of the worse arm in the last tenth."""
    arms = {
        "incumbent": newcomer(case.incumbent, 100, settings),
        "challenger": newcomer(case.challenger, 100, settings),
    }
    waiting: deque[tuple[float, str, float]] = deque()
    step, matured, lost, wrong = 0, 0, 0.0, 0
    episodes = int(case.hours * PER_HOUR)
    published = -settings.epoch_s
    shares: dict[str, float] = {}
    secret = str(rng.integers(2**62))
    for number in range(episodes):
        hours = number / PER_HOUR
        while waiting and waiting[0][0] <= hours:
            _, arm, reward = waiting.popleft()
            arms, matured = observe(arms, arm, reward, settings), matured + 1
        if not shares or matured >= settings.epoch_rewards or hours * 3600 - published >= 6 * settings.epoch_s:
            step = ramped(step, arms, "incumbent", hours, settings)
            most = cap(step, settings) if ramp else 1.0
            shares = weights(arms, "incumbent", most, settings) if settings.floor else best(arms)
            matured, published = 0, hours * 3600
        challenger = case.challenger if hours < case.changes else case.later
        means = {"incumbent": case.incumbent, "challenger": challenger}
        arm = assign(shares, secret, "e", str(number)).arm
        gap = max(means.values()) - means[arm]
        lost += gap
        wrong += gap > 0 and number >= 0.9 * episodes
        waiting.append((hours + DELAY_H, arm, float(np.clip(rng.normal(means[arm], NOISE), 0, 1))))
    return lost, wrong / (0.1 * episodes)
