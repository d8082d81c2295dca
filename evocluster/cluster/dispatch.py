"""Who works on what: a queue of proposals that workers pull from, with a lease on everything handed out.

A plain class without Ray and without a clock of its own; it becomes part of the population actor at the last moment.
Every call of a worker renews its lease. A worker that dies, or falls silent and is given up, loses what it held to the
others; what it hands in later still counts where nobody was faster, and it gets no work any more (fencing). Calls that
had been answered are in the cache, so carrying a proposal out again pays only what was in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evocluster.cluster.suspects import Suspects
from evocluster.engine.runner import arrived
from evocluster.records import Proposal, Trial
from evocluster.telemetry import log

WAIT_S = 1.0
"""Seconds that a worker's call waits here for work; workers call at least this often."""


@dataclass(frozen=True)
class Report:
    """What a worker says in one call."""

    trials: Sequence[Trial] = ()
    """Carried out."""
    back: Sequence[int] = ()
    """Numbers of proposals it gives back, not begun."""
    room: int = 0
    """Evaluations it can begin now."""
    ahead: int = 0
    """Evaluations it would like to have at hand besides."""
    spare: int = 0
    """Evaluations it has at hand, not begun."""


@dataclass(frozen=True)
class Orders:
    """What a worker is told in answer."""

    work: tuple[Proposal, ...] = ()
    back: int = 0
    """Evaluations to give back out of those at hand, because others idle or because it is to be emptied."""
    slots: int | None = None
    """Evaluations at once from now on; None: as before."""


@dataclass
class _Seated:
    """What is known of one worker."""

    since: float
    seen: float
    room: int = 0
    spare: int = 0
    wanted: int = 0
    """Evaluations it was told to give back in its last orders."""
    leases: dict[int, tuple[Proposal, float]] = field(default_factory=dict)
    """Number -> proposal, and when it was handed out."""
    parked: asyncio.Future[None] | None = None


def loop_time() -> float:
    """Seconds by the running event loop's clock."""
    return asyncio.get_running_loop().time()


class Dispatch:
    """Queue, leases and finished trials. All methods are called from one event loop."""

    def __init__(self, clock: Callable[[], float] = loop_time) -> None:
        self._clock = clock
        self._queue: deque[Proposal] = deque()
        self._workers: dict[str, _Seated] = {}
        self._suspects = Suspects()
        self._alone: deque[Proposal] = deque()
        self._cell: str | None = None
        self._slots: dict[str, int] = {}
        self._retired: set[str] = set()
        self._gone: set[str] = set()
        self._settled: set[int] = set()
        self._done: asyncio.Queue[Trial | Exception] = asyncio.Queue()
        self._closed = False
        self.finished = 0
        """Trials settled so far."""

    # What the run's owner says.

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal; one that was settled is carried out anew, one on a quarantined genome comes back failed."""
        self._settled.discard(proposal.number)
        if not self._refused(proposal):
            self._queue.append(proposal)
            self._wake()

    async def next(self) -> Trial:
        """The next finished trial. Raises: what `fail` was given."""
        outcome = await self._done.get()
        if isinstance(outcome, Exception):
            raise outcome
        self._settled_below(outcome.proposal.number)
        return outcome

    def ready(self) -> list[Trial]:
        """See engine.runner.Runner."""
        return arrived(self._done)

    def recall(self, trial: Trial) -> None:
        """A trial of an earlier sitting: what was quarantined then stays so."""
        self._suspects.recall(trial)

    def share(self, slots: Mapping[str, int]) -> None:
        """How many evaluations at once each worker may have; told with its next orders."""
        self._slots = dict(slots)

    def retire(self, worker: str) -> None:
        """This worker gets no more work, gives back what it has not begun, and is over when the rest is handed in."""
        self._retired.add(worker)
        if self._cell == worker:
            self._cell = None
        self._wake()

    def lost(self, worker: str, preempted: bool = False) -> int:
        """A worker died or is given up: its proposals are queued again in front; returns how many.

        `preempted`: with its node, which accuses nobody. A call of its that still waits here gets nothing any more.
        """
        self._gone.add(worker)
        self._retired.discard(worker)
        one = self._workers.pop(worker, None)
        if self._cell == worker:
            self._cell = None
        if one is None:
            return 0
        self._unpark(one)
        now = self._clock()
        self._suspects.served(now - one.since)
        held = [lease for lease in one.leases.values() if lease[0].number not in self._settled]
        if not preempted:
            self._suspects.death()
        living = sum(now - other.since for other in self._workers.values())
        for proposal, since in sorted(held, key=lambda lease: lease[0].number, reverse=True):
            verdict = "free" if preempted else self._suspects.died(proposal, now - since, len(held) == 1, living)
            if verdict == "alone":
                self._alone.appendleft(proposal)
            elif not self._refused(proposal):
                self._queue.appendleft(proposal)
        self._wake()
        return len(held)

    def fail(self, failure: Exception) -> None:
        """A failure that ends the run: raised from `next`."""
        self._done.put_nowait(failure)

    def close(self) -> None:
        """Tell the workers that it is over."""
        self._closed = True
        self._wake()

    # What the run's owner asks.

    def silent(self, seconds: float) -> list[str]:
        """The workers that have not called for longer than this."""
        now = self._clock()
        return [name for name, one in self._workers.items() if one.parked is None and now - one.seen > seconds]

    def holds(self, worker: str) -> int:
        """Proposals that this worker has on lease."""
        return len(self._workers[worker].leases) if worker in self._workers else 0

    @property
    def queued(self) -> int:
        """Evaluations that nobody holds."""
        return sum(_size(proposal) for proposal in (*self._queue, *self._alone))

    @property
    def at_work(self) -> int:
        """Evaluations on lease: under way, or at hand at a worker."""
        return sum(_size(proposal) for one in self._workers.values() for proposal, _ in one.leases.values())

    # What workers say.

    async def exchange(self, worker: str, report: Report, wait_s: float = WAIT_S) -> Orders | None:
        """Results in, work out. None when it is over for this worker.

        A call that brings nothing and finds nothing waits up to `wait_s` for work; a later call of the same worker
        ends that wait.
        """
        self.finish(worker, report.trials)
        if worker in self._gone:
            return None
        one = self._heard(worker, report)
        orders = self._orders(worker, one, report)
        if orders is not None and not _said(orders) and report.room > 0 and not report.trials and not report.back:
            orders = await self._wait(worker, one, report, wait_s)
        return orders

    async def pull(self, worker: str, room: int, ahead: int = 0, wait_s: float = WAIT_S) -> list[Proposal] | None:
        """Only the work out: see `exchange`."""
        orders = await self.exchange(worker, Report(room=room, ahead=ahead), wait_s)
        return None if orders is None else list(orders.work)

    def finish(self, worker: str, trials: Sequence[Trial]) -> None:
        """Trials a worker carried out; one that another attempt settled already is ignored."""
        one = self._workers.get(worker)
        for trial in trials:
            number = trial.proposal.number
            if one is not None:
                one.leases.pop(number, None)
            self._suspects.acquit(trial.proposal)
            self._settle(trial)
        if trials and self._cell == worker:
            self._leave_cell()

    # How it is dealt.

    async def _wait(self, worker: str, one: _Seated, report: Report, wait_s: float) -> Orders | None:
        """Orders for a worker that has nothing to do, as soon as there are any."""
        until = self._clock() + wait_s
        while True:
            one.parked = asyncio.get_running_loop().create_future()
            parked = one.parked
            try:
                await asyncio.wait({parked}, timeout=max(0.0, until - self._clock()))
            finally:
                ours = one.parked is parked
                if ours:
                    one.parked, one.seen = None, self._clock()
            if worker in self._gone:
                return None
            orders = self._orders(worker, one, report) if ours else Orders()
            if orders is None or _said(orders) or not ours or self._clock() >= until:
                return orders

    def _heard(self, worker: str, report: Report) -> _Seated:
        """Renew the lease, take back what is given back."""
        now = self._clock()
        one = self._workers.setdefault(worker, _Seated(now, now))
        one.seen, one.room, one.spare = now, max(0, report.room), report.spare
        one.wanted = 0
        self._unpark(one, superseded=True)
        back = [one.leases.pop(number)[0] for number in report.back if number in one.leases]
        for proposal in sorted(back, key=lambda proposal: proposal.number, reverse=True):
            if proposal.number not in self._settled and not self._refused(proposal):
                self._queue.appendleft(proposal)
        if back:
            self._wake()
        return one

    def _orders(self, worker: str, one: _Seated, report: Report) -> Orders | None:
        if self._closed:
            return None
        slots = self._slots.get(worker)
        if worker in self._retired:
            one.room = 0
            if one.leases:
                return Orders(back=one.spare, slots=slots)
            self._dismiss(worker, one)
            return None
        if self._in_cell(worker):
            one.room = 0
            return Orders(self._lonely(one), back=one.spare, slots=slots)
        work = self._deal(one, report)
        one.wanted = self._too_much(one) if one.spare else 0
        return Orders(work, one.wanted, slots)

    def _dismiss(self, worker: str, one: _Seated) -> None:
        del self._workers[worker]
        self._gone.add(worker)
        self._retired.discard(worker)
        self._suspects.served(self._clock() - one.since)

    def _deal(self, one: _Seated, report: Report) -> tuple[Proposal, ...]:
        """Work for a worker out of the queue.

        It gets at least one proposal while it has room, and no more than its share of what is left, so that batches
        shrink near the end. Up to `ahead` more, to have at hand, come out of what the other workers had no room for
        when they last asked: what waits at one worker is lost to the others.
        """
        count = len(self._workers)
        left = sum(_size(proposal) for proposal in self._queue)
        share = -(-left // count)
        spare = max(0, left - sum(other.room for other in self._workers.values()))
        limit = min(report.room, max(1, share)) + min(report.ahead, spare // count)
        batch: list[Proposal] = []
        while self._queue:
            size = _size(self._queue[0])
            if size > limit and (batch or report.room <= 0):
                break
            proposal = self._queue.popleft()
            if proposal.number in self._settled or self._refused(proposal):
                continue
            batch.append(proposal)
            limit -= size
        self._lease(one, batch)
        return tuple(batch)

    def _lease(self, one: _Seated, batch: Sequence[Proposal]) -> None:
        now = self._clock()
        one.leases.update({proposal.number: (proposal, now) for proposal in batch})
        one.room = max(0, one.room - sum(_size(proposal) for proposal in batch))

    def _too_much(self, one: _Seated) -> int:
        """Evaluations that a worker has at hand while others that wait here could begin them now."""
        if self._queue:
            return 0
        idle = sum(other.room for other in self._workers.values() if other.parked is not None)
        coming = sum(other.wanted for other in self._workers.values())
        return max(0, min(one.spare, idle - coming))

    # Suspects are carried out alone, one at a time, by a worker that is emptied for it.

    def _in_cell(self, worker: str) -> bool:
        """Whether this worker is the one that carries out suspects now."""
        if self._cell is None and self._alone:
            fit = {name: one for name, one in self._workers.items() if name not in self._retired}
            self._cell = min(fit, key=lambda name: (len(fit[name].leases), name))
            self._unpark(fit[self._cell])
        return worker == self._cell

    def _lonely(self, one: _Seated) -> tuple[Proposal, ...]:
        while self._alone and not one.leases:
            proposal = self._alone.popleft()
            if proposal.number not in self._settled and not self._refused(proposal):
                self._lease(one, [proposal])
                return (proposal,)
        if not one.leases:
            self._leave_cell()
        return ()

    def _leave_cell(self) -> None:
        if not self._alone:
            self._cell = None
            self._wake()

    # The books.

    def _refused(self, proposal: Proposal) -> bool:
        """Settle a proposal on what is quarantined as a failed trial; False where nothing is held against it."""
        text = self._suspects.sentence(proposal)
        if text is None:
            return False
        log.error("proposal %d is not carried out: %s", proposal.number, text)
        self._settle(Trial(proposal=proposal, error=text))
        return True

    def _settle(self, trial: Trial) -> None:
        if trial.proposal.number not in self._settled:
            self._settled.add(trial.proposal.number)
            self.finished += 1
            self._done.put_nowait(trial)

    def _settled_below(self, number: int) -> None:
        """Keep the memory of settled numbers flat: anything far behind cannot come back."""
        if len(self._settled) > 20_000:
            self._settled = {one for one in self._settled if one > number - 10_000}

    def _wake(self) -> None:
        for one in self._workers.values():
            self._unpark(one)

    @staticmethod
    def _unpark(one: _Seated, superseded: bool = False) -> None:
        if one.parked is not None and not one.parked.done():
            one.parked.set_result(None)
        if superseded:
            one.parked = None


def _size(proposal: Proposal) -> int:
    return max(1, len(proposal.items))


def _said(orders: Orders) -> bool:
    return bool(orders.work or orders.back)
