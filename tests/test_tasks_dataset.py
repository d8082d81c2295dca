"""Datasets: what is read, how it is dealt, and every way a file can be wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import DataError
from evocluster.records import Example
from evocluster.tasks.dataset import Carve, Columns, Data, load, load_splits, order
from evocluster.tasks.task import Task

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def lines(*rows: Mapping[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def rows(count: int, word: str = "text", classes: int = 2) -> str:
    return lines(*({"input": f"{word} {n}", "expected": f"c{n % classes}"} for n in range(count)))


def test_jsonl(write: Write) -> None:
    path = write("a.jsonl", '\ufeff{"id": 7, "input": "a\u2028b", "expected": null, "meta": {"k": 1}}\r\n\n')
    assert load(path, Columns()) == (Example(id="7", input="a\u2028b", expected=None, meta={"k": 1}),)


def test_rows_without_ids_are_numbered(write: Write) -> None:
    path = write("a.jsonl", rows(2))
    assert [example.id for example in load(path, Columns())] == ["r000001", "r000002"]
    assert len(load(path, Columns(), limit=1)) == 1


def test_csv_with_columns_and_quoted_line_ends(write: Write) -> None:
    path = write("a.csv", 'key,title,body,label\nk1,"Hello, you","two\nlines",x\n\nk2,t,b,y\n')
    columns = Columns(id="key", input=("title", "body"), expected="label", meta=("label",))
    first, second = load(path, columns)
    assert first.input == {"title": "Hello, you", "body": "two\nlines"}
    assert (second.id, second.expected, second.meta) == ("k2", "y", {"label": "y"})


def test_parquet_is_read_by_what_is_handed_in(write: Write) -> None:
    path = write("a.parquet", b"")

    def read(given: Path) -> Iterable[Mapping[str, Any]]:
        assert given == path
        return [{"id": "p", "input": "q", "expected": 1}]

    assert load(path, Columns(), read)[0].expected == 1

    def broken(given: Path) -> Iterable[Mapping[str, Any]]:
        raise OSError("magic bytes missing")

    with pytest.raises(DataError, match=r"a\.parquet:1: cannot be read as Parquet: OSError: magic bytes"):
        load(path, Columns(), broken)
    with pytest.raises(DataError, match=r"unknown extension '\.parquet'"):
        load(path, Columns())
    with pytest.raises(DataError, match=r":1: column 'input' holds b'x', which is not JSON"):
        load(path, Columns(), lambda _: [{"input": b"x", "expected": 1}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"input": "a", "expected": "b"}\n{"input": ', r":2: not JSON"),
        ("a.jsonl", '{"input": NaN, "expected": 1}', r":1: not JSON: NaN is not JSON"),
        ("a.jsonl", '["a"]', r":1: is list, not an object"),
        (
            "a.jsonl",
            '\n{"inptu": "a", "expected": "b"}',
            r":2: no column 'input'.*inptu, expected.*mean 'inptu'",
        ),
        (
            "a.jsonl",
            lines({"id": "x", "input": "a", "expected": 1}, {"input": "b", "expected": 1}),
            r":2: no column 'id'",
        ),
        (
            "a.jsonl",
            lines(*[{"id": "x", "input": "a", "expected": 1}] * 2),
            r":2: id 'x' is already used in line 1",
        ),
        ("a.jsonl", lines({"id": None, "input": "a", "expected": 1}), r":1: id None must be"),
        ("a.jsonl", lines({"input": None, "expected": 1}), r":1: input None must be text or an object"),
        ("a.jsonl", '{"input": "\\ud800", "expected": 1}', r":1: column 'input' holds .* not JSON"),
        ("a.jsonl", "", r":1: the file has no rows"),
        ("a.csv", "id,input,expected\n", r":1: the file has no rows"),
        ("a.csv", "input,expected\na,b\nc,d,e\n", r":3: has 3 cells, the header has 2"),
        ("a.csv", "input,input\na,b\n", r":1: column 'input' stands twice"),
        ("a.csv", 'input,expected\n"a"b,c\n', r":2: not CSV"),
        (
            "a.jsonl",
            b'{"input": "a", "expected": "b"}\n{"input": "\xe9", "expected": "b"}',
            r":2: not UTF-8 .*0xe9",
        ),
        ("a.txt", "x", r":1: unknown extension '\.txt'; allowed: \.jsonl, \.ndjson, \.csv"),
    ],
)
def test_errors_begin_with_file_and_line(write: Write, name: str, content: str | bytes, message: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match=message) as caught:
        load(path, Columns())
    assert str(caught.value).startswith(f"{path}:")


def test_a_missing_file_names_its_neighbours(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", "")
    with pytest.raises(DataError, match=r"trian\.jsonl:1: no such file.*train\.jsonl.*mean 'train\.jsonl'"):
        load(tmp_path / "trian.jsonl", Columns())
    with pytest.raises(DataError, match=r"folder .*nowhere' does not exist"):
        load(tmp_path / "nowhere" / "train.jsonl", Columns())
    with pytest.raises(DataError, match=r":1: is a folder"):
        load(tmp_path, Columns())


def test_splits_find_examples_and_keep_their_ids_apart(write: Write, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write(f"{name}.jsonl", rows(3, name))
    splits = load_splits(Data(train="train.jsonl", validation="validation.jsonl", test="test.jsonl"), tmp_path)
    assert splits.get("train", "r000002").input == "train 1"
    assert splits.get("test", "test/r000002").input == "test 1"
    with pytest.raises(DataError, match=r"no example 'r00002' among the 3 of train; did you mean 'r000002'"):
        splits.get("train", "r00002")
    assert splits.begins("test", "test/r000002") == f"{tmp_path / 'test.jsonl'}:2: "
    elsewhere = pickle.loads(pickle.dumps(splits))
    assert elsewhere.get("test", "test/r000002") == splits.get("test", "test/r000002")
    assert elsewhere.begins("test", "test/r000002") == ""


def test_the_same_input_in_two_splits_is_a_leak(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", lines({"id": "t1", "input": "Where is  it?", "expected": 1}))
    write(
        "test.jsonl",
        lines({"id": "e0", "input": "x", "expected": 1}, {"id": "e1", "input": "where is it", "expected": 1}),
    )
    write("validation.jsonl", rows(1))
    data = Data(train="train.jsonl", validation="validation.jsonl", test="test.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl:2: example 'e1' of test.*'t1' of train.*train\.jsonl:1"):
        load_splits(data, tmp_path)
    assert load_splits(data.model_copy(update={"allow_overlap": True}), tmp_path).test[1].id == "e1"


def test_missing_splits_are_carved_from_train(write: Write, tmp_path: Path) -> None:
    write("all.jsonl", rows(80, classes=4) + "\n" + lines({"input": "TEXT 1!", "expected": "c1"}))
    splits = load_splits(Data(train="all.jsonl"), tmp_path)
    assert [len(splits.validation), len(splits.test), len(splits.train)] in (
        [20, 20, 41],
        [21, 20, 40],
        [20, 21, 40],
    )
    for part in (splits.train, splits.validation, splits.test):
        counts = Counter(example.expected for example in part)
        assert max(counts.values()) - min(counts.values()) <= 1
    ids = [example.id for part in (splits.train, splits.validation, splits.test) for example in part]
    assert len(set(ids)) == 81
    again = load_splits(Data(train="all.jsonl"), tmp_path)
    other = load_splits(Data(train="all.jsonl", split=Carve(seed=1)), tmp_path)
    assert again.test == splits.test != other.test
    assert all(
        splits.begins("test", example.id) == f"{tmp_path / 'all.jsonl'}:{int(example.id[1:])}: "
        for example in splits.test
    )
    write("few.jsonl", rows(1))
    with pytest.raises(DataError, match=r"few\.jsonl:1: 1 examples are too few to carve"):
        load_splits(Data(train="few.jsonl"), tmp_path)


def test_shares_must_leave_train() -> None:
    with pytest.raises(ValueError, match=r"validation 0\.5 \+ test 0\.5 must leave"):
        Carve(validation=0.5, test=0.5)


examples = st.lists(st.sampled_from("abc"), min_size=1, max_size=60).map(
    lambda labels: [Example(id=f"e{at}", input=f"i{at}", expected=label) for at, label in enumerate(labels)]
)


@given(examples, st.integers(0, 5))
def test_order_is_a_permutation_that_keeps_shares_in_every_prefix(dealt: list[Example], seed: int) -> None:
    ids = order(dealt, seed)
    assert sorted(ids) == sorted(example.id for example in dealt)
    assert ids == order(list(reversed(dealt)), seed)
    label = {example.id: example.expected for example in dealt}
    shares = Counter(label.values())
    if len(shares) <= len(dealt) / 2:
        for size in range(1, len(ids) + 1):
            counts = Counter(label[id] for id in ids[:size])
            assert all(abs(counts[name] - size * share / len(ids)) < 1.5 for name, share in shares.items())


def test_order_depends_on_the_seed_and_shuffles_unique_answers() -> None:
    dealt = [Example(id=f"e{at}", input=f"i{at}", expected=f"x{at}") for at in range(50)]
    assert order(dealt, 1) != order(dealt, 2)
    assert list(order(dealt, 1)) != [example.id for example in dealt]


def shared(name: str) -> Path:
    """The folder of a real dataset, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EVOCLUSTER_SHARED_DATA") or beside) / name
    if not folder.is_dir():
        pytest.skip(f"no dataset {name!r}: set EVOCLUSTER_SHARED_DATA to the folder of shared datasets")
    return folder


def test_a_real_dataset_loads_and_blocks_are_balanced() -> None:
    data = Data(train="train.jsonl", validation="validation.jsonl", test="test.jsonl")
    splits = load_splits(data, shared("snips7"))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [70, 84, 168]
    ids = order(splits.train, 7)
    for start in range(0, 70, 14):
        block = Counter(splits.get("train", id).expected for id in ids[start : start + 14])
        assert set(block.values()) == {2}


def test_a_real_extraction_dataset_satisfies_its_schema() -> None:
    folder = shared("snips_json")
    schema = json.loads((folder / "card.json").read_text())["schema"]
    data = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    task = Task.model_validate({"kind": "extraction", "data": data, "json_schema": schema})
    splits = load_splits(task.data, folder)
    assert task.settled(splits).json_schema == schema
    assert len(splits.test) == 120
