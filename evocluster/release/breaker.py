"""When a candidate is rolled back: failures counted by the minute, and the chance that they are twice the baseline's.

A window is kept on the request path (`Window.add`), read as counts (`Window.counts`), and judged against a baseline of
the concurrent control and of its history (`judge`). A rate above a threshold is no reason to open: on healthy traffic
that happens daily. The posterior probability that the rate is above it is; it is integrated, never sampled. Channels
and missing data: Hystrix and resilience4j count, but know no baseline; here data that are missing open nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from evocluster.records import FrozenDict, FrozenMap, Record
from evocluster.release.settings import Breaker

Channel = Literal["hard", "slow", "judged"]
CHANNELS: tuple[Channel, ...] = ("hard", "slow", "judged")
"""Hard failure, slow call, failed by the judge."""
Kind = Literal["", "rollback", "provider"]
"""provider: the control fails too, so it is not the candidate's doing."""

MINUTE_S = 60.0
DAY_MINUTES = 24 * 60
PRIOR = 1.0
"""Mass of a rate's prior, in requests, centred on the baseline: before the first failure a candidate is like it."""
UNKNOWN = (0.5, 0.5)
"""Jeffreys prior of a baseline."""
PROVIDER = 0.5
"""P(control above its own history) from which on it counts as failing too.

Opening bars the candidate for good, so the other explanation is to be unlikely, not merely unproven: with the 0.99 of
opening, a provider that fails 20 % of all calls for a day instead of 5 % rolled back most candidates at some moment at
which the control's last hour happened to be mild.
"""
NODES = 241
REACH = 12.0
"""Standard deviations of the log odds, either side, over which is integrated."""


class Counts(NamedTuple):
    """Requests and failures of a window. Client errors, cancellations and judge errors are in none of them."""

    total: int = 0
    hard: int = 0
    slow: int = 0
    judged: int = 0
    """Requests that a judge gave a score."""
    failed: int = 0
    """Those of them below the pass mark."""
    recent: int = 0
    """Last outcomes, at most as many as the fast path looks at."""
    recent_hard: int = 0

    def of(self, channel: Channel) -> tuple[int, int]:
        """Requests and failures of a channel."""
        if channel == "judged":
            return self.judged, self.failed
        return self.total, self.hard if channel == "hard" else self.slow

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Bucket(NamedTuple):
    """What one replica counted in one minute; a later one of the same minute takes the place of an earlier."""

    replica: str
    minute: int
    """Minutes since 1970."""
    total: int = 0
    hard: int = 0
    slow: int = 0
    judged: int = 0
    failed: int = 0


class Span(NamedTuple):
    """Since when is counted, so that the control's counts are of the same time as the candidate's."""

    requests: int
    """First minute of the hard and the slow channel."""
    judged: int
    """First minute of the judged channel."""
    last: int
    recent: float
    """Time of the first of the last outcomes, seconds since 1970; without outcomes infinite."""


class Verdict(Record):
    """Whether to roll back, and on what evidence."""

    open: bool = False
    kind: Kind = ""
    channel: Channel | Literal[""] = ""
    reason: str = ""
    evidence: FrozenMap = FrozenDict()


class Window:
    """Outcomes of one snapshot, by the minute: this replica's as they happen, the other replicas' as they are read."""

    def __init__(self, replica: str, settings: Breaker) -> None:
        self.replica = replica
        self.settings = settings
        self._minutes: dict[int, dict[str, list[int]]] = {}
        """Minute -> replica -> total, hard, slow, judged, failed."""
        self._sums: dict[int, list[int]] = {}
        """Minute -> the same, of all replicas."""
        self._recent: deque[tuple[float, bool]] = deque(maxlen=settings.fast[1])
        self._newest = 0

    def add(self, at: float, *, hard: bool = False, slow: bool = False) -> None:
        """One answered or failed request, of this replica."""
        self._count(int(at // MINUTE_S), self.replica, (1, hard, slow, 0, 0))
        self._recent.append((at, hard))

    def judge(self, at: float, *, failed: bool) -> None:
        """One score of a judge, in the minute in which it came."""
        self._count(int(at // MINUTE_S), self.replica, (0, 0, 0, 1, failed))

    def merge(self, buckets: Iterable[Bucket]) -> None:
        """What other replicas counted; what they said before of the same minutes is replaced, ours is left alone."""
        for replica, minute, *counted in buckets:
            if replica != self.replica and minute > self._newest - DAY_MINUTES:
                before = self._minutes.get(minute, _NOBODY).get(replica, _NOTHING)
                self._count(minute, replica, tuple(new - old for new, old in zip(counted, before, strict=True)))

    def buckets(self, since: int) -> list[Bucket]:
        """This replica's minutes from `since` on, to be told to the others."""
        return [
            Bucket(self.replica, minute, *self._minutes[minute][self.replica])
            for minute in sorted(self._minutes)
            if minute >= since and self.replica in self._minutes[minute]
        ]

    def span(self, now: float) -> Span:
        """The sliding window; where it holds fewer than `least`, back until it does, at most a day."""
        last = int(now // MINUTE_S)
        return Span(
            requests=self._since(last, 0),
            judged=self._since(last, 3),
            last=last,
            recent=self._recent[0][0] if self._recent else float("inf"),
        )

    def counts(self, span: Span) -> Counts:
        """What happened in that time."""
        total = hard = slow = judged = failed = 0
        for minute in range(min(span.requests, span.judged), span.last + 1):
            counted = self._sums.get(minute)
            if counted is None:
                continue
            if minute >= span.requests:
                total += counted[0]
                hard += counted[1]
                slow += counted[2]
            if minute >= span.judged:
                judged += counted[3]
                failed += counted[4]
        recent = [bad for at, bad in self._recent if at >= span.recent]
        return Counts(total, hard, slow, judged, failed, len(recent), sum(recent))

    def _count(self, minute: int, replica: str, more: Sequence[int]) -> None:
        if minute > self._newest:
            self._newest = minute
            for old in [each for each in self._sums if each <= minute - DAY_MINUTES]:
                del self._sums[old], self._minutes[old]
        sums = self._sums.setdefault(minute, [0, 0, 0, 0, 0])
        mine = self._minutes.setdefault(minute, {}).setdefault(replica, [0, 0, 0, 0, 0])
        for column, each in enumerate(more):
            if each:
                sums[column] += each
                mine[column] += each

    def _since(self, last: int, column: int) -> int:
        """First minute of the window of a column: 0 requests, 3 judged ones."""
        since = last - int(self.settings.window_s // MINUTE_S) + 1
        found = sum(self._sums[minute][column] for minute in range(since, last + 1) if minute in self._sums)
        if found >= self.settings.least:
            return since
        for minute in range(since - 1, last - DAY_MINUTES, -1):
            counted = self._sums.get(minute)
            if counted is not None:
                found += counted[column]
                if found >= self.settings.least:
                    return minute
        return last - DAY_MINUTES + 1 if found else since


def judge(candidate: Counts, control: Counts, history: Counts, settings: Breaker) -> Verdict:
    """Whether the candidate is to be rolled back.

    `control` is the incumbent (or the hold-out) in the same span, `history` the last `history_days` of what served
    before. Opens by 10 of the last 12 hard failures, or in a channel with n >= 20 and 5 failures where
    P(p_candidate > 2 p_baseline) >= 0.99. Where by the same counts the control is likelier than not above its own
    history, or fails just so in the very moments of the fast path, it is a provider incident: nothing opens. With too
    few requests, or no baseline, nothing opens either.
    """
    if _fast(candidate, settings):
        failing = _fails_beside(control, settings) or _fails("hard", control, history, settings)
        evidence = {"fast": [candidate.recent_hard, candidate.recent], **_told("hard", candidate, control, history)}
        return _verdict("hard", failing, evidence, f"{candidate.recent_hard} of the last {candidate.recent} failed")
    for channel in CHANNELS:
        chance = _chance(channel, candidate, control, history, settings)
        if chance >= settings.confidence:
            failing = _fails(channel, control, history, settings)
            n, failures = candidate.of(channel)
            evidence = {"probability": chance, **_told(channel, candidate, control, history)}
            reason = f"{failures} of {n} failed; P(above {settings.ratio:g} x the baseline) = {chance:.4f}"
            return _verdict(channel, failing, evidence, reason)
    return Verdict()


def baseline(channel: Channel, control: Counts, history: Counts, settings: Breaker) -> tuple[float, float]:
    """Beta of the baseline's rate: the control's counts and the history's, those discounted to `history_mass`."""
    n, failures = control.of(channel)
    past, past_failures = history.of(channel)
    kept = min(1.0, settings.history_mass / past) if past else 0.0
    return (
        UNKNOWN[0] + failures + kept * past_failures,
        UNKNOWN[1] + (n - failures) + kept * (past - past_failures),
    )


@lru_cache(maxsize=4096)
def surpasses(n: int, failures: int, a: float, b: float, ratio: float, floor: float) -> float:
    """P(p > ratio max(q, floor)) for p of `failures` in `n` and q ~ Beta(a, b).

    Trapezoids over the log odds of q, whose density is smooth and nearly normal: 241 nodes over 12 deviations either
    side leave an error below 1e-6. The prior of p has the mass of one request at the baseline's mean.
    """
    from scipy.special import betainc, psi, zeta

    centre, reach = float(psi(a) - psi(b)), REACH * float(np.sqrt(zeta(2, a) + zeta(2, b)))
    odds = np.linspace(centre - reach, centre + reach, NODES)
    log_q, log_rest = -np.logaddexp(0.0, -odds), -np.logaddexp(0.0, odds)
    density = a * log_q + b * log_rest
    mass = np.exp(density - density.max())
    mean = min(1.0 - floor, max(floor, a / (a + b)))
    above = np.minimum(1.0, ratio * np.maximum(np.exp(log_q), floor))
    beyond = 1.0 - betainc(PRIOR * mean + failures, PRIOR * (1.0 - mean) + n - failures, above)
    return float(np.sum(mass * beyond) / np.sum(mass))


_NOTHING = (0, 0, 0, 0, 0)
_NOBODY: Mapping[str, Sequence[int]] = {}


def _chance(channel: Channel, candidate: Counts, control: Counts, history: Counts, settings: Breaker) -> float:
    """P(above the baseline), 0 where there is too little to tell."""
    n, failures = candidate.of(channel)
    if n < settings.least or failures < settings.failures:
        return 0.0
    if control.of(channel)[0] + history.of(channel)[0] == 0:
        return 0.0
    a, b = baseline(channel, control, history, settings)
    if failures <= n * settings.ratio * max(settings.baseline_floor, a / (a + b)):
        return 0.0  # Not even the rate is above; the probability is far below any that matters.
    return surpasses(n, failures, a, b, settings.ratio, settings.baseline_floor)


def _fails(channel: Channel, control: Counts, history: Counts, settings: Breaker) -> bool:
    """The control, against its own history."""
    return _chance(channel, control, Counts(), history, settings) >= PROVIDER


def _fast(candidate: Counts, settings: Breaker) -> bool:
    bad, of = settings.fast
    return candidate.recent >= of and candidate.recent_hard >= bad


def _fails_beside(control: Counts, settings: Breaker) -> bool:
    """The control failed as often since the first of the candidate's last outcomes, however few its own are."""
    bad, of = settings.fast
    return control.recent > 0 and control.recent_hard * of >= bad * control.recent


def _told(channel: Channel, candidate: Counts, control: Counts, history: Counts) -> dict[str, object]:
    """Requests and failures of the three, as evidence."""
    return {
        "candidate": list(candidate.of(channel)),
        "control": list(control.of(channel)),
        "history": list(history.of(channel)),
    }


def _verdict(channel: Channel, failing: bool, evidence: Mapping[str, object], reason: str) -> Verdict:
    kind: Kind = "provider" if failing else "rollback"
    why = f"{channel}: {reason}" + ("; the control fails too: not the candidate's doing" if failing else "")
    return Verdict(open=not failing, kind=kind, channel=channel, reason=why, evidence=dict(evidence))
