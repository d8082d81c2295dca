"""The keeper of limits as a process sees it: what happens while it is being asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from evocluster.cluster.limits import RemoteKeeper
from evocluster.llm.leases import Leases
from evocluster.llm.quota import Terms


class Answering:
    """An actor whose answers come when the test says so."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
        self.renew = self.leave = SimpleNamespace(remote=self._ask)

    def _ask(self, *_: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(future)
        return future


@pytest.fixture
def keeper() -> tuple[RemoteKeeper, Answering]:
    keeper, actor = RemoteKeeper("planted"), Answering()
    keeper._actor = actor
    return keeper, actor


async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(keeper: tuple[RemoteKeeper, Answering]) -> None:
    remote, actor = keeper
    task = asyncio.ensure_future(remote.renew("holder", {}))
    answer = await actor.asked.get()
    answer.set_result({})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closing_while_an_answer_comes_ends(keeper: tuple[RemoteKeeper, Answering]) -> None:
    remote, actor = keeper
    leases = Leases(remote, "holder")
    leases.of("endpoint", Terms())
    opening = asyncio.ensure_future(leases.open())
    (await actor.asked.get()).set_result({})
    await opening
    answer = await actor.asked.get()  # the first regular renewal
    answer.set_result({})
    closing = asyncio.ensure_future(leases.close())
    (await asyncio.wait_for(actor.asked.get(), 10)).set_result(None)  # the good-bye
    await asyncio.wait_for(closing, 10)
    assert actor.asked.empty()
