"""The recorder: everything is written once, nobody waits for it, and a kill takes what is younger than `linger_ms`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_ledger import FakeLedger, FileLedger

from evocluster.errors import StoreError
from evocluster.online.journal import Journal
from evocluster.online.ledger import Ledger
from evocluster.online.recorder import Recorder
from evocluster.online.scrub import Scrubbed, Scrubber
from evocluster.records import Json
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Recording
from evocluster.telemetry import counts

SCRUBBER = Scrubber(b"k" * 32)
Make = Callable[..., Recorder]


def exchange(number: int, **more: Json) -> Exchange:
    return Exchange(request_id=f"r{number:05d}", episode_id="e", deployment="d", at=float(number), **more)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes recorders with their journal in tmp_path/journal, and closes them."""
    made: list[Recorder] = []

    def one(ledger: Ledger, folder: str = "journal", **settings: Json) -> Recorder:
        recorder = Recorder(ledger, SCRUBBER, Recording(**settings), tmp_path / folder, retry_s=0.05)
        made.append(recorder)
        return recorder

    yield one
    for recorder in made:
        recorder.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for it; the test's own time limit is what ends a wait for nothing."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def ids(ledger: FakeLedger, table: str = "exchanges") -> list[str]:
    return sorted(row["request_id"] for row in ledger.find(table))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


class Away:
    """A database that can be away, by raising or by not answering."""

    def __init__(self) -> None:
        self.away = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, method: str, table: str) -> None:
        self.answers.wait(60)
        if self.away:
            raise StoreError("no connection")


def test_everything_is_written_once_scrubbed(make: Make) -> None:
    ledger = FakeLedger()
    recorder = make(ledger)
    for number in range(250):
        told = exchange(number, intent="ask jane@b.io", signals={"note": "jane@b.io"})
        recorder.record(told, {"q": "jane@b.io"}, "to jane@b.io", "jane@b.io failed", "jane")
    recorder.close()
    assert ids(ledger) == ids(ledger, "bodies") == [f"r{number:05d}" for number in range(250)]
    rows = [ledger.first("exchanges"), ledger.first("bodies")]
    assert "jane" not in json.dumps(rows)
    assert rows[0] is not None
    assert rows[0]["user"] == SCRUBBER.user_hash("jane")
    assert rows[0]["redaction_version"] == SCRUBBER.version
    assert Exchange.model_validate(rows[0]).intent.startswith("ask [email:")
    assert recorder.counters == {"recorded": 250, "journalled": 0, "dropped": 0, "scrub_failures": 0, "erased": 0}


def test_batches_are_of_a_hundred_or_what_there_is_after_a_while(make: Make) -> None:
    sizes: list[int] = []

    class Counting(FakeLedger):
        def add(self, table: str, rows: object) -> None:
            sizes.append(len(rows))  # type: ignore[arg-type]
            super().add(table, rows)  # type: ignore[arg-type]

    recorder = make(Counting(), linger_ms=10_000, bodies=False)
    for number in range(200):
        recorder.record(exchange(number), "", "")
    until(lambda: sum(sizes) == 200)
    assert sizes == [100, 100]
    recorder.record(exchange(200), "", "")
    recorder.close()
    assert sizes == [100, 100, 1]
    slow = make(Counting(), linger_ms=50, bodies=False)
    slow.record(exchange(1), "", "")
    until(lambda: sizes == [100, 100, 1, 1])


def test_a_body_that_cannot_be_scrubbed_is_not_kept_and_the_rest_is(make: Make) -> None:
    ledger = FakeLedger()
    recorder = make(ledger)
    recorder.record(exchange(1), {"a": object()}, "jane@b.io", "", "jane")
    recorder.record(exchange(2), "fine", "fine")
    recorder.close()
    assert (ids(ledger), ids(ledger, "bodies")) == (["r00001", "r00002"], ["r00002"])
    assert recorder.counters["scrub_failures"] == 1


def test_intent_and_signals_are_looked_through_where_they_are_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Json] = []
    real = Scrubber.scrub

    def scrub(self: Scrubber, input: Json, output: str, *rest: str) -> Scrubbed:
        seen.append(input)
        return real(self, input, output, *rest)

    monkeypatch.setattr(Scrubber, "scrub", scrub)
    ledger = FakeLedger()
    recorder = make(ledger)
    recorder.record(exchange(1), "x", "y")
    assert seen == ["x"], "most callers say neither, and every look delays the requests beside it"
    recorder.record(exchange(2, intent="jane@b.io"), "x", "y")
    recorder.close()
    rows = ledger.find("exchanges", order="request_id")
    assert (rows[0]["intent"], rows[0]["signals"]) == ("", {})
    assert rows[1]["intent"].startswith("[email:")


def test_bodies_are_kept_where_asked_for_only(make: Make) -> None:
    ledger = FakeLedger()
    recorder = make(ledger, bodies=False)
    recorder.record(exchange(1), "x", "y")
    recorder.close()
    assert (ids(ledger), ids(ledger, "bodies")) == (["r00001"], [])


def test_while_the_database_is_away_the_journal_takes_it_and_gives_it_back(make: Make, tmp_path: Path) -> None:
    away = Away()
    ledger = FakeLedger(away)
    recorder = make(ledger)
    away.away = True
    for number in range(150):
        recorder.record(exchange(number), "from jane@b.io", "y", "", "jane")
    until(lambda: recorder.counters["journalled"] == 150)
    written = files(tmp_path / "journal")
    assert written
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in written)
    assert not any("jane" in file.read_text() for file in written)
    assert recorder.away
    away.away = False
    until(lambda: len(ledger.find("exchanges")) == 150 and not files(tmp_path / "journal"))
    recorder.close()
    assert len(ids(ledger, "bodies")) == 150
    assert (recorder.counters["recorded"], recorder.counters["dropped"], recorder.away) == (150, 0, False)


def test_a_database_that_does_not_answer_holds_nothing_up(make: Make) -> None:
    away = Away()
    ledger = FakeLedger(away)
    recorder = make(ledger, linger_ms=20)
    away.answers.clear()
    for number in range(120):
        recorder.record(exchange(number), "x", "y")
    until(lambda: recorder.counters["journalled"] == 120)
    assert recorder.away
    away.answers.set()
    until(lambda: recorder.counters["recorded"] == 120)
    recorder.close()
    assert ids(ledger) == ids(ledger, "bodies") == [f"r{number:05d}" for number in range(120)]


def test_what_the_queue_has_no_place_for_goes_to_the_journal_and_then_is_dropped(make: Make) -> None:
    away = Away()
    ledger = FakeLedger(away)
    recorder = make(ledger, queue=10, batch=5, linger_ms=10)
    with recorder._changed:  # the writer gets no turn
        for number in range(25):
            recorder.record(exchange(number), "x", "y")
    recorder.close()
    assert recorder.counters["dropped"] == 5
    assert recorder.counters["journalled"] >= 10
    late = make(ledger)
    until(lambda: len(ids(ledger)) == 20)
    late.close()


def test_what_no_disk_takes_is_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(journal: Journal, lines: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(Journal, "append", full)
    away = Away()
    before = counts["recorder_dropped"]
    recorder = make(FakeLedger(away))
    away.away = True
    for number in range(7):
        recorder.record(exchange(number), "x", "y")
    recorder.close()
    assert recorder.counters["dropped"] == counts["recorder_dropped"] - before == 7


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, lambda: "one")
    journal.append(['{"a":1}'])
    real = os.write

    def short(handle: int, payload: bytes) -> int:
        if len(payload) < 4:
            raise OSError(28, "No space left on device")
        return real(handle, payload[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(StoreError, match="No space left"):
            journal.append(['{"b":2}'])
    journal.append(['{"c":3}'])
    assert journal.lines("one.jsonl") == [{"a": 1}, {"c": 3}]


def test_a_journal_left_by_another_process_is_read_once(make: Make, tmp_path: Path) -> None:
    left = Journal(tmp_path / "journal", lambda: "0-left")
    lines = [json.dumps({"exchange": exchange(n).model_dump(mode="json"), "body": None}) for n in range(3)]
    left.append(lines)
    left.append(['{"exchange": {"request'[:-1]])
    ledger = FakeLedger()
    make(ledger, "other").close()
    held = make(ledger)
    held.record(exchange(9), "x", "y")
    until(lambda: ids(ledger) == ["r00009"])
    time.sleep(0.1)
    assert ids(ledger) == ["r00009"]  # the other one lives, and writes it
    kept = files(tmp_path / "journal")[0].read_bytes()
    left.rest()
    until(lambda: len(ids(ledger)) == 4)
    held.close()
    assert [row["name"] for row in ledger.find("journal_seen")] == ["0-left.jsonl"]
    ledger.delete("exchanges", {})
    (tmp_path / "journal" / "0-left.jsonl").write_bytes(kept)  # as if the kill came before it was removed
    make(ledger).close()
    assert ids(ledger) == []
    assert files(tmp_path / "journal") == []


def test_a_record_that_the_database_cannot_hold_stops_no_other(make: Make, tmp_path: Path) -> None:
    left = Journal(tmp_path / "journal", lambda: "0-left")
    left.append([json.dumps({"exchange": exchange(n).model_dump(mode="json"), "body": None}) for n in range(10)])
    left.rest()

    class Picky(FakeLedger):
        def add(self, table: str, rows: object) -> None:
            if any(row["request_id"] == "r00000" for row in rows):  # type: ignore[attr-defined]
                raise ValueError("cannot be held")
            super().add(table, rows)  # type: ignore[arg-type]

    ledger = Picky()
    recorder = make(ledger)
    recorder.record(exchange(77), "x", "y")
    until(lambda: len(ids(ledger)) == 10)
    recorder.close()
    assert "r00000" not in ids(ledger)
    assert [file.name for file in files(tmp_path / "journal")] == ["0-left.jsonl"]


def test_deleted_users_are_not_written_whenever_they_were_deleted(make: Make) -> None:
    away = Away()
    ledger = FakeLedger(away)
    stone = {"deployment": "d", "user": SCRUBBER.user_hash("jane"), "at": 0.0}
    recorder = make(ledger)
    away.away = True
    recorder.record(exchange(1), "x", "y", "", "jane")
    recorder.record(exchange(2), "x", "y", "", "joe")
    until(lambda: recorder.counters["journalled"] == 2)
    away.away = False
    ledger.put("tombstones", stone)
    until(lambda: ids(ledger) == ["r00002"])
    recorder.record(exchange(3), "x", "y", "", "jane")
    recorder.close()
    assert ids(ledger) == ids(ledger, "bodies") == ["r00002"]
    assert recorder.counters["erased"] == 2


def test_a_user_who_is_deleted_while_a_batch_is_written_is_gone(make: Make) -> None:
    def meanwhile(method: str, table: str) -> None:
        if (method, table) == ("add", "exchanges"):
            ledger.tables["tombstones"]["d", stone["user"]] = stone

    stone = {"deployment": "d", "user": SCRUBBER.user_hash("jane"), "at": 0.0}
    ledger = FakeLedger(meanwhile)
    recorder = make(ledger)
    recorder.record(exchange(1), "x", "y", "", "jane")
    recorder.close()
    assert (ids(ledger), ids(ledger, "bodies"), recorder.counters["erased"]) == ([], [], 1)


def test_what_comes_after_the_end_is_counted(make: Make) -> None:
    recorder = make(FakeLedger())
    recorder.close()
    recorder.close()
    recorder.record(exchange(1), "x", "y")
    assert recorder.counters["dropped"] == 1


def test_threads_record_at_once(make: Make) -> None:
    ledger = FakeLedger()
    recorder = make(ledger)

    def many(begin: int) -> None:
        for number in range(begin, begin + 100):
            recorder.record(exchange(number), "x", "y")

    threads = [threading.Thread(target=many, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert len(ids(ledger)) == recorder.counters["recorded"] == 400


CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from fake_ledger import FileLedger
from evocluster.errors import StoreError
from evocluster.online.recorder import Recorder
from evocluster.online.scrub import Scrubber
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Recording

began = time.monotonic()

def before(method, table):
    if {mode!r} == "away" or ({mode!r} == "leaves" and time.monotonic() > began + 0.4):
        raise StoreError("no connection")
    if {mode!r} == "hangs":
        time.sleep(3600)

ledger = FileLedger(Path({folder!r}) / "ledger", before)
recorder = Recorder(ledger, Scrubber(b"k" * 32), Recording(), Path({folder!r}) / "journal")
number = 0
while True:
    recorder.record(Exchange(request_id=str(number), episode_id="e", deployment="d", at=0.0), "question", "answer")
    os.write(1, f"{{number}} {{time.monotonic()}}\\n".encode())
    number += 1
    time.sleep(0.002)
"""


@pytest.mark.parametrize("mode", ["there", "away", "leaves", "hangs"])
def test_a_kill_takes_nothing_older_than_a_tenth_of_a_second(mode: str, make: Make, tmp_path: Path) -> None:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path), mode=mode)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(350)]
    child.send_signal(signal.SIGKILL)
    told += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    child.stdout.close()
    child.wait()
    times = dict(line.decode().split() for line in told)
    ledger = FileLedger(tmp_path / "ledger")
    recorder = make(ledger)
    until(lambda: not files(tmp_path / "journal"))
    recorder.close()
    last = max(map(float, times.values()))
    kept = set(ids(ledger))
    lost = [last - float(at) for number, at in times.items() if number not in kept]
    assert max(lost, default=0.0) <= 0.1, f"{len(lost)} lost, the oldest {max(lost):.3f} s before the end"
    assert len(kept) >= 200
    assert kept == set(ids(ledger, "bodies"))
    ledger.close()


def test_the_ledger_that_ships(make: Make, tmp_path: Path) -> None:
    ledger = pytest.importorskip("evocluster.store.ledger").Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    recorder = make(ledger)
    for number in range(120):
        recorder.record(exchange(number, signals={"accepted": True}), {"q": [1, "x"]}, "y", "", "jane")
    recorder.close()
    assert recorder.counters["dropped"] == 0
    again = make(ledger)
    again.record(exchange(0), "x", "y")
    until(lambda: ledger.count("exchanges") == 120)  # on a busy machine some went by the journal
    again.close()
    assert ledger.count("bodies") == 120
    assert ledger.first("bodies", {"request_id": "r00001"})["input"] == {"q": [1, "x"]}
    assert ledger.count("exchanges") == 120
    ledger.close()
