"""Regular expressions of configs on texts of models: checked when read, and stopped when they backtrack without end.

The syntax is that of the `regex` library: Python's, with `\\p{L}` and possessive quantifiers besides. A brace after an
item that starts with e, i, s or d means fuzzy matching there; write `\\{` for the character.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import regex
from pydantic import AfterValidator

TIMEOUT_S = 0.5
"""Seconds one search may take; an ordinary one takes microseconds."""


def checked_pattern(pattern: str) -> str:
    """The pattern, once it compiles. Raises: ValueError."""
    try:
        _compiled(pattern, False)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return pattern


Expression = Annotated[str, AfterValidator(checked_pattern)]
"""A setting that is a regular expression."""


def search(pattern: str, text: str, ignore_case: bool = False) -> str | None:
    """The first match in the text, None where there is none. Raises: TimeoutError."""
    try:
        found = _compiled(pattern, ignore_case).search(text, timeout=TIMEOUT_S)
    except TimeoutError:
        why = f"did not finish within {TIMEOUT_S:g} s on a text of {len(text)} characters: it backtracks too much"
        raise TimeoutError(f"pattern {pattern!r} {why}; avoid repeats inside repeats, as in (a+)+") from None
    return None if found is None else str(found.group())


def escape(text: str) -> str:
    """The pattern that finds exactly this text."""
    return str(regex.escape(text))


@lru_cache(maxsize=1024)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
