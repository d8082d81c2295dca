"""The door of the gateway, in bare ASGI: whose a request is, its body within limits, clients that leave or dawdle."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Protocol

from evocluster.online.gateway import JSON, Answer
from evocluster.online.question import Rejected, bad, parsed
from evocluster.release.settings import Gateway as Limits
from evocluster.telemetry import log

SLOW_S = 30.0
"""Seconds that a client has to read a long answer."""
AT_ONCE = 64 * 1024
"""Bytes that are handed to a connection without waiting for the client to read."""
WATCHED_AFTER_S = 0.25
"""From when on a request is watched for a client who leaves: sooner answers cost less than watching for it."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Mapping[str, str]


class Keys(Protocol):
    """The API keys that may ask."""

    @property
    def any(self) -> bool:
        """There is one; where there is none, only this machine may ask."""
        ...

    def check(self, header: str | None, /) -> str | None:
        """The tenant of an Authorization header, compared in constant time; None: it opens nothing."""
        ...


class Gone(Exception):
    """The client went away before its request was whole."""


class Door:
    """Who is let in, and with what."""

    def __init__(self, keys: Keys | None, limits: Limits) -> None:
        self.keys = keys
        self.limits = limits
        self.exposed = False
        """Other machines reach it: then there is no way in without a key, also when the last one was revoked."""

    @property
    def keyed(self) -> bool:
        """A key has to be shown."""
        return self.exposed or (self.keys is not None and self.keys.any)

    def tenant(self, headers: Headers) -> str:
        """Whose request it is; '' where there are no keys. Raises: Rejected."""
        if not self.keyed:
            # A page in a browser may be made to think that its own host is this machine.
            if not is_loopback(_host(headers.get("host", ""))):
                raise bad(f"host {headers.get('host')!r:.200}: without API keys this gateway is for this machine only")
            return ""
        found = self.keys.check(headers.get("authorization")) if self.keys is not None else None
        if found is None:
            text = "no valid API key; send one that was made for this gateway, as 'Authorization: Bearer KEY'"
            raise Rejected(401, "invalid_api_key", text)
        return found

    async def body(self, headers: Headers, receive: Receive) -> Any:
        """The JSON of a request. Raises: Rejected, Gone."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:  # which a page in a browser may not send elsewhere without asking
            raise bad(f"content-type {kind!r:.100}; allowed: {JSON}")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_limit:
            raise self._too_large(f"{length} bytes")
        try:
            async with asyncio.timeout(self.limits.header_timeout_s):
                whole = await self._read(receive)
        except TimeoutError as late:
            text = f"the body did not arrive within {self.limits.header_timeout_s:g} s"
            raise Rejected(408, "too_slow", text) from late
        try:
            return parsed(whole)
        except ValueError as error:
            raise bad(f"the body is not JSON: {error}") from error

    async def _read(self, receive: Receive) -> bytes:
        whole = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            whole += message.get("body", b"")
            if len(whole) > self.limits.body_limit:
                raise self._too_large("more")
            if not message.get("more_body"):
                return bytes(whole)

    def _too_large(self, size: str) -> Rejected:
        text = f"the body has {size}; allowed: {self.limits.body_limit} bytes (online.gateway.body_limit)"
        return Rejected(413, "too_large", text)


async def attended(work: Coroutine[Any, Any, Answer], receive: Receive) -> Answer:
    """The answer, unless the client goes away before: then the work is cancelled. Raises: Gone."""
    task, left = asyncio.current_task(), False
    watcher: asyncio.Task[None] | None = None
    assert task is not None

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    later = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        task.uncancel()
        raise Gone from None
    finally:
        later.cancel()
        if watcher is not None:
            watcher.cancel()


async def send_whole(answer: Answer, send: Send) -> None:
    """All of an answer; then those who have to know are told, also where the client went away meanwhile."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    body = answer.body if answer.chunks is None else b"".join(answer.chunks)
    headers.append((b"content-length", b"%d" % len(body)))
    first = 0.0
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if len(body) <= AT_ONCE:  # which nobody waits for
            await send({"type": "http.response.body", "body": body, "more_body": False})
            first = time.perf_counter()
        else:
            async with asyncio.timeout(SLOW_S):
                for start in range(0, len(body), AT_ONCE):
                    more = start + AT_ONCE < len(body)
                    part = body[start : start + AT_ONCE]
                    await send({"type": "http.response.body", "body": part, "more_body": more})
                    first = first or time.perf_counter()
    except TimeoutError:
        log.info("a client that did not read its answer of %d bytes within %g s was left", len(body), SLOW_S)
    finally:
        answer.sent(first)


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: str) -> str:
    """The host of a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
