"""Processes and nodes that die under a run: it comes to the undisturbed front, and pays at most what was in flight.

In flight is what the endpoint was asked and did not answer, and what it did answer that was not on disk yet.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import psutil
import pytest
from small import LABELS, small_config, write_config

from evocluster import build
from evocluster.cluster.loopback import Latency, running, stats
from evocluster.cluster.session import TOKEN, see_environment
from evocluster.store.cache import DiskCache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

IN_FLIGHT = 12
GATHERING_S = 0.1
"""Longer than an answer is on its way from the endpoint to the disk (llm/cached.py: 0.02 s, and its writing)."""
RUN = """
import sys
from pathlib import Path
from evocluster import build
if sys.argv[3] == "resume":
    build.resume(Path(sys.argv[2]), sets=sys.argv[4:])
else:
    build.run(build.plan(sys.argv[1], sys.argv[4:]), Path(sys.argv[2]))
"""


class Fault(NamedTuple):
    """When it was done, and when nobody that it ended could ask any more; monotonic clock."""

    struck_s: float
    over_s: float
    pid: int = 0


@dataclass
class Sitting:
    """A run in a process of its own."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait_for(self, size: int) -> None:
        """Until so many bytes of trials are kept."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            if sum(path.stat().st_size for path in self.folder.glob("trials/*")) >= size:
                return
            time.sleep(0.05)
        raise AssertionError(f"the run ended with {self.process.poll()} before it kept {size} bytes")

    def kill(self, kind: str) -> Fault:
        """SIGKILL one actor process of this class as soon as there is one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            callers = self.actors("Puller")
            for process in self.actors(kind):
                struck_s = time.monotonic()
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                # Ray ends with an actor those that it had started.
                gone = {"Population": callers, "Puller": [process]}.get(kind, [])
                _, left = psutil.wait_procs(gone, timeout=60)
                assert not left, "they go on with calls that nobody waits for"
                return Fault(struck_s, time.monotonic(), process.pid)
            time.sleep(0.05)
        raise AssertionError(f"no process of {kind} came up; the run ended with {self.process.poll()}")

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of this class."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if f"ray::{kind}" in " ".join(process.cmdline()[:1]):
                    found.append(process)
        return found


def model(url: str) -> dict[str, Any]:
    """The endpoint as a configured model."""
    return {
        "kind": "direct",
        "base_url": f"{url}/v1",
        "model": "loopback",
        "completion": True,
        "choices": "grammar",
        "price": {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1},
    }


def front(folder: Path) -> list[Any]:
    """The front's genomes with what does not depend on how long calls took."""
    members = json.loads((folder / "front.json").read_text())["members"]
    kept = ("quality", "cost_usd")
    return [
        (one["genome"], {(split, name): one[split][name] for split in ("train", "validation", "test") for name in kept})
        for one in members
    ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An endpoint whose answers depend on nothing but the question."""
    with running(Latency.parse("lognormal:0.2:0.6"), seed=3, answers=LABELS) as found:
        yield found


def world(url: str) -> dict[str, Any]:
    """The same search for all tests; latency, which no two runs have alike, is no objective."""
    return {"models": {"fake": model(url)}, "objectives": ["quality", "cost_usd"], "budget": {"generations": 4}}


@pytest.fixture(scope="module")
def calm(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    engine = {"runner": "local", "in_flight": IN_FLIGHT}
    build.run(build.plan(small_config(folder, **world(url), engine=engine, cache={"path": None})), folder / "run")
    return folder / "run"


class Ledger:
    """What the endpoint was asked since this was made."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = int(stats(url)["arrived"])

    def asked(self) -> int:
        """Requests, answered or not."""
        return int(stats(self._url)["arrived"] - self._before)

    def answered(self) -> list[float]:
        """When each request was answered that was."""
        return [moment for moment in stats(self._url)["ended_s"][self._before :] if moment]


@contextmanager
def sitting(folder: Path, url: str, *sets: str, resume: bool = False) -> Iterator[Sitting]:
    """The run, begun or gone on with."""
    engine = {"runner": "ray", "in_flight": IN_FLIGHT, "workers": 2}
    path = write_config(folder, **world(url), engine=engine, cache={"path": str(folder / "cache")})
    verb = "resume" if resume else "run"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(path), str(folder / "run"), verb, *sets])
    try:
        yield Sitting(process, folder / "run")
    finally:
        process.kill()
        process.wait()


def judge(folder: Path, calm: Path, ledger: Ledger, lost: int, faults: Sequence[Fault]) -> None:
    """The same front, nothing double; at most `lost` calls unanswered, and only those not kept that a fault met."""
    rows = pandas.read_parquet(folder / "run" / "trials")
    assert not rows.duplicated(["proposal", "kind", "example_id", "twin"]).any()
    assert rows[rows.kind == "evaluation"].error.isna().all()
    assert front(folder / "run") == front(calm)
    cache = DiskCache(folder / "cache")
    kept = cache.stats()["rows"]
    cache.close()
    answered = ledger.answered()
    assert ledger.asked() - len(answered) <= lost, "more was asked in vain than was in flight"
    gathered = sum(
        any(fault.struck_s - GATHERING_S <= moment <= fault.over_s for fault in faults) for moment in answered
    )
    assert kept <= len(answered) <= kept + (gathered if lost else 0), "a finished call was paid again"


@pytest.mark.parametrize(
    ("kind", "kills", "lost"),
    [("Puller", 5, 5 * IN_FLIGHT), ("CacheKeeper", 2, 0), ("Population", 2, 2 * IN_FLIGHT)],
)
def test_processes_are_killed(tmp_path: Path, url: str, calm: Path, kind: str, kills: int, lost: int) -> None:
    ledger = Ledger(url)
    killed: list[Fault] = []
    with sitting(tmp_path, url) as run:
        for size in range(6000, 6000 + 5000 * kills, 5000):
            run.wait_for(size)
            killed.append(run.kill(kind))
        assert run.process.wait(timeout=400) == 0
    assert len({fault.pid for fault in killed}) == kills
    judge(tmp_path, calm, ledger, lost, killed)


def test_a_run_goes_on_in_another_cluster(tmp_path: Path, url: str, calm: Path) -> None:
    """Everything is killed, session and all; another session, another address, the same folder."""
    ledger = Ledger(url)
    with sitting(tmp_path, url) as run:
        run.wait_for(9000)
        parts = psutil.Process(run.process.pid).children(recursive=True)
        struck_s = time.monotonic()
        run.process.kill()
        for process in parts:
            if process.is_running():
                process.kill()
        psutil.wait_procs(parts, timeout=60)
        fault = Fault(struck_s, time.monotonic())
    with grown() as cluster, sitting(tmp_path, url, f"engine.address={cluster.address}", resume=True) as run:
        assert run.process.wait(timeout=400) == 0
    judge(tmp_path, calm, ledger, IN_FLIGHT, [fault])


@contextmanager
def grown() -> Iterator[Any]:
    """A cluster of one node without work for it, to which others can be added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        from ray.cluster_utils import Cluster

        see_environment()
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}, shutdown_at_exit=False
        )
        try:
            yield cluster
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]


def drain(cluster: Any, node: Any) -> None:
    """Tell the cluster that this node is to go in half a minute, as an autoscaler does before it takes a spot node."""
    import ray._raylet as raylet
    from ray.core.generated import autoscaler_pb2 as autoscaler

    reason = autoscaler.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    until_ms = int((time.time() + 30) * 1000)
    gcs: Any = raylet.GcsClient(address=cluster.address)  # type: ignore[attr-defined]
    accepted, why = gcs.drain_node(node.node_id, reason, "test", until_ms)
    assert accepted, why


def remove(cluster: Any, node: Any) -> None:
    """Its processes get SIGTERM."""
    cluster.remove_node(node, allow_graceful=True)


def cut_off(cluster: Any, node: Any) -> None:
    """Its processes get SIGKILL: nobody says goodbye."""
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize(("go", "lost"), [(drain, 0), (remove, IN_FLIGHT), (cut_off, IN_FLIGHT)])
def test_nodes_come_and_go(tmp_path: Path, url: str, calm: Path, go: Callable[[Any, Any], None], lost: int) -> None:
    ledger = Ledger(url)
    with grown() as cluster:
        sets = (f"engine.address={cluster.address}", "engine.workers=null")
        with sitting(tmp_path, url, *sets) as run:
            run.wait_for(5000)
            node = cluster.add_node(num_cpus=1)
            names = owners(cluster, lambda found: len(found) == 2)
            assert node.node_id in names.values(), "the node that joined got no worker"
            run.wait_for(12000)
            struck_s = time.monotonic()
            go(cluster, node)
            left = owners(cluster, lambda found: node.node_id not in found.values())
            assert node.node_id not in left.values()
            fault = Fault(struck_s, time.monotonic())
            assert left, "nobody is left to work"
            assert run.process.wait(timeout=400) == 0
    judge(tmp_path, calm, ledger, lost, [fault])


def owners(cluster: Any, until: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """The pullers that are alive, actor id -> node id, once they are as wished, or after half a minute."""
    import ray._raylet as raylet
    from ray._private.state import GlobalState

    state = GlobalState()  # type: ignore[no-untyped-call]
    options: Any = raylet.GcsClientOptions  # type: ignore[attr-defined]
    state._initialize_global_state(options.create(cluster.address, None, True, True))
    deadline = time.monotonic() + 30
    found: dict[str, str] = {}
    while time.monotonic() < deadline:
        table = state.actor_table(None).values()
        found = {
            one["ActorID"]: one["Address"]["NodeID"]
            for one in table
            if one["State"] == "ALIVE" and one["ActorClassName"] == "Puller"
        }
        if until(found):
            break
        time.sleep(0.2)
    return found
