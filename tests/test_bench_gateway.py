"""The benchmark of the gateway: requests go out when they are due, the arithmetic is right, a planted loss is seen."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gateway_crash
import gateway_faults
import gateway_load
import gateway_storm
import pytest
from gateway_load import Aim, Told, Volley, answer, due, quantile, shoot
from gateway_table import DIRECT, RIVAL, Shot, cells, shown, summary
from gateway_verdict import Fault, Terms
from hypothesis import given
from hypothesis import strategies as st

from evocluster.cluster.loopback import Latency, running
from evocluster.online.server import TURN_S, alone

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running(Latency.parse("fixed:0.01")) as url:
        yield url


def fired(aim: Aim) -> tuple[Volley, list[Told]]:
    """A volley of this process, and its answers."""
    told: list[Told] = []
    with asyncio.Runner(loop_factory=gateway_load.loop) as runner:
        return runner.run(shoot(aim, told.append)), told


class Stalls(asyncio.Protocol):
    """A server that answers nobody for a while, and then everybody."""

    opens: asyncio.Event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        await self.opens.wait()
        if not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


def test_requests_are_due_as_a_poisson_process_has_it() -> None:
    times = due(200.0, 50.0, seed=3)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 200, rel=0.05)
    assert spread == pytest.approx(mean, rel=0.05), "exponential gaps vary as much as they last"
    assert times == due(200.0, 50.0, seed=3) != due(200.0, 50.0, seed=4)


def test_every_request_is_answered_and_counted(endpoint: str) -> None:
    volley, told = fired(Aim(endpoint, "loopback", 100.0, 0.6, seed=1, warm_s=0.2))
    late = [each for each in due(100.0, 0.8, 1) if each >= 0.2]
    assert volley.sent == len(late) == len(volley.latencies_ms)
    assert volley.failed == 0
    assert len(told) == len(due(100.0, 0.8, 1)), "those that warm up are answered, and not counted"
    assert min(volley.latencies_ms) >= 8, "uvloop counts in milliseconds, and may be one early"


async def test_a_server_that_stalls_is_charged_for_all_who_were_due() -> None:
    Stalls.opens = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stalls, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_later(0.6, Stalls.opens.set)
    volley = await shoot(Aim(url, "m", 200.0, 0.4, seed=2))
    server.close()
    assert volley.sent == len(due(200.0, 0.4, 2)), "none waited for the one before it"
    assert volley.at(0.5) > 200, "a closed loop would have charged one request for the stall"
    assert volley.achieved < 200


async def test_a_server_that_hangs_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class HangsUp(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    server = await asyncio.get_running_loop().create_server(HangsUp, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    volley = await shoot(Aim(f"http://127.0.0.1:{port}", "m", 50.0, 0.2, seed=5))
    server.close()
    assert volley.sent > 0
    assert volley.errors == {"gone": volley.sent}
    assert volley.at(0.99) == math.inf


def test_answers_are_cut_out_of_what_came() -> None:
    plain = b"HTTP/1.1 429 No\r\nX-A: b\r\nContent-Length: 3\r\n\r\nabcHTTP"
    assert answer(plain) == (429, {"x-a": "b", "content-length": "3"}, b"abc", len(plain) - 4)
    assert answer(plain[:-5]) is None
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    found = answer(chunked)
    assert found is not None
    assert (found[2], found[3]) == (b"abcde", len(chunked))
    assert all(answer(chunked[:size]) is None for size in range(len(chunked)))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_so_many_do_not_pass(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(one <= found for one in values) >= share * len(values) - 1e-6


def shot(target: str, p50: float, p99: float, round: int = 0, **more: Any) -> Shot:
    given: dict[str, Any] = {
        "rate": 200.0,
        "sent": 100,
        "failed": 0,
        "achieved": 200.0,
        "cpu_ms": 1.0,
        "core": 0.3,
        "machine": 0.5,
        "foreign": 0.0,
        "late_ms": 0.1,
        "load": 0.5,
        **more,
    }
    return Shot(target=target, round=round, p50_ms=p50, p99_ms=p99, **given)


def test_added_latency_is_the_median_over_rounds_of_differences_within_a_round() -> None:
    shots = [
        *(shot(DIRECT, 50, 60, 0), shot("serve", 52, 64, 0)),
        *(shot(DIRECT, 50, 90, 1), shot("serve", 51, 93, 1)),
        *(shot(DIRECT, 50, 60, 2), shot("serve", 53, 99, 2, failed=3)),
    ]
    cell = cells(shots)[1]
    assert (cell.added_p50_ms, cell.added_p99_ms) == (2, 4)
    assert (cell.failed, cell.sent, cell.rounds) == (3, 300, 3)
    assert "!" not in shown(cells(shots))


def test_rounds_that_others_disturbed_are_left_out_where_there_are_others() -> None:
    calm = [shot(DIRECT, 50, 60, 0), shot("serve", 52, 63, 0)]
    loud = [shot(DIRECT, 50, 60, 1, foreign=0.5), shot("serve", 70, 400, 1)]
    cell = cells([*calm, *loud])[1]
    assert (cell.added_p99_ms, cell.rounds, cell.of, cell.disturbed) == (3, 1, 2, False)
    alone_loud = cells(loud)
    assert alone_loud[1].added_p99_ms == 340
    assert "not a quiet machine" in shown(alone_loud)


def test_a_machine_without_room_is_said_to_be_saturated() -> None:
    full = [shot(DIRECT, 50, 60), shot("serve", 52, 63, core=0.99)]
    assert "serve at 200/s: the machine, or the serving process's core, was saturated" in shown(cells(full))


def test_what_was_not_run_is_null_and_never_invented() -> None:
    found = cells([shot(DIRECT, 50, 60), shot("serve", 52, 64.25)])
    assert summary(found, "serve", None) == {
        "added_p50_ms_200rps": 2,
        "added_p99_ms_200rps": 4.25,
        "litellm_proxy_p99_ms": None,
        "rollback_p99_s": None,
    }
    theirs = cells([shot(DIRECT, 50, 60), shot(RIVAL, 80, math.inf)])
    assert summary(theirs, "serve", 0.25)["litellm_proxy_p99_ms"] is None, "nobody was answered: no figure"
    assert summary(theirs, "serve", 0.25)["rollback_p99_s"] == 0.25
    other = [replace(one, rate=50.0) for one in (shot(DIRECT, 50, 60), shot("serve", 52, 63))]
    assert summary(cells(other), "serve", None)["added_p99_ms_200rps"] is None


def test_a_fault_that_does_harm_is_told_and_leaves_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmful(terms: Terms) -> Fault:
        fault = Fault("harmful", times=2)
        fault.must(True, "no")
        fault.must(False, "two records are lost")
        return fault

    def broken(terms: Terms) -> Fault:
        raise OSError("no such machine")

    away = Fault("away", not_run="no PostgreSQL here")
    faults = {"harmful": harmful, "broken": broken, "away": lambda terms: away, "fine": lambda terms: Fault("fine")}
    monkeypatch.setattr(gateway_faults, "FAULTS", faults)
    said: list[str] = []
    assert gateway_faults.carried_out(list(faults), tmp_path, True, True, said.append) == 1
    assert "two records are lost" in said[0]
    assert "the injector broke: OSError: no such machine" in said[1]
    assert json.loads(said[-1])["faults"] == {
        "harmful": "FAILED",
        "broken": "FAILED",
        "away": "not run",
        "fine": "passed",
    }
    assert gateway_faults.carried_out(["away", "fine"], tmp_path, True, False, said.append) == 0


def test_feedback_that_is_lost_or_counted_twice_is_seen() -> None:
    said = [
        gateway_storm.event("a", at=1.0),
        gateway_storm.event("b", at=2.0),
        gateway_storm.event("c", at=3.0, back="b"),
    ]
    assert gateway_storm.standing(said) == "c"
    assert gateway_storm.standing(said[:2]) == "b"
    rows = [
        {
            "feedback_id": one.id,
            "request_id": one.request,
            "metric": one.metric,
            "source": one.source,
            "observed_at": one.observed_at,
            "supersedes": one.supersedes,
            "state": "accepted",
        }
        for one in said
    ]
    assert gateway_storm.wrong(rows, said) == []
    assert gateway_storm.wrong(rows[:-1], said), "one is missing"
    assert gateway_storm.wrong([*rows, rows[0]], said), "one is there twice"
    assert gateway_storm.wrong([{**rows[0], "state": "pending"}, *rows[1:]], said), "one waits for ever"


def test_a_process_that_serves_is_set_up_for_it_while_it_does() -> None:
    turn, frozen = sys.getswitchinterval(), gc.get_freeze_count()
    with alone():
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        assert gc.get_freeze_count() > frozen
    assert sys.getswitchinterval() == pytest.approx(turn)
    assert gc.get_freeze_count() == frozen


@pytest.mark.slow
def test_one_short_rate() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "scripts/bench_gateway.py", "--short", "--rates", "50", "--rounds", "1"),
            *("--seconds", "2", "--wait", "0", "--no-rollback", "--json"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert set(json.loads(lines[-1]).values()) == {None}, "50 requests/s are not 200, and nothing else was run"
    assert "litellm proxy: not run" in done.stdout
    for target in ("direct", "serve", "serve --no-bodies"):
        row = next(line for line in lines if line.startswith(f"{target:<22} "))
        assert " 0/" in row, "nobody was refused"


@pytest.mark.slow
def test_a_kill_takes_nothing_that_is_older_than_100_ms(tmp_path: Path) -> None:
    fault = gateway_crash.killed(Terms(tmp_path / "kill", True))
    assert not fault.wrong
    assert fault.seen["answered before a kill"] > 0


@pytest.mark.slow
def test_ray_serve_brings_a_killed_replica_back(tmp_path: Path) -> None:
    fault = gateway_crash.replica(Terms(tmp_path / "replica", True))
    assert not fault.wrong
