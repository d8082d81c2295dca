"""How hard a model may be pushed: calls at once, a deadline, and our own retries with full jitter.

Retries are ours alone (every client below is told not to retry): at most `retries + 1` requests are sent.
Full jitter: "Exponential Backoff And Jitter", M. Brooker, AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Annotated

import numpy as np
from pydantic import Field

from evocluster.errors import DeadlinePassed, ModelError
from evocluster.llm.client import LLM, Reply, Request
from evocluster.parts import Part
from evocluster.telemetry import counts, log

BASE_S = 0.5
CAP_S = 20.0


class Paced(Part):
    """The settings every kind of model shares."""

    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    """Seconds until a call must be answered completely: a real deadline, however slowly bytes arrive."""
    max_concurrency: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Calls in flight at once; 0: no limit of its own."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """How often a call that failed in passing (429, 5xx, no connection, no answer in time) is repeated."""


class Limited:
    """One model behind its limits.

    A call waits for a slot (waiting is not part of the deadline), then has `timeout_s` for all its attempts
    and the pauses between them. It keeps its slot while it pauses, so an endpoint that pushes back gets fewer
    calls. Make it in the process, and in the event loop, that calls it.
    """

    def __init__(
        self,
        llm: LLM,
        max_concurrency: int,
        timeout_s: float,
        retries: int,
        rng: np.random.Generator,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._llm = llm
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
        self._timeout_s = timeout_s
        self._retries = retries
        self._rng = rng
        self._sleep = sleep
        self.calls = 0
        """Requests taken on."""
        self.attempts = 0
        """Requests sent: `attempts - calls` of them were repeats."""

    async def __call__(self, request: Request) -> Reply:
        """The reply of the first attempt that succeeds. Raises: errors.ModelError, that of the last one."""
        async with self._slots:
            self.calls += 1
            try:
                async with asyncio.timeout(self._timeout_s) as deadline:
                    return await self._persist(request, deadline)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                raise DeadlinePassed(
                    f"model {request.model!r} gave no complete answer within timeout_s={self._timeout_s:g}, "
                    "retries included; raise timeout_s or lower max_concurrency"
                ) from error

    async def _persist(self, request: Request, deadline: asyncio.Timeout) -> Reply:
        attempt = 0
        while True:
            self.attempts += 1
            try:
                return await self._llm(request)
            except ModelError as error:
                pause = self._pause(error, attempt)
                ends = deadline.when()
                late = ends is not None and asyncio.get_running_loop().time() + pause >= ends
                if not error.retryable or attempt >= self._retries or late:
                    raise
                log.debug("%s from model %r: again in %.2f s", type(error).__name__, request.model, pause)
            attempt += 1
            counts["retries"] += 1
            await self._sleep(pause)

    def _pause(self, error: ModelError, attempt: int) -> float:
        """Seconds before the next attempt; what the endpoint asked for is a floor, and callers are spread."""
        asked = getattr(error, "retry_after_s", None)
        if asked is not None:
            return float(asked) + float(self._rng.uniform(0, BASE_S))
        return float(self._rng.uniform(0, min(CAP_S, BASE_S * 2.0**attempt)))
