"""Limits: calls at once, retries, deadline, patience, storms, hedges, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest
from contract_llm import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from leased import leased
from storm_world import Sky, work
from virtual_time import virtually

from evocluster.errors import DeadlinePassed, EvoclusterError, ModelError, Overloaded, RateLimited, Refused, Unreachable
from evocluster.llm.client import Reply, Request, usage
from evocluster.llm.hedge import KNOWN, Hedge
from evocluster.llm.leases import RENEW_S, OwnKeeper
from evocluster.llm.limits import BASE_S, CAP_S, Limited
from evocluster.llm.prices import Price
from evocluster.llm.quota import LEASE_S, Ask, Grant, Terms


def reply(text: str = "ok", seconds: float = 0.25) -> Reply:
    return Reply(text=text, prompt_tokens=1, completion_tokens=1, usd=0.001, seconds=seconds)


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


@asynccontextmanager
async def limited(
    llm: Flaky, sleep: Pauses, retries: int = 4, timeout_s: float = 60, at_once: int = 0, patience_s: float = 600
) -> AsyncIterator[Limited]:
    async with leased(Terms(max_concurrency=at_once)) as lease:
        yield Limited(llm, lease, timeout_s, retries, np.random.default_rng(5), patience_s, sleep)


async def test_what_failed_in_passing_is_tried_again() -> None:
    llm, pauses = Flaky(Overloaded("x"), Unreachable("y"), RateLimited("z")), Pauses()
    async with limited(llm, pauses) as model:
        assert (await model(chat())).seconds == 0.25
    assert (llm.calls, model.attempts, model.calls) == (4, 4, 1)
    assert all(BASE_S / 2 <= pause <= BASE_S * 2**n for n, pause in enumerate(pauses.seconds))


async def test_the_last_error_passes_after_exactly_retries_plus_one_attempts() -> None:
    llm, pauses = Flaky(*(Overloaded(str(n)) for n in range(9))), Pauses()
    async with limited(llm, pauses, retries=3) as model:
        with pytest.raises(Overloaded, match=r"^3$"):
            await model(chat())
    assert llm.calls == 4
    assert len(pauses.seconds) == 3


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    llm, pauses = Flaky(Refused("key")), Pauses()
    async with limited(llm, pauses) as model:
        with pytest.raises(Refused):
            await model(chat())
    assert (llm.calls, pauses.seconds) == (1, [])


async def test_backoff_is_capped() -> None:
    llm, pauses = Flaky(*(Overloaded("x") for _ in range(15))), Pauses()
    async with limited(llm, pauses, retries=20, timeout_s=3600) as model:
        await model(chat())
    assert CAP_S / 2 < max(pauses.seconds) <= CAP_S


def test_nobody_asks_before_retry_after_has_passed_and_429_is_no_failed_attempt() -> None:
    llm = Flaky(*(RateLimited("slow", 7.0) for _ in range(3)))

    async def scenario() -> float:
        async with limited(llm, Pauses(), retries=0, timeout_s=5) as model:
            began = asyncio.get_running_loop().time()
            first = asyncio.ensure_future(model(chat("a")))
            await asyncio.sleep(0.001)
            second = asyncio.ensure_future(model(chat("b")))
            await asyncio.sleep(6.9)
            assert llm.calls == 1
            await asyncio.gather(first, second)
            return asyncio.get_running_loop().time() - began

    took = virtually(scenario())
    assert 14 <= took <= 30
    assert llm.calls == 5


def test_what_retry_after_said_outlives_the_keeper_that_was_told() -> None:
    llm = Flaky(RateLimited("slow", 7.0))

    class Mortal:
        """A keeper that dies at the third second, and another that knows nothing."""

        def __init__(self) -> None:
            self.keepers = [OwnKeeper(), OwnKeeper()]

        @property
        def _alive(self) -> OwnKeeper:
            return self.keepers[asyncio.get_running_loop().time() >= 3]

        async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
            return await self._alive.renew(holder, asks)

        async def leave(self, holder: str) -> None:
            await self._alive.leave(holder)

    async def scenario() -> float:
        async with leased(Terms(), Mortal()) as lease:
            await Limited(llm, lease, 60, 4, np.random.default_rng(5))(chat())
            return asyncio.get_running_loop().time()

    assert 7 <= virtually(scenario()) <= 9
    assert llm.calls == 2


def test_a_call_is_not_repeated_in_the_last_moment_of_its_deadline() -> None:
    llm = Flaky(DeadlinePassed("cut"), work=lambda: 4.9999)

    async def scenario() -> None:
        async with limited(llm, Pauses(), timeout_s=5) as model:
            with pytest.raises(DeadlinePassed, match="cut") as failed:
                await model(chat())
        assert failed.value.used.calls == 1

    virtually(scenario())
    assert llm.calls == 1


def test_who_asks_for_more_than_our_patience_is_not_waited_for() -> None:
    async def scenario(llm: Flaky) -> float:
        async with limited(llm, Pauses(), patience_s=60) as model:
            with pytest.raises(RateLimited, match=r"patience_s=60"):
                await model(chat())
            return asyncio.get_running_loop().time()

    assert virtually(scenario(Flaky(RateLimited("slow", 3600.0)))) < 1


def test_an_endpoint_that_answers_nobody_any_more_fails_its_calls_once_patience_ends() -> None:
    failures = [Unreachable("gone") for _ in range(10_000)]

    async def scenario() -> tuple[float, list[Reply | BaseException], int]:
        llm = Flaky()
        async with leased() as lease:
            model = Limited(llm, lease, 60, 4, np.random.default_rng(5), patience_s=120)
            await model(chat())
            llm.failures = list(failures)
            said = await asyncio.gather(*(model(chat(str(n))) for n in range(30)), return_exceptions=True)
            assert lease.open
            assert lease.counts.openings == 1
            return asyncio.get_running_loop().time(), said, llm.calls

    took, said, calls = virtually(scenario())
    assert 120 <= took < 140
    assert all(isinstance(one, Overloaded) for one in said)
    assert calls < 30 + 60


def test_an_endpoint_that_never_answered_is_given_up_after_its_retries() -> None:
    llm = Flaky(*(Unreachable("nobody there") for _ in range(999)))

    async def scenario() -> float:
        async with leased() as lease:
            model = Limited(llm, lease, 60, 4, np.random.default_rng(5))
            said = await asyncio.gather(*(model(chat(str(n))) for n in range(30)), return_exceptions=True)
            assert all(isinstance(one, Unreachable) for one in said)
            return asyncio.get_running_loop().time()

    assert virtually(scenario()) < 30
    assert llm.calls == 30 * 5


async def test_the_deadline_is_over_all_attempts_but_not_over_the_wait_for_a_slot() -> None:
    llm = Flaky(work=lambda: 0.06)
    async with limited(llm, Pauses(), timeout_s=0.1, at_once=1) as model:
        assert len(await asyncio.gather(*(model(chat(str(n))) for n in range(4)))) == 4
    waits = iter((0.3, 60.0))
    llm = Flaky(Overloaded("x"), work=lambda: next(waits))
    async with limited(llm, Pauses(), timeout_s=0.6) as model:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlinePassed, match=r"timeout_s=0\.6"):
            await model(chat())
        assert asyncio.get_running_loop().time() - began < 1.0
    assert (llm.calls, llm.under_way) == (2, 0)


async def test_cancelling_gives_the_slot_back() -> None:
    llm = Flaky(work=lambda: 5.0)
    async with limited(llm, Pauses(), at_once=1) as model:
        tasks = [asyncio.ensure_future(model(chat(text))) for text in "ab"]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert llm.under_way == 0
        llm.work = lambda: 0.0
        assert (await model(chat())).text == "ok"


async def test_an_error_that_is_not_a_models_passes_at_once() -> None:
    llm = Flaky(ValueError("bug"))
    async with limited(llm, Pauses()) as model:
        with pytest.raises(ValueError, match="bug"):
            await model(chat())
    assert llm.calls == 1


FAILURES = st.sampled_from([None, Overloaded, Unreachable, Refused])


@settings(deadline=None, max_examples=60)
@given(
    at_once=st.integers(1, 6),
    fates=st.lists(FAILURES, max_size=30),
    retries=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_never_more_in_flight_and_every_call_ends(
    at_once: int, fates: list[type[ModelError] | None], retries: int, seed: int
) -> None:
    """Whatever fails, for whatever reason: at most `at_once` under way, and nothing is left waiting."""

    async def scenario() -> None:
        rng = np.random.default_rng(seed)
        llm = Flaky(*(fate("x") for fate in fates if fate), work=lambda: float(rng.integers(0, 2)) * 1e-4)
        async with limited(llm, Pauses(), retries=retries, at_once=at_once) as model:
            outcomes = await asyncio.gather(*(model(chat(str(n))) for n in range(20)), return_exceptions=True)
        assert llm.peak <= at_once
        assert llm.under_way == 0
        assert llm.calls == model.attempts <= 20 + len(fates)
        assert all(isinstance(outcome, Reply | ModelError) for outcome in outcomes)

    virtually(scenario())


class Wavering:
    """A keeper that does not answer, or is broken, when told so."""

    def __init__(self) -> None:
        self.own = OwnKeeper()
        self.trouble: Exception | None = None

    async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        if self.trouble is not None:
            raise self.trouble
        return await self.own.renew(holder, asks)

    async def leave(self, holder: str) -> None:
        await self.own.leave(holder)


def test_without_the_keeper_calls_go_on_until_the_lease_runs_out_and_again_when_it_is_back() -> None:
    async def scenario() -> None:
        keeper, llm = Wavering(), Flaky(work=lambda: 0.1)
        async with leased(Terms(max_concurrency=4), keeper) as lease:
            model = Limited(llm, lease, 60, 4, np.random.default_rng(1))
            await asyncio.gather(*(model(chat(str(n))) for n in range(8)))
            keeper.trouble = EvoclusterError("not there")
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(model(chat(str(n))) for n in range(40)))
            assert asyncio.get_running_loop().time() - began < 2
            await asyncio.sleep(LEASE_S)
            waiting = asyncio.ensure_future(model(chat("later")))
            await asyncio.sleep(10)
            assert not waiting.done()
            keeper.trouble = None
            assert (await waiting).text == "ok"
            assert llm.peak <= 4

    virtually(scenario())


def test_a_broken_keeper_fails_the_calls_instead_of_holding_them_for_ever() -> None:
    async def scenario() -> None:
        keeper, llm = Wavering(), Flaky(work=lambda: 5.0)
        async with leased(Terms(max_concurrency=1), keeper) as lease:
            model = Limited(llm, lease, 60, 4, np.random.default_rng(1))
            begun = [asyncio.ensure_future(model(chat(text))) for text in "ab"]
            await asyncio.sleep(1)
            keeper.trouble = RuntimeError("bug")
            said = await asyncio.gather(*begun, return_exceptions=True)
            assert [type(one) for one in said] == [Reply, RuntimeError]
            with pytest.raises(RuntimeError, match="bug"):
                await model(chat("c"))

    virtually(scenario())


STORM = (15.0, 75.0)


@pytest.mark.parametrize(("retry_after_s", "latency_s"), [(None, 0.5), (5.0, 1.0)])
def test_a_storm_of_a_minute_fails_nobody_and_is_over_when_it_is_over(
    retry_after_s: float | None, latency_s: float
) -> None:
    """200 in flight over four processes, 60 s of nothing but 429s: at most 1.2 requests an answer, 90 % of the
    throughput within 10 s, and what Retry-After asks for is kept.
    """

    def weather(now: float, rng: np.random.Generator) -> ModelError | None:
        return RateLimited("storm", retry_after_s) if STORM[0] <= now < STORM[1] else None

    sky = Sky(weather, latency_s)
    seen = virtually(work(sky, seconds=95, in_flight=200, workers=4))
    assert seen.failed == []
    assert len(sky.sent) / len(sky.answered) <= 1.2
    assert sum(STORM[0] + 2 <= at < STORM[1] for at in sky.sent) <= 60
    before = sky.rate(5, STORM[0])
    assert sky.rate(STORM[1] + 8, STORM[1] + 10) >= 0.9 * before
    assert sky.rate(STORM[1] + 10, STORM[1] + 20) >= 0.9 * before
    if retry_after_s is not None:
        told = [at for at, _ in sky.refused]
        # What was on its way, and who learns of it with the next renewal only, is no offence.
        assert not [at for at in sky.sent if any(heard + 2 * RENEW_S < at < heard + retry_after_s for heard in told)]


@pytest.mark.parametrize("error", [Overloaded("down"), Unreachable("down")])
def test_an_outage_fails_nobody_either(error: ModelError) -> None:
    sky = Sky(lambda now, rng: error if STORM[0] <= now < STORM[1] else None)
    seen = virtually(work(sky, seconds=90, in_flight=100, workers=4))
    assert seen.failed == []
    assert len(sky.sent) / len(sky.answered) <= 1.2
    assert sky.rate(STORM[1] + 8, STORM[1] + 12) >= 0.9 * sky.rate(5, STORM[0])
    alone = Sky(lambda now, rng: error if 10 <= now < 40 else None)
    assert virtually(work(alone, seconds=60, in_flight=1, workers=1)).failed == []


def test_errors_that_asking_less_would_not_cure_cost_little_more_than_themselves() -> None:
    sky = Sky(lambda now, rng: Overloaded("x") if rng.random() < 0.3 else None)
    seen = virtually(work(sky, seconds=30, in_flight=100, workers=4))
    assert len(sky.sent) / len(sky.answered) <= 1.5
    assert len(seen.failed) <= 0.01 * len(sky.answered)
    assert sky.rate(5, 30) >= 0.8 * 0.7 * 200
    assert sum(count.openings for count in seen.counts) == 0


def test_an_endpoint_that_bears_less_is_asked_for_as_much_as_it_bears() -> None:
    """Room for 40 at once, asked by 200: nearly all of the room is used, and few are turned away."""
    sky = Sky(lambda now, rng: RateLimited("too many") if sky.in_flight > 40 else None)
    seen = virtually(work(sky, seconds=100, in_flight=200, workers=4))
    assert seen.failed == []
    assert len(sky.sent) / len(sky.answered) <= 1.2
    assert sky.rate(30, 100) >= 0.75 * 80


class Straggling:
    """Every 50th request takes 10 s, all others about 0.1 s; counts what it was asked and what was called off."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.rng = np.random.default_rng(every)
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, request: Request) -> Reply:
        self.calls += 1
        seconds = 10.0 if self.calls % self.every == 0 else float(self.rng.uniform(0.08, 0.12))
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return reply(seconds=seconds)


def test_a_straggler_is_asked_for_twice_and_the_account_says_so() -> None:
    async def scenario() -> tuple[Straggling, list[Reply], int]:
        llm = Straggling()
        async with leased() as lease:
            model = Limited(Hedge(llm, lease, 0.2), lease, 60, 4, np.random.default_rng(1))
            said = [await model(chat(str(n))) for n in range(200)]
            await asyncio.sleep(0)
            assert lease.in_flight == 0
            return llm, said, lease.counts.hedges

    llm, said, hedges = virtually(scenario())
    twice = [one for one in said if one.extra_usd]
    assert 4 <= len(twice) == hedges == llm.cancelled <= 40
    assert llm.calls == 200 + hedges
    # From the first request on, what a user would have waited: the stragglers took their delay and a second request.
    assert sorted(one.seconds > 0.18 for one in twice)[-4:] == [True] * 4
    assert max(one.seconds for one in said) < 0.3
    assert usage(twice[0]).paid_usd == pytest.approx(0.002)
    assert usage(twice[0]).usd == pytest.approx(0.001)
    assert all(usage(one).paid_usd == one.usd for one in said if one not in twice)


@pytest.mark.parametrize("terms", [Terms(max_concurrency=1), Terms(retry_share=0.0)])
def test_no_second_request_without_room_or_retries(terms: Terms) -> None:
    async def scenario() -> int:
        llm = Straggling()
        async with leased(terms) as lease:
            model = Limited(Hedge(llm, lease, 0.2), lease, 60, 4, np.random.default_rng(1))
            if not terms.retry_share:
                lease.spare = lambda tokens: None  # type: ignore[method-assign]
            for n in range(120):
                await model(chat(str(n)))
        return llm.calls

    assert virtually(scenario()) == 120


def test_hedges_are_at_most_their_share_and_begin_once_the_latency_is_known() -> None:
    async def scenario(every: int, share: float) -> int:
        llm = Straggling(every)
        async with leased() as lease:
            model = Limited(Hedge(llm, lease, share), lease, 60, 4, np.random.default_rng(1))
            for n in range(KNOWN if every == 3 else 300):
                await model(chat(str(n)))
            return lease.counts.hedges

    assert virtually(scenario(3, 0.2)) == 0
    assert 1 <= virtually(scenario(25, 0.01)) <= 3


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.2), st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(2, 12))
def test_hedges_cost_no_more_than_their_share_of_what_the_answers_cost(
    share: float, tokens: list[int], every: int
) -> None:
    price = Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=4.0)

    class Dear(Straggling):
        async def __call__(self, request: Request) -> Reply:
            said = await super().__call__(request)
            used = tokens[int(request.messages[0].content) % len(tokens)]
            return said.model_copy(update={"usd": price.cost(2, used)})

    async def scenario() -> list[Reply]:
        async with leased() as lease:
            model = Limited(Hedge(Dear(every), lease, share, price), lease, 60, 4, np.random.default_rng(1))
            return [await model(chat(str(n), max_tokens=64)) for n in range(400)]

    answers_usd = extra_usd = 0.0
    for one in virtually(scenario()):
        answers_usd += one.usd
        extra_usd += one.extra_usd
        assert extra_usd <= share * answers_usd + 1e-12


def test_a_second_request_is_sent_once_its_price_was_put_by() -> None:
    async def scenario(price: Price) -> list[int]:
        async with leased() as lease:
            model = Limited(Hedge(Straggling(10), lease, 0.2, price), lease, 60, 4, np.random.default_rng(1))
            said = [await model(chat(str(n), max_tokens=100)) for n in range(200)]
        return [number for number, one in enumerate(said) if one.extra_usd]

    # An answer costs 0.001, so 0.02 are put by after 100 of them.
    free = virtually(scenario(Price(prompt_usd_per_mtok=0, completion_usd_per_mtok=0)))
    dear = virtually(scenario(Price(prompt_usd_per_mtok=0, completion_usd_per_mtok=200)))
    assert free[0] < 40
    assert dear[0] >= 100
    assert len(dear) >= 5


def test_when_both_requests_fail_the_call_is_repeated_and_the_slot_is_free() -> None:
    class Failing(Straggling):
        async def __call__(self, request: Request) -> Reply:
            said = await super().__call__(request)
            if 100 <= self.calls <= 101:
                raise Overloaded("both")
            return said

    async def scenario() -> tuple[Reply, int]:
        llm = Failing(100)
        async with leased() as lease:
            model = Limited(Hedge(llm, lease, 0.2), lease, 60, 4, np.random.default_rng(1))
            for n in range(100):
                last = await model(chat(str(n)))
            return last, lease.in_flight

    last, in_flight = virtually(scenario())
    assert (last.text, in_flight) == ("ok", 0)
