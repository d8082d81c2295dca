"""What a perfect scheduler would have taken: the yardstick of the benchmarks.

`greedy` is list scheduling (Graham, Bounds on multiprocessing timing anomalies, 1969): a slot that is free takes the
next job at once, at no cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def greedy(seconds: Iterable[float], slots: int) -> float:
    """Makespan, in seconds, of jobs started in this order on `slots` slots without any gap.

    Raises: ValueError when there is no slot.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots!r}; at least 1 is needed")
    busy: list[float] = []
    last = 0.0
    for job in seconds:
        start = heapq.heappop(busy) if len(busy) == slots else 0.0
        heapq.heappush(busy, start + job)
        last = max(last, start + job)
    return last


def in_order(latencies: Sequence[float], sizes: Sequence[int], slots: int) -> float:
    """Perfect makespan of consecutive groups of jobs, each begun when the one before is over."""
    return sum(greedy(group, slots) for group in groups(latencies, sizes))


def groups(jobs: Sequence[float], sizes: Sequence[int]) -> list[Sequence[float]]:
    """The jobs dealt into consecutive groups of these sizes; what is over makes one more."""
    dealt, start = [], 0
    for size in sizes:
        dealt.append(jobs[start : start + size])
        start += size
    return [*dealt, jobs[start:]]
