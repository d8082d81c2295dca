"""How an endpoint does, judged by what all who ask it were told: how many calls it bears, and whether to ask at all.

    ok  --(too many failures in a row)-->  open: nobody asks, but for a probe now and then  --(one answers)-->  ok

Three rules, all over every process that asks the endpoint:

- The window of calls in flight shrinks by a factor when the endpoint says that it is too much, at most once in
  REACT_S, and grows by a step each round trip ("Analysis of the Increase and Decrease Algorithms for Congestion
  Avoidance", Chiu & Jain 1989). After a storm it doubles each round trip up to where it was (slow start, RFC 5681).
- What a Retry-After says holds for everybody, and asking begins small again once it has passed.
- Retries are a share of the answers and a few more ("Addressing Cascading Failures", in Site Reliability
  Engineering, Beyer et al. 2016, ch. 22), unless nothing has failed for CLEAN_S: then they are like any other call.

Pure: the clock is an argument. Failures of an endpoint that has never answered open nothing: it may not be one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CUT = 0.7
"""What is left of the window when the endpoint says that it is too much."""
REACT_S = 1.0
"""Seconds in which one cut answers for all complaints."""
STEP = 0.05
"""Growth each round trip, as a share of the window after the last cut, at least one call."""
RESUME = 8
"""After a Retry-After, asking begins with this part of what was in flight; after a storm with twice as much."""
REMEMBER_S = 30.0
"""Half-life of the memory of how much was in flight."""
STREAK, LONG_STREAK = 5, 20
"""So many failures in a row open the circuit: the fewer when nothing was answered for SILENT_S either. With 30 % of
the answers failing for reasons of their own, twenty in a row come once in 10^10 calls."""
SILENT_S = 1.0
PROBE_S = 0.5
"""Pause before the first probe; doubled with each that fails, up to PROBE_MAX_S or a 20th of the storm so far."""
PROBE_MAX_S = 3.0
CLEAN_S = 2.0
SPARE = 10.0
"""Retries that may be made before anything was answered; answers save up for as many as calls were in flight more."""
FLOOR = 0.5
"""Retries a second that are always allowed."""
OVERWHELMED, ENOUGH = 0.5, 10
"""More 5xx than this share of what was heard within REACT_S, and at least so many: a cut, as if it had said 429. Fewer
are taken for failures that asking less would not cure."""
CALM_S = 5.0
"""After so long without a cut the window doubles again, up to what it was while all was well."""


@dataclass
class Seen:
    """What a holder was told by an endpoint since it last reported."""

    successes: int = 0
    limited: int = 0
    """429."""
    overloaded: int = 0
    """5xx."""
    failed: int = 0
    """No connection, no answer in time."""
    streak: int = 0
    """Failures after the last success."""
    probed: int = 0
    """Probes answered."""
    missed: int = 0
    """Probes that failed."""
    retry_after_s: float = 0.0
    """What is left of what the endpoint asked for, in seconds from now."""

    @property
    def failures(self) -> int:
        """All of them."""
        return self.limited + self.overloaded + self.failed


class Health:
    """One endpoint. Call order: `hear` reports as they come; `slots`, `probe` and `retries` say what is allowed."""

    def __init__(self, adaptive: bool, retry_share: float, now: float) -> None:
        self.adaptive = adaptive
        self.retry_share = retry_share
        self.open = False
        """Nobody asks but for a probe."""
        self.openings = 0
        self.shut_until = now
        """Nobody asks before."""
        self.proven = False
        """It has answered, or said 429, once."""
        self._window: float | None = None
        self._goal = math.inf
        """Where slow start ends."""
        self._step = 1.0
        self._peak = 0.0
        """Calls in flight while all was well."""
        self._cut_at = -math.inf
        self._round_at = now
        self._round = Seen()
        self._peaked_at = now
        self._streak = 0
        self._answered_at = now
        self._failed_at = -math.inf
        self._opened_at = now
        self._missed = 0
        self._spare = SPARE
        self._filled_at = now

    def hear(self, seen: Seen, in_flight: int, wanted: int, now: float) -> None:
        """Take in what a holder was told; `in_flight` and `wanted` are calls over all holders, at this moment."""
        saved = FLOOR * max(0.0, now - self._filled_at) + self.retry_share * seen.successes
        self._spare = min(SPARE + self._peak, self._spare + saved)
        self._filled_at = now
        self.proven = self.proven or bool(seen.successes or seen.limited)
        if seen.successes:
            self._answered_at = now
            self._streak = seen.streak
            self._grow(seen, in_flight, wanted, now)
        else:
            self._streak += seen.failures
        overwhelmed = self._overwhelmed(seen, now)
        if seen.failures:
            self._failed_at = now
            self._complain(seen, overwhelmed, in_flight, now)
        if seen.probed and self.open:
            self._close(wanted, now)
        elif seen.missed and self.open:
            self._missed += 1
            self._put_off(now)

    def slots(self, most: int) -> int | None:
        """Calls in flight that are allowed over all holders, `most` by its settings (0: any); None: any number."""
        bounds = [float(most)] if most else []
        if self.adaptive and self._window is not None:
            bounds.append(max(1.0, self._window))
        return int(min(bounds)) if bounds else None

    def probe(self, now: float) -> bool:
        """Whether one call may be made to see if the circuit can be closed; the next only after a pause."""
        if not self.open or now < self.shut_until:
            return False
        self._put_off(now)
        return True

    def retries(self, wanted: int, now: float) -> int:
        """How many of so many retries may be made."""
        if self.open or wanted <= 0:
            return 0
        if now - self._failed_at >= CLEAN_S or not self.proven:
            return wanted
        given = min(wanted, int(self._spare))
        self._spare -= given
        return given

    def _complain(self, seen: Seen, overwhelmed: bool, in_flight: int, now: float) -> None:
        if seen.limited or overwhelmed:
            self._cut(in_flight + seen.failures, now)
        if seen.retry_after_s > 0:
            self._wait(seen.retry_after_s, now)
        if self.open or not self.proven:
            return
        silent = now - self._answered_at >= SILENT_S
        if self._streak >= LONG_STREAK or (self._streak >= STREAK and silent):
            self.open = True
            self.openings += 1
            self._opened_at = now
            self._missed = 0
            self._put_off(now)

    def _overwhelmed(self, seen: Seen, now: float) -> bool:
        if now - self._round_at >= REACT_S:
            self._round_at, self._round = now, Seen()
        heard = self._round
        heard.overloaded += seen.overloaded
        heard.successes += seen.successes
        return heard.overloaded >= ENOUGH and heard.overloaded > OVERWHELMED * (heard.overloaded + heard.successes)

    def _cut(self, in_flight: int, now: float) -> None:
        if not self.adaptive or self.open or now - self._cut_at < REACT_S:
            return
        self._cut_at = now
        self._window = max(1.0, CUT * min(self._window or math.inf, max(1, in_flight)))
        self._goal = self._window
        self._step = max(1.0, STEP * self._window)

    def _wait(self, seconds: float, now: float) -> None:
        """Nobody asks for so long; then from a small window up to what was too much, less a cut."""
        self.shut_until = max(self.shut_until, now + seconds)
        if self.adaptive and not self.open:
            self._goal = max(1.0, CUT * self._peak)
            self._window = max(1.0, min(self._window or math.inf, self._peak / RESUME))

    def _grow(self, seen: Seen, in_flight: int, wanted: int, now: float) -> None:
        if seen.limited or self.open:
            return
        self._peak = max(self._peak * 0.5 ** (max(0.0, now - self._peaked_at) / REMEMBER_S), float(in_flight))
        self._peaked_at = now
        # A window that nobody fills says nothing about how much more it would bear.
        if self._window is None or wanted < self._window or now < self.shut_until:
            return
        if now - self._cut_at >= CALM_S:
            self._goal = max(self._goal, self._peak)
        if self._window < self._goal:
            self._window = min(self._goal, self._window + seen.successes)
        else:
            self._window += self._step * seen.successes / self._window

    def _close(self, wanted: int, now: float) -> None:
        self.open = False
        self._streak = 0
        self.shut_until = now
        self._failed_at = -math.inf
        self._spare = max(self._spare, SPARE)
        if self.adaptive:
            # What was in flight before says little where much more is wanted now: on until it says no.
            self._goal = max(1.0, self._peak) if 2 * self._peak >= wanted else math.inf
            self._step = max(1.0, STEP * self._peak)
            self._window = max(1.0, 2 * self._peak / RESUME)

    def _put_off(self, now: float) -> None:
        longest = max(PROBE_MAX_S, (now - self._opened_at) / 20)
        self.shut_until = max(self.shut_until, now + min(longest, PROBE_S * 2.0**self._missed))
