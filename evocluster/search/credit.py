"""Who gets the next draw: operators share draws by what they have paid.

Two forms of one protocol. `Credit` counts survivors, as `selection: steady` always did. `Bandit` counts what a search
is paid in, hypervolume, against what it pays with, calls: adaptive pursuit (Thierens 2005, "An adaptive pursuit
strategy for allocating operator probabilities") of the operator with the highest gain per call, where gains are
measured in the usual gain of their time (they shrink as a run goes on; compare the rank-based credit of Fialho et al.
2010), forgotten with a half-life (the best operator changes), and shrunk to the common rate (most children gain
nothing). In simulations of 400 children it gained a third more than uniform draws and more than matching, Thompson
sampling or ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import exp, isfinite, log
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRIOR: Mapping[str, float] = {"rewrite": 0.3, "merge": 0.15}
"""What an operator is held for before it has paid, in parts of the others. Wording moves results less than other genes
do, and a reworded parent survives because it is nearly the same.
"""
FLOORS = 0.25
"""The share of all draws that goes to the operators evenly, at most."""
HALF_LIFE = 60
"""Children after which a payment counts half."""
USUAL = 8
"""Gains after which one counts half in what a usual gain is; few, as gains shrink with the run."""
PACE = 0.1
"""Share of the way to where they should be that probabilities go with every child."""
HELD = 2.0
"""Usual children's worth of calls at which an operator is believed to pay as all do."""
CONVINCING = 1.0
"""Usual gains, forgotten ones left out, at which the pursuit takes half of what is above the floors."""
MOST = 5.0
"""A gain counts at most as this many usual ones: one lucky child is not a rule."""
LEAST = 0.25
"""A child counts at least as this part of a usual one's calls: a failed one took a turn."""


class Shares(Protocol):
    """Shares draws among operators. Call order: `draw` any time; once per committed child `count` or `pay`."""

    def count(self, name: str, success: bool, calls: int = 0) -> None:
        """A child of this operator is committed, and besides the calls it took nothing but whether it survived is known
        of it.
        """
        ...

    def pay(self, name: str, gain: float, calls: int) -> None:
        """A child's race is over. `gain`: hypervolume of the front that it brought, 0 when it was rejected or failed;
        `calls`: all LLM calls that making and evaluating it took. Names outside the portfolio are not counted.
        """
        ...

    def probabilities(self) -> dict[str, float]:
        """The chance of each operator; they add up to 1."""
        ...

    def draw(self, rng: np.random.Generator, among: Collection[str] | None = None) -> str:
        """The name of an operator, of all or of some."""
        ...

    def state(self) -> dict[str, dict[str, float]]:
        """Per operator: uses, successes, probability, and what else there is to tell."""
        ...


def drawn(chances: Mapping[str, float], rng: np.random.Generator, among: Collection[str] | None = None) -> str:
    """One of the names, by their chances. Raises: ValueError when none is left."""
    names = [name for name in chances if among is None or name in among]
    if not names:
        raise ValueError(f"no operator to draw among {sorted(among or ())!r}; known: {', '.join(chances)}")
    weights = np.array([chances[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / sum(weights)))]


class Credit:
    """How often each operator was used and how often its child survived; operators that pay get more draws.

    A draw has a floor of `FLOOR`; the rest is shared by success rates, smoothed with one success in two uses
    (Laplace), times `PRIOR`.
    """

    FLOOR = 0.05
    PRIOR: ClassVar[Mapping[str, float]] = PRIOR

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._uses = dict.fromkeys(self._names, 0)
        self._successes = dict.fromkeys(self._names, 0)

    def count(self, name: str, success: bool, calls: int = 0) -> None:
        """One child of this operator was committed. Names outside the portfolio are not counted."""
        if name in self._uses:
            self._uses[name] += 1
            self._successes[name] += int(success)

    def pay(self, name: str, gain: float, calls: int) -> None:
        """Counts whether there was a gain."""
        self.count(name, gain > 0)

    def probabilities(self) -> dict[str, float]:
        """The chance of each operator; they add up to 1."""
        floor = min(self.FLOOR, 1 / len(self._names))
        rates = {
            name: self.PRIOR.get(name, 1.0) * (self._successes[name] + 1) / (self._uses[name] + 2)
            for name in self._names
        }
        rest, total = 1 - floor * len(self._names), sum(rates.values())
        return {name: floor + rest * rate / total for name, rate in rates.items()}

    def draw(self, rng: np.random.Generator, among: Collection[str] | None = None) -> str:
        """The name of an operator."""
        return drawn(self.probabilities(), rng, among)

    def state(self) -> dict[str, dict[str, float]]:
        """Per operator: uses, successes, probability."""
        return {
            name: {"uses": self._uses[name], "successes": self._successes[name], "probability": chance}
            for name, chance in self.probabilities().items()
        }


class Bandit:
    """Draws operators by hypervolume gained per call, lately; see the top of the file."""

    def __init__(self, names: Sequence[str], prior: Mapping[str, float] | None = None) -> None:
        """`prior`: what operators are held for at first, in parts of the others; 1 where nothing is said."""
        self._names = tuple(names)
        self._at = {name: at for at, name in enumerate(self._names)}
        given = PRIOR if prior is None else prior
        self._prior = np.array([given.get(name, 1.0) for name in self._names])
        self._floor = FLOORS / len(self._names)
        self._chances = self._above_floor(self._prior)
        self._gained = np.zeros(len(self._names))
        """In usual gains, forgotten ones left out; `_spent` and `_turns` likewise, in calls and in children."""
        self._spent = np.zeros(len(self._names))
        self._turns = 0.0
        self._log_sum, self._log_count = 0.0, 0.0
        self._totals = np.zeros((4, len(self._names)))
        """Uses, successes, gain and calls, of the whole run."""

    def count(self, name: str, success: bool, calls: int = 0) -> None:
        """A child that survived is drawn for as if it had paid a usual gain for a usual child's calls; told are its own
        calls, and no gain.
        """
        self.pay(name, self._usual_gain if success else 0.0, round(self._usual_calls), (float(success), 0.0, calls))

    def pay(self, name: str, gain: float, calls: int, told: tuple[float, float, int] | None = None) -> None:
        """A child's race is over: take its gain and its calls into account. A loss or NaN is no gain. `told`: success,
        gain and calls to be told of, where they are others.
        """
        at = self._at.get(name)
        if at is None:
            return
        gain = gain if isfinite(gain) and gain > 0 else 0.0
        spent = max(float(calls), LEAST * self._usual_calls)
        self._totals[:, at] += (1, *(told or (gain > 0, gain, calls)))
        keep = 0.5 ** (1 / HALF_LIFE)
        for row in (self._gained, self._spent):
            row *= keep
        self._turns = self._turns * keep + 1
        self._spent[at] += spent
        if gain:
            fade = 0.5 ** (1 / USUAL)
            self._log_sum, self._log_count = self._log_sum * fade + log(gain), self._log_count * fade + 1
            self._gained[at] += min(MOST, gain / self._usual_gain)
        self._chances += PACE * (self._wanted() - self._chances)

    def probabilities(self) -> dict[str, float]:
        """The chance of each operator; they add up to 1, and each is at least `FLOORS` / their number."""
        return dict(zip(self._names, self._chances.tolist(), strict=True))

    def draw(self, rng: np.random.Generator, among: Collection[str] | None = None) -> str:
        """The name of an operator. Raises: ValueError when there is none to draw."""
        return drawn(self.probabilities(), rng, among)

    def state(self) -> dict[str, dict[str, float]]:
        """Per operator: uses, successes (children that brought a gain), gain, calls, probability."""
        told: dict[str, dict[str, float]] = {}
        for (name, chance), column in zip(self.probabilities().items(), self._totals.T.tolist(), strict=True):
            uses, successes, gain, calls = column
            counts = {"uses": int(uses), "successes": int(successes), "gain": gain, "calls": int(calls)}
            told[name] = {**counts, "probability": chance}
        return told

    @property
    def _usual_gain(self) -> float:
        """Of children that gained, lately: the geometric mean, which one lucky child does not move."""
        return exp(self._log_sum / self._log_count) if self._log_count else 1.0

    @property
    def _usual_calls(self) -> float:
        """Of a child."""
        return float(self._spent.sum()) / self._turns if self._turns else 1.0

    def _above_floor(self, weights: Floats) -> Floats:
        return np.asarray(self._floor + (1 - FLOORS) * weights / weights.sum())

    def _wanted(self) -> Floats:
        """Where the chances should be: most at the best operator, as far as gains of late tell which it is."""
        gained, held = self._gained.sum(), HELD * self._usual_calls
        common = (gained + 1 / HELD) / (self._spent.sum() + held)
        rates = (self._gained + held * common * self._prior) / (self._spent + held)
        sure = gained / (gained + CONVINCING)
        best = (rates == rates.max()).astype(np.float64)
        return np.asarray((1 - sure) * self._above_floor(rates) + sure * self._above_floor(best))


def shares(selection: str, names: Sequence[str]) -> Shares:
    """Who shares draws among these operators under a selection."""
    return Credit(names) if selection == "steady" else Bandit(names)
