"""The database under a ledger: SQLite in a file, or PostgreSQL for several machines; made and migrated when opened.

SQLite: WAL, writers wait for each other, and a transaction that was acknowledged survives the death of the process
(synchronous=NORMAL; a loss of power may take the last ones, never the whole). It needs a local file system.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from evocluster.errors import StoreError
from evocluster.redaction import noted, redacted
from evocluster.store.files import unwritable
from evocluster.store.ledger_tables import REVISION, TABLES, VERSION_TABLE

FORMS = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_WAIT_S = 30.0
_OPEN_S = 60.0
_WAL_PAGES = 4000
"""Of 4 KiB, that are written ahead before a writer carries them over: fewer waits for the disk."""
_LOCK = 0x65766F6C
"""Of PostgreSQL's advisory locks, the one under which a ledger is migrated."""


class Database:
    """An engine with the name that messages may call it by."""

    def __init__(self, url: str) -> None:
        """Connects to nothing. Raises: StoreError when the URL is none of FORMS."""
        self.url = _parsed(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        plain = self.url.set(drivername=self.url.get_backend_name(), query={})
        self.shown = plain.render_as_string(hide_password=True)
        self.engine = _sqlite(self.url) if self.sqlite else _postgres(self.url)

    def failed(self, error: BaseException, more: str = "") -> StoreError:
        """The error to raise for one of the database."""
        why = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        why = redacted(why, self.url.password)
        if self.sqlite:
            remedy = "it needs a writable local file with free disk space, that no other program holds for long"
        else:
            remedy = "check that the server runs, is reached from here, and knows the user and the database; try again"
        return StoreError(f"the ledger {self.shown!r} failed: {why}{more}; {remedy}")

    def prepare(self) -> None:
        """Make the file and the tables, or migrate them; two that do so at once both succeed. Raises: StoreError."""
        try:
            if not self.sqlite:
                self._migrate()
                return
            path = Path(str(self.url.database))
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                _make(path)
                self._migrate()
        except OSError as error:
            raise unwritable(Path(str(self.url.database)), error) from error
        except SQLAlchemyError as error:
            raise self.failed(error) from error

    def _migrate(self) -> None:
        with self.engine.execution_options(write=True).begin() as connection:
            if not self.sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            told = _revision(connection)
            if told == REVISION:
                return
            if told is None:
                self._check_empty(connection)
            _upgrade(connection, told, self.shown)

    def _check_empty(self, connection: Connection) -> None:
        there = sa.inspect(connection).get_table_names()
        foreign = sorted(there if self.sqlite else TABLES.keys() & set(there))
        if foreign:
            raise StoreError(
                f"{self.shown!r} is not a ledger: it holds the tables {foreign[:5]} of something else; give the ledger "
                "a file or a database of its own"
            )


def _parsed(url: str) -> URL:
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        scheme, separator, _ = url.partition("://")
        shown = f"{scheme}://..." if separator else "a text without '://'"
        raise StoreError(f"the ledger's URL ({shown}) cannot be read: give {FORMS}") from None
    for secret in (found.password, found.query.get("password")):
        noted(str(secret or ""))
    backend = found.drivername
    if backend in ("postgres", "postgresql", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    if backend not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"no ledger is kept in {backend!r}: give {FORMS}")
    if not found.database or found.database == ":memory:" or found.database.startswith("file:") or found.query:
        raise StoreError(
            f"the ledger {found.database or ''!r} is no file: give sqlite:///FILE without options; what serves must "
            "outlive the process, and be seen by others"
        )
    return found


def _sqlite(url: URL) -> Engine:
    engine = sa.create_engine(
        url, connect_args={"timeout": _WAIT_S}, pool_size=5, max_overflow=60, hide_parameters=True
    )

    # pysqlite's own transactions begin late, and would let two read what both then write.
    @sa.event.listens_for(engine, "connect")
    def plain(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")  # what a user had deleted is not left in free pages
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgres(url: URL) -> Engine:
    return sa.create_engine(
        url,
        connect_args={"connect_timeout": 10, "application_name": "evocluster"},
        pool_size=5,
        max_overflow=20,
        pool_timeout=_WAIT_S,
        pool_pre_ping=True,
        hide_parameters=True,
    )


def _make(path: Path) -> None:
    """The file, its owner's alone, in WAL."""
    import sqlite3

    try:
        # Only a new one is opened: to close an open database's file would let go of SQLite's own locks on it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=_WAIT_S)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    except sqlite3.Error as error:
        raise StoreError(
            f"the ledger {str(path)!r} cannot be opened: {error}; if it is a ledger, restore it from a copy, else "
            "give another file"
        ) from error
    finally:
        connection.close()
    if mode != "wal":
        raise StoreError(f"{str(path)!r} cannot be written ahead (journal mode {mode!r}): put it on a local disk")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the ledger's `.lock` while it is opened. The file stays: removing it would let two in. Raises: OSError."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        last = time.monotonic() + _OPEN_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > last:
                    raise StoreError(
                        f"the ledger {str(path)!r} has been opened by another process for {_OPEN_S:g} s: stop it if "
                        "it hangs, then try again"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection, told: str | None, shown: str) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    folder = str(Path(__file__).with_name("migrations"))
    script = ScriptDirectory(folder, version_locations=[folder])
    if told is not None and told not in {each.revision for each in script.walk_revisions()}:
        raise StoreError(
            f"the ledger {shown!r} was written by a newer version of evocluster: it is of revision {told!r}, this "
            f"version knows up to {REVISION!r}; upgrade evocluster here (pip install --upgrade evocluster)"
        )
    with EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs(REVISION, revision), destination_rev=REVISION
    ) as environment:
        environment.configure(connection=connection, version_table=VERSION_TABLE)
        with environment.begin_transaction():
            environment.run_migrations()
