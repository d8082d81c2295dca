"""The ledger: what serves, what was tried and what happened, in one database that several processes write at once.

What serves changes by `deploy` and `move` alone: compare-and-swap of one row, with its audit row in the same
transaction, so that an epoch names exactly one routing. Synchronous and thread-safe.

A lost connection is replaced, and what was not acknowledged yet is done again once, unless it was lost while it
committed: then only what may be done twice is.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from evocluster.errors import LedgerConflict, StoreError
from evocluster.store import ledger_values as values
from evocluster.store.ledger_engine import Database
from evocluster.store.ledger_tables import TABLES

T = TypeVar("T")
Also = Sequence[tuple[str, Mapping[str, Any]]]
_DONE = "done"
_CHUNK = 5000


class Ledger:
    """Rows by table and key. Call order: open, anything from any thread, close. All raise errors.StoreError.

    A row that is written may leave columns out; one that is read has all of them, JSON as Python values (lists, dicts).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = database.engine
        self._writing = database.engine.execution_options(write=True)
        # SQLite makes writers wait by asking again and again: those of one process stand in line here instead.
        self._turn: AbstractContextManager[Any] = threading.Lock() if database.sqlite else nullcontext()
        self._insert: Callable[[sa.Table], Any] = sqlite.insert if database.sqlite else postgresql.insert
        self._texts: dict[tuple[str, bool], str] = {}
        self._closed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """The ledger at sqlite:///FILE or postgresql://USER@HOST/DATABASE, made or migrated first.

        Raises: StoreError naming the URL without its password: unreachable, not a ledger, or of a newer version.
        """
        database = Database(url)
        try:
            database.prepare()
        except BaseException:
            database.engine.dispose()
            raise
        return cls(database)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self._database.shown

    def add(self, table: str, rows: Sequence[Mapping[str, Any]], *, again: bool = False) -> None:
        """Insert all or none. `again`: rows whose key is there stay as they are, so that it may be said twice.

        Of a user who was erased (`tombstones`), bodies are dropped, and exchanges lose what tells of the user.
        Raises: StoreError "... exists" for a key that is there.
        """
        _refuse_fixed(table, "add")
        whole = [values.whole_row(table, row) for row in rows]
        if not whole:
            return

        def work(connection: Connection) -> None:
            if admitted := _admitted(connection, table, whole):
                self._append(connection, table, admitted, again)

        try:
            self._write(work, again=again)
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise self._exists(table, whole) from error
            raise

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert a row, or replace the one of its key: what it leaves out is the column's default again."""
        _refuse_fixed(table, "put")
        whole = values.whole_row(table, row)
        statement, key = self._insert(TABLES[table]), values.key_of(table)
        kept = {name: statement.excluded[name] for name in whole if name not in key}
        statement = (
            statement.on_conflict_do_update(index_elements=key, set_=kept)
            if kept
            else statement.on_conflict_do_nothing()
        )

        def work(connection: Connection) -> None:
            if admitted := _admitted(connection, table, [whole]):
                connection.execute(statement, admitted)

        self._write(work, again=True)

    def patch(self, table: str, key: Mapping[str, Any], /, **columns: Any) -> bool:
        """Update columns of one row. False: there is none."""
        return self.change(table, values.keyed(table, key), **columns) > 0

    def change(self, table: str, where: Mapping[str, Any] | None, /, **columns: Any) -> int:
        """Update columns of every row found, and say how many."""
        _refuse_fixed(table, "change", columns)
        said, found = values.changed(table, columns), list(values.conditions(table, where))
        if moved := said.keys() & set(values.key_of(table)):
            raise StoreError(f"{sorted(moved)} are of the key of {table!r}: delete the row and add another one")
        if not said:
            return self.count(table, where)
        statement = sa.update(TABLES[table]).where(*found).values(said)
        return self._write(lambda connection: connection.execute(statement).rowcount, again=True)

    def find(
        self,
        table: str,
        where: Mapping[str, Any] | None = None,
        *,
        order: str = "",
        limit: int | None = None,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """Rows that hold to all of `where`: column -> value | (operator, value) | None.

        Operators: = != < <= > >= in. `order`: "at" or "-at", several by comma; the key decides between equals.
        """
        return values.read_rows(table, self.lines(table, where, order=order, limit=limit, offset=offset))

    def lines(
        self,
        table: str,
        where: Mapping[str, Any] | None = None,
        *,
        order: str = "",
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Sequence[Any]]:
        """What `find` finds, as tuples of all columns in order, JSON as its text: to write it somewhere else."""
        statement = values.statement(table, where, order, limit, offset)
        return self._read(lambda connection: list(connection.execute(statement)))

    def first(self, table: str, where: Mapping[str, Any] | None = None, order: str = "") -> dict[str, Any] | None:
        """The first row that `find` would give, or None."""
        return next(iter(self.find(table, where, order=order, limit=1)), None)

    def count(self, table: str, where: Mapping[str, Any] | None = None) -> int:
        """How many rows hold to all of `where`."""
        values.columns_of(table)
        statement = sa.select(sa.func.count()).select_from(TABLES[table]).where(*values.conditions(table, where))
        return self._read(lambda connection: int(connection.execute(statement).scalar_one()))

    def delete(self, table: str, where: Mapping[str, Any]) -> int:
        """Delete every row that holds to all of `where` ({}: all), and say how many."""
        _refuse_fixed(table, "delete")
        statement = sa.delete(TABLES[table]).where(*values.conditions(table, where))
        return self._write(lambda connection: connection.execute(statement).rowcount, again=True)

    def deploy(self, row: Mapping[str, Any], audit: Mapping[str, Any], *, also: Also = ()) -> None:
        """The first pointer of a deployment, at epoch 1, with its audit row; `also` as in `move`.

        Raises: LedgerConflict when the deployment is there.
        """
        first = values.whole_row("deployments", {**row, "epoch": 1})
        told = _audit(first["name"], audit, "", first["snapshot"], 1)
        table = TABLES["deployments"]
        statement = self._insert(table).on_conflict_do_nothing().returning(table.c.name)

        def work(connection: Connection) -> None:
            if connection.execute(statement, first).first() is None:
                raise LedgerConflict(f"deployment {first['name']!r} is there already; move it, or choose another name")
            connection.execute(sa.insert(TABLES["audit"]), told)
            self._upsert(connection, also)

        self._write(work, again=False)

    def move(
        self,
        deployment: str,
        epoch: int,
        *,
        audit: Mapping[str, Any],
        snapshot: str | None = None,
        state: Mapping[str, Any] | None = None,
        also: Also = (),
    ) -> int:
        """Compare-and-swap of what a deployment serves, and the new epoch: all of it, or nothing.

        Only where the stored epoch is `epoch`: sets `snapshot` and `state` where given, adds the audit row (deployment,
        from_snapshot, to_snapshot and epoch filled in), and of each (table, row) of `also` sets the columns given
        on the row of its key, or inserts it.
        Raises: LedgerConflict: somebody else moved it, or it is not there; nothing was written.
        """
        given = {name: said for name, said in (("snapshot", snapshot), ("state", state)) if said is not None}
        changed = {**values.changed("deployments", given), "epoch": epoch + 1}
        table = TABLES["deployments"]
        mine = sa.and_(*values.conditions("deployments", {"name": deployment, "epoch": epoch}))
        now = sa.select(table.c.snapshot, table.c.epoch).where(*values.conditions("deployments", {"name": deployment}))

        def work(connection: Connection) -> int:
            there = connection.execute(now).one_or_none()
            if there is None or there.epoch != epoch:
                raise _conflict(deployment, epoch, there and there.epoch)
            if connection.execute(sa.update(table).where(mine).values(changed)).rowcount != 1:
                raise _conflict(deployment, epoch, None)
            told = _audit(deployment, audit, there.snapshot, changed.get("snapshot", there.snapshot), epoch + 1)
            connection.execute(sa.insert(TABLES["audit"]), told)
            self._upsert(connection, also)
            return epoch + 1

        return self._write(work, again=False)

    def claim(self, deployment: str, job: str, scheduled_for: float, owner: str, lease_s: float, now: float) -> bool:
        """Whether this run of a job is the owner's: nobody had it, or whoever had it let `lease_s` pass unfinished."""
        key = {"deployment": deployment, "job": job, "scheduled_for": scheduled_for}
        row = values.whole_row("schedules", {**key, "owner": owner, "lease_until": now + lease_s, "state": "claimed"})
        table, statement = TABLES["schedules"], self._insert(TABLES["schedules"])
        statement = statement.on_conflict_do_update(
            index_elements=list(key),
            set_={name: statement.excluded[name] for name in ("owner", "lease_until", "state")},
            where=sa.and_(table.c.state != _DONE, table.c.lease_until <= now),
        ).returning(table.c.owner)
        return self._write(lambda connection: connection.execute(statement, row).first() is not None, again=False)

    def finish(
        self,
        deployment: str,
        job: str,
        scheduled_for: float,
        owner: str,
        note: str = "",
        *,
        now: float | None = None,
    ) -> None:
        """Say that a claimed run is done: nobody can claim it any more. `now`: seconds since 1970; None: this moment.

        Raises: LedgerConflict when it is not the owner's (any more).
        """
        key = {"deployment": deployment, "job": job, "scheduled_for": scheduled_for}
        done_at = time.time() if now is None else now
        if self.change("schedules", {**key, "owner": owner}, state=_DONE, done_at=done_at, note=note):
            return
        there = self.first("schedules", key)
        whose = f"it is {there['owner']!r}'s" if there else "nobody claimed it"
        raise LedgerConflict(f"{owner!r} cannot finish {job!r} of {deployment!r} for {scheduled_for!r}: {whose}")

    def compact(self) -> None:
        """Leave nothing of deleted rows in the file (PostgreSQL's own vacuum does so there). Raises: StoreError."""
        if not self._database.sqlite:
            return
        with self._turn, closing(self._database.engine.raw_connection()) as connection:
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise StoreError(f"the ledger {self.shown!r} cannot be compacted: {error}; try again") from error

    def close(self) -> None:
        """Let go of the database; again is nothing."""
        self._closed = True
        self._database.engine.dispose()

    def _append(self, connection: Connection, table: str, rows: list[dict[str, Any]], again: bool) -> None:
        statement = self._insert(TABLES[table])
        statement = statement.on_conflict_do_nothing() if again else statement
        if any(len(row) != len(TABLES[table].c) for row in rows):  # some leave the counting to the database
            for row in rows:
                connection.execute(statement, row)
            return
        # As the driver takes it: SQLAlchemy needs as long for so many columns as the database does.
        if (table, again) not in self._texts:
            self._texts[table, again] = str(statement.compile(connection, column_keys=list(rows[0])))
        said: Any = [tuple(row.values()) for row in rows] if self._database.sqlite else rows
        connection.exec_driver_sql(self._texts[table, again], said)

    def _upsert(self, connection: Connection, also: Also) -> None:
        for name, row in also:
            _refuse_fixed(name, "put")
            key = {column: row[column] for column in values.key_of(name) if column in row}
            found = list(values.conditions(name, values.keyed(name, key)))
            rest = {column: value for column, value in values.changed(name, row).items() if column not in key}
            update = sa.update(TABLES[name]).where(*found).values(rest or {column: row[column] for column in key})
            if connection.execute(update).rowcount == 0:
                connection.execute(sa.insert(TABLES[name]), values.whole_row(name, row))

    def _exists(self, table: str, rows: Iterable[Mapping[str, Any]]) -> StoreError:
        seen: set[tuple[Any, ...]] = set()
        for row in rows:
            key = {name: row[name] for name in values.key_of(table) if name in row}
            named = tuple(key.values())
            if named in seen or (key and self.count(table, {name: ("=", value) for name, value in key.items()})):
                return StoreError(f"{table} {key!r} exists; nothing was added: put replaces it, again=True leaves it")
            seen.add(named)
        return StoreError(f"a row of {table} exists, or did a moment ago; nothing was added: try again")

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._try(work, self._reading, again=True)

    def _write(self, work: Callable[[Connection], T], *, again: bool) -> T:
        """Do `work` in one transaction. `again`: it may be done twice. Raises: StoreError."""
        with self._turn:
            return self._try(work, self._writing, again=again)

    def _try(self, work: Callable[[Connection], T], engine: Any, *, again: bool) -> T:
        for attempt in (1, 2):
            committing = False
            if self._closed:
                raise StoreError(f"the ledger {self.shown!r} is closed; open it again")
            try:
                with engine.connect() as connection, connection.begin() as transaction:
                    result = work(connection)
                    committing = True
                    transaction.commit()
                    return result
            except SQLAlchemyError as error:
                lost = isinstance(error, DBAPIError) and error.connection_invalidated
                if lost and attempt == 1 and (again or not committing):
                    continue
                unsure = (
                    "; whether it was written is not known, look before you repeat it" if lost and committing else ""
                )
                raise self._database.failed(error, unsure) from error
        raise AssertionError("the second attempt returns or raises")


def _refuse_fixed(table: str, verb: str, columns: Iterable[str] = ()) -> None:
    """Raises: StoreError for what only `deploy` and `move` may do."""
    values.columns_of(table)
    if table == "audit" and verb != "add":
        raise StoreError(f"the audit is only ever added to: no {verb}")
    if table == "deployments" and (verb != "change" or {"snapshot", "epoch", "state"} & set(columns)):
        raise StoreError(f"deployments: no {verb}; what serves changes by deploy and move alone")


def _audit(deployment: str, audit: Mapping[str, Any], before: str, after: str, epoch: int) -> dict[str, Any]:
    filled = {"deployment": deployment, "from_snapshot": before, "to_snapshot": after, "epoch": epoch}
    return values.whole_row("audit", {**audit, **filled})


def _conflict(deployment: str, epoch: int, stored: int | None) -> LedgerConflict:
    now = "it moved just now or is not there" if stored is None else f"it is at {stored}"
    return LedgerConflict(
        f"deployment {deployment!r} is not at epoch {epoch!r}: {now}; read it again, and decide again"
    )


def _admitted(connection: Connection, table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they may be written: nothing of a user who was erased."""
    if table not in ("exchanges", "bodies"):
        return rows
    users = sorted({row["user"] for row in rows if row["user"]})
    if not users or connection.exec_driver_sql("SELECT 1 FROM tombstones LIMIT 1").first() is None:
        return rows
    gone: set[tuple[str, str]] = set()
    stone = TABLES["tombstones"]
    for start in range(0, len(users), _CHUNK):
        found = sa.select(stone.c.deployment, stone.c.user).where(stone.c.user.in_(users[start : start + _CHUNK]))
        gone.update((row.deployment, row.user) for row in connection.execute(found))
    if not gone:
        return rows
    if table == "bodies":
        return [row for row in rows if (row["deployment"], row["user"]) not in gone]
    return [{**row, **UNLINKED} if (row["deployment"], row["user"]) in gone else row for row in rows]


UNLINKED = {"user": "", "error": "", "signals": "{}"}
"""What an exchange has in these columns once its user was erased."""
