"""Days of traffic through the breaker, and beside it through the rule that one would write down first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocluster.release.breaker import MINUTE_S, Counts, Window, judge
from evocluster.release.settings import Breaker

SETTINGS = Breaker()
CONTROL = 4.0
"""Requests of the control for one of the candidate: 80/20."""
SLOW, JUDGED, FAILED = 0.02, 0.3, 0.08
"""Of requests: slow ones, and judged ones; of those the failed ones. Alike for both, and never changed."""
HOUR_S = 3600.0
LEAST = 20
"""Requests within the hour that the kinder naive rule waits for."""


@dataclass(frozen=True)
class Case:
    """A kind of day."""

    per_hour: float
    """Requests of the candidate."""
    base: float
    """Rate of hard failures of the control, and of its history."""
    bad: float
    """Of the candidate."""
    before: float = 0.0
    """Healthy hours before it gets so bad."""
    both: bool = False
    """The control gets as bad: the provider fails."""
    hours: float = 24.0

    @property
    def healthy(self) -> bool:
        """Nothing is wrong on such a day."""
        return self.base == self.bad


@dataclass(frozen=True)
class Day:
    """When each rule opened, in requests of the candidate since the change (or since midnight); None: never."""

    ours: int | None
    hours: float | None
    """Hours until then."""
    provider: bool
    naive: int | None
    """Above twice the baseline's rate within an hour."""
    waiting: int | None
    """The same, with 20 requests at least."""


def day(rng: np.random.Generator, case: Case) -> Day:
    """One day, request by request; judged at each failure of the candidate and each minute."""
    start = case.before * HOUR_S
    end = start + case.hours * HOUR_S
    mine = np.sort(rng.uniform(0, end, rng.poisson(case.per_hour * end / HOUR_S)))
    theirs = np.sort(rng.uniform(0, end, rng.poisson(CONTROL * case.per_hour * end / HOUR_S)))
    bad_mine = _failures(rng, mine, case, start, case.bad)
    bad_theirs = _failures(rng, theirs, case, start, case.bad if case.both else case.base)
    opened, provider = _watched(mine, bad_mine, theirs, bad_theirs, _history(rng, case))
    after = int(np.searchsorted(mine, start))
    naive, waiting = (_naive(mine, bad_mine[0], case.base, after, least) for least in (1, LEAST))
    return Day(
        ours=None if opened is None else max(0, opened - after),
        hours=None if opened is None else max(0.0, float(mine[opened - 1]) - start) / HOUR_S,
        provider=provider,
        naive=naive,
        waiting=waiting,
    )


def _failures(
    rng: np.random.Generator, times: NDArray[Any], case: Case, start: float, rate: float
) -> NDArray[np.bool_]:
    """Rows hard, slow, judged, failed; a column a request."""
    draws = rng.random((4, len(times)))
    hard = draws[0] < np.where(times >= start, rate, case.base)
    judged = draws[2] < JUDGED
    return np.array([hard, draws[1] < SLOW, judged, judged & (draws[3] < FAILED)])


def _history(rng: np.random.Generator, case: Case) -> Counts:
    past = int(case.per_hour * (1 + CONTROL) * 24 * SETTINGS.history_days)
    judged = int(rng.binomial(past, JUDGED))
    return Counts(
        total=past,
        hard=int(rng.binomial(past, case.base)),
        slow=int(rng.binomial(past, SLOW)),
        judged=judged,
        failed=int(rng.binomial(judged, FAILED)),
    )


def _watched(
    mine: NDArray[Any], bad: NDArray[np.bool_], theirs: NDArray[Any], beside: NDArray[np.bool_], history: Counts
) -> tuple[int | None, bool]:
    """Requests of the candidate until the breaker opened, and whether the provider was seen to fail."""
    candidate, control = Window("a", SETTINGS), Window("a", SETTINGS)
    others = [(at, *row) for at, row in zip(theirs.tolist(), beside.T.tolist(), strict=True)]
    there, minute, provider = 0, -1, False
    for count, (at, row) in enumerate(zip(mine.tolist(), bad.T.tolist(), strict=True), start=1):
        while there < len(others) and others[there][0] <= at:
            _add(control, *others[there])
            there += 1
        _add(candidate, at, *row)
        if not (row[0] or row[1] or row[3]) and int(at // MINUTE_S) == minute:
            continue
        minute = int(at // MINUTE_S)
        span = candidate.span(at)
        verdict = judge(candidate.counts(span), control.counts(span), history, SETTINGS)
        provider = provider or verdict.kind == "provider"
        if verdict.open:
            return count, provider
    return None, provider


def _add(window: Window, at: float, hard: bool, slow: bool, judged: bool, failed: bool) -> None:
    window.add(at, hard=hard, slow=slow)
    if judged:
        window.judge(at, failed=failed)


def _naive(times: NDArray[Any], hard: NDArray[np.bool_], base: float, after: int, least: int) -> int | None:
    """Requests after the change until the rate of the last hour was above twice the base, over `least` at least."""
    first = np.searchsorted(times, times - HOUR_S, side="right")
    failures = np.concatenate([[0], np.cumsum(hard)])
    ends = np.arange(1, len(times) + 1)
    over = ends - first
    tripped = (over >= least) & (failures[ends] - failures[first] > 2 * base * over) & (ends > after)
    return int(ends[tripped.argmax()] - after) if tripped.any() else None
