"""A Ray session and its token."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from evocluster.cluster.session import warn_of_open_token

TOKENLESS = """
import os
from evocluster.cluster.session import session
with session(num_cpus=1):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "token"])
def test_a_local_session_writes_no_token(tmp_path: Path, mode: str | None) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "HOME": str(tmp_path), **({"RAY_AUTH_MODE": mode} if mode else {})}
    subprocess.run([sys.executable, "-c", TOKENLESS], env=environment, check=True, timeout=240)
    assert list(tmp_path.rglob("*")) == []


IMPORTED_BEFORE = """
import os
import ray
from evocluster.cluster.session import session
for _ in range(2):
    with session(num_cpus=1):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        print(ray.get(ray.put(7)))
    assert not {name for name in os.environ if name.startswith("RAY_AUTH")}
"""


@pytest.mark.slow
def test_ray_may_have_been_imported_before(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_BEFORE],
        env={**kept, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["7", "7"]), done.stderr


RUN = """
import sys
from evocluster import build
build.run(build.plan("configs/scripted.yaml", ["engine.runner=ray", "budget.generations=1"]), sys.argv[1])
"""


def listening(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """(address, process) of what a process and its children listen on, as /proc/net/tcp and tcp6 have it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                for socket in one.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        yield str(socket.laddr.ip), " ".join(one.cmdline())[:60]


@pytest.mark.slow
def test_nothing_of_a_local_run_listens_on_a_network(tmp_path: Path) -> None:
    """Driver, GCS, raylet, agents, monitor, workers: whoever is on the same network finds no door."""
    seen: set[tuple[str, str]] = set()
    child = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "run")], cwd=Path(__file__).parents[1])
    try:
        watched = psutil.Process(child.pid)
        deadline = time.monotonic() + 240
        while child.poll() is None and time.monotonic() < deadline:
            seen.update(listening(watched))
            time.sleep(0.1)
    finally:
        child.kill()
    assert child.wait() == 0
    assert len({who for _, who in seen}) >= 5, f"driver, GCS, raylet, agent, workers: {seen}"
    open_ = {(ip, who) for ip, who in seen if not ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback}
    assert not open_


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o600, False), (0o400, False)])
def test_an_open_token_file_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    warn_of_open_token()
    assert caplog.text == ""  # there is none
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("a-token-of-the-user")
    path.chmod(mode)
    warn_of_open_token()
    assert (f"chmod 600 {path}" in caplog.text) is warned
    assert "a-token-of-the-user" not in caplog.text


def test_another_token_file_is_looked_at_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "elsewhere"
    path.write_text("x")
    path.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    warn_of_open_token()
    assert f"chmod 600 {path}" in caplog.text
