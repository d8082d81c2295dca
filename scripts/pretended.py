"""Ray, pretended: actors are processes of a virtual loop, and every message can be late, twice, or lost with its end.

As much of Ray's interface as evocluster/cluster uses. With `max_restarts=0, max_task_retries=0` a call is delivered at
most once, and one to an actor that dies, before or while it is carried out, raises RayActorError some time later; with
both at -1 the actor is made again and asked again whatever it had not answered. A call's own failure arrives as
RayTaskError with its `cause`. Actors die with their owner unless they are detached; those with a name are found by it.
Nothing travels by pickling: that is for the tests on Ray.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

from virtual import PROCESS, Process, VirtualLoop, swapped

START_S = 0.6
"""What starting an actor takes."""
DETECT_S = (0.1, 3.0)
"""Within what time a death is noticed."""


class RayError(Exception):
    """Root of Ray's errors."""


class RayActorError(RayError):
    """The actor is dead, or cannot be reached."""


class ActorUnschedulableError(RayError):
    """There is no node for it."""


class RayTaskError(RayError):
    """The call itself failed."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Network(Protocol):
    """What becomes of messages."""

    def delay_s(self, method: str) -> float: ...

    def again(self, method: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]] | None:
        """What arrives besides, unanswered: the same once more, or a part of it."""
        ...

    def died(self, process: Process) -> None:
        """It is dead, or taken for dead."""
        ...


class Actor:
    """A handle and what it stands for."""

    def __init__(self, cluster: Cluster, kind: type, node: str, args: tuple[Any, ...], lasting: bool = False) -> None:
        self.kind = kind
        self.lasting = lasting
        """It is made again when it dies, and asked again."""
        self.schedulable = node in cluster.alive
        self._cluster = cluster
        self._args = args
        self._waiting: dict[asyncio.Future[Any], tuple[str, tuple[Any, ...], Process | None]] = {}
        self._begin(node)
        cluster.actors.append(self)

    def _begin(self, node: str) -> None:
        cluster = self._cluster
        cluster.count += 1
        self.process = Process(f"{self.kind.__name__}.{cluster.count}", node)
        self.process.context.run(_ACTOR.set, self)
        self.process.deaths.append(self._died)
        self.born = cluster.loop.time()
        self.instance: Any = self.process.context.copy().run(self.kind, *self._args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = self.__dict__[name] = _Method(self, name)
        return method

    def call(self, method: str, args: tuple[Any, ...]) -> asyncio.Future[Any]:
        loop = self._cluster.loop
        answer: asyncio.Future[Any] = loop.create_future()
        caller = PROCESS.get()
        if caller is None or caller.alive:
            self._waiting[answer] = method, args, caller
            echo = self._cluster.network.again(method, args)
            self._send(method, args, answer, caller, 0)
            if echo:
                self._send(*echo, answer, caller, 1)
        return answer

    def _send(
        self, method: str, args: tuple[Any, ...], answer: asyncio.Future[Any], caller: Process | None, copy: int
    ) -> None:
        cluster = self._cluster
        late = cluster.network.delay_s(method) + cluster.held_s(caller)
        cluster.loop.later(late, self._arrive, method, args, answer, copy, self.process)

    def _arrive(self, method: str, args: tuple[Any, ...], answer: asyncio.Future[Any], copy: int, to: Process) -> None:
        if to is not self.process:
            return  # it went to one that died; whoever asked has asked again
        loop = self._cluster.loop
        start = self.born + START_S - loop.time() if self.kind.__name__ == "Puller" else 0.0
        wait = max(start, self._cluster.held_s(self.process))
        if not self.schedulable:
            self._fail(answer, ActorUnschedulableError(f"{self.process.name}: its node is gone"))
        elif not self.process.alive and self.lasting:
            pass  # asked again once it lives
        elif not self.process.alive:
            loop.later(self._cluster.detect_s(), self._fail, answer, RayActorError(f"{self.process.name} is dead"))
        elif wait > 0:
            loop.later(wait, self._arrive, method, args, answer, copy, to)
        else:
            loop.spawn(self._carry_out(method, args, answer, copy), self.process)

    async def _carry_out(self, method: str, args: tuple[Any, ...], answer: asyncio.Future[Any], copy: int) -> None:
        result, failure, process = None, None, self.process
        try:
            result = await getattr(self.instance, method)(*args)
        except Exception as error:  # travels to the caller
            failure = RayTaskError(error)
        if not copy:
            late = self._cluster.network.delay_s(method) + self._cluster.held_s(process)
            self._cluster.loop.later(late, self._fail if failure else self._give, answer, failure or result)

    def _give(self, answer: asyncio.Future[Any], result: Any) -> None:
        self._waiting.pop(answer, None)
        if not answer.done():
            answer.set_result(result)

    def _fail(self, answer: asyncio.Future[Any], failure: Exception) -> None:
        self._waiting.pop(answer, None)
        if not answer.done():
            answer.set_exception(failure)
            # Whoever asked may be dead.
            answer._log_traceback = False

    def _died(self) -> None:
        self._cluster.network.died(self.process)
        loop, late = self._cluster.loop, self._cluster.detect_s()
        loop.later(late, self._cluster.bury, self)
        if self.lasting:
            loop.later(late + START_S, self._again)
            return
        for answer in list(self._waiting):
            loop.later(late, self._fail, answer, RayActorError(f"{self.process.name} died"))

    def _again(self) -> None:
        """Live once more, unless it was ended meanwhile, and take up what was asked and not answered."""
        if self.lasting:
            self._begin(self.process.node)
            # Whoever asked asks again; the dead do not.
            for answer, (method, args, caller) in list(self._waiting.items()):
                if caller is None or caller.alive:
                    self._arrive(method, args, answer, 0, self.process)


class _Method:
    """`actor.name`, to be called as `.remote(...)`."""

    __slots__ = ("_actor", "_name")

    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        """What it will answer."""
        return self._actor.call(self._name, args)


_ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


class Cluster:
    """Nodes and the actors on them, as the module `ray` shows them."""

    def __init__(self, loop: VirtualLoop, nodes: Mapping[str, int], network: Network, rng: Random) -> None:
        self.loop = loop
        self.nodes = dict(nodes)
        self.alive = dict.fromkeys(nodes)
        self.network = network
        self.actors: list[Actor] = []
        self.count = 0
        self.named: dict[str, Actor] = {}
        self.owned: dict[Process, list[Actor]] = {}
        self.cut_off: dict[Process, float] = {}
        """Processes that nothing reaches and that reach nobody, and until when."""
        self._rng = rng

    def detect_s(self) -> float:
        """When somebody notices a death."""
        return self._rng.uniform(*DETECT_S)

    def held_s(self, process: Process | None) -> float:
        """How long a message from or to it is held up."""
        return max(0.0, self.cut_off[process] - self.loop.time()) if process in self.cut_off else 0.0

    def start(self, kind: type, node: str, *args: Any, name: str | None = None, lasting: bool = False) -> Actor:
        """An actor on a node; one with a name is detached, and there once."""
        if name in self.named:
            return self.named[name]
        made, owner = Actor(self, kind, node, args, lasting), PROCESS.get()
        if name is not None:
            self.named[name] = made
        elif owner is not None:
            self.owned.setdefault(owner, []).append(made)
        return made

    def bury(self, actor: Actor) -> None:
        """A death is known: the name is free, what it owned is ended."""
        for name in [name for name, one in self.named.items() if one is actor]:
            del self.named[name]
        for child in self.owned.pop(actor.process, ()):
            self.kill(child)

    def kill(self, actor: Actor) -> None:
        """End an actor for good; one that is cut off hears of it once it is not."""
        actor.lasting = False
        held = self.held_s(actor.process)
        if held:
            self.loop.later(held, self.loop.kill, actor.process)
        else:
            self.loop.kill(actor.process)

    def cut(self, actor: Actor, seconds: float) -> None:
        """Nothing reaches this process for so long; everybody who waits for it takes it for dead."""
        self.cut_off[actor.process] = self.loop.time() + seconds
        actor._died()

    def lose(self, node: str) -> None:
        """A node dies with all that runs on it."""
        self.alive.pop(node, None)
        for actor in self.actors:
            if actor.process.node == node:
                self.loop.kill(actor.process)

    def end(self) -> None:
        """The session is over: whatever runs is killed."""
        for actor in self.actors:
            actor.lasting = False
            self.loop.kill(actor.process)
        self.actors.clear()
        self.named.clear()
        self.owned.clear()
        self.cut_off.clear()

    def living(self, kind: str) -> list[Actor]:
        """The actors of a class that are alive, oldest first."""
        return [actor for actor in self.actors if actor.process.alive and actor.kind.__name__ == kind]

    def modules(self) -> dict[str, ModuleType]:
        """What `import ray` finds."""
        ray: Any = ModuleType("ray")
        ray.exceptions = ModuleType("ray.exceptions")
        for error in (RayError, RayActorError, ActorUnschedulableError, RayTaskError):
            setattr(ray.exceptions, error.__name__, error)
        ray.util = ModuleType("ray.util")
        ray.util.scheduling_strategies = ModuleType("ray.util.scheduling_strategies")
        ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy = SimpleNamespace
        ray.remote = lambda kind: _Remote(self, kind)
        ray.kill = self.kill
        ray.nodes = lambda: [
            {"NodeID": name, "Alive": name in self.alive, "Resources": {"CPU": cpus}}
            for name, cpus in self.nodes.items()
        ]
        ray.get_runtime_context = lambda: SimpleNamespace(current_actor=_ACTOR.get())
        ray.util.metrics = ModuleType("ray.util.metrics")
        ray.util.metrics.Gauge = ray.util.metrics.Counter = _Unread
        ray._private = ModuleType("ray._private")
        ray._private.state = ModuleType("ray._private.state")
        ray._private.state.state = SimpleNamespace(get_draining_nodes=dict)
        ray.autoscaler = ModuleType("ray.autoscaler")
        ray.autoscaler.sdk = ModuleType("ray.autoscaler.sdk")
        ray.autoscaler.sdk.request_resources = lambda num_cpus: None
        return dict(_modules(ray))


def _modules(module: ModuleType) -> Iterator[tuple[str, ModuleType]]:
    """This module and those in it."""
    yield module.__name__, module
    for inner in list(vars(module).values()):
        if isinstance(inner, ModuleType):
            yield from _modules(inner)


class _Unread:
    """A metric that nobody reads."""

    def __init__(self, *_: object) -> None: ...

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        """Nothing."""

    inc = set


class _Silent:
    """A beat of metrics that nobody hears."""

    def __init__(self, *_: object) -> None: ...

    def cancel(self) -> None:
        """Nothing."""


def _nothing() -> None:
    """What a process of its own would do to its memory."""


class _Remote:
    """`ray.remote(kind).options(...).remote(...)`."""

    def __init__(self, cluster: Cluster, kind: type) -> None:
        self._cluster = cluster
        self._kind = kind
        self._node = next(iter(cluster.nodes))
        self._name: str | None = None
        self._lasting = False

    def options(
        self, *, scheduling_strategy: Any = None, name: str | None = None, max_restarts: int = 0, **_: object
    ) -> _Remote:
        """The place, the name, and whether it is made again."""
        if scheduling_strategy is not None:
            self._node = scheduling_strategy.node_id
        self._name, self._lasting = name, max_restarts == -1
        return self

    def remote(self, *args: Any) -> Actor:
        """The actor."""
        return self._cluster.start(self._kind, self._node, *args, name=self._name, lasting=self._lasting)


@contextmanager
def pretending(cluster: Cluster) -> Iterator[None]:
    """While it lasts, `import ray` finds this cluster, and processes do not tidy the one memory they share."""
    modules = cluster.modules()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        with swapped(
            {
                "evocluster.cluster.runner.settle": _nothing,
                "evocluster.cluster.runner.beating": _Silent,
                "evocluster.cluster.population.beating": _Silent,
                "evocluster.cluster.population.settle": _nothing,
                "evocluster.cluster.limits.time": SimpleNamespace(monotonic=cluster.loop.time),
            }
        ):
            yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
