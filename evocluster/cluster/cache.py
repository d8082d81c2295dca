"""The cache actor: one process owns the completions, everybody else asks it in batches.

A Ray call costs 0.5 to 1.2 ms whatever it carries, the store 10 us a key; so keys travel by the hundred (llm/cached.py
coalesces them) and the actor is async, because `wait` may last as long as somebody's call.

When its process dies Ray starts it again on the same node and asks it again whatever it had not answered: every
method may be called twice. What was put is on disk; claims are gone with the process, and who waited claims anew. A
cache in memory forgets what it was told; who is no more it is told again (`Departed`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.cluster.nodes import placed
from evocluster.cluster.session import unwrapped
from evocluster.llm.cached import CLAIM_S, LocalCache
from evocluster.llm.client import Cache, Claim
from evocluster.telemetry import log

LEASE_S = CLAIM_S
"""Seconds a claim is good for, should its owner vanish unseen; those of workers known as dead are given up at once."""


class CacheKeeper:
    """A plain class made an actor by `start`: claims in memory, completions on the disk of its node.

    Claims are noted under the name of who made them, so that those of a dead worker are given up with it.
    """

    def __init__(self, folder: str | None, lease_s: float) -> None:
        self._folder = folder
        self._lease_s = lease_s
        self._owners: dict[str, tuple[str, int]] = {}
        self._gone: set[str] = set()
        self._opened: Cache | None = None
        self._life = secrets.token_hex(8)

    @property
    def _cache(self) -> Cache:
        """The folder, opened by the first to ask: Ray does not call `open` when it starts this process again."""
        from evocluster.store.cache import DiskCache

        if self._opened is None:
            shelf = DiskCache(Path(self._folder)) if self._folder is not None else None
            self._opened = LocalCache(shelf, self._lease_s)
        return self._opened

    async def open(self) -> None:
        """Open the folder. Raises: errors.StoreError."""
        _ = self._cache

    async def life(self) -> str:
        """A name of this process: another one knows of no claims, and of nobody that is no more."""
        return self._life

    async def get_many(self, keys: Sequence[str], owner: str = "", turn: int = 0) -> list[str | Claim]:
        """See llm.client.Cache. One `turn` of an owner asked again gets the same claims.

        One that was given up for dead is never answered: what it would claim now nobody would give up again.
        """
        if self._forsaken(owner):
            await asyncio.get_running_loop().create_future()
        asked = (owner, turn)
        found = [
            Claim.MINE if one is Claim.TAKEN and owner and self._owners.get(key) == asked else one
            for key, one in zip(keys, await self._cache.get_many(keys), strict=True)
        ]
        if owner:
            self._owners.update({key: asked for key, one in zip(keys, found, strict=True) if one is Claim.MINE})
        return found

    async def wait(self, key: str) -> str | None:
        """See llm.client.Cache."""
        return await self._cache.wait(key)

    async def put_many(self, items: Mapping[str, str]) -> None:
        """See llm.client.Cache."""
        await self._cache.put_many(items)
        self._disown(items)

    async def drop_many(self, keys: Sequence[str], owner: str = "") -> None:
        """See llm.client.Cache; an owner drops its own claims only: one that it lost may be another's by now."""
        held = [key for key in keys if not owner or self._owners.get(key, ("", 0))[0] == owner]
        await self._cache.drop_many(held)
        self._disown(held)

    async def forsake(self, owner: str) -> None:
        """Give up every claim of an owner that is no more, also of one whose last messages are still on their way.

        `2` are all of `2/...`.
        """
        self._gone.add(owner)
        await self.drop_many([key for key, (name, _) in self._owners.items() if self._forsaken(name)])

    def _forsaken(self, owner: str) -> bool:
        """Whether it was given up, by its name or with all of its kind."""
        return owner in self._gone or owner.partition("/")[0] in self._gone

    def _disown(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._owners.pop(key, None)


class RemoteCache:
    """The cache actor as an llm.client.Cache; picklable. Errors of the store come out as themselves."""

    def __init__(self, actor: Any, owner: str = "") -> None:
        self._actor = actor
        self._owner = owner
        self._turn = 0

    def of(self, owner: str) -> RemoteCache:
        """The same cache, in the name of this owner."""
        return RemoteCache(self._actor, owner)

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        """See llm.client.Cache."""
        self._turn += 1
        found: list[str | Claim] = await unwrapped(self._actor.get_many.remote(list(keys), self._owner, self._turn))
        return found

    async def wait(self, key: str) -> str | None:
        """See llm.client.Cache."""
        value: str | None = await unwrapped(self._actor.wait.remote(key))
        return value

    async def put_many(self, items: Mapping[str, str]) -> None:
        """See llm.client.Cache."""
        await unwrapped(self._actor.put_many.remote(dict(items)))

    async def drop_many(self, keys: Sequence[str]) -> None:
        """See llm.client.Cache."""
        await unwrapped(self._actor.drop_many.remote(list(keys), self._owner))

    async def forsake(self, owner: str) -> None:
        """Give up every claim of an owner that is no more."""
        await unwrapped(self._actor.forsake.remote(owner))

    async def life(self) -> str:
        """A name of the process that answers now."""
        name: str = await unwrapped(self._actor.life.remote())
        return name

    def stop(self) -> None:
        """End the actor; what it stored is on disk."""
        import ray

        ray.kill(self._actor)


class Departed:
    """The owners that are no more, as the cache knows them, also after its process was started again.

    What a worker that is out of reach, and was given up, asks of the new process would be a claim for LEASE_S.
    """

    def __init__(self, cache: RemoteCache) -> None:
        self._cache = cache
        self._names: list[str] = []

    async def tell(self, owner: str) -> None:
        """This one is no more; see CacheKeeper.forsake. Raises: what Ray raises."""
        self._names.append(owner)
        await self._cache.forsake(owner)

    async def remind(self, every_s: float) -> None:
        """Does not return: tell every process of the cache of all of them."""
        import ray

        known = ""
        while True:
            try:
                life = await self._cache.life()
                if life != known:
                    for owner in list(self._names):
                        await self._cache.forsake(owner)
                known = life
            except ray.exceptions.RayError as failure:  # it may be on its way back
                log.debug("the cache was not told who is no more: %s", failure)
            await asyncio.sleep(every_s)


def start(folder: Path | None, node: str, lease_s: float = LEASE_S) -> RemoteCache:
    """A cache actor on the node with this id, keeping its completions in `folder` (None: in memory).

    `lease_s`: how long a claim is good for. Raises: errors.StoreError.
    """
    import ray

    keeper = placed(CacheKeeper, node, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000)
    actor: Any = keeper.remote(str(folder) if folder else None, lease_s)
    try:
        ray.get(actor.open.remote())
    except ray.exceptions.RayTaskError as failure:
        raise failure.cause from failure
    return RemoteCache(actor)
