"""The yardsticks of the benchmarks are right: greedy schedule, meter, and the endpoint that only waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import bench_engine
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.cluster.ideal import greedy, in_order
from evocluster.cluster.loopback import Latency, running, stats
from evocluster.cluster.meter import ROOT as ROOT_NAME
from evocluster.cluster.meter import Meter, below

ROOT = Path(__file__).resolve().parents[1]
JOBS = st.lists(st.floats(min_value=0.0, max_value=100.0), max_size=60)


@pytest.mark.parametrize(
    ("jobs", "slots", "makespan"),
    [
        ([], 3, 0.0),
        ([1.0] * 6, 2, 3.0),
        ([1.0] * 7, 2, 4.0),
        ([3.0, 1.0, 1.0, 1.0], 2, 3.0),
        ([1.0, 1.0, 1.0, 3.0], 2, 4.0),
        ([5.0, 1.0], 10, 5.0),
    ],
)
def test_greedy_on_small_cases(jobs: list[float], slots: int, makespan: float) -> None:
    assert greedy(jobs, slots) == makespan


@given(JOBS, st.integers(min_value=1, max_value=20))
def test_greedy_keeps_the_bounds_of_graham(jobs: list[float], slots: int) -> None:
    least = max(sum(jobs) / slots, max(jobs, default=0.0))
    most = sum(jobs) / slots + (1 - 1 / slots) * max(jobs, default=0.0)
    assert least - 1e-6 <= greedy(jobs, slots) <= most + 1e-6


def test_greedy_needs_a_slot() -> None:
    with pytest.raises(ValueError, match="slots is 0"):
        greedy([1.0], 0)


def test_phases_wait_for_each_other_in_the_second_bound() -> None:
    jobs = [1.0, 1.0, 1.0, 5.0, 1.0, 1.0]
    assert in_order(jobs, [3, 3], 2) == 2.0 + 5.0
    assert in_order(jobs, [0, 0], 2) == greedy(jobs, 2) == 6.0


def test_growth_is_read_past_the_jumps() -> None:
    points = [(n, 100 + n * 0.001 + (30 if n % 7000 == 0 else 0)) for n in range(0, 100_001, 500)]
    assert bench_engine.slope(points) == pytest.approx(0.001, rel=0.05)


def test_growth_of_a_run_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="more evaluations"):
        bench_engine.slope([(0, 1.0), (100, 2.0)])


@pytest.mark.parametrize("text", ["fixed", "fixed:-1", "fixed:x", "lognormal:2:1", "lognormal:0:1", "normal:1:2"])
def test_a_wrong_latency_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=repr(text)):
        Latency.parse(text)


@pytest.mark.parametrize("text", ["fixed:0.2", "lognormal:1:10"])
def test_a_latency_reads_as_it_is_written(text: str) -> None:
    assert str(Latency.parse(text)) == text


def test_a_lognormal_latency_has_its_median_and_tail() -> None:
    latency = Latency.parse("lognormal:1.0:10.0")
    drawn = sorted(latency.of(b"body %d" % number, 3) for number in range(4000))
    assert statistics.median(drawn) == pytest.approx(1.0, rel=0.1)
    assert drawn[int(len(drawn) * 0.99)] == pytest.approx(10.0, rel=0.3)
    assert latency.of(b"body", 3) == latency.of(b"body", 3) != latency.of(b"body", 4)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Latency.parse("lognormal:0.02:0.1"), seed=5, answers=("yes", 'say "no"')) as address:
        yield address


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    async with session.post(url, json=body) as response:
        assert response.status == 200
        return await response.json(), float(response.headers["x-latency"])


async def test_it_answers_like_a_model(url: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    async with aiohttp.ClientSession() as session:
        chat, seconds = await post(session, f"{url}/v1/chat/completions", body)
        text, _ = await post(session, f"{url}/v1/completions", {"model": "m", "prompt": "hello"})
    assert chat["choices"][0]["message"]["content"] in ("yes", 'say "no"')
    assert text["choices"][0]["text"] in ("yes", 'say "no"')
    usage = chat["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 1
    expected = Latency.parse("lognormal:0.02:0.1").of(json.dumps(body).encode(), 5)
    assert seconds == pytest.approx(expected, abs=1e-6)


async def test_it_keeps_many_waiting_at_once_and_logs_them(url: str) -> None:
    before = stats(url)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        calls = [post(session, f"{url}/v1/chat/completions", {"messages": [], "seed": n}) for n in range(100)]
        answers = await asyncio.gather(*calls)
    seen = stats(url)
    assert seen["count"] - before["count"] == 100
    assert seen["in_flight"] == 0
    assert seen["in_flight_peak"] > 50
    logged = sorted(seen["latencies"][len(before["latencies"]) :])
    assert logged == pytest.approx(sorted(seconds for _, seconds in answers), abs=1e-6)
    assert all(seen["ended_s"])


async def test_a_caller_who_goes_away_is_not_counted_as_answered(url: str) -> None:
    before = stats(url)
    slow = {"messages": [], "seed": max(range(200), key=_seconds)}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await post(session, f"{url}/v1/chat/completions", slow)
    await asyncio.sleep(0.05)
    seen = stats(url)
    assert (seen["arrived"] - before["arrived"], seen["count"] - before["count"], seen["in_flight"]) == (
        1,
        0,
        0,
    )


def _seconds(seed: int) -> float:
    body = json.dumps({"messages": [], "seed": seed}).encode()
    return Latency.parse("lognormal:0.02:0.1").of(body, 5)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"x" * 70_000, b"431"),
    ],
)
async def test_what_it_cannot_serve_is_refused(url: str, request_: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(request_)
    assert (await reader.readline()).split()[1] == status
    writer.close()
    await writer.wait_closed()


async def test_requests_sent_together_are_answered_in_order(url: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    one = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    writer.write(one + one[:30])
    await asyncio.sleep(0.01)
    writer.write(one[30:])
    heads = [(await reader.readuntil(b"\r\n\r\n")) + await reader.readuntil(b"}}") for _ in range(2)]
    assert all(head.startswith(b"HTTP/1.1 200") for head in heads)
    writer.close()
    await writer.wait_closed()


def test_it_dies_with_its_parent() -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from evocluster.cluster import loopback\n"
        "with loopback.running(loopback.Latency.parse('fixed:1')) as url:\n"
        "    print(url, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("http://127.0.0.1:")
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert (gone, alive) == ([child], [])


def test_the_meter_sees_the_cpu_of_the_tree() -> None:
    burn = "import time; e = time.process_time() + 0.3\nwhile time.process_time() < e: pass\ntime.sleep(5)"
    with subprocess.Popen([sys.executable, "-c", burn]) as process:
        started = time.monotonic()
        with Meter(below(process.pid), every_s=0.02) as meter:
            while sum(meter.cpu_s(started, time.monotonic()).values()) < 0.25 and time.monotonic() < started + 4:
                time.sleep(0.05)
        process.kill()
    assert 0.2 < sum(meter.cpu_s(started, time.monotonic()).values()) < 0.6
    assert 0 < meter.machine(started, time.monotonic()) <= 1
    assert meter.peak_mb == pytest.approx(meter.node_mb[""])
    assert meter.peak_mb > 1


def test_a_process_that_is_over_keeps_its_name() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.2)"]) as process:
        listed = below(process.pid)
        with Meter(listed, every_s=0.02) as meter:
            started = time.monotonic()
            while listed()[0].process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < started + 20:
                time.sleep(0.05)
            time.sleep(0.3)
    assert {name for name, _ in meter.processes(started, time.monotonic())} == {ROOT_NAME}
