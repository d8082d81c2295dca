"""The searches of the engine benchmarks, each carried out in a process of its own that a meter watches from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evocluster.cluster.meter import Meter, below


@dataclass(frozen=True)
class Sitting:
    """A search carried out in its own process. Moments are on the monotonic clock."""

    started_s: float
    ended_s: float
    meter: Meter
    growth: tuple[tuple[int, float], ...]
    """(evaluations so far, resident MiB of the process), twice a second."""
    run: dict[str, Any]
    """run.json"""


def carry_out(config: Path) -> Sitting:
    """Run a config to its end. Raises: RuntimeError with what the run said when it failed."""
    out = config.parent / "run"
    started = time.monotonic()
    command = [sys.executable, __file__, str(config), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, Meter(below(process.pid)) as meter:
        said, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run of {config} ended with {process.returncode}: {complaint[-3000:]}")
    growth = tuple((int(n), float(mb)) for n, mb in (line.split() for line in said.splitlines()))
    return Sitting(started, time.monotonic(), meter, growth, json.loads((out / "run.json").read_text()))


def main() -> None:
    """In the process of its own: run the config, say evaluations and memory on every look."""
    from evocluster import build

    process = psutil.Process()

    def show(progress: dict[str, Any]) -> None:
        if "evaluations" in progress:
            print(progress["evaluations"], process.memory_info().rss / 2**20, flush=True)

    build.run(build.plan(Path(sys.argv[1])), Path(sys.argv[2]), show=show)


if __name__ == "__main__":
    main()
