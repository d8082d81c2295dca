"""A worker process of the cluster: pulls batches, keeps hundreds of calls in flight, hands results in coalesced.

One async actor a core with `num_cpus=0`; measured on two cores, pulling batches costs 0.3 ms of CPU an evaluation where
one actor call an evaluation costs 1.5 ms. One call carries results in and work out. What is pulled ahead of free slots
is begun a little early, so that its look-ups in the cache travel before a slot is free; the rest stays at hand, and
goes back when others idle.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from evocluster.cluster.dispatch import WAIT_S, Orders, Report
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.client import Cache
from evocluster.records import Proposal, Trial
from evocluster.telemetry import log, mark

EARLY = 8
"""A proposal may be begun while no more than one in so many of the slots is waited for."""


class SourceGone(Exception):
    """The source does not answer any more: whoever owns the worker starts another."""


class Source(Protocol):
    """Where work comes from and results go: the population actor, seen from a worker.

    Raises: SourceGone.
    """

    def exchange(self, worker: str, report: Report) -> Awaitable[Orders | None]: ...

    def fail(self, failure: Exception) -> Awaitable[None]: ...


class Puller:
    """Carries out proposals of a source until it says that it is over."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        source: Source,
        cache: Cache | None,
        ready: Callable[[], asyncio.Task[None] | None] = lambda: None,
    ) -> None:
        """`ready` is called once the worker is open; a task that it returns is cancelled at the end."""
        self._name = name
        self._worker = worker
        self._source = source
        self._cache = cache
        self._ready = ready
        self._slots = worker.slots
        self._load = 0
        """Evaluations begun and not done."""
        self._hand: deque[Proposal] = deque()
        self._spare = 0
        """Evaluations at hand, not begun."""
        self._outbox: list[Trial] = []
        self._back: list[int] = []
        self._more = True
        self._over = False
        self._changed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Open, pull until over, close. A fatal error of the worker is handed to the source and ends this puller."""
        mark(worker=self._name)
        beat: asyncio.Task[None] | None = None
        try:
            await self._worker.open(self._cache)
            beat = self._ready()
            await self._talk()
        except SourceGone as failure:
            log.warning("%s: %s", self._name, failure)
        except Exception as failure:  # handed to the run's owner, who raises it
            await self._report(failure)
        finally:
            # What is at hand must not take the places of what is called off.
            self._over = True
            for task in list(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._worker.close()
            if beat is not None:
                beat.cancel()

    async def _talk(self) -> None:
        """Call the source whenever there is something to say, and at least every WAIT_S.

        A call that may wait there for work is joined by one that brings results; else there is one at a time, and what
        comes up meanwhile travels with the next.
        """
        calls: dict[asyncio.Task[None], bool] = {}
        silent = False
        try:
            while not self._over:
                self._changed.clear()
                if not any(calls.values()) and (self._brings or (not calls and (silent or self._wants))):
                    brings, report = self._brings, self._said()
                    call = asyncio.ensure_future(self._call(report))
                    call.add_done_callback(lambda _: self._changed.set())
                    calls[call] = brings
                try:
                    async with asyncio.timeout(WAIT_S):
                        await self._changed.wait()
                    silent = False
                except TimeoutError:
                    silent = True
                for call in [one for one in calls if one.done()]:
                    del calls[call]
                    call.result()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    @property
    def _brings(self) -> bool:
        """Whether there is anything to hand in."""
        return bool(self._outbox or self._back)

    @property
    def _wants(self) -> bool:
        """Whether slots are free, or so little is at hand that it pays to ask."""
        return self._room > 0 or (self._more and self._ahead * EARLY >= 2 * self._slots)

    @property
    def _room(self) -> int:
        return max(0, self._slots - self._held - self._spare)

    @property
    def _ahead(self) -> int:
        return min(self._slots, max(0, 2 * self._slots - self._held - self._spare))

    @property
    def _held(self) -> int:
        """Evaluations that have a slot or wait for one; of those that wait for an endpoint, what is above the slots.

        An endpoint that lets nobody in takes no places of evaluations by other models, and yet there is an end to
        what is begun.
        """
        return self._load - min(self._worker.aside, self._load, self._slots)

    def _said(self) -> Report:
        """What there is to say; it is said once."""
        report = Report(tuple(self._outbox), tuple(self._back), self._room, self._ahead, self._spare)
        self._outbox, self._back = [], []
        return report

    async def _call(self, report: Report) -> None:
        try:
            orders = await self._source.exchange(self._name, report)
        except SourceGone:
            raise
        except Exception as failure:  # what was not handed in would be waited for without end
            await self._report(failure)
            return
        if orders is None:
            self._over = True
            return
        if orders.slots is not None and orders.slots != self._slots:
            self._slots = orders.slots
            self._worker.resize(orders.slots)
        self._more = report.room > 0 or bool(orders.work)
        self._hand.extend(orders.work)
        self._spare += sum(map(_size, orders.work))
        self._give_back(orders.back)
        self._begin()

    def _give_back(self, count: int) -> None:
        """Take so many evaluations, or a few more, off the end of what is at hand."""
        while self._hand and count > 0:
            proposal = self._hand.pop()
            self._back.append(proposal.number)
            self._spare -= _size(proposal)
            count -= _size(proposal)

    def _begin(self) -> None:
        """Begin what is at hand, as far as there is room."""
        while self._hand and not self._over and self._held < self._slots + self._slots // EARLY:
            size = _size(self._hand[0])
            if self._held >= self._slots and self._held + size > self._slots + self._slots // EARLY:
                return
            self._load += size
            self._spare -= size
            task = asyncio.ensure_future(self._carry_out(self._hand.popleft()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _carry_out(self, proposal: Proposal) -> None:
        held = _size(proposal)

        def freed() -> None:
            # By the item: a proposal that waits for its slowest answer must not keep the others' places.
            nonlocal held
            held -= 1
            self._done(1)

        try:
            trial = await self._worker.run(proposal, freed)
        except Exception as failure:  # fatal: ends the run, not only this proposal
            await self._report(failure)
            return
        finally:
            self._done(held)
        self._outbox.append(trial)
        self._changed.set()

    def _done(self, items: int) -> None:
        self._load -= items
        self._begin()
        if self._wants:
            self._changed.set()

    async def _report(self, failure: Exception) -> None:
        """Hand a failure to the run's owner, as text where it cannot travel itself."""
        try:
            try:
                await self._source.fail(failure)
            except SourceGone:
                raise
            except Exception:
                await self._source.fail(EvoclusterError(f"{type(failure).__name__}: {failure}"))
        except SourceGone as gone:
            log.warning("%s: %s; it was to be told of: %s", self._name, gone, failure)


def _size(proposal: Proposal) -> int:
    return max(1, len(proposal.items))
