"""The breaker on the request path: one replica counts what it answers, hears what the others count, and opens.

    guard.watch(...)      which snapshot is on trial against which, whenever routing changed
    guard.observe(...)    after every answer: a few additions; a failure of the one on trial is judged at once
    guard.allows(id)      before every answer: an opened snapshot serves nobody from then on, here
    guard.sync()          every second: counts are told to the others and heard from them, what opened is carried out

It can do no more than put back what served before. It opens here without the ledger; everybody else hears of it as soon
as the ledger can be reached.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evocluster.errors import EvoclusterError
from evocluster.online.ledger import Ledger
from evocluster.release.breaker import MINUTE_S, Bucket, Counts, Verdict, Window, judge
from evocluster.release.exchange import HARD
from evocluster.release.settings import Breaker
from evocluster.telemetry import log

REMEMBERED = 400
"""Latencies of the control that its p95 is taken from."""
KNOWN = 20
"""Of them that must have been seen before anything is called slow."""
HISTORY_S = 60.0
"""Seconds between two looks at the history."""
Act = Callable[[str, Verdict], None]
"""Puts back what served before a snapshot: blocks, and raises what the ledger raises."""


@dataclass(frozen=True)
class Trial:
    """What is on trial, and against what."""

    candidate: str = ""
    """Snapshot; empty: nothing is."""
    control: str = ""
    """Snapshot that serves beside it, or served before it."""


class Guard:
    """Of one deployment in one replica. For one event loop; `act` and the ledger are called in threads."""

    def __init__(
        self,
        ledger: Ledger,
        deployment: str,
        settings: Breaker,
        replica: str,
        act: Act,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._deployment = deployment
        self._settings = settings
        self._replica = replica
        self._act = act
        self._clock = clock
        self._trial = Trial()
        self._windows: dict[str, Window] = {}
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._slow_ms = float("inf")
        self._history = Counts()
        self._looked = -HISTORY_S
        self._told = 0
        self._opened: dict[str, Verdict] = {}
        self._undone: dict[str, Verdict] = {}
        """Opened here and not yet put back for everybody."""
        self.provider: Verdict | None = None
        """The last incident that was the provider's, while it lasts."""

    def watch(self, trial: Trial) -> None:
        """From now on this is on trial; what was counted of a snapshot stays counted."""
        if trial != self._trial:
            self._trial = trial
            self.provider = None
            self._took.clear()
            self._slow_ms = float("inf")
            self._looked = -HISTORY_S
        kept = {trial.candidate, trial.control, *self._undone}
        self._windows = {id: window for id, window in self._windows.items() if id in kept}
        self._forgive()

    def _forgive(self) -> None:
        """What was put back for everybody, and is routed to no more, may serve again where somebody says so."""
        held = {self._trial.candidate, self._trial.control, *self._undone}
        self._opened = {id: verdict for id, verdict in self._opened.items() if id in held}

    def allows(self, snapshot: str) -> bool:
        """Whether it may answer, as far as this replica knows."""
        return snapshot not in self._opened

    def observe(self, snapshot: str, error_class: str, latency_ms: float, at: float) -> None:
        """One answer or failure; what is not the snapshot's doing is not counted."""
        if error_class in ("client", "judge"):
            return
        hard = error_class in HARD
        slow = latency_ms > self._slow_ms
        self._window(snapshot).add(at, hard=hard, slow=slow)
        if snapshot == self._trial.control:
            self._took.append(latency_ms)
        elif snapshot == self._trial.candidate and (hard or slow):
            self._judge(at)

    def judged(self, snapshot: str, failed: bool, at: float) -> None:
        """What feedback or a judge said of an answer of this replica."""
        self._window(snapshot).judge(at, failed=failed)
        if failed and snapshot == self._trial.candidate:
            self._judge(at)

    def _window(self, snapshot: str) -> Window:
        window = self._windows.get(snapshot)
        if window is None:
            window = self._windows[snapshot] = Window(self._replica, self._settings)
        return window

    def _judge(self, at: float) -> None:
        candidate, control = self._trial.candidate, self._trial.control
        if not candidate or candidate in self._opened:
            return
        window = self._window(candidate)
        span = window.span(at)
        verdict = judge(window.counts(span), self._window(control).counts(span), self._history, self._settings)
        self.provider = verdict if verdict.kind == "provider" else None
        if verdict.open:
            log.warning("%s: snapshot %s is rolled back: %s", self._deployment, candidate, verdict.reason)
            self._opened[candidate] = self._undone[candidate] = verdict

    async def sync(self) -> None:
        """Tell and hear what was counted, judge by all of it, and put back what opened.

        A ledger that cannot be reached is tried again at the next call. Raises: nothing of the ledger's.
        """
        now = self._clock()
        told = self._to_tell()
        try:
            heard = await asyncio.to_thread(self._exchange, told, now)
        except EvoclusterError as failure:
            log.warning("%s: the breaker counts alone: %s", self._deployment, failure)
        else:
            self._told = int(now // MINUTE_S) - 1
            for snapshot, buckets in heard.items():
                self._window(snapshot).merge(buckets)
        if len(self._took) >= KNOWN:
            self._slow_ms = self._settings.slow_ratio * float(np.quantile(self._took, 0.95))
        self._judge(now)
        for snapshot, verdict in list(self._undone.items()):
            try:
                await asyncio.to_thread(self._act, snapshot, verdict)
            except EvoclusterError as failure:
                log.warning("%s: %s is not put back for everybody yet: %s", self._deployment, snapshot, failure)
            else:
                self._undone.pop(snapshot, None)
                self._forgive()

    def _to_tell(self) -> list[dict[str, Any]]:
        """Rows of this replica's minutes since it told the last ones."""
        return [
            {"deployment": self._deployment, "snapshot": snapshot, **bucket._asdict()}
            for snapshot, window in self._windows.items()
            for bucket in window.buckets(self._told)
        ]

    def _exchange(self, told: list[dict[str, Any]], now: float) -> Mapping[str, list[Bucket]]:
        for row in told:
            self._ledger.put("buckets", row)
        watched = [id for id in (self._trial.candidate, self._trial.control) if id]
        if not watched:
            return {}
        since = int((now - self._settings.window_s) // MINUTE_S)
        found: dict[str, list[Bucket]] = {}
        for snapshot in watched:
            rows = self._ledger.find(
                "buckets", {"deployment": self._deployment, "snapshot": snapshot, "minute": (">=", since)}
            )
            found[snapshot] = [Bucket(*(row[name] for name in Bucket._fields)) for row in rows]
        if now - self._looked >= HISTORY_S:
            self._history = self._past(now, since)
            self._looked = now
        return found

    def _past(self, now: float, until: int) -> Counts:
        """What the control did in the days before the window."""
        first = int((now - self._settings.history_days * 86400) // MINUTE_S)
        rows = self._ledger.find(
            "buckets", {"deployment": self._deployment, "snapshot": self._trial.control, "minute": (">=", first)}
        )
        old = [row for row in rows if row["minute"] < until]
        return Counts(*(sum(row[name] for row in old) for name in ("total", "hard", "slow", "judged", "failed")))
