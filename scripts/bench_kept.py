"""Finished runs of the search benchmark, kept in one small file: what was measured outlasts the folders it was run in.

    kept = Kept(path)
    kept.read(case)          the run, where one of these settings is kept
    kept.keep(case, run)     adds it, or takes the place of an older one; the file is whole at any time
    kept.aged(cases)         how many of them were made with other code of the search

A row of Parquet is a run: outcomes by example id, never an example's text. Settings are compared by a digest of what
they decide: not where data, completions and code lie, and no setting that was left at its default, so that a new one
does not disown what was measured before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bench_runs import Case, Run

import evocluster.search
from evocluster.errors import ConfigError
from evocluster.records import canonical, digest
from evocluster.store.files import replacing

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("strategy", pa.string()),
        ("seed", pa.int32()),
        ("calls", pa.int32()),
        ("settings", pa.string()),
        ("code", pa.string()),
        ("run", pa.string()),
    ]
)
Key = tuple[str, str, int, int]
"""Task, strategy, seed, calls."""
NAMED = 2
"""Parts at the end of a data file's path that name it: its folder and itself."""


class Kept:
    """The runs of one file. Not for two processes at once."""

    def __init__(self, path: Path) -> None:
        """A file that is not there holds no runs. Raises: errors.ConfigError for one that is something else."""
        self._path = path
        self._rows: dict[Key, dict[str, Any]] = {}
        if path.exists():
            table = _table(path)
            self._rows = {_key(row): row for row in table.to_pylist()}

    def read(self, case: Case) -> Run | None:
        """What is kept of a case; None where there is nothing, or nothing with its settings."""
        row = self._row(case)
        if row is None:
            return None
        told = json.loads(row["run"])
        told["curve"] = tuple((calls, value) for calls, value in told["curve"])
        return Run(**{**told, "front": tuple(told["front"])})

    def keep(self, case: Case, run: Run) -> None:
        """Add a run; nothing is written where it is there already. Raises: errors.StoreError."""
        if self.read(case) == run:
            return
        row = dict(zip(SCHEMA.names, (*_named(case), settings(case), code(), canonical(asdict(run))), strict=True))
        self._rows[_key(row)] = row
        table = pa.Table.from_pylist([self._rows[key] for key in sorted(self._rows)], schema=SCHEMA)
        with replacing(self._path) as temp:
            pq.write_table(table, temp, compression="zstd", compression_level=19, use_dictionary=False)

    def aged(self, cases: Iterable[Case]) -> int:
        """How many of these are kept, and were made with other code of the search than there is now."""
        rows = [self._row(case) for case in cases]
        return sum(1 for row in rows if row is not None and row["code"] != code())

    def _row(self, case: Case) -> Mapping[str, Any] | None:
        row = self._rows.get(_named(case))
        return row if row is not None and row["settings"] == settings(case) else None


def _table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _refused(path, str(error).splitlines()[0]) from error
    if table.schema.names != SCHEMA.names:
        raise _refused(path, f"it has the columns {', '.join(table.schema.names)}")
    return table


def _refused(path: Path, said: str) -> ConfigError:
    return ConfigError(
        f"--kept: got {str(path)!r}, which cannot be read as runs that were kept ({said}); "
        "give a file that this benchmark has written, or a new name"
    )


def _named(case: Case) -> Key:
    return case.task, case.strategy, case.seed, case.calls


def _key(row: Mapping[str, Any]) -> Key:
    return row["task"], row["strategy"], row["seed"], row["calls"]


def settings(case: Case) -> str:
    """A digest of what a case's settings decide. Raises: errors.ConfigError."""
    config = case.settings()
    told = _with_kinds(config.model_dump(mode="json", exclude_defaults=True), config.model_dump(mode="json"))
    for name in ("cache", "python_path"):
        told.pop(name, None)
    data = told.get("task", {}).get("data")
    if isinstance(data, dict):
        files = {name: value for name, value in data.items() if name in ("train", "validation", "test")}
        data.update({name: "/".join(Path(value).parts[-NAMED:]) for name, value in files.items() if value})
    return digest(told)


def _with_kinds(told: Any, whole: Any) -> Any:
    """What differs from the defaults, with every `kind`, without which it would not say of what the defaults are."""
    if isinstance(told, dict):
        kind = {"kind": whole["kind"]} if "kind" in whole else {}
        return {**kind, **{name: _with_kinds(value, whole[name]) for name, value in told.items()}}
    if isinstance(told, list):
        return [_with_kinds(one, other) for one, other in zip(told, whole, strict=True)]
    return told


@cache
def code() -> str:
    """A digest of the sources of the search."""
    folder = Path(evocluster.search.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
