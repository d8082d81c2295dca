"""Deployments made for a benchmark, and `evocluster serve` before them in processes of its own.

home = made(folder, loopback_url)     a tiny finished run, deployed as `bench` (asks the loopback endpoint) and as
                                      `named` (versions v1.0 and v2.0, whose models answer with their own name)
with served(home, "bench") as site: site.url, site.pid, site.cpu_s()
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from evocluster import deploying
from evocluster.deploying import Home

ROOT = Path(__file__).resolve().parents[1]
PRICE = {"prompt_usd_per_mtok": 0.15, "completion_usd_per_mtok": 0.60}
RUBRIC = "Which queue should this support message go to? Queues: shipping, billing, refund."
NAMES = ("one", "two")
"""Models that answer with their own name: what v1.0 and v2.0 of `named` ask."""
VERSIONS = ("v1.0", "v2.0")
START_S = 60.0
"""A gateway that does not listen by then never will."""


def environment() -> dict[str, str]:
    """What every process gets: this checkout, one BLAS thread."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def config(folder: Path, url: str, online: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the run."""
    frozen = {"cot": False, "max_tokens": 16, "demo_style": "chat", "constrain": False, "temperature": 0}
    scripted = {name: {"kind": "scripted", "default": name, "latency_s": 0.001} for name in NAMES}
    direct = {"kind": "direct", "base_url": f"{url}/v1", "model": "loopback", "timeout_s": 30, "price": PRICE}
    return {
        "name": "gateway",
        "seed": 7,
        "task": {
            "kind": "text",
            "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            "scorers": [{"kind": "exact"}],
        },
        "models": {"loopback": direct, **scripted},
        "space": {"rubric": {"texts": [RUBRIC], "fixed": True}, "demos": {"max": 0}, "model": ["loopback"], **frozen},
        "start": [{"rubric": RUBRIC, "model": "loopback", "demos": [], **frozen}],
        "search": {"population": 2, "block": 2, "finalists": 1},
        "budget": {"calls": 20},
        "engine": {"in_flight": 8, "runner": "local"},
        "cache": {"path": str(folder / "cache")},
        "online": dict(online),
    }


def made(folder: Path, url: str, ledger: str | None = None, online: Mapping[str, Any] | None = None) -> Place:
    """A home with both deployments, in `folder`; `url`: of the loopback endpoint. Raises: RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        examples = [{"id": f"{split}-{n}", "input": f"{split} message {n}", "expected": "ok"} for n in range(4)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in examples))
    path, run = folder / "gateway.yaml", folder / "run"
    path.write_text(yaml.safe_dump(config(folder, url, online or {}), sort_keys=False))
    command = [sys.executable, "-m", "evocluster.cli.main", "run", str(path), "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise RuntimeError(f"the run that is deployed ended with {done.returncode}: {done.stderr or done.stdout}")
    place = Place(folder / "deployments", ledger)
    with place.open() as home:
        deploying.deploy(run, "bench", home, genome="start")
        _named(home)
    return place


def _named(home: Home) -> None:
    """The deployment whose versions say which of them answered."""
    now, origin = time.time(), {"by": "benchmark"}
    row, config = home.pointer("bench"), deploying.deployed(home, "bench").config
    base = home.snapshot(row["snapshot"])
    for name, version in zip(NAMES, VERSIONS, strict=True):
        genes = {**base.strategy.genes, "model": name}
        snapshot = base.changed(strategy=base.strategy.model_copy(update={"genes": genes}))
        if version == VERSIONS[0]:
            deploying.first(home, "named", config, snapshot, origin, now, row["facts"]["shape"])
        else:
            deploying.candidate(home, "named", snapshot, layer="", trigger=origin, now=now)


def texts(home: Home) -> dict[str, str]:
    """Snapshot of `named` -> what it answers."""
    versions = {row["version"]: row["snapshot"] for row in home.ledger.find("versions", {"deployment": "named"})}
    return {versions[version]: name for version, name in zip(VERSIONS, NAMES, strict=True)}


@dataclass(frozen=True)
class Place:
    """Where the deployments are."""

    folder: Path
    ledger: str | None = None

    def open(self) -> Home:
        """Raises: errors.StoreError."""
        return Home.open(self.folder, self.ledger)


@dataclass
class Site:
    """A process that serves."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    def cpu_s(self) -> float:
        """CPU seconds of it and of all that it started."""
        return cpu_s(self.pid)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM, and wait: the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of those it started; 0 where it is gone."""
    try:
        top = psutil.Process(pid)
        every = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0.0
    for one in every:
        try:
            used = one.cpu_times()
            total += used.user + used.system
        except psutil.Error:
            continue
    return total


_SAID = re.compile(r"serving .* at (http://\S+)/v1")


def start(place: Place, name: str, log: Path, *words: str) -> Site:
    """`evocluster serve NAME`, not waited for."""
    ledger = ("--ledger", place.ledger) if place.ledger else ()
    command = [
        *(sys.executable, "-m", "evocluster.cli.main", "serve", name, "--home", str(place.folder)),
        *("--port", "0", *ledger, *words),
    ]
    place.folder.mkdir(exist_ok=True)  # where the ledger is a server, nobody made it yet
    with log.open("ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment(), cwd=place.folder)
    return Site("", process, log)


def listening(site: Site, within_s: float = START_S) -> Site:
    """The same once it listens, with its URL. Raises: RuntimeError with what it said."""
    last = time.monotonic() + within_s
    while time.monotonic() < last and site.process.poll() is None:
        found = _SAID.search(site.log.read_text())
        if found:
            site.url = found[1]
            return site
        time.sleep(0.02)
    site.kill()
    raise RuntimeError(f"evocluster serve does not listen: {site.log.read_text()[-2000:]}")


@contextmanager
def served(place: Place, name: str, *words: str, count: int = 1) -> Iterator[list[Site]]:
    """So many processes that serve it, ended with the block."""
    folder = place.folder.parent / "logs"
    folder.mkdir(exist_ok=True)
    begun: list[Site] = []
    try:
        for _ in range(count):
            begun.append(start(place, name, folder / f"{name}-{time.time_ns()}.log", *words))
        for site in begun:
            listening(site)
        yield begun
    finally:
        ended(begun)


def ended(sites: Sequence[Site]) -> None:
    """End all that still run."""
    for site in sites:
        if site.process.poll() is None:
            site.process.send_signal(signal.SIGTERM)
    for site in sites:
        try:
            site.process.wait(40)
        except subprocess.TimeoutExpired:
            site.kill()
