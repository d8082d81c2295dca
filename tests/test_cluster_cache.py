"""Whose a claim is: the dead hold nobody up, and take nothing from the living."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from evocluster.cluster import nodes
from evocluster.cluster.cache import CacheKeeper, Departed, RemoteCache
from evocluster.cluster.runner import RayRunner
from evocluster.cluster.seats import Layout
from evocluster.llm.client import Claim
from evocluster.llm.stack import Stack


async def test_what_a_dead_owner_claimed_is_free_and_the_others_stay() -> None:
    keeper = CacheKeeper(None, 600)
    assert await keeper.get_many(["a", "b"], "one") == [Claim.MINE, Claim.MINE]
    assert await keeper.get_many(["b", "c"], "two") == [Claim.TAKEN, Claim.MINE]
    await keeper.forsake("one")
    assert await keeper.get_many(["a", "b", "c"], "three") == [Claim.MINE, Claim.MINE, Claim.TAKEN]


async def test_a_question_of_the_dead_that_comes_late_claims_nothing() -> None:
    keeper = CacheKeeper(None, 600)
    await keeper.forsake("dead")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(keeper.get_many(["a"], "dead"), 0.01)
    assert await keeper.get_many(["a"], "live") == [Claim.MINE]


async def test_a_claim_that_was_lost_is_not_dropped_for_its_new_owner() -> None:
    keeper = CacheKeeper(None, 600)
    await keeper.get_many(["a"], "dead")
    await keeper.forsake("dead")
    assert await keeper.get_many(["a"], "live") == [Claim.MINE]
    await keeper.drop_many(["a"], "dead")
    assert await keeper.get_many(["a"], "third") == [Claim.TAKEN]
    await keeper.drop_many(["a"], "live")
    assert await keeper.get_many(["a"], "third") == [Claim.MINE]


async def test_an_answer_of_the_dead_counts_whenever_it_comes() -> None:
    keeper = CacheKeeper(None, 600)
    await keeper.get_many(["a"], "dead")
    await keeper.forsake("dead")
    await keeper.get_many(["a"], "live")
    await keeper.put_many({"a": "paid"})
    await keeper.drop_many(["a"], "live")
    assert await keeper.get_many(["a"], "third") == ["paid"]


async def test_a_population_gives_up_the_claims_of_all_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one right before may have died before it could give up those of its forerunner."""
    given_up: list[str] = []

    async def forsake(self: RemoteCache, owner: str) -> None:
        given_up.append(owner)

    async def life(self: RemoteCache) -> str:
        return "one"

    monkeypatch.setattr(RemoteCache, "forsake", forsake)
    monkeypatch.setattr(RemoteCache, "life", life)
    monkeypatch.setattr(nodes, "look", dict)
    worker: Any = None
    runner = RayRunner(worker, Stack({}), RemoteCache(None), Layout(1), epoch=3)
    await runner.open()
    await runner.close()
    assert given_up == ["1", "2"]


class Restarted(RemoteCache):
    """The cache actor without Ray, whose process can be started again."""

    def __init__(self) -> None:
        super().__init__(None)
        self.keeper = CacheKeeper(None, 600)

    def restart(self) -> None:
        """The process died; another answers."""
        self.keeper = CacheKeeper(None, 600)

    async def forsake(self, owner: str) -> None:
        """See RemoteCache."""
        await self.keeper.forsake(owner)

    async def life(self) -> str:
        """See RemoteCache."""
        return await self.keeper.life()


async def test_a_cache_that_was_started_again_learns_anew_who_is_no_more() -> None:
    cache = Restarted()
    departed = Departed(cache)
    reminding = asyncio.ensure_future(departed.remind(0.01))
    await departed.tell("1")
    await departed.tell("2/worker-0")
    cache.restart()
    assert await cache.keeper.get_many(["a"], "2/worker-0") == [Claim.MINE], "it knows of nobody"
    assert await cache.keeper.get_many(["b"], "1/worker-3") == [Claim.MINE]
    assert await cache.keeper.get_many(["c"], "2/worker-1") == [Claim.MINE]
    await asyncio.sleep(0.05)
    assert await cache.keeper.get_many(["a", "b", "c"], "2/worker-2") == [Claim.MINE, Claim.MINE, Claim.TAKEN]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cache.keeper.get_many(["d"], "2/worker-0"), 0.01)
    reminding.cancel()


async def test_a_runner_reminds_the_cache_of_whom_it_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Restarted()
    monkeypatch.setattr(nodes, "look", dict)
    worker: Any = None
    runner = RayRunner(worker, Stack({}), cache, Layout(1), epoch=2)
    await runner.open()
    cache.restart()
    await cache.keeper.get_many(["a"], "1/worker-0")
    async with asyncio.timeout(5):
        while await cache.keeper.get_many(["a"], "2/worker-0") != [Claim.MINE]:
            await asyncio.sleep(0.05)
    await runner.close()
