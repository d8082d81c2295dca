"""An open-loop generator of chat requests, in a process of its own: a request goes out when it is due, whatever became
of those before it, and its latency counts from when it was due, so nothing hides behind a server that stalls.

    volley = fire(Aim(url, "bench", 200.0, 5.0, seed=1))        the process, and what it saw
    await shoot(aim, told)                                      the same in this process; `told` hears of every answer

Gaps are exponential (Poisson arrivals). The event loop waits with select(2), whose timers know microseconds; epoll's
and uvloop's know milliseconds. (Tene 2013, "How NOT to measure latency": coordinated omission.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import selectors
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

CONNECTIONS = 900
"""At once; select(2) knows 1,024 files. Requests that find none wait, and their clock runs."""
PATIENCE_S = 10.0
"""After the last request was due; what has no answer then is an error."""
PADDING = "My parcel was to come on Tuesday and has not; the courier says that nobody was at home. "


@dataclass(frozen=True)
class Aim:
    """What is asked of whom, and how often."""

    url: str
    """Root, without /v1."""
    model: str
    rate: float
    """Requests a second, on average."""
    seconds: float
    seed: int = 0
    warm_s: float = 0.0
    """Seconds before that, at the same rate, that do not count."""


@dataclass
class Volley:
    """What the generator saw."""

    latencies_ms: list[float] = field(default_factory=list)
    """Of answers with status 200, from when they were due."""
    errors: dict[str, int] = field(default_factory=dict)
    """Kind -> how many: a status, `gone`, `timeout`."""
    sent: int = 0
    wall_s: float = 0.0
    """From when the first was due until the last was answered."""
    late_ms: float = 0.0
    """99th percentile of how late requests left this process: what is not the server's."""
    cpu_s: float = 0.0
    """Of the generator."""

    @property
    def failed(self) -> int:
        """Requests without an answer of status 200."""
        return sum(self.errors.values())

    @property
    def achieved(self) -> float:
        """Good answers a second."""
        return len(self.latencies_ms) / self.wall_s if self.wall_s else 0.0

    def at(self, share: float) -> float:
        """Milliseconds at a quantile (nearest rank); infinite where nothing was answered."""
        return quantile(self.latencies_ms, share)


@dataclass(frozen=True)
class Told:
    """One answer, as the client has it."""

    number: int
    at: float
    """When it was whole, seconds since 1970."""
    status: int
    """0: the connection broke."""
    headers: dict[str, str]
    body: bytes

    @property
    def snapshot(self) -> str:
        """That answered, by the headers."""
        return self.headers.get("x-evocluster-snapshot", "")

    @property
    def token(self) -> str:
        """What feedback takes as a target."""
        return self.headers.get("x-evocluster-request-id", "")

    @property
    def request(self) -> str:
        """Its id in the ledger."""
        return self.token.rpartition(".")[0]

    @property
    def text(self) -> str:
        """What the model said."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])


def quantile(values: Sequence[float], share: float) -> float:
    """The value at that share of them, by nearest rank; infinite where there are none."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def due(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start at which requests are due."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, size=int(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    return [float(each) for each in times[times < seconds]]


def request(aim: Aim, number: int) -> bytes:
    """The bytes of one; every question is another one."""
    said = f"{PADDING * 3}Question {aim.seed}-{number}: which queue is that for?"
    body = json.dumps({"model": aim.model, "messages": [{"role": "user", "content": said}]}).encode()
    return post(aim.url, "/v1/chat/completions", body)


def post(url: str, path: str, body: bytes) -> bytes:
    """The bytes of a request that posts JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sk-none\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Line(asyncio.Protocol):
    """One keep-alive connection: a request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waits: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None

    @property
    def open(self) -> bool:
        """It can take another request."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waits is not None and not self._waits.done():
            self._waits.set_exception(ConnectionResetError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._waits is None or self._waits.done():
            return
        found = answer(self._buffer)
        if found is not None:
            status, headers, body, size = found
            del self._buffer[:size]
            self._waits.set_result((status, headers, body))

    async def ask(self, payload: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. Raises: ConnectionError."""
        if self._transport is None:
            raise ConnectionResetError("the server hung up")
        self._waits = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        return await self._waits

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


def answer(buffer: bytes | bytearray) -> tuple[int, dict[str, str], bytes, int] | None:
    """(status, headers, body, bytes taken) of the answer at the start of a buffer; None while it is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status, start = int(first.split(" ", 2)[1]), end + 4
    if headers.get("transfer-encoding", "").lower() != "chunked":
        size = start + int(headers.get("content-length", "0"))
        return (status, headers, bytes(buffer[start:size]), size) if len(buffer) >= size else None
    body = bytearray()
    while (line := buffer.find(b"\r\n", start)) >= 0:
        length = int(bytes(buffer[start:line]).split(b";")[0], 16)
        if len(buffer) < line + 2 + length + 2:
            return None
        body += buffer[line + 2 : line + 2 + length]
        start = line + 2 + length + 2
        if length == 0:
            return status, headers, bytes(body), start
    return None


class Lines:
    """Connections to one host, kept open, as many as it takes."""

    def __init__(self, url: str, most: int = CONNECTIONS) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._idle: deque[Line] = deque()
        self._places = asyncio.Semaphore(most)

    async def ask(self, payload: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer. Raises: OSError."""
        async with self._places:
            line = await self._line()
            try:
                told = await line.ask(payload)
            except BaseException:
                line.close()
                raise
            if told[1].get("connection", "").lower() == "close":
                line.close()
            else:
                self._idle.append(line)
            return told

    async def _line(self) -> Line:
        while self._idle:
            line = self._idle.pop()
            if line.open:
                return line
        _, line = await asyncio.get_running_loop().create_connection(Line, self._host, self._port)
        return line

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().close()


async def shoot(aim: Aim, told: Callable[[Told], object] | None = None) -> Volley:
    """Send all of them when they are due, and wait for the answers."""
    loop, lines, volley, errors = asyncio.get_running_loop(), Lines(aim.url), Volley(), Counter[str]()
    late: list[float] = []
    times = due(aim.rate, aim.warm_s + aim.seconds, aim.seed)
    began = loop.time() + 0.1
    last = 0.0

    async def one(number: int, moment: float) -> None:
        nonlocal last
        counts = times[number] >= aim.warm_s
        payload = request(aim, number)
        if counts:
            late.append((loop.time() - moment) * 1000)
        try:
            status, headers, body = await lines.ask(payload)
        except OSError:
            status, headers, body = 0, {}, b""
        now = loop.time()
        last = max(last, now)
        if told is not None:
            told(Told(number, time.time(), status, headers, body))
        if counts and status == 200:
            volley.latencies_ms.append((now - moment) * 1000)
        elif counts:
            errors["gone" if status == 0 else str(status)] += 1

    under_way: set[asyncio.Task[None]] = set()
    cpu = time.process_time()
    try:
        for number, after in enumerate(times):
            moment = began + after
            if (wait := moment - loop.time()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(number, moment))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            volley.sent += after >= aim.warm_s
        _, hung = await asyncio.wait(under_way, timeout=PATIENCE_S) if under_way else (set(), set())
        errors["timeout"] += len(hung)
    finally:  # also where it is called off
        left = tuple(under_way)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        volley.cpu_s = time.process_time() - cpu
        lines.close()
        await asyncio.sleep(0)  # a closed connection is let go of in the loop's next round
    volley.wall_s = max(last - began - aim.warm_s, aim.seconds)
    volley.errors, volley.late_ms = dict(+errors), quantile(late, 0.99) if late else 0.0
    return volley


def loop() -> asyncio.AbstractEventLoop:
    """One whose timers know microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def fire(aim: Aim) -> Volley:
    """`shoot` in a process of its own. Raises: RuntimeError with what it said."""
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(aim))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the generator ended with {done.returncode}: {done.stderr[-2000:]}")
    return Volley(**json.loads(done.stdout))


@contextmanager
def beside(*aims: Aim) -> Iterator[list[Told]]:
    """`shoot` in a thread while the block lasts (or the aims' seconds are over); the answers, as they come."""
    heard: list[Told] = []
    stopped = asyncio.Event()
    with asyncio.Runner(loop_factory=loop) as runner:
        there = runner.get_loop()

        async def work() -> None:
            shots = [asyncio.create_task(shoot(aim, heard.append)) for aim in aims]
            end: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
            all_shot: asyncio.Future[Any] = asyncio.ensure_future(asyncio.gather(*shots, return_exceptions=True))
            await asyncio.wait([end, all_shot], return_when=asyncio.FIRST_COMPLETED)
            for each in (*shots, end):
                each.cancel()
            await asyncio.gather(*shots, end, return_exceptions=True)

        thread = threading.Thread(target=runner.run, args=(work(),), name="load")
        thread.start()
        try:
            yield heard
        finally:
            there.call_soon_threadsafe(stopped.set)
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aim", help="JSON of an Aim")
    with asyncio.Runner(loop_factory=loop) as runner:
        print(json.dumps(asdict(runner.run(shoot(Aim(**json.loads(parser.parse_args().aim)))))))


if __name__ == "__main__":
    main()
