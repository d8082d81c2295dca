"""Blocks of train: as they come, and with every task in each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.records import Item
from evocluster.search.across import Tasks
from evocluster.search.members import blocks


def items(sizes: Mapping[str, int], mixed: bool = True) -> tuple[Item, ...]:
    """Every third example with a twin; `mixed`: evenly, as a suite deals them."""
    places = [((at + 0.4) / size if mixed else 0.0, name, at) for name, size in sizes.items() for at in range(size)]
    row = []
    for n, (_, name, at) in enumerate(sorted(places)):
        row += [Item(split="train", example=f"{name}::{at}", twin=twin) for twin in range(2 if n % 3 == 0 else 1)]
    return tuple(row)


def tasks(given: tuple[Item, ...]) -> Tasks:
    examples = dict.fromkeys(item.example for item in given)
    return Tasks.among(examples, lambda example: example.partition("::")[0], "mean")


def shares(block: tuple[Item, ...]) -> Counter[str]:
    return Counter(example.partition("::")[0] for example in {item.example for item in block})


@pytest.mark.parametrize(("size", "lowest"), [(16, 1), (24, 1), (54, 4)])
def test_eight_and_a_hundred_examples(size: int, lowest: int) -> None:
    given = items({"small": 8, "big": 100})
    for block in blocks(given, size, tasks(given)):
        assert lowest <= shares(block)["small"] <= 1 + 8 * size / 108
        assert shares(block)["big"] >= 1


def test_where_there_are_too_few_they_are_spread() -> None:
    given = items({"small": 8, "big": 100})
    found = [shares(block)["small"] for block in blocks(given, 8, tasks(given))]
    assert sum(found) == 8
    assert max(found) == 1


def test_even_where_nothing_was_mixed() -> None:
    given = items({"a": 8, "b": 100, "c": 9}, mixed=False)
    plain = [shares(block) for block in blocks(given, 16)]
    assert any(len(one) < 3 for one in plain)
    assert all(len(shares(block)) == 3 for block in blocks(given, 16, tasks(given)))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1), st.integers(1, 30), st.booleans())
def test_laws_of_blocks(sizes: dict[str, int], size: int, mixed: bool) -> None:
    given_ = items(sizes, mixed)
    plain, found = blocks(given_, size), blocks(given_, size, tasks(given_))
    assert sorted(str(item) for block in found for item in block) == sorted(map(str, given_))
    assert [sum(shares(block).values()) for block in found] == [sum(shares(block).values()) for block in plain]
    where = {item.example: at for at, block in enumerate(found) for item in block}
    assert all(where[item.example] == at for at, block in enumerate(found) for item in block), "twins stay together"
    plenty = [name for name, count in sizes.items() if count >= len(found)]
    for block in found:
        if sum(shares(block).values()) >= len(sizes):
            assert set(plenty) <= shares(block).keys()
    if len(sizes) == 1:
        assert found == plain
