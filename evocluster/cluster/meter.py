"""Who used CPU and memory: a sampler that watches processes from outside, those of a Ray cluster by node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil

ROOT = "driver"
"""Name of the process a meter was given, among those below it."""
ENDED = "ended"
"""Name of a process that was over, though not yet reaped, before it could be asked."""
MEMORY_EVERY = 20
"""Samples from one look at memory to the next: private memory takes the kernel 50 times as long as CPU."""
LIST_EVERY = 4
"""Samples from one listing of the processes to the next."""


class Watched(NamedTuple):
    """A process that counts."""

    process: psutil.Process
    name: str
    """'driver', 'ray::Population', 'raylet', 'log_monitor.py'."""
    node: str = ""
    """Which node of a cluster it belongs to."""


class Meter:
    """CPU and memory of some processes over time, sampled by a thread while its `with` block lasts.

    Their own cost of being looked at is the meter's process's, not theirs.
    """

    def __init__(self, listed: Callable[[], Iterable[Watched]], every_s: float = 0.25) -> None:
        self._listed = listed
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._samples: list[tuple[float, dict[int, float]]] = []
        self._machine: list[tuple[float, float, float]] = []
        self._names: dict[int, str] = {}
        self.peak_mb = 0.0
        """Largest sum of private memory (USS) seen, MiB."""
        self.node_mb: dict[str, float] = {}
        """The same by node."""

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_s(self, start_s: float, end_s: float) -> dict[str, float]:
        """CPU seconds used between two moments of the monotonic clock, by name of process."""
        used: dict[str, float] = {}
        for name, each in self.processes(start_s, end_s):
            used[name] = used.get(name, 0.0) + each
        return used

    def processes(self, start_s: float, end_s: float) -> list[tuple[str, float]]:
        """(name, CPU seconds used between two moments of the monotonic clock) of every process."""
        before, after = self._at(start_s), self._at(end_s)
        return [(self._names[pid], total - before.get(pid, 0.0)) for pid, total in after.items()]

    def machine(self, start_s: float, end_s: float) -> float:
        """Share of all cores that were busy between two moments of the monotonic clock, whoever used them."""
        before, after = (
            min(self._machine, key=lambda sample: abs(sample[0] - moment), default=(0.0, 0.0, 0.0))
            for moment in (start_s, end_s)
        )
        return min(1.0, (after[1] - before[1]) / (after[2] - before[2])) if after[2] > before[2] else 0.0

    def _at(self, moment: float) -> dict[int, float]:
        """The sample nearest to a moment; processes that ended by then keep their last figure."""
        seen: dict[int, float] = {}
        nearest = min(self._samples, key=lambda sample: abs(sample[0] - moment), default=(0.0, seen))
        for when, sample in self._samples:
            if when <= nearest[0]:
                seen.update(sample)
        return seen

    def _watch(self) -> None:
        watched: list[Watched] = []
        while not self._over.wait(self._every_s):
            number = len(self._samples)
            if number % LIST_EVERY == 0 or not watched:
                watched = list(self._listed())
            sample: dict[int, float] = {}
            memory: dict[str, float] = {}
            for one in watched:
                try:
                    sample[one.process.pid] = _cpu_s(one.process)
                    if one.name != ENDED or one.process.pid not in self._names:
                        self._names[one.process.pid] = one.name
                    if number % MEMORY_EVERY == 0:
                        memory[one.node] = memory.get(one.node, 0.0) + one.process.memory_full_info().uss / 2**20
                except psutil.Error:  # it ended while we looked: its last sample stands
                    continue
            self._samples.append((time.monotonic(), sample))
            self._machine.append((time.monotonic(), *_busy()))
            self.peak_mb = max(self.peak_mb, sum(memory.values()))
            for node, mb in memory.items():
                self.node_mb[node] = max(mb, self.node_mb.get(node, 0.0))


def _cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far; in /proc they are hundredths, of which a short search takes none at times.

    Raises: psutil.Error when it is gone.
    """
    try:
        return time.clock_gettime(~process.pid << 3 | 2)  # its clock as clock_getcpuclockid(3) makes it on Linux
    except (OSError, OverflowError, AttributeError):
        times = process.cpu_times()
        return float(times.user + times.system)


def below(pid: int) -> Callable[[], list[Watched]]:
    """What a meter watches: this process and everything below it."""
    root = psutil.Process(pid)
    return lambda: [Watched(one, ROOT if one == root else _name(one)) for one in _tree(root)]


def of_session(gcs: str, driver: int | None = None) -> Callable[[], list[Watched]]:
    """What a meter watches: the processes of one Ray cluster on this machine by node, and the driver.

    `gcs`: the address of the cluster's control store, which every raylet was started with.
    """

    def listed() -> list[Watched]:
        found: list[Watched] = []
        raylets = _raylets(gcs)
        for raylet, _ in raylets:
            found += [Watched(one, _name(one), str(raylet.pid)) for one in _tree(raylet)]
        sessions = {session for _, session in raylets}
        for one in psutil.process_iter(["name", "cmdline"]):
            if one.info["name"] == "gcs_server" and sessions & set(one.info["cmdline"] or ()):
                found.append(Watched(one, "gcs_server", "head"))
        if driver is not None and psutil.pid_exists(driver):
            found.append(Watched(psutil.Process(driver), ROOT, ROOT))
        return found

    return listed


def resident_mb() -> float:
    """MiB of memory that this process holds."""
    return float(psutil.Process().memory_info().rss) / 2**20


def _busy() -> tuple[float, float]:
    """CPU seconds of this machine since it started: busy ones, and all."""
    times = psutil.cpu_times()
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # in `user` already
    return whole - times.idle - getattr(times, "iowait", 0.0), whole


def _raylets(gcs: str) -> list[tuple[psutil.Process, str]]:
    """Every raylet of that cluster here, with its argument that names the session."""
    found = []
    for one in psutil.process_iter(["name", "cmdline"]):
        line = one.info["cmdline"] or ()
        if one.info["name"] == "raylet" and f"--gcs-address={gcs}" in line:
            found.append((one, next((word for word in line if word.startswith("--session-name=")), "")))
    return found


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:  # the run is over before the meter is
        return []


def _name(process: psutil.Process) -> str:
    """'ray::Population', 'raylet', 'log_monitor.py': what a process is, without arguments."""
    try:
        line = [str(word) for word in process.cmdline()] or [str(process.name())]
    except psutil.Error:
        return ENDED
    if line[0].startswith("ray::"):
        return line[0].split("(")[0].split(".")[0].split()[0]
    script = next((word for word in line[1:] if word.endswith(".py")), line[0].split()[0])
    return script.rsplit("/", 1)[-1]
