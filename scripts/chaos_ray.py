"""Faults of a run over Ray: workers, the actors that keep its state, its driver and its whole cluster killed.

Each is a row of the fault table: `workers_killed`, `actors_killed`, `ray_driver_killed`, `cluster_lost`. The driver is
a process of its own with a local Ray of its own; processes are found by their titles below it, and killed by number.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos_judge as judge
import psutil
from chaos_judge import Row, Verdict, complaint
from chaos_local import Terms
from chaos_world import Sitting, Stage, World, grown, kill, resume, staged, start, stored, title

WIDE = World(calls=1600, in_flight=32, runner="ray", population=12, block=8, sizes=(160, 20, 20))
LATENCY = "lognormal:0.3:0.6"
KILLS = 10
"""Of workers in one run: a run gives up where too many die (cluster/runner.py)."""
SILENT_S = 60.0
"""No request for so long while the driver lives: it hangs."""
LINGERING_S = 5.0
"""How long what hung on a killed actor may still ask."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own, which hold nothing and notice the end of their node within about a minute."""
BYSTANDERS = ("ray::Puller", "ray::IDLE", "ray::NodeHost", *AGENTS)
"""Actors and parts of Ray that keep nothing of a run."""
STARTS_S = 120.0
LEFT = (0, 1, 6)
"""What a driver whose actor died may leave with: it went on, or says to resume, or that the store was taken."""


@dataclass
class Scene:
    """One run over Ray while it is being hurt."""

    stage: Stage
    config: Path
    out: Path
    sitting: Sitting
    since: int
    how: dict[str, Any] = field(default_factory=dict)
    """Of its processes, see chaos_world.Sitting."""
    faults: list[judge.Fault] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    resumes: int = 0

    def strike(self, deed: Callable[[], None], over_s: float = 0.0) -> judge.Fault:
        """Do it, and note what was stored when it was done."""
        kept = stored(self.config.parent / "cache")
        struck_s = time.monotonic()
        deed()
        fault = judge.Fault(struck_s, time.monotonic() + over_s, kept, self.stage.world.in_flight)
        self.faults.append(fault)
        return fault

    def again(self) -> None:
        """Resume on a new local Ray."""
        self.resumes += 1
        self.sitting = resume(self.out, **self.how)

    def moving(self, wait_s: float) -> bool:
        """Let it run for so long; False when it was over before. Counts a run that hangs as wrong, and ends it."""
        ends = time.monotonic() + wait_s
        while time.monotonic() < ends:
            if self.sitting.over() is not None:
                return False
            time.sleep(0.05)
        entries = self.stage.ledger(self.since)
        last_s = max([self.sitting.started_s, *(arrived_s for _, arrived_s, _ in entries[-1:])])
        if time.monotonic() - last_s < SILENT_S:
            return True
        self.verdict += complaint(f"nothing was asked for {SILENT_S:g} s: {self.sitting.said()[-300:]}")
        self.sitting.end()
        return False

    def judged(self) -> Verdict:
        """Go on to its end, however often it takes; the verdict."""
        while (code := self.sitting.wait()) and self.resumes < 25:
            self.refused(code)
            self.again()
        return self.verdict + self.stage.judged(self.out, self.stage.ledger(self.since), self.faults)

    def refused(self, code: int) -> None:
        """Note it when a driver did not leave as it should."""
        if code not in LEFT or "Traceback" in self.sitting.said():
            self.verdict += complaint(f"left with {code}: {self.sitting.said()[-300:]}")


@contextmanager
def scene(stage: Stage, **how: Any) -> Iterator[Scene]:
    """A run over Ray that is under way; nothing of it is left behind."""
    config, out = stage.place()
    here = Scene(stage, config, out, start(config, out, **how), stage.asked(), how)
    try:
        grown(out, 4, here.sitting)
        yield here
    finally:
        here.sitting.end()


def workers_killed(terms: Terms) -> Row:
    """SIGKILL to a random worker process, ten times a run."""
    row, count = Row("evaluation worker SIGKILL"), 20 if terms.short else 500
    with staged(WIDE, terms.folder, terms.seed, LATENCY) as stage:
        runs = resumes = 0
        while row.faults < count and row.verdict.passed:
            with scene(stage) as here:
                runs += 1
                row.faults += _workers(here, min(KILLS, count - row.faults))
                row.verdict += here.judged()
                resumes += here.resumes
    row.seen = {"runs": runs, "resumes": resumes}
    return row


def _workers(here: Scene, most: int) -> int:
    done = 0
    while done < most and here.moving(here.stage.random.uniform(0.3, 1.0)):
        workers = here.sitting.actors("Puller")
        if not workers:
            continue
        victim = here.stage.random.choice(workers)
        here.strike(lambda victim=victim: _gone(victim))  # type: ignore[misc]
        done += 1
    return done


def _gone(pid: int) -> None:
    """SIGKILL, and wait until it is dead."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        kill(pid)
        process.wait(10)


def keepers(sitting: Sitting) -> dict[str, int]:
    """The actors that keep the state of a run: class -> pid."""
    titles = {process.pid: title(process) for process in sitting.tree()}
    return {
        name.removeprefix("ray::").split("(")[0].split(".")[0].split()[0]: pid
        for pid, name in titles.items()
        if name.startswith("ray::") and not name.startswith(BYSTANDERS)
    }


def actors_killed(terms: Terms) -> Row:
    """SIGKILL to each actor that keeps state, by turns: the run goes on by itself, or leaves and is resumed."""
    row, count = Row("population, cache, limits actor SIGKILL"), 10 if terms.short else 200
    came: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    with staged(WIDE, terms.folder, terms.seed, LATENCY) as stage:
        while row.faults < count and row.verdict.passed:
            with scene(stage) as here:
                before = row.faults
                while row.faults < count and _actor(here, hit, came):
                    row.faults += 1
                row.verdict += here.judged()
                if row.faults == before:
                    row.verdict += complaint("no actor that keeps state was found")
    row.seen = {"hit": dict(hit), "came": dict(came)}
    return row


def _actor(here: Scene, hit: Counter[str], came: Counter[str]) -> bool:
    """One actor killed, and what came of it awaited; False when the run was over before."""
    ends = time.monotonic() + STARTS_S
    while not here.sitting.actors("Puller") and here.sitting.over() is None and time.monotonic() < ends:
        time.sleep(0.2)
    if not here.moving(here.stage.random.uniform(0.5, 1.5)) or not (found := keepers(here.sitting)):
        return False
    kind = min(sorted(found), key=hit.__getitem__)
    here.strike(lambda: _gone(found[kind]), LINGERING_S)
    hit[kind] += 1
    ends = time.monotonic() + 30
    while time.monotonic() < ends and here.sitting.over() is None and kind not in keepers(here.sitting):
        time.sleep(0.2)
    code = here.sitting.over()
    if code is None:
        came[f"{kind}: goes on by itself"] += 1
        return True
    here.refused(code)
    came[f"{kind}: left with {code}" + (", resumed" if code else "")] += 1
    if code == 0:
        return True
    here.again()
    return True


def ray_driver_killed(terms: Terms) -> Row:
    """SIGKILL to the driver at random times: its cluster goes with it, a resume on a new one ends the run."""
    row, count = Row("driver SIGKILL over Ray, at random times"), 2 if terms.short else 50
    with staged(WIDE, terms.folder, terms.seed, LATENCY) as stage:
        while row.faults < count:
            with scene(stage) as here:
                for _ in range(min(2, count - row.faults)):
                    if here.moving(stage.random.uniform(0.0, 6.0)):
                        row.faults += 1
                        here.strike(lambda: _orphan(here))
                        here.again()
                        grown(here.out, 1, here.sitting)
                row.verdict += here.judged()
    return row


def _orphan(here: Scene) -> None:
    """Kill the driver alone; its cluster must end by itself."""
    below = [process for process in here.sitting.tree() if not title(process).startswith(AGENTS)]
    kill(here.sitting.pid)
    _, left = psutil.wait_procs(below, timeout=30)
    # One that was just being started had no title yet.
    left = [process for process in left if not title(process).startswith(AGENTS)]
    if left:
        here.verdict += complaint(f"outlived their driver by 30 s: {sorted(title(one) for one in left)}")
    here.sitting.end()
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def cluster_lost(terms: Terms) -> Row:
    """Everything of a run killed at once, raylet and gcs too; a new cluster goes on with the folder."""
    row, count = Row("new cluster, same run folder"), 1 if terms.short else 10
    with staged(WIDE, terms.folder, terms.seed, LATENCY) as stage:
        while row.faults < count:
            with scene(stage) as here:
                here.moving(stage.random.uniform(0.0, 6.0))
                row.faults += 1
                here.strike(lambda: _raze(here))
                here.again()
                row.verdict += here.judged()
    return row


def _raze(here: Scene) -> None:
    below = here.sitting.tree()
    for pid in (here.sitting.pid, *(process.pid for process in below)):
        kill(pid)
    psutil.wait_procs(below, timeout=30)
    here.sitting.end()
