"""The direct client against a loopback server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from contract_llm import ModelContract, chat, completion, opened
from hypothesis import given
from hypothesis import strategies as st
from leased import leased
from pydantic import ValidationError
from servers import FaultServer, Mode

from evocluster.errors import (
    BadReply,
    DeadlinePassed,
    MissingModel,
    ModelError,
    Overloaded,
    PriceError,
    RateLimited,
    Refused,
    Unreachable,
)
from evocluster.llm import wire
from evocluster.llm.client import Model
from evocluster.llm.direct import BODY_LIMIT, Direct
from evocluster.llm.limits import Limited
from evocluster.llm.prices import Price

PRICE = Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=2)
KEY = "sk-planted-0123456789abcdef"


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


def direct(url: str, **settings: Any) -> Direct:
    return Direct(**{"base_url": url, "model": "tiny", "price": PRICE, "timeout_s": 5, **settings})


class TestContract(ModelContract):
    settings: dict[str, Any] = {"completion": True, "choices": "structured_outputs", "json_schema": True}  # noqa: RUF012

    @pytest.fixture
    def unopened(self, server: FaultServer) -> Model:
        return direct(server.url, **self.settings)

    @pytest.fixture
    async def model(self, unopened: Model) -> AsyncIterator[Model]:
        async with opened(unopened) as model:
            yield model


class TestContractWithoutAbilities(TestContract):
    settings: dict[str, Any] = {}  # noqa: RUF012


class TestContractChoicesInsideJson(TestContract):
    settings: dict[str, Any] = {"choices": "json_schema"}  # noqa: RUF012


FAULTS: list[tuple[Mode, type[ModelError], str]] = [
    ("html", BadReply, "HTML page.*base_url"),
    ("not_json", BadReply, "not JSON"),
    ("empty_choices", BadReply, "without a choice"),
    ("null_content", BadReply, "NoneType"),
    ("no_usage", BadReply, "usage"),
    ("zero_usage", BadReply, "usage"),
    ("error_500", Overloaded, "500: boom"),
    ("error_429", RateLimited, "429: slow down"),
    ("error_401", Refused, "401.*key_env"),
    ("error_400", BadReply, "context length"),
    ("cut", Unreachable, "no connection"),
    ("redirect", Refused, "redirect"),
]


@pytest.mark.parametrize(("mode", "error", "says"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_each_fault_is_its_own_error_after_one_request(
    server: FaultServer, mode: Mode, error: type[ModelError], says: str
) -> None:
    server.mode = mode
    async with opened(direct(server.url)) as model:
        with pytest.raises(error, match=says) as caught:
            await model(chat())
    assert server.requests == 1
    assert type(caught.value) is error
    assert "tiny" in str(caught.value) or server.url in str(caught.value)


@pytest.mark.parametrize("mode", ["drip", "hang"])
async def test_the_deadline_holds_however_slowly_bytes_arrive(server: FaultServer, mode: Mode) -> None:
    server.mode = mode
    started = time.monotonic()
    async with opened(direct(server.url, timeout_s=0.35)) as model:
        with pytest.raises(DeadlinePassed, match=r"timeout_s=0\.35"):
            await model(chat())
    assert time.monotonic() - started < 1.3


async def test_nobody_listens_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        async with opened(direct(url)) as model:
            with pytest.raises(Unreachable, match="is the endpoint running"):
                await model(chat())


async def test_an_endless_answer_is_cut_off(server: FaultServer) -> None:
    server.answer = lambda body: "x" * (BODY_LIMIT + 1)
    async with opened(direct(server.url)) as model:
        with pytest.raises(BadReply, match="cut off"):
            await model(chat())


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("soon", None)])
async def test_retry_after_is_read(server: FaultServer, header: str, seconds: float | None) -> None:
    server.mode, server.retry_after = "error_429", header
    async with opened(direct(server.url)) as model:
        with pytest.raises(RateLimited) as caught:
            await model(chat())
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_s == seconds


def test_retry_after_may_be_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert wire.retry_after_s("Thu, 01 Jan 2026 12:00:30 GMT", now) == 30.0
    assert wire.retry_after_s("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0.0
    assert wire.retry_after_s("nan", now) is None


async def test_retries_are_ours_alone_and_counted_at_the_server(server: FaultServer) -> None:
    async def no_pause(seconds: float) -> None: ...

    async with opened(direct(server.url)) as model, leased() as lease:
        limited = Limited(model, lease, 30, 3, np.random.default_rng(1), sleep=no_pause)
        server.then(["error_429", "error_500"])
        assert (await limited(chat())).text.startswith("ok")
        assert server.requests == limited.attempts == 3
        server.mode = "error_500"
        with pytest.raises(Overloaded):
            await limited(chat())
        assert server.requests == limited.attempts == 3 + 4


async def test_two_hundred_calls_are_in_flight_at_once(server: FaultServer) -> None:
    server.latency = lambda: 0.3
    async with opened(direct(server.url)) as model:
        replies = await asyncio.gather(*(model(chat(seed=n)) for n in range(200)))
    assert server.peak == 200
    assert len(replies) == 200


async def test_cancelling_a_call_reaches_the_server(server: FaultServer) -> None:
    server.mode = "hang"
    async with opened(direct(server.url)) as model:
        task = asyncio.ensure_future(model(chat()))
        await asyncio.wait_for(server.arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.idle.wait(), 5)
    assert server.in_flight == 0


async def test_what_is_sent(server: FaultServer) -> None:
    extra = {"top_k": 5, "temperature": None}
    async with opened(direct(server.url, completion=True, headers={"X-Team": "blue"}, extra=extra)) as model:
        await model(chat("hi", max_tokens=9, stop=("\n",), seed=4, replicate=2, temperature=0.5))
        await model(completion("Once", max_tokens=3))
    first, second = server.bodies
    assert first == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "stop": ["\n"],
        "seed": 4 + 2 * 1_000_003,
        "top_k": 5,
    }
    assert (second["prompt"], second["seed"]) == ("Once", 0)
    assert server.paths == ["/v1/chat/completions", "/v1/completions"]
    assert server.headers[0]["X-Team"] == "blue"


async def test_compute_time_of_the_endpoint_stands_for_the_latency(server: FaultServer) -> None:
    server.timings = {"prompt_ms": 30.0, "predicted_ms": 12.5}
    server.latency = lambda: 0.1
    async with opened(direct(server.url)) as model:
        assert (await model(chat())).seconds == pytest.approx(0.0425)
        server.timings = None
        assert (await model(chat())).seconds >= 0.1


async def test_price_includes_what_the_provider_cached() -> None:
    price = Price(prompt_usd_per_mtok=10, completion_usd_per_mtok=20, cached_prompt_usd_per_mtok=1)
    assert price.cost(100, 10, 40) == pytest.approx((60 * 10 + 40 * 1 + 10 * 20) / 1e6)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}
    assert wire.counted(usage, "text", "m") == (100, 10, 40)


async def test_without_key_env_no_key_is_sent(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with opened(direct(server.url)) as model:
        await model(chat())
    assert "Authorization" not in server.headers[0]
    assert KEY not in str(server.headers)


async def test_the_key_goes_to_its_host_and_nowhere_else(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TINY_KEY", KEY + "\n")
    async with FaultServer() as foreign:
        server.elsewhere = f"{foreign.url}/chat/completions"
        server.then(["ok", "redirect", "error_401"])
        said = []
        async with opened(direct(server.url, key_env="TINY_KEY")) as model:
            await model(chat())
            said.append(repr(model))
            for _ in range(2):
                with pytest.raises(Refused) as caught:
                    await model(chat())
                said.append(str(caught.value))
        assert foreign.requests == 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(said) + caplog.text + model.identity


async def test_a_missing_key_and_an_unknown_price_are_named_before_anything_is_sent(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINY_KEY", raising=False)
    with pytest.raises(MissingModel, match=r"'tiny'.*'TINY_KEY'.*export TINY_KEY"):
        await direct(server.url, key_env="TINY_KEY").open()
    with pytest.raises(PriceError, match=r"(?s)'tiny'.*price:\n +prompt_usd_per_mtok"):
        await direct(server.url, price=None).open()
    assert server.requests == 0


async def test_a_call_before_open_says_so(server: FaultServer) -> None:
    with pytest.raises(ModelError, match="not open"):
        await direct(server.url)(chat())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/v1", "not an http"),
        ("host:8000/v1", "not an http"),
        ("http://user:pw@host/v1", "key_env"),
        ("http://host/v1?key=1", "query"),
        ("http://169.254.169.254/latest", "link-local"),
        ("http://2852039166/latest", "link-local"),
        ("http://0xa9fea9fe/", "link-local"),
        ("http://[fe80::1]/v1", "link-local"),
        ("http://[::ffff:169.254.169.254]/v1", "link-local"),
        ("http://metadata.google.internal/v1", "link-local"),
    ],
)
def test_urls_that_may_not_be_called(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        direct(url)
    assert ":pw@" not in str(caught.value.errors()[0]["msg"])


def test_secrets_do_not_belong_in_headers() -> None:
    with pytest.raises(ValidationError, match="key_env"):
        direct("http://host/v1", headers={"authorization": "Bearer x"})


def test_identity_tells_apart_what_answers_differently() -> None:
    plain = direct("http://host/v1/")
    assert plain.identity == "direct:http://host/v1:tiny"
    same = [direct("http://host/v1", timeout_s=9, retries=1), direct("http://host/v1", price=None)]
    other = [
        direct("http://host/v1", extra={"top_k": 1}),
        direct("http://host/v2"),
        direct("http://host/v1", model="b"),
    ]
    assert {model.identity for model in same} == {plain.identity}
    assert len({model.identity for model in [plain, *other]}) == 4


@pytest.mark.parametrize(
    ("mode", "field"),
    [
        ("grammar", {"grammar": 'root ::= "a\\"b" | "c\\\\d\\n\\x07"'}),
        ("guided_choice", {"guided_choice": ['a"b', "c\\d\n\x07"]}),
        ("structured_outputs", {"structured_outputs": {"choice": ['a"b', "c\\d\n\x07"]}}),
    ],
)
def test_choices_as_each_endpoint_wants_them(mode: wire.Choices, field: dict[str, Any]) -> None:
    assert wire.constraint(chat(choices=('a"b', "c\\d\n\x07")), mode) == field


def test_a_cut_choice_stays_as_it_is_and_a_wrong_one_is_refused() -> None:
    assert wire.unwrapped('{"answer": "bi', "length", "m") == '{"answer": "bi'
    with pytest.raises(BadReply, match="choices: none"):
        wire.unwrapped("billing", "stop", "m")


def test_an_upstream_failure_inside_a_200() -> None:
    with pytest.raises(RateLimited):
        wire.read(b'{"error": {"code": 429, "message": "busy"}}', True, "m")
    with pytest.raises(BadReply, match="busy"):
        wire.read(b'{"error": "busy"}', True, "m")


FIELDS = ["choices", "message", "content", "usage", "prompt_tokens", "completion_tokens", "error", "code", "timings"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_arrives_is_an_answer_with_usage_or_a_model_error(body: bytes) -> None:
    try:
        answer = wire.read(body, True, "m")
    except ModelError:
        return
    assert isinstance(answer.text, str)
    assert answer.prompt_tokens > 0


async def test_an_answer_that_repeats_the_key_is_not_kept(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN_KEY", "a-plain-key-0123")
    server.answer = lambda body: "you sent a-plain-key-0123"
    async with opened(direct(server.url, key_env="PLAIN_KEY")) as model:
        with pytest.raises(Refused, match="repeats the key") as caught:
            await model(chat())
    assert "a-plain-key" not in str(caught.value)


def test_no_half_of_a_key_is_left_where_a_refusal_is_cut() -> None:
    key = "house.key.0123456789.of-no-known-form"
    for padding in (*range(150, 210), *range(3950, 4010), wire.SAID_BYTES - 5):
        said = str(wire.refusal(403, None, b" " * padding + key.encode(), "tiny", key))
        assert key[:12] not in said
        assert key[-12:] not in said
