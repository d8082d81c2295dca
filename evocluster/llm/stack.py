"""The configured models as one LLM: each with its own limits and retries, one cache before all of them.

    Cached( Gate( Router( name -> Limited( model ) ) ) )

The gate stands behind the cache: a hit takes no slot, look-ups of a whole batch travel together before any slot is
free, and a slot is free again the moment an answer has arrived.

Picklable until `open`. Models that run on a node (the embedded ones) may be started once a node by whoever owns
the node and attached here by their addresses.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from evocluster.llm import weights
from evocluster.llm.cached import Cached
from evocluster.llm.client import LLM, Abilities, Cache, Model, Reply, Request, Router
from evocluster.llm.direct import Direct
from evocluster.llm.limits import Limited
from evocluster.llm.local import Local
from evocluster.llm.prices import required
from evocluster.llm.remote import Remote
from evocluster.llm.wire import secret


@runtime_checkable
class Hosted(Protocol):
    """A model whose servers run on the node that asks for it. Call order: start, attach elsewhere, stop."""

    async def start(self) -> tuple[str, ...]:
        """Start the servers; returns their addresses."""
        ...

    async def stop(self) -> None: ...

    def attach(self, urls: Sequence[str]) -> Model:
        """The same model as a client of servers that run already."""
        ...


class Bounded(Model, Protocol):
    """What every configured model says of its own limits."""

    @property
    def max_concurrency(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def retries(self) -> int: ...


class Gate:
    """At most `slots` calls in flight, first come first served. Make it in the event loop that calls it."""

    def __init__(self, llm: LLM, slots: int) -> None:
        self._llm = llm
        self._slots = slots
        self._free = asyncio.Semaphore(slots)
        self._owed = 0
        """Slots that are taken away as soon as they are free."""

    async def __call__(self, request: Request) -> Reply:
        """Waits for a slot; then as the LLM behind."""
        await self._free.acquire()
        while self._owed:
            self._owed -= 1
            await self._free.acquire()
        try:
            return await self._llm(request)
        finally:
            if self._owed:
                self._owed -= 1
            else:
                self._free.release()

    def resize(self, slots: int) -> None:
        """Other slots from now on; with fewer, what is in flight above them is waited for."""
        more, self._slots = slots - self._slots - self._owed, slots
        self._owed = max(0, -more)
        for _ in range(more):
            self._free.release()


class Stack:
    """Call order: construct (picklable), `open`, calls through what it returned, `close`."""

    def __init__(self, models: Mapping[str, Bounded], seed: int = 0, parts: int = 1) -> None:
        """`parts`: how many stacks like this one call the same models; each takes its share of their concurrency."""
        self.models = dict(models)
        self._seed = seed
        self._parts = parts
        self._cached: Cached | None = None
        self._gate: Gate | None = None

    def check(self) -> None:
        """What can be known to be missing before anything starts: keys, declared prices, embedded weights.

        Raises: errors.MissingModel, errors.PriceError.
        """
        for model in self.models.values():
            if isinstance(model, Direct | Remote):
                secret(model.key_env, model.model)
            if isinstance(model, Direct):
                required(model.price, model.model)
            if isinstance(model, Local):
                required(model.price, model.name)
                weights.find(model.name)

    def abilities(self) -> dict[str, Abilities]:
        """What each model can do."""
        return {name: model.abilities for name, model in self.models.items()}

    def at_once(self, name: str) -> int:
        """How many calls of a model can be under way, on this machine where it runs here; 0: no limit is known."""
        model = self.models[name]
        return model.lanes if isinstance(model, Local) else model.max_concurrency

    def hosted(self) -> dict[str, Hosted]:
        """The models that run on a node."""
        return {name: model for name, model in self.models.items() if isinstance(model, Hosted)}

    def attached(self, urls: Mapping[str, Sequence[str]], parts: int = 1) -> Stack:
        """Copies of the models, those named in `urls` as clients of servers that run already."""
        models = {name: copy.copy(model) for name, model in self.models.items()}
        for name, addresses in urls.items():
            models[name] = self.hosted()[name].attach(addresses)  # type: ignore[assignment]
        return Stack(models, self._seed, parts)

    async def open(self, cache: Cache | None, slots: int) -> LLM:
        """Open every model, with at most `slots` calls in flight over all of them.

        When one fails to open, those already open are closed. Raises: ConfigError, ModelError.
        """
        opened: list[Bounded] = []
        try:
            for model in self.models.values():
                opened.append(model)
                await model.open()
        except BaseException:
            for model in opened:
                await model.close()
            raise
        rng = np.random.default_rng(self._seed)
        limited: dict[str, LLM] = {
            name: Limited(
                model,
                max_concurrency=model.max_concurrency and max(1, model.max_concurrency // self._parts),
                timeout_s=model.timeout_s,
                retries=model.retries,
                rng=rng,
            )
            for name, model in self.models.items()
        }
        self._gate = Gate(Router(limited), slots)
        llm: LLM = self._gate
        if cache is not None:
            identity = {name: model.identity for name, model in self.models.items()}
            llm = self._cached = Cached(llm, cache, identity)
        return llm

    def resize(self, slots: int) -> None:
        """Another number of calls in flight from now on; nothing to do before `open`."""
        if self._gate is not None:
            self._gate.resize(slots)

    async def close(self) -> None:
        """Store what was answered last, then close every model."""
        cached, self._cached = self._cached, None
        if cached is not None:
            await cached.close()
        for model in self.models.values():
            await model.close()
