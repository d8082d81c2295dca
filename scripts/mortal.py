"""The run folder of processes that die: the true Folder on a disk that tears, fills up, and forgets nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from faults import Plan
from provider import Books
from virtual import PROCESS, Killed, Process, swapped

from evocluster.engine.folder import Folder, Stored
from evocluster.records import Genome, Trial
from evocluster.store.lease import Lease
from evocluster.store.place import Directory
from evocluster.store.sums import Sums
from evocluster.store.table import Table


class Disk:
    """What the store sees as the module `os`: every write and sync is counted, and may be the last."""

    def __init__(self, books: Books, plan: Plan) -> None:
        self._books = books
        self._deaths = dict(plan.disk_deaths)
        self._full = {first + n for first, count in plan.disk_full for n in range(count)}
        self._rng = Random(f"disk {plan.seed}")
        self.writes = 0
        """Writes and syncs so far."""
        self.killed = False
        """A process died at it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, payload: Any) -> int:
        """See os.write. Raises: OSError where the disk is full; Killed."""
        how = self._next()
        if how == "full":
            self._books.fault("disk full", f"at write {self.writes}")
            if self.writes + 1 in self._full and len(payload) > 1:
                return os.write(handle, payload[: self._rng.randrange(1, len(payload))])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "torn":
            os.write(handle, payload[: self._rng.randrange(len(payload))])
            self._die("torn")
        written = os.write(handle, payload)
        if how == "after":
            self._die("after")
        return written

    def fsync(self, handle: int) -> None:
        """See os.fsync; nothing is lost without it, because only processes die here."""
        how = self._next()
        if how in ("torn", "after"):
            self._die("after a sync")

    def _next(self) -> str:
        process = PROCESS.get()
        if process is not None and not process.alive:
            raise Killed
        self.writes += 1
        how = "full" if self.writes in self._full else self._deaths.pop(self.writes, "")
        if how == "before":
            self._die("before")
        return how

    def _die(self, where: str) -> None:
        process = PROCESS.get()
        if process is not None:
            self._books.fault("driver crash at the disk", f"{where}, write {self.writes}")
            self.killed = True
            self._books.loop.kill(process)


class _Unstarted:
    """A thread that never runs."""

    def __init__(self, **_: object) -> None: ...

    def start(self) -> None:
        """Nothing."""


@contextmanager
def standing_on(disk: Disk, clock: Callable[[], float]) -> Iterator[None]:
    """While it lasts, the store writes to this disk, and run folders are held by this clock."""

    waited_s = 0.0

    def wait(seconds: float) -> None:
        nonlocal waited_s
        waited_s += seconds

    @contextmanager
    def holding(path: Path) -> Iterator[Lease]:
        # Without a thread: `check` beats where that is due. A wait for an earlier holder takes no time of the world.
        process = PROCESS.get()
        lease = Lease(Directory(path), ".lease", "run", clock=lambda: clock() + waited_s, sleep=wait)
        lease.take(alone=True)
        try:
            yield lease
        finally:
            if process is None or process.alive:
                lease.release()

    rooms = {f"evocluster.store.{room}.os": disk for room in ("files", "table", "receipts", "place")}
    with swapped({**rooms, "threading.Thread": _Unstarted, "evocluster.engine.folder.holding": holding}):
        yield


class MortalFolder(Folder):
    """The true folder, held by a process: it lets go when that dies, and then writes nothing any more."""

    books: Books

    def __init__(
        self, path: Path, table: Table, genomes: dict[str, Genome], sums: Sums, lease: Lease, held: ExitStack
    ) -> None:
        super().__init__(path, table, genomes, sums, lease, held)
        process = PROCESS.get()
        assert process is not None
        self._process: Process = process
        self._closed = False
        process.deaths.append(self._let_go)

    def of(self, books: Books, clock: Callable[[], float]) -> MortalFolder:
        """Itself, in a world."""
        self.books = books
        self._table._clock, self._table._synced = clock, clock()
        return self

    @property
    def is_held(self) -> bool:
        """Nobody else may open it: its process lives and has not closed it."""
        return self._process.alive and not self._closed

    def _let_go(self) -> None:
        self._table._release()
        self._held.close()

    def _living(self) -> None:
        if not self._process.alive:
            raise Killed

    def append_many(self, trials: Sequence[Trial]) -> None:
        """See Folder."""
        self._living()
        for trial in trials:
            if trial.proposal.number in self.books.kept:
                self.books.wrong(f"double: trial {trial.proposal.number} is kept a second time")
        super().append_many(trials)
        for trial in trials:
            self.books.kept.add(trial.proposal.number)
            self.books.note(f"kept {trial.proposal.number}")

    def replay(self) -> Iterator[Stored]:
        """See Folder."""
        for stored in super().replay():
            self.books.kept.add(stored.number)
            yield stored

    def write(self, name: str, value: Any) -> None:
        """See Folder."""
        self._living()
        super().write(name, value)

    def close(self) -> None:
        """See Folder."""
        self._living()
        try:
            super().close()
        finally:
            self._closed = True
