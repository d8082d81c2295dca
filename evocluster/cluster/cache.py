"""The cache actor: one process owns the completions, everybody else asks it in batches.

A Ray call costs 0.5 to 1.2 ms whatever it carries, the store 10 us a key; so keys travel by the hundred (llm/cached.py
coalesces them) and the actor is async, because `wait` may last as long as somebody's call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.llm.cached import LocalCache
from evocluster.llm.client import Cache, Claim

LEASE_S = 600.0
"""Seconds a claim is good for: longer than any deadline of a call with its retries."""


class CacheKeeper:
    """A plain class made an actor by `start`: claims in memory, completions on the disk of its node."""

    def __init__(self, folder: str | None, lease_s: float) -> None:
        from evocluster.store.cache import DiskCache

        self._cache: Cache = LocalCache(DiskCache(Path(folder)) if folder else None, lease_s)

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        """See llm.client.Cache."""
        return await self._cache.get_many(keys)

    async def wait(self, key: str) -> str | None:
        """See llm.client.Cache."""
        return await self._cache.wait(key)

    async def put_many(self, items: Mapping[str, str]) -> None:
        """See llm.client.Cache."""
        await self._cache.put_many(items)

    async def drop_many(self, keys: Sequence[str]) -> None:
        """See llm.client.Cache."""
        await self._cache.drop_many(keys)

    async def ping(self) -> bool:
        """True once it is up; construction errors show here."""
        return True


class RemoteCache:
    """The cache actor as an llm.client.Cache; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        """See llm.client.Cache."""
        found: list[str | Claim] = await self._actor.get_many.remote(list(keys))
        return found

    async def wait(self, key: str) -> str | None:
        """See llm.client.Cache."""
        value: str | None = await self._actor.wait.remote(key)
        return value

    async def put_many(self, items: Mapping[str, str]) -> None:
        """See llm.client.Cache."""
        await self._actor.put_many.remote(dict(items))

    async def drop_many(self, keys: Sequence[str]) -> None:
        """See llm.client.Cache."""
        await self._actor.drop_many.remote(list(keys))

    def stop(self) -> None:
        """End the actor; what it stored is on disk."""
        import ray

        ray.kill(self._actor)


def start(folder: Path | None, node: str, lease_s: float = LEASE_S) -> RemoteCache:
    """A cache actor on the node with this id, keeping its completions in `folder` (None: in memory).

    `lease_s`: how long a claim is good for.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    keeper: Any = ray.remote(CacheKeeper).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=place)
    actor: Any = keeper.remote(str(folder) if folder else None, lease_s)
    ray.get(actor.ping.remote())
    return RemoteCache(actor)
