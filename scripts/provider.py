"""The simulated provider of a model, and the books of what was asked, delivered, stored and excused.

A request's reply is a pure function of the request; when it comes, and what fails before it, is the seed's chance.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from faults import Plan
from searches import scripted
from virtual import PROCESS, Process, VirtualLoop

from evocluster.errors import ModelError, Overloaded, RateLimited, StoreError
from evocluster.llm.client import Abilities, Reply, Request

RETRIES = 4
TIMEOUT_S = 30.0
MEDIAN_S = 1.0


class Attempt(NamedTuple):
    """One time that a worker carries a proposal out."""

    serial: int
    proposal: int


ATTEMPT: ContextVar[Attempt | None] = ContextVar("attempt", default=None)
"""For whom a call is made."""
_REPLIES: dict[str, Reply] = {}


@dataclass
class Books:
    """What the world saw, from outside of the product."""

    loop: VirtualLoop
    trace: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    shelf: dict[str, str] = field(default_factory=dict)
    """What the cache acknowledged: it outlives every process."""
    paid: Counter[str] = field(default_factory=Counter)
    """Key -> answers delivered, and calls that were in flight when their process died."""
    excused: Counter[str] = field(default_factory=Counter)
    """Key -> how often a crash may have cost its answer."""
    making: dict[str, dict[Process, bool]] = field(default_factory=dict)
    """Key -> who asked for it and has not had it acknowledged by the cache; True: the answer is there."""
    delivered: Counter[int] = field(default_factory=Counter)
    """Serial of an attempt -> answers delivered to it."""
    attempts: list[Attempt] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    """Numbers of trials that are on disk."""
    calls: int = 0
    """Calls that were begun, repeats included."""
    reissued: int = 0
    dead: dict[Process, None] = field(default_factory=dict)
    """Processes that died, or are taken for dead, in this sitting."""
    deadliest: int = 0
    """The most deaths in one sitting."""

    def note(self, text: str) -> None:
        """Into the trace."""
        self.trace.append(f"{self.loop.time():.6f} {text}")

    def wrong(self, text: str) -> None:
        """An invariant is broken."""
        self.note(f"VIOLATION {text}")
        self.violations.append(text)

    def fault(self, kind: str, what: str = "") -> None:
        """A fault was injected."""
        self.injected[kind] += 1
        self.note(f"fault: {kind} {what}".rstrip())

    def excuse(self, process: Process) -> None:
        """A process is given up: what it was making may have to be made again.

        One that is only cut off still waits for its calls: those are excused as their answers come.
        """
        for key, makers in self.making.items():
            if makers.get(process) or (process in makers and not process.alive):
                del makers[process]
                self.excused[key] += 1

    def settle(self, keys: Iterable[str]) -> None:
        """Whoever had an answer to these has it no more on its hands."""
        for key in keys:
            makers = self.making.get(key, {})
            self.making[key] = {process: answered for process, answered in makers.items() if not answered}


class Shelf:
    """See llm.cached.Shelf: durable, except that some writes fail."""

    def __init__(self, books: Books, full: Sequence[int]) -> None:
        self._books = books
        self._full = full
        self._writes = 0

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """The text of each key."""
        return [self._books.shelf.get(key) for key in keys]

    def put_many(self, items: Mapping[str, str]) -> None:
        """Keep them. Raises: errors.StoreError, as planned."""
        self._writes += 1
        if self._writes in self._full:
            self._books.fault("cache full")
            self._books.excused.update(list(items))
            self._books.settle(items)
            raise StoreError("cache full, as planned: no space left on device; free some")
        self._books.shelf.update(items)
        self._books.settle(items)


class Provider:
    """The endpoint behind every copy of the model."""

    def __init__(self, books: Books, plan: Plan, limit: int, cut_off: Mapping[Process, float]) -> None:
        self.books = books
        self._plan = plan
        self._limit = limit
        self._cut_off = cut_off
        self._rng = Random(f"provider {plan.seed}")
        self._busy: Counter[Process] = Counter()
        self._chains: dict[tuple[Any, str], int] = {}
        self.model = scripted()
        self.identity = self.model.identity

    async def answer(self, request: Request) -> Reply:
        """One call. Raises: errors.ModelError."""
        process, key = PROCESS.get(), request.key(self.identity)
        assert process is not None
        attempt = self._begin(process, key)
        self._busy[process] += 1
        self._check_limit(process)
        try:
            reply = await self._serve(request, key, attempt)
        except ModelError as error:
            self._forget(process, key)
            self.books.note(f"{process.name} failed {key[:8]}: {type(error).__name__}")
            raise
        except asyncio.CancelledError:
            self._forget(process, key)
            self.books.note(f"{process.name} gave up {key[:8]}")
            raise
        except BaseException:
            self.books.paid[key] += 1
            raise
        finally:
            self._busy[process] -= 1
        self._deliver(process, key)
        return reply

    def _begin(self, process: Process, key: str) -> int:
        books, chain = self.books, (asyncio.current_task(), key)
        attempt = self._chains[chain] = self._chains.get(chain, 0) + 1
        books.calls += 1
        books.note(f"{process.name} asks {key[:8]} ({attempt})")
        if attempt > RETRIES + 1:
            books.wrong(f"retries: a call was sent {attempt} times, retries={RETRIES}")
        if process not in self._cut_off and key in books.shelf and books.paid[key] > books.excused[key]:
            books.wrong(f"repaid: {key[:8]} is asked again although the cache acknowledged it")
        books.making.setdefault(key, {})[process] = False
        return attempt

    def _forget(self, process: Process, key: str) -> None:
        """No answer came, none is owed."""
        self.books.making.get(key, {}).pop(process, None)

    def _deliver(self, process: Process, key: str) -> None:
        books, attempt = self.books, ATTEMPT.get()
        books.paid[key] += 1
        if attempt is not None:
            books.delivered[attempt.serial] += 1
        books.note(f"{process.name} gets {key[:8]}")
        if process in self._cut_off:
            books.excused[key] += 1
            self._forget(process, key)
        else:
            books.making[key][process] = True
        if books.paid[key] > 1:
            books.reissued += 1
        if books.paid[key] > 1 + books.excused[key]:
            books.wrong(
                f"reissued: {key[:8]} was paid {books.paid[key]} times, {books.excused[key]} of them lost by crashes"
            )

    def _check_limit(self, process: Process) -> None:
        busy = sum(count for one, count in self._busy.items() if one.alive and one not in self._cut_off)
        if process not in self._cut_off and busy > self._limit:
            self.books.wrong(f"concurrency: {busy} calls at once, {self._limit} are allowed")

    async def _serve(self, request: Request, key: str, attempt: int) -> Reply:
        plan, rng = self._plan, self._rng
        seconds = MEDIAN_S * rng.lognormvariate(0, 0.5)
        slow, overloaded, lost = (rng.random() for _ in range(3))
        if slow < plan.slow:
            self.books.injected["slow answers"] += 1
            seconds = min(10.0, seconds * rng.paretovariate(1.0) * 3)
        if int(key[:8], 16) / 2**32 < plan.dead or lost < plan.lost:
            self.books.injected["dead requests" if lost >= plan.lost else "lost calls"] += 1
            await asyncio.get_running_loop().create_future()
        if plan.unbounded or attempt <= RETRIES:
            await self._refuse(overloaded, "5xx" if attempt <= RETRIES else "endless failures")
        await asyncio.sleep(seconds)
        if key not in _REPLIES:
            _REPLIES[key] = await self.model(request)
        return _REPLIES[key]

    async def _refuse(self, chance: float, kind: str) -> None:
        """Push back, where the plan says so. Raises: errors.RateLimited, errors.Overloaded."""
        now = asyncio.get_running_loop().time()
        for start, length, asked in self._plan.storms:
            if start <= now < start + length:
                self.books.injected["429 storm"] += 1
                await asyncio.sleep(0.05)
                raise RateLimited("429, as planned", asked or None)
        if chance < self._plan.overloaded:
            self.books.injected[kind] += 1
            await asyncio.sleep(0.1)
            raise Overloaded("503, as planned")


class Simulated:
    """A model of the stack (llm.stack.Bounded) whose endpoint is the provider."""

    def __init__(self, provider: Provider, max_concurrency: int) -> None:
        self._provider = provider
        self.max_concurrency = max_concurrency
        self.price = provider.model.price
        self.timeout_s = TIMEOUT_S
        self.retries = RETRIES

    @property
    def abilities(self) -> Abilities:
        """All of them."""
        return self._provider.model.abilities

    @property
    def identity(self) -> str:
        """What answers."""
        return self._provider.identity

    async def open(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to close."""

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.ModelError."""
        return await self._provider.answer(request)
