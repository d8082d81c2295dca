"""Feedback: what is kept of evaluations, which cases are shown, and what is measured from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.records import Evaluation, Item, Score
from evocluster.search import cases as kept
from evocluster.search.cases import Case, Cases, Focus, case
from evocluster.search.feedback import categories, category, described, difference, measured, patterns, shape, told


def done(example: str, output: str = "red", quality: float = 0.0, twin: int = 0, **rest: Any) -> Evaluation:
    item = Item(split="train", example=example, twin=twin)
    return Evaluation(item=item, output=output, quality=quality, **rest)


def seen(output: str, expected: Any, quality: float = 0.0, example: str = "t1", **rest: Any) -> dict[str, Any]:
    """A case as an operator gets it."""
    found = case(done(example, output, quality, **rest), 0)
    return {**found.told(), "input": f"the input of {example}", "expected": expected}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------ what is kept


@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.integers(0, 60), st.sampled_from(["", "red", "x " * 2000]), st.floats(0, 1)), max_size=30
        ),
        max_size=6,
    )
)
def test_what_is_kept_is_bounded_and_shared_out_evenly(batches: list[list[tuple[int, str, float]]]) -> None:
    cases = Cases()
    for batch in batches:
        cases.add([done(f"e{number}", output, quality) for number, output, quality in batch])
    assert len(cases.failing) <= kept.FAILING
    assert len(cases.right) <= kept.RIGHT_ONES
    every = [*cases.failing, *cases.right]
    assert len({one.key for one in every}) == len(every)
    assert all(len(one.output) <= kept.OUTPUT for one in every)
    assert {one.kind for one in cases.right} <= {"right"}
    assert "right" not in {one.kind for one in cases.failing}


def test_no_batch_and_no_kind_crowds_out_the_others() -> None:
    cases = Cases()
    cases.add([done(f"a{number}") for number in range(60)])
    cases.add([done(f"b{number}") for number in range(60)] + [done("rare", "")])
    first = [one for one in cases.failing if one.batch == 0]
    assert len(first) == len(cases.failing) // 2 == kept.FAILING // 2
    assert "rare" in {one.example for one in cases.failing}


def test_reasons_and_steps_are_kept_short() -> None:
    steps = [{"purpose": f"step {number}", "prompt": "q", "reply": "r" * 999} for number in range(9)]
    steps[1]["prompt"] = "a demo " * 100
    scores = {"judge": Score(value=0.5, reason="because " * 99), "label": Score(value=0.0)}
    one = case(done("t1", scores=scores, trace=steps, error=None), 0)
    assert set(one.reasons) == {"judge"}
    assert len(one.reasons["judge"]) <= kept.REASON
    assert [step.split(":")[0] for step in one.steps] == ["step 0", "step 6", "step 7", "step 8"]
    assert one.steps[0].startswith("step 0: q -> rrr")
    assert max(map(len, one.steps)) < 2 * kept.STEP
    long = case(done("t1", trace=steps[1:2]), 0)
    assert "demo" not in long.steps[0]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"quality": 1.0}, "right"),
        ({"quality": 0.85}, "right"),
        ({"quality": 0.5}, "partial"),
        ({}, "wrong"),
        ({"output": " "}, "empty"),
        ({"schema_ok": False}, "format"),
        ({"flags": ("pii",), "quality": 1.0}, "flagged"),
        ({"error": "model: Overloaded: x"}, "error"),
        ({"error": "model: DeadlinePassed: x"}, "timeout"),
    ],
)
def test_kinds(given: dict[str, Any], kind: str) -> None:
    assert case(done("t1", **given), 0).kind == kind


# ------------------------------------------------------------ which are shown


def all_of(count: int, right: int = 0) -> Cases:
    cases = Cases()
    cases.add([done(f"f{number}", "" if number % 4 == 0 else "red") for number in range(count)])
    cases.add([done(f"r{number}", quality=1.0) for number in range(right)])
    return cases


def names(shown: list[Case]) -> list[str]:
    return [one.example for one in shown]


def test_held_cases_are_never_picked() -> None:
    focus = Focus(held=frozenset(f"f{number}" for number in range(8)) | {"r0"})
    shown = [focus.pick(all_of(12, 3), rng(seed)) for seed in range(20)]
    assert {name for one in shown for name in names(one)} == {"f8", "f9", "f10", "f11", "r1", "r2"}


def test_every_kind_is_shown_and_some_right_ones() -> None:
    for seed in range(10):
        shown = Focus().pick(all_of(20, 5), rng(seed))
        assert len(shown) == kept.SHOWN_FAILING + kept.SHOWN_RIGHT
        assert [one.kind for one in shown].count("empty") == kept.SHOWN_FAILING // 2
        assert [one.kind for one in shown[-2:]] == ["right", "right"]


def test_what_was_shown_for_nothing_comes_last() -> None:
    focus, cases = Focus(), all_of(12)
    first = focus.pick(cases, rng())
    focus.tire([one.told() for one in first], [])
    second = focus.pick(cases, rng())
    assert not set(names(first)) & set(names(second))
    focus.refresh()
    assert set(names(focus.pick(cases, rng()))) == set(names(first))


def test_what_is_to_be_preserved_is_bounded_and_the_newest() -> None:
    focus = Focus()
    for number in range(10):
        focus.tire([], [{"example": f"e{number}", "output": "x"}, {"example": "always", "output": str(number)}])
    told = {one["example"]: one for one in focus.preserve}
    assert len(told) == len(focus.preserve) == kept.PRESERVED
    assert {"e9", "always"} <= set(told)
    assert told["always"]["output"] == "9"


# ------------------------------------------------------------ what is measured


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (seen("red", "red", 1.0), "right"),
        (seen("blue", "red"), "wrong label"),
        (seen("dunno", "red", schema_ok=False), "not one of the allowed answers"),
        (seen("oops", {"a": 1}, schema_ok=False), "not the JSON that is asked for"),
        (seen('{"a":2}', {"a": 1}), "wrong values"),
        (seen('{"a":1}', {"a": 1, "b": 2}, 0.5), "partially right"),
        (seen("", "red"), "empty answer"),
        (seen("RED.", "red"), "right but for case or punctuation"),
        (seen("I think it is red today", "red"), "the right answer inside a longer text"),
        (seen("la " * 40, "red"), "too long"),
        (seen("13", "12"), "wrong number"),
        (seen("a text that says other things", "the text that was wanted here is long"), "wrong text"),
        (seen("red", "red", error="model: Overloaded"), "error"),
        (seen("red", "red", error="TimeoutError"), "timeout"),
        (seen("red", "red", 1.0, flags=("pii",)), "flagged as unsafe"),
        (seen("an essay", None, 0.5), "partially right"),
        (seen("an essay", None), "scored low"),
    ],
)
def test_categories(found: dict[str, Any], name: str) -> None:
    assert category(found) == name


def test_categories_are_counted_the_most_frequent_first() -> None:
    found = [seen("blue", "red"), seen("", "red"), seen("", "blue"), seen("red", "red", 1.0)]
    assert categories(found) == [("empty answer", 2), ("wrong label", 1)]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("red", "one word"),
        (" 1,200.5 ", "a number"),
        ("12 %", "a number"),
        ("two words", "2 to 6 words"),
        ("w " * 10, "7 to 20 words"),
        ("w " * 99, "more than 60 words"),
        ("", "nothing"),
        ({"b": 1, "a": 2}, "JSON with the keys a, b"),
        ('{"a": 2}', "JSON with the keys a"),
        ("[1]", "a JSON list"),
        ('{"a": ', "JSON that does not parse"),
    ],
)
def test_shapes(value: Any, name: str) -> None:
    assert shape(value) == name


def fixes(*found: dict[str, Any]) -> str:
    return "\n".join(f"{one.measured} => {one.fix}" for one in patterns(found))


def test_every_pattern_comes_with_its_fix() -> None:
    pairs = [seen("blue", "red"), seen("blue", "red"), seen("red", "green")]
    assert "'blue' where 'red' is right: 2 times => state what tells 'red' from 'blue'" in fixes(*pairs)
    wordy = seen("The colour seems to be quite red I would say", "red")
    assert "expected one word, got 7 to 20 words: 2 of 2 => say that the answer is one word" in fixes(wordy, wordy)
    assert "answers that begin with 'The colour': 2 => say that nothing leads up" in fixes(wordy, wordy)
    keys = seen('{"total": 2, "note": "x"}', {"total": 1, "due": "today"})
    assert "the key 'due' is missing: 1 times => name the key 'due'" in fixes(keys)
    assert "the key 'note' is too many: 1 times" in fixes(keys)
    assert "the value of 'total' is wrong: 1 times" in fixes(keys)
    text = [seen("w " * 50, "some expected text of eight words, in all") for _ in range(2)]
    assert "50 words (median) where 8 are expected => ask for less" in fixes(*text)
    assert "timeout: 1 of 1 => ask for a shorter answer" in fixes(seen("", "red", error="TimeoutError"))
    assert fixes(seen("red", "red", 1.0)) == ""


def test_differences_are_short_and_to_the_point() -> None:
    assert difference("red", "blue") == ""
    assert difference({"a": 1, "b": "x"}, '{"a": 1, "b": "y"}') == 'b: expected "x", got "y"'
    assert difference({"a": 1}, "no json") == ""
    found = difference("the parcel arrives on Monday at noon", "the parcel arrives on Tuesday at noon")
    assert found == "missing 'Monday'; too many 'Tuesday'"
    assert len(difference("a b c d e f g h " * 50, "z y x w v u t s " * 50)) <= 200


def test_a_case_is_told_with_reasons_and_steps() -> None:
    scores = {"judge": Score(value=0.2, reason="it promises a refund")}
    steps = [{"purpose": "lookup", "prompt": "terms", "reply": "no refunds"}]
    text = told(seen("you get money back", "no money back", 0.2, scores=scores, trace=steps), 3)
    assert text.startswith("Case 3: partially right\nInput: the input of t1\n")
    for line in (
        "Answer: you get money back",
        "Expected: no money back",
        "Reason (judge): it promises a refund",
        "Step: lookup: terms -> no refunds",
    ):
        assert line in text
    assert "Error: boom" in told(seen("", "x", error="boom"), 1)


def test_results_are_counted_and_measured() -> None:
    text = measured([seen("blue", "red"), seen("red", "red", 1.0)], (7, 5))
    assert text.startswith("7 right, 5 failing.\nOf 1 failing cases:\n- wrong label: 1\n")
    assert "Fix: state what tells 'red' from 'blue'." in text


PLANTED = ("PLANTEDINPUT", "PLANTEDLABEL", "PLANTEDANSWER")


def test_held_cases_are_described_and_never_told() -> None:
    held = [
        {**case(done("t1", PLANTED[2]), 0).described(), "expected": PLANTED[1]},
        {
            **case(done("t2", f"well, {PLANTED[2]} and more words than that, all in all"), 0).described(),
            "expected": "red",
        },
        {**case(done("t3", "blue"), 0).described(), "expected": "red"},
        {**case(done("t4", '{"PLANTEDKEY": 1}', schema_ok=False), 0).described(), "expected": {PLANTED[1]: PLANTED[0]}},
    ]
    shown = [seen("red", "blue"), seen("blue", "red")]
    text = described(held, (3, 4), shown)
    assert "PLANTED" not in text
    assert text.startswith("3 right, 4 failing.\nOf 4 failing cases:\n")
    assert "- wrong label: 2" in text
    assert "- too long: 1" in text
    assert "'blue' where 'red' is right: 1 times" in text
    assert "other pairs of answers confused: 1 times" in text
    assert "answers of 1 to 10 words" in text
    alone = described(held, (3, 4), [])
    assert "blue" not in alone
    assert "other pairs of answers confused: 2 times" in alone
    assert described([], (), []) == ""
