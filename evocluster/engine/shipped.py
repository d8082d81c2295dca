"""A run on object storage: a run folder on this machine, for this sitting only, whose every commit is put there first.

`open_folder` and `create_folder` tell a folder from a URI; everything else is the same Folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evocluster.engine.folder import COLUMNS, LIVE, Folder, rows
from evocluster.records import Example, Trial
from evocluster.store.depot import Depot
from evocluster.store.place import is_uri
from evocluster.telemetry import log


class Shipped(Folder):
    """A Folder whose trials count once they are on object storage; `path` is a working copy that goes with it."""

    depot: Depot

    @classmethod
    def begin(cls, uri: str, config: str) -> Shipped:
        """A new run. Raises: errors.RunExists, errors.RunHeld, errors.StoreError."""
        depot = Depot(uri)
        depot.begin()
        return cls._working(depot, config)

    @classmethod
    def go_on(cls, uri: str) -> Shipped:
        """A run to go on with. Raises: errors.RunDamaged, errors.RunHeld, errors.StoreError."""
        depot = Depot(uri)
        depot.go_on()
        return cls._working(depot, None)

    @classmethod
    def _working(cls, depot: Depot, config: str | None) -> Shipped:
        path = Path(tempfile.mkdtemp(prefix="evocluster-")) / "run"
        try:
            if config is None:
                depot.fetch(path, COLUMNS)
                folder = cls.open(path)
            else:
                folder = cls.create(path, config)
            assert isinstance(folder, Shipped)
            folder.depot, folder.address = depot, depot.uri
            if config is not None:
                folder._ship("config.yaml")
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            depot.release()
            raise
        return folder

    async def apart(self, write: Callable[[], None]) -> None:
        """See Folder; a put takes as long as the network does. Who is called off still waits for its end."""
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if (failure := writing.exception()) is not None:
                log.warning("%s: what was under way when the run was called off was not put: %s", self.address, failure)
            raise

    def append_many(self, trials: Sequence[Trial]) -> None:
        """See Folder; one object. Raises: errors.StoreError, errors.RunHeld."""
        lines = self._new_lines(trials)
        self.depot.commit([row for trial in trials for row in rows(trial)], COLUMNS, list(lines.values()))
        super().append_many(trials)

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """See Folder."""
        there = (self.path / "examples.jsonl").exists()
        super().keep_examples(splits)
        if not there:
            self._ship("examples.jsonl")

    def reconfigure(self, config: str) -> None:
        """See Folder."""
        super().reconfigure(config)
        self._ship("config.yaml")

    def write(self, name: str, value: Mapping[str, object]) -> None:
        """See Folder."""
        super().write(name, dict(value))
        self.depot.put(name, (self.path / name).read_bytes(), listed=name not in LIVE)

    def close(self) -> None:
        """Seal the working copy, put it in the place of the single commits, and let the run go."""
        try:
            super().close()
            self.depot.finish(self.path)
        finally:
            self.depot.release()
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def _ship(self, name: str) -> None:
        self.depot.put(name, (self.path / name).read_bytes(), listed=True)


def check_new(where: Path | str) -> None:
    """Raises: errors.RunExists when a run cannot start there; errors.StoreError, errors.ConfigError."""
    if isinstance(where, str) and is_uri(where):
        Depot(where).refuse()
    else:
        Folder.check_new(Path(where))


def create_folder(where: Path | str, config: str) -> Folder:
    """A new run, in a folder or on object storage. Raises: errors.RunExists, errors.RunHeld, errors.StoreError."""
    if isinstance(where, str) and is_uri(where):
        return Shipped.begin(where, config)
    return Folder.create(Path(where), config)


def open_folder(where: Path | str) -> Folder:
    """A run to go on with. Raises: errors.RunDamaged, errors.RunHeld, errors.StoreError."""
    if isinstance(where, str) and is_uri(where):
        return Shipped.go_on(where)
    return Folder.open(Path(where))
