"""What every llm.client.Cache keeps, over whatever it stores in: subclass it and say how one is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from evocluster.llm.client import Cache, Claim


class CacheContract:
    """Override `make`, and `finish` where a cache must be closed before its folder is opened again."""

    durable: ClassVar[bool] = True
    """Another cache on the same folder sees what was put."""

    def make(self, folder: Path, lease_s: float = 600.0) -> Cache:
        raise AssertionError("a contract test class says how its cache is made")

    async def finish(self, cache: Cache) -> None:
        """Close it."""

    async def test_the_first_asks_and_the_others_wait(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        assert await cache.get_many(["a", "b"]) == [Claim.MINE, Claim.MINE]
        assert await cache.get_many(["b", "c", "c"]) == [Claim.TAKEN, Claim.MINE, Claim.TAKEN]
        await self.finish(cache)

    async def test_a_put_wakes_every_waiter_and_stays(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        await cache.get_many(["a"])
        waiters = [asyncio.create_task(cache.wait("a")) for _ in range(3)]
        await asyncio.sleep(0.01)
        await cache.put_many({"a": '{"text":"ü"}'})
        assert await asyncio.gather(*waiters) == ['{"text":"ü"}'] * 3
        assert await cache.get_many(["a", "x"]) == ['{"text":"ü"}', Claim.MINE]
        await self.finish(cache)

    async def test_waiting_for_what_is_there_returns_it(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        await cache.put_many({"a": "1"})
        assert await cache.wait("a") == "1"
        assert await cache.wait("never asked") is None
        await self.finish(cache)

    async def test_a_dropped_claim_wakes_waiters_empty_handed_and_is_free_again(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        await cache.get_many(["a"])
        waiters = [asyncio.create_task(cache.wait("a")) for _ in range(2)]
        await asyncio.sleep(0.01)
        await cache.drop_many(["a", "never claimed"])
        assert await asyncio.gather(*waiters) == [None, None]
        assert await cache.get_many(["a"]) == [Claim.MINE]
        await self.finish(cache)

    async def test_a_claim_runs_out(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, lease_s=0.05)
        await cache.get_many(["a"])
        assert await asyncio.wait_for(cache.wait("a"), 5) is None
        assert await cache.get_many(["a"]) == [Claim.MINE]
        await self.finish(cache)

    async def test_a_cancelled_waiter_leaves_the_others_waiting(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        await cache.get_many(["a"])
        gone, stays = (asyncio.create_task(cache.wait("a")) for _ in range(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await cache.put_many({"a": "1"})
        assert await stays == "1"
        await self.finish(cache)

    async def test_many_keys_keep_their_order(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = {f"key {number}": f"value {number}" for number in range(1200)}
        await cache.put_many(items)
        keys = sorted(items, key=lambda key: key[::-1])
        assert await cache.get_many(keys) == [items[key] for key in keys]
        assert await cache.get_many([]) == []
        await self.finish(cache)

    async def test_another_cache_on_the_folder_sees_what_was_put(self, tmp_path: Path) -> None:
        first = self.make(tmp_path)
        await first.put_many({"a": "1"})
        await self.finish(first)
        second = self.make(tmp_path)
        assert await second.get_many(["a"]) == (["1"] if self.durable else [Claim.MINE])
        await self.finish(second)
