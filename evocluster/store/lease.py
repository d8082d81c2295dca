"""Who may write a run: one holder, with an epoch that only grows and a heartbeat.

    lease/000007-ID.claim    somebody wants epoch 7, or has it
    lease/000007-ID.beat     and lives: a count that goes up every third of the lease

flock settles it on one machine. Elsewhere: whoever wants to write takes the next epoch once the holder's beat has
stood still for a whole lease, measured by his own clock. On a folder the claim is an exclusive create, which one
wins. Object storage has no such thing through pyarrow: claims are listed `settle_s` after they were put, and the
first by (last modified, id) has it; LastModified counts in seconds, so the wait is longer than that. Then the epoch
before is looked at once more: if its holder is another by now, or beats again, the claim is withdrawn. Who loses a
claim looks who has it now, and leaves once that one is seen to live.

A holder that was paused (SIGSTOP, swapped out, cut off) past its lease is fenced: `check` finds its own deadline
passed, beats, and looks for a later claim before anything more is written or acknowledged.

LastModified is of some moment while the put was under way. One that took long could therefore win a claim that was
settled already: such a claim is withdrawn by who made it, whatever the listing says.

Limits: a pause exactly between `check` and the system call
that follows lets that one write through: the caller looks again before it acknowledges it, and a new holder begins
new files, so that no reader takes it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from evocluster.errors import RunHeld, StoreError
from evocluster.store.place import Directory, Place
from evocluster.store.receipts import boot
from evocluster.telemetry import log

LEASE_S = 15.0
"""How long a holder that gives no sign of life keeps others out."""
SETTLE_S = 2.5
"""How long a claim on object storage waits for those that came at the same time: LastModified counts in seconds."""
_PROMPT = 0.4
"""Of `settle_s`: the longest that putting a claim may take; with the second of LastModified, less than the whole."""
_ATTEMPTS = 5
_NAME = re.compile(r"\d{6,}-[0-9a-f]+")


class Lease:
    """Call order: `take`, `check` before a write and before it is acknowledged, `release`. Threads may share it."""

    def __init__(
        self,
        place: Place,
        folder: str,
        run: str,
        *,
        lease_s: float = LEASE_S,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`folder` of the place is the lease's own; `run` is for messages."""
        self._place = place
        self._folder = folder
        self._run = run
        self._lease_s = lease_s
        self._settle_s = 0.0 if place.exclusive else settle_s
        self._clock = clock
        self._sleep = sleep
        self._id = uuid4().hex[:12]
        self._host = socket.gethostname()
        self._count = 0
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._lost: RunHeld | None = None
        self._slowest = 0.0
        self._over = threading.Event()
        self.epoch = 0
        """Grows with every holder."""
        self.doubtful = False
        """The holder before may live on without knowing that it was replaced."""

    def take(self, *, alone: bool = False) -> None:
        """Become the holder. `alone`: no other process of this machine can hold it (flock).

        Waits for a lease, and for another one each time a rival came in between who then gave no sign of life.
        Raises: RunHeld when somebody else is the holder; StoreError.
        """
        before = next((epoch for _ in range(_ATTEMPTS) if (epoch := self._try(alone)) is not None), None)
        if before is None:
            if self._slowest:
                raise StoreError(
                    f"the storage of the run {self._run!r} took {self._slowest:.1f} s to keep a file of some bytes, "
                    f"and who writes first cannot be told there from {_PROMPT * self._settle_s:g} s on; try again when "
                    "it is less busy"
                )
            raise self._held(self._read_beat(*self._top()))
        for name in self._place.names(self._folder):
            if int(name.rpartition("/")[2].partition("-")[0]) < before:
                self._place.delete(name)
        threading.Thread(target=self._keep, name="evocluster-lease", daemon=True).start()

    def _try(self, alone: bool) -> int | None:
        """The epoch that was before ours; None when a rival came in between. Raises: RunHeld when the holder lives."""
        epoch, holder = self._top()
        beat = self._read_beat(epoch, holder) if holder else None
        if beat is not None and not self._gone(beat, alone):
            beat = self._watch(epoch, str(holder), beat)
            self.doubtful = True
            if self._top() != (epoch, holder):
                return None
        self.epoch = epoch + 1
        # Before the claim: of a process that dies right after it, the next one can tell that it is gone.
        self._place.put(self._mine("beat"), self._sign())
        if not self._claim():
            self._place.delete(self._mine("beat"))
            return None
        if self._top(self.epoch) != (epoch, holder) or (beat is not None and self._read_beat(epoch, holder) != beat):
            self._withdraw()
            return None
        try:
            self._beat()
        except RunHeld:
            self._withdraw()
            self._lost = None
            return None
        return epoch

    def check(self) -> None:
        """Raises: RunHeld when this process is the holder no more; StoreError when that cannot be found out."""
        if self._lost is not None:
            raise self._lost
        if self._clock() >= self._deadline:
            self._beat()

    def release(self) -> None:
        """Let it go; somebody else may take it at once."""
        self._over.set()
        if self._lost is None and self.epoch:
            try:
                with self._lock:
                    self._place.put(self._mine("beat"), self._sign(released=True))
            except StoreError as error:
                log.warning("the lease of %s was not given back, it runs out by itself: %s", self._run, error)

    def _keep(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                self._beat()
            except RunHeld:
                return  # check raises it where it matters
            except StoreError as error:
                log.warning("the lease of %s could not be renewed: %s", self._run, error)

    def _beat(self) -> None:
        with self._lock:
            if self._over.is_set():
                return
            started = self._clock()
            self._count += 1
            self._place.put(self._mine("beat"), self._sign())
            epoch, holder = self._top()
            if (epoch, holder) != (self.epoch, self._id):
                self._lost = self._held(self._read_beat(epoch, holder), "after this process gave no sign of life")
                raise self._lost
            self._deadline = started + self._lease_s * 0.8

    def _claim(self) -> bool:
        """Whether the epoch is ours."""
        if self._place.exclusive:
            # One name for all: only one can create it.
            if not self._place.create(f"{self._folder}/{self.epoch:06d}-0.claim", self._id.encode()):
                return False
        else:
            started = self._clock()
            self._place.put(self._mine("claim"), self._id.encode())
            took = self._clock() - started
            if took > _PROMPT * self._settle_s:
                self._slowest = max(self._slowest, took)
                self._place.delete(self._mine("claim"))
                return False
            self._sleep(self._settle_s)
        if self._top() == (self.epoch, self._id):
            return True
        self._place.delete(self._mine("claim"))
        return False

    def _withdraw(self) -> None:
        self._place.delete(self._mine("claim"))
        self._place.delete(self._mine("beat"))

    def _top(self, below: int = sys.maxsize) -> tuple[int, str | None]:
        """The highest epoch, or the highest `below` one, and who has it."""
        claims = [
            (-epoch, modified, stem.partition("-")[2])
            for name, modified in self._place.names(self._folder).items()
            if name.endswith(".claim") and _NAME.fullmatch(stem := name.rpartition("/")[2].removesuffix(".claim"))
            if (epoch := int(stem.partition("-")[0])) < below
        ]
        if not claims:
            return 0, None
        epoch, _, holder = min(claims)
        if self._place.exclusive:
            holder = (self._place.read(f"{self._folder}/{-epoch:06d}-0.claim") or b"").decode()
        return -epoch, holder

    def _watch(self, epoch: int, holder: str, beat: dict[str, Any]) -> dict[str, Any]:
        """Wait until a whole lease has passed without a beat. Raises: RunHeld."""
        log.warning("%s may still be held by %s: watching for %g s", self._run, _who(beat), self._lease_s)
        until = self._clock() + self._lease_s
        while self._clock() < until:
            self._sleep(min(1.0, self._lease_s / 10))
            now = self._read_beat(epoch, holder)
            if now is not None and now.get("released"):
                return now
            if now != beat:
                raise self._held(now)
        return beat

    def _gone(self, beat: dict[str, Any], alone: bool) -> bool:
        """Whether the holder let it go, or surely lives no more."""
        if beat.get("released"):
            return True
        if (beat.get("host"), beat.get("boot")) != (self._host, boot()):
            return False
        return alone or not _lives(int(beat.get("pid", 0)))

    def _read_beat(self, epoch: int, holder: str | None) -> dict[str, Any] | None:
        content = self._place.read(f"{self._folder}/{epoch:06d}-{holder}.beat")
        try:
            found = json.loads(content) if content is not None else {"holder": holder}
        except ValueError:
            return {"holder": holder}
        return found if isinstance(found, dict) else {"holder": holder}

    def _sign(self, *, released: bool = False) -> bytes:
        told = {"holder": self._id, "epoch": self.epoch, "host": self._host, "boot": boot()}
        return json.dumps({**told, "pid": os.getpid(), "count": self._count, "released": released}).encode()

    def _mine(self, kind: str) -> str:
        last = "0" if kind == "claim" and self._place.exclusive else self._id
        return f"{self._folder}/{self.epoch:06d}-{last}.{kind}"

    def _held(self, beat: dict[str, Any] | None, since: str = "") -> RunHeld:
        return RunHeld(
            f"the run {self._run!r} is in use by {_who(beat or {})}{f', {since}' if since else ''}: one process at a "
            "time may write it, and what this one did not finish is not kept; wait until that process ends, stop it, "
            "or choose another folder"
        )


@contextmanager
def holding(path: Path) -> Iterator[Lease]:
    """The lease of a local or shared folder, of which this process holds the flock. Raises: RunHeld, StoreError."""
    lease = Lease(Directory(path), ".lease", str(path), lease_s=LEASE_S)
    lease.take(alone=True)
    try:
        yield lease
    finally:
        lease.release()


def _who(beat: dict[str, Any]) -> str:
    if "pid" not in beat:
        return "another process"
    return f"process {beat['pid']} on {beat['host']}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
