"""Dates as people write them, read as the day (and time) they mean."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

_FORMS = (
    *("%d %B %Y", "%d %b %Y", "%d. %B %Y", "%d-%b-%Y", "%A %d %B %Y"),
    *("%B %d %Y", "%b %d %Y", "%B %d, %Y", "%b %d, %Y", "%A, %B %d, %Y"),
)
_ORDERED = re.compile(r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})")
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b", re.IGNORECASE)


def same_date(one: str, other: str) -> bool | None:
    """Both texts mean one day, and one time of it where both give a time; None where one of them is no clear date.

    3/4/2025 is no clear date: it is 3 April in some countries and 4 March in others. 3.4.2025 is 3 April.
    """
    first, second = _read(one), _read(other)
    if first is None or second is None:
        return None
    if isinstance(first, datetime) and isinstance(second, datetime):
        if (first.tzinfo is None) == (second.tzinfo is None):
            return first == second
        return first.replace(tzinfo=None) == second.replace(tzinfo=None)
    return _day(first) == _day(second)


def _day(moment: date) -> date:
    return moment.date() if isinstance(moment, datetime) else moment


def _read(text: str) -> date | None:
    """A date, or a datetime where a time is given (in UTC where a zone is)."""
    text = _ORDINAL.sub("", " ".join(text.split()))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return _written(text)
    if ":" not in text and "T" not in text.upper():
        return moment.date()
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment


def _written(text: str) -> date | None:
    numbers = _ORDERED.fullmatch(text)
    if numbers is not None:
        return _ordered(int(numbers[1]), int(numbers[3]), int(numbers[4]), numbers)
    for form in _FORMS:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    return None


def _ordered(first: int, second: int, third: int, written: re.Match[str]) -> date | None:
    if len(written[1]) == 4:
        return _valid(first, second, third)
    if len(written[4]) != 4:
        return None
    if written[2] == ".":
        return _valid(third, second, first)
    readings = {day for day in (_valid(third, second, first), _valid(third, first, second)) if day is not None}
    return readings.pop() if len(readings) == 1 else None


def _valid(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
