"""A long run on a scripted model: memory and descriptors of every process stay flat, everything is given back.

The row `soak` of the fault table: a million evaluations (20,000 at every push) over a local Ray. The run is a process
of its own that prints a line of progress; a meter outside samples it and everything below it. When the run is over,
and before its Ray session is, the process says which CPUs are free again and which actors are still alive.

    python scripts/chaos_soak.py CONFIG OUT        # that process
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from chaos_judge import Row, Verdict, complaint
from chaos_local import Terms
from chaos_world import World, environment, title

EVALUATIONS = 1_000_000
SHORT = 20_000
EVERY_S = 1.0
MEMORY_MB = 40.0
"""Private MiB that a process may grow by between a third of the run and its end: what libraries load late."""
MEMORY_MB_100K = 4.0
"""And by every 100,000 evaluations in between: the history that the search itself keeps."""
HANDLES = 8
"""Open descriptors more at the end than at a third of the run."""
ENDS_S = 15.0
"""So long after the driver's end nothing of it may be left."""


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    name: str
    pid: int
    evaluations: int
    memory_mb: float
    handles: int


@dataclass(frozen=True)
class Growth:
    """What a process gained between a third of the run and its end."""

    name: str
    memory_mb: float
    handles: int
    evaluations: int

    @property
    def leaks(self) -> bool:
        """It grew by more than a run may."""
        allowed = MEMORY_MB + MEMORY_MB_100K * self.evaluations / 100_000
        return self.memory_mb > allowed or self.handles > HANDLES


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Of every process that lived through the last two thirds of the run: medians of 33-45 % and of 88-100 %."""
    last = max((sample.evaluations for sample in samples), default=0)
    found = []
    for name, pid in sorted({(sample.name, sample.pid) for sample in samples}):
        mine = [sample for sample in samples if sample.pid == pid and sample.name == name]
        early = [sample for sample in mine if 0.33 * last <= sample.evaluations <= 0.45 * last]
        late = [sample for sample in mine if sample.evaluations >= 0.88 * last]
        if early and late:
            memory = median(one.memory_mb for one in late) - median(one.memory_mb for one in early)
            handles = median(one.handles for one in late) - median(one.handles for one in early)
            between = median(one.evaluations for one in late) - median(one.evaluations for one in early)
            found.append(Growth(name, memory, round(handles), round(between)))
    return found


class Watch:
    """Samples a process and all below it, in a thread, while the `with` block lasts."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.evaluations = 0
        self.samples: list[Sample] = []
        self.seen: set[psutil.Process] = set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(EVERY_S):
            with suppress(psutil.NoSuchProcess):  # the run is over before the watch is
                for process in (self._root, *self._root.children(recursive=True)):
                    self.seen.add(process)
                    with suppress(psutil.Error):  # it ended while we looked
                        memory = process.memory_full_info().uss / 2**20
                        name = "driver" if process == self._root else short(title(process))
                        self.samples.append(Sample(name, process.pid, self.evaluations, memory, process.num_fds()))


def short(name: str) -> str:
    """'ray::Puller' for 'ray::Puller.run()', 'raylet' for its path."""
    word = name.split("(")[0].split()[0] if name.split() else name
    return word.split(".")[0] if word.startswith("ray::") else word.rsplit("/", 1)[-1]


def soak(terms: Terms) -> Row:
    """The long run, and what it left behind."""
    evaluations = SHORT if terms.short else EVALUATIONS
    row = Row(f"{evaluations:,} evaluations on a scripted model")
    model = {"kind": "scripted", "latency_s": 0.0}
    world = World(evaluations, 64, runner="ray", population=50, block=16, sizes=(400, 100, 100), model=model)
    config = world.write(terms.folder, "")
    command = [sys.executable, __file__, str(config), str(terms.folder / "out")]
    with (terms.folder / "soak.log").open("w") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment())
    told: dict[str, Any] = {}
    with process, Watch(process.pid) as watch:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            watch.evaluations = told.get("evaluations", watch.evaluations)
    row.faults = 1
    row.verdict = _left(process.returncode, told, watch, terms.folder / "soak.log")
    found = growths(watch.samples)
    row.verdict += complaint(*(f"{one.name} grew: {_told(one)}" for one in found if one.leaks))
    row.seen = {"evaluations": watch.evaluations, "grew": {one.name: _told(one) for one in found}}
    row.seen["free_again"] = {name: told.get(name) for name in ("cpus", "free", "actors")}
    return row


def _told(one: Growth) -> str:
    return f"{one.memory_mb:+.1f} MiB, {one.handles:+d} descriptors over {one.evaluations} evaluations"


def _left(code: int, told: Mapping[str, Any], watch: Watch, log: Path) -> Verdict:
    """The verdict on how it ended and what it left."""
    if code or "cpus" not in told:
        return complaint(f"left with {code}: {log.read_text()[-500:]}")
    wrong = []
    if told["free"] != told["cpus"]:
        wrong.append(f"{told['free']} of {told['cpus']} CPUs are free after the run")
    if told["actors"]:
        wrong.append(f"actors still alive after the run: {told['actors']}")
    _, left = psutil.wait_procs(watch.seen, timeout=ENDS_S)
    if left:
        wrong.append(f"processes left behind: {sorted(short(title(one)) for one in left)}")
    return complaint(*wrong)


def main() -> None:
    """Run the config in a session of ours, say how far it is, and what is free again when it is over."""
    from evocluster import build
    from evocluster.cluster.session import session

    def show(progress: dict[str, Any]) -> None:
        if "evaluations" in progress:
            print(json.dumps({"evaluations": progress["evaluations"]}), flush=True)

    with session():
        import ray

        build.run(build.plan(Path(sys.argv[1])), Path(sys.argv[2]), show=show)
        cpus = ray.cluster_resources().get("CPU")  # type: ignore[no-untyped-call]
        free, alive = _free(cpus)
        print(json.dumps({"cpus": cpus, "free": free, "actors": alive}), flush=True)


def _free(cpus: float | None) -> tuple[float | None, list[str]]:
    """CPUs that are free, and actors alive, once killed ones had a moment to go.

    The keeper of limits takes no CPU, may serve other runs, and ends by itself when nobody has asked it for a while.
    """
    import ray
    from ray._private.state import actors

    from evocluster.cluster.limits import IDLE_S

    over, ends = (time.monotonic() + wait_s for wait_s in (10, IDLE_S + 20))
    while True:
        free = ray.available_resources().get("CPU")  # type: ignore[no-untyped-call]
        alive = [one["ActorClassName"] for one in actors().values() if one["State"] == "ALIVE"]
        wanted = ends if free == cpus and alive == ["LimitsKeeper"] else over
        if (free == cpus and not alive) or time.monotonic() >= wanted:
            return free, alive
        time.sleep(0.2)


if __name__ == "__main__":
    main()
