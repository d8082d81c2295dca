"""A loopback OpenAI-compatible endpoint that misbehaves as it is told, while it runs.

Like endpoint.py it answers POST /v1/chat/completions and /v1/completions after a latency that follows from the
request body; how it answers is its mode, and only the share `share` of the requests meets that mode, the others are
answered properly. With a `capacity` a request beyond that many in flight gets 429 whatever the mode. GET /stats tells
what it saw, POST /mode changes how it goes on.

    python scripts/faulty.py --latency fixed:0.2 --seed 7         # prints its port on the first line

From Python: `with running(Latency.parse("fixed:0.2")) as url: ...`; `switch(url, "storm", retry_after_s=2)`,
`stats(url)` at any time. The process ends when its parent does, however the parent died.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

from evocluster.cluster.loopback import Latency, hosted, listen, runner

Mode = Literal[
    "ok", "storm", "overloaded", "hang", "drip", "html", "not_json", "empty_choices", "no_usage", "cut", "redirect"
]
MODES: tuple[Mode, ...] = get_args(Mode)
DRIP_S = 0.1
"""Seconds between two bytes of a dripping answer."""
_MAX_HEAD = 64 * 1024
_PATHS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Behaviour:
    """How the endpoint answers from now on."""

    mode: Mode = "ok"
    """storm: 429 at once; overloaded: 503 at once; hang: nothing, ever; drip: one byte each DRIP_S; cut: half of the
    body, then the connection is closed; redirect: 307 to itself."""
    share: float = 1.0
    """Share of the requests that meet the mode."""
    retry_after_s: float | None = None
    """Sent with 429 and 503."""
    capacity: int = 0
    """More requests than this in flight get 429; 0: as many as come."""

    def __post_init__(self) -> None:
        """Raises: ValueError."""
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is not known; modes: {', '.join(MODES)}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share {self.share!r} is not between 0 and 1")


@dataclass
class Seen:
    """What the endpoint saw since its start."""

    requests: int = 0
    successes: int = 0
    """Proper answers sent whole."""
    in_flight: int = 0
    in_flight_peak: int = 0
    early: int = 0
    """Requests that came before a Retry-After, sent at least LATE_S earlier, had passed."""
    met: dict[str, int] = field(default_factory=dict)
    """Mode -> requests that met it; `capacity` for those turned away as too many."""
    per_second: dict[int, list[int]] = field(default_factory=dict)
    """Whole seconds since the start -> [requests, successes]."""
    started_s: float = field(default_factory=time.monotonic)
    """On the monotonic clock, shared by all processes of the machine."""

    def count(self, success: bool) -> None:
        """One more request, or one more success, in this second."""
        row = self.per_second.setdefault(int(time.monotonic() - self.started_s), [0, 0])
        row[int(success)] += 1
        if success:
            self.successes += 1
        else:
            self.requests += 1


LATE_S = 1.0
"""What was on its way when a Retry-After was first told is not held against anybody."""


@dataclass
class Service:
    """What all connections share."""

    latency: Latency
    seed: int
    behaviour: Behaviour
    seen: Seen
    rng: random.Random
    closed: list[tuple[float, float]] = field(default_factory=list)
    """The latest Retry-After: (when it was told first, when it is over), on the monotonic clock."""

    def close(self) -> None:
        """A Retry-After was told."""
        asked, now = self.behaviour.retry_after_s, time.monotonic()
        if asked is not None and (not self.closed or now >= self.closed[0][1]):
            self.closed = [(now, now + asked)]

    def early(self) -> bool:
        """Whether nobody should have come now."""
        now = time.monotonic()
        return any(told + LATE_S < now < over for told, over in self.closed)


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request at a time, the next one waits in the buffer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._serving: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._serving is not None:
            self._serving.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self, _: object = None) -> None:
        if self._transport is None or (self._serving is not None and not self._serving.done()):
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self._transport.close()
            return
        head = self._buffer[:end].decode("latin-1")
        size = _content_length(head)
        if len(self._buffer) < end + 4 + size:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        method, path, _version = head.split("\r\n", 1)[0].split(" ", 2)
        self._serving = asyncio.get_running_loop().create_task(self._serve(method, path, body))
        self._serving.add_done_callback(self._next)

    async def _serve(self, method: str, path: str, body: bytes) -> None:
        service = self._service
        if (method, path) == ("GET", "/stats"):
            self._json(200, {**asdict(service.seen), "mode": service.behaviour.mode})
        elif (method, path) == ("POST", "/mode"):
            self._switch(body)
        elif method != "POST" or path not in _PATHS:
            self._json(404, {"error": {"message": f"only POST {' and '.join(_PATHS)}, POST /mode, GET /stats"}})
        else:
            seen = service.seen
            seen.count(success=False)
            seen.early += service.early()
            seen.in_flight += 1
            seen.in_flight_peak = max(seen.in_flight_peak, seen.in_flight)
            try:
                await self._think(path, body)
            finally:
                seen.in_flight -= 1

    def _switch(self, body: bytes) -> None:
        try:
            self._service.behaviour = replace(self._service.behaviour, **json.loads(body))
        except (ValueError, TypeError) as error:
            self._json(400, {"error": {"message": str(error)}})
        else:
            self._json(200, asdict(self._service.behaviour))

    async def _think(self, path: str, body: bytes) -> None:
        service, how = self._service, self._service.behaviour
        met: Mode = how.mode if service.rng.random() < how.share else "ok"
        over = bool(how.capacity) and service.seen.in_flight > how.capacity
        name = "capacity" if over else met
        service.seen.met[name] = service.seen.met.get(name, 0) + 1
        if over or met in ("storm", "overloaded"):
            self._turn_away(503 if name == "overloaded" else 429, how.retry_after_s)
        else:
            await asyncio.sleep(service.latency.of(body, service.seed))
            await self._answer(path, body, met)

    async def _answer(self, path: str, body: bytes, met: Mode) -> None:
        if met == "redirect":
            self._write(307, b"", f"location: {path}\r\n")
        elif met == "html":
            self._write(200, b"<html><body>Welcome</body></html>", kind="text/html")
        elif met == "not_json":
            self._write(200, b'{"choices": [')
        elif met == "hang":
            await asyncio.sleep(3600)
        else:
            await self._complete(met, json.dumps(_completion(path, body, met)).encode())

    def _turn_away(self, status: int, retry_after_s: float | None) -> None:
        self._service.close()
        more = "" if retry_after_s is None else f"retry-after: {retry_after_s:g}\r\n"
        self._write(status, json.dumps({"error": {"message": "come back later", "code": status}}).encode(), more)

    async def _complete(self, met: Mode, raw: bytes) -> None:
        if met == "drip":
            self._send(_head(200, len(raw), "application/json", ""))
            for byte in raw:
                await asyncio.sleep(DRIP_S)
                self._send(bytes([byte]))
        elif met == "cut":
            self._send(_head(200, len(raw), "application/json", "") + raw[: len(raw) // 2])
            if self._transport is not None:
                self._transport.close()
        else:
            self._write(200, raw)
            if met == "ok":
                self._service.seen.count(success=True)

    def _json(self, status: int, content: Any) -> None:
        self._write(status, json.dumps(content).encode())

    def _write(self, status: int, body: bytes, more: str = "", kind: str = "application/json") -> None:
        self._send(_head(status, len(body), kind, more) + body)

    def _send(self, raw: bytes) -> None:
        if self._transport is not None:
            self._transport.write(raw)


def _head(status: int, size: int, kind: str, more: str) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n{more}\r\n".encode()


def _content_length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            return int(value)
    return 0


def _completion(path: str, body: bytes, met: Mode) -> dict[str, Any]:
    chat = path == _PATHS[0]
    inner: dict[str, Any] = {"message": {"role": "assistant", "content": "ok"}} if chat else {"text": "ok"}
    asked = max(1, len(body) // 4)
    whole: dict[str, Any] = {
        "id": "loopback",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": "loopback",
        "choices": [] if met == "empty_choices" else [{"index": 0, "finish_reason": "stop", **inner}],
    }
    if met != "no_usage":
        whole["usage"] = {"prompt_tokens": asked, "completion_tokens": 1, "total_tokens": asked + 1}
    return whole


@contextmanager
def running(latency: Latency, seed: int = 0) -> Iterator[str]:
    """The endpoint as a process of its own while the block lasts; yields its root URL, without /v1."""
    with hosted(__file__, "--latency", str(latency), "--seed", str(seed)) as url:
        yield url


def switch(url: str, mode: Mode, **more: float | None) -> None:
    """Go on in this mode; what else of a `Behaviour` is not given is as at its start."""
    content = {**asdict(Behaviour()), "mode": mode, **more}
    request = urllib.request.Request(f"{url}/mode", json.dumps(content).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="fixed:0.2", help="fixed:SECONDS or lognormal:MEDIAN:P99")
    parser.add_argument("--mode", default="ok", choices=MODES, help="how it begins")
    parser.add_argument("--share", type=float, default=1.0, help="share of the requests that meet the mode")
    parser.add_argument("--retry-after", type=float, help="seconds, sent with 429 and 503")
    parser.add_argument("--capacity", type=int, default=0, help="requests in flight beyond which it answers 429")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed on the first line")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this process is gone")
    given = parser.parse_args()
    try:
        latency = Latency.parse(given.latency)
        behaviour = Behaviour(given.mode, given.share, given.retry_after, given.capacity)
    except ValueError as error:
        parser.error(str(error))
    service = Service(latency, given.seed, behaviour, Seen(), random.Random(given.seed))
    runner()(listen(lambda: Connection(service), given.port, given.parent))


if __name__ == "__main__":
    main()
