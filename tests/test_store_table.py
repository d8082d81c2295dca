"""The trials table: whole batches in order, through cuts at every byte, kills, full disks and damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import DataError, RunDamaged, RunExists, StoreError
from evocluster.store import arrow, receipts
from evocluster.store.table import Table, scan

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {"n": "int64", "text": "string", "score": "float64", "ok": "bool", "tags": "list<string>"}
Row = dict[str, Any]


def row(number: int, text: str | None = "hello") -> Row:
    return {"n": number, "text": text, "score": number / 3, "ok": number % 2 == 0, "tags": ["a", text or ""]}


def trial(number: int, size: int = 3) -> list[Row]:
    return [row(number * 100 + part, f"trial {number}") for part in range(size)]


def flat(table: Table) -> list[Row]:
    return [entry for rows in table.read() for entry in rows]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def crash(table: Table) -> None:
    """Forget the table without closing it, as a killed process does."""
    table._release()


def test_rows_come_back_in_order_over_parts_and_tail(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "trials", COLUMNS, seal_rows=7)
    expected = []
    for number in range(10):
        table.append(trial(number))
        expected += trial(number)
    assert names(tmp_path / "trials") == [
        *("part-000001.parquet", "part-000002.parquet", "part-000003.parquet", "tail-000004.arrows"),
        "tail-000004.receipts",
    ]
    assert (flat(table), table.rows) == (expected, 30)
    table.close()
    table.close()
    assert names(tmp_path / "trials") == [f"part-{number:06d}.parquet" for number in range(1, 5)]
    assert flat(table) == expected


def test_pandas_reads_a_closed_table(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "trials", COLUMNS, seal_rows=2)
    for number in range(4):
        table.append(trial(number))
    table.close()
    frame = pd.read_parquet(tmp_path / "trials")
    assert list(frame.columns) == list(COLUMNS)
    assert frame["n"].tolist() == [entry["n"] for number in range(4) for entry in trial(number)]


def test_a_reopened_table_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    table = Table.create(folder, COLUMNS, seal_rows=5)
    for number in range(4):
        table.append(trial(number))
    crash(table)
    again = Table.open(folder, COLUMNS, seal_rows=5)
    assert (again.rows, again.torn_bytes) == (12, 0)
    again.append(trial(4))
    again.close()
    last = Table.open(folder, COLUMNS)
    assert flat(last) == [entry for number in range(5) for entry in trial(number)]
    last.append(trial(5))
    last.close()
    assert last.rows == 18


def test_an_empty_table_is_opened_and_closed(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append([])
    table.close()
    assert names(tmp_path) == []
    again = Table.open(tmp_path, COLUMNS)
    assert (again.rows, flat(again)) == (0, [])
    again.close()


def test_missing_columns_and_none_are_null(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append([{"n": 1}, {**dict.fromkeys(COLUMNS), "score": 2}])
    assert flat(table) == [{**dict.fromkeys(COLUMNS), "n": 1}, {**dict.fromkeys(COLUMNS), "score": 2.0}]
    table.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"m": 1}, r"\['m'\] are not in the table"),
        ({"n": 1.5}, "'n' cannot hold 1.5"),
        ({"n": True}, "'n' cannot hold True"),
        ({"n": 2**70}, "'n' of type int64"),
        ({"text": 7}, "'text' cannot hold 7"),
        ({"text": b"raw"}, "'text' cannot hold b'raw'"),
        ({"tags": "ab"}, "'tags' cannot hold 'ab'"),
        ({"tags": [1]}, r"'tags' cannot hold \[1\]"),
        ({"ok": 1}, "'ok' cannot hold 1"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_whole(tmp_path: Path, wrong: Row, message: str) -> None:
    table = Table.create(tmp_path, COLUMNS)
    with pytest.raises(StoreError, match=message):
        table.append([row(1), wrong])
    table.append([row(2)])
    assert flat(table) == [row(2)]
    table.close()


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append([{"text": "a\ud800b", "tags": ["\udfff", "c"]}, {"text": None}])
    assert [(entry["text"], entry["tags"]) for entry in flat(table)] == [("a?b", ["?", "c"]), (None, None)]
    table.close()


def test_a_second_table_in_the_folder_is_refused(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append(trial(0))
    with pytest.raises(RunExists, match="already holds a table"):
        Table.create(tmp_path, COLUMNS)
    table.close()
    with pytest.raises(RunExists, match="already holds a table"):
        Table.create(tmp_path, COLUMNS)
    with pytest.raises(StoreError, match="is closed"):
        table.append(trial(1))
    with pytest.raises(StoreError, match="'decimal'"):
        Table.create(tmp_path, {"n": "decimal"})


def test_fsync_comes_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = [0.0], []
    table = Table.create(tmp_path, COLUMNS, clock=lambda: now[0])
    table.append(trial(0))
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(now[0]))
    for second in (0.5, 0.9, 1.0, 1.5, 1.99, 2.0):
        now[0] = second
        table.append(trial(1))
    assert synced == [1.0, 1.0, 2.0, 2.0]  # the tail, and the receipts that say so
    table.close()
    assert len(synced) > 2


def tail_bytes(trials: int) -> tuple[bytes, list[int]]:
    """A tail, and the offsets where its schema and each of its batches end."""
    parts = [
        arrow.schema_bytes(COLUMNS),
        *(arrow.batch_bytes(trial(n, 1 + n % 3), COLUMNS) for n in range(trials)),
    ]
    ends = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
    return b"".join(parts), ends


def test_a_tail_cut_at_every_byte_gives_its_whole_batches() -> None:
    whole, ends = tail_bytes(3)
    for size in range(len(whole) + 1):
        found = list(arrow.tail_batches(pa.BufferReader(whole[:size]), size, "tail", COLUMNS))
        assert [end for _, end in found] == [end for end in ends[1:] if end <= size]
        assert [batch.to_pylist() for batch, _ in found] == [trial(n, 1 + n % 3) for n in range(len(found))]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_table_cut_anywhere_opens_reads_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, ends = tail_bytes(4)
    near = [end + step for end in ends for step in (-1, 0, 1) if end + step <= len(whole)]
    size = data.draw(st.one_of(st.sampled_from(near), st.integers(0, len(whole))))
    padding = data.draw(st.sampled_from([0, 0, 1, 8, 5000]))
    folder = tmp_path_factory.mktemp("trials")
    (folder / "tail-000001.arrows").write_bytes(whole[:size] + b"\0" * padding * (size in ends))
    kept = [entry for n, end in enumerate(ends[1:]) if end <= size for entry in trial(n, 1 + n % 3)]
    assert [entry for rows in scan(folder) for entry in rows] == kept
    table = Table.open(folder, COLUMNS)
    assert (flat(table), table.rows) == (kept, len(kept))
    table.append(trial(9))
    crash(table)
    again = Table.open(folder, COLUMNS)
    assert (again.torn_bytes, flat(again)) == (0, kept + trial(9))
    again.close()
    assert flat(again) == kept + trial(9)
    shutil.rmtree(folder)


def test_a_torn_tail_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, ends = tail_bytes(2)
    (tmp_path / "tail-000001.arrows").write_bytes(whole[:-10])
    table = Table.open(tmp_path, COLUMNS)
    assert table.torn_bytes == len(whole) - 10 - ends[1]
    assert (tmp_path / "tail-000001.arrows").stat().st_size == ends[1]
    assert "half-written append" in caplog.text
    table.close()


@pytest.mark.parametrize("offset", [4, 5, 8, 20, 42])
def test_a_broken_record_that_is_all_there_is_damage(tmp_path: Path, offset: int) -> None:
    whole, ends = tail_bytes(3)
    path = tmp_path / "tail-000001.arrows"
    for start in (0, *ends[:2]):
        content = bytearray(whole)
        content[start + offset] ^= 0x7F
        path.write_bytes(content)
        with pytest.raises(RunDamaged, match=r"tail-000001\.arrows"):
            Table.open(tmp_path, COLUMNS)
        assert path.read_bytes() == bytes(content)


def test_no_flipped_byte_makes_a_tail_lose_more_than_its_last_record() -> None:
    whole, ends = tail_bytes(3)
    for spot in range(0, len(whole), 3):
        content = bytearray(whole)
        content[spot] ^= 0xFF
        try:
            found = list(arrow.tail_batches(pa.BufferReader(bytes(content)), len(content), "tail", COLUMNS))
        except RunDamaged:
            continue
        assert len(found) == 3 or (spot >= ends[2] and len(found) == 2)
        assert all(batch.to_pylist() for batch, _ in found)  # what was let through can be decoded


def written(folder: Path, trials: int = 4, synced: int | None = None) -> tuple[bytes, bytes]:
    """A table whose writer was killed, with an fsync after append `synced`; its tail and its receipts."""
    now = [0.0]
    table = Table.create(folder, COLUMNS, clock=lambda: now[0])
    for number in range(trials):
        now[0] += 2.0 * (number == synced)
        table.append(trial(number))
    crash(table)
    return tuple((folder / f"tail-000001.{kind}").read_bytes() for kind in ("arrows", "receipts"))  # type: ignore[return-value]


def test_every_damage_of_a_tail_or_its_receipts_is_noticed(tmp_path: Path) -> None:
    tail, said = written(tmp_path)
    expected = [entry for number in range(4) for entry in trial(number)]
    for name, whole in (("tail-000001.arrows", tail), ("tail-000001.receipts", said)):
        recovered = []
        for spot in range(0, len(whole), 1 if name.endswith("receipts") else 13):
            for content in (
                whole[:spot],
                whole[:spot] + bytes([whole[spot] ^ 1 << spot % 8]) + whole[spot + 1 :],
                whole[:spot] + bytes(len(whole) - spot),
            ):
                (tmp_path / "tail-000001.arrows").write_bytes(tail)
                (tmp_path / "tail-000001.receipts").write_bytes(said)
                (tmp_path / name).write_bytes(content)
                if content == whole:
                    continue
                try:
                    table = Table.open(tmp_path, COLUMNS)
                except RunDamaged:
                    assert (tmp_path / name).read_bytes() == content
                else:
                    assert flat(table) == expected
                    recovered.append(spot)
                    crash(table)
        # Only the last line of the receipts may go: the append before it is whole, and says so itself.
        assert all(name.endswith("receipts") and spot >= said.rindex(b"kept") for spot in recovered)


def test_an_append_that_was_never_acknowledged_is_cut_off_or_kept_whole(tmp_path: Path) -> None:
    tail, said = written(tmp_path)
    begun = said[: said.rindex(b"kept")]
    start = int(begun.splitlines()[-1].split()[1])
    for size in (start, start + 1, len(tail) - 1, len(tail)):
        (tmp_path / "tail-000001.arrows").write_bytes(tail[:size])
        (tmp_path / "tail-000001.receipts").write_bytes(begun)
        assert [entry for rows in scan(tmp_path) for entry in rows] == [e for n in range(3) for e in trial(n)]
        table = Table.open(tmp_path, COLUMNS)
        kept = 4 if size == len(tail) else 3
        assert (flat(table), table.torn_bytes) == (
            [e for n in range(kept) for e in trial(n)],
            (size - start) % len(tail[start:]),
        )
        table.append(trial(9))
        crash(table)
        again = Table.open(tmp_path, COLUMNS)
        assert flat(again) == [e for n in (*range(kept), 9) for e in trial(n)]
        crash(again)


def test_only_a_loss_of_power_may_take_what_was_acknowledged_and_only_since_the_last_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tail, said = written(tmp_path, synced=1)
    ends = [int(line.split()[2]) for line in said.splitlines() if line.startswith(b"begin")]
    for end, lost in ((ends[3], 1), (ends[2], 2), (ends[2] - 5, None), (ends[1], None)):
        for padding in (0, 3000):
            (tmp_path / "tail-000001.arrows").write_bytes(tail[:end] + bytes(padding))
            (tmp_path / "tail-000001.receipts").write_bytes(said)
            with pytest.raises(RunDamaged, match=r"acknowledged append\(s\) after byte|does not fit its digest"):
                Table.open(tmp_path, COLUMNS)
            with monkeypatch.context() as patch:
                patch.setattr(receipts, "boot", lambda: "another-boot")
                if lost is None:
                    with pytest.raises(RunDamaged):
                        Table.open(tmp_path, COLUMNS)
                    continue
                caplog.clear()
                table = Table.open(tmp_path, COLUMNS)
                assert (table.lost, flat(table)) == (lost, [e for n in range(4 - lost) for e in trial(n)])
                assert f"took the last {lost} append(s), which were acknowledged" in caplog.text
                crash(table)


def test_a_crash_between_part_and_tail_keeps_the_part(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append(trial(0))
    left = (tmp_path / "tail-000001.arrows").read_bytes()
    table.close()
    (tmp_path / "tail-000001.arrows").write_bytes(left)
    (tmp_path / ".part-000002.parquet.77.tmp").write_bytes(b"half")
    assert [entry for rows in scan(tmp_path) for entry in rows] == trial(0)
    again = Table.open(tmp_path, COLUMNS)
    assert (names(tmp_path), again.rows, flat(again)) == (["part-000001.parquet"], 3, trial(0))
    again.append(trial(1))
    again.close()
    assert flat(again) == trial(0) + trial(1)


def sealed(folder: Path, parts: int = 3) -> None:
    table = Table.create(folder, COLUMNS, seal_rows=1)
    for number in range(parts):
        table.append(trial(number, 50))
    table.close()


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    sealed(tmp_path)
    path = tmp_path / "part-000002.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", bytes(len(whole)), whole[:-8] + b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(RunDamaged, match="part-000002"):
            Table.open(tmp_path, COLUMNS)


def test_a_flipped_byte_of_a_part_is_refused_or_changes_no_row(tmp_path: Path) -> None:
    sealed(tmp_path, parts=1)
    path = tmp_path / "part-000001.parquet"
    whole = path.read_bytes()
    refused = 0
    for spot in range(0, len(whole), 5):
        content = bytearray(whole)
        content[spot] ^= 0xFF
        path.write_bytes(content)
        try:
            assert [entry for batch in arrow.part_batches(path, COLUMNS) for entry in batch.to_pylist()] == trial(0, 50)
        except RunDamaged:
            refused += 1
    assert refused > len(whole) / 5 / 2


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    sealed(tmp_path)
    (tmp_path / "part-000002.parquet").unlink()
    for read in (lambda: Table.open(tmp_path, COLUMNS), lambda: list(scan(tmp_path))):
        with pytest.raises(RunDamaged, match=r"parts \[1, 3\]"):
            read()
    with pytest.raises(RunDamaged, match="No such file"):
        Table.open(tmp_path / "nowhere", COLUMNS)


@pytest.mark.parametrize("closed", [True, False])
def test_a_foreign_schema_is_refused(tmp_path: Path, closed: bool) -> None:
    table = Table.create(tmp_path, COLUMNS)
    table.append(trial(0))
    if closed:
        table.close()
    crash(table)
    foreign: Mapping[str, str] = {**COLUMNS, "n": "string"}
    with pytest.raises(RunDamaged, match=r"columns .*'n': 'int64'.*expected .*'n': 'string'"):
        Table.open(tmp_path, foreign)


def test_a_reader_beside_the_writer_sees_whole_batches(tmp_path: Path) -> None:
    table = Table.create(tmp_path, COLUMNS, seal_rows=4)
    table.append(trial(0))
    table.append(trial(1))
    reader = scan(tmp_path)
    assert next(reader) == trial(0)
    table.append(trial(2))  # seals the tail that is being read
    assert [entry for rows in reader for entry in rows] == trial(1) + trial(2)
    table.close()


def test_a_seal_that_fails_leaves_the_rows_in_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    table = Table.create(tmp_path, COLUMNS, seal_rows=3)
    table.append(trial(0))
    with monkeypatch.context() as patch:
        patch.setattr(arrow, "write_part", full)
        with pytest.raises(StoreError, match="No space left"):
            table.append(trial(1))
    assert (names(tmp_path), flat(table), table.rows) == (
        ["tail-000001.arrows", "tail-000001.receipts"],
        trial(0),
        3,
    )
    table.append(trial(1))
    assert flat(table) == trial(0) + trial(1)
    with monkeypatch.context() as patch:
        patch.setattr(arrow, "write_part", full)
        with pytest.raises(StoreError, match="No space left"):
            table.close()
    again = Table.open(tmp_path, COLUMNS)
    assert flat(again) == trial(0) + trial(1)
    again.close()


def test_a_failed_fsync_takes_the_append_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    now = [0.0]
    table = Table.create(tmp_path, COLUMNS, clock=lambda: now[0])
    table.append(trial(0))
    now[0] = 2.0
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreError, match="Input/output error"):
            table.append(trial(1))
    table.append(trial(2))
    assert (flat(table), table.rows) == (trial(0) + trial(2), 6)
    table.close()


LIMITED = """
import json, resource, sys
from pathlib import Path
from evocluster.errors import StoreError
from evocluster.store.table import Table
table = Table.create(Path(sys.argv[1]), {"n": "int64", "text": "string"})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(1000):
    try:
        table.append([{"n": number, "text": "x" * 900}] * 2)
    except StoreError as error:
        message = str(error)
        break
table.append([{"n": -1, "text": "small"}])
rows = [row["n"] for rows in table.read() for row in rows]
print(json.dumps([number, message, rows, table.rows]), flush=True)
"""


def test_a_full_disk_is_a_store_error_and_earlier_rows_stay(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    stored, message, rows, count = json.loads(done.stdout)
    assert "File too large" in message
    assert "tail-000001.arrows" in message
    assert stored > 10
    assert rows == [number for number in range(stored) for _ in range(2)] + [-1]
    assert count == len(rows)
    table = Table.open(tmp_path, {"n": "int64", "text": "string"})
    assert (table.torn_bytes, [entry["n"] for entry in flat(table)]) == (0, rows)
    table.close()


APPENDING = """
import sys
from pathlib import Path
from evocluster.store.table import Table
table = Table.create(Path(sys.argv[1]), {"n": "int64"}, seal_rows=150)
for number in range(1_000_000):
    table.append([{"n": number}] * 3)
    print(number, flush=True)
"""


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(200)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    last = int([line for line in told if line.endswith("\n")][-1])
    table = Table.open(tmp_path, {"n": "int64"})
    found = [entry["n"] for entry in flat(table)]
    assert found == [number for number in range(len(found) // 3) for _ in range(3)]
    assert len(found) // 3 in (last + 1, last + 2)
    table.close()


def test_any_parquet_is_read_and_what_is_none_is_told(tmp_path: Path) -> None:
    sealed(tmp_path, parts=1)
    assert list(arrow.read_parquet(tmp_path / "part-000001.parquet")) == trial(0, 50)
    (tmp_path / "text.parquet").write_text("no")
    for name in ("text.parquet", "none.parquet"):
        with pytest.raises(DataError, match=f"{name}: not a readable Parquet file"):
            list(arrow.read_parquet(tmp_path / name))
