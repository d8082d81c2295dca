"""Values as people compare them: the text of a value, normalised text, equal JSON, numbers in a text, the nearest
spelling.

Everything that compares inputs, labels or answers uses these, so "the same" means the same everywhere.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from evocluster.records import Json, canonical


def plain(value: Json) -> str:
    """The text of a JSON value: a string as it is, anything else as canonical JSON (true -> 'true')."""
    return value if isinstance(value, str) else canonical(value)


def as_json(value: Json) -> Json:
    """Text (a CSV cell, a completion) read as JSON where it is JSON; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
        canonical(read)  # Python reads Infinity, NaN and 1e999; JSON has none of them.
    except (ValueError, RecursionError):
        return value
    return read


def thawed(value: Json) -> Json:
    """A copy with ordinary lists and dicts in place of tuples and frozen ones."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, list | tuple) else value


def equal_json(one: Json, other: Json, text: bool = False) -> bool:
    """Equal as JSON: 1 is 1.0 but not true; with `text`, leaves other than null are compared as normalised text."""
    return canonical(_comparable(one, text)) == canonical(_comparable(other, text))


def _comparable(value: Json, text: bool) -> Json:
    if isinstance(value, Mapping):
        return {key: _comparable(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item, text) for item in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return normalise(plain(value)) if text and value is not None else value


_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+)?")


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order; commas between groups of three digits are read as thousands."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text.replace("\u2212", "-"))]


def last_number(text: str) -> float | None:
    """The last number in the text."""
    found = numbers(text)
    return found[-1] if found else None


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[^\W\d_a-z])|\n+")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:mr|mrs|ms|dr|st|no|vs|prof|jr|sr|e\.g|i\.e|[a-z])\.$", re.IGNORECASE)


def sentences(text: str) -> tuple[list[str], list[str]]:
    """The sentences, and what stands between them (one fewer)."""
    found, between, start = [], [], 0
    for gap in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text[start : gap.start()]):
            continue
        found.append(text[start : gap.start()])
        between.append(gap.group())
        start = gap.end()
    return [*found, text[start:]], between


def shown(value: object, longest: int = 60) -> str:
    """A value as a reason or an error shows it."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


@lru_cache(maxsize=4096)
def _separates(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "PZC" or category == "Sk"


def normalise(text: str) -> str:
    """Case, spacing and punctuation taken out; what belongs to a number ('-3.5'), symbols and emoji stay.

    Text made only of punctuation is returned stripped, so '!' and '?' remain two things.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    kept = [" " if _separates(char) and not _in_number(folded, at) else char for at, char in enumerate(folded)]
    return " ".join("".join(kept).split()) or text.strip()


def _in_number(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not after.isdigit():
        return False
    return (text[at] in ".," and before.isdigit()) or (text[at] == "-" and not before.isalnum())


def nearest(word: object, allowed: Iterable[str]) -> str:
    """'; did you mean 'x'?' for a misspelt word, or '' when nothing is near: to be appended to a message."""
    by_fold = {normalise(name): name for name in allowed}
    close = difflib.get_close_matches(normalise(str(word)), list(by_fold), n=1, cutoff=0.6)
    return f"; did you mean {by_fold[close[0]]!r}?" if close else ""
