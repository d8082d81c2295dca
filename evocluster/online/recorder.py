"""Who writes down what was served: scrubbed, in batches, without anybody waiting for it.

    recorder = Recorder(ledger, scrubber, settings, journal_folder)
    recorder.record(exchange, input, output, error, user)     from any thread; never blocks, never raises
    recorder.close()                                          writes what is left

A record is scrubbed before it enters the queue. One thread takes batches of it; another one hands them to the database,
and where that has no answer within its part of `linger_ms`, the batch goes to a journal on this machine's disk, as do
records that the queue has no place for. So a record is on a disk `linger_ms` after it came, whatever the database does,
and a kill takes younger ones only. The journal is read back once the database answers: records are known by their
request, files by their name (`journal_seen`), so nothing is written twice. Records of users who were deleted are not
written.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from evocluster.errors import StoreError
from evocluster.online.deposit import Hand, Kept
from evocluster.online.journal import Journal
from evocluster.online.ledger import Ledger, Row
from evocluster.online.scrub import Scrubbed, Scrubber
from evocluster.records import Json
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Recording
from evocluster.telemetry import counts, log

COLLECT, PATIENCE = 0.3, 0.3
"""Of `linger_ms`: collecting a batch, and waiting for the database; the rest is for the journal."""
REREAD = 10
"""Times `retry_s`: until the journal is looked at again for files of others, and one that was not taken is retried."""
COUNTED = ("recorded", "journalled", "dropped", "scrub_failures", "erased")
"""recorded: in the database; journalled: written to the journal, whatever became of it then; dropped: lost, nothing
could take them; scrub_failures: kept without bodies; erased: of users who were deleted, not kept."""


class Recorder:
    """Records exchanges; counts what becomes of them."""

    def __init__(
        self,
        ledger: Ledger,
        scrubber: Scrubber,
        settings: Recording,
        journal: Path,
        *,
        retry_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`journal`: a folder on this machine; several processes may share it. `retry_s`: between two attempts at a
        database that failed. Raises: StoreError: the folder cannot be made."""
        self.settings, self.scrubber, self.retry_s = settings, scrubber, retry_s
        self.counters = dict.fromkeys(COUNTED, 0)
        self._journal = Journal(journal, lambda: f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}")
        self._hand = Hand(ledger, clock)
        self._queue: deque[Kept] = deque()
        self._spilled: deque[Kept] = deque()
        """What the queue has no place for, on its way to the journal."""
        self._changed = threading.Condition()
        self._closing = False
        self._failed_at = -retry_s
        self._look_at = 0.0
        """When the journal is looked at for files to be read back, by the monotonic clock."""
        self._unread: dict[str, float] = {}
        """Files that the database did not take, and when they are tried again."""
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="evocluster-recorder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records in the queue."""
        return len(self._queue) + len(self._spilled)

    @property
    def away(self) -> bool:
        """The database did not take the last batch."""
        return self._failed_at > 0 or self._hand.late

    def record(self, exchange: Exchange, input: Json, output: str, error: str = "", user: str = "") -> None:
        """Keep a request and what became of it. `error`, `user` and `redaction_version` of `exchange` are filled in
        here; its `intent` and `signals` come from the caller and are scrubbed too."""
        try:
            kept = self._scrubbed(exchange, input, output, error, user)
        except Exception as failure:  # the caller has its answer already; a record is not worth another one
            log.error("a request was not recorded: %s", type(failure).__name__)
            self._count("dropped")
            return
        with self._changed:
            if self._closing:
                self._count("dropped")
            elif len(self._queue) < self.settings.queue:
                self._queue.append(kept)
            elif len(self._spilled) < self.settings.queue:
                self._spilled.append(kept)
            else:
                self._count("dropped")
            if len(self._queue) in (1, self.settings.batch) or self._spilled:
                self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is left, to the journal where the database does not take it; may be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("recording did not end within %g s; %d records are not on any disk", timeout_s, self.waiting)

    def _scrubbed(self, exchange: Exchange, input: Json, output: str, error: str, user: str) -> Kept:
        told = self.scrubber.scrub(input if self.settings.bodies else None, output, error, user)
        row = exchange.model_dump(mode="json")
        row |= {"error": told.error, "user": told.user_hash, "redaction_version": told.version}
        dropped = told.dropped
        if exchange.intent or exchange.signals:  # most callers say neither
            said = self.scrubber.scrub({"intent": exchange.intent, "signals": dict(exchange.signals)}, "")
            row |= said.input or {"intent": "", "signals": {}}
            dropped = dropped or said.dropped
        if dropped:
            self._count("scrub_failures")
        body = self._body(exchange, told) if self.settings.bodies and not told.dropped else None
        return Kept(time.monotonic(), row, body)

    def _body(self, exchange: Exchange, told: Scrubbed) -> Row:
        return {
            "request_id": exchange.request_id,
            "deployment": exchange.deployment,
            "user": told.user_hash,
            "input": told.input,
            "output": told.output,
            "at": exchange.at,
        }

    def _count(self, name: str, by: int = 1) -> None:
        with self._counting:
            self.counters[name] += by
            counts[f"recorder_{name}"] += by

    def _work(self) -> None:
        last = False
        while not last:
            batch, spilled, last = self._taken()
            try:
                self._keep(spilled, journalled=True)
                self._keep(batch)
                self._read_back()
            except Exception as failure:  # whatever it is, the next batch is written
                log.exception("a batch of %d records was lost: %s", len(batch) + len(spilled), failure)
                self._count("dropped", len(batch) + len(spilled))
        self._hand.end()
        self._journal.leave()
        self._journal.rest()

    def _taken(self) -> tuple[list[Kept], list[Kept], bool]:
        """(a batch, what goes to the journal, whether it is the last one); waits for them."""
        linger = self.settings.linger_ms / 1e3 * COLLECT
        with self._changed:
            if not self._queue and not self._closing:
                self._changed.wait(min(max(self._look_at - time.monotonic(), linger), self.retry_s))
            while self._queue and not self._full():
                left = self._queue[0].at + linger - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            size = min(self.settings.batch, len(self._queue))
            batch = [self._queue.popleft() for _ in range(size)]
            spilled = list(self._spilled)
            self._spilled.clear()
            return batch, spilled, self._closing and not self._queue

    def _full(self) -> bool:
        return bool(len(self._queue) >= self.settings.batch or self._spilled or self._closing)

    def _keep(self, batch: Sequence[Kept], journalled: bool = False) -> None:
        """Put a batch into the database, or into the journal where that has no answer in its time."""
        if not batch:
            return
        if journalled or not self._ready() or not self._handed(batch):
            try:
                self._journal.append([_line(one) for one in batch])
            except StoreError as error:
                log.error("%d records were lost: %s", len(batch), error)
                self._count("dropped", len(batch))
            else:
                self._count("journalled", len(batch))
                self._look_at = 0.0

    def _ready(self) -> bool:
        self._settle()
        return not self._hand.busy and time.monotonic() >= self._failed_at + self.retry_s

    def _handed(self, batch: Sequence[Kept]) -> bool:
        """The database has taken the batch, and said so within its time."""
        return self._hand.take(batch, self.settings.linger_ms / 1e3 * PATIENCE) and self._settle()

    def _settle(self, reading: bool = False) -> bool:
        """Count what the hand has done since it was looked at last; whether it went well. `reading`: a file, whose
        failure says nothing of other records."""
        done = self._hand.done()
        if done is None:
            return not self._hand.busy
        self._count("recorded", done.stored)
        self._count("erased", done.erased)
        if done.error is None:
            self._failed_at = -self.retry_s
            return True
        if not self.away or (reading and done.reached):
            log.warning("the database does not take records, they stay in the journal: %s", done.error)
        if not reading or not done.reached:
            self._failed_at = time.monotonic()
        return False

    def _read_back(self) -> None:
        """Bring one file of the journal back, where there is one."""
        now = time.monotonic()
        self._unread = {name: until for name, until in self._unread.items() if until > now}
        if now < self._look_at or not self._ready():
            return
        self._journal.rest()
        try:
            name = self._journal.claim(self._unread)
            if name is None:
                self._look_at = now + REREAD * self.retry_s
            else:
                self._back(name)
        except StoreError as error:
            log.warning("the journal was not read back: %s", error)
            self._look_at = now + REREAD * self.retry_s

    def _back(self, name: str) -> None:
        """Bring this file back; what grows old meanwhile goes to another one. Raises: StoreError."""
        lines = [Kept(0.0, line["exchange"], line["body"]) for line in self._journal.lines(name)]
        self._hand.give(lines, name, self.settings.batch)
        while not self._hand.wait(self.settings.linger_ms / 1e3 * PATIENCE):
            self._keep(self._old(), journalled=True)
            if self._closing and not self.waiting:
                return
        if self._settle(reading=True):
            self._journal.forget(name)
        elif self._failed_at < 0:
            self._unread[name] = time.monotonic() + REREAD * self.retry_s

    def _old(self) -> list[Kept]:
        """Records that wait for longer than a batch is collected."""
        before = time.monotonic() - self.settings.linger_ms / 1e3 * COLLECT
        with self._changed:
            old = list(self._spilled)
            self._spilled.clear()
            while self._queue and (self._queue[0].at <= before or self._closing):
                old.append(self._queue.popleft())
            return old


def _line(kept: Kept) -> str:
    return json.dumps({"exchange": kept.exchange, "body": kept.body}, ensure_ascii=False, separators=(",", ":"))
