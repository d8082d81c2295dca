"""Text as people compare it: the text of a value, normalised text, and the nearest spelling.

Everything that compares inputs, labels or answers uses these, so "the same" means the same everywhere.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable
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
