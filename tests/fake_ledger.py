"""A ledger with its semantics: tables in memory, and the same in a file of JSON lines that survives a kill."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.errors import LedgerConflict, StoreError
from evocluster.online.ledger import Row, Where
from evocluster.store.ledger_tables import COLUMNS

KEYS = {table: tuple(one.name for one in columns.values() if one.key) for table, columns in COLUMNS.items()}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one is not None and one < other,
    "<=": lambda one, other: one is not None and one <= other,
    ">": lambda one, other: one is not None and one > other,
    ">=": lambda one, other: one is not None and one >= other,
    "in": lambda one, other: one in other,
}


class Killed(BaseException):
    """The process ended here."""


class FakeLedger:
    """Rows as dicts; every call is one transaction under one lock.

    `before` is called with the method's name and the table first, and may raise or sleep.
    """

    def __init__(self, before: Callable[[str, str], None] = lambda method, table: None) -> None:
        self.before = before
        self.tables: dict[str, dict[tuple[Any, ...], Row]] = {table: {} for table in COLUMNS}
        self.away = False
        """Nothing can be read or written."""
        self.writes = 0
        self.kill_after: int | None = None
        """The caller ends after so many writes, the last of them done."""
        self._lock = threading.RLock()

    # ------------------------------------------------------------ reading

    def find(
        self, table: str, where: Where | None = None, *, order: str = "", limit: int | None = None, offset: int = 0
    ) -> list[Row]:
        self._begin("find", table)
        with self._lock:
            rows = [copy.deepcopy(row) for row in self.tables[table].values() if _fits(row, where or {})]
        for column in reversed([name.strip() for name in order.split(",") if name.strip()]):
            name = column.lstrip("-")
            rows.sort(key=lambda row: (row[name] is not None, row[name]), reverse=column.startswith("-"))
        return rows[offset : None if limit is None else offset + limit]

    def first(self, table: str, where: Where | None = None, order: str = "") -> Row | None:
        return next(iter(self.find(table, where, order=order, limit=1)), None)

    def count(self, table: str, where: Where | None = None) -> int:
        return len(self.find(table, where))

    def dump(self) -> dict[str, list[Row]]:
        """Everything."""
        return {table: self.find(table) for table in self.tables}

    # ------------------------------------------------------------ writing

    def add(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._begin("add", table)
        with self._lock:
            new: dict[tuple[Any, ...], Row] = {}
            for row in rows:
                made = self._whole(table, row)
                key = self._key(table, made)
                if key in self.tables[table] or key in new:
                    raise StoreError(f"{table}: {key!r} exists")
                new[key] = made
            self.tables[table].update(new)
            self._wrote(table, list(new.values()))

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        self._begin("put", table)
        with self._lock:
            self._wrote(table, [self._set(table, row)])

    def patch(self, table: str, key: Mapping[str, Any], /, **columns: Any) -> bool:
        self._begin("patch", table)
        with self._lock:
            found = self.tables[table].get(self._key(table, key))
            if found is None:
                return False
            self._wrote(table, [self._set(table, {**found, **columns})])
            return True

    def change(self, table: str, where: Where | None, /, **columns: Any) -> int:
        self._begin("change", table)
        with self._lock:
            rows = [self._set(table, {**row, **columns}) for row in self.find(table, where)]
            self._wrote(table, rows)
            return len(rows)

    def delete(self, table: str, where: Where) -> int:
        self._begin("delete", table)
        with self._lock:
            gone = [key for key, row in self.tables[table].items() if _fits(row, where)]
            for key in gone:
                del self.tables[table][key]
            return len(gone)

    def deploy(self, row: Mapping[str, Any], audit: Mapping[str, Any]) -> None:
        self._begin("deploy", "deployments")
        with self._lock:
            if (row["name"],) in self.tables["deployments"]:
                raise LedgerConflict(f"deployment {row['name']!r} is there")
            self._set("deployments", {**row, "epoch": 1})
            self._audit(row["name"], audit, "", row["snapshot"], 1)
            self._wrote("deployments", [])

    def move(
        self,
        deployment: str,
        epoch: int,
        *,
        audit: Mapping[str, Any],
        snapshot: str | None = None,
        state: Mapping[str, Any] | None = None,
        also: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> int:
        self._begin("move", "deployments")
        with self._lock:
            row = self.tables["deployments"].get((deployment,))
            if row is None or row["epoch"] != epoch:
                raise LedgerConflict(f"deployment {deployment!r} is no longer at {epoch}")
            given = {name: said for name, said in (("snapshot", snapshot), ("state", state)) if said is not None}
            before = row["snapshot"]
            after = self._set("deployments", {**row, **given, "epoch": epoch + 1})
            self._audit(deployment, audit, before, after["snapshot"], epoch + 1)
            for table, other in also:
                self._set(table, {**self.tables[table].get(self._key(table, other), {}), **other})
            self._wrote("deployments", [])
            return epoch + 1

    def claim(self, deployment: str, job: str, scheduled_for: float, owner: str, lease_s: float, now: float) -> bool:
        self._begin("claim", "schedules")
        with self._lock:
            key = {"deployment": deployment, "job": job, "scheduled_for": scheduled_for}
            held = self.tables["schedules"].get(tuple(key.values()))
            if held is not None and (held["state"] == "done" or held["lease_until"] > now):
                return False
            self._set("schedules", {**key, "owner": owner, "lease_until": now + lease_s, "state": "claimed"})
            self._wrote("schedules", [])
            return True

    def finish(self, deployment: str, job: str, scheduled_for: float, owner: str, note: str) -> None:
        self._begin("finish", "schedules")
        with self._lock:
            held = self.tables["schedules"].get((deployment, job, scheduled_for))
            if held is None or held["owner"] != owner:
                raise LedgerConflict(f"{owner!r} cannot finish {job!r}: it is somebody else's")
            self._set("schedules", {**held, "state": "done", "done_at": 1.0, "note": note})
            self._wrote("schedules", [])

    def close(self) -> None:
        """Nothing to let go of."""

    # ------------------------------------------------------------ within

    def _begin(self, method: str, table: str) -> None:
        self.before(method, table)
        if self.away:
            raise StoreError("the ledger is away")

    def _key(self, table: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] for column in KEYS[table])

    def _whole(self, table: str, row: Mapping[str, Any]) -> Row:
        """With defaults for what it does not say. Raises: StoreError: it says what no column is there for."""
        columns = COLUMNS[table]
        if odd := set(row) - set(columns):
            raise StoreError(f"{table} has no column {sorted(odd)}")
        whole = {name: copy.deepcopy(column.default) for name, column in columns.items()}
        if table == "audit":
            whole["id"] = len(self.tables["audit"]) + 1
        return {**whole, **copy.deepcopy(dict(row))}

    def _set(self, table: str, row: Mapping[str, Any]) -> Row:
        made = self._whole(table, row)
        self.tables[table][self._key(table, made)] = made
        return made

    def _audit(self, deployment: str, audit: Mapping[str, Any], before: str, after: str, epoch: int) -> None:
        told = {"deployment": deployment, "from_snapshot": before, "to_snapshot": after, "epoch": epoch}
        self._set("audit", {**told, **audit})

    def _wrote(self, table: str, rows: Sequence[Row]) -> None:
        self.writes += 1
        if self.kill_after is not None and self.writes >= self.kill_after:
            raise Killed


class FileLedger(FakeLedger):
    """The same, every write appended to a file before it returns: what another process reads after this one's end."""

    def __init__(self, path: Path, before: Callable[[str, str], None] = lambda method, table: None) -> None:
        super().__init__(before)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        for line in path.read_bytes().split(b"\n")[:-1]:
            table, rows = json.loads(line)
            for row in rows:
                self.tables[table][self._key(table, row)] = row

    def _wrote(self, table: str, rows: Sequence[Row]) -> None:
        super()._wrote(table, rows)
        os.write(self._handle, json.dumps([table, rows]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._handle)


def _fits(row: Row, where: Where) -> bool:
    return all(
        _OPERATORS[asked[0]](row[column], asked[1]) if isinstance(asked, tuple) else row[column] == asked
        for column, asked in where.items()
    )
