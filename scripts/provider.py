"""The simulated provider of a model, and the books of what was asked, delivered, stored and excused.

A request's reply is a pure function of the request; when it comes, and what fails before it, is the seed's chance.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from faults import Plan
from searches import scripted
from virtual import PROCESS, Process, VirtualLoop

from evocluster.errors import DeadlinePassed, ModelError, Overloaded, RateLimited, StoreError
from evocluster.llm.charged import prompt_tokens
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.llm.health import STREAK
from evocluster.llm.quota import Terms

RETRIES = 4
TIMEOUT_S = 30.0
"""Of a whole call: longer than a slow answer after as many cut streams as may be, and the waits between them."""
PATIENCE_S = 300.0
MEDIAN_S = 0.5
SLACK = 4
"""Failures of a call above its retries that may have come while the circuit was open, which is not seen here."""
SPREAD_S = 0.6
"""Within what time every worker knows of a Retry-After."""
TICK_S = 0.001


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
    forgotten: int = 0
    """How often the cache died, and with it who was making what."""
    forgotten_before: dict[str, int] = field(default_factory=dict)
    """The same when a key was first acknowledged."""
    excused: Counter[str] = field(default_factory=Counter)
    """Key -> how often a crash may have cost its answer."""
    making: dict[str, dict[Process, bool]] = field(default_factory=dict)
    """Key -> who asked for it and has not had it acknowledged by the cache; True: the answer is there."""
    taken: Counter[int] = field(default_factory=Counter)
    """Serial of an attempt -> calls that reached the endpoint for it, repeats not counted."""
    charged: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Serial of an attempt -> US dollars for what was delivered to it, or may have been made for it in vain."""
    attempts: list[Attempt] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    """Numbers of trials that are on disk."""
    calls: int = 0
    """Calls that were begun, repeats included."""
    reissued: int = 0
    dead: dict[Process, None] = field(default_factory=dict)
    """Workers that died, or are taken for dead, in this sitting."""
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

    def allowed(self, key: str) -> int:
        """How often it may be paid, besides once."""
        return self.excused[key] + self.forgotten_before.get(key, self.forgotten)

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
        for key in items:
            self._books.forgotten_before.setdefault(key, self._books.forgotten)
        self._books.settle(items)


@dataclass
class _Chain:
    """One call of one task, repeats included."""

    sent: int = 0
    failures: int = 0
    """Of them, those that were not turned away with 429."""
    counted: int = 0
    """Of these, those while the endpoint answered others."""


class Provider:
    """The endpoint behind every copy of the model."""

    def __init__(self, books: Books, plan: Plan, limit: int | None, cut_off: Mapping[Process, float]) -> None:
        """`limit`: calls at once; None where the faults of this plan excuse more."""
        self.books = books
        self._plan = plan
        self._limit = limit
        self._cut_off = cut_off
        self._rng = Random(f"provider {plan.seed}")
        self._busy: Counter[Process] = Counter()
        self._chains: dict[tuple[Any, str], _Chain] = {}
        self._shut: dict[Process, tuple[float, float]] = {}
        self._shut_all = deque[tuple[float, float]](maxlen=40)
        self._streak: Counter[Process] = Counter()
        self._failing = 0
        self.model = scripted()
        self.identity = self.model.identity

    async def answer(self, request: Request) -> Reply:
        """One call. Raises: errors.ModelError."""
        process, key = PROCESS.get(), request.key(self.identity)
        assert process is not None
        chain = self._begin(process, key)
        self._busy[process] += 1
        self._check_limit(process)
        try:
            reply = await self._serve(request, key, chain)
        except ModelError as error:
            self._failed(process, key, chain, error)
            if error.billable:
                self._worked_in_vain(request)
            raise
        except asyncio.CancelledError:
            # Its time is over, or its worker's.
            self._failed(process, key, chain, None)
            self._worked_in_vain(request)
            raise
        except BaseException:
            self.books.paid[key] += 1
            raise
        finally:
            self._busy[process] -= 1
        self._charge(reply.usd)
        self._deliver(process, key)
        return reply

    def _charge(self, usd: float) -> None:
        attempt = ATTEMPT.get()
        if attempt is not None:
            self.books.charged[attempt.serial] += usd

    def _worked_in_vain(self, request: Request) -> None:
        """It may charge for an answer that nobody has: at most what was allowed."""
        self._charge(self.model.price.cost(prompt_tokens(request), request.max_tokens))

    def _begin(self, process: Process, key: str) -> _Chain:
        books = self.books
        chain = self._chains.setdefault((asyncio.current_task(), key), _Chain())
        chain.sent += 1
        books.calls += 1
        books.note(f"{process.name} asks {key[:8]} ({chain.sent})")
        mine = ATTEMPT.get()
        if chain.sent == 1 and mine is not None:
            books.taken[mine.serial] += 1
        if chain.counted > RETRIES + SLACK:
            books.wrong(f"retries: a call was sent again after {chain.counted} failures, retries={RETRIES}")
        self._check_patience(process)
        if process not in self._cut_off and key in books.shelf and books.paid[key] > books.allowed(key):
            books.wrong(f"repaid: {key[:8]} is asked again although the cache acknowledged it")
        books.making.setdefault(key, {})[process] = False
        return chain

    def _check_patience(self, process: Process) -> None:
        """Nothing is sent before what a Retry-After said has passed: at once where it was heard, soon elsewhere."""
        now = self.books.loop.time()
        heard, until = self._shut.get(process, (0.0, 0.0))
        if heard < now < until - TICK_S:
            self.books.wrong(f"retry-after: {process.name} was told at {heard:.3f} s to wait until {until:.3f} s")
        if self._plan.stormy and any(told + SPREAD_S < now < until - TICK_S for told, until in self._shut_all):
            self.books.wrong(f"retry-after: {process.name} asks though others were told to wait")

    def _failed(self, process: Process, key: str, chain: _Chain, error: ModelError | None) -> None:
        """No answer came, none is owed."""
        books = self.books
        books.making.get(key, {}).pop(process, None)
        books.note(f"{process.name} {'gave up' if error is None else 'failed'} {key[:8]} {type(error).__name__}")
        self._streak[process] += 1
        if isinstance(error, RateLimited):
            if error.retry_after_s:
                told = books.loop.time(), books.loop.time() + error.retry_after_s
                self._shut[process] = max(told, self._shut.get(process, told), key=lambda one: one[1])
                self._shut_all.append(told)
            return
        chain.failures += 1
        # Where hardly anybody is answered a call waits, and its failures do not count.
        chain.counted += self._streak[process] < STREAK and self._failing < STREAK
        self._failing += 1

    def _forget(self, process: Process, key: str) -> None:
        self.books.making.get(key, {}).pop(process, None)

    def _deliver(self, process: Process, key: str) -> None:
        books = self.books
        books.paid[key] += 1
        self._streak[process] = self._failing = 0
        books.note(f"{process.name} gets {key[:8]}")
        if process in self._cut_off:
            books.excused[key] += 1
            self._forget(process, key)
        else:
            books.making[key][process] = True
        if books.paid[key] > 1:
            books.reissued += 1
        if books.paid[key] > 1 + books.allowed(key):
            books.wrong(
                f"reissued: {key[:8]} was paid {books.paid[key]} times, {books.allowed(key)} of them lost by crashes"
            )

    def _check_limit(self, process: Process) -> None:
        if self._limit is None:
            return
        busy = sum(count for one, count in self._busy.items() if one.alive and one not in self._cut_off)
        if process not in self._cut_off and busy > self._limit:
            self.books.wrong(f"concurrency: {busy} calls at once, {self._limit} are allowed")

    async def _serve(self, request: Request, key: str, chain: _Chain) -> Reply:
        plan, rng = self._plan, self._rng
        seconds = MEDIAN_S * rng.lognormvariate(0, 0.5)
        slow, overloaded, lost, cut = (rng.random() for _ in range(4))
        if slow < plan.slow:
            self.books.injected["slow answers"] += 1
            seconds = min(4.0, seconds * rng.paretovariate(1.0) * 3)
        await self._turn_away()
        if int(key[:8], 16) / 2**32 < plan.dead or lost < plan.lost:
            self.books.injected["dead requests" if lost >= plan.lost else "lost calls"] += 1
            await asyncio.get_running_loop().create_future()
        bounded = chain.failures < RETRIES
        if overloaded < plan.overloaded and (plan.unbounded or bounded):
            self.books.injected["5xx" if bounded else "endless failures"] += 1
            await asyncio.sleep(0.1)
            raise Overloaded("503, as planned")
        if cut < plan.broken and bounded:
            self.books.injected["cut streams"] += 1
            await asyncio.sleep(min(1.0, seconds))
            raise DeadlinePassed("the stream broke off, as planned")
        await asyncio.sleep(seconds)
        if key not in _REPLIES:
            _REPLIES[key] = await self.model(request)
        else:
            # As many steps as the first time: a seed is the same whatever came before it.
            await asyncio.sleep(0)
        return _REPLIES[key]

    async def _turn_away(self) -> None:
        """Answer 429 while the plan says so. Raises: errors.RateLimited."""
        now = asyncio.get_running_loop().time()
        for start, length, asked in self._plan.storms:
            if start <= now < start + length:
                self.books.injected["429 storm"] += 1
                await asyncio.sleep(0.05)
                raise RateLimited("429, as planned", asked or None)


class Simulated:
    """A model of the stack (llm.stack.Bounded) whose endpoint is the provider."""

    def __init__(self, provider: Provider, max_concurrency: int) -> None:
        self._provider = provider
        self.max_concurrency = max_concurrency
        self.price = provider.model.price
        self.timeout_s = TIMEOUT_S
        self.retries = RETRIES
        self.patience_s = PATIENCE_S
        self.fallbacks = ()
        self.hedge = 0.0
        self.terms = Terms(max_concurrency=max_concurrency)

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
