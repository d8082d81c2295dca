"""The gate before the models: so many calls at once, first come first served, more or fewer when it is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from contract_llm import chat
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import virtually

from evocluster.errors import Overloaded, RateLimited
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.gate import Gate, Slots
from evocluster.llm.scripted import Scripted
from evocluster.llm.stack import Stack


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


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["enter", "front", "leave", "cancel", "resize"]), st.integers(0, 5))))
def test_no_more_get_in_than_there_are_slots_and_nobody_is_forgotten(steps: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        slots, count, inside = Slots(2), 2, 0
        waiting: list[asyncio.Task[None]] = []
        for step, number in [*steps, *[("leave", 0)] * (len(steps) + 2)]:
            before = inside
            if step in ("enter", "front"):
                waiting.append(asyncio.ensure_future(slots.enter(front=step == "front")))
            elif step == "leave" and inside:
                slots.leave()
                inside -= 1
            elif step == "cancel" and waiting:
                waiting.pop(number % len(waiting)).cancel()
            elif step == "resize":
                count = 1 + number
                slots.resize(count)
            await settle()
            inside += sum(one.done() for one in waiting)
            waiting = [one for one in waiting if not one.done()]
            assert inside <= max(count, before)
            assert inside >= count or not waiting
        assert not waiting

    asyncio.run(scenario())


class Sulky(Scripted):
    """A model that answers nobody, or of which too much is asked."""

    def upset(self, failure: Exception | None) -> Sulky:
        """From now on."""
        self._failure = failure
        return self

    async def __call__(self, request: Request) -> Reply:
        """See llm.client.LLM."""
        if self._failure is not None:
            raise self._failure
        return await super().__call__(request)

    _failure: Exception | None = None


def asked(llm: LLM, model: str, count: int) -> list[asyncio.Task[Reply]]:
    """So many calls of a model under way."""

    async def one(number: int) -> Reply:
        return await llm(chat(f"{model} {number}").model_copy(update={"model": model}))

    return [asyncio.ensure_future(one(number)) for number in range(count)]


def sulky(name: str, **more: Any) -> Sulky:
    return Sulky(default=name, latency_s=0.5, sigma=0, time_scale=1, **more)


@pytest.mark.parametrize("failure", [Overloaded("down"), RateLimited("slower", 30.0), None])
def test_calls_that_wait_for_their_endpoint_leave_their_slots_to_other_models(failure: Exception | None) -> None:
    async def scenario() -> None:
        shut = sulky("one", max_concurrency=0 if failure else 1).upset(None)
        stack = Stack({"shut": shut, "well": sulky("two").upset(None)})
        llm = await stack.open(None, 8)
        await asyncio.gather(*asked(llm, "shut", 1))
        shut.upset(failure)
        waiting = asked(llm, "shut", 40)
        await asyncio.sleep(5)
        assert stack.aside >= 6
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*asked(llm, "well", 24))
        took = asyncio.get_running_loop().time() - began
        assert took <= 4 * 0.5, "with hardly a slot less than all of them"
        assert not all(one.done() for one in waiting)
        shut.upset(None)
        await asyncio.gather(*waiting)
        assert stack.aside == 0
        await stack.close()

    virtually(scenario())


def test_those_who_come_back_with_leave_get_no_slots_above_those_there_are() -> None:
    async def scenario() -> None:
        inside = most = 0

        class Counted(Sulky):
            async def __call__(self, request: Request) -> Reply:
                nonlocal inside, most
                inside += 1
                most = max(most, inside)
                try:
                    return await super().__call__(request)
                finally:
                    inside -= 1

        models = {
            name: Counted(default=name, latency_s=0.5, time_scale=1, requests_per_minute=rate, fail=0.1)
            for name, rate in {"a": 120, "b": 300, "c": 0}.items()
        }
        stack = Stack(models)
        llm = await stack.open(None, 6)
        await asyncio.gather(*(one for name in models for one in asked(llm, name, 60)))
        assert most == 6
        assert stack.aside == 0
        await stack.close()

    virtually(scenario())


def test_one_endpoint_alone_frees_no_places_because_nobody_could_use_them() -> None:
    async def scenario() -> None:
        stack = Stack({"shut": sulky("one", max_concurrency=1).upset(None)})
        llm = await stack.open(None, 8)
        waiting = asked(llm, "shut", 8)
        await asyncio.sleep(1)
        assert stack.aside == 0
        await asyncio.gather(*waiting)
        await stack.close()

    virtually(scenario())
