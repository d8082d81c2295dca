"""The ledger in SQLite and in PostgreSQL: one contract, and what each database brings with it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from contract_ledger import AUDIT, POINTER, LedgerContract, exchange, feedback
from postgres import USER, postgres_url, server

from evocluster.errors import StoreError
from evocluster.release.exchange import Exchange
from evocluster.store import ledger_engine
from evocluster.store.ledger import Ledger
from evocluster.store.ledger_tables import COLUMNS, REVISION, VERSION_TABLE

__all__ = ["postgres_url"]
GOLDEN = Path(__file__).parent / "golden" / "ledger-1.sqlite"


class TestSqlite(LedgerContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/deep/down/ledger.sqlite"


class TestPostgres(LedgerContract):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{path}")
    yield opened
    opened.close()


def test_it_keeps_every_field_of_an_exchange_under_its_name() -> None:
    kinds = {name: column.kind for name, column in COLUMNS["exchanges"].items()}
    assert list(kinds) == list(Exchange.model_fields)


def test_its_files_are_its_owners_alone_and_written_ahead(path: Path, ledger: Ledger) -> None:
    ledger.add("exchanges", [exchange("r")])
    for each in sorted(path.parent.iterdir()):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    program = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom contract_ledger import exchange\n"
        "from evocluster.store.ledger import Ledger\nledger = Ledger.open(sys.argv[1])\n"
        "for number in range(10**6):\n"
        "    ledger.add('exchanges', [exchange(f'{number}-{each}') for each in range(20)])\n"
        "    print(number, flush=True)\n"
    )
    arguments = [sys.executable, "-c", program, f"sqlite:///{path}", str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for _ in range(10):
            acknowledged = int(running.stdout.readline())
        running.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in running.stdout if line.endswith("\n"))])
    ledger = Ledger.open(f"sqlite:///{path}")
    batches = [row["request_id"] for row in ledger.find("exchanges")]
    assert {f"{number}-{each}" for number in range(acknowledged + 1) for each in range(20)} <= set(batches)
    assert len(batches) % 20 == 0
    ledger.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "is no file"),
        ("sqlite:///:memory:", "is no file"),
        ("sqlite:///x.sqlite?mode=ro", "without options"),
        ("mysql://u:hush-hush-1@h/d", "no ledger is kept in 'mysql': give sqlite:///FILE or postgresql://"),
        ("postgresql://u:hush-hush-1@h:port/d", r"\(postgresql://...\) cannot be read"),
        ("hush-hush-1", "a text without"),
        ("postgresql://u:hush-hush-1@127.0.0.1:1/d", r"ledger 'postgresql://u:\*\*\*@127.0.0.1:1/d' failed.*refused"),
        ("postgresql://u@127.0.0.1:1/d?password=hush-hush-1", "ledger 'postgresql://u@127.0.0.1:1/d' failed"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as raised:
        Ledger.open(url)
    assert "hush" not in str(raised.value)


def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    path.write_text("Dear diary, this is long enough to be no database at all. " * 20)
    with pytest.raises(StoreError, match=r"cannot be opened: file is not a database"):
        Ledger.open(f"sqlite:///{path}")
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match=r"is not a ledger: it holds the tables \['birds'\]"):
        Ledger.open(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("birds",)]
    connection.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Ledger.open(f"sqlite:///{tmp_path}/file/ledger.sqlite")


def test_a_write_that_fails_leaves_nothing(path: Path, ledger: Ledger) -> None:
    ledger.add("exchanges", [exchange("r")])
    with ledger._writing.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON bodies BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
    with pytest.raises(StoreError, match="exists"):  # how SQLite tells of a trigger
        ledger.add("bodies", [{"request_id": "r", "at": 1.0}])
    with ledger._writing.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bodies")
    with pytest.raises(StoreError, match=r"no such table: bodies; it needs a writable local file"):
        ledger.put("bodies", {"request_id": "r", "at": 1.0})
    assert ledger.count("exchanges") == 1


def test_a_file_that_is_held_for_long_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_engine, "_WAIT_S", 0.05)
    ledger = Ledger.open(f"sqlite:///{path}")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"database is locked; it needs .* that no other program holds for long"):
        ledger.put("journal_seen", {"name": "j", "at": 1.0})
    assert ledger.count("journal_seen") == 0
    holder.execute("COMMIT")
    ledger.put("journal_seen", {"name": "j", "at": 1.0})
    holder.close()
    ledger.close()


def test_a_writer_holds_the_file_from_the_moment_it_reads(path: Path, ledger: Ledger) -> None:
    """Else two could read the same epoch, and the second would fail for a reason that is none of its own."""
    other = sqlite3.connect(path, isolation_level=None, timeout=0)

    def work(connection: Any) -> None:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    ledger._write(work, again=False)
    other.execute("BEGIN IMMEDIATE")
    other.close()


def make_golden(path: Path) -> None:
    """What tests/golden/ledger-1.sqlite was made by, when revision 0001 was the newest."""
    ledger = Ledger.open(f"sqlite:///{path}")
    ledger.deploy(POINTER, AUDIT)
    ledger.move("d", 1, audit={**AUDIT, "action": "promote"}, snapshot="s2", state={"stage": "watch"})
    ledger.add("exchanges", [exchange("r1", signals={"accepted": True}), exchange("r2", at=200.5, user="u")])
    ledger.add("bodies", [{"request_id": "r1", "deployment": "d", "input": {"q": "ü"}, "output": "a", "at": 100.0}])
    ledger.add("feedback", [feedback("f", value=0.5)])
    assert ledger.claim("d", "analyze", 86_400.0, "me", 60.0, 0.0)
    ledger.close()
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA page_size=512", "VACUUM"):
        connection.execute(statement)
    connection.close()


def test_a_ledger_of_the_first_revision_loads_for_ever(path: Path) -> None:
    shutil.copyfile(GOLDEN, path)
    ledger = Ledger.open(f"sqlite:///{path}")
    row = ledger.first("deployments", {"name": "d"})
    assert row is not None
    assert (row["snapshot"], row["epoch"], row["state"]) == ("s2", 2, {"stage": "watch"})
    assert [each["action"] for each in ledger.find("audit", order="id")] == ["deploy", "promote"]
    first, second = ledger.find("exchanges", order="at")
    assert Exchange.model_validate(first) == Exchange.model_validate(exchange("r1", signals={"accepted": True}))
    assert (second["at"], second["user"]) == (200.5, "u")
    assert ledger.find("bodies")[0]["input"] == {"q": "ü"}
    assert ledger.find("feedback")[0]["value"] == 0.5
    assert not ledger.claim("d", "analyze", 86_400.0, "you", 60.0, 59.0)
    for table, columns in COLUMNS.items():
        assert all(found.keys() == columns.keys() for found in ledger.find(table))
    with ledger._reading.connect() as connection:
        assert connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one() == REVISION
    ledger.close()


def cut(ledger: Ledger) -> None:
    """Kill every connection of the ledger at the server."""
    assert server().run(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{ledger.shown.rsplit('/', 1)[1]}'"
    )


def test_connections_that_were_killed_are_replaced(postgres_url: str) -> None:
    ledger = Ledger.open(postgres_url)
    ledger.deploy(POINTER, AUDIT)
    cut(ledger)
    ledger.add("exchanges", [exchange("r")])
    cut(ledger)
    assert ledger.count("exchanges") == 1
    cut(ledger)
    assert ledger.move("d", 1, audit=AUDIT, snapshot="s2") == 2
    ledger.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_killed_amid_a_transaction_is_replaced_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    ledger = Ledger.open(postgres_url)
    ledger.deploy(POINTER, AUDIT)
    upsert, left = Ledger._upsert, [None] * times

    def cutting(self: Ledger, connection: Any, also: Any) -> None:
        if left:
            left.pop()
            cut(self)
        upsert(self, connection, also)

    monkeypatch.setattr(Ledger, "_upsert", cutting)
    also = [("incidents", {"id": "i", "deployment": "d", "at": 1.0})]
    if times == 1:
        assert ledger.move("d", 1, audit=AUDIT, snapshot="s2", also=also) == 2
        assert (ledger.count("audit"), ledger.count("incidents")) == (2, 1)
    else:
        with pytest.raises(StoreError, match=r"postgresql://evocluster:\*\*\*@.* failed.*; check that the server runs"):
            ledger.move("d", 1, audit=AUDIT, snapshot="s2", also=also)
        assert (ledger.count("audit"), ledger.count("incidents")) == (1, 0)
    ledger.close()


def test_lost_while_it_commits_a_move_is_not_repeated(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(postgres_url)
    ledger.deploy(POINTER, AUDIT)
    dialect: Any = ledger._reading.dialect
    commit, armed = dialect.do_commit, ["put"]

    def cutting(connection: Any) -> None:
        if armed:
            armed.pop()
            commit(connection)
            cut(ledger)
            connection.execute("SELECT 1")
        commit(connection)

    monkeypatch.setattr(dialect, "do_commit", cutting)
    ledger.put("journal_seen", {"name": "j", "at": 1.0})  # may be said twice, and was
    assert (ledger.count("journal_seen"), armed) == (1, [])
    armed.append("move")
    with pytest.raises(StoreError, match="whether it was written is not known"):
        ledger.move("d", 1, audit=AUDIT, snapshot="s2")
    assert ledger.count("deployments", {"epoch": 2}) == 1
    assert ledger.count("audit") == 2
    ledger.close()


def test_a_wrong_password_is_not_told(postgres_url: str) -> None:
    wrong = postgres_url.replace(f"{USER}:{server().password}@", f"{USER}:not-the-right-one@")
    with pytest.raises(StoreError, match="password authentication failed") as raised:
        Ledger.open(wrong)
    assert "not-the-right-one" not in str(raised.value)


def test_tables_of_something_else_in_postgresql_are_left_alone(postgres_url: str) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    server().run("CREATE TABLE audit (id int)", name)
    with pytest.raises(StoreError, match=r"is not a ledger: it holds the tables \['audit'\]"):
        Ledger.open(postgres_url)
    server().run("DROP TABLE audit", name)
    server().run("CREATE TABLE birds (id int)", name)
    Ledger.open(postgres_url).close()


def test_writers_of_one_process_stand_in_line(ledger: Ledger) -> None:
    """A writer that waits for another one of its process does not ask SQLite again and again."""
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Any) -> None:
        begun.set()
        go.wait(10)

    holder = threading.Thread(target=lambda: ledger._write(slow, again=True))
    holder.start()
    assert begun.wait(10)
    waiter = threading.Thread(target=lambda: ledger.put("journal_seen", {"name": "j", "at": 1.0}))
    waiter.start()
    assert ledger.count("journal_seen") == 0  # readers do not wait
    go.set()
    holder.join()
    waiter.join()
    assert ledger.count("journal_seen") == 1


if __name__ == "__main__":
    os.umask(0o022)
    make_golden(Path(sys.argv[1]))
