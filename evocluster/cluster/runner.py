"""The Runner over Ray: worker actors on every node pull from the population actor, and are replaced when they die.

Lives inside the population actor, next to the engine that feeds it. Paying work is never retried by Ray (max_restarts
and max_task_retries are 0): leases decide what is carried out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evocluster.cluster.cache import RemoteCache
from evocluster.cluster.dispatch import Dispatch
from evocluster.cluster.limits import RemoteKeeper
from evocluster.cluster.puller import Puller
from evocluster.cluster.session import unwrapped
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.stack import Hosted, Stack
from evocluster.records import Proposal, Trial
from evocluster.telemetry import log

DEATHS = 20
"""Worker deaths in one run before it stops: something kills them all."""


@dataclass(frozen=True)
class Layout:
    """How the work is spread."""

    in_flight: int
    """Evaluations at once, over all workers."""
    workers: int | None = None
    """Worker processes over the cluster; None: one a core, at most two a node (an async process fills a core)."""


@dataclass(frozen=True)
class _Seat:
    """The place of one worker; who dies in it is replaced in it."""

    name: str
    node: str
    slots: int
    stack: Stack


class NodeHost:
    """One a node: starts the servers of the embedded models there, and stops them with the run."""

    def __init__(self, models: Mapping[str, Hosted]) -> None:
        self._models = dict(models)

    async def start(self) -> dict[str, tuple[str, ...]]:
        """Model name -> addresses of its servers on this node."""
        return {name: await model.start() for name, model in self._models.items()}

    async def stop(self) -> None:
        """Stop them."""
        for model in self._models.values():
            await model.stop()


class PopulationSource:
    """The population actor as a puller sees it; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def pull(self, worker: str, room: int, ahead: int) -> list[Proposal] | None:
        """See cluster.puller.Source."""
        batch: list[Proposal] | None = await self._actor.pull.remote(worker, room, ahead)
        return batch

    async def finish(self, worker: str, trials: list[Trial]) -> None:
        """See cluster.puller.Source."""
        await self._actor.finish.remote(worker, trials)

    async def fail(self, failure: Exception) -> None:
        """See cluster.puller.Source."""
        await self._actor.fail.remote(failure)


class RayRunner:
    """See engine.runner.Runner. Call order: construct in an actor, open, submit and next, close."""

    def __init__(self, worker: Worker, stack: Stack, cache: RemoteCache | None, layout: Layout) -> None:
        self.dispatch = Dispatch()
        self._worker = worker
        self._stack = stack.sharing(RemoteKeeper())
        self._cache = cache
        self._layout = layout
        self._hosts: dict[str, Any] = {}
        self._urls: dict[str, dict[str, tuple[str, ...]]] = {}
        self._actors: dict[str, Any] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._deaths = 0
        self._total = 1
        self._closing = False

    async def open(self) -> None:
        """Start hosts and workers on every node. Raises: what starting a model's servers raises."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        for node in nodes:
            await self._open_node(node["NodeID"])
        places = _places(nodes, self._layout)
        self._total = len(places)
        for index, place in enumerate(places):
            share = self._layout.in_flight // len(places) + (index < self._layout.in_flight % len(places))
            stack = self._attached(place, places[:index].count(place), places.count(place))
            self._start(_Seat(f"worker-{index}", place, max(1, share), stack), 0)

    async def _open_node(self, node: str) -> None:
        """Start what has to run on this node."""
        hosted = self._stack.hosted()
        self._urls[node] = {}
        if hosted:
            host = _remote(NodeHost, node).remote(hosted)
            self._hosts[node] = host
            self._urls[node] = await unwrapped(host.start.remote())

    def _attached(self, node: str, index: int, count: int) -> Stack:
        """The models as worker `index` of `count` on a node calls them.

        The node's model servers are dealt among its workers, because a server knows the beginning of the prompt it
        read last, and two workers that do not know of each other would make it forget by turns.
        """
        dealt = {name: urls[index % len(urls) :: count] or urls[:1] for name, urls in self._urls[node].items()}
        return self._stack.attached(dealt, self._total)

    def _start(self, seat: _Seat, attempt: int) -> None:
        import ray

        source = PopulationSource(ray.get_runtime_context().current_actor)
        worker = self._worker.sized(seat.slots, seat.stack)
        name = f"{seat.name}.{attempt}"
        cache = self._cache.of(name) if self._cache is not None else None
        actor = _remote(Puller, seat.node).remote(name, worker, source, cache)
        self._actors[seat.name] = actor
        watcher = asyncio.ensure_future(self._watch(seat, attempt, actor))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, seat: _Seat, attempt: int, actor: Any) -> None:
        import ray

        try:
            await actor.run.remote()
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as death:
            if not self._closing:
                # It may only be out of reach: make sure that it works no longer.
                ray.kill(actor)
                await self._replace(seat, attempt, death)
        except Exception as failure:  # of the puller itself: the run's owner raises it
            self.dispatch.fail(failure)

    async def _replace(self, seat: _Seat, attempt: int, death: Exception) -> None:
        """Give what a dead worker held to others, and start another worker, on another node where its own is gone."""
        import ray

        lease = f"{seat.name}.{attempt}"
        if self._cache is not None:
            try:
                await self._cache.forsake(lease)
            except ray.exceptions.RayError as failure:
                log.warning("claims of %s were not given up: %s", lease, failure)
        back = self.dispatch.lost(lease)
        self._deaths += 1
        log.warning("%s died; %d proposal(s) go to another worker", seat.name, back)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] in self._urls]  # type: ignore[no-untyped-call]
        if self._deaths >= DEATHS or not alive:
            text = f"{self._deaths} worker processes died in this run, the last with: {death}"
            self.dispatch.fail(EvoclusterError(text))
        elif seat.node in alive:
            self._start(seat, attempt + 1)
        else:
            node = alive[self._deaths % len(alive)]
            self._start(_Seat(seat.name, node, seat.slots, self._attached(node, 0, 1)), attempt + 1)

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal."""
        self.dispatch.submit(proposal)

    async def next(self) -> Trial:
        """The next finished trial. Raises: a worker's fatal error."""
        return await self.dispatch.next()

    async def close(self) -> None:
        """Let the workers end, then stop the servers they used."""
        import ray

        self._closing = True
        self.dispatch.close()
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=5)
        for actor in self._actors.values():
            ray.kill(actor)
        for host in self._hosts.values():
            try:
                await asyncio.wait_for(host.stop.remote(), 10)
            except (TimeoutError, ray.exceptions.RayError) as failure:
                log.warning("the model servers of a node were not stopped by us: %s", failure)
            ray.kill(host)


def _places(nodes: list[dict[str, Any]], layout: Layout) -> list[str]:
    """The node of each worker, dealt round over the nodes."""
    most = {node["NodeID"]: max(1, min(2, int(node["Resources"].get("CPU", 1)))) for node in nodes}
    total = min(layout.workers or sum(most.values()), layout.in_flight)
    names = list(most)
    if layout.workers is None:
        dealt = [name for turn in range(2) for name in names if most[name] > turn]
        return dealt[:total]
    return [names[index % len(names)] for index in range(total)]


def _remote(kind: type, node: str) -> Any:
    """This plain class as an actor class bound to a node, that Ray never restarts or retries."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(kind).options(
        num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=1000, scheduling_strategy=place
    )
