"""A stand-in for Ray's job server on the loopback: the REST API of Ray Jobs, with jobs that a test tells what to do."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN = "not-a-secret-token-of-a-test"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Played:
    """A job: its log so far, and whether it is over."""

    body: dict[str, Any]
    status: str = "RUNNING"
    exit_code: int | None = None
    log: str = ""
    message: str = ""


@dataclass
class JobServer:
    """What the server knows and how it behaves. `url` is where it listens."""

    folder: Path
    url: str = ""
    token: str | None = TOKEN
    ray_version: str = "2.60.0"
    jobs: dict[str, Played] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    agentless: int = 0
    """So many requests to start a job come before there is an agent to start it."""
    on_submit: Callable[[JobServer, Played], None] = lambda server, job: None
    cuts: list[int] = field(default_factory=list)
    """After so many characters the next tails break off."""
    tails: int = 0
    down: bool = False
    """Nobody answers: connections are closed."""
    silent: bool = False
    """Tails are accepted and say nothing more, and nothing else is answered: a lost network."""

    def play(self, job: Played, log: str, exit_code: int = 0) -> None:
        """Let a job print this and end."""
        job.log += log
        job.exit_code = exit_code
        job.status = "SUCCEEDED" if exit_code == 0 else "FAILED"

    def carry_out(self, job: Played) -> None:
        """Run the command of a job here, with the packages it names."""
        home = self.folder / f"node-{len(self.jobs)}"
        environment = job.body["runtime_env"]
        paths = [self._unpacked(uri, home / "modules") for uri in environment.get("py_modules", [])]
        work = self._unpacked(environment["working_dir"], home / "work") if "working_dir" in environment else home
        words = shlex.split(job.body["entrypoint"].removeprefix("exec python"))
        done = subprocess.run(
            [sys.executable, *words],
            cwd=work,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.play(job, done.stdout, done.returncode)

    def _unpacked(self, uri: str, to: Path) -> Path:
        to.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(self.packages[uri.removeprefix("gcs://")])) as package:
            package.extractall(to)
        return to

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=100 * 2**20, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/gcs/{name}", self._has),
                web.put("/api/packages/gcs/{name}", self._put),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/", self._list),
                web.get("/api/jobs/{id}", self._info),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.down:
            assert request.transport is not None
            request.transport.abort()
        while self.silent:
            await asyncio.sleep(0.05)
        if self.token is not None:
            given = request.headers.get("Authorization")
            if given is None:
                return web.Response(status=401, text="Missing authentication token")
            if given != f"Bearer {self.token}":
                return web.Response(status=403, text="Invalid authentication token")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.ray_version})

    async def _has(self, request: web.Request) -> web.Response:
        there = request.match_info["name"] in self.packages
        return web.Response(status=200 if there else 404)

    async def _put(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        self.uploads += 1
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        id = body["submission_id"]
        if self.agentless:
            self.agentless -= 1
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        if id in self.jobs:
            return web.Response(status=500, text=f"Traceback:\nValueError: Job with submission_id {id} already exists.")
        self.jobs[id] = Played(body)
        await asyncio.get_running_loop().run_in_executor(None, self.on_submit, self, self.jobs[id])
        return web.json_response({"job_id": id, "submission_id": id})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([self._said(id) for id in self.jobs])

    async def _info(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if id not in self.jobs:
            return web.Response(status=404, text=f"Job {id} does not exist")
        return web.json_response(self._said(id))

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["id"]].status = "STOPPED"
        return web.json_response({"stopped": True})

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.jobs[request.match_info["id"]].log})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        self.tails += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        job, sent = self.jobs[request.match_info["id"]], 0
        cut = self.cuts.pop(0) if self.cuts else None
        while True:
            while self.silent:
                await asyncio.sleep(0.05)
            text = job.log[sent : sent + 10 if cut is None else min(sent + 10, cut)]
            sent += len(text)
            if text:
                await socket.send_str(text)
            elif cut is not None and sent >= cut:
                assert request.transport is not None
                request.transport.abort()
                return socket
            elif job.status != "RUNNING":
                return socket
            else:
                await asyncio.sleep(0.01)

    def _said(self, id: str) -> dict[str, Any]:
        job = self.jobs[id]
        return {
            "type": "SUBMISSION",
            "submission_id": id,
            "status": job.status,
            "message": job.message,
            "metadata": job.body.get("metadata"),
            "driver_exit_code": job.exit_code,
            "start_time": 1_700_000_000_000 + list(self.jobs).index(id),
        }


@contextmanager
def serving(folder: Path) -> Iterator[JobServer]:
    """A job server in a thread of its own."""
    server, loop = JobServer(folder), asyncio.new_event_loop()
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.silent = False
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def line(kind: str, **what: Any) -> str:
    """A line as a job prints it for programs."""
    return json.dumps({"evocluster": kind, **what}) + "\n"
