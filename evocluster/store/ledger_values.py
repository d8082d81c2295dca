"""Rows of the ledger as its database has them, and conditions as SQL: what is not in the tables is refused by name.

Texts are kept in UTF-8: a lone surrogate becomes '?', and the character NUL, which PostgreSQL refuses, U+FFFD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import sqlalchemy as sa

from evocluster.errors import StoreError
from evocluster.records import canonical
from evocluster.store.ledger_tables import COLUMNS, JSON, NULLABLE, TABLES, Column

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda column, value: column.is_(None) if value is None else column == value,
    "!=": lambda column, value: column.is_not(None) if value is None else column.is_distinct_from(value),
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
    "in": lambda column, value: column.in_(value),
}
MOST = 10_000
"""Values that one "in" may name."""
_WHOLE = 2**63


def columns_of(table: str) -> dict[str, Column]:
    """The columns of a table. Raises: StoreError."""
    try:
        return COLUMNS[table]
    except KeyError:
        raise StoreError(f"the ledger has no table {table!r}; allowed: {', '.join(COLUMNS)}") from None


def _text(value: Any) -> str:
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise TypeError("a text")
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _whole(value: Any) -> int:
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError("a whole number")
    whole = int(value)
    if not -_WHOLE <= whole < _WHOLE:
        raise ValueError("a whole number of 64 bits")
    return whole


def _float(value: Any) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError("a finite number")
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("True or False")
    return value


def _json(value: Any) -> str:
    if not value and type(value) in (tuple, list, dict):
        return "{}" if type(value) is dict else "[]"
    try:
        return _text(canonical(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a JSON value ({error})") from error


_WRITTEN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(JSON, _json),
    **dict.fromkeys(("at", "real", "amount", "share"), _float),
    **dict.fromkeys(("flag", "yes"), _flag),
    **dict.fromkeys(("whole", "auto"), _whole),
    "text": _text,
}


def _or_none(writer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else writer(value)


_WRITTEN |= {kind: _or_none(_WRITTEN[kind]) for kind in NULLABLE}
_WRITERS = {
    table: (
        [name for name, column in columns.items() if column.kind == "text"],
        [(name, _WRITTEN[column.kind]) for name, column in columns.items() if column.kind != "text"],
    )
    for table, columns in COLUMNS.items()
}
"""Table -> its texts, and how each other column is written."""


def written(table: str, column: Column, value: Any) -> Any:
    """A value as the database has it. Raises: StoreError when the column cannot hold it."""
    try:
        return _WRITTEN[column.kind](value)
    except (TypeError, ValueError) as error:
        or_none = " or None" if column.kind in NULLABLE else ""
        raise StoreError(
            f"column {column.name!r} of {table!r} cannot hold {_short(value)}: it takes {error}{or_none}; fix the row"
        ) from None


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 120 else f"{said[:120]}..."


def changed(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Some columns of a row, as the database has them. Raises: StoreError."""
    columns = columns_of(table)
    if not values.keys() <= columns.keys():
        raise _strange(table, values.keys() - columns.keys())
    return {name: written(table, columns[name], value) for name, value in values.items()}


def whole_row(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every column, in order, but those that the database counts, as the database has them.

    What it does not say is the column's default. Raises: StoreError.
    """
    columns = columns_of(table)
    if len(row) == len(columns):
        try:  # it nearly always says all, and well
            return _usual(table, row)
        except (KeyError, TypeError, ValueError):
            pass
    said = changed(table, row)
    for column in columns.values():
        if column.required and column.name not in said:
            raise StoreError(f"a row of {table!r} lacks {column.name!r}: it has {sorted(row)}; add it")
    filled = {name: column.default for name, column in columns.items() if name in said or column.kind != "auto"}
    return {
        name: said[name] if name in said else written(table, columns[name], value) for name, value in filled.items()
    }


def _usual(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that says all. Raises: KeyError, TypeError, ValueError for one that must be looked at closely."""
    said = {name: row[name] for name in COLUMNS[table]}
    texts, others = _WRITERS[table]
    joined = "".join([said[name] for name in texts])  # one look at all of them
    if not joined.isascii() or "\0" in joined:
        said.update({name: _text(said[name]) for name in texts})
    for name, writer in others:
        said[name] = writer(said[name])
    return said


def key_of(table: str) -> list[str]:
    """The columns of the key."""
    return [column.name for column in columns_of(table).values() if column.key]


def keyed(table: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """The key of one row as conditions. Raises: StoreError when it is not the whole key."""
    if key.keys() != set(key_of(table)):
        raise StoreError(f"{sorted(key)} is not the key of {table!r}: give {', '.join(key_of(table))}")
    return {name: ("=", value) for name, value in key.items()}


def conditions(table: str, where: Mapping[str, Any] | None) -> Iterator[Any]:
    """Column -> value | (operator, value) | None, all of which must hold. Raises: StoreError."""
    columns = columns_of(table)
    for name, wanted in (where or {}).items():
        if name not in columns:
            raise _strange(table, {name})
        yield _condition(table, columns[name], wanted)


def _condition(table: str, column: Column, wanted: Any) -> Any:
    operator, value = ("=", wanted) if not isinstance(wanted, tuple) else wanted if len(wanted) == 2 else ("", None)
    if operator not in OPERATORS or (operator[0] in "<>" and column.kind in JSON):
        raise StoreError(
            f"{_short(wanted)} is no condition on {column.name!r} of {table!r}: give a value, None, or (operator, "
            f"value) with one of {', '.join(OPERATORS)} (JSON has no order)"
        )
    if operator == "in":
        value = _several(table, column, value)
    elif value is not None or operator not in ("=", "!="):
        value = written(table, column, value)
    return OPERATORS[operator](TABLES[table].c[column.name], value)


def _several(table: str, column: Column, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise StoreError(f'("in", {_short(values)}) on {column.name!r} of {table!r}: give a list of values')
    found = [written(table, column, value) for value in values]
    if len(found) > MOST:
        raise StoreError(
            f'"in" names {len(found)} values of {column.name!r} of {table!r}: at most {MOST}; ask in parts'
        )
    return found


def ordering(table: str, order: str) -> Iterator[Any]:
    """ "at" or "-at", several by comma; the key decides between equal rows. None comes first, or last after "-".

    Raises: StoreError.
    """
    columns = columns_of(table)
    down, seen = False, set()
    for part in filter(None, (part.strip() for part in order.split(","))):
        down, name = part.startswith("-"), part.removeprefix("-")
        if name not in columns:
            raise _strange(table, {name})
        seen.add(name)
        yield _ordered(table, columns[name], down)
    for name in key_of(table):
        if name not in seen:
            yield _ordered(table, columns[name], down)


def _ordered(table: str, column: Column, down: bool) -> Any:
    said = TABLES[table].c[column.name].desc() if down else TABLES[table].c[column.name].asc()
    if column.kind not in NULLABLE:  # said anyway, it would keep PostgreSQL from the index
        return said
    return said.nulls_last() if down else said.nulls_first()


def _strange(table: str, names: set[str]) -> StoreError:
    return StoreError(f"columns {sorted(names)!r} are not in {table!r}: it has {', '.join(columns_of(table))}")


def read_rows(table: str, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of all columns in order, as Python values."""
    columns = list(columns_of(table).values())
    names = [column.name for column in columns]
    encoded = [column.name for column in columns if column.kind in JSON]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for row in found:
        for name in encoded:
            if row[name] is not None:
                row[name] = json.loads(row[name])
    return found


def statement(table: str, where: Mapping[str, Any] | None, order: str, limit: int | None, offset: int) -> Any:
    """The rows that a search finds, as a SELECT. Raises: StoreError."""
    columns_of(table)
    if offset < 0 or (limit is not None and limit < 0):
        raise StoreError(f"limit {limit!r} and offset {offset!r} of a search in {table!r}: neither is below 0")
    found = sa.select(TABLES[table]).where(*conditions(table, where))
    return found.order_by(*ordering(table, order)).limit(limit).offset(offset or None)
