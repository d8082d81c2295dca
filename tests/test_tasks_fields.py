"""Field-wise JSON: the contract, how fields are found and compared, and laws."""

from __future__ import annotations

import random

import pytest
from contract_scorer import ScorerContract, scored
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.records import Json, Score
from evocluster.tasks import fields as fields_module
from evocluster.tasks.dates import same_date
from evocluster.tasks.fields import Fields

BOOKING: dict[str, Json] = {
    "name": "Ada Lovelace",
    "party_size": 4,
    "day": "2025-05-04",
    "address": {"city": "Paris", "zip": "75001"},
    "items": [{"sku": "a-1", "price": 3}, {"sku": "b-2", "price": 12.5}],
    "note": None,
}


class TestFields(ScorerContract):
    settings: dict[str, Json] = {  # noqa: RUF012
        "kind": "fields",
        "fields": {"party_size": {"compare": "numeric", "weight": 2}, "note": "ignore", "address.city": "exact"},
        "weights": {"name": 3},
        "report": "f1",
    }
    expected = BOOKING
    right = ("", {**BOOKING, "name": "ada lovelace", "note": "whatever", "party_size": "for 4"})
    wrong = ("", {**BOOKING, "name": "Ada Byron"})


async def compared(expected: Json, found: Json, **given: Json) -> Score:
    """The score of what was found with these settings."""
    return await scored(Fields.model_validate(given), expected, "", found)


@pytest.mark.parametrize(
    ("how", "expected", "found", "value"),
    [
        ("exact", "Paris", "Paris", 1),
        ("exact", "Paris", "paris", 0),
        ("exact", 2, 2.0, 1),
        ("exact", 2, "2", 0),
        ("exact", 1, True, 0),
        ("normalised", "Sale Creek!", " sale  creek", 1),
        ("normalised", 2.0, "2", 1),
        ("normalised", ["A", 1], ["a.", "1"], 1),
        ("normalised", "null", None, 0),
        ("normalised", None, None, 1),
        ("numeric", 1200, "$1,200", 1),
        ("numeric", "3 people", 3, 1),
        ("numeric", 3, "many", 0),
        ("numeric", 0.1, 0.1000001, 0),
        ({"compare": "numeric", "tolerance": 0.5}, 10, 10.5, 1),
        ({"compare": "numeric", "tolerance": 0.5}, 10, 10.6, 0),
        ("contains", "Lovelace", "Ms. Ada Lovelace", 1),
        ("contains", "Ada Lovelace", "Ada", 0),
        ("contains", "", "anything", 0),
        ("contains", "", "", 1),
        ("similarity", "abcd", "abxd", 0.75),
        ("similarity", "abcd", None, 0),
        ("date", "2025-05-04", "May 4th, 2025", 1),
        ("date", "2025-05-04", "4.5.2025", 1),
        ("date", "2025-05-04", "5/4/2025", 0),
        ("date", "tomorrow", "Tomorrow!", 1),
    ],
)
async def test_how_one_field_is_compared(how: Json, expected: Json, found: Json, value: float) -> None:
    score = await compared({"x": expected}, {"x": found}, fields={"x": how})
    assert score.value == value
    assert (score.reason == "") == (value == 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2025-05-04", "4 May 2025", True),
        ("2025-05-04", "Sunday, May 4, 2025", True),
        ("2025-05-04", "May 4 2025", True),
        ("2025-05-04", "20250504", True),
        ("2025-05-04", "2025/5/4", True),
        ("2025-05-04", "04-May-2025", True),
        ("2025-05-04", "2025-05-04T10:30:00", True),
        ("2025-05-04", "2025-05-05", False),
        ("13/05/2025", "5/13/2025", True),
        ("4/4/2025", "2025-04-04", True),
        ("3/4/2025", "2025-04-03", None),
        ("2025-05-04T12:00:00Z", "2025-05-04T14:00:00+02:00", True),
        ("2025-05-04T12:00:00Z", "2025-05-04 12:00", True),
        ("2025-05-04 12:00", "2025-05-04 13:00", False),
        ("2025-02-30", "2025-03-02", None),
        ("05-04-25", "2025-04-05", None),
        ("", "2025-04-05", None),
    ],
)
def test_dates(one: str, other: str, same: bool | None) -> None:
    assert same_date(one, other) is same
    assert same_date(other, one) is same


@pytest.mark.parametrize(
    ("found", "value", "reason"),
    [
        ({"a": 1, "b": {"c": 2}}, 1, ""),
        ({"a": 1, "b": {"c": 3}}, 0.5, "b.c: expected 2, found 3"),
        ({"a": 1}, 0.5, "b.c: expected 2, found nothing"),
        ({"a": 1, "b": None}, 0.5, "b.c: expected 2, found nothing"),
        (
            {"a": 1, "b": {"c": 2}, "d": {"e": 5, "f": 6}},
            0.5,
            "d.e: expected nothing, found 5; d.f: expected nothing, ",
        ),
        ({}, 0, "a: expected 1, found nothing; b.c: expected 2, found nothing"),
        ([], 0, "a: expected 1, found nothing; b.c: expected 2, found nothing"),
    ],
)
async def test_fields_are_leaves(found: Json, value: float, reason: str) -> None:
    score = await compared({"a": 1, "b": {"c": 2}}, found)
    assert score.value == value
    assert score.reason.startswith(reason)


async def test_weights_extras_nulls_and_f1() -> None:
    expected = {"a": 1, "b": {"c": 2, "d": 3}}
    assert (await compared(expected, {"a": 1, "b": {"c": 0, "d": 0}}, weights={"a": 2})).value == 0.5
    assert (await compared(expected, {"a": 1, "b": {"c": 0, "d": 3}}, weights={"b": 3, "b.d": 1})).value == 0.4
    assert (await compared(expected, {"a": 1, "b": {"c": 0, "d": 0}}, fields={"b": {"weight": 3}})).value == 0.25
    more = {**expected, "e": 5}
    assert (await compared(expected, more)).value == 0.75
    assert (await compared(expected, more, extra="ignore")).value == 1
    assert (await compared(expected, {"a": 1, "x": 1}, report="f1")).value == pytest.approx(2 / 5)
    assert (await compared({"a": 1, "n": None}, {"a": 1})).value == 0.5
    assert (await compared({"a": 1, "n": None}, {"a": 1}, missing_is_null=True)).value == 1
    assert (await compared({"a": 1}, {"a": 1, "n": None})).value == 0.5
    assert (await compared({"a": 1, "b": 2}, {"a": 1, "n": None, "m": None}, missing_is_null=True)).value == 0.5
    assert (await compared({"a": 1, "b": 2}, {"a": 1, "b": 3}, default="ignore", fields={"b": "exact"})).value == 0
    assert (await compared({"a": [], "b": {}}, {"a": [], "b": {}})).value == 1
    assert (await compared({"a": [], "b": {}}, {"a": [1], "b": []})).value == 0
    assert (await compared({"a": [], "b": 1}, {"b": 1})).value == 0.5


async def test_items_of_lists_are_paired_and_keep_together() -> None:
    expected = {"items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}, {"sku": "c", "n": 3}]}
    found: Json = {"items": [{"sku": "c", "n": 3}, {"sku": "b", "n": 1}, {"sku": "a", "n": 1}]}
    score = await compared(expected, found)
    assert score.value == pytest.approx(5 / 6)
    assert score.reason == "items[].n: expected 2, found 1"
    assert (await compared(expected, found, lists="order")).value == pytest.approx(1 / 6)
    assert (await compared(expected, found, fields={"items[].n": "ignore"})).value == 1
    assert (await compared(expected, found, fields={"items": "exact"})).value == 0
    whole = await compared(expected, found, fields={"items[]": "exact"})
    assert whole.value == pytest.approx(2 / 3)
    less: Json = {"items": found["items"][:2]}
    assert (await compared(expected, less)).value == pytest.approx(3 / 6)
    more: Json = {"items": [*expected["items"], {"sku": "d"}]}
    assert (await compared(expected, more)).value == pytest.approx(6 / 7)
    assert (await compared(["red", "blue", "red"], ["Red", "red", "green", "blue"])).value == 0.75


async def test_lists_too_long_to_pair_are_taken_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [{"n": at, "s": "x"} for at in range(6)]
    turned = [{"n": at, "s": "y"} for at in reversed(range(6))]
    assert (await compared(expected, turned)).value == 0.5
    monkeypatch.setattr(fields_module, "MAX_PAIRS", 35)
    assert (await compared(expected, turned)).value == 0
    assert (await compared(expected, [*reversed(expected)])).value == 1


async def test_the_answer_is_found_in_text_and_expected_may_be_text() -> None:
    assert (await scored(Fields(), '{"a": 1}', 'Sure: {"a": 1}.')).value == 1
    assert (await scored(Fields(), {"a": 1}, "Sure!")).reason == "no JSON in the output"
    with pytest.raises(ValueError, match=r"expected 'red' is no JSON object or array; use another scorer"):
        await scored(Fields(), "red", "{}")
    with pytest.raises(ValueError, match=r"field 'a' expects 'two', which holds no number"):
        await compared({"a": "two"}, {"a": 2}, fields={"a": "numeric"})


async def test_a_reason_is_short() -> None:
    score = await compared({str(at): "x" * 500 for at in range(20)}, {"0": "y" * 500})
    assert len(score.reason) < 600
    assert score.reason.endswith("; and 15 more")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"fields": {"a": "exactly"}},
            "unknown way to compare 'exactly'; allowed: exact, .* ignore; did you mean 'exact'",
        ),
        ({"fields": {"a": {"compare": "numeric", "tolerence": 1}}}, "tolerence"),
        ({"fields": {"a": {"weight": 2}}, "weights": {"a": 2}}, r"weights.a and fields.a.weight are both given"),
        ({"fields": {"a": "exact", "a.b": "exact"}}, "'a' is compared as a whole, so 'a.b' has no effect"),
        ({"fields": {"a": "ignore", "a[].b": "exact"}}, "'a' is compared as a whole"),
        ({"weights": {"a": -1}}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, Json], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Fields.model_validate(given)


def test_a_path_that_no_example_expects_is_told() -> None:
    scorer = Fields.model_validate({"fields": {"items[].sku": "exact", "party_siz": "numeric"}})
    said = scorer.unexpected([BOOKING])
    assert said is not None
    assert said.startswith("no example expects a field 'party_siz'; expected are address, address.city,")
    assert said.endswith("did you mean 'party_size'?")
    assert Fields.model_validate({"weights": {"address": 2}}).unexpected(['{"address": 1}']) is None


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=6)
JSONS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc", min_size=1, max_size=2), JSONS, max_size=4)
WAYS = st.fixed_dictionaries(
    {
        "default": st.sampled_from(["exact", "normalised", "contains", "similarity", "date"]),
        "report": st.sampled_from(["share", "f1"]),
        "extra": st.sampled_from(["count", "ignore"]),
        "missing_is_null": st.booleans(),
        "lists": st.sampled_from(["match", "order"]),
    }
)


def shuffled(value: Json, rng: random.Random, lists: bool) -> Json:
    """The same with keys, and the items of lists where asked, in another order."""
    if isinstance(value, dict):
        keys = rng.sample(list(value), len(value))
        return {key: shuffled(value[key], rng, lists) for key in keys}
    if isinstance(value, list):
        items = [shuffled(item, rng, lists) for item in value]
        return rng.sample(items, len(items)) if lists else items
    return value


@settings(max_examples=40)
@given(OBJECTS, WAYS)
async def test_the_same_is_one(value: Json, ways: dict[str, Json]) -> None:
    assert await compared(value, value, **ways) == Score(value=1.0)


@settings(max_examples=40)
@given(OBJECTS, OBJECTS, WAYS, st.randoms(use_true_random=False))
async def test_order_does_not_matter(expected: Json, found: Json, ways: dict[str, Json], rng: random.Random) -> None:
    lists = ways["lists"] == "match"
    first = (await compared(expected, found, **ways)).value
    assert 0 <= first <= 1
    turned = await compared(shuffled(expected, rng, lists), shuffled(found, rng, lists), **ways)
    assert turned.value == pytest.approx(first)


@settings(max_examples=40)
@given(OBJECTS, OBJECTS)
async def test_a_field_more_that_is_right_never_costs(expected: Json, found: Json) -> None:
    before = (await compared(expected, found)).value
    after = (await compared({**expected, "z": 1}, {**found, "z": 1})).value
    assert after >= before


async def test_ties_between_pairs_do_not_hang_on_the_order() -> None:
    expected: Json = {"c": [{}, ["x", "y", None], {"bb": True, "a": False, "b": None}, {"ab": False}], "ac": [None, 2]}
    found: Json = {"c": [{"c": None}, [0, None, "z", None], [], {"cb": None, "aa": True, "bb": -2.7}]}
    ways = {"missing_is_null": True, "default": "date", "lists": "match", "extra": "count", "report": "share"}
    turned = {"c": found["c"][::-1]}
    back = {"c": expected["c"][::-1], "ac": expected["ac"][::-1]}
    values = {(await compared(one, other, **ways)).value for one in (expected, back) for other in (found, turned)}
    assert len(values) == 1


async def test_a_list_beside_a_text_is_compared_whatever_its_order() -> None:
    ways = {"default": "similarity", "lists": "match"}
    values = [(await compared({"a": "no"}, {"a": some}, **ways)).value for some in (["n", "o"], ["o", "n"])]
    assert values[0] == values[1]
