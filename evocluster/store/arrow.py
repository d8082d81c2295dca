"""Rows as Arrow bytes: what the table of trials is made of, and the only place that knows the formats.

A tail is an Arrow IPC stream without end marker: the schema message, then one record batch an append.
A part is a Parquet file (zstd, page checksums). Both are read by any Arrow implementation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evocluster.errors import DataError, RunDamaged, StoreError
from evocluster.store.column import KINDS, column

_TYPES: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "string": (KINDS["string"], lambda value: isinstance(value, str)),
    "int64": (KINDS["int64"], lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    "float64": (KINDS["float64"], lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    "bool": (KINDS["bool"], lambda value: isinstance(value, bool)),
    "list<string>": (
        KINDS["list<string>"],
        lambda value: isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
    ),
}
_EXACT: dict[str, set[type]] = {
    "string": {str, type(None)},
    "int64": {int, type(None)},
    "float64": {float, int, type(None)},
    "bool": {bool, type(None)},
    "list<string>": {type(None)},
}
"""Types of which every value fits: what a column nearly always holds."""
_ALIKE = 32
_LINES = "lines"
_READ_ROWS = 1000
_BROKEN = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)


def arrow_schema(columns: Mapping[str, str]) -> Any:
    """The Arrow schema of column name -> type name. Raises: StoreError for a type that is none of ours."""
    return _schema(tuple(columns.items()))


@lru_cache(maxsize=64)
def _schema(columns: tuple[tuple[str, str], ...]) -> Any:
    unknown = sorted({kind for _, kind in columns if kind not in _TYPES})
    if unknown or not columns:
        raise StoreError(
            f"column types {unknown!r} of {dict(columns)!r}: give at least one column, of {sorted(_TYPES)}"
        )
    return pa.schema([(name, _TYPES[kind][0]) for name, kind in columns])


def record_batch(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Any:
    """The rows as one batch; a column that a row lacks is null.

    Lone surrogates, which UTF-8 cannot hold, become '?'. Nothing is cast but integer to float64.
    Raises: StoreError for an unknown column or a value of another type.
    """
    for row in rows:
        if not row.keys() <= columns.keys():
            strange = sorted(row.keys() - columns.keys())
            raise StoreError(f"columns {strange!r} are not in the table: it has {list(columns)}; fix the row")
    arrays = [_array(name, kind, [row.get(name) for row in rows]) for name, kind in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(columns))


def _array(name: str, kind: str, values: list[Any]) -> Any:
    arrow_type, fits = _TYPES[kind]
    found = set(map(type, values))
    if found == {type(None)} and kind != "list<string>":  # of lists, nulls() has other bytes than array()
        return pa.nulls(len(values), arrow_type)
    if not _EXACT[kind].issuperset(found):
        for value in values:
            if value is not None and not fits(value):
                raise StoreError(f"column {name!r} cannot hold {value!r}: it takes {kind} or None; fix the row")
    try:
        return column(arrow_type, values, found)
    except UnicodeEncodeError:
        return pa.array([_clean(value) for value in values], arrow_type)
    except (pa.ArrowException, OverflowError) as error:
        raise StoreError(f"column {name!r} of type {kind} cannot hold its values: {error}; fix the row") from error


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value if value is None else [_clean(item) for item in value]


def schema_bytes(columns: Mapping[str, str]) -> bytes:
    """What a tail starts with."""
    return bytes(arrow_schema(columns).serialize())


def batch_bytes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    """What one append adds to a tail. Raises: StoreError, see record_batch."""
    return bytes(record_batch(rows, columns).serialize())


def segment_bytes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], lines: Sequence[str]) -> bytes:
    """Rows as an Arrow IPC stream of one batch, lines of text in its schema. Raises: StoreError, see record_batch."""
    batch = record_batch(rows, columns)
    batch = batch.replace_schema_metadata({_LINES: "\n".join(lines)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def read_segment(content: bytes, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows and the lines of a segment. Raises: RunDamaged."""
    try:
        table = pa.ipc.open_stream(pa.BufferReader(content)).read_all()
        lines = (table.schema.metadata or {}).get(_LINES.encode(), b"").decode()
        return table.to_pylist(), lines.split("\n") if lines else []
    except _BROKEN as error:
        raise damaged(name, str(error)) from error


def tail_batches(source: Any, size: int, name: str, columns: Mapping[str, str] | None) -> Iterator[tuple[Any, int]]:
    """Each whole batch of a tail, with the offset in bytes where it ends; a torn last one is left out.

    `source` is an Arrow file at its start, of `size` bytes; `name` is for messages; `columns` None takes any
    schema.
    Raises: RunDamaged when bytes that are all there cannot be read, or the schema is another one.
    """
    offset, schema = 0, None
    try:
        schema = pa.ipc.read_schema(source)
        check_schema(schema, name, columns)
        while (offset := source.tell()) < size:
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
            batch.validate(full=True)
            yield batch, source.tell()
    except _BROKEN as error:
        source.seek(offset)
        rest = source.read(size - offset)
        torn = _torn_schema(rest, columns) if schema is None else _torn_batch(rest, schema)
        if not torn:
            raise damaged(name, f"the record at byte {offset} is broken: {error}") from error


# A write cut short leaves less than its message says of itself; after a loss of power the rest may be zeros.
# Arrow IPC, "Encapsulated message format": marker, metadata length (4 bytes each), flatbuffer, body.


def _torn_schema(rest: bytes, columns: Mapping[str, str] | None) -> bool:
    if len(rest) < 8 or not any(rest):
        return True
    return len(rest) < (len(schema_bytes(columns)) if columns else 8 + _length(rest))


def _torn_batch(rest: bytes, schema: Any) -> bool:
    if len(rest) < 8 or not any(rest):
        return True
    # All batches of a schema begin alike: a broken length is not taken for a cut when another batch follows.
    start = bytes(pa.RecordBatch.from_pylist([{}], schema).serialize())[:_ALIKE]
    if rest[:4] != start[:4] or start in rest[8:]:
        return False
    try:
        return len(rest) < 8 + _length(rest) + _body_length(rest[8 : 8 + _length(rest)])
    except struct.error:  # not even the metadata is whole
        return len(rest) < 8 + _length(rest)


def _length(message: bytes) -> int:
    return int.from_bytes(message[4:8], "little")


def _body_length(metadata: bytes) -> int:
    # Message.fbs: bodyLength is field 3 of the root table; its slot in the vtable follows two sizes.
    (table,) = struct.unpack_from("<I", metadata)
    (back,) = struct.unpack_from("<i", metadata, table)
    size, _, slot = struct.unpack_from("<HH6xH", metadata, table - back)
    return int(struct.unpack_from("<q", metadata, table + slot)[0]) if size > 10 and slot else 0


def check_schema(schema: Any, name: str, columns: Mapping[str, str] | None) -> None:
    """An earlier version's table may lack the last columns. Raises: RunDamaged when `schema` is another one."""
    try:
        found = {field.name: str(field.type) for field in schema}
    except UnicodeDecodeError as error:
        raise damaged(name, f"a column name is not UTF-8: {error}") from error
    if columns is not None and not (len(schema) and schema.equals(_first(columns, len(schema)))):
        raise damaged(name, f"it has the columns {found!r}, expected {dict(columns)!r}")


def _first(columns: Mapping[str, str], count: int) -> Any:
    return arrow_schema(dict(list(columns.items())[:count]))


def earlier(path: Path, columns: Mapping[str, str]) -> bool:
    """A readable tail was begun by a version with fewer columns. Raises: OSError."""
    with pa.OSFile(str(path)) as source:
        return len(pa.ipc.read_schema(source)) < len(columns)


def damaged(name: str, why: str) -> RunDamaged:
    """The error to raise when a file of the table cannot be read whole."""
    return RunDamaged(
        f"{name!r} cannot be read whole: {why}; restore the file from a copy, or start a new run in another folder"
    )


def write_part(path: Path, name: str, tail: bytes) -> None:
    """Write a whole tail, called `name`, as one Parquet file. Raises: OSError; RunDamaged when it cannot be read."""
    try:
        table = pa.ipc.open_stream(pa.BufferReader(tail)).read_all()
    except _BROKEN as error:
        raise damaged(name, str(error)) from error
    # A file of our own, which is closed whatever happens: pyarrow leaves one of its own to the garbage collector.
    with pa.OSFile(str(path), "wb") as sink:
        pq.write_table(table.combine_chunks(), sink, compression="zstd", compression_level=3, write_page_checksum=True)


def part_batches(path: Path, columns: Mapping[str, str] | None) -> Iterator[Any]:
    """The batches of a part, about 1,000 rows each. Raises: RunDamaged when broken or of another schema."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_schema(file.schema_arrow, str(path), columns)
            rows = 0
            for batch in file.iter_batches(_READ_ROWS):
                rows += batch.num_rows
                yield batch
            if rows != file.metadata.num_rows:
                raise damaged(str(path), f"it holds {rows} rows of {file.metadata.num_rows}")
    except _BROKEN as error:
        raise damaged(str(path), str(error)) from error


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of any Parquet file, streamed. Raises: DataError when it is missing or not Parquet."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_ROWS):
                yield from batch.to_pylist()
    except _BROKEN as error:
        raise DataError(
            f"{path}: not a readable Parquet file: {error}; check the path, or give JSONL or CSV"
        ) from error
