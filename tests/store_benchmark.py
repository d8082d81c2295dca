"""Keys and rows a second of the store, as medians; run by hand: python tests/store_benchmark.py [folder]."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from evocluster.llm.cached import Cached, LocalCache
from evocluster.llm.client import Message, Reply, Request
from evocluster.store.cache import DiskCache
from evocluster.store.table import Table

COLUMNS = {
    **{name: "string" for name in ("genome_id", "example_id", "split", "output", "scores", "error")},
    **{name: "int64" for name in ("proposal", "twin", "replicate", "prompt_tokens", "completion_tokens")},
    **{name: "float64" for name in ("quality", "latency_ms", "cost_usd")},
    "schema_ok": "bool",
    "parents": "list<string>",
}
WORDS = (
    "the",
    "customer",
    "asks",
    "why",
    "two",
    "payments",
    "of",
    "the",
    "same",
    "amount",
    "were",
    "taken",
    "back",
)


CHANCE = random.Random(7)


def rows(trial: int, size: int) -> list[dict[str, Any]]:
    """Rows like those of a run, with up to 200 characters of output; a third of the columns stay null."""
    return [
        {
            "genome_id": f"{trial:016x}",
            "example_id": f"train-{part}",
            "split": "train",
            "output": " ".join(CHANCE.choices(WORDS, k=40))[:200],
            "proposal": trial,
            "prompt_tokens": 300 + part,
            "completion_tokens": 5,
            "quality": 0.5,
            "latency_ms": 120.0 + part,
            "schema_ok": True,
            "parents": ["a", "b"],
        }
        for part in range(size)
    ]


def timed(name: str, unit: int, what: str, call: Callable[[int], object], rounds: int) -> None:
    """Print the median of `rounds` calls, each of `unit` things: wall and CPU."""
    wall, cpu = [], []
    for number in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        call(number)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    report(name, unit, what, wall, cpu)


def report(name: str, unit: int, what: str, wall: Sequence[float], cpu: Sequence[float]) -> None:
    """One line of the medians."""
    print(f"{name:<34} {median(wall) * 1e3:9.3f} ms, CPU {median(cpu) * 1e3:9.3f} ms", end="")
    print(f"  {unit / median(cpu):10,.0f} {what} a CPU second")


def cache(folder: Path) -> None:
    """Batches of 1 and of 100, values of 250 bytes."""
    shelf = DiskCache(folder)
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]

    def part(number: int) -> Sequence[str]:
        return keys[number * 100 : number * 100 + 100]

    timed("cache put_many(100)", 100, "keys", lambda n: shelf.put_many(dict.fromkeys(part(n), "x" * 250)), 200)
    timed(
        "cache put_many(100) again",
        100,
        "keys",
        lambda n: shelf.put_many(dict.fromkeys(part(n), "y" * 250)),
        200,
    )
    timed("cache get_many(100), hits", 100, "keys", lambda n: shelf.get_many(part(n)), 200)
    timed(
        "cache get_many(100), misses",
        100,
        "keys",
        lambda n: shelf.get_many([key[::-1] for key in part(n)]),
        200,
    )
    timed("cache put_many(1)", 1, "keys", lambda n: shelf.put_many({f"one {n}": "x" * 250}), 500)
    timed("cache get_many(1)", 1, "keys", lambda n: shelf.get_many([keys[n]]), 500)
    shelf.close()
    timed("cache open and close", 1, "opens", lambda _: DiskCache(folder).close(), 5)


def llm(folder: Path) -> None:
    """Calls through Cached over the disk, 100 at once, first missing and then hitting."""
    shelf = DiskCache(folder)

    async def answer(request: Request) -> Reply:
        return Reply(text="refund", prompt_tokens=300, completion_tokens=5, usd=1e-5, seconds=0.1)

    async def run() -> None:
        cached = Cached(answer, LocalCache(shelf), {"m": "benchmark"})
        for name in ("misses", "hits"):
            wall, cpu = [], []
            for number in range(40):
                requests = [
                    Request(model="m", messages=(Message(role="user", content=f"{number} {part}"),), seed=part)
                    for part in range(100)
                ]
                start, used = time.perf_counter(), time.process_time()
                await asyncio.gather(*(cached(request) for request in requests))
                wall.append(time.perf_counter() - start)
                cpu.append(time.process_time() - used)
            report(f"Cached, 100 {name} at once", 100, "calls", wall, cpu)

    asyncio.run(run())
    shelf.close()


def table(folder: Path) -> None:
    """Trials of 16 rows appended, sealed, read and opened."""
    trials = [rows(number, 16) for number in range(1000)]
    written = Table.create(folder, COLUMNS)
    timed("table append(16 rows)", 16, "rows", lambda n: written.append(trials[n]), 1000)
    print(f"{'tail':<34} {sum(f.stat().st_size for f in folder.iterdir()) / written.rows:8.0f} bytes a row")
    timed("table read tail, 16,000 rows", 16_000, "rows", lambda _: sum(map(len, written.read())), 3)
    timed("table close (seal 16,000 rows)", 16_000, "rows", lambda _: written.close(), 1)
    print(f"{'part':<34} {sum(f.stat().st_size for f in folder.iterdir()) / written.rows:8.0f} bytes a row")
    timed("table read part, 16,000 rows", 16_000, "rows", lambda _: sum(map(len, written.read())), 3)
    timed("table open (verify 16,000 rows)", 16_000, "rows", lambda _: Table.open(folder, COLUMNS).close(), 3)
    single = Table.create(folder / "single", COLUMNS, seal_rows=10**9)
    timed("table append(1 row)", 1, "rows", lambda n: single.append(trials[0][:1]), 5000)
    timed("table close (5,000 batches of 1)", 5000, "rows", lambda _: single.close(), 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        cache(Path(name) / "cache")
        llm(Path(name) / "llm")
        table(Path(name) / "table")
