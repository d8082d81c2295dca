"""When accuracy went down, per intent and model: a warning is cheap, an alarm is sure.

Below 80 % over 20 answers happens to every healthy stream now and then, so it only warns. An alarm takes
P(accuracy < 0.8) >= 0.999 over the last 20, 50 or 100, or a change that ADWIN sees (Bifet & Gavaldà, "Learning from
time-changing data with adaptive windowing", SDM 2007), downward only.

A stream's state is the answers it remembers, as JSON. ADWIN's own memory cannot be written down, so it is always that
of a fresh one that saw the remembered answers: after every trim it is built anew, in the same way as after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Protocol

from evocluster.records import FrozenDict, FrozenMap, Json, Record, born
from evocluster.release.settings import Drift

Level = Literal["", "warn", "alarm"]

REMEMBERED = 1000
"""Answers kept when twice as many have come."""
CLOCK = 1
"""ADWIN looks for a change at every answer."""


class Adwin(Protocol):
    """What we use of river's ADWIN, which has no types."""

    drift_detected: bool
    width: float

    def update(self, x: float) -> object:
        """One more value."""


class Reading(Record):
    """What one answer told."""

    level: Level = ""
    by: Literal["", "recent", "posterior", "adwin"] = ""
    reason: str = ""
    evidence: FrozenMap = FrozenDict()


class State(Record):
    """A stream between two restarts."""

    seen: int = 0
    """Answers, all of them."""
    fresh: int = 0
    """Answers since the last alarm: what gave an alarm gives no second one."""
    remembered: str = ""
    """The last answers, oldest first: 1 right, 0 wrong. What came before a change is forgotten."""
    alarms: int = 0
    alarm_at: float | None = None
    baseline: float | None = None
    """Accuracy before the last change that ADWIN saw, either way."""


class Stream:
    """Right and wrong answers of one (intent, model), in their order."""

    def __init__(self, settings: Drift, state: Mapping[str, Json] | None = None) -> None:
        self.settings = settings
        self._state = State() if state is None else State.model_validate(dict(state))
        self._adwin: Adwin | None = None
        self._delta = 0.0

    @property
    def state(self) -> dict[str, Json]:
        """JSON of everything there is to remember."""
        return self._state.model_dump(mode="json")

    def observe(self, correct: bool, now: float, streams: int = 1) -> Reading:
        """One more answer; `streams` are all there are, which share ADWIN's delta (Bonferroni).

        Raises: ValueError (no stream).
        """
        if streams < 1:
            raise ValueError(f"streams {streams!r}: at least this one must be counted")
        change = self._shift(correct, self.settings.adwin / streams)
        state = self._state
        told_before = state.alarms > 0 and state.fresh <= self.settings.warn  # the same fall, seen by the other rule
        if change and change[1] < change[0] and not told_before:
            reading = Reading(
                level="alarm",
                by="adwin",
                reason=f"accuracy went from {change[0]:.1%} to {change[1]:.1%} over the last {int(change[2])}",
                evidence={"before": change[0], "after": change[1], "over": int(change[2]), "streams": streams},
            )
        else:
            reading = recent(state.remembered[-min(state.fresh, len(state.remembered)) :], self.settings)
        if reading.level == "alarm":
            told = {"fresh": 0, "alarms": state.alarms + 1, "alarm_at": now}
            self._state = born(State, {**state.__dict__, **told})
        return reading

    def _shift(self, correct: bool, delta: float) -> tuple[float, float, float] | None:
        """One answer more for ADWIN; where it sees a change: accuracy before and after, and over how many after."""
        state = self._state
        if self._adwin is None or self._delta != delta:
            self._adwin, self._delta = _replayed(state.remembered, delta), delta
        remembered = state.remembered + ("1" if correct else "0")
        self._adwin.update(float(correct))
        update: dict[str, Json] = {"seen": state.seen + 1, "fresh": state.fresh + 1}
        change = None
        if self._adwin.drift_detected:
            width = max(1, min(int(self._adwin.width), len(remembered) - 1))
            before, after = _accuracy(remembered[:-width]), _accuracy(remembered[-width:])
            change = (before, after, float(width))
            update["baseline"] = before
            remembered, self._adwin = remembered[-width:], None
        elif len(remembered) >= 2 * REMEMBERED:
            remembered, self._adwin = remembered[-REMEMBERED:], None
        self._state = born(State, {**state.__dict__, **update, "remembered": remembered})
        return change


def recent(answers: str, settings: Drift) -> Reading:
    """What the last answers say by themselves, 1 right and 0 wrong: an alarm, a warning, or nothing."""
    for window in settings.windows:
        if len(answers) < window:
            continue
        right = answers[-window:].count("1")
        if right <= _alarming(window, settings.below, settings.confidence):
            return Reading(
                level="alarm",
                by="posterior",
                reason=f"{right} of the last {window} right; surely below {settings.below:.0%}",
                evidence={"right": right, "window": window, "probability": _below(right, window, settings.below)},
            )
    if len(answers) < settings.warn:
        return Reading()
    right = answers[-settings.warn :].count("1")
    if right >= settings.below * settings.warn:
        return Reading()
    return Reading(
        level="warn",
        by="recent",
        reason=f"{right} of the last {settings.warn} right; below {settings.below:.0%}",
        evidence={"right": right, "window": settings.warn},
    )


def _below(right: int, window: int, below: float) -> float:
    """P(accuracy < below) of the posterior Beta(1 + right, 1 + wrong)."""
    from scipy.special import betainc

    return float(betainc(1 + right, 1 + window - right, below))


@lru_cache(maxsize=256)
def _alarming(window: int, below: float, confidence: float) -> int:
    """Most right answers of a window that are an alarm; -1: none are so few."""
    right = -1
    while right < window and _below(right + 1, window, below) >= confidence:
        right += 1
    return right


def _replayed(answers: str, delta: float) -> Adwin:
    """An ADWIN that saw these answers."""
    from river import drift

    made: Any = drift.ADWIN
    adwin: Adwin = made(delta=delta, clock=CLOCK)
    for answer in answers:
        adwin.update(float(answer == "1"))
    return adwin


def _accuracy(answers: str) -> float:
    return answers.count("1") / len(answers)
