"""Assertions of your own: functions of the answer and the example. They return a bool, a number (0 to 1) or a Score.

An assertion that raises fails its one evaluation, with its text in the record; the run goes on.
"""

from __future__ import annotations

import json

from evocluster import Example, Score


def said(output: str, example: Example) -> Score:
    """Nothing is made up: the name and the time of the answer stand in the booking."""
    answer = json.loads(output)
    text = str(example.input).casefold()
    invented = [field for field in ("name", "time") if str(answer.get(field, "")).casefold() not in text]
    return Score(value=1 - len(invented) / 2, reason=f"not in the booking: {', '.join(invented)}" if invented else "")
