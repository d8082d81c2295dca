"""The web server: real clients, streams, keys, limits, clients that are slow or gone, no answer of two snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import signal
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from gateway_world import World, asking, rubric, served, snapshot, world

from evocluster.errors import ConfigError
from evocluster.llm.client import Request
from evocluster.llm.scripted import Scripted
from evocluster.online import door
from evocluster.online.door import is_loopback
from evocluster.online.gateway import Answer
from evocluster.online.question import Rejected
from evocluster.online.server import Web, address, bind, serve
from evocluster.online.state import push
from evocluster.release.settings import Gateway as Limits
from evocluster.release.snapshot import Prompt, Snapshot

A, B = snapshot("a"), snapshot("b")
KEY = "a-key-of-somebody"


class Keys:
    """One key, until it is revoked."""

    any = True

    def check(self, header: str | None) -> str | None:
        return (
            "somebody" if self.any and hmac.compare_digest((header or "").encode(), f"Bearer {KEY}".encode()) else None
        )


class Received(NamedTuple):
    status_code: int
    payload: dict[str, Any]


class Feedback:
    """Refuses metrics that it does not know."""

    def __init__(self, deployment: str = "support") -> None:
        self.deployment = deployment
        self.accepted: list[tuple[dict[str, Any], str]] = []

    def owns(self, body: Any) -> bool:
        return isinstance(body, dict) and body.get("deployment", "support") == self.deployment

    def accept(self, body: Any, now: float, who: str = "") -> Received:
        if body.get("metric") != "correct":
            return Received(422, {"error": {"message": "unknown metric"}})
        self.accepted.append((body, who))
        return Received(202, {"feedback_id": body["feedback_id"], "status": "accepted"})


def slowly(seconds: float) -> Scripted:
    return Scripted(default="ok", latency_s=seconds, sigma=0, time_scale=1)


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def test_the_openai_client_asks_and_streams() -> None:
    async with served(A) as made:
        async with openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="any") as client:
            got = await client.chat.completions.create(
                model="support",
                messages=[{"role": "user", "content": "hello"}],
                temperature=0.5,
                metadata={"intent": "billing"},
                user="ann",
            )
            assert got.choices[0].message.content == "a"
            assert (got.model, got.system_fingerprint, got.choices[0].finish_reason) == ("support", A.id, "stop")
            assert got.usage is not None
            assert got.usage.total_tokens == 5
            stream = await client.chat.completions.create(
                model="support",
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [one async for one in stream]
            assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "a"
            assert chunks[-1].usage is not None
            assert [one.id async for one in client.models.list()] == ["support"]
            assert (await client.models.retrieve("support")).owned_by == "evocluster"
            raw = await client.chat.completions.with_raw_response.create(
                model="support", messages=[{"role": "user", "content": "hello"}]
            )
            assert raw.headers["x-evocluster-snapshot"] == A.id
            assert raw.headers["x-evocluster-request-id"] == raw.parse().id
        await until(lambda: len(made.notes.exchanges) == 3)
        assert [one.intent for one in made.notes.exchanges] == ["billing", "", ""]
        assert all(one.ttft_ms > 0 for one in made.notes.exchanges)


async def test_the_synchronous_client_and_feedback() -> None:
    feedback, other = Feedback(), Feedback("other")

    def ask(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            got = client.chat.completions.create(model="support", messages=[{"role": "user", "content": "hello"}])
            told = {"feedback_id": "f1", "target": {"request_id": got.id}, "metric": "correct", "value": True}
            reply = client.post("/feedback", body=told, cast_to=httpx.Response)
            assert (reply.status_code, reply.json()["feedback_id"]) == (202, "f1")
            client.post("/feedback", body=told | {"deployment": "other"}, cast_to=httpx.Response)
            with pytest.raises(openai.UnprocessableEntityError):
                client.post("/feedback", body=told | {"metric": "nicer"}, cast_to=httpx.Response)
            stream = client.chat.completions.create(
                model="support", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            assert "".join(one.choices[0].delta.content or "" for one in stream) == "a"

    async with served(A, web={"feedback": (other, feedback)}) as made:
        await asyncio.to_thread(ask, made.url)
    assert [(one["metric"], who) for one, who in feedback.accepted] == [("correct", "")]
    assert [one["deployment"] for one, _ in other.accepted] == ["other"]


@pytest.mark.slow
# litellm ignores it when it is imported, which lasts for that one test: pytest gives each its own filters.
@pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")
async def test_litellm_is_a_client_too() -> None:
    def ask(url: str) -> None:
        import litellm

        messages = [{"role": "user", "content": "hello"}]
        got = litellm.completion(model="openai/support", messages=messages, api_base=f"{url}/v1", api_key="any")
        assert got.choices[0].message.content == "a"
        assert got.usage.total_tokens == 5
        parts = litellm.completion(
            model="openai/support", messages=messages, api_base=f"{url}/v1", api_key="any", stream=True
        )
        assert "".join(one.choices[0].delta.content or "" for one in parts) == "a"

    async with served(A) as made:
        await asyncio.to_thread(ask, made.url)


async def test_errors_are_those_that_clients_know() -> None:
    def broken(request: Request) -> str:
        from evocluster.errors import DeadlinePassed, Overloaded, RateLimited

        raise {"504": DeadlinePassed("late"), "502": Overloaded("5xx"), "429": RateLimited("slow down")}[
            request.messages[-1].content
        ]

    model = Scripted.using(broken, retries=0, patience_s=0)
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(served(A, model=model))
        made_client = openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="any", max_retries=0)
        client = await stack.enter_async_context(made_client)
        for asked, kind in (
            ("504", openai.InternalServerError),
            ("502", openai.InternalServerError),
            ("429", openai.RateLimitError),
        ):
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(
                    model="support", messages=[{"role": "user", "content": asked}], stream=asked == "502"
                )
            assert str(caught.value.status_code) == asked
        with pytest.raises(openai.NotFoundError, match="there are: support"):
            await client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
        image: Any = [{"type": "image_url", "image_url": {"url": "http://x"}}]
        with pytest.raises(openai.BadRequestError, match="allowed: 'text'"):
            await client.chat.completions.create(model="support", messages=[{"role": "user", "content": image}])
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/nowhere", {}, b"", 404),
        ("GET", "/v1/chat/completions", {}, b"", 405),
        ("POST", "/v1/chat/completions", {"content-type": "application/json"}, b"{", 400),
        ("POST", "/v1/chat/completions", {"content-type": "text/plain"}, b"{}", 400),
        ("POST", "/v1/chat/completions", {"content-type": "application/json"}, b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", {"content-type": "application/json", "host": "evil.example"}, b"{}", 400),
        ("POST", "/v1/feedback", {"content-type": "application/json"}, b"{}", 404),
        ("POST", "/internal/epoch", {"content-type": "application/json"}, b'{"deployment": "support"}', 401),
        ("POST", "/internal/epoch", {"content-type": "application/json"}, b"[]", 401),
    ],
)
async def test_what_is_no_request_of_ours(
    method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with served(A) as made, httpx.AsyncClient(base_url=made.url) as client:
        got = await client.request(method, path, headers=headers, content=body)
        assert got.status_code == status
        assert got.json()["error"]["message"]


async def test_a_wrong_key_is_let_into_nothing() -> None:
    async with served(A, web={"keys": Keys(), "feedback": [Feedback()]}) as made:
        async with httpx.AsyncClient(base_url=made.url) as client:
            for key in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"):
                headers = {"authorization": key} if key else {}
                for method, path in (
                    ("POST", "/v1/chat/completions"),
                    ("GET", "/v1/models"),
                    ("GET", "/v1/models/support"),
                    ("POST", "/v1/feedback"),
                ):
                    got = await client.request(method, path, headers=headers, json=asking())
                    assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")
            right = {"authorization": f"Bearer {KEY}"}
            assert (await client.post("/v1/chat/completions", headers=right, json=asking())).status_code == 200
            assert (await client.get("/health")).json() == {"ready": True, "ledger": True}
            known = (await client.get("/health", headers=right)).json()
            assert known["deployments"][0]["epoch"] == 1
        async with openai.AsyncOpenAI(base_url=f"{made.url}/v1", api_key="wrong") as wrong:
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
        await until(lambda: bool(made.notes.exchanges))
        assert [one.tenant for one in made.notes.exchanges] == ["somebody"]
        assert made.model.calls == 1


async def test_without_a_key_only_this_machine_is_listened_to() -> None:
    async with world(A) as made:
        with pytest.raises(ConfigError, match="evocluster keys add"):
            bind(made.web, "0.0.0.0")
        with pytest.raises(ConfigError, match="evocluster keys add"):
            await serve(made.web, "0.0.0.0", 0)
        keys = Keys()
        public = Web(made.gateway, keys=keys)
        keyed = bind(public, "0.0.0.0")
        keys.any = False  # the last one is revoked: nobody gets in, whatever host he names
        with pytest.raises(Rejected, match="no valid API key"):
            public.door.tenant({"host": "127.0.0.1", "authorization": f"Bearer {KEY}"})
        with pytest.raises(ConfigError, match="choose another"):
            bind(made.web, "127.0.0.1", keyed.getsockname()[1])
        with pytest.raises(ConfigError, match="evocluster keys add"):
            await serve(made.web, sock=keyed)
        keyed.close()
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1", "10.0.0.1", "example.org", "")] == [
        *(True, True, True),
        *(False, False, False),
    ]


async def test_health_tells_how_things_are() -> None:
    more = {"records": {"waiting": 3, "dropped": 0}}
    async with served(A, web={"health": lambda: more}) as made, httpx.AsyncClient(base_url=made.url) as client:
        got = await client.get("/health")
        told = got.json()
        assert (got.status_code, told["ready"], told["ledger"], told["records"]) == (200, True, True, more["records"])
        assert (told["deployments"][0]["snapshot"], told["waiting"]) == (A.id, 0)
        made.ledger.away = True
        await until(lambda: not made.follower.health()["ledger"])
        got = await client.get("/health")
        assert (got.status_code, got.json()["ready"], got.json()["ledger"]) == (200, True, False)
        assert (await client.post("/v1/chat/completions", json=asking())).json()["choices"][0]["message"][
            "content"
        ] == "a"


async def test_a_push_moves_the_epoch_at_once() -> None:
    async with served(A, poll_s=60) as made:
        made.ledger.keep(B)
        made.ledger.point("support", 1, B.id)
        missed = await asyncio.to_thread(
            push, ["http://127.0.0.1:1", made.url], "support", "a secret of the deployment"
        )
        assert missed == ["http://127.0.0.1:1"]
        await until(lambda: made.follower.state.incumbent == B.id)
        assert await asyncio.to_thread(push, [made.url], "support", "another secret") == [made.url]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_large_is_refused_before_it_is_read(chunked: bool) -> None:
    sent = 0

    def large() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4096):
            sent += 2**14
            yield b" " * 2**14

    def ask(url: str) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if not chunked:
            headers["content-length"] = str(2**26)
        with httpx.Client() as client:
            return client.post(f"{url}/v1/chat/completions", content=large(), headers=headers)

    async with served(A, web={"limits": Limits(body_limit=1000)}) as made:
        got = await asyncio.to_thread(ask, made.url)
        assert (got.status_code, got.json()["error"]["code"]) == (413, "too_large")
        assert "1000 bytes" in got.json()["error"]["message"]
        assert got.headers["connection"] == "close"
        assert sent < 2**26
        async with httpx.AsyncClient() as client:  # and others are served
            assert (await client.post(f"{made.url}/v1/chat/completions", json=asking())).status_code == 200


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("begun", "answer"),
    [
        (b"", b""),
        (HEAD[:20], b""),
        (HEAD, b""),
        (HEAD + b"Content-Length: 50\r\n\r\n{", b"HTTP/1.1 408 "),
    ],
)
async def test_a_client_that_dawdles_is_left(begun: bytes, answer: bytes) -> None:
    async with served(A, web={"limits": Limits(header_timeout_s=0.2)}) as made:
        reader, writer = await _connected(made)
        writer.write(begun)
        async with asyncio.timeout(10):
            got = await reader.read()
        assert got.startswith(answer)
        assert bool(got) == bool(answer)
        writer.close()
        assert (made.notes.told, made.gateway.under_way) == ([], 0)


async def test_a_head_without_end_is_left() -> None:
    async with served(A) as made:
        reader, writer = await _connected(made)
        writer.write(HEAD)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                for number in range(2000):
                    writer.write(b"x-%d: %b\r\n" % (number, b"y" * 1000))
                    await writer.drain()
                    await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert made.notes.told == []


async def test_the_next_request_of_a_connection_may_come_late() -> None:
    async with served(A, web={"limits": Limits(header_timeout_s=0.1)}) as made, httpx.AsyncClient() as client:
        for _ in range(2):
            assert (await client.post(f"{made.url}/v1/chat/completions", json=asking())).status_code == 200
            await asyncio.sleep(0.25)


async def _connected(made: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = made.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


LONG = "many words " * 30_000


async def test_a_long_answer_arrives_whole() -> None:
    long = Snapshot(prompt=Prompt(genes={"rubric": LONG, "max_tokens": 10**7}), strategy=A.strategy)
    async with served(long) as made, httpx.AsyncClient() as client:
        got = await client.post(f"{made.url}/v1/chat/completions", json=asking())
        assert got.json()["choices"][0]["message"]["content"] == LONG.strip()


async def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SLOW_S", 0.05)
    sent, told = list[bytes](), list[float]()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            await asyncio.sleep(60)

    await door.send_whole(Answer(200, {}, b"x" * 300_000, told=told.append), send)
    assert [len(one) for one in sent] == [0, door.AT_ONCE, door.AT_ONCE]
    assert len(told) == 1  # it was answered; that it was not read is nobody's failure


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_call_to_the_model(stream: bool) -> None:
    left, begun = asyncio.Event(), asyncio.Event()

    class Hanging(Scripted):
        async def _wait(self, seconds: float) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                left.set()

    async with served(A, model=Hanging()) as made:
        async with httpx.AsyncClient() as client:
            task = asyncio.create_task(client.post(f"{made.url}/v1/chat/completions", json=asking(stream=stream)))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(10):
            await left.wait()
        await until(lambda: made.gateway.under_way == 0)
        (exchange,) = made.notes.exchanges
        assert exchange.error_class == "client"


async def test_too_many_at_once_are_told_to_come_back() -> None:
    settings = {"concurrency": 1, "queue": 1}
    async with served(A, model=slowly(0.2), gateway=settings) as made, httpx.AsyncClient() as client:
        got = await asyncio.gather(
            *(client.post(f"{made.url}/v1/chat/completions", json=asking()) for _ in range(5)),
        )
        assert sorted(one.status_code for one in got) == [200, 200, 429, 429, 429]
        refused = next(one for one in got if one.status_code == 429)
        assert (refused.headers["retry-after"], refused.json()["error"]["type"]) == ("1", "rate_limit_error")


async def test_a_stop_lets_answers_under_way_end() -> None:
    async with world(A, model=slowly(0.5)) as made:
        sock = bind(made.web)
        url, told = address(sock), list[str]()
        task = asyncio.create_task(serve(made.web, sock=sock, started=told.append))
        async with httpx.AsyncClient() as client:
            asked = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=asking()))
            await until(lambda: made.gateway.under_way == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            got = await asked
            assert (got.status_code, got.json()["choices"][0]["message"]["content"]) == (200, "ok")
            await task  # returns, and does not end the process
            with pytest.raises(httpx.ConnectError):
                await client.post(f"{url}/v1/chat/completions", json=asking())
        assert told == [url]
        assert len(made.notes.exchanges) == 1


async def flipping(made: World, flips: int) -> dict[int, str]:
    """Move the pointer so often, each time as soon as the last move is served: epoch -> incumbent."""
    incumbent = {1: A.id}
    for epoch in range(1, flips + 1):
        to = (A, B)[epoch % 2]
        incumbent[made.ledger.point("support", epoch, to.id)] = to.id
        made.follower.nudge()
        await until(lambda epoch=epoch: made.follower.state.epoch == epoch + 1)
    return incumbent


@pytest.mark.slow
async def test_no_answer_is_of_two_snapshots_however_often_the_pointer_moves() -> None:
    """1,000 flips under load: what an answer says, its headers and its record are of one snapshot and one epoch."""
    over = False
    model = Scripted.using(rubric, latency_s=0.008, time_scale=1)
    async with world(A, B, model=model, poll_s=60) as made:
        seen: dict[str, tuple[str, str]] = {}

        async def ask() -> None:
            while not over:
                answer = await made.gateway.complete(asking())
                answer.sent(1.0)
                assert answer.headers["x-evocluster-arm"] == answer.headers["x-evocluster-snapshot"]
                told = json.loads(answer.body)
                assert told["system_fingerprint"] == answer.headers["x-evocluster-snapshot"]
                seen[told["id"]] = (told["system_fingerprint"], told["choices"][0]["message"]["content"])

        clients = [asyncio.create_task(ask()) for _ in range(6)]
        incumbent = await flipping(made, 1000)
        over = True
        await asyncio.gather(*clients)
    check(made, incumbent, seen)
    assert len({one.epoch for one in made.notes.exchanges}) > 300


async def test_nor_over_the_wire() -> None:
    over = False
    async with served(A, B, poll_s=60) as made, httpx.AsyncClient(base_url=made.url) as client:
        seen: dict[str, tuple[str, str]] = {}

        async def ask() -> None:
            while not over:
                got = await client.post("/v1/chat/completions", json=asking())
                assert got.headers["x-evocluster-arm"] == got.headers["x-evocluster-snapshot"]
                told = got.json()
                assert told["system_fingerprint"] == got.headers["x-evocluster-snapshot"]
                seen[told["id"]] = (told["system_fingerprint"], told["choices"][0]["message"]["content"])

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        incumbent = await flipping(made, 100)
        over = True
        await asyncio.gather(*clients)
        await until(lambda: len(made.notes.exchanges) == len(seen))
    check(made, incumbent, seen)


def check(made: World, incumbent: dict[int, str], seen: dict[str, tuple[str, str]]) -> None:
    """`seen`: request -> snapshot and text that the client got."""
    names = {A.id: "a", B.id: "b"}
    for exchange in made.notes.exchanges:
        assert exchange.snapshot_id == exchange.arm == incumbent[exchange.epoch]
        assert seen[exchange.request_id] == (exchange.snapshot_id, names[exchange.snapshot_id])
    assert len(made.notes.exchanges) == len(seen)
    assert {one for one, _ in seen.values()} == {A.id, B.id}
