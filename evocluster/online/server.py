"""The web server before the gateway: routes, keys, limits, and clients that are slow, greedy or gone.

    POST /v1/chat/completions   GET /v1/models   GET /v1/models/{id}   POST /v1/feedback   GET /health
    POST /internal/epoch        the pointer moved: read it now

The only file that knows FastAPI, Starlette and uvicorn. Its endpoints are bare ASGI: a request costs what parsing its
JSON costs. What stands here is about connections and bytes; what a request means is the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from evocluster.engine.garbage import settled
from evocluster.errors import ConfigError
from evocluster.online import reply
from evocluster.online.door import Door, Gone, Headers, Keys, Receive, Scope, Send, attended, is_loopback, send_whole
from evocluster.online.gateway import JSON, Answer, Gateway, failed
from evocluster.online.question import Rejected
from evocluster.online.state import PATH
from evocluster.release.settings import Gateway as Limits
from evocluster.telemetry import log

KEEP_ALIVE_S = 75
"""Idle connections stay open longer than clients keep them, so that none is closed as it is used."""
DRAIN_S = 30
"""Seconds that answers under way have when the server stops."""
BACKLOG = 2048
"""Connections that wait to be accepted."""
TURN_S = 0.0005
"""After which a thread hands the interpreter on where another one asks: ledger and recorder work beside requests, and
Python's 5 ms, several times a request, would be the longest part of it."""
HEAD_LIMIT = 64 * 1024
"""Bytes of a request's line and headers."""
Work = Callable[[Scope, Headers, Receive], Awaitable[Answer]]


class Received(Protocol):
    """What somebody who gave feedback is answered."""

    @property
    def status_code(self) -> int: ...

    @property
    def payload(self) -> Mapping[str, Any]: ...


class Feedback(Protocol):
    """What takes the feedback on one deployment; it may wait for the ledger, so it is called in threads."""

    def owns(self, body: Any, /) -> bool:
        """The target is one of its own."""
        ...

    def accept(self, body: Any, now: float, who: str = "") -> Received: ...


class Web:
    """The ASGI application of a gateway."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        keys: Keys | None = None,
        feedback: Sequence[Feedback] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
        health: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """`keys`: while there is none, only this machine may ask; `feedback`: of each deployment; `health`: what else
        GET /health tells, such as how many records wait and how many were dropped.
        """
        self.gateway = gateway
        self.door = Door(keys, limits)
        self._feedback = tuple(feedback)
        self._more = health
        self._chat = _Endpoint(self._complete)
        self._app = FastAPI(title="evocluster", openapi_url=None)
        self._app.add_exception_handler(HTTPException, _not_found)
        for path, method, work in (
            ("/v1/models", "GET", self._models),
            ("/v1/models/{id:path}", "GET", self._model),
            ("/v1/feedback", "POST", self._fed_back),
            ("/health", "GET", self._health),
            (PATH, "POST", self._epoch),
        ):
            self._app.router.routes.append(Route(path, _Endpoint(work), methods=[method], name=path))
        self._app.router.routes.append(Route("/v1/chat/completions", self._chat, methods=["POST"], name="chat"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The busiest route goes straight to its endpoint."""
        if scope["type"] == "http" and scope["path"] == "/v1/chat/completions" and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _complete(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        who = self.door.tenant(headers)
        body = await self.door.body(headers, receive)
        return await attended(self.gateway.complete(body, who), receive)

    async def _models(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        self.door.tenant(headers)
        return _json(200, self.gateway.models())

    async def _model(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        self.door.tenant(headers)
        return _json(200, self.gateway.model(scope["path_params"]["id"]))

    async def _fed_back(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        who = self.door.tenant(headers)
        body = await self.door.body(headers, receive)
        if not self._feedback:
            raise Rejected(404, "no_feedback", "this gateway takes no feedback")
        # Where nobody owns the target, any of them says what is wrong with it.
        taker = next((one for one in self._feedback if one.owns(body)), self._feedback[0])
        received = await asyncio.to_thread(taker.accept, body, time.time(), who)
        return _json(received.status_code, reply.dumped(received.payload))

    async def _health(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        told = self.gateway.health()
        ready = all(one.get("epoch", 0) > 0 for one in told["deployments"])
        shown: dict[str, Any] = {"ready": ready, "ledger": told["ledger"]}
        with contextlib.suppress(Rejected):  # a load balancer has no key, and need not know what is deployed
            self.door.tenant(headers)
            shown |= {**told, **(self._more() if self._more is not None else {})}
        return _json(200 if ready else 503, reply.dumped(shown))

    async def _epoch(self, scope: Scope, headers: Headers, receive: Receive) -> Answer:
        body = await self.door.body(headers, receive)
        name = body.get("deployment") if isinstance(body, dict) else None
        shown = headers.get("authorization", "").removeprefix("Bearer ").encode()
        site = self.gateway.sites.get(name) if isinstance(name, str) else None
        if site is None or not hmac.compare_digest(shown, site.follower.state.push.encode()):
            raise Rejected(401, "invalid_token", "no such deployment, or not the token that follows from its secret")
        site.follower.nudge()
        return _json(202, reply.dumped({"deployment": name, "epoch": site.follower.state.epoch}))


class _Endpoint:
    """A route: what makes its answer, and how that is sent, whatever becomes of it."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            answer = await self._work(scope, headers, receive)
        except Gone:
            return
        except Rejected as error:
            answer = failed(error, reply.uuid7(time.time()))
            if error.status in (408, 413):  # what is left of the request is not read
                answer.headers["connection"] = "close"
        except Exception as error:
            log.exception("%s failed", scope["path"])
            text = f"the gateway failed: {type(error).__name__}; its log says more"
            answer = failed(Rejected(500, "internal_error", text), reply.uuid7(time.time()))
        await send_whole(answer, send)


def _json(status: int, body: bytes) -> Answer:
    return Answer(status, {"content-type": JSON}, body)


async def _not_found(request: Request, error: Exception) -> Response:
    """What no route takes, as OpenAI's clients read errors."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    there = "POST /v1/chat/completions, GET /v1/models, POST /v1/feedback, GET /health"
    text = f"no {request.method} {request.url.path!r:.200}; there are: {there}"
    return Response(reply.failure(Rejected(status, "not_found", text)), status, media_type=JSON)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to requests whose head comes slowly or without end."""

    def __init__(self, *args: Any, head_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_s = head_s
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                self._leave()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(self._head_s, self._leave)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _leave(self) -> None:
        self._head_came()
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's, which ends at a signal and lets its caller go on: records are written after the last answer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def bind(web: Web, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket that listens; `port` 0: any free one. Raises: ConfigError: it is taken, or open to all without a key."""
    made = bound(host, port)
    try:
        _guarded(web, made)
        made.listen(BACKLOG)
    except (OSError, ConfigError):
        made.close()
        raise
    return made


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises: ConfigError."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        text = f"cannot listen on {host!r}, port {port!r}: {error.strerror}; choose another host or port"
        raise ConfigError(text) from error
    return made


def _guarded(web: Web, sock: socket.socket) -> None:
    """Raises: ConfigError: others could ask, and there is no key."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or is_loopback(sock.getsockname()[0]):
        return
    if not web.door.keyed:
        raise ConfigError(
            f"host {sock.getsockname()[0]!r} lets other machines ask, and there is no API key; make one with "
            "`evocluster keys add NAME`, or serve on 127.0.0.1"
        )
    web.door.exposed = True


async def serve(
    web: Web,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    sock: socket.socket | None = None,
    drain_s: int = DRAIN_S,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or cancellation, then let answers under way end; `sock`: as `bind` made it.

    `started` is told the root URL. Raises: ConfigError.
    """
    if sock is None:
        sock = bind(web, host, port)
    _guarded(web, sock)
    protocol = functools.partial(_Protocol, head_s=web.door.limits.header_timeout_s)
    config = uvicorn.Config(
        cast(Any, web),
        http=cast(Any, protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    server = _Server(config)
    if started is not None:
        started(address(sock))
    work = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        server.should_exit = True
        await work
        raise


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """This process is for serving: its garbage collector leaves alone what is loaded, its threads wait briefly."""
    before = sys.getswitchinterval()
    with settled():
        sys.setswitchinterval(TURN_S)
        try:
            yield
        finally:
            sys.setswitchinterval(before)


def run(main: Coroutine[Any, Any, None]) -> None:
    """asyncio.run, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def address(sock: socket.socket) -> str:
    """The root URL of a socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
