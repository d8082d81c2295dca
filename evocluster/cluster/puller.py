"""A worker process of the cluster: pulls batches, keeps hundreds of calls in flight, hands results in coalesced.

One async actor a core with `num_cpus=0`; measured on two cores, pulling batches costs 0.3 ms of CPU an evaluation where
one actor call an evaluation costs 1.5 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from evocluster.cluster.metrics import Counters, beating
from evocluster.cluster.session import settle
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.client import Cache
from evocluster.records import Proposal, Trial
from evocluster.telemetry import mark


class Source(Protocol):
    """Where work comes from and results go: the population actor, seen from a worker."""

    def pull(self, worker: str, room: int, ahead: int) -> Awaitable[list[Proposal] | None]: ...

    def finish(self, worker: str, trials: list[Trial]) -> Awaitable[None]: ...

    def fail(self, failure: Exception) -> Awaitable[None]: ...


class Puller:
    """Carries out proposals of a source until it says that it is over."""

    def __init__(self, name: str, worker: Worker, source: Source, cache: Cache | None) -> None:
        self._name = name
        self._worker = worker
        self._source = source
        self._cache = cache
        self._load = 0
        self._outbox: list[Trial] = []
        self._changed = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Open, pull until over, close. A fatal error of the worker is handed to the source and ends this puller."""
        mark(worker=self._name)
        beat = beating(Counters(self._worker.told.id))
        try:
            await self._worker.open(self._cache)
            settle()
            await self._pull()
        except Exception as failure:  # handed to the run's owner, who raises it
            await self._report(failure)
        finally:
            for task in list(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._worker.close()
            beat.cancel()

    async def _pull(self) -> None:
        slots, more = self._worker.slots, True
        while True:
            room, ahead = slots - self._load, 2 * slots - self._load
            if room <= 0 and not (more and ahead > 0):
                self._changed.clear()
                await self._changed.wait()
                continue
            batch = await self._source.pull(self._name, max(0, room), min(slots, max(0, ahead)))
            more = room > 0 or bool(batch)
            if batch is None:
                return
            for proposal in batch:
                self._load += max(1, len(proposal.items))
                task = asyncio.ensure_future(self._carry_out(proposal))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _carry_out(self, proposal: Proposal) -> None:
        held = max(1, len(proposal.items))

        def freed() -> None:
            # By the item: a proposal that waits for its slowest answer must not keep the others' places.
            nonlocal held
            held -= 1
            self._load -= 1
            self._changed.set()

        try:
            trial = await self._worker.run(proposal, freed)
        except Exception as failure:  # fatal: ends the run, not only this proposal
            await self._report(failure)
            return
        finally:
            self._load -= held
            self._changed.set()
        self._outbox.append(trial)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send())
            self._running.add(self._sending)
            self._sending.add_done_callback(self._running.discard)

    async def _send(self) -> None:
        while self._outbox:
            trials, self._outbox = self._outbox, []
            try:
                await self._source.finish(self._name, trials)
            except Exception as failure:  # what was not handed in would be waited for without end
                await self._report(failure)

    async def _report(self, failure: Exception) -> None:
        """Hand a failure to the run's owner, as text where it cannot travel itself."""
        try:
            await self._source.fail(failure)
        except Exception:
            await self._source.fail(EvoclusterError(f"{type(failure).__name__}: {failure}"))
