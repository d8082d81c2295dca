"""The trials table: append-only rows that survive a crash, Parquet in the end.

    trials/part-000001.parquet     sealed, zstd, never touched again
    trials/tail-000002.arrows      open, an Arrow IPC stream; one record batch an append, whole or absent
    trials/tail-000002.receipts    digests of those appends, and which of them were acknowledged
    SHA256SUMS                     digests of the parts, in the folder above (where the caller keeps one)

A tail is sealed into the part of the same number (temporary file, fsync, rename) and then removed; a crash in
between leaves both, and the part counts. The table knows columns, not what they mean.

What a kill of the process leaves is recovered: an append that was never acknowledged is cut off. What a loss of power
leaves is recovered with a warning that says how much was lost: appends of the last second, on a machine that has been
booted since. Everything else that does not fit its digest is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from evocluster.errors import RunDamaged, RunExists, StoreError
from evocluster.store import arrow, receipts
from evocluster.store.files import replacing, sync_folder, unwritable, write_whole
from evocluster.store.receipts import Receipts
from evocluster.store.sums import Sums, digest_of
from evocluster.telemetry import log

_FILE = re.compile(r"(part|tail)-(\d{6,})\.(?:parquet|arrows)")
_SYNC_S = 1.0


def _nothing() -> None:
    """The guard of a table that nobody else can write."""


class Table:
    """Rows in the order they were appended. Call order: create or open, any number of append and read, close.

    One process writes at a time (the caller holds the lock of the run folder); `scan` reads beside it.
    """

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, str],
        seal_rows: int,
        clock: Callable[[], float],
        sums: Sums | None,
        guard: Callable[[], None],
    ) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._sums = sums
        self._guard = guard
        self._columns = dict(columns)
        self._seal_rows = seal_rows
        self._clock = clock
        self._number = 1
        self._handle: int | None = None
        self._receipts: Receipts | None = None
        self._broken = False
        self._size = 0
        self._tail_rows = 0
        self._synced = clock()
        self._closed = False
        self.rows = 0
        """Rows appended so far, over all parts and the tail."""
        self.torn_bytes = 0
        """Bytes of a half-written append that `open` cut off; 0 when the table was whole."""
        self.lost = 0
        """Acknowledged appends that a loss of power took, as `open` found."""

    @classmethod
    def create(
        cls,
        folder: Path,
        schema: Mapping[str, str],
        *,
        seal_rows: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
        sums: Sums | None = None,
        guard: Callable[[], None] = _nothing,
    ) -> Table:
        """A new table. `schema`: column name -> "string", "int64", "float64", "bool" or "list<string>".

        `seal_rows`: a tail of so many rows becomes a part; `clock` (seconds) paces the fsyncs; `sums`: the list of
        the folder above, which gets the digests of the parts; `guard`: raises when the table is no longer ours.
        Raises: RunExists when the folder holds a table; StoreError.
        """
        arrow.arrow_schema(schema)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        parts, tails = _numbers(folder)
        if parts or tails:
            raise RunExists(f"{str(folder)!r} already holds a table; open it (resume), or choose another folder")
        return cls(folder, schema, seal_rows, clock, sums, guard)

    @classmethod
    def open(
        cls,
        folder: Path,
        schema: Mapping[str, str],
        *,
        seal_rows: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
        sums: Sums | None = None,
        guard: Callable[[], None] = _nothing,
        fresh: bool = False,
    ) -> Table:
        """The table in `folder`, read whole once, ready to append.

        A half-written last append is cut off and logged (`torn_bytes`). Files of an earlier version, which lack
        the last columns, stay as they are; what is appended has all columns. `fresh`: seal the tail at once, so that
        a writer who does not know that he was replaced appends to a file that nobody reads.
        Raises: RunDamaged when a part or the tail is not what was written, cannot be read whole, one is missing, or
        the schema is another; the folder is then as it was. StoreError when the folder cannot be written.
        """
        table = cls(folder, schema, seal_rows, clock, sums, guard)
        parts, tails = _numbers(folder)
        _check_missing(folder, len(parts), tails, sums)
        for number in parts:
            part = _part(folder, number)
            if sums is not None:
                sums.check(f"{folder.name}/{part.name}")
            table.rows += sum(batch.num_rows for batch in arrow.part_batches(part, table._columns))
        table._number = len(parts) + 1
        try:
            if table._number in tails:
                table._recover()
            table._tidy()
            if fresh:
                table._seal()
        except OSError as error:
            raise unwritable(folder, error) from error
        return table

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows as one batch: all of them or none. A missing column is null.

        They survive a kill of the process when this returns; a loss of power may take the last second.
        Raises: StoreError (disk full, a value that does not fit); the rows are then not in the table.
        """
        if self._closed or self._broken:
            why = "is closed" if self._closed else "could not take a failed append back"
            raise StoreError(f"the table {str(self._folder)!r} {why}: nothing can be appended; open it again (resume)")
        self._guard()
        payload = arrow.batch_bytes(rows, self._columns)
        if self._tail_rows >= self._seal_rows:
            self._seal()
        if not rows:
            return
        try:
            if self._handle is None:
                self._begin()
            self._write(payload, sync=self._clock() - self._synced >= _SYNC_S)
        except OSError as error:
            raise unwritable(_tail(self._folder, self._number), error) from error
        self._tail_rows += len(rows)
        self.rows += len(rows)
        self._guard()

    def read(self) -> Iterator[list[dict[str, Any]]]:
        """All rows in the order of their appends, in lists of up to about 1,000 (lists are not appends).

        Raises: RunDamaged.
        """
        return scan(self._folder)

    def close(self) -> None:
        """Seal what is open; the folder is then Parquet only. Again is nothing.

        Raises: StoreError; the rows are then in the tail still, and `open` finds them.
        """
        if self._closed:
            return
        # First, for good: a tail whose part may be there already must not grow any more.
        self._closed = True
        try:
            if not self._broken:  # else `open` finds what is good of the tail
                self._seal()
        finally:
            self._release()

    def leave(self) -> None:
        """Let go of the files as they are, as a kill of the process would."""
        self._closed = True
        self._release()

    def _tidy(self) -> None:
        for temp in sorted(self._folder.glob(".part-*.tmp")):
            temp.unlink()
        sealed = _tail(self._folder, self._number - 1)
        if sealed.exists():
            log.info("table %s: %s was already sealed, removed", self._folder, sealed.name)
        self._remove(self._number - 1)
        if self._handle is None:
            self._remove(self._number)

    def _remove(self, number: int) -> None:
        # The receipts first: alone they would say that a tail was lost.
        _receipts(self._folder, number).unlink(missing_ok=True)
        _tail(self._folder, number).unlink(missing_ok=True)

    def _recover(self) -> None:
        path, beside = _tail(self._folder, self._number), _receipts(self._folder, self._number)
        content = path.read_bytes()
        told = receipts.read(beside) if beside.exists() else None
        # Without receipts it is of an earlier version: what can be read of it counts.
        verdict = receipts.judge(content, told, path) if told is not None else receipts.Verdict(len(content), 1, 0)
        source = pa.BufferReader(content[: verdict.end])
        for batch, end in arrow.tail_batches(source, verdict.end, str(path), self._columns):
            self._tail_rows += batch.num_rows
            self._size = end
        self.torn_bytes, self.lost = len(content) - self._size, verdict.lost
        self._say_torn()
        self.rows += self._tail_rows
        if self._tail_rows == 0:
            self._size = 0
            return
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        os.ftruncate(self._handle, self._size)
        os.fsync(self._handle)
        if told is None:
            receipts.adopt(beside, content[: self._size])
            told = receipts.read(beside)
        self._receipts = Receipts.go_on(beside, told, verdict.receipts)
        if arrow.earlier(path, self._columns):
            self._seal()

    def _say_torn(self) -> None:
        if self.lost:
            log.warning(
                "table %s: the machine went down and took the last %d append(s), which were acknowledged but not yet "
                "synced; what they held is paid again",
                *(self._folder, self.lost),
            )
        elif self.torn_bytes:
            log.warning("table %s: %d bytes of a half-written append cut off", self._folder, self.torn_bytes)

    def _begin(self) -> None:
        path = _tail(self._folder, self._number)
        # Never an existing file: it would be of another writer.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._receipts = Receipts.create(_receipts(self._folder, self._number))
        try:
            self._handle = os.open(path, flags, 0o644)
            self._size = 0
            sync_folder(self._folder)
            self._write(arrow.schema_bytes(self._columns), sync=False)
        except OSError:
            self._release()
            self._remove(self._number)
            raise

    def _write(self, payload: bytes, *, sync: bool) -> None:
        assert self._handle is not None
        assert self._receipts is not None
        self._receipts.begin(self._size, payload)
        try:
            write_whole(self._handle, payload, self._size)
            if sync:
                os.fsync(self._handle)
            self._receipts.done(synced=sync)
        except OSError:
            self._take_back(self._handle, self._receipts)
            raise
        if sync:
            self._synced = self._clock()
        self._size += len(payload)

    def _take_back(self, handle: int, said: Receipts) -> None:
        """Undo a failed append, or write nothing more: `open` then finds that it was never acknowledged."""
        try:
            os.ftruncate(handle, self._size)
            said.take_back()
        except OSError as error:
            self._broken = True
            log.error("table %s: a failed append could not be taken back: %s", self._folder, error)

    def _release(self) -> None:
        handle, self._handle = self._handle, None
        said, self._receipts = self._receipts, None
        if said is not None:
            said.close()
        if handle is not None:
            os.close(handle)

    def _seal(self) -> None:
        path = _tail(self._folder, self._number)
        try:
            if self._tail_rows:
                self._write_part(path)
                self._number += 1
                self._tail_rows = 0
                self._release()
                self._remove(self._number - 1)
            else:
                self._release()
                self._remove(self._number)
        except OSError as error:
            raise unwritable(path, error) from error

    def _write_part(self, path: Path) -> None:
        part, beside = _part(self._folder, self._number), _receipts(self._folder, self._number)
        content = path.read_bytes()
        if receipts.judge(content, receipts.read(beside), path).end != self._size:
            raise arrow.damaged(str(path), "it changed while it was written")
        name = f"{self._folder.name}/{part.name}"
        with replacing(part) as temp:
            arrow.write_part(temp, path.name, content)
            self._guard()
            if self._sums is not None:
                digest = digest_of(temp)
                self._sums.expect(name, digest)
        if self._sums is not None:
            self._sums.settle(name, digest)


def scan(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Every row of a table in order, in lists of up to about 1,000.

    It changes nothing, so it may read beside the writer.
    Raises: RunDamaged.
    """
    _, tails = _numbers(folder)
    sums = Sums.read(folder.parent)
    for number in count(1):
        part = _part(folder, number)
        batches = None if part.exists() else _tail_batches(folder, number)
        if batches is not None:
            yield from (batch.to_pylist() for batch in batches)
        elif part.exists():
            if sums is not None and (name := f"{folder.name}/{part.name}") in sums:
                sums.check(name)  # else it was sealed since
            yield from (batch.to_pylist() for batch in arrow.part_batches(part, None))
        else:
            _check_missing(folder, number - 1, tails, sums)
            return


def check(folder: Path) -> None:
    """Compare a table that nobody writes with its digests, without reading its rows. Raises: RunDamaged."""
    parts, tails = _numbers(folder)
    sums = Sums.read(folder.parent)
    _check_missing(folder, len(parts), tails, sums)
    if sums is not None:
        sums.verify(f"{folder.name}/{_part(folder, number).name}" for number in parts)
    if len(parts) + 1 in tails:
        _tail_batches(folder, len(parts) + 1)


def _tail_batches(folder: Path, number: int) -> Iterator[Any] | None:
    """The acknowledged batches of a tail; None when there is none, or it was sealed this instant."""
    path, beside = _tail(folder, number), _receipts(folder, number)
    try:
        with path.open("rb") as file:
            told = receipts.read(beside) if beside.exists() else None
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise arrow.damaged(str(path), str(error)) from error
    if told is None and _part(folder, number).exists():
        return None
    if told is not None:
        while told.receipts and not told.receipts[-1].kept:
            told.receipts.pop()
        content = content[: told.receipts[-1].end if told.receipts else 0]
        content = content[: receipts.judge(content, told, path).end]
    found = arrow.tail_batches(pa.BufferReader(content), len(content), str(path), None)
    return (batch for batch, _ in found)


def _check_missing(folder: Path, parts: int, tails: Collection[int], sums: Sums | None) -> None:
    """Raises: RunDamaged when a part or a tail is not there that the digests tell of."""
    number = parts + 1
    name = f"{folder.name}/{_part(folder, number).name}"
    if number in tails or _part(folder, number).exists():
        return
    if sums is not None and name in sums:
        raise arrow.damaged(str(_part(folder, number)), "SHA256SUMS lists it, and it is not there")
    beside = _receipts(folder, number)
    try:
        told = receipts.read(beside) if beside.exists() else None
    except FileNotFoundError:  # sealed this instant
        return
    if told is not None and any(receipt.kept for receipt in told.receipts):
        raise arrow.damaged(str(_tail(folder, number)), "its receipts are there, and it is not")


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _tail(folder: Path, number: int) -> Path:
    return folder / f"tail-{number:06d}.arrows"


def _receipts(folder: Path, number: int) -> Path:
    return folder / f"tail-{number:06d}.receipts"


def _numbers(folder: Path) -> tuple[list[int], list[int]]:
    """The numbers of the parts and of the tails, in order. Raises: RunDamaged when a number is missing."""
    found: dict[str, list[int]] = {"part": [], "tail": []}
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise arrow.damaged(str(folder), str(error.strerror or error)) from error
    for name in names:
        if match := _FILE.fullmatch(name):
            found[match[1]].append(int(match[2]))
    parts, tails = sorted(found["part"]), sorted(found["tail"])
    last = len(parts)
    if parts != list(range(1, last + 1)) or not set(tails) <= {last, last + 1}:
        raise RunDamaged(
            f"{str(folder)!r} has parts {parts} and tails {tails}: parts must count from 1 without a gap and "
            "the tail follow them; restore what is missing from a copy, or start a new run in another folder"
        )
    return parts, tails
