"""A second request for an answer that is late: the first answer counts, the other request is called off.

"The Tail at Scale", Dean and Barroso, Communications of the ACM 56(2), 2013: deferring the second request until the
95th percentile of the latency keeps the additional load near 5 %.
"""

from __future__ import annotations

import asyncio
from collections import deque

from evocluster.errors import ModelError
from evocluster.llm.charged import prompt_tokens
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.leases import Lease
from evocluster.llm.limits import reserved
from evocluster.llm.prices import Price

LATE = 0.95
KNOWN, REMEMBERED = 20, 400
"""Answers that must have been seen before anything is called late, and those that are kept in mind."""


class Hedge:
    """A model whose stragglers are asked for twice, at most a `share` of its calls and never before others that wait.

    Second requests also cost at most that share of what the answers cost: the most that one can cost is set aside
    before it is sent, and stays so where nobody says what it did cost. A run's budget keeps the share back.

    What the request called off may have cost is told in the reply's `extra_usd`: as much as the one that answered. Its
    `seconds` count from the first request, so hedging flatters no configuration.
    """

    def __init__(self, llm: LLM, lease: Lease, share: float, price: Price | None = None) -> None:
        """`price`: None: it costs nothing."""
        self._llm = llm
        self._lease = lease
        self._share = share
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._late_s = 0.0
        self._calls = 0
        self._hedges = 0
        self._price = price or Price(prompt_usd_per_mtok=0, completion_usd_per_mtok=0)
        self._answers_usd = 0.0
        self._hedges_usd = 0.0
        """Spent and set aside."""
        lease.hedging = True

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.ModelError, when every request failed that of the last."""
        self._calls += 1
        clock = asyncio.get_running_loop().time
        began = clock()
        first = self._send(request)
        try:
            if len(self._took) >= KNOWN:
                await asyncio.wait({first}, timeout=self._late_s)
                if not first.done() and self._hedges < self._share * self._calls:
                    return await self._second(request, first, began)
            reply = await first
        finally:
            first.cancel()
        self._learn(clock() - began, reply)
        return reply

    async def _second(self, request: Request, first: asyncio.Future[Reply], began: float) -> Reply:
        most_usd = self._price.cost(prompt_tokens(request), request.max_tokens)
        if most_usd and self._hedges_usd + most_usd > self._share * self._answers_usd:
            return await first
        permit = self._lease.spare(reserved(request))
        if permit is None:
            return await first
        self._hedges += 1
        self._hedges_usd += most_usd
        clock = asyncio.get_running_loop().time
        delay = clock() - began
        second = self._send(request)
        try:
            won = await _first_answer(first, second)
            reply = won.result()
        finally:
            second.cancel()
            # The caller reports how it ended, for both; the tokens reserved for this one count as spent.
            self._lease.give(permit, None)
        self._learn(clock() - began, reply)
        self._hedges_usd += reply.usd - most_usd
        seconds = reply.seconds + (delay if won is second else 0.0)
        return reply.model_copy(update={"seconds": seconds, "extra_usd": reply.extra_usd + reply.usd})

    def _send(self, request: Request) -> asyncio.Task[Reply]:
        async def ask() -> Reply:
            return await self._llm(request)

        task = asyncio.get_running_loop().create_task(ask())
        task.add_done_callback(_heard)
        return task

    def _learn(self, took: float, reply: Reply) -> None:
        self._answers_usd += reply.usd
        self._took.append(took)
        known = sorted(self._took)
        self._late_s = known[int(LATE * (len(known) - 1))]


def _heard(task: asyncio.Task[Reply]) -> None:
    """Whatever became of a request nobody waits for any more."""
    if not task.cancelled():
        task.exception()


async def _first_answer(*requests: asyncio.Future[Reply]) -> asyncio.Future[Reply]:
    """The request that answered first; where all failed, the one that failed last."""
    under_way = set(requests)
    while True:
        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            if one.exception() is None or not under_way or not isinstance(one.exception(), ModelError):
                return one
