"""A column of Python values as an Arrow array, laid out here: to the same bytes as `pyarrow.array` would.

`pyarrow.array` imports pandas, where it is installed, at the first list that it is given: half a second of CPU in the
middle of a search, while every answer waits. What it makes of a list is short (Arrow columnar format, "Physical Memory
Layout"): a bitmap of what is there, where texts and lists end, and the values.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

_STRING, _INT64, _FLOAT64, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_LIST = pa.list_(_STRING)
KINDS: dict[str, Any] = {
    "string": _STRING,
    "int64": _INT64,
    "float64": _FLOAT64,
    "bool": _BOOL,
    "list<string>": _LIST,
}
"""Name of a type -> the type, as `column` knows it."""
_EXACT = 2**53
"""Up to which every integer is a float64."""


def column(kind: Any, values: Sequence[Any], types: set[type]) -> Any:
    """The values, which are of these types and fit `kind` (or are None), as an array.

    Raises: UnicodeEncodeError for half a surrogate pair, OverflowError, pa.ArrowException.
    """
    whole = type(None) not in types
    plain = types if whole else types - {type(None)}
    if kind is _STRING and plain == {str}:
        return _texts(values, whole)
    if kind is _INT64 and plain == {int}:
        return _numbers(kind, "q", values, whole)
    if kind is _FLOAT64 and (plain == {float} or (plain <= {float, int} and all(map(_exact, values)))):
        return _numbers(kind, "d", values, whole)
    if kind is _BOOL and plain == {bool}:
        return _array(kind, values, whole, _bits(values))
    if kind is _LIST:
        return _lists(values, whole)
    return pa.array(values, kind)


def _exact(value: float | None) -> bool:
    return type(value) is not int or -_EXACT <= value <= _EXACT


def _numbers(kind: Any, code: str, values: Sequence[Any], whole: bool) -> Any:
    filled = values if whole else [0 if value is None else value for value in values]
    return _array(kind, values, whole, pa.py_buffer(array(code, filled)))


def _texts(values: Sequence[Any], whole: bool) -> Any:
    filled = values if whole else [value or "" for value in values]
    joined = "".join(filled)
    parts = filled if joined.isascii() else [value.encode() for value in filled]
    return _array(_STRING, values, whole, _ends(parts), pa.py_buffer(joined.encode()))


def _lists(values: Sequence[Sequence[str] | None], whole: bool) -> Any:
    filled = [value or () for value in values]
    items = _texts([item for value in filled for item in value], True)
    return _array(_LIST, values, whole, _ends(filled), children=[items])


def _array(kind: Any, values: Sequence[Any], whole: bool, *content: Any, children: Any = None) -> Any:
    """`content`: the buffers after the bitmap of what is there, which is left out where everything is."""
    present = None if whole else _bits([value is not None for value in values])
    return pa.Array.from_buffers(kind, len(values), [present, *content], children=children)


def _bits(flags: Sequence[bool | None]) -> Any:
    return pa.py_buffer(np.packbits(np.array(flags, dtype=bool), bitorder="little"))


def _ends(parts: Sequence[Sequence[Any]]) -> Any:
    """0, and where each part ends. Raises: OverflowError beyond what 32 bits hold."""
    return pa.py_buffer(array("i", accumulate(map(len, parts), initial=0)))
