"""The scaling benchmark carried out: cluster after cluster, search after search, and what it comes to as JSON data."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from evocluster.cluster.cases import Options, by_nodes
from evocluster.cluster.scaling import PHASES, Case, Timing, measure
from evocluster.cluster.sentry import Post, Sentry, posted
from evocluster.cluster.simulated import Site, simulated
from evocluster.errors import ConfigError

Say = Callable[[str], None]
FIGURES = (
    *("wall_s", "ideal_s", "efficiency", "efficiency_phases", "evaluations_per_s", "engine_ms", "cpu_ms_all"),
    *("occupancy", "late_ms", "machine", "node_mb", "head_mb", "before_s", "after_s"),
)
"""What is told of each case, as a median and the lowest and highest of its repetitions."""


def timed(options: Options, say: Say) -> list[dict[str, Any]]:
    """Every search of these options, as rows. Raises: ConfigError, EvoclusterError."""
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="evobench-", ignore_cleanup_errors=True) as folder:
        for site, posts, cases in _sites(options, say):
            for case in cases:
                timings.append(measure(case, site, posts, Path(folder) / str(len(timings))))
                say(_told(timings[-1]))
    return rows(timings)


def _sites(options: Options, say: Say) -> Iterator[tuple[Site, Sequence[Post], list[Case]]]:
    """Cluster after cluster, with what is to be carried out there. Raises: ConfigError."""
    every = by_nodes(options)
    if options.address is None:
        for nodes, cases in every.items():
            with simulated(nodes) as site:
                yield site, [Sentry(site.address)], cases
        return
    with posted(options.address) as (posts, there):
        for nodes, cases in every.items():
            if nodes <= there:
                # What is not given its workers has the whole cluster.
                yield (
                    Site(options.address),
                    posts,
                    [case if case.workers else replace(case, nodes=there) for case in cases],
                )
            else:
                say(f"{nodes} nodes are left out: the cluster at {options.address!r} has {there}")
        if min(every, default=1) > there:
            raise ConfigError(
                f"--nodes {min(every)}: the cluster at {options.address!r} has {there}; give at most that"
            )


def _told(one: Timing) -> str:
    case = one.case
    what = f"{case.part}{f' ({case.label})' if case.label else ''}, {case.nodes} node(s), {case.in_flight} in flight"
    return (
        f"{what}, {case.latency}: {one.evaluations} evaluations in {one.wall_s:.1f} s, "
        f"efficiency {one.efficiency:.3f} ({one.efficiency_phases:.3f} by phase), {one.engine_ms:.2f} ms CPU each"
    )


def rows(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """One row a case, in the order they came, over its repetitions."""
    cases = {repr(one.case): one.case for one in timings}
    return [_row([one for one in timings if one.case == case]) for case in cases.values()]


def _row(same: Sequence[Timing]) -> dict[str, Any]:
    case = same[0].case
    names = sorted({name for one in same for name in one.cpu_ms})
    return {
        "part": case.part,
        "label": case.label,
        "nodes": case.nodes,
        "in_flight": case.in_flight,
        "latency": case.latency,
        "client": case.client,
        "repeats": len(same),
        "calls": int(median(one.calls for one in same)),
        "evaluations": int(median(one.evaluations for one in same)),
        **{name: _spread([_figure(one, name) for one in same]) for name in FIGURES},
        "cpu_ms": {name: median(one.cpu_ms.get(name, 0.0) for one in same) for name in names},
        "busiest": {name: median(one.busiest.get(name, 0.0) for one in same) for name in names},
        "phases": [_phase(same, number) for number in range(len(PHASES))],
    }


def _phase(same: Sequence[Timing], number: int) -> dict[str, Any]:
    ones = [one.phases[number] for one in same]
    ideal, wall = median(one.ideal_s for one in ones), median(one.wall_s for one in ones)
    efficiency = median(one.ideal_s / one.wall_s if one.wall_s else 0.0 for one in ones)
    calls = int(median(one.calls for one in ones))
    return {"name": ones[0].name, "calls": calls, "ideal_s": ideal, "wall_s": wall, "efficiency": efficiency}


def _figure(one: Timing, name: str) -> float:
    """A figure by its name, where it is no field of the timing."""
    nodes = [mb for node, mb in one.node_mb.items() if not node.endswith((":driver", ":head"))]
    more: dict[str, Callable[[], float]] = {
        "evaluations_per_s": lambda: one.evaluations / one.wall_s,
        "cpu_ms_all": lambda: sum(one.cpu_ms.values()),
        "node_mb": lambda: median(nodes) if nodes else 0.0,
        "head_mb": lambda: max(nodes, default=0.0),
    }
    return more[name]() if name in more else float(getattr(one, name))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def machine() -> dict[str, Any]:
    """What this machine is, and what it had to do before the benchmark began."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2),
    }


def asked(options: Options) -> dict[str, Any]:
    """The options as JSON data."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()}
