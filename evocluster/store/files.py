"""Files that are whole or absent: atomic writes, whole lines appended, JSON read back, one holder a folder.

Every failure of the disk becomes a StoreError that names the path and the remedy.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged, RunHeld, StoreError


def unwritable(path: Path, error: BaseException) -> StoreError:
    """The error to raise when `path` cannot be written."""
    why = getattr(error, "strerror", None) or error
    return StoreError(
        f"cannot write {str(path)!r}: {why}; what was saved before is intact: "
        "free disk space or make the folder writable, then resume"
    )


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a loss of power. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to write to; it takes the place of `path` when the block ends well.

    Raises: StoreError; `path` is then as it was and nothing is left over.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temp.unlink(missing_ok=True)
            os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))  # never through a link put there
            yield temp
            handle = os.open(temp, os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            temp.replace(path)
            sync_folder(path.parent)
        finally:
            temp.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def write_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file: whatever happens it is the old one or the whole new one. Raises: StoreError."""
    with replacing(path) as temp:
        temp.write_text(text, encoding="utf-8", newline="")


def write_whole(handle: int, payload: bytes, size: int) -> None:
    """Append all of `payload` to an open file of `size` bytes, or leave it as it was. Raises: OSError.

    A short write (disk full, file limit) is taken back, so the file never ends in half a record.
    """
    rest = memoryview(payload)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        os.ftruncate(handle, size)
        raise


def append_line(path: Path, text: str) -> None:
    """Append one line; it survives a kill of the process when this returns (a loss of power may take it).

    A half line left by a crash is closed first, so it never joins with the new one.
    Raises: StoreError; the file is then as it was. ValueError when `text` holds a line break.
    """
    append_lines(path, [text])


def append_lines(path: Path, texts: Sequence[str]) -> None:
    """Append whole lines, all or none; see `append_line`. Raises: StoreError; ValueError."""
    for text in texts:
        if "\n" in text or "\r" in text:
            raise ValueError(f"a line cannot hold a line break: {text[:80]!r}; encode it, e.g. as JSON")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            lines = "".join(f"{text}\n" for text in texts)
            write_whole(handle, b"\n" * torn + lines.encode(), size)
        finally:
            os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error


def read_text(path: Path) -> str:
    """A UTF-8 file of a run folder, byte for byte. Raises: RunDamaged when it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunDamaged(
            f"{str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}): restore it from a copy, or "
            "start a new run in another folder"
        ) from error


def refuse_links(folder: Path) -> None:
    """Raises: RunDamaged where a file in the folder is a symbolic link: writing to it would write somewhere else."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise RunDamaged(
                f"{str(path)!r} is a symbolic link to {str(path.readlink())!r}; a run folder holds files only: "
                "put the file itself there, or remove the link"
            )


def read_json(path: Path) -> Any:
    """The JSON value in a file of a run folder. Raises: RunDamaged when missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = str(error.strerror or error)
    except ValueError as error:
        why = str(error)
    raise RunDamaged(
        f"{str(path)!r} cannot be read as JSON ({why}); it must be a file written by evocluster: "
        "restore it from a copy, or start a new run in another folder"
    )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` alone, by flock on its `.lock`, until the block ends or the process dies.

    Raises: RunHeld naming the holder; StoreError. The file stays: removing it would let two holders in.
    """
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        _take(handle, folder)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        raise RunHeld(
            f"folder {str(folder)!r} is in use by process {holder}: one process at a time may write it; "
            "wait until that process ends, stop it, or choose another folder"
        ) from error
    except OSError as error:
        raise unwritable(folder / ".lock", error) from error
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        raise unwritable(folder / ".lock", error) from error
