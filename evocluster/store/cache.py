"""Texts by key on disk, made to be trusted: diskcache without its pickle, its eviction and its files.

diskcache 5.6.3 unpickles whatever a row says is a pickle, `JSONDisk` included (CVE-2025-69872), and evicts at
1 GiB by default. Here a row is bytes in SQLite or it is refused, every value carries a digest of its key and
itself, nothing is ever evicted, and the folder belongs to its owner alone. SQLite's WAL journal needs a local
file system.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import diskcache

from evocluster.errors import StoreError
from evocluster.store.files import unwritable, write_atomic
from evocluster.telemetry import log

FORMAT = {"format": "evocluster-cache", "version": 1}
"""What `format.json` in the folder must say."""

_MODE_RAW = 1
_DIGEST = 16
_CHUNK = 500
_TIMEOUT_S = 30.0
_INSERT = """
INSERT INTO Cache(key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)
VALUES (?, 1, ?, NULL, ?, 0, NULL, 0, ?, NULL, ?)
"""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """Rows of bytes under text keys, inside the database; every other row is refused, never decoded.

    Raises: StoreError.
    """

    def put(self, key: Any) -> tuple[str, bool]:
        if type(key) is not str:
            raise _foreign(f"key {key!r}", "a text")
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        if not raw or type(key) is not str:
            raise _foreign(f"a key of raw={raw!r}", "a text key with raw=1")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, Any]:
        if read or type(value) is not bytes:
            raise _foreign(f"a value of type {type(value).__name__!r}", "bytes")
        return 0, _MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: bool) -> bytes:
        if read or mode != _MODE_RAW or filename is not None or type(value) is not bytes:
            raise _foreign(f"a row of mode {mode!r} with file {filename!r}", "bytes inside the database (mode 1)")
        return value

    def remove(self, file_path: Any) -> None:
        raise _foreign(f"a row with file {file_path!r}", "bytes inside the database (mode 1)")


class DiskCache:
    """A persistent map of texts, batched; synchronous (100 keys in about 2 ms). One thread uses it at a time.

    Call order: construct, any number of get_many and put_many, close. Several processes may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: StoreError when the folder cannot be written, is damaged or holds another format."""
        self._folder = folder
        self._counts = {"hits": 0, "misses": 0, "puts": 0, "corrupt": 0}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise unwritable(folder, error) from error
        _check_format(folder)
        try:
            self._cache: Any = diskcache.Cache(
                str(folder),
                timeout=_TIMEOUT_S,
                disk=BytesDisk,
                eviction_policy="none",
                size_limit=2**62,
                cull_limit=0,
                statistics=0,
                sqlite_auto_vacuum=0,
            )
        except (sqlite3.Error, diskcache.Timeout, OSError, TypeError) as error:
            raise self._failed(error) from error

    def get_many(self, keys: Sequence[str]) -> list[str | None]:
        """The text of each key, None where there is none.

        A value that fails its digest is removed, logged, counted, and taken for none.
        Raises: StoreError when a row was not written by this class, or the database cannot be read.
        """
        found: dict[str, str] = {}
        with self._guard():
            for start in range(0, len(keys), _CHUNK):
                found.update(self._select(list(keys[start : start + _CHUNK])))
        values = [found.get(key) for key in keys]
        misses = values.count(None)
        self._counts["hits"] += len(values) - misses
        self._counts["misses"] += misses
        return values

    def put_many(self, items: Mapping[str, str]) -> None:
        """Store all or none, in one transaction; survives a kill of the process when it returns.

        A loss of power may take the last ones, never the whole (SQLite WAL, synchronous=NORMAL).
        Raises: StoreError, e.g. disk full; the cache is then as it was.
        """
        sealed = {key: _seal(key, text) for key, text in items.items()}
        with self._guard(), self._cache.transact():
            there = self._there(list(sealed))
            now = time.time()
            self._insert([(key, now, now, _MODE_RAW, payload) for key, payload in sealed.items() if key not in there])
            for key in there:
                self._cache.set(key, sealed[key])
        self._counts["puts"] += len(sealed)

    def stats(self) -> dict[str, int]:
        """hits, misses, puts and corrupt since construction; rows now on disk."""
        with self._guard():
            return {**self._counts, "rows": len(self._cache)}

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        with self._guard():
            self._cache.close()

    def _insert(self, rows: Sequence[tuple[str, float, float, int, bytes]]) -> None:
        """As `Cache.set` does for a new key, but for all of them at once: in half the time."""
        self._cache._con.executemany(_INSERT, rows)

    def _there(self, keys: Sequence[str]) -> set[str]:
        """Those that have a row."""
        found: set[str] = set()
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._cache._sql(f"SELECT key FROM Cache WHERE raw = 1 AND key IN ({marks})", part)
            found.update(key for (key,) in rows)
        return found

    def _select(self, keys: list[str]) -> Iterator[tuple[str, str]]:
        # One SELECT for many keys is 3 times as fast as `Cache.get` in a loop. `_sql` is private:
        # diskcache is pinned to the version this was written for.
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, mode, filename, value FROM Cache WHERE raw = 1 AND key IN ({marks})"
        for key, mode, filename, value in self._cache._sql(query, keys).fetchall():
            payload = self._cache.disk.fetch(mode, filename, value, False)
            text = _unseal(key, payload)
            if text is None:
                self._discard(key, payload)
            else:
                yield key, text

    def _discard(self, key: str, payload: bytes) -> None:
        self._counts["corrupt"] += 1
        log.warning("cache %s: entry %s failed its digest; removed, it will be asked again", self._folder, key)
        with self._cache.transact():
            # Only the damaged value: another process may have put a good one since.
            self._cache._sql("DELETE FROM Cache WHERE raw = 1 AND key = ? AND value = ?", (key, payload))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, diskcache.Timeout, OSError) as error:
            # A transaction that failed to commit must not stay open: the next call opens a new connection.
            self._cache.close()
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> StoreError:
        if isinstance(error, diskcache.Timeout):
            why = f"not writable, or locked by another process for {_TIMEOUT_S:g} s"
        else:
            why = str(error)
        return StoreError(
            f"the cache {str(self._folder)!r} failed: {why}; it needs a writable local folder with free "
            "space. If the database is malformed, move the folder away to start with an empty cache"
        )


def _foreign(what: str, allowed: str) -> StoreError:
    return StoreError(
        f"the cache refuses {what}: only {allowed} is allowed; the folder was changed by something else: "
        "move it away to start an empty one"
    )


def _check_format(folder: Path) -> None:
    path = folder / "format.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        ours = told == FORMAT or (told is None and not (folder / "cache.db").exists())
    except (OSError, ValueError) as error:
        told, ours = str(error), False
    if not ours:
        raise StoreError(
            f"the folder {str(folder)!r} is not a cache this version can read: format {told!r}, "
            f"allowed {FORMAT!r}; choose another folder, or use the version that wrote it"
        )
    if told is None:
        write_atomic(path, json.dumps(FORMAT) + "\n")


def _digest(key: str, payload: bytes) -> bytes:
    named = key.encode(errors="surrogatepass") + b"\0" + payload
    return blake2b(named, digest_size=_DIGEST // 2).hexdigest().encode()


def _seal(key: str, text: str) -> bytes:
    payload = text.encode(errors="surrogatepass")
    return _digest(key, payload) + payload


def _unseal(key: str, sealed: bytes) -> str | None:
    payload = sealed[_DIGEST:]
    if sealed[:_DIGEST] != _digest(key, payload):
        return None
    return payload.decode(errors="surrogatepass")
