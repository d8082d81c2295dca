"""A DSPy program as a pipeline: its calls go through evocluster, and the genome writes its instruction."""

from __future__ import annotations

import dspy
from dspy.lm15 import Message, Request, Response, Usage

from evocluster import Calls, Example, Genome


class Blocking:
    """DSPy wants an engine for synchronous calls too; a pipeline makes none."""

    def complete(self, request: Request) -> Response:
        """Always an error."""
        raise NotImplementedError("call the program with acall(...)")


class Through:
    """An engine of DSPy that asks evocluster's models."""

    def __init__(self, llm: Calls) -> None:
        self._llm = llm

    async def complete(self, request: Request) -> Response:
        """One request of DSPy, as messages."""
        turns = [("system", request.system), *((message.role, message.text) for message in request.messages)]
        text = await self._llm.ask([{"role": role, "content": text} for role, text in turns if text])
        return Response(None, "evocluster", Message.assistant(text or " "), "stop", Usage())


async def answer(example: Example, genome: Genome, llm: Calls) -> str:
    """The queue of a message, by a predictor whose instruction is the genome's rubric."""
    triage = dspy.Predict(dspy.Signature("message -> queue", genome["rubric"]))
    lm = dspy.LM("evocluster/genome", engine=Blocking(), async_engine=Through(llm), cache=False)
    with dspy.context(lm=lm):
        return str((await triage.acall(message=example.input)).queue)
