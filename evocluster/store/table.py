"""The trials table: append-only rows that survive a crash, Parquet in the end.

    trials/part-000001.parquet     sealed, zstd, never touched again
    trials/tail-000002.arrows      open, an Arrow IPC stream; one record batch an append, whole or absent

A tail is sealed into the part of the same number (temporary file, fsync, rename) and then removed; a crash in
between leaves both, and the part counts. The table knows columns, not what they mean.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from evocluster.errors import RunDamaged, RunExists, StoreError
from evocluster.store import arrow
from evocluster.store.files import replacing, sync_folder, unwritable, write_whole
from evocluster.telemetry import log

_FILE = re.compile(r"(part|tail)-(\d{6,})\.(?:parquet|arrows)")
_SYNC_S = 1.0


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
    ) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._columns = dict(columns)
        self._seal_rows = seal_rows
        self._clock = clock
        self._number = 1
        self._handle: int | None = None
        self._size = 0
        self._tail_rows = 0
        self._synced = clock()
        self._closed = False
        self.rows = 0
        """Rows appended so far, over all parts and the tail."""
        self.torn_bytes = 0
        """Bytes of a half-written append that `open` cut off; 0 when the table was whole."""

    @classmethod
    def create(
        cls,
        folder: Path,
        schema: Mapping[str, str],
        *,
        seal_rows: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> Table:
        """A new table. `schema`: column name -> "string", "int64", "float64", "bool" or "list<string>".

        `seal_rows`: a tail of so many rows becomes a part; `clock` (seconds) paces the fsyncs.
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
        return cls(folder, schema, seal_rows, clock)

    @classmethod
    def open(
        cls,
        folder: Path,
        schema: Mapping[str, str],
        *,
        seal_rows: int = 20_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> Table:
        """The table in `folder`, read whole once, ready to append.

        A half-written last append is cut off and logged (`torn_bytes`). Files of an earlier version, which lack
        the last columns, stay as they are; what is appended has all columns.
        Raises: RunDamaged when a part or the tail cannot be read whole, one is missing, or the schema is
        another; StoreError when the folder cannot be written.
        """
        table = cls(folder, schema, seal_rows, clock)
        parts, tails = _numbers(folder)
        for number in parts:
            table.rows += sum(batch.num_rows for batch in arrow.part_batches(_part(folder, number), table._columns))
        table._number = len(parts) + 1
        try:
            table._tidy()
            if table._number in tails:
                table._recover()
        except OSError as error:
            raise unwritable(folder, error) from error
        return table

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows as one batch: all of them or none. A missing column is null.

        They survive a kill of the process when this returns; a loss of power may take the last second.
        Raises: StoreError (disk full, a value that does not fit); the rows are then not in the table.
        """
        if self._closed:
            raise StoreError(f"the table {str(self._folder)!r} is closed: nothing can be appended; open it again")
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
            self._seal()
        finally:
            self._release()

    def _tidy(self) -> None:
        for temp in self._folder.glob(".part-*.tmp"):
            temp.unlink()
        sealed = _tail(self._folder, self._number - 1)
        if sealed.exists():
            log.info("table %s: %s was already sealed, removed", self._folder, sealed.name)
            sealed.unlink()

    def _recover(self) -> None:
        path = _tail(self._folder, self._number)
        size = path.stat().st_size
        with pa.OSFile(str(path)) as source:
            for batch, end in arrow.tail_batches(source, size, str(path), self._columns):
                self._tail_rows += batch.num_rows
                self._size = end
        self.torn_bytes = size - self._size
        if self.torn_bytes:
            log.warning("table %s: %d bytes of a half-written append cut off", self._folder, self.torn_bytes)
        self.rows += self._tail_rows
        if self._tail_rows == 0:
            self._size = 0
            path.unlink()
            return
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        os.ftruncate(self._handle, self._size)
        os.fsync(self._handle)
        if arrow.earlier(path, self._columns):
            self._seal()

    def _begin(self) -> None:
        path = _tail(self._folder, self._number)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC
        self._handle = os.open(path, flags, 0o644)
        self._size = 0
        try:
            sync_folder(self._folder)
            self._write(arrow.schema_bytes(self._columns), sync=False)
        except OSError:
            self._release()
            raise

    def _write(self, payload: bytes, *, sync: bool) -> None:
        assert self._handle is not None
        write_whole(self._handle, payload, self._size)
        if sync:
            try:
                os.fsync(self._handle)
            except OSError:
                os.ftruncate(self._handle, self._size)
                raise
            self._synced = self._clock()
        self._size += len(payload)

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _seal(self) -> None:
        path = _tail(self._folder, self._number)
        if self._tail_rows:
            with replacing(_part(self._folder, self._number)) as temp:
                arrow.write_part(temp, path)
            self._number += 1
            self._tail_rows = 0
        self._release()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error


def scan(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Every row of a table in order, in lists of up to about 1,000.

    It changes nothing, so it may read beside the writer.
    Raises: RunDamaged.
    """
    _numbers(folder)
    for number in count(1):
        tail = None if _part(folder, number).exists() else _open_tail(_tail(folder, number))
        if tail is not None:
            with tail:
                for batch, _ in arrow.tail_batches(tail, tail.size(), str(_tail(folder, number)), None):
                    yield batch.to_pylist()
        elif _part(folder, number).exists():
            for batch in arrow.part_batches(_part(folder, number), None):
                yield batch.to_pylist()
        else:
            return


def _open_tail(path: Path) -> Any:
    try:
        return pa.OSFile(str(path))
    except FileNotFoundError:  # none, or sealed this instant
        return None
    except OSError as error:
        raise arrow.damaged(str(path), str(error)) from error


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _tail(folder: Path, number: int) -> Path:
    return folder / f"tail-{number:06d}.arrows"


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
