"""Thousands of seeds of the simulator: whole runs under faults, each held to every invariant.

    python scripts/soak.py --seeds 10000          a table; --json: one line of figures
    python scripts/soak.py --seed 17              one seed again, with its plan and its events

Every hundredth is a minute of 429 and nothing else. A seed that breaks an invariant is printed with what it broke, its
fault plan and its last events; it replays exactly.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from faults import KINDS, plan
from simulated import Outcome, quiet, simulate

STUCK_S = 120
"""Real seconds after which a seed is one that loops without letting time pass."""
SHOWN = 40
"""Events of a failing seed that are printed."""
CHUNK = 10
LIFE = 50
"""Chunks after which a process makes room for a new one: what was killed in it is never quite gone."""


@dataclass(frozen=True)
class Figures:
    """What a seed adds to the table."""

    seed: int
    violations: tuple[str, ...]
    injected: dict[str, int]
    seconds: float
    sittings: int
    calls: int
    reissued: int
    lossy: bool
    given_up: int
    failure: str
    """What is printed of it; empty where nothing is wrong."""


def digest(outcome: Outcome) -> str:
    """sha256 of a seed's events, 16 hex digits."""
    return hashlib.sha256("\n".join(outcome.trace).encode()).hexdigest()[:16]


def told(outcome: Outcome, events: int = SHOWN) -> str:
    """A seed as text: what is wrong, its plan, its last events, how to see it again."""
    seed = outcome.plan.seed
    lines = [f"seed={seed}", *(f"  {violation}" for violation in outcome.violations)]
    lines.append(f"  plan: {json.dumps(outcome.plan.told())}")
    lines += [f"    {event}" for event in outcome.trace[-events:]]
    return "\n".join([*lines, f"  again: python scripts/soak.py --seed {seed}"])


def figures(seed: int) -> Figures:
    """One seed, carried out. Raises: TimeoutError where it does not come back."""

    def stuck(*_: object) -> None:
        raise TimeoutError(f"seed={seed} did not come back within {STUCK_S} s of real time")

    signal.signal(signal.SIGALRM, stuck)
    signal.alarm(STUCK_S)
    try:
        outcome = simulate(plan(seed))
    finally:
        signal.alarm(0)
    return Figures(
        seed=seed,
        violations=tuple(outcome.violations),
        injected=outcome.injected,
        seconds=outcome.seconds,
        sittings=outcome.sittings,
        calls=outcome.calls,
        reissued=outcome.reissued,
        lossy=outcome.plan.lossy,
        given_up=0 if outcome.plan.poison else len(outcome.given_up),
        failure=told(outcome) if outcome.violations else "",
    )


def soak(first: int, count: int, processes: int) -> dict[str, Any]:
    """So many seeds; failing ones are printed as they come. Returns the figures of the table."""
    began = time.perf_counter()
    failed, injected, sums = [], Counter[str](), Counter[str]()
    seconds = 0.0
    _settle()
    for search in sorted({plan(seed).quiet for seed in range(first, first + count)}, key=str):
        quiet(search)
    # What was run without faults is inherited.
    with multiprocessing.get_context("fork").Pool(processes, initializer=_settle, maxtasksperchild=LIFE) as pool:
        for one in pool.imap_unordered(figures, range(first, first + count), chunksize=CHUNK):
            injected.update(one.injected)
            seconds += one.seconds
            sums.update(sittings=one.sittings, calls=one.calls, reissued=one.reissued)
            sums.update(lossy=int(one.lossy), violations=len(one.violations))
            sums.update(given_up=one.given_up, unequal=int(one.lossy or bool(one.given_up)))
            if one.failure:
                failed.append(one.seed)
                print(one.failure, flush=True)
    wall = time.perf_counter() - began
    return {
        "seeds": count,
        "failed": sorted(failed),
        "violations": sums["violations"],
        "injected": {kind: injected[kind] for kind in KINDS},
        "sittings": sums["sittings"],
        "calls": sums["calls"],
        "reissued": sums["reissued"],
        "lossy": sums["lossy"],
        "fronts_compared": count - sums["unequal"],
        "given_up": sums["given_up"],
        "virtual_hours": round(seconds / 3600, 2),
        "seeds_per_minute": round(count / wall * 60),
    }


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        ("seeds", found["seeds"]),
        ("  of them with the front of the fault-free run", found["fronts_compared"]),
        ("  of them with calls that fail for good", found["lossy"]),
        ("violations", found["violations"]),
        ("failed seeds", " ".join(map(str, found["failed"])) or "none"),
        *((f"injected: {kind}", count) for kind, count in found["injected"].items()),
        ("sittings (a run and its resumes)", found["sittings"]),
        ("calls begun", found["calls"]),
        ("calls paid again, all lost by crashes", found["reissued"]),
        ("trials given up though nothing was wrong with them", found["given_up"]),
        ("virtual hours", found["virtual_hours"]),
        ("seeds per minute", found["seeds_per_minute"]),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _settle() -> None:
    """What the faults make the product say is no news here, and what is loaded stays."""
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()


def main() -> int:
    """The command; 1 when an invariant was broken."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--seeds", type=int, default=1000, help="how many")
    asked.add_argument("--first", type=int, default=0, help="the first of them")
    asked.add_argument("--seed", type=int, help="only this one, with its events")
    asked.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    given = asked.parse_args()
    if given.seed is not None:
        _settle()
        outcome = simulate(plan(given.seed))
        print(told(outcome, len(outcome.trace)))
        print(f"  events: {digest(outcome)}, violations: {len(outcome.violations)}")
        return int(bool(outcome.violations))
    found = soak(given.first, given.seeds, given.processes)
    print(table(found))
    if given.json:
        print(json.dumps(found))
    return int(bool(found["violations"]))


if __name__ == "__main__":
    sys.exit(main())
