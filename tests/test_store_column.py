"""A column is laid out to the same bytes as pyarrow would, and pandas stays out of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.store import arrow
from evocluster.store.column import KINDS, column

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXTS,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats() | st.integers(-(2**53), 2**53),
    "bool": st.booleans(),
    "list<string>": st.lists(TEXTS, max_size=4) | st.tuples(TEXTS),
}


def message(array: Any) -> bytes:
    """The record batch of this one column, as it stands in a file."""
    return bytes(pa.RecordBatch.from_arrays([array], names=["x"]).serialize())


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_a_column_has_the_bytes_that_pyarrow_gives_it(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[name], min_size=1, max_size=20))
    if data.draw(st.booleans()):
        holes = data.draw(st.sets(st.integers(0, len(values) - 1), max_size=len(values) - (name != "list<string>")))
        values = [None if at in holes else value for at, value in enumerate(values)]
    made = column(KINDS[name], values, set(map(type, values)))
    made.validate(full=True)
    assert message(made) == message(pa.array(values, KINDS[name]))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("int64", 2**63, OverflowError),
        ("float64", 2**53 + 1, pa.ArrowInvalid),
        ("string", "\ud800", UnicodeEncodeError),
    ],
)
def test_what_does_not_fit_is_no_column(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        column(KINDS[name], [value, value], {type(value)})


def test_pandas_is_not_imported_for_a_batch() -> None:
    lines = [
        "import sys",
        "from evocluster.store.arrow import batch_bytes",
        "from evocluster.engine.folder import COLUMNS",
        "row = {'proposal': 1, 'quality': 0.5, 'output': 'yes', 'schema_ok': True, 'flags': ['a'], 'error': None}",
        "batch_bytes([row, {'proposal': 2}], COLUMNS)",
        "sys.exit('pandas' in sys.modules)",
    ]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False).returncode == 0


def test_numbers_of_other_types_are_taken_as_pyarrow_takes_them() -> None:
    import numpy as np

    rows: list[dict[str, Any]] = [{"n": np.int64(3), "x": np.float64(0.5)}, {"n": 4, "x": 1}]
    assert arrow.record_batch(rows, {"n": "int64", "x": "float64"}).to_pylist() == [
        {"n": 3, "x": 0.5},
        {"n": 4, "x": 1.0},
    ]
