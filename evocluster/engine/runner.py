"""Where proposals run. `LocalRunner` is this process; cluster/ has the one over Ray. Both are the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from evocluster.engine.worker import Worker
from evocluster.llm.client import Cache
from evocluster.records import Proposal, Trial


class Runner(Protocol):
    """Takes proposals, gives trials back in the order they finish. Call order: open, submit and next, close."""

    async def open(self) -> None: ...

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal; returns at once."""
        ...

    async def next(self) -> Trial:
        """The next finished trial. Raises: a fatal error of any worker."""
        ...

    def ready(self) -> list[Trial]:
        """What `next` would give without waiting, in that order; a failure stays for `next` to raise."""
        ...

    async def close(self) -> None:
        """Stop the workers; what is under way is cancelled."""
        ...


def arrived(outcomes: asyncio.Queue[Trial | Exception]) -> list[Trial]:
    """The trials in front of a queue, taken out of it."""
    trials: list[Trial] = []
    while not outcomes.empty():
        outcome = outcomes.get_nowait()
        if isinstance(outcome, Exception):
            outcomes.put_nowait(outcome)
            break
        trials.append(outcome)
    return trials


class LocalRunner:
    """Workers in this process, each proposal given to the one with the least to do."""

    def __init__(self, workers: Sequence[Worker], cache: Cache | None) -> None:
        self._workers = list(workers)
        self._cache = cache
        self._load = [0] * len(self._workers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: asyncio.Queue[Trial | Exception] = asyncio.Queue()

    async def open(self) -> None:
        """Open every worker; when one fails, those already open are closed."""
        opened: list[Worker] = []
        try:
            for worker in self._workers:
                opened.append(worker)
                await worker.open(self._cache)
        except BaseException:
            for worker in opened:
                await worker.close()
            raise

    def submit(self, proposal: Proposal) -> None:
        """Start the proposal on the least loaded worker."""
        index = min(range(len(self._workers)), key=self._load.__getitem__)
        self._load[index] += max(1, len(proposal.items))
        task = asyncio.ensure_future(self._run(index, proposal))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, index: int, proposal: Proposal) -> None:
        try:
            outcome: Trial | Exception = await self._workers[index].run(proposal)
        except Exception as failure:  # handed to whoever awaits next()
            outcome = failure
        self._load[index] -= max(1, len(proposal.items))
        self._done.put_nowait(outcome)

    async def next(self) -> Trial:
        """The next finished trial. Raises: a worker's fatal error."""
        outcome = await self._done.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def ready(self) -> list[Trial]:
        """What has come back already."""
        return arrived(self._done)

    async def close(self) -> None:
        """Cancel what is under way and close the workers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            await worker.close()
