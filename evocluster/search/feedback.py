"""Feedback: what is measured from a parent's cases, so that a model can repair its prompt. Pure.

Shown cases are told one by one, with differences, reasons and steps; what is wrong with them is grouped, counted, and
measured, and every measured pattern comes with a fix. Held cases are described only: numbers, and labels that the
shown cases show anyway.

A case is JSON of `cases.Case` with `input` and `expected` put in (held ones: `expected` alone).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from evocluster.records import Json, canonical
from evocluster.search.cases import clip
from evocluster.search.memory import line

Told = Mapping[str, Any]
INPUT, EXPECTED, DIFFERENCE, NAME = 500, 300, 200, 40
"""Characters shown of an input, of what is expected, of a difference, of a label or key in a pattern."""
MOST = 5
"""Pairs, keys and beginnings named of each pattern."""
SHORT = 6
"""Words up to which an expected text counts as a label."""
FAR = 2
"""Texts that are so many times as long as another one are too long."""
CERTAIN = {
    "right": "right",
    "timeout": "timeout",
    "error": "error",
    "flagged": "flagged as unsafe",
    "empty": "empty answer",
}
"""What is known without the expected answer."""
NUMBER = re.compile(r"[-+]?[\d.,]*\d\s?%?")


class Pattern(NamedTuple):
    """Something measured, and what would set it right."""

    measured: str
    fix: str


def category(case: Told) -> str:
    """What is wrong with a case, in the terms failures are grouped by; 'right' where nothing is."""
    kind, expected = case["kind"], case.get("expected")
    if kind in CERTAIN:
        return CERTAIN[kind]
    structured = isinstance(expected, Mapping | list | tuple)
    if kind == "format":
        return "not the JSON that is asked for" if structured else "not one of the allowed answers"
    if kind == "partial" and (structured or expected is None):
        return "partially right"
    if structured:
        return "wrong values"
    return "scored low" if expected is None else _wrong_text(case, str(expected))


def _wrong_text(case: Told, wanted: str) -> str:
    output = str(case["output"])
    if plain(output) == plain(wanted):
        return "right but for case or punctuation"
    if wanted.strip() and f" {plain(wanted)} " in f" {plain(output)} ":
        return "the right answer inside a longer text"
    if case["kind"] == "partial":
        return "partially right"
    if case["words"] > max(SHORT, FAR * len(wanted.split())):
        return "too long"
    if NUMBER.fullmatch(wanted.strip()):
        return "wrong number"
    return "wrong label" if len(wanted.split()) <= SHORT else "wrong text"


def categories(cases: Iterable[Told]) -> list[tuple[str, int]]:
    """Failures by category with their counts, the most frequent first."""
    counted = Counter(category(case) for case in cases)
    del counted["right"]
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))


def plain(text: str) -> str:
    """Words alone, small letters."""
    return " ".join(re.findall(r"\w+", text.lower()))


def shape(value: Json) -> str:
    """What a value looks like: 'JSON with the keys a, b', 'one word', 'a number', '2 to 6 words'..."""
    if isinstance(value, str) and value.strip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except ValueError:
            return "JSON that does not parse"
    if isinstance(value, Mapping):
        return f"JSON with the keys {', '.join(line(key, NAME) for key in sorted(value)[: 2 * MOST])}"
    if isinstance(value, list | tuple):
        return "a JSON list"
    text = str(value).strip()
    if not text:
        return "nothing"
    if NUMBER.fullmatch(text):
        return "a number"
    count = len(text.split())
    steps = ((1, "one word"), (SHORT, f"2 to {SHORT} words"), (20, f"{SHORT + 1} to 20 words"), (60, "21 to 60 words"))
    return next((name for most, name in steps if count <= most), "more than 60 words")


def patterns(cases: Sequence[Told]) -> list[Pattern]:
    """What the failures have in common, measured, with a fix each; the most frequent first."""
    failing = [case for case in cases if category(case) != "right"]
    answered = [case for case in failing if case["kind"] not in ("error", "timeout")]
    judged = [case for case in answered if case.get("expected") is not None]
    found = [
        *_shapes([case for case in judged if case["kind"] != "empty"]),
        *_confused(judged),
        *_lengths(judged),
        *_inside(judged),
        *_beginnings(judged),
        *_keys(judged),
        *_kinds(failing),
    ]
    return [pattern for _, pattern in sorted(found, key=lambda pair: -pair[0])]


Counted = list[tuple[int, Pattern]]


def _shapes(cases: Sequence[Told]) -> Counted:
    pairs = Counter((shape(case["expected"]), shape(case["output"])) for case in cases)
    return [
        (
            count,
            Pattern(
                f"expected {wanted}, got {got}: {count} of {len(cases)}",
                f"say that the answer is {wanted} and nothing else",
            ),
        )
        for (wanted, got), count in pairs.most_common(MOST)
        if wanted != got
    ]


def confusions(cases: Iterable[Told]) -> Counter[tuple[str, str]]:
    """(expected, got) of labels that were taken for one another."""
    return Counter(
        (str(case["expected"]), str(case["output"]))
        for case in cases
        if category(case) == "wrong label" and len(str(case["output"]).split()) <= SHORT
    )


def _confused(cases: Sequence[Told]) -> Counted:
    return [
        (
            count,
            Pattern(
                f"{_name(got)} where {_name(wanted)} is right: {count} times",
                f"state what tells {_name(wanted)} from {_name(got)}",
            ),
        )
        for (wanted, got), count in confusions(cases).most_common(MOST)
    ]


def _lengths(cases: Sequence[Told]) -> Counted:
    texts = [case for case in cases if isinstance(case["expected"], str) and len(case["expected"].split()) > 1]
    if len(texts) < 2:
        return []
    wanted = median(len(case["expected"].split()) for case in texts)
    got = median(case["words"] for case in texts)
    if got <= FAR * wanted and wanted <= FAR * got:
        return []
    fix = "ask for less, and say how many words" if got > wanted else "ask for whole answers, and say how long"
    return [(len(texts), Pattern(f"{got:g} words (median) where {wanted:g} are expected", fix))]


def _inside(cases: Sequence[Told]) -> Counted:
    fixes = {
        "right but for case or punctuation": "say how the answer is written: capital letters, punctuation, spelling",
        "the right answer inside a longer text": "say that nothing stands before or after the answer",
    }
    counted = Counter(category(case) for case in cases)
    return [
        (counted[name], Pattern(f"{name}: {counted[name]} of {len(cases)}", fix))
        for name, fix in fixes.items()
        if counted[name]
    ]


def _beginnings(cases: Sequence[Told]) -> Counted:
    """The same two first words in answers that should not begin so."""
    begun = Counter(
        " ".join(words[:2])
        for case in cases
        if len(words := str(case["output"]).split()) > 2 and not str(case["expected"]).startswith(words[0])
    )
    return [
        (count, Pattern(f"answers that begin with {_name(words)}: {count}", "say that nothing leads up to the answer"))
        for words, count in begun.most_common(MOST)
        if count > 1
    ]


def _keys(cases: Sequence[Told]) -> Counted:
    """Keys of expected objects that are missing, too many or wrong."""
    missing, extra, wrong = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        wanted, got = case["expected"], parsed(case["output"])
        if isinstance(wanted, Mapping) and isinstance(got, Mapping):
            missing.update(wanted.keys() - got.keys())
            extra.update(got.keys() - wanted.keys())
            wrong.update(key for key in wanted.keys() & got.keys() if canonical(wanted[key]) != canonical(got[key]))
    told = (
        (missing, "the key {} is missing", "name the key {} and when it is filled"),
        (extra, "the key {} is too many", "list the keys that are allowed; {} is none"),
        (wrong, "the value of {} is wrong", "state how the value of {} is found and written"),
    )
    return [
        (count, Pattern(f"{text.format(_name(key))}: {count} times", fix.format(_name(key))))
        for counted, text, fix in told
        for key, count in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST]
    ]


def _kinds(cases: Sequence[Told]) -> Counted:
    fixes = {
        "timeout": "ask for a shorter answer",
        "flagged": "say what the answer must not contain",
        "empty": "say that there is always an answer, and which when in doubt",
        "format": "show the exact form of an answer, and that nothing else is allowed",
    }
    counted = Counter(case["kind"] for case in cases)
    return [
        (counted[kind], Pattern(f"{kind}: {counted[kind]} of {len(cases)}", fix))
        for kind, fix in fixes.items()
        if counted[kind]
    ]


def parsed(output: str) -> Json:
    """The JSON value of an output; None where it is none."""
    try:
        return json.loads(output)
    except ValueError:
        return None


def difference(expected: Json, output: str) -> str:
    """Where an answer and what was expected differ, short; '' where both are short enough to be read."""
    got = parsed(output)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        parts = [
            f"{key}: expected {canonical(expected.get(key))}, got {canonical(got.get(key))}"
            for key in sorted({*expected, *map(str, got)})
            if canonical(expected.get(key)) != canonical(got.get(key))
        ]
        return line("; ".join(parts), DIFFERENCE)
    if not isinstance(expected, str) or max(len(expected.split()), len(output.split())) <= SHORT:
        return ""
    from difflib import SequenceMatcher

    wanted, words = expected.split(), output.split()
    parts = []
    for tag, a, b, c, d in SequenceMatcher(None, wanted, words, autojunk=False).get_opcodes():
        if tag in ("delete", "replace"):
            parts.append(f"missing {line(' '.join(wanted[a:b]), NAME)!r}")
        if tag in ("insert", "replace"):
            parts.append(f"too many {line(' '.join(words[c:d]), NAME)!r}")
    return line("; ".join(parts), DIFFERENCE)


def text_of(value: Json) -> str:
    """An input or an expected answer as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def clip_input(value: Json) -> str:
    """An input or an expected answer as text, cut to what is shown."""
    return clip(text_of(value), INPUT)


def told(case: Told, number: int) -> str:
    """One shown case."""
    lines = [f"Case {number}: {category(case)}", f"Input: {clip_input(case.get('input', ''))}"]
    lines.append(f"Answer: {case['output'] or '(nothing)'}")
    if case.get("expected") is not None:
        lines.append(f"Expected: {clip(text_of(case['expected']), EXPECTED)}")
        differs = "" if category(case) == "right" else difference(case["expected"], case["output"])
        lines += [f"Difference: {differs}"] if differs else []
    if case.get("error"):
        lines.append(f"Error: {case['error']}")
    lines += [f"Reason ({scorer}): {reason}" for scorer, reason in sorted(case.get("reasons", {}).items())]
    lines += [f"Step: {step}" for step in case.get("steps", ())]
    return "\n".join(lines)


def measured(cases: Sequence[Told], counts: Sequence[int]) -> str:
    """The measured part of the feedback on shown cases. `counts`: how many examples are right and how many fail."""
    failing = [case for case in cases if category(case) != "right"]
    lines = [f"{counts[0]} right, {counts[1]} failing." if counts else "Nothing was counted."]
    if failing:
        lines.append(f"Of {len(failing)} failing cases:")
        lines += [f"- {name}: {count}" for name, count in categories(failing)]
    found = patterns(failing)
    if found:
        lines.append("Patterns, and what would fix each:")
        lines += [f"- {pattern.measured}. Fix: {pattern.fix}." for pattern in found[: 2 * MOST]]
    return "\n".join(lines)


def described(held: Sequence[Told], counts: Sequence[int], shown: Sequence[Told]) -> str:
    """Held cases in numbers; no text of theirs but labels that are expected in `shown` too."""
    lines = [f"{counts[0]} right, {counts[1]} failing."] if counts else []
    if not held:
        return "\n".join(lines)
    lines.append(f"Of {len(held)} failing cases:")
    lines += [f"- {name}: {count}" for name, count in categories(held)]
    known = {str(case["expected"]) for case in shown if case.get("expected") is not None}
    pairs = confusions(held)
    lines += [
        f"- {_name(got)} where {_name(wanted)} is right: {count} times"
        for (wanted, got), count in pairs.most_common(MOST)
        if {wanted, got} <= known
    ]
    if other := sum(count for pair, count in pairs.items() if not set(pair) <= known):
        lines.append(f"- other pairs of answers confused: {other} times")
    words = [case["words"] for case in held]
    wanted = [len(text_of(case["expected"]).split()) for case in held if case.get("expected") is not None]
    lines.append(f"- answers of {min(words)} to {max(words)} words, {median(words):g} as the median")
    if wanted:
        lines.append(f"- expected are {min(wanted)} to {max(wanted)} words, {median(wanted):g} as the median")
    return "\n".join(lines)


def _name(text: str) -> str:
    return repr(line(text, NAME))
