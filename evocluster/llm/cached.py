"""The cache before a model: asked once, answered forever, and asked once at a time.

    Cached (an LLM)  ->  any llm.client.Cache  ->  LocalCache over a shelf (store.cache.DiskCache, or memory)

One lookup costs more on its way than in the store, so `Cached` sends lookups and results by the batch. The
first to ask for a key makes it, the others wait; when the maker fails, the next takes over. A failure is
never stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from pydantic import ValidationError

from evocluster.llm.client import LLM, Cache, Claim, Reply, Request, unconfigured
from evocluster.records import Record
from evocluster.telemetry import counts, log

CLAIM_S = 7200.0
"""Seconds that a claim lasts: longer than any call waits for its slot, its endpoint and its answer, since what a
claim that ran out was for is asked, and paid, twice."""

T = TypeVar("T")
R = TypeVar("R")


class Shelf(Protocol):
    """Where a LocalCache keeps its texts: batched, synchronous, durable when `put_many` returns."""

    def get_many(self, keys: Sequence[str]) -> list[str | None]: ...

    def put_many(self, items: Mapping[str, str]) -> None: ...


class MemoryShelf:
    """A shelf that forgets with its process."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """The text of each key, None where there is none."""
        return [self._texts.get(key) for key in keys]

    def put_many(self, items: Mapping[str, str]) -> None:
        """Keep them."""
        self._texts.update(items)


@dataclass(eq=False)
class _Lease:
    expires: float
    made: asyncio.Future[str | None]


class LocalCache:
    """An llm.client.Cache in one process: values on a shelf, claims in memory.

    A claim lasts `lease_s` seconds by `clock`, so a maker that died holds nobody up for longer. Arguments and
    results are plain data and `Claim`, so the class can serve other processes as it is. For one event loop.
    """

    def __init__(
        self,
        shelf: Shelf | None = None,
        lease_s: float = CLAIM_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf: Shelf = MemoryShelf() if shelf is None else shelf
        self._lease_s = lease_s
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        """In the order they run out, because all last equally long."""

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        """For each key its value, or whose turn it is to make it.

        Raises: what the shelf raises; nothing is claimed then.
        """
        values = self._shelf.get_many(keys)
        self._expire()
        return [self._claim(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    async def wait(self, key: str) -> str | None:
        """The value once the claimant has put it; None when the claim was dropped or ran out: claim again."""
        self._expire()
        lease = self._leases.get(key)
        if lease is None:
            return self._shelf.get_many([key])[0]
        await asyncio.wait({lease.made}, timeout=max(0.0, lease.expires - self._clock()))
        return lease.made.result() if lease.made.done() else None

    async def put_many(self, items: Mapping[str, str]) -> None:
        """Durable when it returns; wakes who waits.

        Raises: what the shelf raises; the claims are held still, so drop them.
        """
        self._shelf.put_many(items)
        for key, value in items.items():
            self._release(key, value)

    async def drop_many(self, keys: Sequence[str]) -> None:
        """Give up claims; who waits may claim again."""
        for key in keys:
            self._release(key, None)

    def _claim(self, key: str) -> Claim:
        if key in self._leases:
            return Claim.TAKEN
        made: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._leases[key] = _Lease(self._clock() + self._lease_s, made)
        return Claim.MINE

    def _release(self, key: str, value: str | None) -> None:
        lease = self._leases.pop(key, None)
        if lease is not None and not lease.made.done():
            lease.made.set_result(value)

    def _expire(self) -> None:
        now = self._clock()
        while self._leases:
            key, lease = next(iter(self._leases.items()))
            if lease.expires > now:
                return
            log.warning("cache: the claim of %s ran out after %g s; the next makes it", key, self._lease_s)
            self._release(key, None)


class _Batcher(Generic[T, R]):
    """Collects single items into batches. Each has its own future: cancelling one leaves the others alone."""

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        linger_s: float,
        size: int,
        hurry: bool = False,
        unclaimed: Callable[[T, R], None] | None = None,
    ) -> None:
        """`send` answers a batch in order; `unclaimed` takes the answer of an item whose waiter is gone.

        With `hurry` only what comes while a batch is under way lingers.
        """
        self._send = send
        self._linger_s = linger_s
        self._size = size
        self._hurry = hurry
        self._unclaimed = unclaimed
        self._pending: list[tuple[T, asyncio.Future[R]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def submit(self, item: T) -> asyncio.Future[R]:
        """The answer to come. The item is sent within `linger_s` even when its future is cancelled."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._pending.append((item, future))
        if len(self._pending) >= self._size:
            self._flush()
        elif self._timer is None:
            at_once = self._hurry and not self._sending
            self._timer = loop.call_later(0 if at_once else self._linger_s, self._flush)
        return future

    async def drain(self) -> None:
        """Send what is pending and wait until everything is answered."""
        self._flush()
        while self._sending:
            await asyncio.wait(set(self._sending))

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        # The swap comes before anything is awaited: what is submitted meanwhile belongs to the next batch.
        batch, self._pending = self._pending, []
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            pairs = list(zip(batch, answers, strict=True))
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (item, future), answer in pairs:
            if not future.done():
                future.set_result(answer)
            elif self._unclaimed is not None:
                self._unclaimed(item, answer)


_THIS_TIME = {"extra_usd", "lost_calls", "lost_usd", "answered_by"}


class _Stored(Record):
    """What a value in the cache is, as JSON. A reply that old readers cannot read takes a new `v`."""

    v: Literal[1] = 1
    reply: Reply


class Cached:
    """An LLM whose replies are kept. Call order: construct, any number of calls, close."""

    def __init__(
        self,
        llm: LLM,
        cache: Cache,
        identity: Mapping[str, str],
        linger_s: float = 0.01,
        batch: int = 100,
    ) -> None:
        """`identity`: model name -> Model.identity.

        Look-ups gather for up to `linger_s` seconds or until there are `batch` of them, results for twice as long:
        what a kill finds gathered is paid again, like what was in flight.
        """
        self._llm = llm
        self._cache = cache
        self._identity = dict(identity)
        self._gets: _Batcher[str, str | Claim] = _Batcher(cache.get_many, linger_s, batch, True, self._unclaimed)
        self._puts: _Batcher[tuple[str, str], None] = _Batcher(self._store, 2 * linger_s, batch)
        self._drops: set[asyncio.Task[None]] = set()
        self.hits = 0
        """Calls answered from the cache."""
        self.misses = 0
        """Calls that went to the model."""
        self.joins = 0
        """Calls answered by waiting for an equal call under way."""

    async def __call__(self, request: Request) -> Reply:
        """The stored reply (`cached`; tokens, usd and seconds as recorded), or a new one, durable by then.

        Raises: errors.ModelError; ConfigError for a model without identity; what the cache raises.
        """
        identity = self._identity.get(request.model)
        if identity is None:
            raise unconfigured(request.model, self._identity)
        key = request.key(identity)
        while True:
            found = await self._look(key)
            if found is Claim.MINE:
                return await self._make(request, key)
            joined = found is Claim.TAKEN
            text = await self._cache.wait(key) if isinstance(found, Claim) else found
            if text is None:
                continue
            reply = _decode(text)
            if reply is None:
                log.warning("cache: the entry %s is of another version or broken; asked again", key)
                return await self._make(request, key)
            self.hits += not joined
            self.joins += joined
            counts["joins" if joined else "hits"] += 1
            return reply

    async def close(self) -> None:
        """Wait until every finished call is stored, also of callers that were cancelled."""
        await self._gets.drain()
        await self._puts.drain()
        if self._drops:
            await asyncio.wait(set(self._drops))

    async def _look(self, key: str) -> str | Claim:
        future = self._gets.submit(key)
        try:
            return await future
        except asyncio.CancelledError:
            # The answer may have come in the same moment: a claim that nobody knows of must not be kept.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._unclaimed(key, future.result())
            raise

    async def _make(self, request: Request, key: str) -> Reply:
        self.misses += 1
        counts["misses"] += 1
        try:
            reply = await self._llm(request)
        except BaseException:
            await asyncio.shield(self._drop([key]))
            raise
        await self._puts.submit((key, _encode(reply)))
        return reply

    async def _store(self, items: list[tuple[str, str]]) -> list[None]:
        try:
            await self._cache.put_many(dict(items))
        except BaseException:
            await asyncio.shield(self._drop([key for key, _ in items]))
            raise
        return [None] * len(items)

    def _unclaimed(self, key: str, found: str | Claim) -> None:
        if found is Claim.MINE:
            self._drop([key])

    def _drop(self, keys: list[str]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._give_up(keys))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)
        return task

    async def _give_up(self, keys: list[str]) -> None:
        try:
            await self._cache.drop_many(keys)
        except Exception as error:  # the caller's own error matters more; the lease frees the keys
            log.warning("cache: %d claims were not dropped (%s); they run out", len(keys), error)


def _encode(reply: Reply) -> str:
    # What the answer took this time is no part of it, and entries stay readable by those who know no such fields.
    bare = reply.model_copy(update={"cached": False}) if reply.cached else reply
    return _Stored.model_construct(v=1, reply=bare).model_dump_json(exclude={"reply": _THIS_TIME})


def _decode(text: str) -> Reply | None:
    try:
        stored = _Stored.model_validate_json(text)
    except ValidationError:
        return None
    return stored.reply.model_copy(update={"cached": True})
