"""A run on a real, token-protected Ray head through its job server alone: submit, stop, resume, attach, fetch."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small import settings, write_config

from evocluster import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
START_S = 90


class Head(NamedTuple):
    """A cluster of one node."""

    url: str
    environment: dict[str, str]
    """Of who may use it."""

    def call(self, *words: object, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """`evocluster WORDS` in a process of its own."""
        return subprocess.run(
            self.words(*words), env=self.environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def words(self, *words: object) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "evocluster.cli.main", *map(str, words)]


def _ports(count: int) -> list[int]:
    """Free ports below those that the system gives out by itself: nobody else comes by them before Ray binds them."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
            each = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("0.0.0.0", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` in a process group of its own, with its files in a short temporary folder."""
    folder = Path("/tmp") / f"evo-{secrets.token_hex(4)}"  # sockets of Ray have paths of 107 characters at most
    folder.mkdir(mode=0o700)
    port, dashboard, listen, metrics, client = _ports(5)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    ours = {name: value for name, value in mine.items() if name != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    theirs = {**ours, **token, "PATH": path, "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    theirs["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    words = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"),
        *(f"--temp-dir={folder / 'ray'}", f"--dashboard-agent-listen-port={listen}"),
        *(f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}"),
        "--object-store-memory=134217728",
    ]
    with (folder / "head.log").open("wb") as log:
        started = subprocess.Popen(words, env=theirs, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{dashboard}"
    made = Head(url, {**mine, **token, "RAY_API_SERVER_ADDRESS": url, "HOME": str(folder)})
    try:
        _until(lambda: made.call("job", "list").returncode == 0, START_S, lambda: (folder / "head.log").read_text())
        yield made
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(timeout=15)
        shutil.rmtree(folder, ignore_errors=True)


def _until(reached: Any, most_s: float, say: Any = lambda: "") -> None:
    ends = time.monotonic() + most_s
    while not reached():
        assert time.monotonic() < ends, say()
        time.sleep(1)


def project(folder: Path, name: str, latency_s: float) -> Path:
    """A config with data and code of its own; every call of its model takes so long."""
    folder.mkdir()
    (folder / "evals.py").write_text(
        "from lengths import SHORT\n\ndef short(output, example):\n    return len(output) in SHORT\n"
    )
    (folder / "lengths.py").write_text("SHORT = {3, 4}\n")
    scorers = [{"kind": "label"}, {"kind": "function", "function": "evals.py:short"}]
    task = {**settings()["task"], "scorers": scorers, "weights": {"short": 0}}
    fake = {**settings()["models"]["fake"], "latency_s": latency_s, "time_scale": 1.0}
    return write_config(folder, name=name, task=task, models={"fake": fake}, cache={"path": None})


def front(folder: Path) -> Any:
    """front.json."""
    return json.loads((folder / "front.json").read_text())


def test_a_submitted_run_finds_what_a_local_one_finds(head: Head, tmp_path: Path) -> None:
    config = project(tmp_path / "project", "whole", 0.05)
    done = head.call("submit", config, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["run"]["status"] == "finished"
    assert "search | generation" in done.stderr
    status = json.loads(head.call("job", "status", "whole", "--json").stdout)
    assert (status["status"], status["exit_code"]) == ("SUCCEEDED", 0)
    got = head.call("job", "fetch", "whole", "--out", tmp_path / "fetched", "--config", config)
    assert got.returncode == 0, got.stderr
    build.run(build.plan(config), tmp_path / "local")
    assert front(tmp_path / "fetched") == front(tmp_path / "local") == told["front"]
    assert head.call("submit", config).returncode == 3
    stranger = Head(head.url, {**head.environment, "RAY_AUTH_TOKEN": "0" * 48})
    assert stranger.call("job", "list").returncode == 10


def test_a_run_is_stopped_resumed_left_and_attached_to_again(head: Head, tmp_path: Path) -> None:
    config = project(tmp_path / "project", "slow", 1.0)
    assert head.call("submit", config, "--no-follow").returncode == 0
    _until(lambda: "progress" in json.loads(head.call("job", "status", "slow", "--json").stdout), 60)
    stopped = head.call("job", "stop", "slow")
    assert (stopped.returncode, stopped.stdout.splitlines()[-1]) == (0, "slow: STOPPED")
    assert head.call("job", "attach", "slow").returncode == 130
    assert head.call("job", "fetch", "slow", "--out", tmp_path / "half").returncode == 0
    assert json.loads((tmp_path / "half" / "run.json").read_text())["status"] == "interrupted"

    with (tmp_path / "following.log").open("wb") as log:
        following = subprocess.Popen(
            head.words("submit", config, "--resume", "slow"), env=head.environment, stdout=log, stderr=log
        )
        _until(lambda: b"run folder on the cluster" in (tmp_path / "following.log").read_bytes(), 60)
        following.kill()
        following.wait()
    attached = head.call("job", "attach", "slow", "--json")
    assert attached.returncode == 0, attached.stderr
    assert head.call("job", "fetch", "slow", "--out", tmp_path / "fetched").returncode == 0
    build.run(build.plan(config, ["models.fake.time_scale=0"]), tmp_path / "local")
    assert front(tmp_path / "fetched") == front(tmp_path / "local")


def test_a_key_that_the_cluster_lacks_ends_the_job_at_once(head: Head, tmp_path: Path) -> None:
    planted = "planted-" + secrets.token_hex(8)
    model = {"kind": "direct", "base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "PLANTED_KEY"}
    model["price"] = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}  # type: ignore[assignment]
    space = {"rubric": ["Which?"], "max_tokens": [1, 8], "model": ["fake"]}
    start = [{"rubric": "Which?"}]
    config = write_config(tmp_path / "keyed", name="keyed", models={"fake": model}, space=space, start=start)
    mine = Head(head.url, {**head.environment, "PLANTED_KEY": planted})
    done = mine.call("submit", config)
    assert done.returncode == 2
    assert "not set on this cluster: PLANTED_KEY" in done.stderr
    of_ray = Path(head.environment["HOME"])
    found = [file for file in of_ray.rglob("*") if file.is_file() and planted.encode() in file.read_bytes()]
    assert (found, planted in done.stderr) == ([], False)
