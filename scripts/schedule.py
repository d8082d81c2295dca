"""What a perfect scheduler would have taken, and who used the CPU: the yardsticks of the benchmarks.

`greedy` is list scheduling (Graham, Bounds on multiprocessing timing anomalies, 1969): a slot that is free
takes the next job at once, at no cost. `Meter` samples a process and everything below it, from outside.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable

import psutil


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


ROOT = "driver"
"""Name of the process a meter was given, among those below it."""


class Meter:
    """CPU and memory of a process tree over time, sampled by a thread while its `with` block lasts.

    The tree's own cost of being looked at is the meter's process's, not the tree's.
    """

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._samples: list[tuple[float, dict[int, float]]] = []
        self._names: dict[int, str] = {}
        self.peak_mb = 0.0
        """Largest sum of private memory (USS) of the tree seen, MiB."""

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """CPU seconds used between two moments of the monotonic clock, by name of process."""
        before, after = self._at(start_s), self._at(end_s)
        used: dict[str, float] = {}
        for pid, total in after.items():
            name = self._names[pid]
            used[name] = used.get(name, 0.0) + total - before.get(pid, 0.0)
        return used

    def _at(self, moment: float) -> dict[int, float]:
        """The sample nearest to a moment; processes that ended by then keep their last figure."""
        seen: dict[int, float] = {}
        nearest = min(self._samples, key=lambda sample: abs(sample[0] - moment), default=(0.0, seen))
        for when, sample in self._samples:
            if when <= nearest[0]:
                seen.update(sample)
        return seen

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            sample: dict[int, float] = {}
            memory = 0.0
            for process in self._tree():
                try:
                    times = process.cpu_times()
                    sample[process.pid] = times.user + times.system
                    self._names[process.pid] = ROOT if process == self._root else _name(process)
                    if len(self._samples) % 20 == 0:
                        memory += process.memory_full_info().uss / 2**20
                except psutil.Error:  # it ended while we looked: its last sample stands
                    continue
            self._samples.append((time.monotonic(), sample))
            self.peak_mb = max(self.peak_mb, memory)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:  # the run is over before the meter is
            return []


def _name(process: psutil.Process) -> str:
    """'ray::Population', 'raylet', 'log_monitor.py': what a process is, without arguments."""
    line = [str(word) for word in process.cmdline()] or [str(process.name())]
    if line[0].startswith("ray::"):
        return line[0].split("(")[0].split(".")[0].split()[0]
    script = next((word for word in line[1:] if word.endswith(".py")), line[0].split()[0])
    return script.rsplit("/", 1)[-1]
