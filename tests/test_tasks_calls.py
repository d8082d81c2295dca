"""Calls of one run: what is counted, and how long they take when answers come from the cache at once."""

from __future__ import annotations

import asyncio

import pytest

from evocluster.errors import Overloaded, TooManyCalls
from evocluster.llm.client import Message, Reply, Request
from evocluster.records import Genome, Usage
from evocluster.tasks.calls import Calls


class Instant:
    """Answers after some turns of the loop, as the cache does; says it took as many seconds as the last word."""

    def __init__(self, turns: int = 0) -> None:
        self.asked: list[Request] = []
        self._turns = turns

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        for _ in range(self._turns):
            await asyncio.sleep(0)
        text = request.messages[-1].content
        if text == "fail":
            raise Overloaded("busy")
        seconds = float(text.split()[-1])
        return Reply(text="ok", prompt_tokens=2, completion_tokens=1, usd=0.5, seconds=seconds, cached=True)


async def test_calls_one_after_the_other_add_up() -> None:
    calls = Calls(Instant())
    assert await calls.ask("a 1") == "ok"
    await calls.ask("b 2")
    expected = Usage(calls=2, cached=2, prompt_tokens=4, completion_tokens=2, usd=1.0, paid_usd=0.0, seconds=3.0)
    assert calls.usage == expected
    assert [(step.purpose, step.prompt, step.reply) for step in calls.trace] == [
        ("answer", "user: a 1", "ok"),
        ("answer", "user: b 2", "ok"),
    ]


async def test_calls_side_by_side_take_as_long_as_the_slowest() -> None:
    calls = Calls(Instant())
    await calls.ask("first 1")
    await asyncio.gather(calls.ask("a 5"), calls.ask("b 2"), calls.ask("c 3"))
    assert calls.usage.seconds == 6.0
    await calls.ask("last 1")
    assert calls.usage.seconds == 7.0


async def test_chains_side_by_side_take_as_long_as_the_longest_chain() -> None:
    async def chain(*seconds: int) -> None:
        for each in seconds:
            await calls.ask(f"x {each}")

    calls = Calls(Instant())
    await asyncio.gather(chain(1, 1), chain(3, 1), chain(2))
    assert calls.usage.seconds == 4.0


async def test_chains_within_chains() -> None:
    async def inner() -> None:
        await calls.ask("x 1")
        await asyncio.gather(calls.ask("x 2"), calls.ask("x 4"))
        await calls.ask("x 1")

    async def outer() -> None:
        await calls.ask("x 1")
        await asyncio.gather(inner(), calls.ask("x 3"))
        await calls.ask("x 1")

    calls = Calls(Instant(turns=5))
    await asyncio.gather(outer(), calls.ask("x 5"))
    assert calls.usage.seconds == 8.0


async def test_two_runs_in_one_task_keep_their_own_time() -> None:
    one, other = Calls(Instant()), Calls(Instant(), begun=Usage(seconds=0.5, usd=1.0))
    await one.ask("x 1")
    await other.ask("x 2")
    await one.ask("x 3")
    assert one.usage.seconds == 4.0
    assert other.usage.seconds == 2.5
    assert other.usage.usd == 1.5


async def test_settings_come_from_the_genome_and_samples_differ() -> None:
    llm = Instant()
    calls = Calls(llm, Genome(genes={"model": "big", "temperature": 0.5, "max_tokens": 9}), seed=7, replicate=1000)
    await calls.ask("x 1", replicate=2)
    await calls.ask([{"role": "system", "content": "s"}, Message(role="user", content="y 1")], model="b", temperature=0)
    first, second = llm.asked
    assert (first.model, first.temperature, first.max_tokens, first.replicate) == ("big", 0.5, 9, 1002)
    assert first.seed != second.seed
    assert (second.model, second.temperature, second.replicate) == ("b", 0.0, 1000)
    assert [message.role for message in second.messages] == ["system", "user"]


async def test_more_calls_than_said_are_refused_and_failures_travel() -> None:
    calls = Calls(Instant(), limit=2)
    await calls.ask("x 1")
    with pytest.raises(Overloaded):
        await calls.ask("fail")
    with pytest.raises(TooManyCalls, match=r"more than 2 model calls for one example; raise `executor\.calls`"):
        await calls.ask("x 1")
    assert calls.usage.calls == 1


async def test_steps_can_be_noted() -> None:
    calls = Calls(Instant())
    calls.note("look up", "key", "value")
    await calls.ask("x 1", step="draft")
    assert [step.purpose for step in calls.trace] == ["look up", "draft"]
    assert calls.usage.calls == 1
