"""What every kind of model must do. Subclass it in a test file and give two fixtures:

    class TestMine(ModelContract):
        @pytest.fixture
        def unopened(self) -> Model: ...
        @pytest.fixture
        async def model(self, unopened: Model) -> AsyncIterator[Model]:     # opened, and closed afterwards
            async with opened(unopened) as model: yield model

Set `deterministic = False` where temperature 0 does not promise the same text twice, and `question`, `token_limit`
to suit a real model. What a model has no ability for must be refused: each ability is tested either way.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import jsonschema
import pytest

from evocluster.errors import Refused
from evocluster.llm.client import Message, Model, Reply, Request

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "nights": {"type": "integer"}},
    "required": ["city", "nights"],
    "additionalProperties": False,
}


@asynccontextmanager
async def opened(model: Model) -> AsyncIterator[Model]:
    """The model between open and close."""
    await model.open()
    try:
        yield model
    finally:
        await model.close()


def chat(text: str = "Say something about the sea.", **settings: Any) -> Request:
    """A request of one user message."""
    return Request(model="m", messages=(Message(role="user", content=text),), **settings)


def completion(text: str = "The sea is", **settings: Any) -> Request:
    """A request for plain text completion."""
    return Request(model="m", prompt=text, **settings)


class ModelContract:
    """Tests that hold for every `Model`."""

    deterministic: ClassVar[bool] = True
    question: ClassVar[str] = "Say something about the sea."
    token_limit: ClassVar[int] = 3
    """max_tokens that cuts an answer to `question` short."""
    calls_at_once: ClassVar[int] = 16

    def ask(self, model: Model, **settings: Any) -> Request:
        """A plain question in the form the model has."""
        return chat(self.question, **settings) if model.abilities.chat else completion(self.question, **settings)

    @staticmethod
    def check(reply: Reply) -> None:
        assert isinstance(reply, Reply)
        assert reply.prompt_tokens > 0
        assert reply.completion_tokens >= 0
        assert reply.seconds >= 0
        assert reply.finish_reason
        assert not reply.cached

    async def test_answers_with_true_usage_and_price(self, model: Model) -> None:
        reply = await model(self.ask(model, max_tokens=32))
        self.check(reply)
        assert reply.text.strip()
        assert 0 < reply.completion_tokens <= 32
        assert reply.usd > 0

    async def test_a_longer_prompt_counts_more_tokens_and_costs_more(self, model: Model) -> None:
        short = await model(completion("one") if not model.abilities.chat else chat("one", max_tokens=4))
        text = "one two three four five six " * 12
        long = await model(completion(text) if not model.abilities.chat else chat(text, max_tokens=4))
        assert long.prompt_tokens >= short.prompt_tokens + 30

    async def test_max_tokens_cuts_and_says_so(self, model: Model) -> None:
        reply = await model(self.ask(model, max_tokens=self.token_limit))
        assert reply.finish_reason == "length"
        assert reply.completion_tokens <= self.token_limit

    async def test_identity_is_stable_and_pickles_before_open(self, unopened: Model) -> None:
        copy = pickle.loads(pickle.dumps(unopened))
        assert copy.identity == unopened.identity
        assert copy.abilities == unopened.abilities
        async with opened(copy):
            self.check(await copy(self.ask(copy, max_tokens=4)))

    async def test_temperature_zero_repeats_itself(self, model: Model) -> None:
        if not self.deterministic:
            pytest.skip("this kind promises no repetition")
        request = self.ask(model, max_tokens=8, temperature=0.0, seed=3)
        first, second = await model(request), await model(request)
        assert (first.text, first.completion_tokens) == (second.text, second.completion_tokens)

    async def test_completion_or_a_refusal(self, model: Model) -> None:
        request = completion("The capital of France is", max_tokens=4)
        if model.abilities.completion:
            self.check(await model(request))
        else:
            with pytest.raises(Refused, match="completion"):
                await model(request)

    async def test_choices_or_a_refusal(self, model: Model) -> None:
        choices = ('say "no"', "back\\slash", "große Ü")
        request = self.ask(model, choices=choices, max_tokens=24)
        if model.abilities.choices:
            reply = await model(request)
            self.check(reply)
            assert reply.text in choices
        else:
            with pytest.raises(Refused, match="choices"):
                await model(request)

    async def test_json_schema_or_a_refusal(self, model: Model) -> None:
        request = self.ask(model, json_schema=SCHEMA, max_tokens=64)
        if model.abilities.json_schema:
            reply = await model(request)
            self.check(reply)
            jsonschema.validate(json.loads(reply.text), SCHEMA)
        else:
            with pytest.raises(Refused, match="schema"):
                await model(request)

    async def test_many_calls_at_once(self, model: Model) -> None:
        requests = [self.ask(model, max_tokens=2, seed=seed) for seed in range(self.calls_at_once)]
        for reply in await asyncio.gather(*map(model, requests)):
            self.check(reply)

    async def test_a_cancelled_call_leaves_the_model_usable(self, model: Model) -> None:
        task = asyncio.ensure_future(model(self.ask(model, max_tokens=32)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        self.check(await model(self.ask(model, max_tokens=2)))

    async def test_close_twice_and_open_again(self, unopened: Model) -> None:
        await unopened.close()
        for _ in range(2):
            async with opened(unopened) as model:
                self.check(await model(self.ask(model, max_tokens=2)))
            await unopened.close()
