"""The gate before the models: so many calls at once, first come first served, more or fewer when it is told."""

from __future__ import annotations

import asyncio

import pytest

from evocluster.llm.client import Reply, Request
from evocluster.llm.stack import Gate


class Door:
    """A model that answers when it is told, and knows how many wait for it."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.most = 0
        self.open = asyncio.Event()

    async def __call__(self, request: Request) -> Reply:
        """Wait for the door."""
        self.inside.append(request.model)
        self.most = max(self.most, len(self.inside))
        try:
            await self.open.wait()
        finally:
            self.inside.remove(request.model)
        return Reply(text="", prompt_tokens=1, completion_tokens=1, usd=0.0, seconds=0.0)


def call(gate: Gate, name: str) -> asyncio.Task[Reply]:
    """A call under way."""
    return asyncio.ensure_future(gate(Request(model=name, messages=())))


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_more_slots_let_the_first_in_line_in_and_fewer_let_nobody_until_some_left() -> None:
    door = Door()
    gate = Gate(door, 1)
    calls = [call(gate, name) for name in "abcde"]
    await settle()
    assert door.inside == ["a"]
    gate.resize(3)
    await settle()
    assert door.inside == ["a", "b", "c"]
    gate.resize(1)
    calls[0].cancel()
    calls[1].cancel()
    await settle()
    assert door.inside == ["c"]
    calls[2].cancel()
    await settle()
    assert door.inside == ["d"]
    door.open.set()
    await asyncio.gather(*calls[3:])
    assert door.most == 3


async def test_who_gives_up_in_line_holds_nobody_up() -> None:
    door = Door()
    gate = Gate(door, 1)
    calls = [call(gate, name) for name in "abc"]
    await settle()
    calls[1].cancel()
    calls[0].cancel()
    await settle()
    assert door.inside == ["c"]
    door.open.set()
    await calls[2]
    with pytest.raises(asyncio.CancelledError):
        await calls[1]


async def test_who_gives_up_in_the_moment_of_being_let_in_passes_the_slot_on() -> None:
    door = Door()
    gate = Gate(door, 1)
    calls = [call(gate, name) for name in "abc"]
    await settle()
    gate.resize(2)
    calls[1].cancel()
    gate.resize(1)
    door.open.set()
    await asyncio.wait_for(asyncio.gather(calls[0], calls[2]), 1)
    await asyncio.wait_for(call(gate, "d"), 1)
