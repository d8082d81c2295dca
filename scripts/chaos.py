"""Every fault of the fault table, injected for real: processes, signals, sockets, disks, Ray.

    python scripts/chaos.py                    the long counts: hours
    python scripts/chaos.py --short            the counts of every push: minutes
    python scripts/chaos.py --rows driver,disk some rows (names: see --help)
    python scripts/chaos.py --json             the last line is one JSON object

A row passes when nothing was lost, counted double or paid again, and the run came to the same front, to the last
digit, as the undisturbed run of the same seed (chaos_judge.py says how that is told). Every random choice comes
from --seed, which is printed. Leaves with 1 when a row failed; a row that cannot be run here is said to be not run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chaos_budget
import chaos_calls
import chaos_local
import chaos_nodes
import chaos_ray
import chaos_soak
from chaos_judge import Row, complaint, total
from chaos_local import Terms
from chaos_world import LIVE

ONE: dict[str, Callable[[Terms], Row]] = {
    "workers": chaos_ray.workers_killed,
    "nodes": chaos_nodes.nodes_lost,
    "actors": chaos_ray.actors_killed,
    "cluster": chaos_ray.cluster_lost,
    "soak": chaos_soak.soak,
}
"""Short name -> what injects the faults of the row; one after the other, and beside those of OTHER."""
OTHER: dict[str, Callable[[Terms], Row]] = {
    "driver": chaos_local.driver_killed,
    "twins": chaos_local.two_drivers,
    "disk": chaos_local.disk_failed,
    "bytes": chaos_local.bytes_damaged,
    "storm": chaos_calls.storm,
    "answers": chaos_calls.broken_answers,
    "budget": chaos_budget.budget,
    "ray-driver": chaos_ray.ray_driver_killed,
}
"""Nearly all without a cluster; they wait more than they work."""
ROWS = {**ONE, **OTHER}
WIDTHS = {"fault": 52, "count": 6, "lost": 5, "double": 6, "re-paid": 7, "issued again": 12, "s": 6, "": 7}


def line(cells: Sequence[object]) -> str:
    """Cells under the heads of WIDTHS; the first to the left, the others to the right."""
    widths = list(WIDTHS.values())
    rest = (f"{cell!s:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return " ".join((f"{cells[0]!s:<{widths[0]}}", *rest))


def shown(row: Row) -> str:
    """One row of the table, and below it what was seen."""
    told, verdict = row.told(), row.verdict
    state = "not run" if row.not_run else "passed" if row.passed else "FAILED"
    counts = (told["lost"], told["double"], told["repaid"], verdict.reissued)
    seen = [f"    {name}: {value}" for name, value in told["seen"].items() if name != "wrong"]
    wrong = [f"    ! {text}" for text in told["seen"].get("wrong", ())]
    return "\n".join((line((row.name, row.faults, *counts, f"{row.seconds:.0f}", state)), *seen, *wrong))


def inject(name: str, terms: Terms) -> Row:
    """One row; whatever breaks the injector itself fails the row, with what it said."""
    started = time.monotonic()
    terms.folder.mkdir(parents=True)
    try:
        row = ROWS[name](terms)
    except Exception as failure:  # the other rows are still to be run
        traceback.print_exc()
        row = Row(name, verdict=complaint(f"the injector broke: {type(failure).__name__}: {failure}"[:500]))
    row.seconds = time.monotonic() - started
    return row


def carry_out(names: Sequence[str], folder: Path, seed: int, short: bool) -> list[Row]:
    """These rows, those of ONE beside those of OTHER; each is printed when it is done. In the order of the names."""
    rows: dict[str, Row] = {}

    def lane(mine: Sequence[str]) -> None:
        for name in mine:
            rows[name] = inject(name, Terms(folder / name, seed, short))
            print(shown(rows[name]), flush=True)

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(lane, [name for name in names if name in kind]) for kind in (ONE, OTHER)]
    for one in done:
        one.result()
    return [rows[name] for name in names]


def leave(number: int, _: object) -> None:
    """Told to end: no run of ours stays behind."""
    for sitting in LIVE:
        sitting.end()
    os._exit(128 + number)


def main() -> int:
    """The command line; its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the counts of every push")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--seed", type=int, help="of every random choice; default: drawn, and printed")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    names = list(dict.fromkeys(name for name in given.rows.split(",") if name))
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows {unknown[0]!r}: there are {', '.join(ROWS)}")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}\n{line(list(WIDTHS))}", flush=True)
    with tempfile.TemporaryDirectory(prefix="evocluster-chaos-", ignore_cleanup_errors=True) as folder:
        rows = carry_out(names, Path(folder), seed, given.short)
    if given.json:
        print(json.dumps(total(rows)))
    return int(any(not row.passed and not row.not_run for row in rows))


if __name__ == "__main__":
    sys.exit(main())
