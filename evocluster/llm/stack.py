"""The configured models as one LLM: each with its own limits and retries, one cache before all of them.

    Cached( Router( name -> Limited( model ) ) )

Picklable until `open`. Models that run on a node (the embedded ones) may be started once a node by whoever owns
the node and attached here by their addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from evocluster.llm.cached import Cached
from evocluster.llm.client import LLM, Abilities, Cache, Model, Router
from evocluster.llm.limits import Limited


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


class Stack:
    """Call order: construct (picklable), `open`, calls through what it returned, `close`."""

    def __init__(self, models: Mapping[str, Bounded], seed: int = 0) -> None:
        self.models = dict(models)
        self._seed = seed
        self._cached: Cached | None = None

    def abilities(self) -> dict[str, Abilities]:
        """What each model can do."""
        return {name: model.abilities for name, model in self.models.items()}

    def hosted(self) -> dict[str, Hosted]:
        """The models that run on a node."""
        return {name: model for name, model in self.models.items() if isinstance(model, Hosted)}

    def attached(self, urls: Mapping[str, Sequence[str]]) -> Stack:
        """The same models, those named in `urls` as clients of servers that run already."""
        models = dict(self.models)
        for name, addresses in urls.items():
            models[name] = self.hosted()[name].attach(addresses)  # type: ignore[assignment]
        return Stack(models, self._seed)

    async def open(self, cache: Cache | None) -> LLM:
        """Open every model; when one fails, those already open are closed. Raises: ConfigError, ModelError."""
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
                max_concurrency=model.max_concurrency,
                timeout_s=model.timeout_s,
                retries=model.retries,
                rng=rng,
            )
            for name, model in self.models.items()
        }
        llm: LLM = Router(limited)
        if cache is not None:
            identity = {name: model.identity for name, model in self.models.items()}
            llm = self._cached = Cached(llm, cache, identity)
        return llm

    async def close(self) -> None:
        """Store what was answered last, then close every model."""
        cached, self._cached = self._cached, None
        if cached is not None:
            await cached.close()
        for model in self.models.values():
            await model.close()
