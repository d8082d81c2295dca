"""Examples from files: JSONL, CSV or Parquet, read strictly, dealt into train, validation and test.

Call order: `load_splits` (which calls `load` for every file) -> `Splits`; `order` deals examples of a split.
Every complaint is a `DataError` that begins `file:line:` (for Parquet: `file:row:`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from pydantic import Field, model_validator

from evocluster.errors import DataError, EvoclusterError
from evocluster.parts import Part
from evocluster.records import Example, Json, Split, canonical
from evocluster.tasks.words import nearest, normalise, plain

ReadParquet = Callable[[Path], Iterable[Mapping[str, Any]]]
"""Reads a Parquet file as rows; handed in, because the library for it has its home elsewhere."""
Row = tuple[int, Mapping[str, Any]]
"""(line or row number from 1, column -> value)."""
Located = tuple[str, Example]
"""('file:line', example)."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHAPE = '{"input": ..., "expected": ...}'
"""How a row of examples looks, for messages."""


class Columns(Part):
    """Which columns of the file hold what."""

    id: str = "id"
    """Where no row has the default column, rows are named by number: r000001, r000002..."""
    input: str | tuple[str, ...] = "input"
    """One column, or several that become one object."""
    expected: str = "expected"
    meta: str | tuple[str, ...] = "meta"
    """An optional column, or several columns that become one object."""


class Carve(Part):
    """Shares of train that become the splits the config does not name."""

    validation: float = Field(default=0.25, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation!r} + test {self.test!r} must leave something for train: below 1"
            )
        return self


class Data(Part):
    """Where the examples are. Paths are relative to the config file."""

    train: str
    validation: str | None = None
    """None: carved from train, see `split`."""
    test: str | None = None
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows of each file."""
    split: Carve = Carve()
    allow_overlap: bool = False
    """True: the same input may stand in two splits (test results then flatter)."""


class Splits:
    """Train, validation and test examples, each findable by id."""

    def __init__(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        test: Sequence[Example],
        *,
        places: Mapping[Split, Sequence[str]] | None = None,
    ) -> None:
        """`places`: 'file:line' of the examples of each split, in their order."""
        self.train, self.validation, self.test = tuple(train), tuple(validation), tuple(test)
        self.places = dict(places or {})
        """Empty in other processes, and where the examples were not read from files."""
        self._by_id: dict[Split, dict[str, Example]] = {
            name: {example.id: example for example in self.of(name)} for name in SPLITS
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "places": {}}

    def of(self, split: Split) -> tuple[Example, ...]:
        """The examples of one split, as they stand in the file."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def by_id(self, split: Split) -> Mapping[str, Example]:
        """Id -> example of one split."""
        return self._by_id[split]

    def get(self, split: Split, id: str) -> Example:
        """Raises: DataError when the split has no such example."""
        try:
            return self._by_id[split][id]
        except KeyError:
            known = self._by_id[split]
            raise DataError(f"no example {id!r} among the {len(known)} of {split}{nearest(id, known)}") from None

    def begins(self, split: Split, id: str) -> str:
        """What a message on an example begins with: 'file:line: ', or '' where that is not known."""
        places = self.places.get(split)
        return f"{places[list(self._by_id[split]).index(id)]}: " if places else ""


def load(
    path: Path, columns: Columns, read_parquet: ReadParquet | None = None, limit: int | None = None
) -> tuple[Example, ...]:
    """The examples of one file, in its order. Raises: DataError."""
    return tuple(example for _, example in _load(path, columns, read_parquet, limit))


def _load(path: Path, columns: Columns, read_parquet: ReadParquet | None, limit: int | None) -> list[Located]:
    read = list(islice(rows(path, read_parquet), limit))
    if not read:
        _fail(path, 1, "the file has no rows; give it at least one example")
    numbered = columns.id == "id" and not any("id" in row for _, row in read)
    located, lines = [], dict[str, int]()
    for number, (line, row) in enumerate(read, start=1):
        example = _example(path, line, row, columns, f"r{number:06d}" if numbered else None)
        if example.id in lines:
            _fail(
                path,
                line,
                f"id {example.id!r} is already used in line {lines[example.id]}; ids must be unique",
            )
        lines[example.id] = line
        located.append((f"{path}:{line}", example))
    return located


def load_splits(data: Data, root: Path, read_parquet: ReadParquet | None = None) -> Splits:
    """All three splits; what the config leaves out is carved from train, stratified by `expected`.

    Ids stay as given in train; where validation or test use one again, theirs become 'validation/<id>' and
    'test/<id>'. Raises: DataError, also for the same normalised input in two splits unless `allow_overlap`.
    """
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    found = {name: _load(root / file, data.columns, read_parquet, data.limit) for name, file in named.items() if file}
    missing = [name for name in ("validation", "test") if name not in found]
    if missing:
        found |= _carved(root / data.train, found["train"], data.split, missing)
    if not data.allow_overlap:
        _refuse_leaks(found)
    places = {name: [place for place, _ in found[name]] for name in SPLITS}
    return Splits(*_with_own_ids([[example for _, example in found[name]] for name in SPLITS]), places=places)


def order(examples: Sequence[Example], seed: int) -> tuple[str, ...]:
    """Ids in a seeded order, stratified by `expected`: any block holds nearly the overall shares of classes.

    The next place goes to the class furthest behind its share (largest remainder). When most expected
    values are unique there are no classes, and it is a plain shuffle. The order given does not matter.
    """
    rng = np.random.default_rng(seed)
    strata: dict[str, list[str]] = {}
    for example in sorted(examples, key=lambda each: each.id):
        strata.setdefault(canonical(example.expected), []).append(example.id)
    queues = list(strata.values())
    if len(queues) > len(examples) / 2:
        queues = [[id for queue in queues for id in queue]]
    queues = [[queue[at] for at in rng.permutation(len(queue))] for queue in queues]
    sizes = np.array([len(queue) for queue in queues], dtype=float)
    ties = rng.random(len(queues)) * 1e-9
    taken = np.zeros(len(queues))
    ordered = []
    for place in range(1, len(examples) + 1):
        behind = sizes * (place / len(examples)) - taken + ties
        behind[taken >= sizes] = -np.inf
        chosen = int(behind.argmax())
        ordered.append(queues[chosen][int(taken[chosen])])
        taken[chosen] += 1
    return tuple(ordered)


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise DataError(f"{path}:{line}: {message}")


def rows(path: Path, read_parquet: ReadParquet | None = None, like: str = SHAPE) -> Iterator[Row]:
    """The rows of a file with their lines; `like` is how a row looks, for messages. Raises: DataError."""
    _exists(path)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_rows(path, like)
        case ".csv":
            return _csv_rows(path)
        case ".parquet" if read_parquet is not None:
            return _parquet_rows(path, read_parquet)
        case other:
            readable = [".jsonl", ".ndjson", ".csv", *([".parquet"] if read_parquet else [])]
            _fail(path, 1, f"unknown extension {other!r}; allowed: {', '.join(readable)}")


def _exists(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        _fail(path, 1, "is a folder; name a .jsonl, .csv or .parquet file in it")
    folder = path.parent
    if not folder.is_dir():
        _fail(
            path,
            1,
            f"no such file: the folder {str(folder)!r} does not exist; paths are relative to the config file",
        )
    there = sorted(each.name for each in folder.iterdir() if each.is_file())
    listed = ", ".join(there[:8]) or "nothing"
    _fail(path, 1, f"no such file; the folder holds: {listed}{nearest(path.name, there)}")


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises: DataError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        _fail(path, 1, f"cannot be read: {error.strerror}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        line = error.object[: error.start].count(b"\n") + 1
        _fail(path, line, f"not UTF-8 text (byte 0x{byte:02x}); save the file as UTF-8")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _json_rows(path: Path, like: str) -> Iterator[Row]:
    # split("\n") and not splitlines(): JSON strings may hold U+2028 and other line separators.
    for line, text in enumerate(text_of(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            _fail(path, line, f"not JSON: {error}; every line must be one JSON object")
        if not isinstance(row, dict):
            _fail(path, line, f"is {type(row).__name__}, not an object like {like}")
        yield line, row


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = _header(path, line, cells)
            elif cells and len(cells) != len(header):
                _fail(
                    path,
                    line,
                    f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas",
                )
            elif cells:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        _fail(path, line, f"not CSV: {error}")


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        _fail(path, line, f"column {twice[0]!r} stands twice in the header; rename one")
    return cells


def _parquet_rows(path: Path, read_parquet: ReadParquet) -> Iterator[Row]:
    try:
        yield from enumerate(read_parquet(path), start=1)
    except EvoclusterError:
        raise
    except Exception as error:
        raise DataError(f"{path}:1: cannot be read as Parquet: {type(error).__name__}: {error}") from error


def _example(path: Path, line: int, row: Mapping[str, Any], columns: Columns, number: str | None) -> Example:
    def cell(ours: str, column: str) -> Json:
        if column not in row:
            hint = f"; columns here: {', '.join(map(str, row)) or 'none'}{nearest(column, map(str, row))}"
            _fail(path, line, f"no column {column!r} for {ours!r}{hint} Set `columns: {{{ours}: ...}}`")
        try:
            canonical(row[column]).encode()
        except (TypeError, ValueError) as error:
            _fail(
                path,
                line,
                f"column {column!r} holds {row[column]!r:.80}, which is not JSON: {error}; store it as text",
            )
        return row[column]

    id = number if number is not None else cell("id", columns.id)
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        _fail(path, line, f"id {id!r} must be non-empty text or a whole number")
    given = (
        cell("input", columns.input)
        if isinstance(columns.input, str)
        else {column: cell("input", column) for column in columns.input}
    )
    if given is None or isinstance(given, list | tuple):
        _fail(path, line, f"input {given!r:.80} must be text or an object")
    if isinstance(columns.meta, str):
        meta = cell("meta", columns.meta) if columns.meta in row else {}
        meta = meta if isinstance(meta, Mapping) else {columns.meta: meta}
    else:
        meta = {column: cell("meta", column) for column in columns.meta}
    return Example(
        id=str(id),
        input=given if isinstance(given, Mapping) else plain(given),
        expected=cell("expected", columns.expected),
        meta=dict(meta),
    )


def _carved(path: Path, train: Sequence[Located], shares: Carve, missing: Sequence[str]) -> dict[str, list[Located]]:
    """Train without, and each missing split with, its share. Examples with the same input stay together."""
    alike: dict[str, list[Located]] = {}
    for located in train:
        alike.setdefault(_comparable(located[1]), []).append(located)
    groups = {group[0][1].id: group for group in alike.values()}
    dealt = list(order([group[0][1] for group in groups.values()], shares.seed))
    parts: dict[str, set[str]] = {}
    for name in missing:
        size = round(len(groups) * (shares.test if name == "test" else shares.validation))
        parts[name], dealt = set(dealt[:size]), dealt[size:]
    parts["train"] = set(dealt)
    for name, ids in parts.items():
        if not ids:
            few = f"{len(train)} examples are too few to carve {' and '.join(missing)} from: {name} stays empty"
            _fail(path, 1, f"{few}; add examples, or name the files of all splits")
    return {
        name: [located for id, group in groups.items() if id in ids for located in group] for name, ids in parts.items()
    }


def _with_own_ids(splits: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
    used: set[str] = set()
    named: list[Sequence[Example]] = []
    for name, examples in zip(SPLITS, splits, strict=True):
        if any(example.id in used for example in examples):
            examples = [example.model_copy(update={"id": f"{name}/{example.id}"}) for example in examples]
        used |= {example.id for example in examples}
        named.append(examples)
    return named


def _comparable(example: Example) -> str:
    return normalise(plain(example.input))


def _refuse_leaks(found: Mapping[str, Sequence[Located]]) -> None:
    seen: dict[str, tuple[str, str, str]] = {}
    for name in SPLITS:
        for place, example in found[name]:
            split, first, id = seen.setdefault(_comparable(example), (name, place, example.id))
            if split != name:
                raise DataError(
                    f"{place}: example {example.id!r} of {name} has the same input as {id!r} of {split} "
                    f"({first}): {plain(example.input)!r:.80}; remove one, or set `allow_overlap: true`"
                )
