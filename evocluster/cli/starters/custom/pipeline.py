"""A pipeline of your own: whatever turns an example into an answer, steered by the genes of the configuration.

`llm.ask(text)` asks the model with the temperature, max_tokens and model of the genome; every call is counted, cached
and priced. It takes a list of messages too, and `model=`, `temperature=`, `max_tokens=`, `choices=`, `json_schema=`.
What you return is read like any answer of this kind of task: text, or JSON.
"""

from __future__ import annotations

from typing import Any

from evocluster import Example


async def answer(example: Example, genome: Any, llm: Any) -> str:
    """A first answer, and where the gene says so a second look at it."""
    message = f"Message: {example.input}"
    first: str = await llm.ask(f"{genome['rubric']}\n\n{message}")
    if not genome["second_look"]:
        return first
    second: str = await llm.ask(
        f"{message}\nA colleague says: {first}. Think of deadlines, danger and privacy. Is it urgent or normal?"
    )
    return second
