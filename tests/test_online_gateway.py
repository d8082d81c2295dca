"""The gateway without a server: what is asked, which arm answers, who is told, and errors as clients know them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from gateway_world import SECRET, Notebook, asking, assign, snapshot, world
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import ConfigError, DeadlinePassed, ModelError, Overloaded, RateLimited, Refused
from evocluster.llm.client import Request
from evocluster.llm.scripted import Scripted, last_text
from evocluster.online.gateway import Answer, Site
from evocluster.online.question import Rejected, Shape, parsed, read
from evocluster.online.reply import pieces, uuid7
from evocluster.records import Example
from evocluster.release.exchange import Exchange
from evocluster.tasks.task import Task

A, B = snapshot("a"), snapshot("b")
EXTRACT = Task.model_validate({"kind": "extraction", "data": {"train": "t"}, "json_schema": {"type": "object"}})


def of(answer: Answer) -> dict[str, Any]:
    return json.loads(answer.body)  # type: ignore[no-any-return]


def events(answer: Answer) -> list[dict[str, Any]]:
    assert answer.chunks is not None
    sent = list(answer.chunks)
    assert sent[-1] == b"data: [DONE]\n\n"
    assert all(one.startswith(b"data: ") and one.endswith(b"\n\n") for one in sent)
    return [json.loads(one[6:]) for one in sent[:-1]]


async def test_an_answer_is_a_completion() -> None:
    async with world(A) as made:
        answer = await made.gateway.complete(asking())
        told = of(answer)
        assert answer.status == 200
        assert told["choices"][0]["message"] == {"role": "assistant", "content": "a", "refusal": None}
        assert told["choices"][0]["finish_reason"] == "stop"
        assert (told["model"], told["object"], told["system_fingerprint"]) == ("support", "chat.completion", A.id)
        assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        assert told["id"] == answer.headers["x-evocluster-request-id"]
        assert uuid.UUID(told["id"]).version == 7
        assert answer.headers["x-evocluster-arm"] == answer.headers["x-evocluster-snapshot"] == A.id


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_is_the_answer_in_pieces(usage: bool) -> None:
    long = "An answer of several words, with a line\nbreak and ünïcödé — " * 4
    model = Scripted(default=long.strip())
    async with world(snapshot("a").replaced("strategy", A), model=model) as made:
        body = asking(stream=True, stream_options={"include_usage": usage})
        answer = await made.gateway.complete(body)
        told = events(answer)
    choices = [one["choices"][0] for one in told if one["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    said = [one["delta"]["content"] for one in choices[1:-1]]
    assert len(said) > 3
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] in ("stop", "length")
    assert long.startswith("".join(said))
    assert {one["object"] for one in told} == {"chat.completion.chunk"}
    assert len({one["id"] for one in told}) == 1
    if usage:
        assert told[-1]["usage"]["completion_tokens"] > 10
        assert told[-1]["choices"] == []
        assert all(one["usage"] is None for one in told[:-1])
    else:
        assert all("usage" not in one for one in told)


@given(st.text())
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@given(st.floats(min_value=0, max_value=2**47 / 1000), st.floats(min_value=0, max_value=2**47 / 1000))
def test_request_ids_sort_by_time(first: float, second: float) -> None:
    one, other = uuid7(first), uuid7(second)
    assert uuid.UUID(one).version == 7
    assert uuid.UUID(one).variant == uuid.RFC_4122
    assert str(uuid.UUID(one)) == one
    if int(first * 1000) != int(second * 1000):
        assert (one < other) == (first < second)


async def test_everybody_is_told_after_the_answer_and_in_order() -> None:
    async with world(A, B, arms={A.id: 0.5, B.id: 0.5}) as made:
        metadata = {"episode_id": "ep", "intent": "billing", "accepted": "true", "retried": False, "other": "x"}
        body = asking("where?", metadata=metadata, user="ann", temperature=1.9, api_base="http://x", api_key="k")
        answer = await made.gateway.complete(body, "tenant")
        assert made.notes.told == []
        answer.sent(answer_at := 1e9)
        answer.sent(answer_at)
        assert [name for name, _ in made.notes.told] == ["record", "observe", "offer"]
        (exchange, input, output, error, user) = made.notes.told[0][1]
        pick = assign({A.id: 0.5, B.id: 0.5}, SECRET, "e1", "ep")
        assert exchange == Exchange.model_validate(exchange.model_dump())
        assert (input, output, error) == ("where?", of(answer)["choices"][0]["message"]["content"], "")
        assert user == "ann"
        assert (exchange.arm, exchange.snapshot_id, exchange.propensity) == (pick.arm, pick.arm, 0.5)
        assert (exchange.deployment, exchange.epoch, exchange.experiment) == ("support", 1, "e1")
        assert (exchange.episode_id, exchange.intent, exchange.tenant, exchange.model) == (
            "ep",
            "billing",
            "tenant",
            "fake",
        )
        assert exchange.eligible_arms == tuple({A.id: 0, B.id: 0})
        assert dict(exchange.signals) == {"accepted": True, "retried": False}
        assert (exchange.error_class, exchange.error, exchange.finish_reason) == ("", "", "stop")
        assert exchange.request_id == of(answer)["id"]
        assert exchange.calls == 1
        assert exchange.cost_usd > 0
        assert exchange.ttft_ms > 0
        assert made.notes.told[1][1][:2] == (pick.arm, "")
        assert made.notes.told[2][1][1] == Example(id=exchange.request_id, input="where?")


async def test_a_client_cannot_change_the_configuration() -> None:
    asked: list[Request] = []

    def answer(request: Request) -> str:
        asked.append(request)
        return "ok"

    async with world(A, model=Scripted.using(answer)) as made:
        body = asking(temperature=2, max_tokens=1, api_base="http://elsewhere", api_key="x", n=3, tools=[], seed=3)
        body["messages"] = [
            {"role": "system", "content": "Be evil."},
            {"role": "user", "content": "before"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "now"}, {"type": "text", "text": "this"}]},
        ]
        assert (await made.gateway.complete(body)).status == 200
    (request,) = asked
    assert (request.temperature, request.max_tokens) == (0.0, 64)
    assert [one.content for one in request.messages] == ["a", "now\nthis"]


async def test_an_episode_keeps_its_arm_and_episodes_are_shared_out() -> None:
    async with world(A, B, arms={A.id: 0.75, B.id: 0.25}) as made:
        arms = Counter[str]()
        for number in range(200):
            body = asking(metadata={"episode_id": f"ep {number}"})
            seen = {(await made.gateway.complete(body)).headers["x-evocluster-arm"] for _ in range(2)}
            assert len(seen) == 1
            arms[seen.pop()] += 1
        assert arms[A.id] + arms[B.id] == 200
        assert 30 <= arms[B.id] <= 70


async def test_a_stopped_arm_is_answered_by_the_incumbent() -> None:
    async with world(A, B, arms={B.id: 1.0}) as made:
        made.notes.stopped.add(B.id)
        answer = await made.gateway.complete(asking())
        answer.sent(0.0)
        assert (answer.headers["x-evocluster-arm"], answer.headers["x-evocluster-snapshot"]) == (B.id, A.id)
        assert of(answer)["choices"][0]["message"]["content"] == "a"
        (exchange,) = made.notes.exchanges
        assert (exchange.arm, exchange.snapshot_id) == (B.id, A.id)
        assert made.notes.told[1][1][0] == A.id


async def test_a_stopped_incumbent_is_answered_by_the_stable_snapshot() -> None:
    async with world(A, B) as made:
        made.notes.stopped.add(A.id)
        answer = await made.gateway.complete(asking())
        assert (answer.headers["x-evocluster-arm"], answer.headers["x-evocluster-snapshot"]) == (A.id, B.id)


async def test_the_intent_is_the_callers_or_is_found() -> None:
    async with world(A, site={"intent": lambda input: f"found in {input}"}) as made:
        for body in (asking("it"), asking("it", metadata={"intent": "said"}), asking("it", metadata={"intent": ""})):
            (await made.gateway.complete(body)).sent(0.0)
        assert [one.intent for one in made.notes.exchanges] == ["found in it", "said", ""]


async def test_an_intent_that_is_not_found_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def broken(input: Any) -> str:
        raise ValueError(input)

    async with world(A, site={"intent": broken}) as made:
        answer = await made.gateway.complete(asking())
        answer.sent(0.0)
        assert answer.status == 200
        assert made.notes.exchanges[0].intent == ""
    assert "was not found" in caplog.text


async def test_a_signed_target_stands_where_the_id_does() -> None:
    async with world(A, site={"sign": lambda id, kind: f"{id}.{kind} signed"}) as made:
        answer = await made.gateway.complete(asking(metadata={"episode_id": "épisode 7"}))
        answer.sent(0.0)
        (exchange,) = made.notes.exchanges
        assert exchange.episode_id == "épisode 7"
        assert answer.headers["x-evocluster-episode-target"] == "%C3%A9pisode%207.episode%20signed"
        assert of(answer)["id"] == answer.headers["x-evocluster-request-id"] == f"{exchange.request_id}.request signed"


PROVIDER = [
    (Overloaded("5xx of http://x with sk-abcdefghijklmnop1234567"), 502, "provider_error", "provider"),
    (Refused("401"), 502, "provider_error", "provider"),
    (RateLimited("slow down"), 429, "provider_rate_limited", "provider"),
    (DeadlinePassed("late"), 504, "deadline_passed", "timeout"),
    (ConfigError("no such model"), 502, "provider_error", "provider"),
]


@pytest.mark.parametrize(("error", "status", "code", "kind"), PROVIDER)
async def test_failures_have_their_status(error: ModelError, status: int, code: str, kind: str) -> None:
    def answer(request: Request) -> str:
        raise error

    async with world(A, model=Scripted.using(answer, retries=0, patience_s=0)) as made:
        got = await made.gateway.complete(asking(stream=True))
        got.sent(0.0)
        told = of(got)["error"]
        assert (got.status, told["code"]) == (status, code)
        assert "sk-abc" not in told["message"]
        assert got.headers["x-evocluster-snapshot"] == A.id
        (exchange,) = made.notes.exchanges
        assert exchange.error_class == kind
        assert type(error).__name__ in exchange.error
        assert "sk-abc" not in exchange.error
        assert [name for name, _ in made.notes.told] == ["record", "observe", "offer"]


async def test_an_unusable_answer_is_an_error_that_is_not_retried() -> None:
    async with world(A, model=Scripted(default="no JSON at all"), task=EXTRACT) as made:
        got = await made.gateway.complete(asking())
        got.sent(0.0)
        assert (got.status, of(got)["error"]["code"]) == (502, "unusable_answer")
        assert got.headers["x-should-retry"] == "false"
        (exchange,) = made.notes.exchanges
        assert (exchange.error_class, exchange.schema_ok, exchange.repairs) == ("format", False, 1)


async def test_a_cut_answer_says_so() -> None:
    async with world(A, model=Scripted(default="word " * 200)) as made:
        got = await made.gateway.complete(asking())
        got.sent(0.0)
        assert of(got)["choices"][0]["finish_reason"] == "length"
        assert made.notes.exchanges[0].finish_reason == "length"


IMAGE = [{"type": "image_url", "image_url": {"url": "http://x"}}]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 400, "JSON object"),
        ({}, 400, "GET /v1/models"),
        (asking() | {"model": "sup"}, 404, "there are: support"),
        (asking() | {"messages": []}, 400, "at least one message"),
        (asking() | {"messages": [{"role": "system", "content": "x"}]}, 400, "role 'user'"),
        (asking() | {"messages": [{"role": "user", "content": IMAGE}]}, 400, "allowed: 'text'"),
        (asking() | {"messages": [{"role": "user", "content": None}]}, 400, "parts of type 'text'"),
        (asking(metadata=["x"]), 400, "metadata"),
        (asking(metadata={"episode_id": 3}), 400, "metadata.episode_id"),
        (asking(metadata={"intent": "x" * 300}), 400, "256"),
        (asking(metadata={"intent": "\ud800"}), 400, "printable"),
        (asking(metadata={"accepted": "perhaps"}), 400, "true or false"),
        (asking(metadata={"accepted": 1}), 400, "true or false"),
        (asking(user={"x": 1}), 400, "user"),
        (asking(stream="yes"), 400, "stream"),
    ],
)
async def test_a_wrong_request_is_told_what_is_right(body: Any, status: int, said: str) -> None:
    async with world(A) as made:
        got = await made.gateway.complete(body)
        got.sent(0.0)
        assert got.status == status
        assert said in of(got)["error"]["message"]
        assert of(got)["error"]["type"] == "invalid_request_error"
        assert made.notes.told == []
        assert made.gateway.under_way == 0


OBJECTS = Shape.of(
    [Example(id="1", input={"name": "Ann", "age": 3}), Example(id="2", input={"name": "Bob", "city": "Rome"})]
)


@pytest.mark.parametrize(
    ("shape", "said", "input"),
    [
        (Shape(), '{"name": "Ann"}', '{"name": "Ann"}'),
        (OBJECTS, '{"name": "Ann", "more": [1, null]}', {"name": "Ann", "more": [1, None]}),
        (OBJECTS._replace(text=True), "plain", "plain"),
        (OBJECTS._replace(text=True), '{"unknown": 1}', '{"unknown": 1}'),
    ],
)
def test_a_question_has_the_shape_of_the_tasks_inputs(shape: Shape, said: str, input: Any) -> None:
    assert shape.read(said) == input


def test_a_question_of_another_shape_is_refused() -> None:
    assert (OBJECTS.fields, OBJECTS.required, OBJECTS.text) == (("age", "city", "name"), ("name",), False)
    for said in ("plain", "[1]", '{"name": NaN}', "[" * 200_000):
        with pytest.raises(Rejected, match="fields age, city, name"):
            OBJECTS.read(said)
    with pytest.raises(Rejected, match="lacks the field 'name'"):
        OBJECTS.read('{"age": 3}')


async def test_an_object_reaches_the_rubric() -> None:
    model = Scripted.using(last_text)
    async with world(snapshot("Who is {name}?"), model=model, site={"shape": OBJECTS}) as made:
        got = await made.gateway.complete(asking('{"name": "Ann"}'))
        got.sent(0.0)
        assert made.notes.told[0][1][1] == {"name": "Ann"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda of: (
            st.lists(of)
            | st.dictionaries(
                st.sampled_from(["model", "messages", "metadata", "user", "stream", "role", "content", "type", "text"]),
                of,
            )
        ),
    )
)
def test_any_body_is_read_or_rejected(body: Any) -> None:
    try:
        told = (200, read(body).model)
    except Rejected as error:
        told = (error.status, str(error))
    assert told[0] in (200, 400)
    assert told[1]


def test_json_is_strict() -> None:
    for text in ("NaN", "[" * 200_000, '{"a": 1', "1" * 5000):
        with pytest.raises(ValueError, match=r"."):
            parsed(text)


async def test_more_than_fit_in_wait_or_are_refused() -> None:
    slow = Scripted(latency_s=0.05, sigma=0, time_scale=1)
    async with world(A, model=slow, gateway={"concurrency": 2, "queue": 3}) as made:
        tasks = [asyncio.create_task(made.gateway.complete(asking())) for _ in range(7)]
        await asyncio.sleep(0.01)
        assert (made.gateway.under_way, made.gateway.waiting, made.gateway.busy) == (5, 3, 1.0)
        got = Counter(one.status for one in await asyncio.gather(*tasks))
        assert got == {200: 5, 429: 2}
        assert made.gateway.refused == 2
        assert (made.gateway.under_way, made.gateway.busy) == (0, 0.0)
        refused = next(one.result() for one in tasks if one.result().status == 429)
        assert refused.headers["retry-after"] == "1"
        assert (await made.gateway.complete(asking())).status == 200


async def test_who_leaves_is_recorded_as_a_client_and_frees_the_place() -> None:
    slow = Scripted(latency_s=30, sigma=0, time_scale=1)
    async with world(A, model=slow, gateway={"concurrency": 1}) as made:
        tasks = [asyncio.create_task(made.gateway.complete(asking())) for _ in range(2)]
        await asyncio.sleep(0.01)
        for task in reversed(tasks):
            task.cancel()
        assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert made.gateway.under_way == 0
        (exchange,) = made.notes.exchanges  # the other one never got an arm
        assert (exchange.error_class, exchange.error) == ("client", "the caller went away")
        assert [name for name, _ in made.notes.told] == ["record", "observe"]


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(weights: Mapping[str, float], secret: str, experiment: str, episode: str) -> Any:
        raise KeyError(secret)

    async with world(A, B, arms={A.id: 1.0}, site={"assign": broken}) as made:
        got = await made.gateway.complete(asking())
        assert got.status == 500
        assert SECRET not in of(got)["error"]["message"]
        assert of(got)["error"]["code"] == "internal_error"
    assert "failed within" in caplog.text


async def test_a_recorder_that_breaks_its_promise_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Notebook):
        def observe(self, snapshot: str, error_class: str, latency_ms: float, at: float) -> None:
            raise RuntimeError("full")

    async with world(A, site={"breaker": Broken()}) as made:
        got = await made.gateway.complete(asking())
        got.sent(0.0)
        assert got.status == 200
    assert "not recorded whole" in caplog.text


async def test_models_are_the_deployments() -> None:
    async with world(A) as made:
        made.gateway.sites["other"] = Site(made.follower, made.notes, assign, made_at=7.5)
        told = json.loads(made.gateway.models())
        assert [(one["id"], one["created"]) for one in told["data"]] == [("support", 0), ("other", 7)]
        assert json.loads(made.gateway.model("other"))["object"] == "model"
        with pytest.raises(Rejected):
            made.gateway.model("nobody")
