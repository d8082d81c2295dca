"""YAML that is written for people reads back as what it was."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster import document as documents
from evocluster.cli.yamltext import dumped
from evocluster.records import Json

ODD = [
    *("a\nb", "a\n\nb\n", "yes", "1", "1e3", "~", "# x", "a: b", "- x", "a #b", "{x}", "|", "0x1", "a\n  b", "\n a"),
    *("2020-01-01", "x\n", "-", "key:", " lead", "trail ", ".inf", "null", "<<", "a\x85b", "\u2028", "\U0001f600"),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(ODD)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXTS.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.just("key") | st.sampled_from(ODD[:9]), VALUES, min_size=1, max_size=3))
def test_what_is_written_is_read_again(value: dict[str, Json]) -> None:
    text = dumped(value) + "\n"
    document = documents.Document("text", {})
    assert document._value(documents._compose(text, "text"), (), lambda node: (0, "")) == value
    assert not document.problems


def test_texts_with_lines_stand_as_blocks() -> None:
    assert dumped({"rubric": ["one\n  two", "three"], "size": [1, 2]}) == (
        "rubric:\n  - |-\n    one\n      two\n  - three\nsize: [1, 2]"
    )
