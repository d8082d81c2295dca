"""Streams of right and wrong answers through the drift rule, and beside it the rule of 20 answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evocluster.release.drift import Stream
from evocluster.release.settings import Drift

SETTINGS = Drift()


@dataclass(frozen=True)
class Case:
    """A kind of stream."""

    before: float
    """Accuracy."""
    after: float
    healthy: int = 1000
    """Answers before the change."""
    changed: int = 500
    streams: int = 1


@dataclass(frozen=True)
class Trial:
    """What was said of a stream."""

    false: bool
    """An alarm before the change."""
    naive: bool
    """Below 80 % over the last 20, before the change."""
    found: int | None
    """Answers after the change until an alarm."""
    by: str


def trial(rng: np.random.Generator, case: Case) -> Trial:
    """One stream, until the alarm that follows the change."""
    stream = Stream(SETTINGS)
    false = naive = False
    answers = rng.random(case.healthy) < case.before
    for at, right in enumerate(answers.tolist()):
        false = stream.observe(right, float(at), case.streams).level == "alarm" or false
    wide = SETTINGS.warn
    over = np.convolve(answers, np.ones(wide), "valid")
    naive = bool((over < SETTINGS.below * wide).any())
    for count, right in enumerate((rng.random(case.changed) < case.after).tolist(), start=1):
        reading = stream.observe(right, float(case.healthy + count), case.streams)
        if reading.level == "alarm":
            return Trial(false, naive, count, reading.by)
    return Trial(false, naive, None, "")
