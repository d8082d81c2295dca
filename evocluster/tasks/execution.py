"""What one run of a program yields."""

from __future__ import annotations

from evocluster.records import FrozenJson, Record, Usage


class Step(Record):
    """One model call as it happened."""

    purpose: str
    """'answer', 'reason' (thinking step by step) or 'conclude' (the answer after the reasoning)."""
    prompt: str
    """What the model was shown, roles included for chat."""
    reply: str


class Execution(Record):
    """What a program made of one example. A failed one carries `error`."""

    output: str = ""
    """The final answer as text: the label, the JSON object in canonical form, or the stripped completion."""
    raw: str = ""
    """The last completion as it came."""
    parsed: FrozenJson = None
    """The label or the JSON value, None when the completion did not parse; for text tasks the output."""
    schema_ok: bool = False
    """The completion parsed as the task demands."""
    usage: Usage = Usage()
    repairs: int = 0
    flags: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()
    error: str | None = None
    """Why there is no answer, e.g. 'model: Overloaded: ...'."""
