"""Whose a claim is: the dead hold nobody up, and take nothing from the living."""

from __future__ import annotations

import asyncio

import pytest

from evocluster.cluster.cache import CacheKeeper
from evocluster.llm.client import Claim


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
