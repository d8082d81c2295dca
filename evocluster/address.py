"""Where a run lies: a folder of this machine, or a URI of object storage.

Part of the wiring: what is only read is read from a copy, which goes when its reader goes.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evocluster.engine.folder import COLUMNS
from evocluster.report.result import Result
from evocluster.store.place import below, is_uri, shown
from evocluster.telemetry import Run, log


def placed(place: Path | str) -> Path | str:
    """A URI as it is, a path made absolute."""
    return place if is_uri(place) else Path(place).absolute()


def within(runs: str, name: str) -> Path | str:
    """The run of this name below `runs`, a folder or a URI."""
    return placed(below(runs, name) if is_uri(runs) else Path(runs) / name)


def begun(where: Path | str) -> bool:
    """Whether there is a run. Raises: errors.StoreError."""
    from evocluster.store.depot import Depot

    return Depot(where).exists() if isinstance(where, str) else (where / "config.yaml").exists()


def whose(where: Path | str) -> Run:
    """The run as its processes know it: the id of run.json, or a new one; its log, where it has a folder here."""
    if isinstance(where, str):
        return Run(secrets.token_hex(8), None, log.getEffectiveLevel())
    known = Result(where).run.get("run_id") if (where / "run.json").exists() else None
    return Run(str(known or secrets.token_hex(8)), str(where / "log.jsonl"), log.getEffectiveLevel())


def found(place: str | Path) -> Result:
    """A run to be read; of object storage a copy that goes when the result goes. Raises: errors.RunDamaged."""
    from evocluster.store.depot import copy

    if not (isinstance(place, str) and is_uri(place)):
        return Result(place)
    path = Path(tempfile.mkdtemp(prefix="evocluster-")) / "run"
    try:
        copy(place, path, COLUMNS)
        result = Result(path)
    except BaseException:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise
    result.address = shown(place)
    weakref.finalize(result, shutil.rmtree, path.parent, ignore_errors=True)
    return result


@contextmanager
def at_hand(where: Path | str) -> Iterator[Path]:
    """The run's folder, or a copy for as long as the block takes. Raises: errors.RunDamaged, errors.StoreError."""
    from evocluster.store.depot import copy

    if isinstance(where, Path):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="evocluster-") as name:
        copy(where, Path(name) / "run", COLUMNS)
        yield Path(name) / "run"
