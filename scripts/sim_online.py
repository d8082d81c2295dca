"""Healthy, degraded and drifting traffic through the rules of the online half, and through the naive ones beside them.

    python scripts/sim_online.py                  a table; some minutes
    python scripts/sim_online.py --short          fewer days and candidates; under a minute
    ... --json                                    the last line is one JSON object

Traffic is invented (independent requests, Poisson arrivals); the rules are those that serve. The same seed gives the
same figures. False: of what is healthy. Targets: false promotion at most 5 %, false trips of the breaker at most 2 % a
day, +0.05 lift in 250 pairs, 5 % -> 20 % failures in 60 requests (medians; never counts as infinite).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import sim_bandit
import sim_breaker
import sim_drift
import sim_promotion

C = TypeVar("C")
R = TypeVar("R")
RATES = (10.0, 50.0, 200.0, 1000.0)
"""Requests of a candidate an hour."""
BASES = (0.01, 0.05)


@dataclass(frozen=True)
class Sizes:
    """How much of each is simulated."""

    days: int = 200
    """Of each healthy rate; a quarter of it at 1,000 requests an hour."""
    changes: int = 200
    candidates: int = 500
    streams: int = 200
    bandits: int = 24


FULL = Sizes()
SHORT = Sizes(days=6, changes=12, candidates=40, streams=6, bandits=1)
Row = tuple[str, str, str]
"""What, ours, naive."""


class Simulation:
    """Cases times repetitions, spread over processes; a repetition's stream of chance is that of its place."""

    def __init__(self, seed: int, sizes: Sizes, processes: int) -> None:
        self.seed = seed
        self.sizes = sizes
        self.processes = processes
        self._cases = 0

    def repeat(self, trial: Callable[[np.random.Generator, C], R], case: C, count: int) -> list[R]:
        """So many trials of a case, in order."""
        self._cases += 1
        jobs = [(trial, case, (self.seed, self._cases, number)) for number in range(count)]
        if self.processes == 1:
            return [_one(job) for job in jobs]
        with multiprocessing.get_context("fork").Pool(self.processes) as pool:
            return pool.map(_one, jobs, chunksize=1)


def _one(job: tuple[Callable[[np.random.Generator, C], R], C, tuple[int, ...]]) -> R:
    trial, case, seed = job
    return trial(np.random.default_rng(seed), case)


def simulate(simulation: Simulation) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the table and the figures of the line of JSON."""
    rows: list[Row] = []
    figures: dict[str, Any] = {"seed": simulation.seed}
    for part in (promotion, breaker, drift, bandit):
        more, said = part(simulation)
        rows += more
        figures |= said
    return rows, figures


def promotion(simulation: Simulation) -> tuple[list[Row], dict[str, Any]]:
    """Equal, better and harmful candidates."""
    count = simulation.sizes.candidates
    Case = sim_promotion.Case
    equal = simulation.repeat(sim_promotion.trial, Case(0.0), count)
    better = simulation.repeat(sim_promotion.trial, Case(0.05), count)
    rows: list[Row] = [
        (
            "promoted though equal, 1,500 pairs",
            f"{_share([one.ours for one in equal]):.1%} (E alone {_share([one.wealth for one in equal]):.1%})",
            f"z {_share([one.peeking for one in equal]):.0%}, P(best) {_share([one.probable for one in equal]):.0%}",
        ),
        (
            "pairs to promote +0.05, median (by 250)",
            f"{_told([one.ours for one in better])}; E alone {_told([one.wealth for one in better])}",
            f"z {_told([one.peeking for one in better])}",
        ),
        ("rejected though +0.05 and no harm", f"{np.mean([bool(one.rejected) for one in better]):.1%}", "-"),
    ]
    worse = {
        "+0.05, fails 5 points more": Case(0.05, failures=0.05),
        "+0.05, p95 latency +50 %": Case(0.05, latency=1.5),
        "quality -0.05": Case(-0.05),
    }
    for name, case in worse.items():
        found = simulation.repeat(sim_promotion.trial, case, max(1, count // 4))
        rejected = float(np.mean([bool(one.rejected) for one in found]))
        told = f"{_share([one.ours for one in found]):.1%} promoted, {rejected:.0%} rejected"
        rows.append((name, told, f"z {_share([one.peeking for one in found]):.0%}"))
    return rows, {
        "false_promotion": _share([one.ours for one in equal]),
        "false_promotion_wealth": _share([one.wealth for one in equal]),
        "false_promotion_naive": _share([one.probable for one in equal]),
        "false_promotion_peeking": _share([one.peeking for one in equal]),
        "pairs_to_promote_005": _median([one.wealth for one in better]),
        "pairs_to_promote_005_guarded": _median([one.ours for one in better]),
    }


def breaker(simulation: Simulation) -> tuple[list[Row], dict[str, Any]]:
    """Healthy days, and candidates and providers that get worse."""
    Case = sim_breaker.Case
    rows: list[Row] = []
    healthy: list[sim_breaker.Day] = []
    worst = 0.0
    for rate in RATES:
        for base in BASES:
            count = simulation.sizes.days if rate < RATES[-1] else max(1, simulation.sizes.days // 4)
            days = simulation.repeat(sim_breaker.day, Case(rate, base, base), count)
            healthy += days
            worst = max(worst, _share([one.ours for one in days]))
            rows.append((f"healthy day tripped, {rate:g}/h at {base:.0%}", *_beside(days)))
    rows.append((f"healthy day tripped, all {len(healthy)}", *_beside(healthy)))
    caught: list[int | None] = []
    for rate in RATES[:3]:
        days = simulation.repeat(sim_breaker.day, Case(rate, 0.05, 0.20), simulation.sizes.changes)
        caught += [one.ours for one in days]
        rows.append(_detected(f"5 -> 20 %, {rate:g}/h: requests, hours, found", days))
    for name, case in (
        ("5 -> 20 % after a healthy hour, 200/h", Case(200, 0.05, 0.20, before=1.0)),
        ("5 -> 50 %, 50/h", Case(50, 0.05, 0.50)),
        ("1 -> 10 %, 50/h", Case(50, 0.01, 0.10)),
        ("1 -> 10 %, 10/h", Case(10, 0.01, 0.10)),
    ):
        rows.append(_detected(name, simulation.repeat(sim_breaker.day, case, simulation.sizes.changes // 2)))
    for bad in (0.12, 0.20, 1.0):
        case = Case(50, 0.05, bad, before=1.0, both=True)
        days = simulation.repeat(sim_breaker.day, case, max(1, simulation.sizes.changes // 8))
        rows.append((f"provider 5 -> {bad:.0%} for a day: rolled back", *_beside(days)))
    return rows, {
        "false_trips_per_day": _share([one.ours for one in healthy]),
        "false_trips_per_day_worst": worst,
        "false_trips_per_day_naive": _share([one.naive for one in healthy]),
        "requests_to_trip_5_to_20": _median(caught),
    }


def drift(simulation: Simulation) -> tuple[list[Row], dict[str, Any]]:
    """Healthy streams, and those that get worse."""
    rows: list[Row] = []
    false: list[bool] = []
    for before, after in ((0.95, 0.80), (0.90, 0.60), (0.90, 0.75), (0.85, 0.60), (0.82, 0.60)):
        case = sim_drift.Case(before, after)
        found = simulation.repeat(sim_drift.trial, case, simulation.sizes.streams)
        false += [one.false for one in found]
        alarmed = float(np.mean([one.false for one in found]))
        naive = float(np.mean([one.naive for one in found]))
        rows.append((f"stream at {before:.0%}: false alarm in 1,000", f"{alarmed:.1%}", f"{naive:.0%}"))
        rows.append((f"  then {after:.0%}: answers until alarm", _median_told([one.found for one in found]), "-"))
    return rows, {"false_drift_per_1000": float(np.mean(false))}


def bandit(simulation: Simulation) -> tuple[list[Row], dict[str, Any]]:
    """Regret over 4,800 episodes, rewards an hour late."""
    rows: list[Row] = []
    figures: dict[str, dict[str, float]] = {}
    for name, case in (
        ("better", sim_bandit.Case(0.70, 0.76, 0.76)),
        ("worse", sim_bandit.Case(0.70, 0.64, 0.64)),
        ("drifting", sim_bandit.Case(0.70, 0.76, 0.60)),
    ):
        found = simulation.repeat(sim_bandit.regret, case, simulation.sizes.bandits)
        mean = {key: round(float(np.mean([getattr(one, key) for one in found])), 3) for key in vars(found[0])}
        figures[name] = mean
        ours = f"{mean['ours']:.0f} (no ramp: {mean['free']:.0f}); at the end {mean['wrong']:.0%} on the worse"
        naive = f"50/50 {mean['half']:.0f}, stationary TS {mean['thompson']:.0f}, {mean['wrong_thompson']:.0%}"
        rows.append((f"regret, challenger {name}", ours, naive))
    return rows, {"regret": figures}


def _share(found: Sequence[int | None]) -> float:
    return sum(one is not None for one in found) / len(found)


def _median(found: Sequence[int | None]) -> float | None:
    """None: most never did."""
    middle = float(np.median([np.inf if one is None else one for one in found]))
    return middle if np.isfinite(middle) else None


def _median_told(found: Sequence[int | None]) -> str:
    middle = _median(found)
    return f"{'never' if middle is None else f'{middle:.0f}'}, {_share(found):.0%} found"


def _told(found: Sequence[int | None]) -> str:
    early = sum(one is not None and one <= 250 for one in found) / len(found)
    middle = _median(found)
    return f"{'never' if middle is None else f'{middle:.0f}'} ({early:.0%})"


def _beside(days: Sequence[sim_breaker.Day]) -> tuple[str, str]:
    naive, waiting = (_share([getattr(one, name) for one in days]) for name in ("naive", "waiting"))
    return f"{_share([one.ours for one in days]):.1%}", f"{naive:.0%}, of 20 at least {waiting:.0%}"


def _detected(name: str, days: Sequence[sim_breaker.Day]) -> Row:
    hours = float(np.median([np.inf if one.hours is None else one.hours for one in days]))
    middle = _median([one.ours for one in days])
    ours = f"{'never' if middle is None else f'{middle:.0f}'}, {hours:.2f} h, {_share([one.ours for one in days]):.0%}"
    return name, ours, _median_told([one.waiting for one in days])


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [("", "ours", "naive"), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    return "\n".join(f"{what:<{widths[0]}}  {ours:<{widths[1]}}  {naive}" for what, ours, naive in lines)


def main() -> int:
    """The command."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--short", action="store_true", help="under a minute")
    asked.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    given = asked.parse_args()
    rows, figures = simulate(Simulation(given.seed, SHORT if given.short else FULL, given.processes))
    print(table(rows))
    if given.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
