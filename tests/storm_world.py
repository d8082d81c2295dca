"""An endpoint with weather, and workers that keep a number of calls in flight at it, all in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np
from contract_llm import chat
from leased import leased

from evocluster.errors import ModelError
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.leases import Counts, Lease, OwnKeeper, Renewing
from evocluster.llm.limits import Limited
from evocluster.llm.quota import Terms

Weather = Callable[[float, np.random.Generator], ModelError | None]


@dataclass
class Sky:
    """The endpoint. `weather` says at each arrival what goes wrong; an answer takes about `latency_s`."""

    weather: Weather
    latency_s: float = 0.5
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[tuple[float, ModelError]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0

    async def __call__(self, request: Request) -> Reply:
        now = asyncio.get_running_loop().time
        self.sent.append(now())
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            error = self.weather(now(), self.rng)
            if error is not None:
                await asyncio.sleep(0.02)
                self.refused.append((now(), error))
                raise error
            took = self.latency_s * float(self.rng.lognormal(0, 0.2))
            await asyncio.sleep(took)
            self.answered.append(now())
            return Reply(text="ok", prompt_tokens=10, completion_tokens=10, usd=0.001, seconds=took)
        finally:
            self.in_flight -= 1

    def rate(self, begin: float, end: float) -> float:
        """Answers a second between two moments."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)


@dataclass
class Seen:
    """What became of the calls."""

    failed: list[BaseException] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)


async def work(
    sky: LLM,
    seconds: float,
    in_flight: int,
    workers: int = 2,
    terms: Terms | None = None,
    keeper: Renewing | None = None,
) -> Seen:
    """Keep `in_flight` calls going over some holders for so long, then let them end."""
    seen, keeper = Seen(), keeper or OwnKeeper()
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds

    async def slot(limited: Limited) -> None:
        while loop.time() < ends:
            try:
                await limited(chat())
                seen.done["ok"] += 1
            except ModelError as error:
                seen.failed.append(error)

    async with AsyncExitStack() as stack:
        slots, leases = [], list[Lease]()
        for number in range(workers):
            lease = await stack.enter_async_context(leased(terms, keeper, f"w{number}"))
            leases.append(lease)
            limited = Limited(sky, lease, 60.0, 4, np.random.default_rng(number))
            slots += [slot(limited) for _ in range(in_flight // workers)]
        await asyncio.gather(*slots)
        seen.counts = [lease.counts for lease in leases]
    return seen
