"""Texts on disk: equal to a dict, never a pickle, nothing acknowledged lost, disk failures told."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import StoreError
from evocluster.store.cache import BytesDisk, DiskCache

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Iterator[DiskCache]:
    opened = DiskCache(folder)
    yield opened
    opened.close()


def tamper(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "cache.db")
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_it_counts_hits_misses_puts_and_rows(cache: DiskCache) -> None:
    cache.put_many({"a": "1", "b": "2"})
    cache.put_many({"b": "3"})
    assert cache.get_many(["b", "x", "a", "b"]) == ["3", None, "1", "3"]
    assert cache.stats() == {"hits": 3, "misses": 1, "puts": 3, "corrupt": 0, "rows": 2}


def test_the_folder_is_its_owners_alone(folder: Path, cache: DiskCache) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    DiskCache(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_evicted_and_nothing_lies_outside_the_database(folder: Path, cache: DiskCache) -> None:
    large = "x" * 2_000_000
    for number in range(5):
        cache.put_many({f"{number}": large})
    assert cache.get_many([f"{number}" for number in range(5)]) == [large] * 5
    assert not [path for path in folder.rglob("*") if path.is_dir() or path.suffix == ".val"]
    assert (cache._cache.eviction_policy, cache._cache.cull_limit) == ("none", 0)


Operation = st.tuples(
    st.sampled_from(["put", "get", "reopen"]),
    st.dictionaries(st.text(max_size=3), st.text(max_size=300), max_size=6),
)


@settings(max_examples=15, deadline=None)
@given(operations=st.lists(Operation, max_size=12))
def test_random_operations_equal_a_dict(operations: list[tuple[str, dict[str, str]]]) -> None:
    model: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        cache = DiskCache(Path(name))
        for verb, items in operations:
            if verb == "put":
                cache.put_many(items)
                model.update(items)
            elif verb == "get":
                keys = [*items, *list(model)[:3]]
                assert cache.get_many(keys) == [model.get(key) for key in keys]
            else:
                cache.close()
                cache = DiskCache(Path(name))
        assert cache.get_many(list(model)) == list(model.values())
        assert cache.stats()["rows"] == len(model)
        cache.close()


def test_texts_that_utf_8_cannot_hold_come_back_as_they_were(cache: DiskCache) -> None:
    cache.put_many({"a": "\ud800 half a pair\0"})
    assert cache.get_many(["a"]) == ["\ud800 half a pair\0"]


def test_a_row_turned_into_a_pickle_is_refused_and_never_loaded(folder: Path, cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many({"a": "1"})
    trap = tmp_path / "trap"
    tamper(folder, "UPDATE Cache SET mode = 4, value = ? WHERE key = 'a'", pickle.dumps(Bomb(trap)))
    with pytest.raises(StoreError, match="mode 4"):
        cache.get_many(["a"])
    with pytest.raises(StoreError, match="mode 4"):
        cache._cache.get("a")
    assert not trap.exists()


def test_a_key_turned_into_a_pickle_is_refused_and_never_loaded(folder: Path, cache: DiskCache, tmp_path: Path) -> None:
    cache.put_many({"a": "1"})
    trap = tmp_path / "trap"
    tamper(folder, "UPDATE Cache SET raw = 0, key = ? WHERE key = 'a'", pickle.dumps(Bomb(trap)))
    assert cache.get_many(["a"]) == [None]
    with pytest.raises(StoreError, match="raw=0"):
        list(cache._cache)
    assert not trap.exists()


@pytest.mark.parametrize("change", ["mode = 2", "mode = 3", "filename = '../outside'", "value = 7", "value = 'text'"])
def test_every_other_row_is_refused(folder: Path, cache: DiskCache, change: str) -> None:
    cache.put_many({"a": "1"})
    (folder.parent / "outside").write_text("1")
    tamper(folder, f"UPDATE Cache SET {change} WHERE key = 'a'")
    with pytest.raises(StoreError, match="changed by something else"):
        cache.get_many(["a"])


def test_a_foreign_file_name_deletes_no_file(folder: Path, cache: DiskCache) -> None:
    cache.put_many({"a": "1"})
    outside = folder.parent / "outside"
    outside.write_text("1")
    tamper(folder, "UPDATE Cache SET filename = '../outside' WHERE key = 'a'")
    with pytest.raises(StoreError, match="outside"):
        cache.put_many({"a": "2"})
    assert outside.exists()


@pytest.mark.parametrize("value", [{"a": 1}, 7, None, "text"])
def test_only_bytes_are_written(folder: Path, value: object) -> None:
    disk = BytesDisk(str(folder), min_file_size=0, pickle_protocol=4)
    with pytest.raises(StoreError, match="only bytes"):
        disk.store(value, False)
    with pytest.raises(StoreError, match="only a text"):
        disk.put(("a", 1))


def test_a_damaged_value_is_a_miss_removed_logged_and_counted(
    folder: Path, cache: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put_many({"a": "good", "b": "good"})
    ((sealed,),) = sqlite_rows(folder, "SELECT value FROM Cache WHERE key = 'a'")
    tamper(folder, "UPDATE Cache SET value = ? WHERE key = 'a'", sealed.replace(b"good", b"goof"))
    assert cache.get_many(["a", "b"]) == [None, "good"]
    assert (cache.stats()["corrupt"], cache.stats()["rows"]) == (1, 1)
    assert "failed its digest" in caplog.text
    cache.put_many({"a": "good"})
    assert cache.get_many(["a"]) == ["good"]


def test_a_value_under_another_key_is_damage(folder: Path, cache: DiskCache) -> None:
    cache.put_many({"a": "1"})
    tamper(folder, "UPDATE Cache SET key = 'b' WHERE key = 'a'")
    assert cache.get_many(["b"]) == [None]


def sqlite_rows(folder: Path, query: str) -> list[tuple[bytes, ...]]:
    connection = sqlite3.connect(folder / "cache.db")
    rows = connection.execute(query).fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize("told", ['{"format": "evocluster-cache", "version": 2}', "[]", "not json", "\xff"])
def test_another_format_is_refused(folder: Path, cache: DiskCache, told: str) -> None:
    (folder / "format.json").write_text(told, encoding="latin-1")
    with pytest.raises(StoreError, match="not a cache this version can read"):
        DiskCache(folder)


def test_a_database_without_format_is_refused(folder: Path, cache: DiskCache) -> None:
    (folder / "format.json").unlink()
    with pytest.raises(StoreError, match="format None"):
        DiskCache(folder)


def test_a_file_that_is_no_database_is_refused(folder: Path) -> None:
    DiskCache(folder).close()
    (folder / "cache.db").write_bytes(b"nonsense " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        DiskCache(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        DiskCache(tmp_path / "file" / "cache")


def test_a_full_disk_stores_nothing_of_the_batch_and_keeps_the_rest(cache: DiskCache) -> None:
    cache.put_many({"a": "1"})
    cache._cache._sql("PRAGMA max_page_count = 30")
    with pytest.raises(StoreError, match="full"):
        cache.put_many({f"k{number}": "x" * 4000 for number in range(100)})
    assert cache.get_many(["a", "k0", "k99"]) == ["1", None, None]
    cache.put_many({"b": "2"})  # a new connection: space again
    assert cache.get_many(["b"]) == ["2"]
    assert cache.stats()["rows"] == 2


def test_an_unwritable_database_is_told(cache: DiskCache) -> None:
    cache.put_many({"a": "1"})
    cache._cache._sql("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="writable"):
        cache.put_many({"b": "2"})
    assert cache.get_many(["a"]) == ["1"]


def test_two_processes_may_share_the_folder(folder: Path, cache: DiskCache) -> None:
    other = DiskCache(folder)
    other.put_many({"a": "1"})
    cache.put_many({"b": "2"})
    assert (cache.get_many(["a"]), other.get_many(["b"])) == (["1"], ["2"])
    other.close()


PUTTING = """
import sys
from pathlib import Path
from evocluster.store.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]))
for number in range(1_000_000):
    cache.put_many({f"{number}.{part}": f"value {number}" for part in range(3)})
    print(number, flush=True)
"""


def test_a_kill_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", PUTTING, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(200)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    last = int([line for line in told if line.endswith("\n")][-1])
    cache = DiskCache(folder)
    keys = [f"{number}.{part}" for number in range(last + 1) for part in range(3)]
    assert cache.get_many(keys) == [f"value {key.split('.')[0]}" for key in keys]
    assert cache.stats()["rows"] % 3 == 0
    cache.close()


LIMITED = """
import json, resource, sys
from pathlib import Path
from evocluster.errors import StoreError
from evocluster.store.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
stored = []
try:
    for number in range(1000):
        cache.put_many({f"{number}": "x" * 3000})
        stored.append(number)
except StoreError as error:
    values = cache.get_many([str(number) for number in stored])
    print(json.dumps([len(stored), all(values), str(error)]))
"""


def test_a_file_limit_is_a_store_error_and_earlier_rows_stay(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    stored, readable, message = json.loads(done.stdout)
    assert stored > 10
    assert readable
    assert "free space" in message
    cache = DiskCache(folder)
    assert cache.get_many([str(number) for number in range(stored)]) == ["x" * 3000] * stored
    cache.close()
