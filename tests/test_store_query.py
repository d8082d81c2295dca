"""SQL over recorded traffic: what is sealed and what is recent as one, read only, nothing else in reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_ledger import exchange

from evocluster.errors import StoreError
from evocluster.store import query, sealed
from evocluster.store.ledger import Ledger
from evocluster.store.query import rows
from evocluster.store.sealed import DAY_S, deployment_folder, seal

DAY = 20_000 * DAY_S


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "it's [traffic]"


@pytest.fixture
def ledger(tmp_path: Path, folder: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path}/l.sqlite")
    told = [
        exchange(f"r{number}", DAY + number * DAY_S / 2, intent="ab"[number % 2], cost_usd=0.5, signals={"n": number})
        for number in range(8)
    ]
    opened.add("exchanges", told)
    opened.add(
        "bodies",
        [{"request_id": row["request_id"], "deployment": "d", "at": row["at"], "output": "x"} for row in told[::2]],
    )
    opened.add("exchanges", [exchange("other", DAY, deployment="e")])
    seal(opened, folder, "d", DAY + 2 * DAY_S)
    seal(opened, folder, "e", DAY + 2 * DAY_S)
    yield opened
    opened.close()


def test_sealed_and_recent_rows_are_one(ledger: Ledger, folder: Path) -> None:
    def ask(sql: str, *parameters: Any, **more: Any) -> list[dict[str, Any]]:
        return rows(sql, parameters, folder=folder, deployment="d", ledger=ledger, **more)

    assert ask("SELECT intent, count(*) AS n, sum(cost_usd) AS usd FROM exchanges GROUP BY ALL ORDER BY 1") == [
        {"intent": "a", "n": 4, "usd": 2.0},
        {"intent": "b", "n": 4, "usd": 2.0},
    ]
    assert ask('SELECT max("at") AS last FROM Exchanges WHERE intent = ?', "b") == [{"last": DAY + 3.5 * DAY_S}]
    assert ask("FROM bodies SELECT count(*) AS n") == [{"n": 4}]
    assert ask("SELECT (signals ->> 'n')::INT AS n FROM exchanges WHERE request_id = 'r1'") == [{"n": 1}]
    assert ask("SELECT is_shadow, confidence, flags FROM exchanges LIMIT 1") == [
        {"is_shadow": False, "confidence": None, "flags": "[]"}
    ]
    named = {"since": DAY + DAY_S, "until": DAY + 2.5 * DAY_S}
    sql = "SELECT request_id FROM exchanges ORDER BY 1"
    assert [row["request_id"] for row in ask(sql, **named)] == ["r2", "r3", "r4"]
    assert rows("SELECT count(*) AS n FROM exchanges", folder=folder, deployment="d") == [{"n": 4}]
    found = rows("SELECT $n + 1 AS m FROM exchanges LIMIT 1", {"n": 1}, folder=folder, deployment="d")
    assert found == [{"m": 2}]


def test_a_deployment_without_any_traffic_works(ledger: Ledger, tmp_path: Path) -> None:
    sql = "SELECT count(*) AS n, (SELECT count(*) FROM bodies) AS m FROM exchanges"
    assert rows(sql, folder=tmp_path / "none", deployment="new", ledger=ledger) == [{"n": 0, "m": 0}]
    assert rows(sql, folder=tmp_path / "none", deployment="new") == [{"n": 0, "m": 0}]


def test_a_row_in_both_is_counted_once(ledger: Ledger, folder: Path) -> None:
    ledger.add("exchanges", [exchange("r0", DAY)])
    found = rows("SELECT request_id FROM exchanges", folder=folder, deployment="d", ledger=ledger)
    assert sorted(row["request_id"] for row in found) == [f"r{number}" for number in range(8)]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1; SELECT 2", "is not one SELECT"),
        ("", "is not one SELECT"),
        ("COPY exchanges TO '{folder}/stolen.csv'", "is not one SELECT"),
        ("CREATE TABLE t AS SELECT 1", "is not one SELECT"),
        ("SET memory_limit = '9GB'", "is not one SELECT"),
        ("ATTACH '{folder}/x.db'", "is not one SELECT"),
        ("INSTALL httpfs", "is not one SELECT"),
        ("EXPLAIN ANALYZE SELECT 1", "is not one SELECT"),
        ("SELEC 1", "failed: Parser Error"),
        ("SELECT nothing FROM exchanges", "failed: Binder Error"),
        ("SELECT * FROM ledger", r"failed: Catalog Error.*it reads exchanges and bodies"),
        ("SELECT * FROM read_csv('/etc/passwd')", "failed: Permission Error"),
        ("SELECT * FROM '/etc/passwd'", "failed: "),
        ("SELECT * FROM glob('/etc/*')", "failed: Permission Error"),
        ("SELECT * FROM read_parquet('{other}')", "failed: Permission Error"),
        ("SELECT request_id, request_id FROM exchanges", "two columns the same name"),
        ("SELECT request_id FROM exchanges WHERE request_id = ?", "failed: Invalid Input Error"),
        ("SELECT count(DISTINCT a.range * b.range) FROM range(9000) a, range(9000) b", "failed: Out of Memory"),
    ],
)
def test_only_reading_and_only_this_deployment(ledger: Ledger, folder: Path, sql: str, said: str) -> None:
    (other,) = deployment_folder(folder, "e").glob("*/*.parquet")
    there = sorted(folder.rglob("*"))
    sql = sql.replace("{folder}", str(folder).replace("'", "''")).replace("{other}", str(other).replace("'", "''"))
    with pytest.raises(StoreError, match=said):
        rows(sql, folder=folder, deployment="d", ledger=ledger, memory_mb=64)
    assert sorted(folder.rglob("*")) == there


def test_nothing_is_asked_of_the_network(ledger: Ledger, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x.parquet"
        with pytest.raises(StoreError, match="failed"):
            rows(f"SELECT * FROM read_parquet('{url}')", folder=folder, deployment="d", ledger=ledger)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_file_that_expires_meanwhile_is_not_missed(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = query._connected, [1]

    def late(files: list[Path], *more: Any) -> Any:
        if left:
            left.pop()
            files[0].unlink()
        return real(files, *more)

    monkeypatch.setattr(query, "_connected", late)
    sql = "SELECT count(*) AS n FROM exchanges"
    assert rows(sql, folder=folder, deployment="d", ledger=ledger) == [{"n": 6}]
    assert len(sealed.parts(folder, "d")) == 1


def test_a_row_sealed_while_it_is_read_is_not_missed(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = query._recent

    def then_sealed(*arguments: Any) -> Any:
        found = real(*arguments)
        seal(ledger, folder, "d", DAY + 9 * DAY_S)
        return found

    monkeypatch.setattr(query, "_recent", then_sealed)
    assert rows("SELECT count(*) AS n FROM exchanges", folder=folder, deployment="d", ledger=ledger) == [{"n": 8}]
    assert ledger.count("exchanges") == 0
