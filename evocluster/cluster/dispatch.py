"""Who works on what: a queue of proposals that workers pull from, with a lease on everything handed out.

A plain class; it becomes part of the population actor at the last moment. A worker that dies loses its leases and the
proposals go to another; one that killed `ATTEMPTS` workers is given back as a failed trial (Dask's allowed-failures).
Calls that had been answered are in the cache, so carrying a proposal out again pays only what was in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque

from evocluster.records import Proposal, Trial

ATTEMPTS = 3


class Dispatch:
    """Queue, leases and finished trials. All methods are called from one event loop."""

    def __init__(self) -> None:
        self._queue: deque[Proposal] = deque()
        self._leases: dict[str, dict[int, Proposal]] = {}
        self._deaths: dict[int, int] = {}
        self._settled: set[int] = set()
        self._done: asyncio.Queue[Trial | Exception] = asyncio.Queue()
        self._work = asyncio.Event()
        self._closed = False
        self._gone: set[str] = set()
        self._room: dict[str, int] = {}

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal; one that was settled is carried out anew."""
        self._settled.discard(proposal.number)
        self._queue.append(proposal)
        self._work.set()

    async def pull(self, worker: str, room: int, ahead: int = 0, wait_s: float = 1.0) -> list[Proposal] | None:
        """Work for a worker that can begin `room` more evaluations now; [] when there is none, None when it is over.

        It gets at least one proposal while it has room, and no more than its share of what is left, so that batches
        shrink near the end. Up to `ahead` more, to have at hand, come out of what the other workers had no room for
        when they last asked: what waits at one worker is lost to the others.
        """
        if worker in self._gone:
            return None
        leases = self._leases.setdefault(worker, {})
        self._room[worker] = room
        if not self._queue and not self._closed:
            self._work.clear()
            try:
                await asyncio.wait_for(self._work.wait(), wait_s)
            except TimeoutError:
                return []
        if self._closed or worker in self._gone:
            return None
        left = sum(len(proposal.items) for proposal in self._queue)
        share = -(-left // len(self._leases))
        spare = max(0, left - sum(self._room.values()))
        limit = min(room, max(1, share)) + min(ahead, spare // len(self._leases))
        batch: list[Proposal] = []
        while self._queue:
            size = max(1, len(self._queue[0].items))
            if size > limit and (batch or room <= 0):
                break
            proposal = self._queue.popleft()
            if proposal.number in self._settled:
                continue
            leases[proposal.number] = proposal
            batch.append(proposal)
            limit -= size
        given = sum(len(proposal.items) for proposal in batch)
        self._room[worker] = max(0, room - given)
        return batch

    def finish(self, worker: str, trials: list[Trial]) -> None:
        """Trials a worker carried out; one that another attempt settled already is ignored."""
        for trial in trials:
            number = trial.proposal.number
            self._leases.get(worker, {}).pop(number, None)
            if number not in self._settled:
                self._settled.add(number)
                self._done.put_nowait(trial)

    def fail(self, failure: Exception) -> None:
        """A failure that ends the run: raised from `next`."""
        self._done.put_nowait(failure)

    def lost(self, worker: str) -> int:
        """A worker died: its proposals are queued again in front; returns how many.

        A pull of its that still waits here gets nothing any more.
        """
        self._gone.add(worker)
        leases = self._leases.pop(worker, {})
        self._room.pop(worker, None)
        for proposal in sorted(leases.values(), key=lambda one: one.number, reverse=True):
            if proposal.number in self._settled:
                continue
            self._deaths[proposal.number] = self._deaths.get(proposal.number, 0) + 1
            if self._deaths[proposal.number] >= ATTEMPTS:
                text = f"worker: {ATTEMPTS} worker processes died while carrying this proposal out"
                self.finish(worker, [Trial(proposal=proposal, error=text)])
            else:
                self._queue.appendleft(proposal)
        if self._queue:
            self._work.set()
        return len(leases)

    @property
    def queued(self) -> int:
        """Proposals that wait for a worker."""
        return len(self._queue)

    async def next(self) -> Trial:
        """The next finished trial. Raises: what `fail` was given."""
        outcome = await self._done.get()
        if isinstance(outcome, Exception):
            raise outcome
        self._settled_below(outcome.proposal.number)
        return outcome

    def _settled_below(self, number: int) -> None:
        """Keep the memory of settled numbers flat: anything far behind cannot come back."""
        if len(self._settled) > 20_000:
            self._settled = {one for one in self._settled if one > number - 10_000}

    def close(self) -> None:
        """Tell pulling workers that it is over."""
        self._closed = True
        self._work.set()
