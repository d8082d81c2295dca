"""How the engine scales: one search after the other against a loopback endpoint whose latencies are known.

Every search is `evocluster run` in a process of its own on a cluster that is there. Efficiency is the makespan of a
perfect greedy list scheduler on the very latencies the endpoint gave, in the order they were asked for, over the wall
time from the first request to the last answer. The scheduler of that bound waits for nothing; the search must end
before validation begins, and validation before test, so `efficiency_phases` holds each phase against its own bound.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evocluster.cluster.ideal import greedy, groups
from evocluster.cluster.sentry import Post, Used, serving
from evocluster.cluster.simulated import Site
from evocluster.cluster.world import LABELS, PRICE, World, write
from evocluster.engine.folder import COLUMNS
from evocluster.errors import EvoclusterError
from evocluster.store.table import Table

PHASES = ("search", "validation", "test")
ENGINE = ("driver", "raylet", "gcs_server")
"""Names of processes that count as the engine's, besides its actors. Ray's agents and monitors idle: apart."""
SEED = 11


@dataclass(frozen=True)
class Shape:
    """The search that a part of the benchmark carries out; the same for all whom it compares."""

    population: int = 50
    checked: int = 100
    """See world.World."""
    block: int = 16
    finalists: int = 4

    @classmethod
    def of(cls, calls: int) -> Shape:
        """One that so many calls are enough for."""
        if calls >= 4000:
            return cls()
        return cls(population=max(4, calls // 100), checked=max(4, calls // 50), block=8, finalists=2)


@dataclass(frozen=True)
class Case:
    """One search to be timed."""

    part: str
    """'strong', 'weak', 'in-flight' or 'steady'."""
    nodes: int
    in_flight: int
    latency: str
    calls: int
    shape: Shape
    client: str = "direct"
    """'direct' or 'litellm'."""
    workers: int | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the search that are compared."""
    label: str = ""
    """What is compared, in a word."""


@dataclass(frozen=True)
class Phase:
    """Search, validation or test of a case."""

    name: str
    calls: int
    ideal_s: float
    wall_s: float
    """From the end of the phase before; of the first, from its first request."""


@dataclass(frozen=True)
class Timing:
    """What one case took."""

    case: Case
    calls: int
    evaluations: int
    wall_s: float
    """From the first request's arrival to the last answer."""
    ideal_s: float
    phases: tuple[Phase, ...]
    answering_s: float
    """All latencies summed."""
    late_ms: float
    """How much later than it should the endpoint answered, 99th percentile: its own queue."""
    cpu_ms: Mapping[str, float]
    """CPU milliseconds an evaluation, by name of process; `endpoint` among them."""
    busiest: Mapping[str, float]
    """Share of one core that the busiest process of each name used."""
    machine: float
    """Share of all cores of the busiest machine that were busy, whoever used them."""
    node_mb: Mapping[str, float]
    """Peak of private memory, MiB, by node; `driver` and `head` (the control store) apart."""
    before_s: float
    """Process start, connection, workers."""
    after_s: float
    """From the last answer to the end of the process."""

    @property
    def efficiency(self) -> float:
        """Of the bound that waits for nothing."""
        return self.ideal_s / self.wall_s

    @property
    def efficiency_phases(self) -> float:
        """Of the bound that respects the order of the phases."""
        return sum(phase.ideal_s for phase in self.phases) / self.wall_s

    @property
    def engine_ms(self) -> float:
        """Driver, actors, raylets and control store: CPU milliseconds an evaluation, the client's HTTP included."""
        return sum(ms for name, ms in self.cpu_ms.items() if name in ENGINE or name.startswith("ray::"))

    @property
    def occupancy(self) -> float:
        """Of the places for calls, how many were taken on average."""
        return self.answering_s / (self.wall_s * self.case.in_flight)


def measure(case: Case, site: Site, posts: Sequence[Post], folder: Path) -> Timing:
    """Carry the case out once. Raises: EvoclusterError with what the run said when it failed."""
    try:
        url = serving(posts, case.latency, SEED, LABELS)
        config = write(folder, _world(case, site, url))
        started = time.time()
        _run(config, site, posts)
        ended = time.time()
        calls = _calls([post.seen() for post in posts])
        first, last = calls[0][0], max(call[1] for call in calls)
        used = [post.used(first, last) for post in posts]
        endpoint_s = sum(post.seen()["cpu_s"] for post in posts)
    finally:
        for post in posts:
            post.leave()
    sizes, evaluations = asked(folder / "run")
    return timing(case, calls, sizes, evaluations, used, endpoint_s, (first - started, ended - last))


def timing(
    case: Case,
    calls: Sequence[tuple[float, float, float]],
    sizes: Sequence[int],
    evaluations: int,
    used: Sequence[Used],
    endpoint_s: float,
    around: tuple[float, float],
) -> Timing:
    """The figures. `calls`: (begin, end, latency) in order of arrival; `sizes`: calls of each phase but the last."""
    first, last = calls[0][0], max(end for _, end, _ in calls)
    wall = last - first
    latencies = [latency for _, _, latency in calls]
    processes = [process for one in used for process in one.cpu]
    totals: dict[str, float] = {}
    for name, seconds in processes:
        totals[name] = totals.get(name, 0.0) + seconds
    totals["endpoint"] = endpoint_s
    late = sorted(end - begin - latency for begin, end, latency in calls)
    return Timing(
        case=case,
        calls=len(calls),
        evaluations=evaluations,
        wall_s=wall,
        ideal_s=greedy(latencies, case.in_flight),
        phases=phases(calls, sizes, case.in_flight),
        answering_s=sum(latencies),
        late_ms=late[int(0.99 * (len(late) - 1))] * 1000,
        cpu_ms={name: seconds / evaluations * 1000 for name, seconds in sorted(totals.items())},
        busiest={name: max(s for n, s in processes if n == name) / wall for name in totals if name != "endpoint"}
        | {"endpoint": endpoint_s / len(used) / wall},
        machine=max(one.machine for one in used),
        node_mb={f"{number}:{node}": mb for number, one in enumerate(used) for node, mb in one.node_mb.items()},
        before_s=around[0],
        after_s=around[1],
    )


def phases(calls: Sequence[tuple[float, float, float]], sizes: Sequence[int], slots: int) -> tuple[Phase, ...]:
    """Each phase held against its own bound."""
    found, before = [], calls[0][0]
    latencies = groups([latency for _, _, latency in calls], sizes[:-1])
    ends = groups([end for _, end, _ in calls], sizes[:-1])
    for name, jobs, ended in zip(PHASES, latencies, ends, strict=True):
        last = max(ended, default=before)
        found.append(Phase(name, len(jobs), greedy(jobs, slots), last - before))
        before = last
    return tuple(found)


def asked(folder: Path) -> tuple[list[int], int]:
    """How many calls reached the endpoint for the search, validation and test; and how many evaluations there are."""
    made, evaluations = dict.fromkeys(PHASES, 0), 0
    table = Table.open(folder / "trials", COLUMNS)
    for row in (row for chunk in table.read() for row in chunk):
        phase = row["purpose"] if row["purpose"] in made else "search"
        made[phase] += row["calls"] - row["cached_calls"]
        evaluations += row["kind"] == "evaluation"
    table.close()
    return list(made.values()), evaluations


def _world(case: Case, site: Site, url: str) -> World:
    direct = {"kind": "direct", "base_url": f"{url}/v1", "model": "loopback", "timeout_s": 300}
    litellm = {"kind": "remote", "model": "openai/loopback", "api_base": f"{url}/v1", "no_key": True, "timeout_s": 300}
    return World(
        {"direct": direct, "litellm": litellm}[case.client] | {"price": PRICE},
        calls=case.calls,
        in_flight=case.in_flight,
        population=case.shape.population,
        checked=case.shape.checked,
        block=case.shape.block,
        finalists=case.shape.finalists,
        engine={"address": site.address, "workers": case.workers},
        search=case.search,
    )


def _run(config: Path, site: Site, posts: Sequence[Post]) -> None:
    """Carry the config out. Raises: EvoclusterError with what the run said when it failed."""
    command = [sys.executable, "-m", "evocluster.cli.main", "run", str(config), "--out", str(config.parent / "run")]
    environment = {**os.environ, **site.environment}
    with subprocess.Popen(
        [*command, "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for number, post in enumerate(posts):
                post.watch(None if number else process.pid)
            _, complaint = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise EvoclusterError(f"a search of the benchmark ended with {process.returncode}: {complaint[-3000:]}")


def _calls(seen: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float]]:
    """(begin, end, latency) of every call that was answered, over all machines in order of arrival."""
    return sorted(
        call for one in seen for call in zip(one["began_s"], one["ended_s"], one["latencies"], strict=True) if call[1]
    )
