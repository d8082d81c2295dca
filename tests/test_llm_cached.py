"""The cache before a model: one call for equal requests, whatever fails or is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest
from contract_cache import CacheContract
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import ConfigError, Overloaded, StoreError
from evocluster.llm.cached import Cached, LocalCache
from evocluster.llm.client import Cache, Claim, Message, Reply, Request, usage
from evocluster.records import digest
from evocluster.store.cache import DiskCache

IDENTITY = {"m": "scripted:m"}
GOLDEN = (
    '{"v":1,"reply":{"text":"refund","prompt_tokens":7,"completion_tokens":2,"usd":0.25,"seconds":1.5,'
    '"finish_reason":"stop","cached":false}}'
)
"""A value as the first release wrote it; it must be readable forever."""


class Model:
    """Counts calls; answers with the request's text, after `seconds`, failing the first `failures` times."""

    def __init__(self, failures: int = 0, seconds: float = 0.01) -> None:
        self.calls = 0
        self.cancelled = 0
        self._failures = failures
        self._seconds = seconds

    async def __call__(self, request: Request) -> Reply:
        self.calls += 1
        number = self.calls
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if number <= self._failures:
            raise Overloaded(f"failure {number}")
        text = request.messages[0].content
        return Reply(text=text, prompt_tokens=7, completion_tokens=2, usd=0.25, seconds=1.5)


class Watched:
    """A cache that records its batches, and can be slow or broken."""

    def __init__(self, inner: Cache | None = None, slow_s: float = 0.0) -> None:
        self.inner: Cache = inner or LocalCache()
        self.slow_s = slow_s
        self.gets: list[int] = []
        self.puts: list[int] = []
        self.get_error: Exception | None = None
        self.put_error: Exception | None = None
        self.drop_error: Exception | None = None

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        self.gets.append(len(keys))
        await asyncio.sleep(self.slow_s)
        if self.get_error:
            raise self.get_error
        found = await self.inner.get_many(keys)
        await asyncio.sleep(self.slow_s)
        return found

    async def wait(self, key: str) -> str | None:
        return await self.inner.wait(key)

    async def put_many(self, items: Mapping[str, str]) -> None:
        self.puts.append(len(items))
        await asyncio.sleep(self.slow_s)
        if self.put_error:
            raise self.put_error
        await self.inner.put_many(items)

    async def drop_many(self, keys: Sequence[str]) -> None:
        if self.drop_error:
            raise self.drop_error
        await self.inner.drop_many(keys)


def ask(text: str, replicate: int = 0) -> Request:
    return Request(model="m", messages=(Message(role="user", content=text),), replicate=replicate)


async def settle(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.001)


class TestMemory(CacheContract):
    durable = False

    def make(self, folder: Path, lease_s: float = 600.0) -> Cache:
        return LocalCache(lease_s=lease_s)


class TestDisk(CacheContract):
    @pytest.fixture(autouse=True)
    async def shelves(self) -> AsyncIterator[None]:
        self.opened: list[DiskCache] = []
        yield
        for shelf in self.opened:
            shelf.close()

    def make(self, folder: Path, lease_s: float = 600.0) -> Cache:
        self.opened.append(DiskCache(folder / "cache"))
        return LocalCache(self.opened[-1], lease_s=lease_s)


async def test_a_lease_runs_out_by_the_clock_and_wakes_who_waits() -> None:
    now = [0.0]
    cache = LocalCache(lease_s=600, clock=lambda: now[0])
    assert await cache.get_many(["a"]) == [Claim.MINE]
    waiter = asyncio.create_task(cache.wait("a"))
    await asyncio.sleep(0)
    now[0] = 599.0
    assert await cache.get_many(["a"]) == [Claim.TAKEN]
    now[0] = 600.0
    assert await cache.get_many(["a", "a"]) == [Claim.MINE, Claim.TAKEN]
    assert await waiter is None


async def test_a_hit_replays_what_was_recorded_and_pays_nothing() -> None:
    model, cache = Model(), LocalCache()
    first = await Cached(model, cache, IDENTITY)(ask("a"))
    llm = Cached(model, cache, IDENTITY)
    again = await llm(ask("a"))
    assert (first.cached, again.cached) == (False, True)
    assert again == first.model_copy(update={"cached": True})
    assert (usage(again).usd, usage(again).paid_usd, usage(again).seconds) == (0.25, 0.0, 1.5)
    assert (model.calls, llm.hits, llm.misses, llm.joins) == (1, 1, 0, 0)


async def test_replicates_and_identities_are_asked_apart() -> None:
    model, cache = Model(), LocalCache()
    llm = Cached(model, cache, IDENTITY)
    await asyncio.gather(llm(ask("a")), llm(ask("a", replicate=1)))
    await Cached(model, cache, {"m": "another"})(ask("a"))
    assert model.calls == 3


async def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'m' is not configured: there are \['other'\]"):
        await Cached(Model(), LocalCache(), {"other": "x"})(ask("a"))


@pytest.mark.parametrize("failures", [0, 1, 3])
async def test_a_hundred_equal_requests_make_one_successful_call(failures: int) -> None:
    model = Model(failures)
    llm = Cached(model, LocalCache(), IDENTITY)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(llm(ask("a")) for _ in range(100)), return_exceptions=True)
    replies = [answer for answer in answers if isinstance(answer, Reply)]
    assert model.calls == failures + 1
    assert len(replies) == 100 - failures
    assert sum(not reply.cached for reply in replies) == 1
    assert (llm.misses, llm.joins + llm.hits) == (failures + 1, 99 - failures)


async def test_when_all_fail_each_gets_its_own_error() -> None:
    model = Model(failures=1000, seconds=0)
    llm = Cached(model, LocalCache(), IDENTITY)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(llm(ask("a")) for _ in range(100)), return_exceptions=True)
    assert sorted(str(answer) for answer in answers) == sorted(f"failure {n}" for n in range(1, 101))
    assert model.calls == 100


async def test_two_wrappers_on_one_cache_join_their_calls() -> None:
    model, cache = Model(), LocalCache()
    one, two = Cached(model, cache, IDENTITY), Cached(model, cache, IDENTITY)
    await asyncio.gather(*(llm(ask("a")) for llm in (one, two) for _ in range(10)))
    assert model.calls == 1


async def test_lookups_and_results_travel_together() -> None:
    cache, model = Watched(), Model()
    llm = Cached(model, cache, IDENTITY, batch=50)
    replies = await asyncio.gather(*(llm(ask(str(number))) for number in range(120)))
    assert [reply.text for reply in replies] == [str(number) for number in range(120)]
    assert (cache.gets, sum(cache.puts)) == ([50, 50, 20], 120)
    assert max(cache.puts) <= 50
    assert len(cache.puts) <= 12


async def test_what_is_put_while_a_batch_is_under_way_is_not_lost() -> None:
    cache = Watched(slow_s=0.005)
    llm = Cached(Model(seconds=0), cache, IDENTITY, linger_s=0.001, batch=3)

    async def late(number: int) -> Reply:
        await asyncio.sleep(number * 0.0007)
        return await llm(ask(str(number)))

    async with asyncio.timeout(10):
        await asyncio.gather(*(late(number) for number in range(60)))
    keys = [ask(str(number)).key(IDENTITY["m"]) for number in range(60)]
    assert all(isinstance(value, str) for value in await cache.inner.get_many(keys))


async def test_a_reply_is_durable_before_it_is_returned(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path)
    await Cached(Model(), LocalCache(shelf), IDENTITY)(ask("a"))
    other = DiskCache(tmp_path)
    assert other.get_many([ask("a").key(IDENTITY["m"])])[0] is not None
    shelf.close()
    other.close()


async def test_a_failed_lookup_reaches_every_waiter() -> None:
    cache, model = Watched(), Model()
    cache.get_error = StoreError("disk gone")
    llm = Cached(model, cache, IDENTITY)
    answers = await asyncio.gather(*(llm(ask(str(n))) for n in range(5)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["disk gone"] * 5
    assert model.calls == 0
    cache.get_error = None
    assert (await llm(ask("0"))).text == "0"


async def test_a_failed_put_reaches_its_callers_and_frees_the_claims() -> None:
    cache, model = Watched(), Model()
    cache.put_error = StoreError("disk full")
    llm = Cached(model, cache, IDENTITY)
    answers = await asyncio.gather(llm(ask("a")), llm(ask("b")), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["disk full"] * 2
    cache.put_error = None
    assert (await llm(ask("a"))).cached is False


async def test_a_drop_that_fails_does_not_hide_the_error_of_the_call() -> None:
    cache = Watched()
    cache.drop_error = StoreError("cache gone")
    with pytest.raises(Overloaded, match="failure 1"):
        await Cached(Model(failures=1), cache, IDENTITY)(ask("a"))


async def test_cancelling_the_maker_hands_the_call_to_the_next() -> None:
    model = Model(seconds=0.3)
    llm = Cached(model, LocalCache(), IDENTITY)
    maker = asyncio.create_task(llm(ask("a")))
    await settle(lambda: model.calls == 1)
    others = [asyncio.create_task(llm(ask("a"))) for _ in range(3)]
    await asyncio.sleep(0.005)
    maker.cancel()
    async with asyncio.timeout(5):
        replies = await asyncio.gather(*others)
    assert [reply.text for reply in replies] == ["a"] * 3
    assert (model.calls, model.cancelled) == (2, 1)
    assert maker.cancelled()


async def test_cancelling_one_lookup_leaves_its_batch_alone() -> None:
    cache, model = Watched(slow_s=0.01), Model()
    llm = Cached(model, cache, IDENTITY)
    gone, stays = (asyncio.create_task(llm(ask(text))) for text in "ab")
    await settle(lambda: cache.gets == [2])
    gone.cancel()
    assert (await stays).text == "b"
    await asyncio.gather(gone, return_exceptions=True)
    assert model.calls == 1


@pytest.mark.parametrize("moment_s", [0.0, 0.002, 0.01, 0.015])
async def test_a_claim_of_a_cancelled_lookup_is_given_back(moment_s: float) -> None:
    cache = Watched(slow_s=0.005)
    llm = Cached(Model(seconds=0.003), cache, IDENTITY)
    gone = asyncio.create_task(llm(ask("a")))
    await asyncio.sleep(moment_s)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await llm.close()
    async with asyncio.timeout(5):
        assert (await llm(ask("a"))).text == "a"


async def test_a_claim_answered_in_the_moment_of_the_cancel_is_given_back() -> None:
    class Answering(LocalCache):
        async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
            asyncio.get_running_loop().call_soon(gone.cancel)
            return await super().get_many(keys)

    cache = Answering()
    llm = Cached(Model(), cache, IDENTITY)
    gone = asyncio.create_task(llm(ask("a")))
    await asyncio.gather(gone, return_exceptions=True)
    await llm.close()
    assert gone.cancelled()
    assert await LocalCache.get_many(cache, [ask("a").key(IDENTITY["m"])]) == [Claim.MINE]


async def test_a_finished_call_is_stored_though_its_caller_is_cancelled() -> None:
    cache, model = Watched(slow_s=0.01), Model(seconds=0)
    llm = Cached(model, cache, IDENTITY, linger_s=0.05)
    caller = asyncio.create_task(llm(ask("a")))
    await settle(lambda: model.calls == 1)
    await asyncio.sleep(0.002)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await llm.close()
    assert (await llm(ask("a"))).cached is True
    assert model.calls == 1


@pytest.mark.parametrize("old", ["", "not json", "[]", '{"v":2,"reply":{}}', '{"v":1,"reply":{"text":"a"}}', "null"])
async def test_an_unreadable_entry_is_a_miss_and_is_replaced(old: str) -> None:
    cache, model = LocalCache(), Model()
    await cache.put_many({ask("a").key(IDENTITY["m"]): old})
    llm = Cached(model, cache, IDENTITY)
    assert (await llm(ask("a"))).cached is False
    assert (await llm(ask("a"))).cached is True
    assert (model.calls, llm.misses, llm.hits) == (1, 1, 1)


async def test_the_first_released_entry_is_read_forever() -> None:
    cache, model = LocalCache(), Model()
    await cache.put_many({ask("a").key(IDENTITY["m"]): GOLDEN})
    reply = await Cached(model, cache, IDENTITY)(ask("a"))
    expected = Reply(text="refund", prompt_tokens=7, completion_tokens=2, usd=0.25, seconds=1.5, cached=True)
    assert (reply, model.calls) == (expected, 0)


@given(plan=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.booleans()), max_size=25))
def test_whatever_is_cancelled_no_text_is_made_twice(plan: list[tuple[int, int, bool]]) -> None:
    """Callers of 4 texts start 1 ms apart, some are cancelled: the rest get their answers, each made once."""
    finished: list[str] = []

    class Finishing(Model):
        async def __call__(self, request: Request) -> Reply:
            reply = await super().__call__(request)
            finished.append(reply.text)
            return reply

    async def run() -> None:
        llm = Cached(Finishing(seconds=0.001), Watched(), IDENTITY, linger_s=0.0005, batch=4)
        tasks = []
        for text, start, _ in plan:
            tasks.append(asyncio.create_task(after(start, llm, text)))
        await asyncio.sleep(0.003)
        for task, (_, _, cancel) in zip(tasks, plan, strict=True):
            if cancel:
                task.cancel()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        await llm.close()
        for (text, _, cancel), answer in zip(plan, answers, strict=True):
            assert (isinstance(answer, Reply) and answer.text == str(text)) or (
                cancel and isinstance(answer, asyncio.CancelledError)
            )

    async def after(start: int, llm: Cached, text: int) -> Reply:
        await asyncio.sleep(start * 0.001)
        return await llm(ask(str(text)))

    finished.clear()
    asyncio.run(run())
    assert len(finished) == len(set(finished))


@given(
    st.builds(
        Request,
        model=st.text(max_size=3),
        messages=st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=st.text(max_size=9))),
        prompt=st.none() | st.text(max_size=9),
        temperature=st.integers(0, 2) | st.floats(0, 2),
        stop=st.lists(st.text(max_size=3), max_size=2),
        seed=st.integers(0, 9),
        choices=st.lists(st.text(max_size=3), max_size=2),
        json_schema=st.none() | st.just({"type": "object", "required": ["ä"], "properties": {"ä": {"enum": [1, 0.5]}}}),
        replicate=st.integers(0, 9),
        purpose=st.sampled_from(["evaluate", "judge"]),
    )
)
def test_a_request_is_named_by_all_that_it_says_but_its_model_and_purpose(request: Request) -> None:
    said = request.model_dump(mode="json", exclude={"model", "purpose"})
    assert request.key("direct:x") == digest({"identity": "direct:x", **said})
