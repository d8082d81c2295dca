"""How hard a model may be pushed: a lease of its endpoint's quota, a deadline, our own retries, and patience.

    call  ->  wait for leave (leases)  ->  attempt  --failed in passing-->  pause, wait for leave again

Retries are ours alone (every client below is told not to retry). Waiting for the endpoint, also one that turned us
away, is not part of the deadline: a storm at the provider's delays a call, it does not fail it.
Equal jitter ("Exponential Backoff And Jitter", M. Brooker, AWS Architecture Blog, 2015): full jitter spreads callers
better, but now and then spends all attempts of a call within half a second, before anybody knows of the outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from evocluster.errors import DeadlinePassed, ModelError, RateLimited
from evocluster.llm.charged import after, charge, prompt_tokens
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.gate import Slots
from evocluster.llm.leases import Lease, Permit
from evocluster.llm.prices import Price
from evocluster.llm.quota import Terms
from evocluster.parts import Part
from evocluster.records import Usage
from evocluster.telemetry import counts, log

BASE_S = 0.5
CAP_S = 20.0
LEAST = 1e-3
"""Share of its deadline that must be left for a call to be repeated: it would be paid for, and come to nothing."""


class Paced(Part):
    """The settings every kind of model shares. Limits hold for all processes of the cluster, and all runs on it."""

    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 60.0
    """Seconds until a call must be answered completely, all attempts together: a real deadline, however slowly bytes
    arrive. Waiting for the endpoint to have room is not part of it."""
    max_concurrency: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Calls in flight at once, over all processes; 0: no limit of its own."""
    requests_per_minute: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """Requests in any minute, repeated ones among them; 0: no limit."""
    tokens_per_minute: Annotated[int, Field(ge=0, le=10_000_000_000)] = 0
    """Tokens in any minute: prompt and max_tokens are reserved, what an answer did not use is free again; 0: no
    limit."""
    adaptive: bool = True
    """Ask less at once when the endpoint says that it is too much (429, mostly 5xx), and more again when it answers."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """How often a call that failed in passing (5xx, no connection, no answer in time) is repeated. Being turned away
    with 429, and trying an endpoint that answers nobody, are not counted."""
    retry_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Retries are at most this share of the answers and a few more, over all processes; the others wait."""
    patience_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 600.0
    """Seconds that calls wait for an endpoint that answers nobody any more, before they fail."""
    fallbacks: tuple[str, ...] = ()
    """Models asked in its place, in this order, when it answers nobody. For rewriting and reflecting only: an
    evaluation by another model would be another measurement."""
    hedge: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """At most this share of the calls, and of what they cost, is spent on sending one a second time when its answer
    takes longer than 19 of 20 others did; the first answer counts, both are paid. A budget in dollars keeps this share
    back. 0: never."""

    @property
    def terms(self) -> Terms:
        """What is agreed with the keeper of its endpoint's quota."""
        return Terms(
            max_concurrency=self.max_concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            adaptive=self.adaptive,
            retry_share=self.retry_share,
        )


class Limited:
    """One model behind its limits.

    A call waits for leave, then has `timeout_s` for all its attempts. It holds no slot while it pauses or waits for
    its endpoint. Make it in the process, and in the event loop, that calls it.
    """

    def __init__(
        self,
        llm: LLM,
        lease: Lease,
        timeout_s: float,
        retries: int,
        rng: np.random.Generator,
        patience_s: float = 600.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        leave: Callable[[Request], bool] = lambda request: False,
        price: Price | None = None,
        slots: Slots | None = None,
    ) -> None:
        """`leave`: whether a request will be served elsewhere while this endpoint answers nobody; `price`: what failed
        attempts are reckoned at; `slots`: shared with other models.
        """
        self._llm = llm
        self._lease = lease
        self._timeout_s = timeout_s
        self._retries = retries
        self._rng = rng
        self._price = price or Price(prompt_usd_per_mtok=0, completion_usd_per_mtok=0)
        self._patience_s = patience_s
        self._sleep = sleep
        self._leave = leave
        self._slots = slots or Slots()
        self.calls = 0
        """Requests taken on."""
        self.attempts = 0
        """Requests sent: `attempts - calls` of them were repeats."""

    async def __call__(self, request: Request) -> Reply:
        """The reply of the first attempt that succeeds; what those before it may have cost is told in it as extra.

        Raises: errors.ModelError, that of the last attempt, with what all of them may have cost in `used`.
        """
        self.calls += 1
        spent_s, failures, again, lost_calls, lost_usd = 0.0, 0, False, 0, 0.0
        clock, tokens = asyncio.get_running_loop().time, reserved(request)
        while True:
            try:
                permit = await self._admitted(request, tokens, again)
            except ModelError as error:
                error.used, error.billed = Usage(calls=int(again), paid_usd=lost_usd), lost_calls
                raise
            self.attempts += 1
            began = clock()
            try:
                reply = await self._attempt(request, permit, self._timeout_s - spent_s)
                # Calls stay what was asked for, whatever it took: a run ends where it would have without faults.
                return after(reply, lost_calls, lost_usd) if lost_calls else reply
            except ModelError as error:
                used = charge(error, request, self._price)
                lost_calls, lost_usd = lost_calls + error.billable, lost_usd + used.paid_usd
                error.used, error.billed = used.model_copy(update={"paid_usd": lost_usd}), lost_calls
                spent_s += clock() - began
                failures += not (isinstance(error, RateLimited) or permit.probe)
                if not error.retryable or spent_s >= (1 - LEAST) * self._timeout_s or await self._enough(failures):
                    raise
                pause = self._pause(failures)
                # Its own pauses are part of the deadline; waiting for an endpoint that turns everybody away is not.
                own = not (isinstance(error, RateLimited) or self._lease.doubtful)
                pause = min(pause, (self._timeout_s - spent_s) / 2) if own else pause
                log.debug("%s from model %r: again in %.2f s", type(error).__name__, request.model, pause)
            began = clock()
            await self._rest(pause)
            spent_s += clock() - began if own else 0.0
            again = True
            counts["retries"] += 1

    async def _attempt(self, request: Request, permit: Permit, left_s: float) -> Reply:
        outcome: ModelError | int | None = None
        try:
            async with asyncio.timeout(left_s) as deadline:
                reply = await self._llm(request)
            outcome = reply.prompt_tokens + reply.completion_tokens
            return reply
        except ModelError as error:
            outcome = error
            raise
        except TimeoutError as error:
            if not deadline.expired():
                raise
            outcome = DeadlinePassed(
                f"model {request.model!r} gave no complete answer within timeout_s={self._timeout_s:g}, "
                "retries included; raise timeout_s or lower max_concurrency"
            )
            raise outcome from error
        finally:
            self._lease.give(permit, outcome)
            self._slots.leave()

    async def _admitted(self, request: Request, tokens: int, again: bool) -> Permit:
        """Leave to send a request, and a slot for it. Raises: as Lease.take."""
        if not again:
            await self._slots.enter()
            permit = self._lease.at_once(tokens)
            if permit is not None:
                return permit
            self._slots.leave()
        with self._slots.stepped_aside():
            permit = await self._lease.take(tokens, again, self._patience_s, lambda: self._leave(request))
        try:
            await self._slots.enter(front=True)
        except BaseException:
            self._lease.give(permit, None)
            raise
        return permit

    async def _enough(self, failures: int) -> bool:
        """Whether a call has been repeated often enough; not when nobody is answered, and it only has to wait."""
        if failures <= self._retries:
            return False
        await self._lease.renew()
        return not self._lease.doubtful

    def _pause(self, failures: int) -> float:
        """Seconds before the next attempt; short where the endpoint is waited for anyway."""
        longest = BASE_S if self._lease.open else min(CAP_S, BASE_S * 2.0 ** max(0, failures - 1))
        return float(self._rng.uniform(longest / 2, longest))

    async def _rest(self, pause: float) -> None:
        self._lease.pausing(1)
        try:
            with self._slots.stepped_aside():
                await self._sleep(pause)
        finally:
            self._lease.pausing(-1)


def reserved(request: Request) -> int:
    """Tokens that a request may take, as far as can be told before."""
    return prompt_tokens(request) + request.max_tokens
