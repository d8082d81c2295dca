"""The keeper of limits as an actor: one for the whole cluster, so that several runs on it share what an endpoint bears.

Detached and found by its name, it belongs to no run: the first holder to ask makes it, it ends itself when nobody has
asked for IDLE_S, and when it dies holders go on with their last lease while the next to ask makes another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from evocluster.errors import EvoclusterError
from evocluster.llm.quota import Ask, Grant, Keeper

NAME, NAMESPACE = "limits", "evocluster"
IDLE_S = 60.0
ANSWER_S = 5.0
"""A keeper that takes longer to answer is taken for gone."""


class LimitsKeeper:
    """A plain class made an actor by the first holder that asks; its clock is that of its node."""

    def __init__(self, idle_s: float) -> None:
        self._keeper = Keeper()
        self._idle_s = idle_s
        self._end: asyncio.TimerHandle | None = None

    async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        """See llm.leases.Renewing."""
        self._stay()
        return self._keeper.renew(holder, asks, time.monotonic())

    async def leave(self, holder: str) -> None:
        """See llm.leases.Renewing."""
        self._keeper.leave(holder)

    def _stay(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(self._idle_s, _leave)


def _leave() -> None:
    """End this actor."""
    import ray

    ray.kill(ray.get_runtime_context().current_actor)


class RemoteKeeper:
    """The actor as holders see it (see llm.leases.Renewing); picklable."""

    def __init__(self, name: str = NAME, idle_s: float = IDLE_S) -> None:
        self._name = name
        self._idle_s = idle_s
        self._actor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Its name travels; where it is is found out there."""
        return {**self.__dict__, "_actor": None}

    async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        """See llm.leases.Renewing. Makes the actor where there is none. Raises: errors.EvoclusterError."""
        import ray

        try:
            actor = self._found()
            async with asyncio.timeout(ANSWER_S):
                grants: dict[str, Grant] = await actor.renew.remote(holder, dict(asks))
        except (ray.exceptions.RayError, TimeoutError, ValueError) as failure:
            # ValueError: its name is still held by one that is dying.
            self._actor = None
            raise EvoclusterError(
                f"actor {self._name!r} did not answer: {type(failure).__name__}; it is looked for again"
            ) from failure
        return grants

    async def leave(self, holder: str) -> None:
        """See llm.leases.Renewing; an actor that is not known is not asked for."""
        import ray

        if self._actor is None:
            return
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._actor.leave.remote(holder)
        except (ray.exceptions.RayError, TimeoutError) as failure:
            raise EvoclusterError(f"actor {self._name!r} did not answer: {type(failure).__name__}") from failure

    def _found(self) -> Any:
        import ray

        if self._actor is None:
            self._actor = (
                ray.remote(LimitsKeeper)
                .options(
                    name=self._name,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=1000,
                    enable_task_events=False,
                )
                .remote(self._idle_s)
            )
        return self._actor
