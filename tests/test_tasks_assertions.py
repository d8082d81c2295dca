"""Assertions: the contract for each, then what only one of them does."""

from __future__ import annotations

import pytest
from contract_scorer import ScorerContract, scored
from pydantic import TypeAdapter, ValidationError

from evocluster.records import Json, Score, Usage
from evocluster.tasks.assertions import Includes, JsonPath, Length, Matches
from evocluster.tasks.scorers import AnyScorer, Regex

ORDER: dict[str, Json] = {"items": [{"sku": "a-1", "price": 3}, {"sku": "b-2", "price": 12.5}], "note": None}


class TestIncludes(ScorerContract):
    settings: dict[str, Json] = {"kind": "includes", "texts": ["Paris", "12 euros"]}  # noqa: RUF012
    expected = None
    right = ("To PARIS for 12 Euros", None)
    wrong = ("To Paris", None)


class TestMatches(ScorerContract):
    settings: dict[str, Json] = {"kind": "matches", "pattern": r"\bTKT-\d{4}\b"}  # noqa: RUF012
    expected = None
    right = ("Your ticket is TKT-1234.", None)
    wrong = ("Your ticket is TKT-12345.", None)


class TestOneOf(ScorerContract):
    settings: dict[str, Json] = {"kind": "one_of", "texts": ["Yes", "No", "Not sure"]}  # noqa: RUF012
    expected = None
    right = (" not  sure.", None)
    wrong = ("not so sure", None)


class TestIsJson(ScorerContract):
    settings: dict[str, Json] = {  # noqa: RUF012
        "kind": "is_json",
        "json_schema": {"type": "object", "required": ["a"]},
    }
    expected = None
    right = (' {"a": [1]}\n', None)
    wrong = ('{"b": 1}', None)


class TestJsonPath(ScorerContract):
    settings: dict[str, Json] = {"kind": "json_path", "path": "$.items[0].price", "equals": 3}  # noqa: RUF012
    expected = None
    right = ("", ORDER)
    wrong = ("", {"items": [{"price": 3.5}]})


class TestLength(ScorerContract):
    settings: dict[str, Json] = {"kind": "length", "unit": "words", "min": 2, "max": 3}  # noqa: RUF012
    expected = None
    right = (" two words\n", None)
    wrong = ("as many as four", None)


class TestNumber(ScorerContract):
    settings: dict[str, Json] = {"kind": "number", "min": 0, "max": 10}  # noqa: RUF012
    expected = None
    right = ("of 1,200 I give 7.5", None)
    wrong = ("I give 7 of 12", None)


class TestCost(ScorerContract):
    settings: dict[str, Json] = {"kind": "cost", "max_usd": 0.002}  # noqa: RUF012
    expected = None
    right = ("x", None, Usage(usd=0.002))
    wrong = ("x", None, Usage(usd=0.0021))
    content_with_nothing = True


class TestLatency(ScorerContract):
    settings: dict[str, Json] = {"kind": "latency", "max_ms": 800}  # noqa: RUF012
    expected = None
    right = ("x", None, Usage(seconds=0.8))
    wrong = ("x", None, Usage(seconds=0.801))
    content_with_nothing = True


async def judged(settings: dict[str, Json], output: str, parsed: Json = None) -> Score:
    """The score of these settings."""
    scorer: AnyScorer = TypeAdapter(AnyScorer).validate_python(settings)
    return await scored(scorer, None, output, parsed)


@pytest.mark.parametrize(
    ("settings", "output", "value", "reason"),
    [
        ({"texts": ["a", "b", "c", "d"]}, "A c", 0.5, "found 'a', 'c'; missing 'b', 'd'"),
        ({"texts": ["a", "b"], "need": "any"}, "xbx", 1, "found 'b'"),
        ({"texts": ["a", "b"], "need": "any"}, "x", 0, "found none of the texts"),
        ({"texts": ["sorry", "an AI"], "need": "none"}, "As an ai I am", 0, "found 'an AI'"),
        ({"texts": ["sorry", "an AI"], "need": "none"}, "Fine", 1, "found none of the texts"),
        ({"texts": ["A"], "ignore_case": False}, "a", 0, "found none of the texts; missing 'A'"),
    ],
)
async def test_includes(settings: dict[str, Json], output: str, value: float, reason: str) -> None:
    assert await judged({"kind": "includes", **settings}, output) == Score(value=value, reason=reason)


async def test_matches_what_must_not_be_there() -> None:
    absent = Matches(pattern="(?:as an )?ai\\b", present=False, ignore_case=True)
    assert await scored(absent, None, "As an AI, I") == Score(value=0, reason="found 'As an AI'")
    assert (await scored(absent, None, "So I said")).value == 1
    assert (await scored(Matches(pattern="AI"), None, "ai")).value == 0


@pytest.mark.parametrize(
    "scorer",
    [Matches(pattern="(a|aa)+$"), Regex(pattern="{expected}(a|aa)+$"), JsonPath(path="$.a", pattern="(a|aa)+$")],
)
async def test_a_pattern_that_backtracks_without_end_fails_that_evaluation(scorer: AnyScorer) -> None:
    output = "a" * 400 + "b"
    with pytest.raises(TimeoutError, match=r"pattern '.*' did not finish within 0.5 s on a text of 40[01] characters"):
        await scored(scorer, "a", output, {"a": output})


async def test_a_filter_of_a_path_that_backtracks_without_end_fails_that_evaluation() -> None:
    scorer = JsonPath(path="$[?search(@.a, '(a|aa)+$')]")
    with pytest.raises(TimeoutError, match="did not finish"):
        await scored(scorer, None, "", [{"a": "a" * 400 + "b"}])
    assert (await scored(scorer, None, "", [{"a": "xa"}])).value == 1
    whole = JsonPath(path="$[?match(@.a, 'a.c|b')]")
    assert (await scored(whole, None, "", [{"a": "abc"}])).value == 1
    assert (await scored(whole, None, "", [{"a": "abcb"}, {"a": 1}])).value == 0


@pytest.mark.parametrize(
    ("settings", "value", "reason"),
    [
        ({"path": "$.items[1].sku"}, 1, "found 'b-2'"),
        ({"path": "$.items[2].sku"}, 0, "nothing at $.items[2].sku"),
        ({"path": "$.items[2]", "exists": False}, 1, "nothing at $.items[2]"),
        ({"path": "$.items[0].sku", "exists": False}, 0, "$.items[0].sku holds 'a-1'"),
        ({"path": "$.items[*].price", "min": 3, "max": 12.5}, 1, "found 3"),
        ({"path": "$.items[*].price", "min": 4}, 0, "$.items[*].price holds 3; allowed: from 4"),
        ({"path": "$.items[*].sku", "min": 4}, 0, "$.items[*].sku holds 'a-1'; allowed: from 4"),
        ({"path": "$.items[*].sku", "pattern": r"^[ab]-\d$"}, 1, "found 'a-1'"),
        ({"path": "$.items[*].sku", "pattern": "a"}, 0, "$.items[*].sku holds 'b-2'; allowed: a text with 'a'"),
        ({"path": "$.items[0].price", "pattern": "3"}, 0, "$.items[0].price holds 3; allowed: a text with '3'"),
        ({"path": "$.items[0].price", "equals": 3.0}, 1, "found 3"),
        ({"path": "$.items[0].price", "equals": True}, 0, "$.items[0].price holds 3; allowed: True"),
        ({"path": "$.note", "equals": None}, 1, "found None"),
        ({"path": "$.items[0].sku", "equals": None}, 0, "$.items[0].sku holds 'a-1'; allowed: None"),
        ({"path": "$.items[0]", "contains": "sku"}, 1, "found {'sku': 'a-1', 'price': 3}"),
        ({"path": "$.items[0].sku", "contains": "-1"}, 1, "found 'a-1'"),
        ({"path": "$.items", "contains": {"price": 3.0, "sku": "a-1"}}, 1, None),
        ({"path": "$.note", "contains": "x"}, 0, "$.note holds None; it must contain 'x'"),
        ({"path": "$.items[0].price", "equals": 3, "max": 2}, 0, "$.items[0].price holds 3; allowed: up to 2"),
    ],
)
async def test_json_path(settings: dict[str, Json], value: float, reason: str | None) -> None:
    score = await judged({"kind": "json_path", **settings}, "", ORDER)
    assert score.value == value
    assert reason is None or score.reason == reason


def test_a_condition_on_null_survives_its_own_settings() -> None:
    for settings in ({"path": "$.a"}, {"path": "$.a", "equals": None}, {"path": "$.a", "contains": None}):
        dumped = JsonPath.model_validate(settings).model_dump()
        assert ("equals" in dumped, "contains" in dumped) == ("equals" in settings, "contains" in settings)


async def test_json_is_found_in_text_and_the_longest_counts() -> None:
    text = 'As [1] says: ```json\n{"a": {"b": [1, 2]}, "c": NaN}\n``` or {"a": {"b": 3}}'
    assert (await judged({"kind": "json_path", "path": "$.a.b", "equals": 3}, text)).value == 1
    assert (await judged({"kind": "json_path", "path": "$.a"}, "none here {")).reason == "no JSON in the output"
    deep = "[" * 50 + '{"a": 1}' + "]" * 50
    assert (await judged({"kind": "json_path", "path": "$..a", "equals": 1}, deep)).value == 1
    with pytest.raises(ValueError, match="nested too deeply"):
        await judged({"kind": "json_path", "path": "$..a"}, "[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    ("settings", "output", "value", "reason"),
    [
        ({}, "3", 1, "found 3"),
        ({}, "x = 3", 0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ({}, "[NaN]", 0, "not JSON: NaN is not JSON"),
        ({}, "[1e999]", 0, None),
        ({}, "[" * 100_000, 0, "not JSON: nested too deeply"),
        ({"inside": True}, 'Here:\n```json\n{"a": 1}\n```', 1, "found {'a': 1}"),
        ({"inside": True}, "3", 0, "no JSON object or array in the output"),
        ({"json_schema": {"type": "array"}}, '{"a": 1}', 0, "{'a': 1} is not of type 'array' at $"),
        ({"json_schema": {"items": {"minimum": 2}}, "inside": True}, "so [1]", 0, None),
    ],
)
async def test_is_json(settings: dict[str, Json], output: str, value: float, reason: str | None) -> None:
    score = await judged({"kind": "is_json", **settings}, output)
    assert score.value == value
    assert reason is None or score.reason == reason


@pytest.mark.parametrize(
    ("unit", "text", "count"),
    [
        ("chars", " caf\u00e9 \u6771 ", 6),
        ("words", "one  two\nthree", 3),
        ("words", "", 0),
        ("lines", "\na\n\nb\n", 3),
        ("sentences", "Dr. No came at 3.15 p.m. today. Who? Him!", 3),
        ("sentences", "", 0),
        ("sentences", "first\n\nsecond", 2),
    ],
)
async def test_length_counts(unit: str, text: str, count: int) -> None:
    for bounds, value in (({"min": count, "max": count}, 1), ({"min": count + 1}, 0)):
        score = await judged({"kind": "length", "unit": unit, **bounds}, text)
        assert (score.value, score.reason.split(";")[0]) == (value, f"found {count} {unit}")


@pytest.mark.parametrize(
    ("settings", "output", "value", "reason"),
    [
        ({"min": 5}, "9 of 3", 0, "found 3; allowed: from 5"),
        ({"min": 5, "which": "first"}, "9 of 3", 1, "found 9"),
        ({"min": 5, "which": "all"}, "9 of 3", 0, "found 3; allowed: from 5"),
        ({"max": 10, "which": "all"}, "9 of 3", 1, "found 9"),
        ({"max": 10, "which": "all"}, "none", 0, "found no number; allowed: up to 10"),
        ({"min": -2, "max": -1}, "it is -1.5", 1, "found -1.5"),
    ],
)
async def test_number(settings: dict[str, Json], output: str, value: float, reason: str) -> None:
    assert await judged({"kind": "number", **settings}, output) == Score(value=value, reason=reason)


async def test_cost_and_latency_say_what_was_found() -> None:
    cost: AnyScorer = TypeAdapter(AnyScorer).validate_python({"kind": "cost", "max_usd": 0.002})
    assert (await scored(cost, None, "", None, Usage(usd=0.0031))).reason == "found 0.0031 USD; allowed: up to 0.002"
    latency: AnyScorer = TypeAdapter(AnyScorer).validate_python({"kind": "latency", "max_ms": 800})
    assert (await scored(latency, None, "", None, Usage(seconds=1.5))).reason == "found 1500 ms; allowed: up to 800"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "includes", "texts": []}, "at least 1 item"),
        ({"kind": "includes", "texts": [""]}, "at least 1 character"),
        ({"kind": "matches", "pattern": "("}, r"'\(' is not a regular expression"),
        (
            {"kind": "json_path", "path": "items[0]"},
            r"'items\[0\]' is not a JSONPath: it does not begin with '\$'; write it like",
        ),
        ({"kind": "json_path", "path": "$[?ff(@.a)]"}, "function 'ff' is not defined"),
        ({"kind": "json_path", "path": ""}, "path '' is not a JSONPath"),
        ({"kind": "json_path", "path": "$.a", "pattern": "["}, "is not a regular expression"),
        ({"kind": "json_path", "path": "$.a", "exists": False, "equals": None}, "leaves nothing for equals; remove"),
        ({"kind": "json_path", "path": "$.a", "min": 3, "max": 2}, "min 3 is above max 2; swap them"),
        ({"kind": "length", "unit": "words"}, "neither min nor max is given"),
        ({"kind": "length", "unit": "words", "min": 3, "max": 2}, "min 3 is above max 2"),
        ({"kind": "length", "unit": "pages", "max": 2}, "'chars', 'words', 'lines' or 'sentences'"),
        ({"kind": "number"}, "neither min nor max is given"),
        ({"kind": "number", "min": float("nan")}, "finite"),
        ({"kind": "is_json", "json_schema": {"type": "objekt"}}, "not a JSON schema: 'objekt'"),
        ({"kind": "cost", "max_usd": -1}, "greater than or equal to 0"),
    ],
)
def test_what_no_output_could_be_held_to_is_refused(settings: dict[str, Json], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(AnyScorer).validate_python(settings)


def test_names_are_free() -> None:
    assert Includes(name="greets", texts=("hello",)).name == "greets"
    assert Length(unit="chars", max=3).name == "length"
