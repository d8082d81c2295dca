"""Records on this machine's disk, for as long as the database cannot take them: files of JSON lines, 0600.

    append(lines)     at the end of this process's file, synced; one file for `most_bytes`
    claim()           the oldest file that nobody writes or reads: this process's full ones, those of killed ones
    lines(name)       what stands in it; half a line that a kill left is no line
    forget(), leave() it is in the database; it is not

Who writes or reads a file holds its lock, and has it before others can see the file; a kill lets go of it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from evocluster.errors import StoreError
from evocluster.store.files import sync_folder, unwritable, write_whole
from evocluster.telemetry import log

END = ".jsonl"


class Journal:
    """A folder of them; for one thread at a time."""

    def __init__(self, folder: Path, name: Callable[[], str], most_bytes: int = 16 * 2**20) -> None:
        """`name`: a new name of a file, in the order of time, that no other process gives. Raises: StoreError."""
        self.folder, self._name, self.most_bytes = folder, name, most_bytes
        self._handle, self._claim, self._path, self._size = -1, -1, folder, 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    def append(self, lines: Sequence[str]) -> None:
        """Write all of them or none, each one line of JSON. Raises: StoreError: disk full, say."""
        payload = "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")
        try:
            if self._handle < 0:
                self._open()
            write_whole(self._handle, payload, self._size)
            self._size += len(payload)
            os.fsync(self._handle)
        except OSError as error:
            raise unwritable(self._path, error) from error
        if self._size >= self.most_bytes:
            self.rest()

    def rest(self) -> None:
        """Let go of this process's file, so that it can be read back."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def claim(self, but: Container[str] = ()) -> str | None:
        """The name of the oldest file that nobody holds, held from now on. Raises: StoreError."""
        self.leave()
        try:
            for path in sorted(self.folder.glob(f"*{END}")):
                if path.name not in but and self._claimed(path):
                    return path.name
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return None

    def leave(self) -> None:
        """Hold the claimed file no more."""
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What stands in a file. Raises: StoreError."""
        try:
            raw = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {str(self.folder / name)!r}: {error.strerror}; make it readable") from error
        told = []
        for number, line in enumerate(raw.split(b"\n"), 1):
            try:
                told += [json.loads(line)] if line else []
            except ValueError:
                log.warning("%s:%d is no whole record and was left out", name, number)
        return told

    def forget(self, name: str) -> None:
        """Remove the claimed file. Raises: StoreError."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.folder / name, error) from error
        finally:
            self.leave()

    def _open(self) -> None:
        self._path, self._size = self.folder / f"{self._name()}{END}", 0
        hidden = self._path.with_suffix(".new")
        handle = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self._path)
            sync_folder(self.folder)
        except OSError:
            os.close(handle)
            raise
        self._handle = handle

    def _claimed(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        if os.fstat(handle).st_nlink == 0:  # whoever held it has read it back
            os.close(handle)
            return False
        self._claim = handle
        return True
