"""Assertions on expenses. The reason of a score says what was wrong: it is kept, shown, and read by reflection."""

from __future__ import annotations

import re

from evocluster import Example, Execution, Score


def stated(output: str, example: Example, execution: Execution) -> Score:
    """Nothing is made up: the amount and the year of the answer stand in the note."""
    if not execution.schema_ok:
        return Score(value=0, reason="no expense in the answer")
    expense = execution.parsed
    numbers = {float(number.replace(",", ".")) for number in re.findall(r"\d+(?:[.,]\d{1,2})?", str(example.input))}
    told = {"amount": expense["amount"], "year": expense["date"][:4]}
    invented = [f"{name} {value}" for name, value in told.items() if float(value) not in numbers]
    return Score(value=1 - len(invented) / 2, reason=f"not in the note: {', '.join(invented)}" if invented else "")
