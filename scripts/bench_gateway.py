"""What the gateway adds to a request, how fast a roll-back is everywhere, and what faults do to it.

    python scripts/bench_gateway.py                       latency at 50, 200, 500 requests/s, then 50 roll-backs
    python scripts/bench_gateway.py --short               the same within a minute or two, at 200 requests/s
    python scripts/bench_gateway.py --faults [--short]    every fault for real; leaves with 1 when one fails
    python scripts/bench_gateway.py --json                the last line is one JSON object

Asked are: a loopback model endpoint that takes 50 ms (`direct`), `evocluster serve` before it with recording and with
--no-bodies, and the LiteLLM proxy before it, each in a process of its own, one after the other in every round. The
proxy lives in an environment of its own (--litellm-env; made there by pip where there is none); a short run without
that option leaves it out. See gateway_load.py for how latency is counted, gateway_table.py for what is told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gateway_back
import gateway_faults
import gateway_rival
import psutil
from gateway_load import Aim, fire
from gateway_site import cpu_s, made, served
from gateway_table import DIRECT, FOREIGN, RIVAL, Shot, cells, shown, summary

from evocluster.cluster.loopback import Latency, running, stats

SERVING, BARE = "serve", "serve --no-bodies"
LATENCY = "fixed:0.05"
RATES = (50.0, 200.0, 500.0)
WARM_S = 1.0


@dataclass(frozen=True)
class Target:
    """Somebody who is asked."""

    name: str
    url: str
    model: str
    pid: int | None = None
    """Whose CPU is counted."""


def used_s() -> tuple[float, float]:
    """(CPU seconds used, CPU seconds there were) of the machine since it was started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return sum(times[:8]) - idle, sum(times[:8])


def quiet(most_s: float) -> None:
    """Wait for a second in which others leave the machine alone, at most so long."""
    last = time.monotonic() + most_s
    while time.monotonic() < last and psutil.cpu_percent(1.0) / 100 > FOREIGN:
        pass


def measured(target: Target, rate: float, seconds: float, round: int, endpoint: str) -> Shot:
    """One target, asked for so long."""
    before, serving, beneath = used_s(), cpu_s(target.pid or 0), stats(endpoint)["cpu_s"]
    volley = fire(Aim(target.url, target.model, rate, seconds, seed=round, warm_s=WARM_S))
    mine = cpu_s(target.pid or 0) - serving
    ours = mine + volley.cpu_s + (stats(endpoint)["cpu_s"] - beneath)
    after = used_s()
    there = max(after[1] - before[1], 1e-9)
    cores = psutil.cpu_count() or 1
    count = volley.sent * (1 + WARM_S / seconds)
    return Shot(
        target.name,
        rate,
        round,
        volley.at(0.5),
        volley.at(0.99),
        volley.sent,
        volley.failed,
        volley.achieved,
        mine * 1000 / max(count, 1),
        mine / (there / cores),
        (after[0] - before[0]) / there,
        # What starts and ends the generator is ours too, and is not told: about half a second.
        max(0.0, (after[0] - before[0] - ours - 0.5) / there),
        volley.late_ms,
        os.getloadavg()[0],
    )


def latency(given: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> list[Shot]:
    """Every target at every rate in every round."""
    rates = given.rates or ((200.0,) if given.short else RATES)
    rounds = given.rounds or (3 if given.short else 5)
    seconds = given.seconds or (4.0 if given.short else 10.0)
    shots: list[Shot] = []
    with ExitStack() as held:
        endpoint = held.enter_context(running(Latency.parse(LATENCY)))
        place = made(folder / "site", endpoint)
        (one,) = held.enter_context(served(place, "bench"))
        (other,) = held.enter_context(served(place, "bench", "--no-bodies"))
        targets = [
            Target(DIRECT, endpoint, "loopback"),
            Target(SERVING, one.url, "bench", one.pid),
            Target(BARE, other.url, "bench", other.pid),
        ]
        last = rival(given, held, folder, endpoint, say)
        for rate in rates:
            for round in range(rounds):
                # Each is the first once; but the proxy, which may work on at what nobody waits for any more, the last.
                turn = round % len(targets)
                for target in [*targets[turn:], *targets[:turn], *last]:
                    quiet(given.wait)
                    shots.append(measured(target, rate, seconds, round, endpoint))
                    if given.verbose:
                        say(f"  {shots[-1]}")
    return shots


def rival(
    given: argparse.Namespace, held: ExitStack, folder: Path, url: str, say: Callable[[str], None]
) -> Sequence[Target]:
    """The proxy, where it can be had."""
    if given.litellm_env is None and given.short:
        say("litellm proxy: not run (a short run needs --litellm-env PATH)")
        return ()
    try:
        where = gateway_rival.environment(given.litellm_env or folder / "litellm-env")
        root, pid = held.enter_context(gateway_rival.proxied(where, folder / "litellm", url))
    except gateway_rival.NotRun as why:
        say(f"litellm proxy: not run ({why})")
        return ()
    return (Target(RIVAL, root, "loopback", pid),)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a minute or two")
    parser.add_argument("--faults", action="store_true", help="the faults, and nothing else")
    parser.add_argument("--rows", help=f"some of the faults: {','.join(gateway_faults.FAULTS)}")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--litellm-env", type=Path, help="environment of the LiteLLM proxy; made where there is none")
    parser.add_argument("--rates", type=_numbers, help="requests a second, e.g. 50,200")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument(
        "--wait", type=float, default=10.0, help="seconds to wait for a quiet machine before a measurement"
    )
    parser.add_argument("--no-latency", action="store_true", help="leave the latency out")
    parser.add_argument("--no-rollback", action="store_true", help="leave the roll-backs out")
    parser.add_argument("--verbose", action="store_true", help="tell every measurement")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> int:
    """Its exit code."""
    parser = arguments()
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, flush=True)

    say(f"load average at the start: {', '.join(f'{one:.2f}' for one in os.getloadavg())}; {psutil.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="evocluster-gateway-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if given.faults:
            names = list(dict.fromkeys(given.rows.split(","))) if given.rows else list(gateway_faults.FAULTS)
            if unknown := [each for each in names if each not in gateway_faults.FAULTS]:
                parser.error(f"--rows {unknown[0]!r}: there are {', '.join(gateway_faults.FAULTS)}")
            return gateway_faults.carried_out(names, folder, given.short, given.json, say)
        found = []
        if not given.no_latency:
            found = cells(latency(given, folder, say))
            say(shown(found))
        back = None
        if not given.no_rollback:
            back = gateway_back.measured(folder / "back", 10 if given.short else 50)
            say(gateway_back.shown(back))
        if given.json:
            say(json.dumps(summary(found, SERVING, back.p99_s if back else None)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
