"""What a run asks of Ray's autoscaler: as many CPUs as its work can use. Without an autoscaler nobody listens.

Our actors take no CPU of Ray's books (`num_cpus=0`), so a node that works for us looks idle to the autoscaler; the
request stands as long as there is work, and keeps the nodes as well as it brings them.
"""

from __future__ import annotations

from collections.abc import Callable

from evocluster.telemetry import log

PER_CPU = 100
"""Evaluations in flight that one worker process, which fills a core, carries well at a second each."""
PATIENCE_S = 30.0
"""Seconds a smaller demand must last before less is asked for."""


def wanted(work: int, in_flight: int, workers: int | None = None) -> int:
    """CPUs that `work` evaluations, queued and under way, can use; 0 where there is none."""
    cpus = -(-min(work, in_flight) // PER_CPU)
    return min(cpus, workers) if workers is not None else cpus


class Demand:
    """Tells the autoscaler what is wanted when that changes: more at once, less after a while."""

    def __init__(self, ask: Callable[[int], None]) -> None:
        """`ask` takes the CPUs; 0 withdraws the request."""
        self._ask = ask
        self._asked = 0
        self._less_since_s: float | None = None

    def tell(self, cpus: int, now_s: float) -> None:
        """This many CPUs are wanted now."""
        if cpus >= self._asked:
            self._less_since_s = None
        elif self._less_since_s is None:
            self._less_since_s = now_s
        waited = self._less_since_s is None or now_s - self._less_since_s >= PATIENCE_S
        if cpus != self._asked and waited:
            self._ask(cpus)
            self._asked, self._less_since_s = cpus, None

    def withdraw(self) -> None:
        """Nothing is wanted any more."""
        if self._asked:
            self._ask(0)
            self._asked = 0


def ask_ray(cpus: int) -> None:
    """Have Ray's autoscaler keep this many CPUs; 0: as it likes. A cluster that cannot be asked is logged."""
    import ray

    try:
        from ray.autoscaler.sdk import request_resources

        request_resources(num_cpus=cpus)
    except (ImportError, ConnectionError, RuntimeError, ray.exceptions.RayError) as failure:
        log.warning("the autoscaler was not asked for %d CPUs: %s", cpus, failure)
