"""How the engine scales: the benchmark's wiring, beside `build`.

The searches are cluster.bench's; what an evaluation costs as history grows is measured here, because only the wiring
has an optimizer and a folder at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evocluster import build
from evocluster import config as configs
from evocluster.engine.ageing import aged
from evocluster.engine.folder import Folder

Say = Callable[[str], None]
FORMAT = "evocluster-scaling-1"
WARM = 1000
"""Evaluations after which every part of the search has been at work."""


def measured(short: bool, given: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """How the engine scales, as JSON data for report.scaling: machine, options, history, searches.

    `given`: fields of cluster.cases.Options in place of the default's. Raises: errors.ConfigError for a wrong one.
    """
    from evocluster.cluster import bench
    from evocluster.cluster.cases import SHORT, Options, checked

    options = checked(replace(SHORT if short else Options(), **given))
    machine = bench.machine()
    history = grown(options.history, say) if "history" in options.parts else []
    return {
        "format": FORMAT,
        "evocluster": version("evocluster"),
        "machine": machine,
        "options": bench.asked(options),
        "history": history,
        "searches": bench.timed(options, say),
    }


def grown(sizes: Sequence[int], say: Say) -> list[dict[str, Any]]:
    """What an evaluation costs the optimizer and the run folder at each size of the history."""
    from evocluster.cluster.meter import resident_mb
    from evocluster.cluster.world import World, write

    rows = []
    with TemporaryDirectory(prefix="evobench-") as place:
        world = World({"kind": "scripted"}, calls=2 * max(sizes) + 10_000, in_flight=200)
        plan = build.plan(write(Path(place) / "world", world))
        warm = Folder.create(Path(place) / "warm", configs.dump(plan.config))
        for _ in aged(plan.optimizer(), plan.space.sample, warm, (WARM,), resident_mb):
            pass  # libraries load when they are first needed, which no history is to blame for
        warm.close()
        folder = Folder.create(Path(place) / "run", configs.dump(plan.config))
        try:
            for age in aged(plan.optimizer(), plan.space.sample, folder, sizes, resident_mb):
                rows.append(asdict(age))
                say(f"history, {age.evaluations} evaluations: {age.ask_ms + age.append_ms:.3f} ms CPU each")
        finally:
            folder.close()
    return rows
