"""Ray's own metrics of a run: what is under way and what was done, for its dashboard and whatever scrapes it.

The population actor tells what waits and what is under way, every worker what it did since then; at most once in
`EVERY_S`, whatever goes on in between. All carry the tag `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from evocluster.telemetry import counts

EVERY_S = 1.0
GAUGES: Mapping[str, str] = {
    "in_flight": "Evaluations handed out to workers",
    "queue": "Evaluations that no worker has taken yet",
    "spend_usd": "Paid so far, in US dollars",
    "evaluations": "Evaluations kept so far",
}
COUNTERS: Mapping[str, str] = {
    "calls": "Requests sent to models",
    "rate_limited": "Answers 429",
    "retries": "Requests that repeated one that had failed",
    "hits": "Calls answered from the cache",
    "misses": "Calls that went to a model",
    "joins": "Calls that waited for an equal one under way",
    "usd": "List price of the answers that came, in US dollars",
}
"""Name -> description. Ray puts `ray_` before them, we `evocluster_`."""


class Gauges:
    """Values as they are, from the population actor."""

    def __init__(self, run: str, read: Callable[[], Mapping[str, float]]) -> None:
        from ray.util.metrics import Gauge

        self._read = read
        self._gauges = {name: Gauge(f"evocluster_{name}", text, ("run",)) for name, text in GAUGES.items()}
        self._tags = {"run": run}

    def tell(self) -> None:
        """Every value that is known now."""
        for name, value in self._read().items():
            self._gauges[name].set(value, self._tags)


class Counters:
    """What telemetry's counts grew by, from a worker."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter

        self._counters = {name: Counter(f"evocluster_{name}", text, ("run",)) for name, text in COUNTERS.items()}
        self._tags = {"run": run}
        self._told = dict(counts)

    def tell(self) -> None:
        """What was added since the last time."""
        for name, counter in self._counters.items():
            more = counts[name] - self._told.get(name, 0.0)
            if more > 0:
                counter.inc(more, self._tags)
                self._told[name] = counts[name]


def beating(metrics: Gauges | Counters, every_s: float = EVERY_S) -> asyncio.Task[None]:
    """A task that tells again and again, and once more when it is cancelled. Whoever starts it holds it."""

    async def beat() -> None:
        try:
            while True:
                metrics.tell()
                await asyncio.sleep(every_s)
        finally:
            metrics.tell()

    return asyncio.ensure_future(beat())


def state(progress: Mapping[str, Any], queued: int) -> dict[str, float]:
    """The gauges, from an engine's progress."""
    return {
        "in_flight": float(progress.get("handed_out", 0)),
        "queue": float(queued),
        "spend_usd": float(progress.get("paid_usd", 0.0)),
        "evaluations": float(progress.get("evaluations", 0)),
    }
