"""Planted keys in requests, provider's errors and feedback: nothing that the online half leaves behind has them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from deployed_world import NAME
from servers import Body, FaultServer, Mode
from small import LABELS, write_config

from evocluster import build
from evocluster.deploying import Home, deploy
from evocluster.online.notify import Notice, Notifier
from evocluster.online.server import address, bind
from evocluster.online.server import serve as web_serve
from evocluster.release.settings import Notify
from evocluster.serving import Place, opened
from evocluster.store import sealed

HOUSE = "house.planted.0123456789.of-no-known-form"
PLANTED = {
    "in a request": "sk-proj-plantedrequest0123456789abcdefXYZ",
    "of ours, in an error": HOUSE,
    "of another, in an error": "AKIAPLANTED012345678",
    "in feedback": "ghp_plantedfeedback0123456789abcdefABCD",
    "in metadata": "sk-ant-plantedmetadata0123456789abcdef",
    "a password in a request": "plantedpassword!77",
}


class Leaky(FaultServer):
    """An endpoint that quotes the keys it knows in whatever goes wrong."""

    def __init__(self) -> None:
        super().__init__(
            answer=lambda body: next((one for one in LABELS if f"looks {one}" in json.dumps(body)), "none")
        )

    async def _respond(self, mode: Mode, request: web.Request, body: Body) -> web.StreamResponse:
        if "fail" in json.dumps(body):
            said = f"Incorrect key {request.headers.get('Authorization')} of {PLANTED['of another, in an error']}"
            return web.json_response({"error": {"message": said}}, status=400)
        return await super()._respond(mode, request, body)


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
            if path.suffix == ".parquet":
                yield f"{path.name} read", json.dumps(pq.read_table(path).to_pylist()).encode()


def leaks(found: Iterator[tuple[str, bytes]]) -> list[str]:
    return [f"{name} in {place}" for place, raw in found for name, key in PLANTED.items() if key.encode() in raw]


async def test_no_planted_key_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOUSE_KEY", HOUSE)
    caplog.set_level(logging.DEBUG)
    told: list[bytes] = []
    async with Leaky() as server:
        model = {"kind": "direct", "base_url": server.url, "model": "m", "key_env": "HOUSE_KEY", "retries": 0}
        model["price"] = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}
        space = {"rubric": ["Which colour?"], "temperature": [0.0], "model": ["fake"], "max_tokens": [8]}
        config = write_config(
            tmp_path / "config",
            models={"fake": model},
            space=space,
            start=[{"rubric": "Which colour?"}],
            budget={"generations": 1},
            cache={"path": None},
        )
        await asyncio.to_thread(lambda: build.run(build.plan(config), tmp_path / "run"))
        with Home.open(tmp_path / "home") as home:
            deploy(tmp_path / "run", NAME, home, genome="start", allow_code=True)
        place = Place(str(tmp_path / "home"))
        async with opened(place, allow_code=True) as made:
            sock = bind(made)
            task = asyncio.create_task(web_serve(made, sock=sock, drain_s=5))
            try:
                await _ask(address(sock), told)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    assert any(HOUSE in str(headers) for headers in server.headers)
    with Home.open(tmp_path / "home") as home:
        rows = home.ledger.find("exchanges")
        assert {row["error_class"] for row in rows} >= {""}
        assert len(rows) == 3
        assert any(row["error"] for row in rows)
        assert sum("[key:" in json.dumps(row["input"]) for row in home.ledger.find("bodies")) == 1
        assert leaks(texts(tmp_path / "home")) == []
        sealed.seal(home.ledger, tmp_path / "home" / "traffic", NAME, 4e9)
        assert list((tmp_path / "home").rglob("*.parquet"))
    said = "\n".join(str(record.getMessage()) for record in caplog.records if record.name.startswith("evocluster"))
    (tmp_path / "home" / "log.txt").write_text(said)
    (tmp_path / "home" / "told.txt").write_bytes(b"\n".join(told))
    assert leaks(texts(tmp_path / "home")) == []


async def _ask(url: str, told: list[bytes]) -> None:
    """Requests, an error and feedback with keys in them; what is told to others goes to `told`."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=PLANTED["in a request"], max_retries=0) as client:
        texts = [
            f"it looks red, my key is {PLANTED['in a request']}",
            f"it looks blue, password: {PLANTED['a password in a request']}",
            "it looks green, and fail",
        ]
        target = ""
        for text in texts:
            message: Any = {"role": "user", "content": text}
            with suppress(openai.APIStatusError):
                got = await client.chat.completions.with_raw_response.create(
                    model=NAME, messages=[message], metadata={"intent": f"about {PLANTED['in metadata']}"}
                )
                target = target or got.headers["x-evocluster-request-id"]
    async with httpx.AsyncClient(base_url=url) as other:
        said = {"feedback_id": "f", "target": target, "metric": "correction", "source": "user"}
        answer = await other.post("/v1/feedback", json={**said, "value": f"use {PLANTED['in feedback']}"})
        assert answer.status_code == 202
        told.append(answer.content)
        told.append((await other.get("/health")).content)


async def test_no_planted_key_is_in_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        told.append(await request.read())
        told.append(str(dict(request.headers)).encode())
        return web.Response()

    app = web.Application()
    app.router.add_post("/{name}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        environment = {"HOOK": f"http://127.0.0.1:{port}/hook"}
        notifier = Notifier(Notify(webhook_env="HOOK"), environment, attempts=1)
        text = f"failed: the key {PLANTED['in a request']} of {PLANTED['of another, in an error']} is wrong"
        assert await notifier(Notice(at=1.0, deployment=NAME, event="failed", text=text))
    finally:
        await runner.cleanup()
    assert len(told) == 2
    assert leaks(("notice", one) for one in told) == []
