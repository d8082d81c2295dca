"""The configured models as one LLM: each with its own limits and retries, one cache before all of them.

    Fallbacks( Cached( Router( name -> Gate( Limited( model ) ) ) ) )

The gates and the slots stand behind the cache: a hit takes no slot, look-ups of a whole batch travel together before
any slot is free, and a slot is free again the moment an answer has arrived.

The limits of an endpoint are kept by one keeper for everybody (`sharing`), those of an embedded model, whose servers
are this node's, by each process for its part.

Picklable until `open`. Models that run on a node (the embedded ones) may be started once a node by whoever owns
the node and attached here by their addresses.
"""

from __future__ import annotations

import copy
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evocluster.llm import weights
from evocluster.llm.cached import Cached
from evocluster.llm.client import LLM, Abilities, Cache, Model, Router
from evocluster.llm.direct import Direct
from evocluster.llm.fallbacks import Fallbacks, Others
from evocluster.llm.gate import Gate, Slots
from evocluster.llm.hedge import Hedge
from evocluster.llm.leases import Lease, Leases, OwnKeeper, Renewing
from evocluster.llm.limits import Limited
from evocluster.llm.local import Local
from evocluster.llm.observed import Observed
from evocluster.llm.prices import Price, required
from evocluster.llm.quota import Terms
from evocluster.llm.remote import Remote
from evocluster.llm.wire import secret
from evocluster.parts import Part


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

    @property
    def price(self) -> Price | None: ...

    @property
    def patience_s(self) -> float: ...

    @property
    def fallbacks(self) -> tuple[str, ...]: ...

    @property
    def hedge(self) -> float: ...

    @property
    def terms(self) -> Terms: ...


class Stack:
    """Call order: construct (picklable), `open`, calls through what it returned, `close`."""

    def __init__(
        self, models: Mapping[str, Bounded], seed: int = 0, parts: int = 1, keeper: Renewing | None = None
    ) -> None:
        """`parts`: how many stacks like this one call the same embedded models; each takes its share of their
        concurrency. `keeper`: of the other models' limits; None: one of this process.
        """
        self.models = dict(models)
        self._seed = seed
        self._parts = parts
        self._keeper: Renewing = keeper if keeper is not None else OwnKeeper()
        self._cached: Cached | None = None
        self._leases: list[Leases] = []
        self._of: dict[str, Lease] = {}
        self._gates: list[Gate] = []
        self._slots = Slots()

    def __getstate__(self) -> dict[str, Any]:
        """What was open here stays here."""
        return {**self.__dict__, "_cached": None, "_leases": [], "_of": {}, "_gates": [], "_slots": Slots()}

    def check(self, here: bool = True) -> None:
        """What can be known to be missing before anything starts: keys, declared prices, embedded weights.

        `here` False: the run is to be elsewhere, and so are its keys and weights.
        Raises: errors.MissingModel, errors.PriceError.
        """
        for model in self.models.values():
            if isinstance(model, Direct | Remote) and here:
                secret(model.key_env, model.model)
            if isinstance(model, Local) and here:
                weights.find(model.name)
        self.prices()

    def prices(self) -> dict[str, Price]:
        """What the tokens of each model cost now, declared or listed. Raises: errors.PriceError, MissingModel."""
        return {
            name: required(
                model.rate if isinstance(model, Remote) else model.price, getattr(model, "model", None) or name
            )
            for name, model in self.models.items()
        }

    def priced(self, prices: Mapping[str, Price]) -> Stack:
        """The same models at these prices."""
        models: dict[str, Bounded] = {
            name: model.model_copy(update={"price": prices[name]})
            if isinstance(model, Part) and name in prices
            else model
            for name, model in self.models.items()
        }
        return Stack(models, self._seed, self._parts, self._keeper)

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
        return Stack(models, self._seed, parts, self._keeper)

    def sharing(self, keeper: Renewing) -> Stack:
        """The same models, not yet open, their limits kept by this keeper."""
        return Stack(self.models, self._seed, self._parts, keeper)

    def counts(self) -> dict[str, dict[str, Any]]:
        """Endpoint -> what this process saw of its limits (llm.leases.Counts), since it was opened."""
        return {lease.name: asdict(lease.counts) for lease in self._of.values()}

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
        try:
            self._of = await self._lease()
        except BaseException:
            await self.close()
            raise
        chains = {name: model.fallbacks for name, model in self.models.items()}
        others = Others(chains, self.abilities(), lambda name: self._of[name].open)
        self._slots = Slots(slots)
        gates = {name: Gate(model, slots) for name, model in self._limited(others).items()}
        self._gates = list(gates.values())
        llm: LLM = Router(gates)
        if cache is not None:
            identity = {name: model.identity for name, model in self.models.items()}
            llm = self._cached = Cached(llm, cache, identity)
        return Fallbacks(llm, others) if any(chains.values()) else llm

    def _limited(self, others: Others) -> dict[str, LLM]:
        prices = self.prices()
        rng = np.random.default_rng(self._seed)
        return {
            name: Limited(
                _hedged(Observed(model, name), self._of[name], model.hedge, prices[name]),
                self._of[name],
                timeout_s=model.timeout_s,
                retries=model.retries,
                rng=rng,
                price=prices[name],
                patience_s=model.patience_s,
                leave=others.any,
                slots=self._slots,
            )
            for name, model in self.models.items()
        }

    async def _lease(self) -> dict[str, Lease]:
        """Model -> what it may be asked, as agreed with the keeper of its limits."""
        shared, own = Leases(self._keeper, _holder()), Leases(OwnKeeper(), "own")
        leases = {}
        for name, model in self.models.items():
            if isinstance(model, Local):
                part = model.max_concurrency and max(1, model.max_concurrency // self._parts)
                leases[name] = own.of(name, replace(model.terms, max_concurrency=part, adaptive=False))
            else:
                leases[name] = shared.of(endpoint(model.identity), model.terms)
        self._leases = [one for one in (shared, own) if one.leases]
        for one in self._leases:
            await one.open()
        return leases

    def resize(self, slots: int) -> None:
        """Another number of calls in flight from now on; nothing to do before `open`."""
        if self._gates:
            self._slots.resize(slots)
        for gate in self._gates:
            gate.resize(slots)

    @property
    def aside(self) -> int:
        """Calls that wait for their endpoint without a slot, where calls of other endpoints could use it."""
        return self._slots.aside if len(set(self._of.values())) > 1 else 0

    async def close(self) -> None:
        """Store what was answered last, then close every model."""
        cached, self._cached = self._cached, None
        if cached is not None:
            await cached.close()
        leases, self._leases = self._leases, []
        for one in leases:
            await one.close()
        for model in self.models.values():
            await model.close()


def _hedged(llm: LLM, lease: Lease, share: float, price: Price) -> LLM:
    return Hedge(llm, lease, share, price) if share else llm


_HOLDERS = itertools.count()


def _holder() -> str:
    """A name that no other stack of the cluster has."""
    return f"{socket.gethostname()}:{os.getpid()}:{next(_HOLDERS):06d}"


def endpoint(identity: str) -> str:
    """The endpoint of a model's identity: settings that only change what is answered share its quota."""
    return identity.partition("#")[0]
