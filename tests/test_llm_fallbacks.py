"""Fallbacks: another model rewrites and reflects while one answers nobody; measurements wait for their own."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from contract_llm import chat
from virtual_time import virtually

from evocluster.engine.worker import Accounts
from evocluster.errors import ModelError, Overloaded, Refused
from evocluster.llm.cached import LocalCache
from evocluster.llm.client import LLM, Reply, Request
from evocluster.llm.fallbacks import Fallbacks, Others
from evocluster.llm.scripted import Scripted
from evocluster.llm.stack import Stack
from evocluster.records import LOST, Usage


class Moody(Scripted):
    """A scripted model that fails with `mood` while there is one, and remembers how often it was asked."""

    _mood: ModelError | None = None
    _asked: int = 0

    def feel(self, mood: ModelError | None) -> None:
        self._mood = mood

    @property
    def asked(self) -> int:
        return self._asked

    async def __call__(self, request: Request) -> Reply:
        self._asked += 1
        await asyncio.sleep(0.1)
        if self._mood is not None:
            raise self._mood
        return await super().__call__(request)


def moody(name: str, **settings: Any) -> Moody:
    return Moody(default=name, latency_s=0.1, sigma=0, **settings)


def request(purpose: str, text: str, **more: Any) -> Request:
    return chat(text, purpose=purpose, **more).model_copy(update={"model": "first"})


async def shut(llm: LLM, first: Moody) -> None:
    """Have the first model answer once, and then nobody any more."""
    await llm(request("evaluate", "well"))
    first.feel(Overloaded("down"))
    for begun in [asyncio.ensure_future(llm(request("evaluate", f"wait {n}"))) for n in range(40)]:
        begun.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.sleep(5)


@pytest.mark.parametrize("purpose", ["rewrite", "reflect"])
def test_another_model_writes_while_the_first_answers_nobody(purpose: str) -> None:
    async def scenario() -> None:
        first, other = moody("one", fallbacks=("second",)), moody("two")
        stack = Stack({"first": first, "second": other})
        llm = Accounts(await stack.open(LocalCache(), 100))
        await shut(llm, first)
        asked = first.asked
        began = asyncio.get_running_loop().time()
        reply = await llm(request(purpose, "write"))
        assert (reply.text, reply.answered_by) == ("two", "second")
        assert asyncio.get_running_loop().time() - began < 1
        assert first.asked - asked <= 1
        assert [(line.model, line.purpose) for line in llm.lines()] == [("first", "evaluate"), ("second", purpose)]
        # Kept under the model that gave it: well again, the first is asked itself, and the second is free.
        first.feel(None)
        await asyncio.sleep(10)
        assert (await llm(request(purpose, "write"))).text == "one"
        again = await llm(request(purpose, "write").model_copy(update={"model": "second"}))
        assert (again.text, again.cached, again.answered_by) == ("two", True, None)
        await stack.close()

    virtually(scenario())


@pytest.mark.parametrize("purpose", ["evaluate", "judge"])
def test_a_measurement_waits_for_its_own_model(purpose: str) -> None:
    async def scenario() -> None:
        first, other = moody("one", fallbacks=("second",)), moody("two")
        stack = Stack({"first": first, "second": other})
        llm = await stack.open(None, 100)
        await shut(llm, first)
        waiting = asyncio.ensure_future(llm(request(purpose, "measure")))
        await asyncio.sleep(20)
        assert not waiting.done()
        first.feel(None)
        reply = await waiting
        assert (reply.text, reply.answered_by, other.asked) == ("one", None, 0)
        counts = stack.counts()[first.identity]
        assert counts["openings"] == 1
        assert counts["overloaded"] >= 20
        await stack.close()
        assert pickle.loads(pickle.dumps(stack)).counts() == {}

    virtually(scenario())


def test_exhausted_attempts_go_on_too_and_what_cannot_be_asked_there_does_not() -> None:
    async def scenario() -> None:
        first, other = moody("one", fallbacks=("second",), retries=1), moody("two")
        first.feel(Overloaded("down"))
        stack = Stack({"first": first, "second": other})
        llm = await stack.open(None, 100)
        assert (await llm(request("rewrite", "a"))).text == "two"
        assert first.asked == 2
        with pytest.raises(Overloaded):
            await llm(request("evaluate", "a"))
        first.feel(Refused("key"))
        with pytest.raises(Refused):
            await llm(request("rewrite", "b"))
        assert other.asked == 1
        await stack.close()

    virtually(scenario())


def test_all_shut_a_rewrite_waits_for_the_model_it_named() -> None:
    async def scenario() -> None:
        first, other = moody("one", fallbacks=("second",)), moody("two", fallbacks=("first",))
        stack = Stack({"first": first, "second": other})
        llm = await stack.open(None, 100)
        await shut(llm, first)
        await llm(request("evaluate", "x").model_copy(update={"model": "second"}))
        other.feel(Overloaded("down"))
        begun = [
            asyncio.ensure_future(llm(request("judge", f"y {n}").model_copy(update={"model": "second"})))
            for n in range(40)
        ]
        await asyncio.sleep(5)
        waiting = asyncio.ensure_future(llm(request("rewrite", "write")))
        await asyncio.sleep(20)
        assert not waiting.done()
        first.feel(None)
        assert (await waiting).text == "one"
        for one in begun:
            one.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        await stack.close()

    virtually(scenario())


def failed(billed: int, usd: float) -> ModelError:
    error = Overloaded("down")
    error.billed, error.used = billed, Usage(calls=1, paid_usd=usd)
    return error


@pytest.mark.parametrize("answers", [True, False])
async def test_what_the_models_before_were_charged_is_told(answers: bool) -> None:
    said = {"first": failed(2, 0.5), "second": failed(1, 0.25)}

    async def llm(request: Request) -> Reply:
        if answers and request.model == "third":
            return Reply(text="x", prompt_tokens=1, completion_tokens=1, usd=0.125, seconds=1)
        raise said.get(request.model) or failed(0, 0.0)

    models = dict.fromkeys(("first", "second", "third"), Scripted().abilities)
    both = Fallbacks(llm, Others({"first": ("second", "third")}, models, lambda name: False))
    accounts = Accounts(both)
    if not answers:
        with pytest.raises(Overloaded) as failure:
            await accounts(request("rewrite", "write"))
        assert (failure.value.billed, failure.value.used) == (3, Usage(calls=1, paid_usd=0.75))
    else:
        reply = await accounts(request("rewrite", "write"))
        assert (reply.lost_calls, reply.lost_usd, reply.extra_usd) == (3, 0.75, 0.75)
    assert accounts.noted({}) == {LOST: {"calls": 3 if answers else 2, "usd": 0.75}}
