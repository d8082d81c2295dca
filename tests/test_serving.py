"""The gateway wired whole: a deployment of a real run, asked by OpenAI's client, watched, moved and rolled back."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from deployed_world import NAME, deployed, made

from evocluster.deploying import Home, deploy, roll_back
from evocluster.errors import ConfigError
from evocluster.online import keys
from evocluster.online.server import Web, address, bind
from evocluster.online.server import serve as web_serve
from evocluster.release.snapshot import Snapshot
from evocluster.serving import Place, Replica, opened, replica

BROKEN = "no label at all"


class Served(NamedTuple):
    """A gateway that listens."""

    web: Web
    url: str

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Home]:
    with deployed(tmp_path) as home:
        yield home


def place(where: Home) -> Place:
    return Place(str(where.folder))


@asynccontextmanager
async def serving(where: Home, *names: str, **how: Any) -> AsyncIterator[Served]:
    async with opened(place(where), names, **how) as web:
        sock = bind(web)
        task = asyncio.create_task(web_serve(web, sock=sock, drain_s=5))
        try:
            yield Served(web, address(sock))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], Any]) -> Any:
    async with asyncio.timeout(20):
        while not (found := await asyncio.to_thread(true)):
            await asyncio.sleep(0.01)
        return found


async def ask(client: openai.AsyncOpenAI, text: str = "the thing looks red", model: str = NAME, **more: Any) -> Any:
    """(answer, headers)."""
    said = await client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], **more
    )
    return said.parse(), said.headers


def other(where: Home, **genes: Any) -> Snapshot:
    serves = where.snapshot(where.pointer(NAME)["snapshot"])
    return serves.changed(prompt=serves.prompt.model_copy(update={"genes": {**serves.prompt.genes, **genes}}))


async def test_openais_client_is_answered_and_recorded(where: Home) -> None:
    async with serving(where) as made_web, made_web.client() as client:
        assert [model.id async for model in await client.models.list()] == [NAME]
        answer, headers = await ask(client, user="jane", metadata={"intent": "colour"})
        assert answer.choices[0].message.content == "red"
        assert headers["x-evocluster-snapshot"] == where.pointer(NAME)["snapshot"]
        stream = await client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "looks blue"}], stream=True
        )
        parts = [one.choices[0].delta.content or "" async for one in stream if one.choices]
        assert "".join(parts) == "blue"
        with pytest.raises(openai.NotFoundError, match="'nobody'"):
            await ask(client, model="nobody")
        rows = await until(lambda: len(found := where.ledger.find("exchanges")) == 2 and found)
    assert {(row["deployment"], row["model"], row["error_class"]) for row in rows} == {(NAME, "fake", "")}
    assert {row["intent"] for row in rows} == {"colour", ""}
    assert len({row["user"] for row in rows} - {"", "jane"}) == 1
    bodies = {row["request_id"]: row for row in where.ledger.find("bodies")}
    assert {row["output"] for row in bodies.values()} == {"red", "blue"}
    assert where.ledger.find("replicas") == []


async def test_a_process_of_several_deployments_holds_none_of_them_to_anothers_limits(where: Home) -> None:
    narrow, wide = ["online.gateway.body_limit=400", "online.gateway.queue=9"], ["online.gateway.body_limit=5000"]
    for name, sets in (("a", narrow), ("z", wide)):
        deploy(made(), name, where, genome="start", now=0.0, sets=sets)
    long = "the thing looks red " + "x" * 600
    async with serving(where, "a", "z") as both, both.client() as client:
        assert (await ask(client, long, "z"))[0].choices[0].message.content == "red"
        assert (both.web.door.limits.body_limit, both.web.door.limits.queue) == (5000, 512)
    async with serving(where, "a") as alone, alone.client() as client:
        with pytest.raises(openai.APIStatusError, match="allowed: 400 bytes"):
            await ask(client, long, "a")


async def test_without_bodies_only_facts_are_kept(where: Home) -> None:
    async with serving(where, recording=False) as made_web, made_web.client() as client:
        await ask(client)
        await until(lambda: where.ledger.count("exchanges") == 1)
    assert where.ledger.count("bodies") == 0


async def test_feedback_reaches_the_ledger_and_the_breaker(where: Home) -> None:
    deploy(made(6), NAME, where, genome="recommended", live=True)
    candidate = where.ledger.find("experiments")[0]["candidate"]
    async with serving(where) as made_web, made_web.client() as client:
        guard: Any = made_web.web.gateway.sites[NAME].breaker
        heard: list[tuple[str, bool]] = []
        guard.judged = lambda snapshot, failed, at: heard.append((snapshot, failed))
        served = set()
        async with httpx.AsyncClient(base_url=made_web.url) as web:
            for number in range(40):
                _, headers = await ask(client)
                target = headers["x-evocluster-request-id"]
                served.add(headers["x-evocluster-snapshot"])
                id = target.rpartition(".")[0]
                await until(lambda id=id: where.ledger.count("exchanges", {"request_id": id}))  # type: ignore[misc]
                body = {"feedback_id": f"f{number}", "target": target, "metric": "correct", "value": False}
                got = await web.post("/v1/feedback", json={**body, "source": "user"})
                assert (got.status_code, got.json()["status"]) == (202, "accepted")
                if candidate in served:
                    break
            forged = await web.post("/v1/feedback", json={**body, "feedback_id": "x", "target": f"{id}.{'0' * 24}"})
            assert forged.status_code == 403
        await until(lambda: len(heard) == number + 1)
    assert {snapshot for snapshot, _ in heard} == served
    assert all(failed for _, failed in heard)
    assert where.ledger.count("feedback", {"state": "accepted"}) == number + 1


async def test_what_serves_follows_the_ledger_without_a_restart(where: Home) -> None:
    first = where.pointer(NAME)["snapshot"]
    async with serving(where) as made_web, made_web.client() as client:
        deploy(made(6), NAME, where, genome="recommended", live=True)
        arms = set(where.pointer(NAME)["state"]["arms"])
        seen: set[str] = set()
        async with asyncio.timeout(20):
            while seen != arms:
                seen.add((await ask(client))[1]["x-evocluster-snapshot"])
        began = time.monotonic()
        done = await asyncio.to_thread(roll_back, where, NAME)
        assert (done["late"], done["snapshot"]) == ([], first)
        assert time.monotonic() - began < 10
        for _ in range(20):
            assert (await ask(client))[1]["x-evocluster-snapshot"] == first


async def test_a_candidate_that_fails_is_taken_back_by_itself(where: Home) -> None:
    """A model that is not there any more fails hard: the fast path needs a dozen requests, and nobody else."""
    from evocluster.deploying import candidate

    first = where.pointer(NAME)["snapshot"]
    bad = other(where, rubric=BROKEN)
    candidate(where, NAME, bad, layer="prompt", trigger={"kind": "hand"}, live=True, now=time.time())
    async with serving(where) as made_web, made_web.client() as client:
        site = made_web.web.gateway.sites[NAME]
        worse: Any = site.follower.state.answerers[bad.id]

        async def fails(*args: Any, **how: Any) -> Any:
            from evocluster.online.answer import Answered
            from evocluster.tasks.execution import Execution

            return Answered(Execution(output="", error="model: Down: gone"), "fake", error_class="provider")

        worse.answer = fails
        async with asyncio.timeout(30):
            while where.pointer(NAME)["state"]["arms"]:
                for _ in range(20):
                    with suppress(openai.InternalServerError):
                        await ask(client)
                await asyncio.sleep(0.2)
    [incident] = where.ledger.find("incidents")
    assert (incident["kind"], incident["snapshot"]) == ("breaker", bad.id)
    assert where.pointer(NAME)["snapshot"] == first
    assert where.ledger.count("barred") >= 1


async def test_two_deployments_in_one_process(where: Home) -> None:
    deploy(made(), "second", where, genome="start", sets=["online.gateway.poll_s=0.02"])
    async with serving(where) as made_web, made_web.client() as client:
        targets = {}
        for name in (NAME, "second"):
            _, headers = await ask(client, model=name)
            targets[name] = headers["x-evocluster-request-id"]
        await until(lambda: where.ledger.count("exchanges") == 2)
        async with httpx.AsyncClient(base_url=made_web.url) as web:
            for name, target in targets.items():
                body = {"feedback_id": name, "target": target, "metric": "correct", "value": True, "source": "user"}
                assert (await web.post("/v1/feedback", json=body)).status_code == 202
            health = (await web.get("/health")).json()
        assert {unit["deployment"] for unit in health["units"]} == {NAME, "second"}
    assert {row["deployment"] for row in where.ledger.find("feedback")} == {NAME, "second"}
    async with serving(where, "second") as made_web, made_web.client() as client:
        with pytest.raises(openai.NotFoundError):
            await ask(client)


async def test_no_deployments_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no deployments in .*evocluster deploy RUN --as NAME"):
        async with opened(Place(str(tmp_path))):
            pass
    with pytest.raises(ConfigError, match="no deployment 'nobody'"):
        async with opened(Place(str(tmp_path)), ["nobody"]):
            pass


async def test_a_key_made_while_it_runs_closes_the_door(where: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evocluster.serving.TICK_S", 0.02)
    async with serving(where) as made_web:
        async with made_web.client() as client:
            await ask(client)
        key = keys.create(where.ledger, "frontend", "web", time.time())
        await until(lambda: made_web.web.door.keyed)
        async with made_web.client() as client:
            with pytest.raises(openai.AuthenticationError):
                await ask(client)
        async with made_web.client(key) as client:
            await ask(client)
        await until(lambda: {row["tenant"] for row in where.ledger.find("exchanges")} == {"", "web"})


async def test_exposed_it_has_no_door_without_a_key(where: Home) -> None:
    """Also when the last key is revoked: replicas do not know where others listen for them."""
    async with serving(where, exposed=True) as made_web, made_web.client() as client:
        with pytest.raises(openai.AuthenticationError):
            await ask(client)


async def test_a_classifier_that_cannot_be_read_stops_nothing(where: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evocluster.serving.TICK_S", 0.02)
    deploy(made(), "second", where, genome="start", sets=["online.intent.classifier=true"])
    (where.folder / "intents").mkdir()
    (where.folder / "intents" / "second.npz").write_bytes(b"no such thing")
    async with serving(where, "second") as made_web:
        now = time.time()
        row = {"feedback_id": "f", "deployment": "second", "request_id": "gone", "received_at": now - 2 * 86400}
        where.ledger.put("feedback", {**row, "metric": "correct", "observed_at": now, "state": "pending"})
        # What comes after the classifier in the second's work is done all the same.
        await until(lambda: where.ledger.count("feedback", {"state": "pending"}) == 0)
        assert made_web.web.gateway.sites["second"].follower.state.epoch == 1


def test_places_and_replicas_can_be_sent_elsewhere(where: Home) -> None:
    made_replica = replica(place(where), [NAME], allow_code=False)
    assert pickle.loads(pickle.dumps(place(where))) == place(where)
    assert isinstance(pickle.loads(pickle.dumps(made_replica))(), Replica)


async def lifespan(app: Replica) -> tuple[asyncio.Queue[Any], asyncio.Queue[Any], asyncio.Task[None]]:
    there, back = asyncio.Queue[Any](), asyncio.Queue[Any]()
    task = asyncio.create_task(app({"type": "lifespan"}, there.get, back.put))
    await there.put({"type": "lifespan.startup"})
    return there, back, task


async def test_a_replica_lives_as_long_as_its_server(where: Home) -> None:
    app = replica(place(where), [NAME])()
    there, back, task = await lifespan(app)
    assert (await back.get())["type"] == "lifespan.startup.complete"
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = {"model": NAME, "messages": [{"role": "user", "content": "looks green"}]}
        got = await client.post("/v1/chat/completions", json=body)
    assert got.json()["choices"][0]["message"]["content"] == "green"
    await there.put({"type": "lifespan.shutdown"})
    assert (await back.get())["type"] == "lifespan.shutdown.complete"
    await task
    assert where.ledger.count("exchanges") == 1


async def test_a_replica_that_cannot_open_says_why(where: Home) -> None:
    _, back, task = await lifespan(replica(place(where), ["nobody"])())
    told = await back.get()
    assert told["type"] == "lifespan.startup.failed"
    assert "no deployment 'nobody'" in told["message"]
    await task
