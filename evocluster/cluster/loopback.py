"""A loopback OpenAI-compatible endpoint that only waits: the other end of a benchmark.

It answers POST /v1/chat/completions and /v1/completions after a latency drawn from a hash of the request
body and a seed, so the same requests always take the same time, and the schedule of a perfect scheduler can
be worked out from the latencies alone. GET /stats tells what it saw. One asyncio.Protocol on uvloop, without
a framework: 0.02 to 0.1 ms of CPU a request (busy to nearly idle), a few percent of a full client library.

    python -m evocluster.cluster.loopback --latency lognormal:1.0:10.0 --seed 7     # its port on the first line

From Python: `with running(Latency.parse("fixed:0.2")) as url: ...`; `stats(url)` at any time. The process
ends when its parent does, however the parent died.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, cast

_NORMAL = NormalDist()
_Z99 = _NORMAL.inv_cdf(0.99)
_BAD_REQUEST = b'{"error":{"message":"%b","type":"invalid_request_error"}}'
_CHAT = b'{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":%b}}'
_TEXT = b'{"index":0,"finish_reason":"stop","text":%b}'
_PATHS = {
    b"/v1/chat/completions": (b"chat.completion", _CHAT),
    b"/v1/completions": (b"text_completion", _TEXT),
}
_MAX_HEAD = 64 * 1024


@dataclass(frozen=True)
class Latency:
    """How long an answer takes, in seconds: a median and a 99th percentile; both equal is a constant."""

    median_s: float
    p99_s: float

    @classmethod
    def parse(cls, text: str) -> Latency:
        """From `fixed:SECONDS` or `lognormal:MEDIAN:P99`. Raises: ValueError naming both forms."""
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if kind == "fixed" and len(values) == 1 and 0 <= values[0] < math.inf:
            return cls(values[0], values[0])
        if kind == "lognormal" and len(values) == 2 and 0 < values[0] <= values[1] < math.inf:
            return cls(values[0], values[1])
        raise ValueError(
            f"latency {text!r} is neither fixed:SECONDS (>= 0) nor lognormal:MEDIAN:P99 (0 < MEDIAN <= P99), "
            "e.g. fixed:0.2 or lognormal:1.0:10.0"
        )

    def __str__(self) -> str:
        if self.p99_s == self.median_s:
            return f"fixed:{self.median_s:g}"
        return f"lognormal:{self.median_s:g}:{self.p99_s:g}"

    def at(self, share: float) -> float:
        """Seconds at a quantile in (0, 1)."""
        if self.p99_s == self.median_s:
            return self.median_s
        return self.median_s * math.exp(math.log(self.p99_s / self.median_s) / _Z99 * _NORMAL.inv_cdf(share))

    def of(self, body: bytes, seed: int) -> float:
        """Seconds for one request body: the same bytes and seed always take the same time."""
        number = hashlib.blake2b(body, digest_size=8, salt=seed.to_bytes(8, "big")).digest()
        return self.at((int.from_bytes(number, "big") + 0.5) / 2**64)


@dataclass
class Seen:
    """What the endpoint saw since its start; times on the monotonic clock, shared by all processes."""

    count: int = 0
    """Answers sent."""
    arrived: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    connections: int = 0
    """Opened since the start."""
    first_s: float = 0.0
    """When the first request arrived."""
    last_s: float = 0.0
    """When the latest answer was sent."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, in order of arrival."""
    began_s: list[float] = field(default_factory=list)
    """When each arrived."""
    ended_s: list[float] = field(default_factory=list)
    """When each was answered, in order of arrival; 0 while it waits and when its caller went away."""
    idle_cpu_s: float = field(default_factory=lambda: sum(os.times()[:2]))
    """CPU seconds that the process had used before it served."""


@dataclass(frozen=True)
class Service:
    """What all connections share."""

    latency: Latency
    seed: int
    answers: tuple[bytes, ...]
    """JSON strings; the hash of the body picks one."""
    seen: Seen
    loop: asyncio.AbstractEventLoop


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request at a time, the next one waits in the buffer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffer = bytearray()
        self._busy = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._service.seen.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._service.seen.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self._refuse(431, b"head too long")
            return
        head = bytes(self._buffer[:end])
        size = _content_length(head)
        if size is None:
            self._refuse(411, b"Content-Length needed")
            return
        if len(self._buffer) < end + 4 + size:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        method, path, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        self._serve(method, path.split(b"?", 1)[0], body)

    def _serve(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"GET" and path == b"/stats":
            self._write(200, json.dumps(_stats(self._service.seen)).encode(), b"")
        elif method != b"POST" or path not in _PATHS:
            self._write(404, _BAD_REQUEST % b"only POST /v1/chat/completions and /v1/completions, GET /stats", b"")
        else:
            self._think(path, body)

    def _think(self, path: bytes, body: bytes) -> None:
        service, seen = self._service, self._service.seen
        seconds = service.latency.of(body, service.seed)
        now = time.monotonic()
        seen.first_s = seen.first_s or now
        seen.began_s.append(now)
        seen.arrived += 1
        seen.in_flight += 1
        seen.in_flight_peak = max(seen.in_flight_peak, seen.in_flight)
        seen.latencies.append(seconds)
        seen.ended_s.append(0.0)
        self._busy = True
        self._timer = service.loop.call_later(seconds, self._answer, path, body, seen.arrived - 1)

    def _answer(self, path: bytes, body: bytes, number: int) -> None:
        seen = self._service.seen
        self._timer = None
        self._busy = False
        seen.in_flight -= 1
        seen.count += 1
        seen.last_s = seen.ended_s[number] = time.monotonic()
        self._write(200, self._said(path, body), b"x-latency: %.6f\r\n" % seen.latencies[number])
        if self._buffer:
            self._next()

    def _said(self, path: bytes, body: bytes) -> bytes:
        return reply(path, body, self._service.answers)

    def _write(self, status: int, body: bytes, more: bytes) -> None:
        if self._transport is not None:
            head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
            self._transport.write(head % (status, b"OK" if status == 200 else b"Refused", len(body), more) + body)

    def _refuse(self, status: int, why: bytes) -> None:
        self._buffer.clear()
        self._write(status, _BAD_REQUEST % why, b"connection: close\r\n")
        if self._transport is not None:
            self._transport.close()


def _content_length(head: bytes) -> int | None:
    """Bytes of body that follow a head; 0 when it names none; None when it cannot be told."""
    low = head.lower()
    start = low.find(b"\r\ncontent-length:")
    if start < 0:
        return None if b"\r\ntransfer-encoding:" in low else 0
    number = low[start + 17 :].split(b"\r\n", 1)[0].strip()
    return int(number) if number.isdigit() else None


def reply(path: bytes, body: bytes, answers: tuple[bytes, ...]) -> bytes:
    """The JSON body that answers a request body: one of the JSON strings, picked by its hash, and what it used."""
    kind, choice = _PATHS[path]
    answer = answers[0] if len(answers) == 1 else answers[hashlib.blake2b(body).digest()[0] % len(answers)]
    asked, said = max(1, len(body) // 4), max(1, len(answer) // 4)
    usage = b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (asked, said, asked + said)
    form = b'{"id":"loopback","object":"%b","created":0,"model":"loopback","choices":[%b],"usage":%b}'
    return form % (kind, choice % answer, usage)


def _stats(seen: Seen) -> dict[str, Any]:
    return {**vars(seen), "cpu_s": sum(os.times()[:2]) - seen.idle_cpu_s}


async def listen(connection: Callable[[], asyncio.Protocol], port: int, parent: int) -> None:
    """Listen on the loopback, print the port, serve until the process `parent` is not our parent any more."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    orphaned = asyncio.Event()

    def look() -> None:
        if os.getppid() == parent:
            loop.call_later(0.25, look)
        else:
            orphaned.set()

    look()
    await orphaned.wait()
    server.close()


async def _serve(latency: Latency, seed: int, answers: tuple[str, ...], port: int, parent: int) -> None:
    texts = tuple(json.dumps(text).encode() for text in answers)
    service = Service(latency, seed, texts, Seen(), asyncio.get_running_loop())
    await listen(lambda: Connection(service), port, parent)


@contextmanager
def hosted(script: str, *words: str) -> Iterator[str]:
    """What listens there as a process of its own while the block lasts; yields its root URL, without /v1.

    Raises: RuntimeError when it does not come up, as where the port is taken.
    """
    command = [sys.executable, script, *words, "--parent", str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if not said.isdigit():
                raise RuntimeError(
                    f"the loopback endpoint said {said!r} where its port was expected: see its error above"
                )
            yield f"http://127.0.0.1:{said}"
        finally:
            process.kill()


@contextmanager
def running(latency: Latency, seed: int = 0, answers: tuple[str, ...] = ("ok",), port: int = 0) -> Iterator[str]:
    """The endpoint while the block lasts: its root URL; `port`: 0 for any free one. Raises: see `hosted`."""
    texts = [word for text in answers for word in ("--answer", text)]
    with hosted(__file__, "--latency", str(latency), "--seed", str(seed), "--port", str(port), *texts) as url:
        yield url


def stats(url: str) -> dict[str, Any]:
    """What `Seen` holds, and the CPU seconds of the endpoint, as JSON."""
    with urllib.request.urlopen(f"{url}/stats", timeout=30) as answer:
        return cast(dict[str, Any], json.load(answer))


def runner() -> Callable[..., None]:
    """asyncio.run, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return cast(Callable[..., None], uvloop.run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="fixed:0.2", help="fixed:SECONDS or lognormal:MEDIAN:P99")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed on the first line")
    parser.add_argument("--answer", action="append", help="text of an answer; repeat for several, picked by hash")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this process is gone")
    given = parser.parse_args()
    try:
        latency = Latency.parse(given.latency)
    except ValueError as error:
        parser.error(str(error))
    runner()(_serve(latency, given.seed, tuple(given.answer or ["ok"]), given.port, given.parent))


if __name__ == "__main__":
    main()
