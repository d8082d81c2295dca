"""A loopback endpoint that answers by the scripted model's rules, and exported files run against it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpx
from aiohttp import web
from openai import OpenAI

from evocluster.llm.client import Message, Reply, Request
from evocluster.llm.scripted import Scripted

Body = dict[str, Any]
Sent = list[tuple[str, Body]]
"""Path and body of each request, in order."""


def request_of(body: Body, chat: bool) -> Request:
    """The request that a body stands for; constraints in any of the forms that `wire` sends."""
    shown: dict[str, Any] = {"prompt": body.get("prompt")}
    if chat:
        shown = {"messages": tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"])}
    choices = body.get("guided_choice") or body.get("structured_outputs", {}).get("choice") or ()
    if "grammar" in body:
        choices = [json.loads(text) for text in re.findall(r'"(?:[^"\\]|\\.)*"', body["grammar"])]
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    return Request(
        model="any",
        temperature=body.get("temperature", 0.0),
        max_tokens=body.get("max_tokens") or body["max_completion_tokens"],
        stop=tuple(body.get("stop", ())),
        seed=body.get("seed", 0),
        choices=tuple(choices),
        json_schema=schema,
        **shown,
    )


def completion(body: Body, chat: bool, reply: Reply) -> Body:
    """A reply as the endpoint says it."""
    inner = {"message": {"role": "assistant", "content": reply.text}} if chat else {"text": reply.text}
    return {
        "id": "1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": reply.finish_reason, **inner}],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
    }


class Loopback:
    """`with Loopback(model) as server`: an OpenAI-compatible endpoint in a thread of its own; see `url` and `sent`."""

    def __init__(self, model: Scripted) -> None:
        self.model = model
        self.sent: Sent = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Loopback:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _handle(self, request: web.Request) -> web.Response:
        body, chat = await request.json(), request.path.endswith("/chat/completions")
        self.sent.append((request.path, body))
        return web.json_response(completion(body, chat, await self.model(request_of(body, chat))))


@contextmanager
def in_process(model: Scripted, sent: Sent) -> Iterator[OpenAI]:
    """A client of the openai package whose requests are answered here, without a connection."""

    def handle(request: httpx.Request) -> httpx.Response:
        body, chat = json.loads(request.content), request.url.path.endswith("/chat/completions")
        sent.append((request.url.path, body))
        return httpx.Response(200, json=completion(body, chat, asyncio.run(model(request_of(body, chat)))))

    with httpx.Client(transport=httpx.MockTransport(handle)) as http:
        yield OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", http_client=http, max_retries=0)


def loaded(text: str, name: str = "exported_winner") -> ModuleType:
    """An exported file as a module."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module


def noisy(labels: tuple[str, ...], fields: Mapping[str, tuple[Any, ...]]) -> Callable[[Request], str]:
    """Answers of every kind that a reader has to cope with, picked by what is asked."""

    def answer(request: Request) -> str:
        asked = request.prompt or "".join(message.content for message in request.messages)
        seed = hashlib.sha256(f"{asked}{request.seed}".encode()).digest()
        label = labels[seed[0] % len(labels)]
        value = {name: choices[seed[at + 1] % len(choices)] for at, (name, choices) in enumerate(fields.items())}
        said = json.dumps(value)
        return (
            label,
            f" {label.upper()}!\n",
            f"I think it is {label}, maybe. Label: {label}",
            f"First this, then that.\nAnswer: **{label}**",
            "nothing of the kind",
            said,
            f"Here it is:\n```json\n{said}\n```",
            f'Answer: {said[:-1]}, "more": 1}}',
            said[: len(said) // 2],
            "",
            f"Output: {said}",
            "2",
        )[seed[9] % 12]

    return answer
