"""A model that is watched: every call of it counted, and a span and metrics of each where somebody listens.

Stands between a model and its limits, so that every attempt is seen as the endpoint sees it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from evocluster import telemetry
from evocluster.errors import RateLimited
from evocluster.llm.client import LLM, Reply, Request
from evocluster.telemetry import counts


class Observed:
    """An LLM that does what the model does; 0.4 us a call dearer where nobody listens (34 us where somebody does)."""

    def __init__(self, llm: LLM, name: str) -> None:
        """`name`: what the config calls it."""
        self._llm = llm
        reach = getattr(llm, "reach", None)
        url = urlsplit(reach.url) if reach is not None and reach.url else None
        # What speaks like OpenAI is told apart by its address; so the conventions have it.
        self._provider = (reach.provider or "openai") if reach is not None else str(getattr(llm, "kind", "other"))
        self._model = str(getattr(llm, "model", name))
        self._attributes: dict[str, Any] = {
            "server.address": url.hostname if url else None,
            "server.port": url.port if url else None,
            "evocluster.model": name,
        }

    async def __call__(self, request: Request) -> Reply:
        """Raises: what the model raises."""
        counts["calls"] += 1
        try:
            reply = await (self._traced(request) if telemetry.hears() else self._llm(request))
        except RateLimited:
            counts["rate_limited"] += 1
            raise
        counts["usd"] += reply.usd
        return reply

    async def _traced(self, request: Request) -> Reply:
        operation = "chat" if request.prompt is None else "text_completion"
        asked = {
            **self._attributes,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.max_tokens": request.max_tokens,
            "evocluster.purpose": request.purpose,
        }
        with telemetry.call(operation, self._model, self._provider, asked) as answered:
            reply = await self._llm(request)
            if answered is not None:
                more = {"gen_ai.response.finish_reasons": [reply.finish_reason], "evocluster.cost_usd": reply.usd}
                answered((reply.prompt_tokens, reply.completion_tokens), more)
            return reply
