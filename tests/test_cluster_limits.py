"""One keeper of limits for a whole cluster: shared by processes and runs, found again after its death."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_llm import chat

from evocluster.cluster.limits import NAMESPACE, RemoteKeeper
from evocluster.cluster.session import session
from evocluster.llm.client import Reply, Request
from evocluster.llm.leases import Leases
from evocluster.llm.limits import Limited
from evocluster.llm.quota import LEASE_S, Terms

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Actors of this file find it.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with session(num_cpus=2):
            yield


class Process:
    """A process that asks an endpoint as often as it may; made an actor by the tests."""

    def __init__(self, keeper: RemoteKeeper, name: str, terms: Terms) -> None:
        self._leases = Leases(keeper, name)
        self._lease = self._leases.of("endpoint", terms)
        self._under_way = 0
        self.sent: list[tuple[float, int]] = []

    async def _answer(self, request: Request) -> Reply:
        self._under_way += 1
        self.sent.append((time.monotonic(), self._under_way))
        try:
            await asyncio.sleep(0.05)
            return Reply(text="ok", prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=0.05)
        finally:
            self._under_way -= 1

    async def run(self, seconds: float, in_flight: int) -> list[tuple[float, int]]:
        """(when it was sent, how many were under way here then) of every request."""
        await self._leases.open()
        model = Limited(self._answer, self._lease, 10, 4, np.random.default_rng(0))

        async def slot() -> None:
            while True:
                await model(chat())

        slots = [asyncio.ensure_future(slot()) for _ in range(in_flight)]
        await asyncio.sleep(seconds)
        for one in slots:
            one.cancel()
        await asyncio.gather(*slots, return_exceptions=True)
        await self._leases.close()
        return self.sent


def processes(keeper: RemoteKeeper, *terms: Terms) -> list[Any]:
    import ray

    kind = ray.remote(Process).options(num_cpus=0, max_concurrency=100)
    return [kind.remote(keeper, f"p{number}", one) for number, one in enumerate(terms)]


def found(name: str) -> Any:
    """The keeper, once a holder has made it."""
    import ray

    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            return ray.get_actor(name, NAMESPACE)
        except ValueError:
            time.sleep(0.1)
    raise AssertionError("nobody made it")


def end(actors: list[Any]) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)


def test_two_processes_share_one_rate_and_the_stricter_settings_hold() -> None:
    import ray

    keeper = RemoteKeeper("rate")
    strict, loose = Terms(requests_per_minute=1200), Terms(requests_per_minute=6000)
    actors = processes(keeper, strict, loose)
    try:
        sent = ray.get([actor.run.remote(6.0, 40) for actor in actors], timeout=120)
    finally:
        end(actors)
    # The looser one may begin alone; two seconds later the stricter holds: 20 a second, nearly all of them used.
    begin = max(one[0][0] for one in sent) + 2
    each = [sum(begin <= at < begin + 3 for at, _ in one) for one in sent]
    assert 45 <= sum(each) <= 60 + 20
    assert min(each) >= 0.3 * sum(each)


def test_calls_at_once_hold_over_processes_and_a_dead_one_is_counted_no_longer() -> None:
    import ray

    keeper = RemoteKeeper("slots")
    terms = Terms(max_concurrency=8)
    actors = processes(keeper, terms, terms)
    try:
        ray.get(actors[0].run.remote(0.5, 1), timeout=120)
        lost = actors[1].run.remote(60.0, 20)
        alone = actors[0].run.remote(8.0, 20)
        time.sleep(3)
        killed = time.monotonic()
        ray.kill(actors[1])
        sent = ray.get(alone, timeout=120)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(lost, timeout=120)
    finally:
        end(actors[:1])
    shared = [many for at, many in sent if killed - 1 <= at < killed]
    assert max(shared) <= 5
    after = [many for at, many in sent if at >= killed + LEASE_S + 1]
    assert max(after) == 8


def test_calls_go_on_when_the_keeper_dies_and_the_next_one_keeps_the_limits() -> None:
    import ray

    keeper = RemoteKeeper("mortal")
    terms = Terms(max_concurrency=4)
    actors = processes(keeper, terms, terms)
    try:
        running = [actor.run.remote(8.0, 10) for actor in actors]
        first = found("mortal")
        time.sleep(2)
        killed = time.monotonic()
        ray.kill(first)
        sent = ray.get(running, timeout=120)
        second = ray.get_actor("mortal", NAMESPACE)
        assert second._actor_id != first._actor_id
    finally:
        end(actors)
    moments = sorted(at for one in sent for at, _ in one if at >= killed)
    assert max(later - at for at, later in pairwise(moments)) < LEASE_S
    for one in sent:
        assert [at for at, _ in one if at >= killed + 3]
        assert max(many for at, many in one if at >= killed + 3) <= 4


def test_a_keeper_that_nobody_asks_ends_itself() -> None:
    import ray

    async def once() -> None:
        leases = Leases(RemoteKeeper("idle", idle_s=1.0), "holder")
        leases.of("endpoint", Terms())
        await leases.open()
        await leases.close()

    asyncio.run(once())
    assert ray.get_actor("idle", NAMESPACE) is not None
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        try:
            ray.get_actor("idle", NAMESPACE)
        except ValueError:
            return
        time.sleep(0.2)
    pytest.fail("the actor is still there")
