"""The loopback endpoint that keeps a ledger: which request came when, and when it was answered completely.

The same waiting endpoint as endpoint.py, but every answer carries the digest of the request it answers, so what
a run has stored (its cache, its trials) says by itself which requests were acknowledged. GET /ledger gives
every request as [digest, arrived_s, answered_s or 0] on the monotonic clock. An answer is a pure function of the
request body: right as often as its temperature is low, so a search has something to find.

    python scripts/chaos_ledger.py --latency fixed:0.02        # prints its port on the first line
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from evocluster.cluster.loopback import Connection, Latency, Seen, Service, hosted, listen, reply, runner

LABELS = ("billing", "refund", "shipping", "returns", "account", "technical", "cancellation", "sales")
MARK = re.compile(rb"#([0-9a-f]{16})")
"""The digest of a request inside the answer to it."""


def digest(body: bytes) -> str:
    """16 hex digits naming one request body."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def answer(body: bytes) -> str:
    """What is answered to a request body: a label, right or wrong, and the digest of the request."""
    asked = json.loads(body)
    said = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
    right = max(LABELS, key=said.rfind)
    luck = int(digest(body), 16) / 2**64
    if luck < 0.9 - 0.5 * float(asked.get("temperature", 0.0)):
        return f"{right} #{digest(body)}"
    return f"{LABELS[int(luck * 1e9) % len(LABELS)]} #{digest(body)}"


class Bookkeeper(Connection):
    """One connection; what came and what was answered goes into the ledger of all."""

    ledger: list[tuple[str, float, float]]

    def _serve(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"GET" and path == b"/ledger":
            self._write(200, json.dumps(self.ledger).encode(), b"")
        else:
            super()._serve(method, path, body)

    def _think(self, path: bytes, body: bytes) -> None:
        self.ledger.append((digest(body), time.monotonic(), 0.0))
        super()._think(path, body)

    def _answer(self, path: bytes, body: bytes, number: int) -> None:
        name, arrived_s, _ = self.ledger[number]
        self.ledger[number] = (name, arrived_s, time.monotonic())
        super()._answer(path, body, number)

    def _said(self, path: bytes, body: bytes) -> bytes:
        # An endpoint that says how long it computed makes latency a pure function of the request too.
        took = b',"timings":{"prompt_ms":%d,"predicted_ms":%d}}' % (len(body) // 10, int(digest(body)[:2], 16))
        return reply(path, body, (json.dumps(answer(body)).encode(),))[:-1] + took


async def serve(latency: Latency, seed: int, parent: int) -> None:
    """Listen on the loopback, print the port, serve until the process `parent` is not our parent any more."""
    service = Service(latency, seed, (), Seen(), asyncio.get_running_loop())
    ledger: list[tuple[str, float, float]] = []

    def connection() -> Bookkeeper:
        made = Bookkeeper(service)
        made.ledger = ledger
        return made

    await listen(connection, 0, parent)


@contextmanager
def keeping(latency: Latency, seed: int = 0) -> Iterator[str]:
    """The endpoint as a process of its own while the block lasts; yields its root URL, without /v1."""
    with hosted(__file__, "--latency", str(latency), "--seed", str(seed)) as url:
        yield url


def ledger(url: str) -> list[tuple[str, float, float]]:
    """Every request that came, in order: (digest, arrived_s, answered_s or 0)."""
    with urllib.request.urlopen(f"{url}/ledger", timeout=60) as found:
        entries: list[Any] = json.load(found)
    return [(name, arrived_s, answered_s) for name, arrived_s, answered_s in entries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="fixed:0.02", type=Latency.parse, help=Latency.parse.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this process is gone")
    given = parser.parse_args()
    runner()(serve(given.latency, given.seed, given.parent))


if __name__ == "__main__":
    main()
