"""The scripted model: rules, determinism, failures as told."""

from __future__ import annotations

import pickle
import statistics
from collections.abc import AsyncIterator

import pytest
from contract_llm import ModelContract, chat, completion, opened
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.errors import DeadlinePassed, Overloaded
from evocluster.llm.client import Message, Model, Request
from evocluster.llm.prices import Price
from evocluster.llm.scripted import Rule, Scripted, tokens


def shout(request: Request) -> str:
    return request.messages[-1].content.upper()


class TestContract(ModelContract):
    @pytest.fixture
    def unopened(self) -> Model:
        return Scripted(default="ok this answer has a few more words")

    @pytest.fixture
    async def model(self, unopened: Model) -> AsyncIterator[Model]:
        async with opened(unopened) as model:
            yield model


async def test_the_first_rule_that_matches_the_last_user_text_answers() -> None:
    model = Scripted(
        rules=(Rule(contains="refund", text="money"), Rule(pattern=r"\bpars?cel\b", text="post")), default="none"
    )
    turns = (
        Message(role="user", content="a refund please"),
        Message(role="assistant", content="refund?"),
        Message(role="user", content="no, my parcel"),
    )
    assert (await model(chat("I want a refund for the parcel"))).text == "money"
    assert (await model(Request(model="m", messages=turns))).text == "post"
    assert (await model(completion("where is it"))).text == "none"
    assert model.calls == 3


@pytest.mark.parametrize("rule", [{"text": "x"}, {"text": "x", "contains": "a", "pattern": "b"}])
def test_a_rule_has_exactly_one_condition(rule: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        Rule(**rule)


async def test_an_answer_takes_over_what_the_pattern_found() -> None:
    model = Scripted(rules=(Rule(pattern=r"(?P<n>\d+) days(?P<late>, late)?", text=r'{"days": \g<n>}\g<late>'),))
    assert (await model(chat("within 30 days or 40"))).text == '{"days": 30}'
    assert (await model(chat("after 7 days, late"))).text == '{"days": 7}, late'


@pytest.mark.parametrize("rule", [{"contains": "a"}, {"pattern": "(?P<m>a)"}])
def test_a_group_that_the_pattern_lacks_is_named(rule: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"speaks of group 'n'; groups of the pattern: (none|m); write \(\?P<n>"):
        Rule(text=r"\g<n>", **rule)


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(ValidationError, match=r"'\(' is not a regular expression"):
        Rule(pattern="(", text="x")


async def test_using_a_function_of_the_request_also_after_pickling() -> None:
    model = pickle.loads(pickle.dumps(Scripted.using(shout, latency_s=1.0)))
    reply = await model(chat("hello"))
    assert reply.text == "HELLO"
    assert model.latency_s == 1.0
    assert model.identity != Scripted(latency_s=1.0).identity


async def test_latency_is_simulated_reproducible_and_of_the_median_asked_for() -> None:
    model = Scripted(latency_s=0.5, sigma=0.4)
    seconds = [(await model(chat(str(n)))).seconds for n in range(301)]
    again = [(await model(chat(str(n)))).seconds for n in range(301)]
    assert seconds == again
    assert statistics.median(seconds) == pytest.approx(0.5, rel=0.12)
    assert len(set(seconds)) == 301


async def test_waiting_for_real_ends_at_the_deadline() -> None:
    with pytest.raises(DeadlinePassed, match="timeout_s"):
        await Scripted(latency_s=100, time_scale=1, timeout_s=0.01)(chat())


async def test_failures_come_at_the_rate_asked_for_and_are_the_same_in_every_run() -> None:
    async def failures(model: Scripted) -> list[int]:
        failed = []
        for n in range(400):
            try:
                await model(chat(str(n % 200)))
            except Overloaded:
                failed.append(n)
        return failed

    first = await failures(Scripted(fail=0.3))
    assert first == await failures(Scripted(fail=0.3))
    assert 80 <= len(first) <= 160
    both = {n for n in first if n < 200} & {n - 200 for n in first if n >= 200}
    assert len(both) < len(first) / 3, "a repeated request must not fail for ever"


async def test_price_is_from_its_tokens() -> None:
    price = Price(prompt_usd_per_mtok=10, completion_usd_per_mtok=20)
    reply = await Scripted(price=price, default="one two three")(chat("a b c d e f"))
    assert (reply.prompt_tokens, reply.completion_tokens) == (8, 4)
    assert reply.usd == pytest.approx((8 * 10 + 4 * 20) / 1e6)


async def test_stop_strings_end_the_text() -> None:
    reply = await Scripted(default="one two\nthree")(chat(stop=("\n",)))
    assert (reply.text, reply.finish_reason) == ("one two", "stop")


@given(text=st.text(max_size=80), limit=st.integers(1, 40))
def test_truncation_keeps_a_prefix_within_the_limit(text: str, limit: int) -> None:
    import asyncio

    reply = asyncio.run(Scripted(default=text)(chat(max_tokens=limit)))
    assert text.startswith(reply.text)
    assert reply.completion_tokens <= limit
    assert (reply.finish_reason == "length") == (tokens(text) > limit)


@pytest.mark.parametrize("setting", [{"fail": 1.5}, {"timeout_s": 0}, {"max_concurrency": -1}, {"retries": 99}])
def test_settings_out_of_bounds_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Scripted.model_validate({"kind": "scripted", **setting})
