"""What a benchmark has on every machine: the endpoint that the machine's workers call, and a meter of its processes.

The endpoint is on the loopback of each machine and on the same port everywhere, so one config serves all of them and
nothing is open to the network. Moments are said on the wall clock, which machines share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from evocluster.cluster.loopback import Latency, running, stats
from evocluster.cluster.meter import Meter, of_session
from evocluster.cluster.session import session

PORTS = 5
"""Ports tried before it is given up that one is free on all machines."""

OWN = ("ray::Sentry", "loopback.py")
"""Processes of the benchmark itself, where they are among those of the cluster."""


class Used(NamedTuple):
    """What the processes of a machine used."""

    cpu: list[tuple[str, float]]
    """(name, CPU seconds) of every process."""
    node_mb: dict[str, float]
    """Peak of private memory, MiB, by node."""
    machine: float = 0.0
    """Share of the machine's cores that were busy, whoever used them."""


class Post(Protocol):
    """A sentry, here or elsewhere. Call order: serve, watch, seen, used; again from the start."""

    def serve(self, latency: str, seed: int, answers: tuple[str, ...], port: int) -> int:
        """Start the endpoint; its port. Raises: RuntimeError where the port is taken."""
        ...

    def watch(self, driver: int | None) -> None:
        """Start the meter."""
        ...

    def seen(self) -> dict[str, Any]:
        """What the endpoint saw: loopback.Seen, `began_s` and `ended_s` on the wall clock."""
        ...

    def used(self, start_s: float, end_s: float) -> Used:
        """What was used between two moments of the wall clock."""
        ...

    def leave(self) -> None:
        """End endpoint and meter."""
        ...


class Sentry:
    """See Post: this machine's."""

    def __init__(self, gcs: str) -> None:
        self._gcs = gcs
        self._url = ""
        self._held = ExitStack()
        self._meter: Meter | None = None

    def serve(self, latency: str, seed: int, answers: tuple[str, ...], port: int) -> int:
        """See Post."""
        self._url = self._held.enter_context(running(Latency.parse(latency), seed, tuple(answers), port))
        return int(self._url.rsplit(":", 1)[1])

    def watch(self, driver: int | None) -> None:
        """See Post."""
        self._meter = self._held.enter_context(Meter(of_session(self._gcs, driver)))

    def seen(self) -> dict[str, Any]:
        """See Post."""
        found, offset = stats(self._url), time.time() - time.monotonic()
        for name in ("began_s", "ended_s"):
            found[name] = [moment and moment + offset for moment in found[name]]
        return found

    def used(self, start_s: float, end_s: float) -> Used:
        """See Post."""
        offset = time.time() - time.monotonic()
        assert self._meter is not None
        moments = start_s - offset, end_s - offset
        cpu = [one for one in self._meter.processes(*moments) if one[0] not in OWN]
        return Used(cpu, dict(self._meter.node_mb), self._meter.machine(*moments))

    def leave(self) -> None:
        """See Post."""
        held, self._held = self._held, ExitStack()
        held.close()


class RemoteSentry:
    """See Post: an actor on another machine."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def serve(self, latency: str, seed: int, answers: tuple[str, ...], port: int) -> int:
        """See Post. Raises: RuntimeError."""
        return int(self._asked("serve", latency, seed, answers, port))

    def watch(self, driver: int | None) -> None:
        """See Post."""
        self._asked("watch", None)

    def seen(self) -> dict[str, Any]:
        """See Post."""
        return dict(self._asked("seen"))

    def used(self, start_s: float, end_s: float) -> Used:
        """See Post."""
        return Used(*self._asked("used", start_s, end_s))

    def leave(self) -> None:
        """See Post."""
        self._asked("leave")

    def _asked(self, name: str, *given: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, name).remote(*given))
        except ray.exceptions.RayTaskError as failure:
            raise failure.cause from failure


@contextmanager
def posted(address: str) -> Iterator[tuple[list[Post], int]]:
    """A sentry on every machine of a cluster that is there, ours first; and how many nodes it has.

    Raises: errors.ConfigError when it cannot be reached.
    """
    with session(address):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context()
        gcs = str(here.gcs_address)
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        ours = next((node["NodeManagerAddress"] for node in nodes if node["NodeID"] == here.get_node_id()), None)
        others = {node["NodeManagerAddress"]: node["NodeID"] for node in nodes if node["NodeManagerAddress"] != ours}
        actors: list[Any] = [
            ray.remote(Sentry)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False))
            .remote(gcs)
            for node in others.values()
        ]
        try:
            yield [Sentry(gcs), *(RemoteSentry(actor) for actor in actors)], len(nodes)
        finally:
            for actor in actors:
                ray.kill(actor)


def serving(posts: Sequence[Post], latency: str, seed: int, answers: tuple[str, ...]) -> str:
    """Start the endpoint on every machine; the URL under which each machine reaches its own, without /v1.

    Raises: RuntimeError when no port is free on all of them.
    """
    first, *others = posts
    for attempt in range(PORTS):
        port = first.serve(latency, seed, answers, 0)
        try:
            for other in others:
                other.serve(latency, seed, answers, port)
        except RuntimeError:
            for post in posts:
                post.leave()
            if attempt == PORTS - 1:
                raise
            continue
        break
    return f"http://127.0.0.1:{port}"
