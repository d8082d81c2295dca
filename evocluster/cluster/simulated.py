"""A Ray cluster of several nodes on this machine, for benchmarks: every node a raylet of its own with pretended CPUs.

Loopback only, with a token of its own, in a folder of its own: a cluster that Ray has on record here stays on record.
It is held by a process of its own (`python -m evocluster.cluster.simulated NODES CPUS`), because a process that has
talked to one cluster keeps its token for good; it ends when its standard input does, however its parent ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evocluster.cluster.session import OBJECT_STORE_BYTES

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""The last one keeps the loopback the loopback: else Ray looks for 127.0.0.1 under the address of the network."""
CPUS = 2
"""Pretended CPUs of a node: what two workers get by default."""


@dataclass(frozen=True)
class Site:
    """A cluster that is there."""

    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What a process needs to get in."""


@contextmanager
def simulated(nodes: int, cpus: int = CPUS) -> Iterator[Site]:
    """So many nodes while the block lasts. Raises: RuntimeError with what Ray said when they do not come up."""
    with tempfile.TemporaryDirectory(prefix="evobench-", ignore_cleanup_errors=True) as folder:
        environment = {**SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(24), "RAY_TMPDIR": folder}
        said = Path(folder) / "said.txt"
        command = [sys.executable, "-m", "evocluster.cluster.simulated", str(nodes), str(cpus)]
        with (
            said.open("w") as errors,
            subprocess.Popen(
                command,
                text=True,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process,
        ):
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError(f"{nodes} simulated nodes did not come up: {said.read_text()[-2000:]}")
            try:
                yield Site(address, environment)
            finally:
                process.communicate()


def main() -> None:
    """In the process of its own: start the nodes, say the address, hold them until standard input ends."""
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes, cpus = (int(word) for word in sys.argv[1:])
    cluster = Cluster()
    for _ in range(nodes):
        cluster.add_node(
            num_cpus=cpus,
            node_ip_address="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
