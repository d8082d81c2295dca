"""Perturbations: the laws every twin keeps, and what each kind does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.records import Example
from evocluster.tasks.perturb import Kind, perturb
from evocluster.tasks.words import normalise

KINDS: tuple[Kind, ...] = ("typos", "case", "spacing", "reorder")
TEXT = "Where is my parcel 4711? I ordered it on May 3rd. It should go to Sale Creek."
words = st.lists(st.sampled_from(["please", "add", "Song", "42", "to", "playlist", "Ünder", "x9y", "now."]), min_size=1)
texts = words.map(" ".join)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


@given(texts, kinds, st.integers(1, 9), st.integers(0, 9))
def test_a_twin_is_deterministic_and_keeps_id_digits_and_the_answer(
    text: str, chosen: list[Kind], twin: int, seed: int
) -> None:
    example = Example(id="e", input=text, expected="playlist", meta={"k": 1})
    changed = perturb(example, twin, chosen, seed)
    assert changed == perturb(example, twin, chosen, seed)
    assert (changed.id, changed.expected, changed.meta) == ("e", "playlist", {"k": 1})
    assert sorted(re.findall(r"\w*\d\w*", changed.input)) == sorted(re.findall(r"\w*\d\w*", text))
    assert changed.input.count("playlist") == text.count("playlist")


@given(texts, st.integers(1, 9))
def test_spacing_always_changes_and_case_and_spacing_keep_the_words(text: str, twin: int) -> None:
    example = Example(id="e", input=text, expected="?")
    assert perturb(example, twin, ["spacing"], 0).input != text
    assert perturb(example, twin, ["reorder", "spacing"], 0).input != text
    for kind in ("spacing", "case"):
        assert normalise(perturb(example, twin, [kind], 0).input) == normalise(text)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_a_text_of_sentences(kind: Kind) -> None:
    example = Example(id="e", input=TEXT, expected={"city": "Sale Creek"})
    changed = {perturb(example, twin, [kind], 0).input for twin in range(1, 9)}
    assert TEXT not in changed
    assert len(changed) > 1
    assert all("Sale Creek" in text for text in changed)


def test_reorder_moves_whole_sentences_and_respects_abbreviations() -> None:
    example = Example(id="e", input="Ask Dr. Who about it. He knows.\nThanks!", expected="?")
    changed = perturb(example, 1, ["reorder"], 0).input
    pieces = ["Ask Dr. Who about it.", "He knows.", "Thanks!"]
    assert all(piece in changed for piece in pieces)
    assert changed.count("\n") == 1
    single = Example(id="e", input="Ask Dr. Who about it", expected="?")
    assert perturb(single, 1, ["reorder"], 0) is single


def test_typos_leave_short_kept_and_caseless_words() -> None:
    example = Example(id="e", input="put 'Refunds' in the box \u9000\u6b3e\u8bf7\u6c42", expected="?")
    assert perturb(example, 1, ["typos"], 0, frozenset({"refunds"})) is example
    assert perturb(example, 1, ["typos"], 0) != example


def test_twins_cycle_through_the_kinds() -> None:
    example = Example(id="e", input=TEXT, expected="?")
    first, second = (perturb(example, twin, ["case", "spacing"], 3).input for twin in (1, 2))
    assert (first.casefold() == TEXT.casefold()) != (second.casefold() == TEXT.casefold())


def test_objects_keep_their_fields_and_codes() -> None:
    example = Example(id="e", input={"lang": "english", "text": "hello there friend", "n": 3}, expected="?")
    changed = perturb(example, 1, ["case"], 0).input
    assert list(changed) == ["lang", "text", "n"]
    assert (changed["lang"], changed["n"]) == ("english", 3)
    assert changed["text"] != "hello there friend"


def test_what_cannot_change_stays_as_it_is() -> None:
    example = Example(id="e", input="42", expected="?")
    assert perturb(example, 1, ["typos", "case", "reorder"], 0) is example
