"""Scorers: the contract for each, then what only one of them does."""

from __future__ import annotations

import pytest
from contract_scorer import ScorerContract, scored
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.records import Json
from evocluster.tasks.scorers import (
    Contains,
    Exact,
    JsonEqual,
    Normalised,
    Numeric,
    Regex,
    Similarity,
)
from evocluster.tasks.words import last_number, normalise

SLOTS = {"venue": "pizzeria", "party": "2", "time": None, "city": "Sale Creek"}


class TestExact(ScorerContract):
    settings: dict[str, Json] = {"kind": "exact"}  # noqa: RUF012
    expected = "To be"
    right = (" To be\n", None)
    wrong = ("to be", None)


class TestNormalised(ScorerContract):
    settings: dict[str, Json] = {"kind": "normalised"}  # noqa: RUF012
    expected = "To be, or not"
    right = ("to  be or NOT!", None)
    wrong = ("to bee or not", None)


class TestLabel(ScorerContract):
    settings: dict[str, Json] = {"kind": "label"}  # noqa: RUF012
    expected = "refund"
    right = ("refund", "refund")
    wrong = ("billing", "billing")


class TestNumeric(ScorerContract):
    settings: dict[str, Json] = {"kind": "numeric"}  # noqa: RUF012
    expected = 1234
    right = ("first 3, so it is $1,234.00.", None)
    wrong = ("1234 minus 1 is 1233", None)


class TestContains(ScorerContract):
    settings: dict[str, Json] = {"kind": "contains"}  # noqa: RUF012
    expected = "Paris"
    right = ("It is paris, of course", None)
    wrong = ("It is Rome", None)


class TestRegex(ScorerContract):
    settings: dict[str, Json] = {"kind": "regex", "pattern": r"^\s*{expected}\b"}  # noqa: RUF012
    expected = "a.b"
    right = ("a.b and more", None)
    wrong = ("axb and more", None)


class TestJsonEqual(ScorerContract):
    settings: dict[str, Json] = {"kind": "json_equal"}  # noqa: RUF012
    expected = SLOTS
    right = ("", dict(reversed(SLOTS.items())))
    wrong = ("", {**SLOTS, "city": "sale creek"})


class TestSimilarity(ScorerContract):
    settings: dict[str, Json] = {"kind": "similarity"}  # noqa: RUF012
    expected = "the cat sat on the mat"
    right = ("The cat sat on the mat.", None)
    wrong = ("the cat sat on a mat", None)


async def test_exact_and_normalised_compare_what_is_not_text() -> None:
    assert (await scored(Exact(), True, "true")).value == 1
    assert (await scored(Normalised(), 3, " 3.")).value == 1
    assert (await scored(Normalised(), -3, "3")).value == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3-5", 5),
        ("is -7.", -7),
        ("\u221212", -12),
        ("1,234,567", 1234567),
        (".5", 0.5),
        ("2e3", 2000),
        ("v2", None),
        ("none", None),
        ("1,23", 23),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_last_number_reads_what_python_writes(number: float) -> None:
    assert last_number(f"the answer is {number!r}") == number


async def test_numeric_tolerances_and_a_dataset_without_numbers() -> None:
    assert (await scored(Numeric(relative=0.01), 200, "201.9")).value == 1
    assert (await scored(Numeric(absolute=0.5), 200, "201")).value == 0
    with pytest.raises(ValueError, match="'two' holds no number"):
        await scored(Numeric(), "two", "2")


async def test_contains_gives_the_share_of_a_list() -> None:
    score = await scored(Contains(), ["red", "green", "blue", "pink"], "Green and red, or blue")
    assert score.value == 0.75
    assert "pink" in score.reason
    assert (await scored(Contains(ignore_case=False), "Red", "red")).value == 0


def test_regex_must_compile() -> None:
    with pytest.raises(ValidationError, match=r"'\(' is not a regular expression"):
        Regex(pattern="(")


async def test_json_equal_partial_is_the_share_of_fields() -> None:
    partial = JsonEqual(partial=True)
    near = {**SLOTS, "venue": "bar", "city": "SALE creek."}
    score = await scored(partial, SLOTS, "", near)
    assert (score.value, score.reason) == (0.75, "wrong: venue")
    assert (await scored(partial, SLOTS, "", {**SLOTS, "extra": 1})).value == pytest.approx(0.8)
    assert (await scored(partial, SLOTS, "", {**SLOTS, "time": "null"})).value == 0.75
    assert (await scored(partial, SLOTS, "", {})).value == 0


async def test_json_equal_reads_expected_text_and_does_not_mind_number_types() -> None:
    assert (await scored(JsonEqual(), '{"a": 1}', "", {"a": 1.0})).value == 1
    assert (await scored(JsonEqual(), {"a": True}, "", {"a": 1})).value == 0
    assert (await scored(JsonEqual(), [1, 2], "", [2, 1])).value == 0


async def test_similarity_counts_tokens() -> None:
    tokens = Similarity(measure="tokens")
    assert (await scored(tokens, "a b c d", "d, C b!")).value == pytest.approx(6 / 7)
    assert (await scored(tokens, "a", "b")).value == 0


@given(st.text(), st.text())
async def test_scores_stay_between_0_and_1(expected: str, output: str) -> None:
    for scorer in (
        Exact(),
        Normalised(),
        Contains(),
        JsonEqual(),
        Similarity(),
        Similarity(measure="tokens"),
    ):
        assert 0 <= (await scored(scorer, expected, output, output)).value <= 1


@given(st.text())
def test_normalise_is_idempotent_and_blind_to_case_and_spacing(text: str) -> None:
    once = normalise(text)
    assert normalise(f"  {once}\n") == once
    assert normalise(once) == once
