"""Assertions of your own: functions of the answer and the example, and of how it came about if they take a third.

They return a bool, a number (0 to 1) or a Score. The reason of a Score is kept, shown in the report, and told to the
model that improves the prompt: say what was wrong. An assertion that raises fails its one evaluation, with its text in
the record; the run goes on.
"""

from __future__ import annotations

import json

from evocluster import Example, Execution, Score


def said(output: str, example: Example, execution: Execution) -> Score:
    """Nothing is made up: the name and the time of the answer stand in the booking."""
    if not execution.schema_ok:
        return Score(value=0, reason="there is no booking in the answer")
    answer = json.loads(output)
    text = str(example.input).casefold()
    invented = [field for field in ("name", "time") if str(answer.get(field, "")).casefold() not in text]
    return Score(value=1 - len(invented) / 2, reason=f"not in the booking: {', '.join(invented)}" if invented else "")
