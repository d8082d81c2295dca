"""The Runner over Ray: worker actors on every node pull from the population actor, and are replaced when they die.

Lives inside the population actor, next to the engine that feeds it. Paying work is never retried by Ray (max_restarts
and max_task_retries are 0): leases decide what is carried out again. Once a second it looks at the cluster: a node that
joined gets its workers, one that drains loses them in good order, and the evaluations at once are shared out anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from evocluster.cluster import nodes
from evocluster.cluster.cache import Departed, RemoteCache
from evocluster.cluster.demand import Demand, ask_ray, wanted
from evocluster.cluster.dispatch import Dispatch, Orders, Report
from evocluster.cluster.limits import RemoteKeeper
from evocluster.cluster.metrics import Counters, beating
from evocluster.cluster.nodes import Node, NodeHost, placed
from evocluster.cluster.puller import Puller, SourceGone
from evocluster.cluster.seats import Layout, Patience, arrange, shares
from evocluster.cluster.session import unwrapped
from evocluster.engine.garbage import settle
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.stack import Stack
from evocluster.records import Proposal, Trial
from evocluster.telemetry import log

LOOK_S = 1.0
SILENT_S = 3.0
"""Seconds without a call of a worker before its node is asked whether it lives."""
HUNG_S = 120.0
"""Seconds without a call of a worker on a node that lives before it is killed."""
SHUNNED_S = 60.0
"""Seconds that a node is left alone on which a model's servers did not start."""


class PopulationSource:
    """The population actor as a puller sees it; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def exchange(self, worker: str, report: Report) -> Orders | None:
        """See cluster.puller.Source."""
        orders: Orders | None = await self._answer(self._actor.exchange.remote(worker, report))
        return orders

    async def fail(self, failure: Exception) -> None:
        """See cluster.puller.Source."""
        await self._answer(self._actor.fail.remote(failure))

    @staticmethod
    async def _answer(reference: Any) -> Any:
        import ray

        try:
            return await reference
        except ray.exceptions.RayActorError as failure:
            raise SourceGone(f"the population actor does not answer: {failure}") from failure


def begin(run: str) -> asyncio.Task[None]:
    """What a worker process does once it is open: settle, and tell Ray's metrics what it does."""
    settle()
    return beating(Counters(run))


@dataclass(frozen=True)
class _Seat:
    """One worker at its place."""

    node: str
    index: int
    """Which of the workers of its node it is."""
    actor: Any


class RayRunner:
    """See engine.runner.Runner. Call order: construct in an actor, open, submit and next, close."""

    def __init__(self, worker: Worker, stack: Stack, cache: RemoteCache | None, layout: Layout, epoch: int = 1) -> None:
        """`epoch` tells the workers of one population actor from those of the one before it."""
        self.dispatch = Dispatch()
        self._worker = worker
        self._stack = stack.sharing(RemoteKeeper())
        self._cache = cache
        self._departed = Departed(cache) if cache is not None else None
        self._layout = layout
        self._epoch = epoch
        self._nodes: dict[str, Node] = {}
        self._unreachable: set[str] = set()
        self._opening: set[str] = set()
        self._hosts: dict[str, Any] = {}
        self._urls: dict[str, dict[str, tuple[str, ...]]] = {}
        self._seats: dict[str, _Seat] = {}
        self._leaving: set[str] = set()
        self._born = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Task[None]] = set()
        self._patience = Patience()
        self._demand = Demand(ask_ray)
        self._closing = False

    async def open(self) -> None:
        """Start hosts and workers on every node. Raises: what starting a model's servers raises."""
        if self._departed is not None:
            # Of all: the one before may have died before it came to this.
            for earlier in range(1, self._epoch):
                await self._departed.tell(str(earlier))
            self._later(self._departed.remind(LOOK_S))
        self._nodes = nodes.look()
        lasting = [name for name, node in self._nodes.items() if not node.draining]
        for node in lasting or self._nodes:
            await self._open_node(node)
        self._seat()
        self._later(self._tend())

    async def _open_node(self, node: str) -> None:
        """Start what has to run on this node."""
        hosted = self._stack.hosted()
        urls: dict[str, tuple[str, ...]] = {}
        if hosted:
            host = self._hosts[node] = placed(NodeHost, node).remote(hosted)
            urls = await unwrapped(host.start.remote())
            self._later(self._guard(node, host))
        self._urls[node] = urls

    # Once a second.

    async def _tend(self) -> None:
        """Follow the cluster until the run is over; what goes wrong here ends the run."""
        try:
            while not self._closing:
                await asyncio.sleep(LOOK_S + self._patience.pause_s)
                await self._look()
                await self._listen()
                self._seat()
                work = self.dispatch.queued + self.dispatch.at_work
                cpus = wanted(work, self._layout.in_flight, self._layout.workers)
                self._demand.tell(cpus, asyncio.get_running_loop().time())
        except Exception as failure:  # the run's owner raises it
            self.dispatch.fail(failure)

    async def _look(self) -> None:
        """See which nodes are there; open the new ones, forget the dead."""
        self._nodes = nodes.look()
        for node in [node for node in self._urls if node not in self._nodes]:
            log.warning("node %s is gone", node)
            del self._urls[node]
            self._hosts.pop(node, None)
        self._unreachable = {node for node in self._unreachable if await self._is_dead(node)}
        for node, seen in self._nodes.items():
            if not seen.draining and node not in self._urls and node not in self._opening | self._unreachable:
                self._opening.add(node)
                self._later(self._welcome(node))

    async def _welcome(self, node: str) -> None:
        """Open a node that joined; one where that fails is left alone for a minute."""
        import ray

        try:
            await self._open_node(node)
            log.info("node %s joined", node)
        except (EvoclusterError, ray.exceptions.RayError) as failure:
            log.warning("node %s is not used: its model servers did not start: %s", node, failure)
            await asyncio.sleep(SHUNNED_S)
        self._opening.discard(node)
        self._seat()

    async def _listen(self) -> None:
        """Give up the workers that fell silent with their node, or for too long."""
        for name in self.dispatch.silent(SILENT_S):
            seat = self._seats.get(name)
            if seat is not None and await self._is_dead(seat.node):
                await self._lost(name, "its node does not answer")
        for name in self.dispatch.silent(HUNG_S):
            await self._lost(name, f"it said nothing for {HUNG_S:g} s")

    async def _is_dead(self, node: str) -> bool:
        seen = self._nodes.get(node)
        return seen is None or not await nodes.reachable(seen)

    # Seats.

    def _seat(self) -> None:
        """Make the workers fit the nodes, and share the evaluations at once among them."""
        if self._closing:
            return
        fit = {node: seen for node, seen in self._nodes.items() if node in self._urls and node not in self._unreachable}
        staying = {node: seen for node, seen in fit.items() if not seen.draining} or fit
        taken = {name: seat.node for name, seat in self._seats.items() if name not in self._leaving}
        change = arrange({node: seen.cpus for node, seen in staying.items()}, self._layout, taken)
        for name in change.leave:
            log.info("%s leaves node %s", name, taken.pop(name))
            self._leaving.add(name)
            self.dispatch.retire(name)
        starting = {f"{self._epoch}/worker-{self._born + turn}": node for turn, node in enumerate(change.join)}
        self._born += len(starting)
        taken.update(starting)
        dealt = shares(taken, self._layout.in_flight)
        for name, node in starting.items():
            count = list(taken.values()).count(node)
            used = {self._seats[one].index for one in taken if one in self._seats and self._seats[one].node == node}
            index = min(set(range(count)) - used, default=0)
            stack = self._attached(node, index, count, len(taken))
            self._start(name, node, index, self._worker.sized(dealt[name], stack))
        self.dispatch.share(dealt)

    def _attached(self, node: str, index: int, count: int, total: int) -> Stack:
        """The models as worker `index` of `count` on a node calls them, of `total` in all.

        The node's model servers are dealt among its workers, because a server knows the beginning of the prompt it
        read last, and two workers that do not know of each other would make it forget by turns.
        """
        dealt = {name: urls[index % len(urls) :: count] or urls[:1] for name, urls in self._urls[node].items()}
        return self._stack.attached(dealt, total)

    def _start(self, name: str, node: str, index: int, worker: Worker) -> None:
        import ray

        source = PopulationSource(ray.get_runtime_context().current_actor)
        cache = self._cache.of(name) if self._cache is not None else None
        actor = placed(Puller, node).remote(name, worker, source, cache, partial(begin, worker.told.id))
        self._seats[name] = _Seat(node, index, actor)
        watcher = asyncio.ensure_future(self._watch(name, actor))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, name: str, actor: Any) -> None:
        import ray

        try:
            await actor.run.remote()
            await self._lost(name, "it ended")
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as death:
            await self._lost(name, str(death), bool(getattr(death, "preempted", False)))
        except Exception as failure:  # of the puller itself: the run's owner raises it
            self.dispatch.fail(failure)

    async def _lost(self, name: str, why: str, preempted: bool = False) -> None:
        """A worker is no more: what it held goes to others, and another takes its seat, on another node if need be."""
        import ray

        if self._closing or name not in self._seats:
            return
        seat = self._seats.pop(name)
        # It may only be out of reach: make sure that it works no longer.
        ray.kill(seat.actor)
        dismissed = name in self._leaving and not self.dispatch.holds(name)
        self._leaving.discard(name)
        if await self._is_dead(seat.node):
            self._unreachable.add(seat.node)
        preempted = preempted or seat.node in self._unreachable or self._nodes[seat.node].draining
        back = self.dispatch.lost(name, preempted)
        if self._departed is not None:
            self._later(self._forsake(self._departed, name))
        if not dismissed:
            log.warning("%s was lost (%s); %d proposal(s) go to other workers", name, why.splitlines()[0], back)
            if self._patience.died(self.dispatch.finished, len(self._seats) + 1, preempted):
                text = (
                    f"{self._patience.deaths} worker processes died without a trial finished between, the last: {why}"
                )
                self.dispatch.fail(EvoclusterError(text))
        if not self._patience.pause_s:
            self._seat()

    async def _forsake(self, departed: Departed, name: str) -> None:
        import ray

        try:
            await departed.tell(name)
        except ray.exceptions.RayError as failure:
            log.warning("claims of %s were not given up: %s", name, failure)

    async def _guard(self, node: str, host: Any) -> None:
        """When the process that owns a node's model servers dies, its workers are replaced with new servers."""
        import ray

        try:
            await host.guard.remote()
        except ray.exceptions.RayActorError as death:
            if self._closing or self._hosts.get(node) is not host:
                return
            log.warning("the model servers of node %s died: %s", node, death)
            del self._hosts[node]
            self._urls.pop(node, None)
            for name in [name for name, seat in self._seats.items() if seat.node == node]:
                await self._lost(name, "its model servers died", preempted=True)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The engine's side.

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal."""
        self.dispatch.submit(proposal)

    async def next(self) -> Trial:
        """The next finished trial. Raises: a worker's fatal error."""
        return await self.dispatch.next()

    def ready(self) -> list[Trial]:
        """See engine.runner.Runner."""
        return self.dispatch.ready()

    async def close(self) -> None:
        """Let the workers end, then stop the servers they used."""
        import ray

        self._closing = True
        self._demand.withdraw()
        self.dispatch.close()
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for seat in self._seats.values():
            ray.kill(seat.actor)
        for host in self._hosts.values():
            try:
                async with asyncio.timeout(10):
                    await host.stop.remote()
            except (TimeoutError, ray.exceptions.RayError) as failure:
                log.warning("the model servers of a node were not stopped by us: %s", failure)
            ray.kill(host)
