"""Nodes of a Ray cluster that die or are drained while a run uses them: the row `nodes_lost`.

The cluster is ray.cluster_utils.Cluster on this machine, in a process of its own that removes a node a line of its
input; a SIGKILL is seen after about a second, because the head looks five times a second (the default: 12 s). The run
is a driver like any other, with `engine.address`.

    python scripts/chaos_nodes.py 4        # prints the address, then waits for 'kill' or 'drain' a line
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import IO, Any

import chaos_ray
from chaos_judge import Entry, Row, complaint
from chaos_local import Terms
from chaos_ray import LATENCY, WIDE, scene
from chaos_world import environment, staged

HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
"""How soon the head takes a silent node for dead."""
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
}
BACK = 0.9
"""Of the requests a second before the loss: the run has recovered."""
GIVEN_UP_S = 60.0


class Nodes:
    """The cluster seen from here: its address, and a node fewer on demand."""

    def __init__(self, asking: IO[str], telling: IO[str]) -> None:
        self._asking = asking
        self._telling = telling
        self.address = str(self._told()["address"])

    def remove(self, how: str) -> None:
        """'kill' or 'drain' one node, and wait until its processes are gone."""
        self._asking.write(f"{how}\n")
        self._asking.flush()
        self._told()

    def _told(self) -> dict[str, Any]:
        for line in self._telling:
            if line.startswith("{"):
                told: dict[str, Any] = json.loads(line)
                return told
        raise RuntimeError("the process that holds the cluster is gone: see its error above")


@contextmanager
def cluster(nodes: int) -> Iterator[Nodes]:
    """So many nodes besides the head while the block lasts."""
    command = [sys.executable, __file__, str(nodes)]
    env = {**environment(), **ENVIRONMENT}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Nodes(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def nodes_lost(terms: Terms) -> Row:
    """Nodes killed and drained under a run; how long until it asks as much as before."""
    row = Row("node killed or drained")
    recovered: list[float] = []
    count = 3 if terms.short else 50
    with staged(replace(WIDE, calls=2600), terms.folder, terms.seed, LATENCY) as stage:
        while row.faults < count and row.verdict.passed:
            most = min(3, count - row.faults)
            with cluster(most) as nodes:
                settings = {"in_flight": WIDE.in_flight, "runner": "ray", "address": nodes.address}
                stage.world = replace(stage.world, more={"engine": settings})
                with scene(stage, env=ENVIRONMENT) as here:
                    for how in ("kill", "drain", "kill")[:most]:
                        if here.moving(stage.random.uniform(3.0, 4.0)):
                            here.strike(lambda how=how: nodes.remove(how), chaos_ray.LINGERING_S)  # type: ignore[misc]
                            row.faults += 1
                            here.moving(5.0)
                    row.verdict += here.judged()
                    entries = stage.ledger(here.since)
                    recovered += [recovery_s(entries, fault.struck_s) for fault in here.faults]
    row.seen = {"recovery_s": [round(one, 1) for one in recovered]}
    if any(one >= GIVEN_UP_S for one in recovered):
        row.verdict += complaint(f"not back to {BACK:.0%} of the requests within {GIVEN_UP_S:g} s of a loss")
    return row


def recovery_s(entries: Sequence[Entry], struck_s: float) -> float:
    """Seconds from a loss until a whole second sees 90 % of the requests a second of before; at most GIVEN_UP_S."""
    came = [arrived_s - struck_s for _, arrived_s, _ in entries]
    before = median(sum(-n - 1 <= moment < -n for moment in came) for n in range(3))
    last = max(came, default=0.0)
    step = 0.0
    dip = False
    while step < GIVEN_UP_S and step + 1 <= last:
        enough = sum(step <= moment < step + 1 for moment in came) >= BACK * before
        if dip and enough:
            return step
        dip = dip or not enough
        step += 0.25
    return GIVEN_UP_S if dip else 0.0


def main() -> None:
    """Hold the cluster; a line 'kill' or 'drain' removes its youngest node."""
    from ray.cluster_utils import Cluster

    os.environ.update(ENVIRONMENT)
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20, "_system_config": HEALTH}
    held = Cluster(initialize_head=True, head_node_args=head)
    others = [held.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(int(sys.argv[1]))]
    print(json.dumps({"address": held.address}), flush=True)
    try:
        for line in sys.stdin:
            held.remove_node(others.pop(), allow_graceful=line.strip() == "drain")
            print(json.dumps({"left": len(others), "at_s": time.monotonic()}), flush=True)
    finally:
        held.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
