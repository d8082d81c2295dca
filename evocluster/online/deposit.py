"""The thread that puts records into the database, one batch at a time, however long the database takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from evocluster.errors import StoreError
from evocluster.online.ledger import Ledger, Row, add_once


class Kept(NamedTuple):
    """One record on its way."""

    at: float
    """When it came, by the monotonic clock."""
    exchange: Row
    body: Row | None


class Done(NamedTuple):
    """What became of a batch."""

    stored: int
    erased: int
    error: StoreError | None = None
    """Why it was not stored, or not all of it."""
    reached: bool = True
    """The database answered at all."""


class Hand:
    """The thread that talks to the database: one batch at a time, however long that takes."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger, self._clock = ledger, clock
        self._changed = threading.Condition()
        self._given: tuple[Sequence[Kept], str, int] | None = None
        self._done: Done | None = None
        self._ended = False
        self.busy = False
        self.late = False
        """The batch it has in hand has taken longer than its time."""
        threading.Thread(target=self._work, name="evocluster-recorder-hand", daemon=True).start()

    def take(self, batch: Sequence[Kept], patience_s: float) -> bool:
        """Give it a batch; whether it was done within so many seconds."""
        self.give(batch, "", len(batch))
        return self.wait(patience_s)

    def give(self, batch: Sequence[Kept], name: str, size: int) -> None:
        """Give it a batch, of a file of that name, to be written so many at a time."""
        with self._changed:
            self._given, self._done, self.busy = (batch, name, size), None, True
            self._changed.notify_all()

    def wait(self, patience_s: float) -> bool:
        """It is done, within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self.busy, patience_s)
            self.late = self.busy
            return not self.busy

    def done(self) -> Done | None:
        """What became of the batch it has done, once; None before."""
        with self._changed:
            done, self._done = self._done, None
            return done

    def end(self) -> None:
        """It ends when it has nothing in hand; nobody waits for it."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._given is not None or self._ended)
                if self._given is None:
                    return
                (batch, name, size), self._given = self._given, None
            done = self._all(batch, name, size)
            with self._changed:
                self._done, self.busy, self.late = done, False, False
                self._changed.notify_all()

    def _all(self, batch: Sequence[Kept], name: str, size: int) -> Done:
        stored = erased = 0
        reached = not name
        try:
            if name and self._ledger.first("journal_seen", {"name": name}):
                return Done(0, 0)
            reached = True
            for at in range(0, len(batch), max(size, 1)):
                new, gone = self._stored(batch[at : at + size], bool(name))
                stored, erased = stored + new, erased + gone
            if name:
                self._ledger.put("journal_seen", {"name": name, "at": self._clock()})
        except StoreError as error:
            return Done(stored, erased, error, reached)
        except Exception as failure:  # what the library of the database says of a value it cannot hold
            return Done(stored, erased, StoreError(f"{type(failure).__name__}: {failure}"), reached)
        return Done(stored, erased)

    def _stored(self, batch: Sequence[Kept], single: bool) -> tuple[int, int]:
        """See `store`. `single`: one by one where it does not go in as a whole: one bad record stops no other."""
        try:
            return store(self._ledger, batch)
        except Exception:
            if not single or len(batch) < 2:
                raise
        stored = erased = 0
        failures: list[Exception] = []
        for number, one in enumerate(batch):
            try:
                new, gone = store(self._ledger, [one])
                stored, erased = stored + new, erased + gone
            except Exception as failure:
                failures.append(failure)
                if len(failures) > max(2, number // 2):
                    break
        if failures:
            raise failures[0]
        return stored, erased


def store(ledger: Ledger, batch: Sequence[Kept]) -> tuple[int, int]:
    """Write a batch, each request once: (how many were new, how many are of deleted users). Raises: StoreError.

    Asked before and after: one who is deleted in between is gone when this returns, provided that the tombstone is
    written before the rows are deleted.
    """
    dead = _dead(ledger, batch)
    alive = [one for one in batch if one.exchange["request_id"] not in dead]
    # Bodies first: where the second one fails, all is in the journal and is brought back.
    add_once(ledger, "bodies", "request_id", [one.body for one in alive if one.body is not None])
    new = add_once(ledger, "exchanges", "request_id", [one.exchange for one in alive])
    late = _dead(ledger, alive)
    for request in late:
        for table in ("bodies", "exchanges"):
            ledger.delete(table, {"request_id": request})
    return new - len(late), len(dead | late)


def _dead(ledger: Ledger, batch: Iterable[Kept]) -> set[str]:
    """Requests of users who were deleted."""
    users = {str(one.exchange["request_id"]): (one.exchange["deployment"], one.exchange["user"]) for one in batch}
    named = sorted({user for _, user in users.values() if user})
    if not named:
        return set()
    stones = {(row["deployment"], row["user"]) for row in ledger.find("tombstones", {"user": ("in", named)})}
    return {request for request, who in users.items() if who in stones}
