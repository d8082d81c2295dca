"""How much of a perfect cluster the engine delivers, and what an evaluation costs it.

    python scripts/bench_engine.py            about 10 minutes; a table
    python scripts/bench_engine.py --short    under a minute; fewer evaluations, rougher figures
    python scripts/bench_engine.py --json     the last line is one JSON object

Every search runs in a process of its own, on a local Ray, against a loopback endpoint (cluster/loopback.py) whose
latencies are known. Efficiency is the makespan of a perfect greedy list scheduler on the same latencies, in
the order they were asked for, over the wall time from the first request to the last answer. The scheduler of
that bound waits for nothing; the search must end before validation begins, and validation before test, so a
second figure holds each phase against its own bound. Ray's start is reported apart. CPU is summed over the
driver, all actors and Ray's own scheduler processes. With equal latencies calls go in waves: at 500 in flight
5,000 are ten of them, and one call too late is a wave more, so the figures are medians of three searches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import bench_layers
from bench_world import Sitting, carry_out

from evocluster.cluster.ideal import greedy, in_order
from evocluster.cluster.loopback import Latency, running, stats
from evocluster.cluster.meter import ROOT
from evocluster.cluster.world import LABELS, World, write

RAY = ("raylet", "gcs_server")
"""Ray's own processes that work for every batch; its agents and monitors idle and are reported apart."""


@dataclass(frozen=True)
class Case:
    """One search to be timed."""

    name: str
    in_flight: int
    latency: Latency
    calls: int
    through: str
    """'direct' or 'remote'."""
    lookahead: int | None = None
    """`search.lookahead`; None: the default. A heavy tail needs more, since trials count in their order."""


@dataclass(frozen=True)
class Timing:
    """What one case took. Seconds unless the name says otherwise."""

    case: Case
    calls: int
    wall_s: float
    """From the first request's arrival to the last answer."""
    before_s: float
    """Process start, Ray start, workers."""
    after_s: float
    """From the last answer to the end of the process."""
    ideal_s: float
    ideal_phases_s: float
    """Sum of the perfect makespans of search, validation and test, each begun when the one before is over."""
    peak: int
    cpu_ms: Mapping[str, float]
    """CPU milliseconds an evaluation, by name of process."""
    memory_mb: float

    @property
    def efficiency(self) -> float:
        """Of the bound that waits for nothing."""
        return self.ideal_s / self.wall_s

    @property
    def efficiency_phases(self) -> float:
        """Of the bound that respects the order of the phases."""
        return self.ideal_phases_s / self.wall_s

    @property
    def engine_ms(self) -> float:
        """Driver, actors, raylet and gcs."""
        return sum(ms for name, ms in self.cpu_ms.items() if _ours(name))


def _ours(name: str) -> bool:
    return name == ROOT or name.startswith("ray::") or name in RAY


def phases(folder: Path) -> list[int]:
    """How many calls reached the endpoint for the search, validation and test, from the run's table."""
    from evocluster.engine.folder import COLUMNS
    from evocluster.store.table import Table

    made = dict.fromkeys(("search", "validation", "test"), 0)
    table = Table.open(folder / "trials", COLUMNS)
    for row in (row for chunk in table.read() for row in chunk):
        phase = row["purpose"] if row["purpose"] in made else "search"
        made[phase] += row["calls"] - row["cached_calls"]
    table.close()
    return list(made.values())


def measure(case: Case, folder: Path) -> Timing:
    """Carry the case out once."""
    with running(case.latency, seed=11, answers=LABELS) as url:
        direct = {"kind": "direct", "base_url": f"{url}/v1", "model": "loopback", "timeout_s": 300}
        model = direct if case.through == "direct" else {**bench_layers.remote(url), "timeout_s": 300}
        world = World(model, calls=case.calls, in_flight=case.in_flight, lookahead=case.lookahead)
        sitting = carry_out(write(folder / case.name, world))
        seen = stats(url)
    return _timing(case, sitting, seen, phases(folder / case.name / "run"))


def _timing(case: Case, sitting: Sitting, seen: Mapping[str, Any], sizes: Sequence[int]) -> Timing:
    used = sitting.meter.cpu_s(seen["first_s"], seen["last_s"])
    latencies: list[float] = seen["latencies"]
    return Timing(
        case=case,
        calls=seen["count"],
        wall_s=seen["last_s"] - seen["first_s"],
        before_s=seen["first_s"] - sitting.started_s,
        after_s=sitting.ended_s - seen["last_s"],
        ideal_s=greedy(latencies, case.in_flight),
        ideal_phases_s=in_order(latencies, sizes, case.in_flight),
        peak=seen["in_flight_peak"],
        cpu_ms={name: seconds / seen["count"] * 1000 for name, seconds in sorted(used.items())},
        memory_mb=sitting.meter.peak_mb,
    )


def growth_mb(folder: Path, evaluations: int) -> float:
    """Resident MiB that 100,000 evaluations add in one process; see `slope`."""
    model = {"kind": "scripted", "latency_s": 0.0}
    world = World(model, calls=evaluations, in_flight=64, runner="local")
    return slope(carry_out(write(folder / "growth", world)).growth) * 100_000


def slope(growth: Sequence[tuple[int, float]]) -> float:
    """MiB an evaluation, between 20 to 35 % and 70 to 85 % of a run: medians, because memory comes in jumps; the
    start loads libraries, the end computes the intervals of the front, and neither repeats.
    """
    last = growth[-1][0]
    early = [point for point in growth if 0.2 * last <= point[0] <= 0.35 * last]
    late = [point for point in growth if 0.7 * last <= point[0] <= 0.85 * last]
    if not early or not late:
        raise ValueError(f"{len(growth)} looks at {last} evaluations are too few; give it more evaluations")
    evaluations = median(n for n, _ in late) - median(n for n, _ in early)
    return (median(mb for _, mb in late) - median(mb for _, mb in early)) / evaluations


def cases(short: bool) -> list[Case]:
    """The searches of a full or a short benchmark, in order; what is watched comes three times."""
    second, tail = Latency.parse("fixed:1.0"), Latency.parse("lognormal:1.0:10.0")
    if short:
        return [Case("200", 200, second, 1500, "direct"), Case("500", 500, second, 2500, "direct")]
    watched = [Case("200", 200, second, 5000, "direct"), Case("500", 500, second, 5000, "direct")]
    return [
        *watched,
        Case("200-tail", 200, tail, 5000, "direct"),
        *watched,
        Case("200-tail-ahead", 200, tail, 5000, "direct", lookahead=150),
        *watched,
        Case("100-litellm", 100, second, 2000, "remote"),
    ]


COLUMNS = {
    "in flight": 9,
    "latency": 18,
    "via": 7,
    "calls": 6,
    "peak": 5,
    "perfect s": 9,
    "wall s": 7,
    "efficiency": 11,
    "by phase": 9,
    "start s": 8,
    "end s": 6,
    "MiB": 5,
}


def row(cells: Iterable[object]) -> str:
    """Cells right-aligned under the heads of COLUMNS."""
    return " ".join(f"{cell!s:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def timing_row(one: Timing) -> str:
    """One case, as a row under COLUMNS."""
    case = one.case
    about = (case.in_flight, case.latency, case.through, one.calls, one.peak)
    times = (f"{one.ideal_s:.1f}", f"{one.wall_s:.1f}", f"{one.efficiency:.3f}", f"{one.efficiency_phases:.3f}")
    return row((*about, *times, f"{one.before_s:.1f}", f"{one.after_s:.1f}", f"{one.memory_mb:.0f}"))


def show_cpu(timings: Sequence[Timing]) -> None:
    """CPU of each case by process."""
    print("\nCPU, ms an evaluation, between the first request and the last answer")
    for one in timings:
        ours = ", ".join(f"{name} {ms:.2f}" for name, ms in one.cpu_ms.items() if _ours(name) and ms >= 0.005)
        others = sum(ms for name, ms in one.cpu_ms.items() if not _ours(name))
        print(f"  {one.case.name:<12} {one.engine_ms:.2f} = {ours}; Ray's agents and monitors {others:.2f}")


def bench(short: bool, folder: Path) -> dict[str, float]:
    """All of it, the tables printed on the way; returns the figures that are watched."""
    timings = []
    print(row(COLUMNS), flush=True)
    for number, case in enumerate(cases(short)):
        timings.append(measure(case, folder / str(number)))
        print(timing_row(timings[-1]), flush=True)
    show_cpu(timings)
    costs = bench_layers.layers(folder, calls=800 if short else 4000, in_flight=200)
    print("\nCPU of each layer by itself, ms an evaluation")
    for name, ms in costs.items():
        print(f"  {name:<38} {ms:.3f}")
    named = {name: [one for one in timings if one.case.name == name] for name in ("200", "500")}
    bare = costs["bare client (aiohttp, uvloop)"]
    figures = {
        "efficiency_200": median(one.efficiency for one in named["200"]),
        "efficiency_500": median(one.efficiency for one in named["500"]),
        "engine_cpu_ms_per_evaluation": median(one.engine_ms for one in named["200"]) - bare,
        "litellm_cpu_ms_per_call": bench_layers.litellm_cpu_ms(folder, 100 if short else 1000),
        "nsga2_commit_ms_1000": bench_layers.nsga2_commit_ms(folder / "nsga2", 50 if short else 300),
        "rss_growth_mb_100k": growth_mb(folder, 10_000 if short else 100_000),
    }
    print()
    for name, value in figures.items():
        print(f"  {name:<38} {value:.3f}")
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer evaluations: under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evocluster-bench-") as folder:
        figures = bench(given.short, Path(folder))
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
