"""A loopback server that speaks OpenAI's chat and text completions, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

from aiohttp import web

Mode = Literal[
    "ok",
    "html",
    "not_json",
    "empty_choices",
    "null_content",
    "no_usage",
    "zero_usage",
    "error_500",
    "error_429",
    "error_401",
    "error_400",
    "drip",
    "hang",
    "cut",
    "redirect",
]
Body = dict[str, Any]


class FaultServer:
    """`async with FaultServer() as server`: on 127.0.0.1, a free port; `server.url` ends in /v1.

    `mode` is how it answers, `then(...)` queues modes that are used up first, one a request. `answer` makes
    the text, `latency` the seconds to wait. What came in stays in `requests`, `headers`, `bodies` and `paths`;
    `peak` is the most in flight.
    """

    def __init__(
        self,
        mode: Mode = "ok",
        answer: Callable[[Body], str] | None = None,
        latency: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.mode: Mode = mode
        self.answer = answer or obedient
        self.latency = latency
        self.retry_after = "0"
        self.elsewhere = ""
        """Where `redirect` points."""
        self.timings: dict[str, float] | None = None
        """llama.cpp's, put into good answers."""
        self.requests = 0
        self.in_flight = 0
        self.arrived = asyncio.Event()
        """Set by the first request."""
        self.idle = asyncio.Event()
        """Set while no request is being served, once there was one."""
        self.peak = 0
        self.headers: list[dict[str, str]] = []
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self._next: deque[Mode] = deque()
        self._runner: web.AppRunner | None = None
        self.url = ""

    def then(self, modes: Iterable[Mode]) -> None:
        """Modes for the next requests, one each; afterwards `mode` again."""
        self._next.extend(modes)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self.arrived.set()
        self.idle.clear()
        try:
            body = await request.json()
            self.headers.append(dict(request.headers))
            self.bodies.append(body)
            self.paths.append(request.path)
            wait = self.latency()
            if wait > 0:
                await asyncio.sleep(wait)
            mode = self._next.popleft() if self._next else self.mode
            return await self._respond(mode, request, body)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def _respond(self, mode: Mode, request: web.Request, body: Body) -> web.StreamResponse:
        plain: dict[str, Callable[[], web.Response]] = {
            "html": lambda: web.Response(text="<html><body>Welcome</body></html>", content_type="text/html"),
            "not_json": lambda: web.Response(text='{"choices": [', content_type="application/json"),
            "error_500": lambda: _error(500, "boom"),
            "error_429": lambda: _error(429, "slow down", {"Retry-After": self.retry_after}),
            "error_401": lambda: _error(401, f"Incorrect API key: {request.headers.get('Authorization')}"),
            "error_400": lambda: _error(400, "context length exceeded"),
            "redirect": lambda: web.Response(status=307, headers={"Location": self.elsewhere}),
        }
        if mode in plain:
            return plain[mode]()
        if mode == "hang":
            await asyncio.sleep(3600)
        whole = self._completion(mode, request.path.endswith("/chat/completions"), body)
        if mode in ("drip", "cut"):
            return await self._partly(mode, request, json.dumps(whole).encode())
        return web.json_response(whole)

    async def _partly(self, mode: Mode, request: web.Request, raw: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(raw))})
        await response.prepare(request)
        if mode == "cut":
            await response.write(raw[: len(raw) // 2])
            if request.transport is not None:
                request.transport.abort()
            return response
        for byte in raw:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.1)
        return response

    def _completion(self, mode: Mode, chat: bool, body: Body) -> Body:
        limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 1000)
        words = re.findall(r"\s*\S+", self.answer(body))
        text: str | None = "".join(words[:limit]).strip()
        finish = "length" if len(words) > limit else "stop"
        asked = body.get("prompt", "") if not chat else " ".join(str(m["content"]) for m in body.get("messages", ()))
        usage = {"prompt_tokens": len(asked.split()) + 1, "completion_tokens": min(len(words), limit)}
        if mode == "null_content":
            text = None
        inner = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        whole: Body = {
            "id": "1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": str(body["model"]),
            "choices": [] if mode == "empty_choices" else [{"index": 0, "finish_reason": finish, **inner}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }
        if mode == "no_usage":
            del whole["usage"]
        if mode == "zero_usage":
            whole["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if self.timings is not None:
            whole["timings"] = self.timings
        return whole


def obedient(body: Body) -> str:
    """The first choice, the smallest JSON that fits the schema, or 'ok' and a few more words."""
    if "grammar" in body:
        found = re.search(r'"((?:[^"\\]|\\.)*)"', body["grammar"])
        return found.group(1) if found else ""
    offered = body.get("guided_choice") or body.get("structured_outputs", {}).get("choice")
    if offered:
        return str(offered[0])
    wanted = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if wanted:
        return json.dumps(_smallest(wanted), separators=(",", ":"))
    return "ok this answer has a few more words than you need"


def _smallest(schema: Body) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: _smallest(inner) for name, inner in schema.get("properties", {}).items()}
    return {"string": "x", "integer": 1, "number": 1.5, "boolean": True, "array": []}.get(schema["type"])


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)
