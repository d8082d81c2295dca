"""Whose a claim is: the dead hold nobody up, and take nothing from the living."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from evocluster.cluster import nodes
from evocluster.cluster.cache import CacheKeeper, RemoteCache
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

    monkeypatch.setattr(RemoteCache, "forsake", forsake)
    monkeypatch.setattr(nodes, "look", dict)
    worker: Any = None
    runner = RayRunner(worker, Stack({}), RemoteCache(None), Layout(1), epoch=3)
    await runner.open()
    await runner.close()
    assert given_up == ["1", "2"]
