"""Every long text of a page once, by number; together they stay within a budget of bytes.

When they do not fit, the longest are cut, all to the same length, and what was cut is counted: a page says "1,234
characters more" where it shows such a text.
"""

from __future__ import annotations

import json
from typing import Any

from evocluster.records import canonical

BUDGET = 1_600_000
"""Bytes of JSON for all texts of a page."""
LONGEST = 20_000
"""Characters kept of one text at most."""
KEPT = 200_000
"""The same of a text that must stand whole: the recommended prompt."""
SHORTEST = 60


class Texts:
    """Call order: `add` while the facts are gathered, `column` at the end."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []
        self._lengths: list[int] = []
        self._kept: set[int] = set()

    def add(self, value: Any, keep: bool = False) -> int:
        """The number of a text (or of any JSON value, as JSON); -1 for None. `keep`: it is not cut for the budget."""
        if value is None:
            return -1
        text = value if isinstance(value, str) else as_json(value)
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self._texts)
            self._texts.append(text[: KEPT if keep else LONGEST])
            self._lengths.append(len(text))
        elif keep:
            self._texts[number] = text[:KEPT]
        if keep:
            self._kept.add(number)
        return number

    def __getitem__(self, number: int) -> str:
        return self._texts[number]

    def column(self) -> dict[str, Any]:
        """`all`: the texts; `cut`: number -> how many characters are missing of it."""
        texts = self._fitted()
        cut = {
            str(at): whole - len(text)
            for at, (text, whole) in enumerate(zip(texts, self._lengths, strict=True))
            if whole > len(text)
        }
        return {"all": texts, "cut": cut}

    def _fitted(self) -> list[str]:
        loose = [at for at in range(len(self._texts)) if at not in self._kept]
        sizes = {at: _size(self._texts[at]) for at in loose}
        limit = LONGEST
        while sum(_within(sizes[at], len(self._texts[at]), limit) for at in loose) > self._budget and limit > SHORTEST:
            limit = max(SHORTEST, int(limit * 0.8))
        return [text if at in self._kept else text[:limit] for at, text in enumerate(self._texts)]


def as_json(value: Any) -> str:
    """A JSON value as people read it: short ones in a line, longer ones indented."""
    try:
        short = canonical(value)
    except (TypeError, ValueError):
        return str(value)
    return short if len(short) <= SHORTEST else json.dumps(value, indent=1, ensure_ascii=False)


def _size(text: str) -> int:
    """Bytes of the text as JSON in a page; every '<' takes six there."""
    plain = len(text.encode(errors="replace"))
    return plain + sum(5 * text.count(sign) for sign in "<>&") + text.count('"') + text.count("\n") + 2


def _within(size: int, length: int, limit: int) -> float:
    return size if length <= limit else size * limit / length
