"""Two gateways under Ray Serve: both answer, both follow a roll-back, one that is killed comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from deployed_world import NAME, deployed, made

from evocluster.deploying import deploy, roll_back

pytestmark = [pytest.mark.slow]


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)
    return found


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, text: str = "it looks red") -> tuple[int, str, str]:
    """(status, answer, snapshot); 0 where nobody answers."""
    body = {"model": NAME, "messages": [{"role": "user", "content": text}]}
    try:
        got = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=20)
    except httpx.HTTPError:
        return 0, "", ""
    if got.status_code != 200:
        return got.status_code, got.text, ""
    return 200, got.json()["choices"][0]["message"]["content"], got.headers["x-evocluster-snapshot"]


def test_two_replicas_answer_follow_and_come_back(tmp_path: Path) -> None:
    port = free_port()
    with deployed(tmp_path) as where:
        first = where.pointer(NAME)["snapshot"]
        words = ["serve", "--replicas", "2", "--port", str(port), "--home", str(where.folder)]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "evocluster.cli.main", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": "0"},
            )
        children: list[psutil.Process] = []
        try:
            until(lambda: process.poll() is None and ask(port)[0] == 200, 150)
            rows = until(lambda: len(found := where.ledger.find("replicas")) == 2 and found)
            assert {row["deployment"] for row in rows} == {NAME}
            assert ask(port)[1:] == ("red", first)
            deploy(made(6), NAME, where, genome="recommended", live=True)
            arms = set(where.pointer(NAME)["state"]["arms"])
            until(lambda: {ask(port)[2] for _ in range(20)} == arms)
            done = roll_back(where, NAME)
            assert (done["late"], done["snapshot"]) == ([], first)
            assert {ask(port)[2] for _ in range(20)} == {first}
            children = psutil.Process(process.pid).children(recursive=True)
            replicas = [one for one in children if "ServeReplica" in " ".join(one.cmdline())]
            assert len(replicas) == 2
            killed = replicas[0]
            killed.kill()
            before = {row["id"] for row in rows}
            until(lambda: {row["id"] for row in where.ledger.find("replicas")} - before, 120)
            until(lambda: all(ask(port)[0] == 200 for _ in range(10)))
            children = [*children, *psutil.Process(process.pid).children(recursive=True)]
        except AssertionError:
            sys.stderr.write((tmp_path / "log").read_text()[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _, alive = psutil.wait_procs(children, 30)
            for one in alive:
                one.kill()
        assert process.returncode == 0
        assert alive == []
        assert ask(port)[0] == 0
