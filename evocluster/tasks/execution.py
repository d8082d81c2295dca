"""What one run of a program yields."""

from __future__ import annotations

from evocluster.records import FrozenJson, Record, Usage
from evocluster.tasks.documents import Passage


class Step(Record):
    """One model call as it happened, or a step that a pipeline wrote down."""

    purpose: str
    """'answer', 'reason' (thinking step by step), 'conclude' (the answer after the reasoning), 'repair', 'vote',
    'retrieve', or what a pipeline calls it."""
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
    schema_ok: bool | None = None
    """The completion parsed as the task demands. A pipeline may leave it open: then its output is read as the
    task's kind says."""
    usage: Usage = Usage()
    """Calls, tokens, US dollars, seconds. A pipeline reports here only what did not go through the given `llm`."""
    repairs: int = 0
    """How often an answer that did not parse was asked for again."""
    confidence: float | None = None
    """Share of the votes for the answer, 0 where it did not parse; None: a pipeline did not say."""
    flags: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()
    passages: tuple[Passage, ...] = ()
    """What was retrieved, best first."""
    error: str | None = None
    """Why there is no answer, e.g. 'model: Overloaded: ...'."""
