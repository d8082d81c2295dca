"""Sealed traffic: nothing lost or doubled wherever a process dies, old rows go, an erased user leaves nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from contract_ledger import exchange, feedback
from postgres import postgres_url

from evocluster.errors import RunHeld, StoreError
from evocluster.store import files, sealed
from evocluster.store.files import lock
from evocluster.store.ledger import Ledger
from evocluster.store.query import rows
from evocluster.store.sealed import DAY_S, deployment_folder, erase, expire, requests_of, seal

__all__ = ["postgres_url"]
DAY = 20_000 * DAY_S
"""2024-10-04, midnight."""
SEEN = (
    'SELECT request_id, user_of, body FROM (SELECT e.request_id, e."user" AS user_of, b.output AS body FROM exchanges e'
)
SEEN += " LEFT JOIN bodies b USING (request_id)) ORDER BY request_id"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/l.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Ledger.open(url)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "traffic"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path}/local.sqlite")
    yield opened
    opened.close()


def fill(ledger: Ledger, count: int = 12, days: int = 3, deployment: str = "d") -> None:
    """`count` requests over `days`, every third without a body, of users u0, u1 and nobody."""
    told = []
    for number in range(count):
        at = DAY + number * days * DAY_S / count
        user = ("u0", "u1", "")[number % 3]
        told.append(exchange(f"{deployment}-{number:03d}", at, deployment, user=user, signals={"n": number}))
    ledger.add("exchanges", told)
    bodies = [
        {"request_id": row["request_id"], **{name: row[name] for name in ("deployment", "user", "at")}}
        for row in told[::3] + told[1::3]
    ]
    ledger.add("bodies", [{**row, "input": {"q": row["request_id"]}, "output": "a"} for row in bodies])


def seen(ledger: Ledger, folder: Path, deployment: str = "d") -> list[dict[str, Any]]:
    """What a reader counts, whichever of the two it lies in."""
    return rows(SEEN, folder=folder, deployment=deployment, ledger=ledger)


def stored(folder: Path, deployment: str = "d") -> list[str]:
    """Requests in Parquet, sorted, doubled ones twice."""
    found = [pq.ParquetFile(path).read() for path in sealed.parts(folder, deployment)]
    return sorted(id for table in found for id in table["request_id"].to_pylist())


def test_what_is_older_moves_to_its_days_and_is_read_as_before(ledger: Ledger, folder: Path) -> None:
    fill(ledger)
    fill(ledger, deployment="a/b")
    before = seen(ledger, folder)
    assert seal(ledger, folder, "d", DAY + 2 * DAY_S) == 8
    assert sorted(path.parent.relative_to(folder).as_posix() for path in sealed.parts(folder, "d")) == [
        "deployment=d/day=2024-10-04",
        "deployment=d/day=2024-10-05",
    ]
    assert (ledger.count("exchanges", {"deployment": "d"}), ledger.count("bodies", {"deployment": "d"})) == (4, 2)
    assert ledger.count("exchanges", {"deployment": "a/b"}) == 12
    assert seen(ledger, folder) == before
    assert seal(ledger, folder, "d", DAY + 2 * DAY_S) == 0
    assert seal(ledger, folder, "a/b", DAY + 9 * DAY_S) == 12
    assert len(stored(folder, "a/b")) == 12
    assert deployment_folder(folder, "a/b").name == "deployment=a%2Fb"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    row = pq.ParquetFile(sealed.parts(folder, "d")[0]).read().to_pylist()[1]
    assert (row["request_id"], row["at"], row["signals"], row["input"]) == (
        "d-001",
        DAY + DAY_S / 4,
        '{"n":1}',
        '{"q":"d-001"}',
    )


def test_a_day_in_many_parts_and_late_arrivals(local: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "ROWS", 3)
    monkeypatch.setattr(sealed, "_ASKED", 2)
    fill(local, count=10, days=1)
    before = seen(local, folder)
    assert seal(local, folder, "d", DAY + 2 * DAY_S) == 10
    assert len(sealed.parts(folder, "d")) == 4
    assert seen(local, folder) == before
    # A journal that is read again after the day was sealed: what is there already is not there twice.
    local.add("exchanges", [exchange("d-004", DAY + 4 * DAY_S / 10), exchange("late", DAY + 1)])
    assert seal(local, folder, "d", DAY + 2 * DAY_S) == 2
    assert stored(folder) == sorted([*(row["request_id"] for row in before), "late"])
    assert local.count("exchanges") == 0


class Killed(BaseException):
    """What an injected death is told apart by."""


def steps(monkeypatch: pytest.MonkeyPatch, die: Callable[[str], None]) -> None:
    """Call `die` before and after everything that `seal` changes."""

    def around(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def told(*arguments: Any, **named: Any) -> Any:
            die(f"before {name}")
            result = real(*arguments, **named)
            die(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, told)

    around(Ledger, "delete")
    around(Path, "replace")
    around(files, "sync_folder")
    around(sealed, "sync_folder")
    around(pq, "write_table")


@pytest.mark.slow
def test_killed_at_any_step_no_row_is_lost_or_doubled(
    local: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "ROWS", 2)
    deaths: list[str] = []
    killed, at = True, 0
    while killed:
        deployment = f"d{at}"
        fill(local, count=4, days=2, deployment=deployment)
        sealed.deployment_folder(folder, deployment).mkdir(parents=True)
        before = [f"{deployment}-{number:03d}" for number in range(4)]
        left = [at]

        def die(step: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                deaths.append(step)
                raise Killed

        with monkeypatch.context() as patched:
            steps(patched, die)
            try:
                seal(local, folder, deployment, DAY + 2 * DAY_S)
                killed = False
            except Killed:
                pass
        told = seen(local, folder, deployment)
        assert [row["request_id"] for row in told] == before  # readers count every row once, at any moment
        assert [row["body"] for row in told] == ["a", "a", None, "a"]
        moved = seal(local, folder, deployment, DAY + 2 * DAY_S)
        assert killed or moved == 0
        assert stored(folder, deployment) == before
        files_now = [pq.ParquetFile(path).read(["output"]) for path in sealed.parts(folder, deployment)]
        assert [output for table in files_now for output in table["output"].to_pylist()].count("a") == 3
        assert local.count("exchanges") + local.count("bodies") == 0
        at += 1
    assert {"before delete", "after delete", "before replace", "after replace", "after write_table"} <= set(deaths)
    assert len(deaths) >= 20


@pytest.mark.parametrize("step", ["after write_table", "after replace"])
def test_killed_for_good_no_row_is_lost_or_doubled(tmp_path: Path, local: Ledger, folder: Path, step: str) -> None:
    fill(local)
    before = seen(local, folder)
    arguments = [sys.executable, __file__, local.shown, str(folder), step]
    done = subprocess.run(arguments, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert seen(local, folder) == before
    seal(local, folder, "d", DAY + 3 * DAY_S)
    assert stored(folder) == [row["request_id"] for row in before]
    assert (local.count("exchanges"), seen(local, folder)) == (0, before)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_only_one_changes_a_deployment_at_a_time(local: Ledger, folder: Path) -> None:
    fill(local)
    deployment_folder(folder, "d").mkdir(parents=True)
    with lock(deployment_folder(folder, "d")):
        for change in (
            lambda: seal(local, folder, "d", DAY + DAY_S),
            lambda: expire(local, folder, "d", DAY),
            lambda: erase(local, folder, "d", "u0", DAY),
        ):
            with pytest.raises(RunHeld, match="in use by process"):
                change()
        assert seal(local, folder, "other", DAY + DAY_S) == 0
    assert seal(local, folder, "d", DAY + DAY_S) == 4


def test_bodies_go_first_and_then_the_rest(ledger: Ledger, folder: Path) -> None:
    fill(ledger)  # 4 a day over 3 days, 8 with bodies
    seal(ledger, folder, "d", DAY + 2 * DAY_S)
    assert expire(ledger, folder, "d", DAY + 30 * DAY_S) == {"bodies": 0, "exchanges": 0}
    # Half of the first day is older than 30 days: d-000 and d-001.
    assert expire(ledger, folder, "d", DAY + 30.5 * DAY_S) == {"bodies": 2, "exchanges": 0}
    with_body = [row["request_id"] for row in seen(ledger, folder) if row["body"] is not None]
    assert with_body == ["d-003", "d-004", "d-006", "d-007", "d-009", "d-010"]
    assert expire(ledger, folder, "d", DAY + 34 * DAY_S) == {"bodies": 6, "exchanges": 0}
    written = [path.stat().st_mtime_ns for path in sealed.parts(folder, "d")]
    assert expire(ledger, folder, "d", DAY + 34 * DAY_S) == {"bodies": 0, "exchanges": 0}
    assert [path.stat().st_mtime_ns for path in sealed.parts(folder, "d")] == written  # what holds nothing old is left
    assert [row["body"] for row in seen(ledger, folder)] == [None] * 12
    assert expire(ledger, folder, "d", DAY + 401.5 * DAY_S) == {"bodies": 0, "exchanges": 6}
    assert [row["request_id"] for row in seen(ledger, folder)] == [f"d-{number:03d}" for number in range(6, 12)]
    assert [path.parent.name for path in sealed.parts(folder, "d")] == ["day=2024-10-05"]
    assert expire(ledger, folder, "d", DAY + 999 * DAY_S)["exchanges"] == 6
    assert (seen(ledger, folder), sealed.parts(folder, "d")) == ([], [])


def test_an_erased_user_leaves_nothing_and_does_not_come_back(ledger: Ledger, folder: Path) -> None:
    fill(ledger)
    twin = exchange("shadow", DAY + 5, pair_id="p", is_shadow=True)
    late = DAY + 2.9 * DAY_S
    ledger.add("exchanges", [twin, exchange("primary", DAY + 5, pair_id="p", user="u0")])
    ledger.add("bodies", [{"request_id": "shadow", "deployment": "d", "at": DAY + 5, "output": "theirs"}])
    ledger.add("exchanges", [exchange("live", late, user="u0", error="their words", signals={"x": 1})])
    ledger.add("bodies", [{"request_id": "live", "deployment": "d", "user": "u0", "at": late, "output": "theirs"}])
    ledger.add(
        "pairs", [{"pair_id": "p", "deployment": "d", "at": DAY, "primary_id": "primary", "shadow_id": "shadow"}]
    )
    ledger.add("feedback", [feedback("f", request_id="live", value="their words"), feedback("g", request_id="d-001")])
    seal(ledger, folder, "d", DAY + 2 * DAY_S)
    theirs = ["d-000", "d-003", "d-006", "d-009", "live", "primary", "shadow"]
    assert requests_of(ledger, folder, "d", "u0") == theirs
    assert erase(ledger, folder, "d", "u0", DAY + 3 * DAY_S) == theirs
    left = seen(ledger, folder)
    assert not [row for row in left if row["user_of"] == "u0"]
    assert [row["request_id"] for row in left if row["request_id"] in theirs] == ["d-009", "live"]  # not yet sealed
    assert not [row for row in left if row["request_id"] in theirs and row["body"] is not None]
    live = ledger.first("exchanges", {"request_id": "live"})
    assert live is not None
    assert (live["user"], live["error"], live["signals"], live["at"]) == ("", "", {}, late)
    assert b"theirs" not in b"".join(path.read_bytes() for path in sealed.parts(folder, "d"))
    assert ([row["feedback_id"] for row in ledger.find("feedback")], ledger.count("pairs")) == (["g"], 0)
    assert len([row for row in left if row["user_of"] == "u1"]) == 4
    assert [row["body"] for row in left if row["user_of"] == "u1"] == ["a"] * 4
    ledger.add("exchanges", [exchange("again", DAY + 1, user="u0")])
    ledger.add("bodies", [{"request_id": "again", "deployment": "d", "user": "u0", "at": DAY + 1, "output": "theirs"}])
    assert erase(ledger, folder, "d", "u0", DAY + 4 * DAY_S) == []
    with pytest.raises(StoreError, match="no user: give the keyed hash"):
        erase(ledger, folder, "d", "", DAY)


def test_what_arrived_just_when_its_user_was_erased_is_not_sealed(local: Ledger, folder: Path) -> None:
    fill(local)
    local.put("tombstones", {"deployment": "d", "user": "u0", "at": DAY})
    assert seal(local, folder, "d", DAY + 3 * DAY_S) == 12
    told = seen(local, folder)
    assert sorted({row["user_of"] for row in told}) == ["", "u1"]
    assert {row["user_of"] for row in told if row["body"] is not None} == {"u1"}


def test_a_damaged_file_is_told_by_name(local: Ledger, folder: Path) -> None:
    fill(local)
    seal(local, folder, "d", DAY + 3 * DAY_S)
    damaged = sealed.parts(folder, "d")[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(StoreError, match=rf"{damaged.name}.* cannot be read: .*restore the file"):
        requests_of(local, folder, "d", "u0")
    with pytest.raises(StoreError, match="failed"):
        seen(local, folder)


def _main(url: str, folder: str, at: str) -> None:
    """Seal, and die at a step."""
    with pytest.MonkeyPatch.context() as patched:
        steps(patched, lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == at else None)
        seal(Ledger.open(url), Path(folder), "d", DAY + 3 * DAY_S)


if __name__ == "__main__":
    _main(*sys.argv[1:])
