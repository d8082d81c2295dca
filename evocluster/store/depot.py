"""A run on object storage: whole objects, one a commit, nothing counts before its object is put.

    index.json                           what counts: the epoch, digests of files, segments of earlier epochs
    config.yaml, run.json, ...           the files of a run folder
    trials/part-000001.parquet           the table, compacted when a sitting ends
    segments/000007-000012-DIGEST.arrows one commit of epoch 7: an Arrow IPC stream, named by its sha256
    lease/                               see store.lease

A segment of an earlier epoch counts only if the index names it: the holder of each epoch writes down what he found when
he came, so whatever a fenced writer still puts is ignored by every reader.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged, RunExists
from evocluster.store import arrow
from evocluster.store.files import append_lines, unwritable
from evocluster.store.lease import Lease
from evocluster.store.place import Bucket, Place, shown
from evocluster.store.sums import sealed, unsealed
from evocluster.store.table import Table
from evocluster.telemetry import log

FILES = ("config.yaml", "run.json", "examples.jsonl", "genomes.jsonl", "front.json")
"""What is fetched beside the table."""
OWN = ("run.json", "genomes.jsonl")
"""Of these, the files that change all the time and hold digests of their own."""
_SEGMENT = re.compile(r"segments/(\d{6,})-(\d{6,})-([0-9a-f]{64})\.arrows")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Depot:
    """One run. Call order: `begin` or `go_on`, `fetch`, any number of `commit` and `put`, `finish`, `release`.

    To read only: `fetch`.
    """

    def __init__(self, uri: str, place: Place | None = None, lease: Callable[..., Lease] = Lease) -> None:
        """Raises: errors.ConfigError when the URI names no object storage."""
        self.uri = shown(uri)
        self._place = place or Bucket(uri)
        self._lease = lease(self._place, "lease", self.uri)
        self._index: dict[str, Any] = {}
        self._number = 0

    def exists(self) -> bool:
        """Whether there is a run. Raises: errors.StoreError."""
        return self._place.read("index.json") is not None

    def begin(self) -> None:
        """Take a place where there is no run. Raises: errors.RunExists, errors.RunHeld, errors.StoreError."""
        self.refuse()
        self._lease.take()
        try:
            self.refuse()
        except RunExists:
            self.release()
            raise
        self._index = {"epoch": self._lease.epoch, "through": 0, "segments": [], "files": {}}
        self._write_index()

    def refuse(self) -> None:
        """Raises: errors.RunExists when there is a run; errors.StoreError."""
        if self.exists():
            raise RunExists(
                f"{self.uri!r} already holds a run; go on with it: evocluster resume {self.uri}; "
                "or start another: --out PLACE"
            )

    def go_on(self) -> None:
        """Take over a run, and write down what of it counts. Raises: errors.RunHeld, RunDamaged, StoreError."""
        self._read_index()
        self._lease.take()
        try:
            self._read_index()
            self._index.update(segments=self._segments(), epoch=self._lease.epoch, through=0)
            self._place.delete("SHA256SUMS")  # no longer true of what follows
            self._write_index()
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raises: errors.RunHeld when the run is no longer ours."""
        self._lease.check()

    def put(self, name: str, content: bytes, *, listed: bool) -> None:
        """Write or replace a file; `listed`: under a digest in the index, written ahead. Raises: errors.StoreError."""
        self._lease.check()
        if listed:
            before = self._index["files"].get(name, [])[-1:]
            self._index["files"][name] = [*(old for old in before if old != _digest(content)), _digest(content)]
            self._write_index()
        self._place.put(name, content)

    def commit(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], lines: Sequence[str]) -> None:
        """Keep rows, and lines for genomes.jsonl, as one object; it is there when this returns.

        Raises: errors.StoreError; errors.RunHeld, also when the run was lost while it was put: it does not count then.
        """
        self._lease.check()
        content = arrow.segment_bytes(rows, columns, lines)
        self._number += 1
        name = f"segments/{self._lease.epoch:06d}-{self._number:06d}-{_digest(content)}.arrows"
        self._place.put(name, content)
        self._lease.check()

    def fetch(self, folder: Path, columns: Mapping[str, str]) -> None:
        """Copy the run to a local folder that does not exist yet, every byte verified.

        Raises: errors.RunDamaged when there is none, or it is not as it was written; errors.StoreError.
        """
        if not self._index:
            self._read_index()
        try:
            (folder / "trials").mkdir(parents=True)
            for name in FILES:
                content = self._place.read(name)
                if content is not None and self._right(name, content):
                    (folder / name).write_bytes(content)
            for name in self._index["files"]:
                if name.startswith("trials/"):
                    content = self._place.read(name)
                    if content is None or not self._right(name, content):
                        raise self._damaged(name, "its digest in index.json is another")
                    (folder / name).write_bytes(content)
        except OSError as error:
            raise unwritable(folder, error) from error
        self._unfold(folder, columns)

    def _unfold(self, folder: Path, columns: Mapping[str, str]) -> None:
        """The rows and the lines of the segments, in the order of their commits."""
        table = Table.open(folder / "trials", columns)
        try:
            for name in self._segments():
                content, wanted = self._place.read(name), _SEGMENT.fullmatch(name)
                if content is None or wanted is None or _digest(content) != wanted[3]:
                    raise self._damaged(name, "its digest is not the one in its name")
                rows, lines = arrow.read_segment(content, name)
                if lines:
                    append_lines(folder / "genomes.jsonl", lines)
                table.append(rows)
        finally:
            table.close()

    def finish(self, folder: Path) -> None:
        """Put the closed local folder in the place of the segments. Raises: errors.RunHeld, errors.StoreError."""
        self._lease.check()
        files: dict[str, list[str]] = {}
        paths = [*(folder / name for name in FILES), *sorted((folder / "trials").glob("part-*.parquet"))]
        for path in paths:
            if not path.exists():
                continue
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            if [_digest(content)] != self._index["files"].get(name):
                self._place.put(name, content)
            if name not in OWN:
                files[name] = [_digest(content)]
        there = (name for name in self._place.names("segments") if _SEGMENT.fullmatch(name))
        gone = [name for name in there if _place_of(name)[0] <= self._lease.epoch]
        self._index.update(segments=[], through=self._number, files=files)
        self._lease.check()
        self._write_index()
        for name in gone:
            self._place.delete(name)
        self._place.put("SHA256SUMS", (folder / "SHA256SUMS").read_bytes())

    def release(self) -> None:
        """Let the run go."""
        self._lease.release()

    def _right(self, name: str, content: bytes) -> bool:
        """Whether a file is what the index says, or holds digests of its own."""
        wanted = self._index["files"].get(name)
        if wanted is None:
            return name in OWN
        if _digest(content) in wanted:
            return True
        if name != "front.json":
            raise self._damaged(name, "its digest in index.json is another")
        log.warning("%s: front.json is not the one in index.json; it is written again when the run goes on", self.uri)
        return False

    def _segments(self) -> list[str]:
        """The segments that count, in the order of their commits. Raises: errors.RunDamaged when one is missing."""
        there = sorted(name for name in self._place.names("segments") if _SEGMENT.fullmatch(name))
        if missing := sorted(set(self._index["segments"]) - set(there)):
            raise self._damaged(missing[0], "index.json names it, and it is not there")
        ours: list[str] = []
        last: dict[int, int] = {self._index["epoch"]: self._index["through"]}
        for name in there:
            epoch, number = _place_of(name)
            if epoch < self._index["epoch"] or number <= last.get(epoch, 0):
                continue
            if number != last.get(epoch, 0) + 1:
                raise self._damaged(name, f"the commit before it, number {number - 1}, is not there")
            last[epoch] = number
            ours.append(name)
        return [*self._index["segments"], *ours]

    def _read_index(self) -> None:
        content = self._place.read("index.json")
        if content is None:
            raise RunDamaged(f"{self.uri!r} holds no run: there is no index.json in it; give the place of a run")
        try:
            self._index = unsealed(content.decode(), required=True)
        except ValueError as error:
            raise self._damaged("index.json", str(error)) from error

    def _write_index(self) -> None:
        self._place.put("index.json", sealed(self._index, indent=1).encode())

    def _damaged(self, name: str, why: str) -> RunDamaged:
        return RunDamaged(
            f"{name!r} of {self.uri!r} is not as it was written: {why}; restore it from a copy (a version of the "
            "bucket), or start a new run elsewhere"
        )


def _place_of(segment: str) -> tuple[int, int]:
    """Epoch and number of a segment."""
    epoch, number, _ = segment.removeprefix("segments/").split("-")
    return int(epoch), int(number)


def copy(uri: str, folder: Path, columns: Mapping[str, str]) -> None:
    """Copy a run on object storage to a new local folder. Raises: errors.RunDamaged, StoreError, ConfigError."""
    Depot(uri).fetch(folder, columns)
