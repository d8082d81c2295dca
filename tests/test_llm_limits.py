"""Limits: calls at once, retries, deadline, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from contract_llm import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import DeadlinePassed, ModelError, Overloaded, RateLimited, Refused, Unreachable
from evocluster.llm.client import Reply, Request
from evocluster.llm.limits import BASE_S, CAP_S, Limited


def reply(text: str = "ok", seconds: float = 0.25) -> Reply:
    return Reply(text=text, prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=seconds)


class Flaky:
    """Fails with what it is told, call after call, then answers; watches how many calls are under way."""

    def __init__(self, *failures: Exception, work: Callable[[], float] = lambda: 0.0) -> None:
        self.failures = list(failures)
        self.work = work
        self.calls = 0
        self.under_way = 0
        self.peak = 0

    async def __call__(self, request: Request) -> Reply:
        self.calls += 1
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            await asyncio.sleep(self.work())
            if self.failures:
                raise self.failures.pop(0)
            return reply()
        finally:
            self.under_way -= 1


class Pauses:
    """A sleep that only remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def limited(llm: Flaky, sleep: Pauses, retries: int = 4, timeout_s: float = 60, at_once: int = 0) -> Limited:
    return Limited(llm, at_once, timeout_s, retries, np.random.default_rng(5), sleep)


async def test_what_failed_in_passing_is_tried_again() -> None:
    llm, pauses = Flaky(Overloaded("x"), Unreachable("y"), RateLimited("z")), Pauses()
    model = limited(llm, pauses)
    assert (await model(chat())).seconds == 0.25
    assert (llm.calls, model.attempts, model.calls) == (4, 4, 1)
    assert all(0 <= pause <= BASE_S * 2**n for n, pause in enumerate(pauses.seconds))


async def test_the_last_error_passes_after_exactly_retries_plus_one_attempts() -> None:
    llm, pauses = Flaky(*(Overloaded(str(n)) for n in range(9))), Pauses()
    with pytest.raises(Overloaded, match=r"^3$"):
        await limited(llm, pauses, retries=3)(chat())
    assert llm.calls == 4
    assert len(pauses.seconds) == 3


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    llm, pauses = Flaky(Refused("key")), Pauses()
    with pytest.raises(Refused):
        await limited(llm, pauses)(chat())
    assert (llm.calls, pauses.seconds) == (1, [])


async def test_retry_after_is_a_floor_and_backoff_is_capped() -> None:
    llm, pauses = Flaky(RateLimited("slow", 7.0)), Pauses()
    await limited(llm, pauses)(chat())
    assert 7.0 <= pauses.seconds[0] <= 7.0 + BASE_S
    llm, pauses = Flaky(*(Overloaded("x") for _ in range(15))), Pauses()
    await limited(llm, pauses, retries=20, timeout_s=3600)(chat())
    assert CAP_S / 2 < max(pauses.seconds) <= CAP_S


async def test_a_pause_past_the_deadline_is_not_begun() -> None:
    llm, pauses = Flaky(RateLimited("slow", 120.0)), Pauses()
    with pytest.raises(RateLimited, match="slow"):
        await limited(llm, pauses, timeout_s=60)(chat())
    assert (llm.calls, pauses.seconds) == (1, [])


async def test_the_deadline_is_over_all_attempts_but_not_over_the_wait_for_a_slot() -> None:
    llm = Flaky(work=lambda: 0.06)
    model = limited(llm, Pauses(), timeout_s=0.1, at_once=1)
    assert len(await asyncio.gather(*(model(chat(str(n))) for n in range(4)))) == 4
    waits = iter((0.0, 60.0))
    llm = Flaky(Overloaded("x"), work=lambda: next(waits))
    with pytest.raises(DeadlinePassed, match=r"timeout_s=0\.6"):
        await limited(llm, Pauses(), timeout_s=0.6)(chat())
    assert (llm.calls, llm.under_way) == (2, 0)


async def test_cancelling_gives_the_slot_back() -> None:
    llm = Flaky(work=lambda: 5.0)
    model = limited(llm, Pauses(), at_once=1)
    task = asyncio.ensure_future(model(chat()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.under_way == 0
    llm.work = lambda: 0.0
    assert (await model(chat())).text == "ok"


async def test_an_error_that_is_not_a_models_passes_at_once() -> None:
    llm = Flaky(ValueError("bug"))
    with pytest.raises(ValueError, match="bug"):
        await limited(llm, Pauses())(chat())
    assert llm.calls == 1


FAILURES = st.sampled_from([None, Overloaded, Unreachable, Refused])


@settings(deadline=None, max_examples=60)
@given(
    at_once=st.integers(1, 6),
    fates=st.lists(FAILURES, max_size=30),
    retries=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_never_more_in_flight_and_never_more_attempts_than_allowed(
    at_once: int, fates: list[type[ModelError] | None], retries: int, seed: int
) -> None:
    """Whatever fails, for whatever reason: at most `at_once` under way, at most retries + 1 attempts a call."""

    async def scenario() -> None:
        rng = np.random.default_rng(seed)
        llm = Flaky(*(fate("x") for fate in fates if fate), work=lambda: float(rng.integers(0, 2)) * 1e-4)
        model = limited(llm, Pauses(), retries=retries, at_once=at_once)
        outcomes = await asyncio.gather(*(model(chat(str(n))) for n in range(20)), return_exceptions=True)
        assert llm.peak <= at_once
        assert llm.under_way == 0
        assert llm.calls == model.attempts <= 20 * (retries + 1)
        assert all(isinstance(outcome, Reply | ModelError) for outcome in outcomes)

    asyncio.run(scenario())
