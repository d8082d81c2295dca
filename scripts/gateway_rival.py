"""The LiteLLM proxy before the same endpoint, in an environment of its own: it would move the packages of ours.

with proxied(environment(path), folder, url) as (root, pid): ...
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
"""It loads for long."""


class NotRun(Exception):
    """It cannot be run here, and why."""


def version() -> str:
    """The LiteLLM that evocluster is pinned to."""
    found = re.search(r"^litellm==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    if found is None:
        raise NotRun("requirements.lock pins no litellm")
    return found[1]


def environment(folder: Path) -> Path:
    """A virtual environment with the proxy in it; made there where there is none. Raises: NotRun."""
    program = folder / "bin" / "litellm"
    if not program.exists():
        wanted = f"litellm[proxy]=={version()}"
        print(f"making an environment for {wanted} in {folder}", flush=True)
        for words in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "pip"), "install", "--quiet", wanted],
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=_plain())
            if done.returncode:
                raise NotRun(f"{' '.join(words[-2:])} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    if not program.exists():
        raise NotRun(f"{folder} has no bin/litellm: name an environment with litellm[proxy], or a new folder")
    return folder


def _plain() -> dict[str, str]:
    """The environment without what is ours."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**mine, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOG": "ERROR"}


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def proxied(folder: Path, work: Path, url: str) -> Iterator[tuple[str, int]]:
    """(root URL, process) of the proxy while the block lasts, model `loopback`. Raises: NotRun."""
    work.mkdir(parents=True, exist_ok=True)
    params = {"model": "openai/loopback", "api_base": f"{url}/v1", "api_key": "sk-none"}
    path, port = work / "litellm.yaml", free_port()
    path.write_text(yaml.safe_dump({"model_list": [{"model_name": "loopback", "litellm_params": params}]}))
    words = [str(folder / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    with (work / "litellm.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=_plain(), cwd=work)
    try:
        root = f"http://127.0.0.1:{port}"
        _await(process, root, work / "litellm.log")
        yield root, process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], root: str, log: Path) -> None:
    last = time.monotonic() + START_S
    while time.monotonic() < last and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{root}/health/liveliness", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise NotRun(f"the LiteLLM proxy does not answer: {log.read_text(errors='replace').strip()[-300:]}")
