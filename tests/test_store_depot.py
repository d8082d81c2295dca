"""Runs on object storage, against a real S3-compatible server on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from command import call
from moto.server import ThreadedMotoServer
from small import settings, small_config, write_config

from evocluster import build
from evocluster import config as configs
from evocluster.address import found
from evocluster.engine.engine import Engine, carry
from evocluster.engine.folder import COLUMNS as TRIALS
from evocluster.engine.runner import LocalRunner
from evocluster.engine.shipped import Shipped
from evocluster.errors import ConfigError, RunDamaged, RunExists, RunHeld, StoreError
from evocluster.records import Proposal, Trial
from evocluster.report.entries import run_entry
from evocluster.shipping import collect
from evocluster.store.depot import Depot
from evocluster.store.lease import Lease
from evocluster.store.place import Bucket, below, shown
from evocluster.store.table import scan

COLUMNS = {"n": "int64", "text": "string"}
FEW: dict[str, Any] = {"search": {"population": 4, "block": 4, "finalists": 1}, "budget": {"generations": 1}}
SECRET = "planted-secret-key"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """host:port of the server."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"{host}:{port}"
    started.stop()


@pytest.fixture
def uri(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "planted-key-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client(server).create_bucket(Bucket="runs")
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    return f"s3://runs/some/{name}?endpoint_override={server}&scheme=http&region=us-east-1"


def client(server: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://{server}",
        region_name="us-east-1",
        aws_access_key_id="planted-key-id",
        aws_secret_access_key=SECRET,
    )


def rows(number: int) -> list[dict[str, Any]]:
    return [{"n": number, "text": f"row {number}"}]


def fetched(uri: str, folder: Path) -> list[int]:
    """The rows that count."""
    Depot(uri).fetch(folder, COLUMNS)
    return [row["n"] for chunk in scan(folder / "trials") for row in chunk]


def test_a_run_finds_what_it_finds_in_a_folder_and_can_be_read_from_there(uri: str, tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path, cache={"enabled": False}, **FEW))
    there, here = build.run(plan, uri), build.run(plan, tmp_path / "here")
    assert there.front == here.front
    assert there.address == uri
    names = set(Bucket(uri).names(""))
    assert {name for name in names if not name.startswith("lease/")} == {
        *("SHA256SUMS", "config.yaml", "examples.jsonl", "front.json", "genomes.jsonl", "index.json", "run.json"),
        "trials/part-000001.parquet",
    }
    said: list[str] = []
    assert build.resume(uri, say=said.append).front == here.front
    assert said == [f"{uri} is finished; nothing to do"]
    with pytest.raises(RunExists, match="evocluster resume s3://"):
        build.run(plan, uri)
    shown = call("show", uri, "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["folder"] == uri
    assert json.loads(shown.out)["front"] == here.front
    assert call("report", uri, "--out", tmp_path / "report.html").code == 0
    assert call("report", uri).code == call("watch", uri).code == 2
    for name in names:
        assert SECRET.encode() not in (Bucket(uri).read(name) or b"")


def test_what_reads_a_run_reads_it_from_there(uri: str, tmp_path: Path) -> None:
    settings = {"cache": {"enabled": False}, **FEW}
    build.run(build.plan(small_config(tmp_path, **settings)), uri)
    here = build.run(build.plan(small_config(tmp_path, **settings, seed=8)), tmp_path / "here")
    told = json.loads(call("compare", uri, tmp_path / "here", "--json").out)
    assert (told["a"]["folder"], told["b"]["folder"]) == (uri, str(here.path))
    told = json.loads(call("compare", tmp_path / "here", uri, "--b", "start", "--json").out)
    assert (told["a"]["folder"], told["b"]["folder"]) == (str(here.path), uri)
    assert uri in call("compare", uri).out.replace("\n", "").replace(" ", "")
    same = call("compare", uri, uri)
    assert same.code == 2
    assert "nothing to compare" in same.err
    assert "/tmp" not in same.err, "of the copy nobody is told"
    left = json.loads(call("export", uri, "--as", "json").out)
    assert left["genome"] == (found(uri).recommended or {})["genome"]
    tags = run_entry(found(uri)).tags
    assert tags["evocluster.folder"] == uri
    warm = build.plan(small_config(tmp_path, **settings, warm_start=uri))
    assert {one.id for one in warm.warm} == {one["genome"] for one in found(uri).front["members"]}
    assert configs.load(write_kept(tmp_path / "kept.yaml", warm)).warm_start == uri, "as it was written"
    assert f"warm_start: {uri}" in collect(warm.config).text


def write_kept(path: Path, plan: build.Plan) -> Path:
    """The config of a run folder."""
    path.write_text(configs.dump(plan.config))
    return path


def test_a_folder_of_runs_may_be_there(uri: str, tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path, cache={"enabled": False}, runs=uri, **FEW))
    assert build.run(plan).address == below(uri, "small")
    assert Depot(below(uri, "small")).exists()


KILLED = """
import sys
from evocluster import build
build.run(build.plan(sys.argv[1]), sys.argv[2])
"""


def started(config: Path, uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLED, str(config), uri])


def commits(uri: str) -> list[str]:
    return sorted(name for name in Bucket(uri).names("segments") if name.endswith(".arrows"))


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def slow(folder: Path) -> Path:
    """A config whose models take the time they say."""
    models = {"fake": {**settings()["models"]["fake"], "latency_s": 0.1, "sigma": 0.1, "time_scale": 1.0}}
    return write_config(folder, models=models, engine={"runner": "local", "in_flight": 4})


def test_a_killed_driver_is_resumed_elsewhere_and_nothing_acknowledged_is_paid_again(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = slow(tmp_path / "a")
    child = started(config, uri)
    until(lambda: len(commits(uri)) >= 6)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    Depot(uri).fetch(tmp_path / "left", TRIALS)
    kept = {row["proposal"] for chunk in scan(tmp_path / "left" / "trials") for row in chunk}
    assert len(kept) >= 6
    again: list[int] = []
    submit = LocalRunner.submit

    def counted(runner: LocalRunner, proposal: Proposal) -> None:
        again.append(proposal.number)
        submit(runner, proposal)

    monkeypatch.setattr(LocalRunner, "submit", counted)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    resumed = build.resume(uri)
    assert resumed.status == "finished"
    assert again
    assert not kept & set(again)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path / "third"))
    assert resumed.front == build.run(build.plan(config), tmp_path / "whole").front


def small_engine(uri: str, tmp_path: Path, watch: Callable[[Trial], None]) -> Engine:
    plan = build.plan(small_config(tmp_path, cache={"enabled": False}, **FEW))
    runner = LocalRunner([plan.worker()], None)
    engine = build.engine(plan, uri, True, runner)
    engine._watch = watch
    return engine


async def test_a_put_holds_nobody_up_and_nothing_counts_before_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every put waits for the event loop to go round; what comes back meanwhile shares the next."""
    put, append, turned, ended = Bucket.put, Shipped.append_many, threading.Event(), threading.Event()
    kept: list[list[int]] = []
    told: list[int] = []

    def patient(place: Bucket, name: str, content: bytes) -> None:
        if name.startswith("segments/"):
            turned.clear()
            assert turned.wait(20), "the event loop waits for the put"
        put(place, name, content)

    def append_many(folder: Shipped, trials: Sequence[Trial]) -> None:
        append(folder, trials)
        kept.append([trial.proposal.number for trial in trials])

    def watch(trial: Trial) -> None:
        assert trial.proposal.number in [number for step in kept for number in step], "told before it was put"
        told.append(trial.proposal.number)

    async def turn() -> None:
        while not ended.is_set():
            await asyncio.sleep(0.02)
            turned.set()

    monkeypatch.setattr(Bucket, "put", patient)
    monkeypatch.setattr(Shipped, "append_many", append_many)
    turning = asyncio.ensure_future(turn())
    try:
        assert await carry(small_engine(uri, tmp_path, watch)) == "finished"
    finally:
        ended.set()
        await turning
    assert told == [number for step in kept for number in step]
    assert max(map(len, kept)) > 1
    assert found(uri).front == build.run(build.plan(small_config(tmp_path, **FEW)), tmp_path / "here").front


async def test_a_run_called_off_in_a_put_keeps_what_was_put_and_goes_on(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, under_way, go_on = Bucket.put, threading.Event(), threading.Event()

    def slowly(place: Bucket, name: str, content: bytes) -> None:
        if name.startswith("segments/") and name.count("-000003-"):
            under_way.set()
            go_on.wait(20)
        put(place, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", slowly)
        running = asyncio.ensure_future(carry(small_engine(uri, tmp_path, lambda trial: None)))
        await asyncio.to_thread(under_way.wait, 20)
        running.cancel()
        await asyncio.sleep(0.2)
        assert not running.done(), "the put is waited for"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    Depot(uri).fetch(tmp_path / "left", TRIALS)
    assert json.loads((tmp_path / "left" / "run.json").read_text())["status"] == "failed"
    assert build.resume(uri).status == "finished"
    assert found(uri).front == build.run(build.plan(small_config(tmp_path, **FEW)), tmp_path / "here").front


def test_a_second_driver_leaves_with_exit_code_9(uri: str, tmp_path: Path) -> None:
    child = started(slow(tmp_path / "a"), uri)
    try:
        until(lambda: bool(commits(uri)))
        before = len(commits(uri))
        done = call("resume", uri)
        assert done.code == 9
        assert f"in use by process {child.pid} on " in done.err
        assert len(commits(uri)) > before
    finally:
        child.kill()
        child.wait()


def test_what_a_fenced_writer_still_puts_is_ignored_and_never_acknowledged(uri: str, tmp_path: Path) -> None:
    now = [0.0]
    quick = partial(Lease, lease_s=0.5, settle_s=1.1)
    paused = Depot(uri, lease=partial(Lease, lease_s=0.5, settle_s=1.1, clock=lambda: now[0]))
    paused.begin()
    paused._lease._over.set()  # its beats stop, as those of a stopped process do
    paused._lease._over = threading.Event()
    paused.commit(rows(1), COLUMNS, ["a line"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        second = Depot(uri, lease=quick)
        second.go_on()
    check, first = paused._lease.check, [True]
    paused._lease.check = lambda: None if first.pop() else check()  # type: ignore[method-assign]
    first[:] = [False, True]
    now[0] += 60.0
    with pytest.raises(RunHeld, match="on elsewhere, after this process gave no sign of life"):
        paused.commit(rows(666), COLUMNS, [])  # it passed the first check and was stopped right there
    assert len(commits(uri)) == 2
    second.commit(rows(2), COLUMNS, [])
    assert fetched(uri, tmp_path / "seen") == [1, 2]
    assert (tmp_path / "seen" / "genomes.jsonl").read_text() == "a line\n"
    paused._lease.check = check  # type: ignore[method-assign]
    with pytest.raises(RunHeld):
        paused.finish(tmp_path / "seen")
    second.release()
    third = Depot(uri, lease=quick)
    third.go_on()
    third.commit(rows(3), COLUMNS, [])
    assert fetched(uri, tmp_path / "again") == [1, 2, 3]
    third.release()


def test_damaged_and_missing_objects_are_refused(uri: str, tmp_path: Path) -> None:
    depot = Depot(uri, lease=partial(Lease, sleep=lambda seconds: None))
    depot.begin()
    depot.put("config.yaml", b"name: x\n", listed=True)
    for number in range(3):
        depot.commit(rows(number), COLUMNS, [])
    depot.release()
    place = Bucket(uri)
    for count, name in enumerate(["config.yaml", "index.json", *commits(uri)]):
        content = place.read(name)
        assert content is not None
        for spot in (0, len(content) // 2, len(content) - 1):
            for broken in (content[:spot], content[:spot] + bytes([content[spot] ^ 4]) + content[spot + 1 :]):
                place.put(name, broken)
                with pytest.raises(RunDamaged, match="is not as it was written"):
                    fetched(uri, tmp_path / f"{count}-{spot}-{len(broken)}-{broken[-1:].hex()}")
        place.put(name, content)
    assert fetched(uri, tmp_path / "whole") == [0, 1, 2]
    place.delete(commits(uri)[1])
    with pytest.raises(RunDamaged, match="the commit before it, number 2, is not there"):
        fetched(uri, tmp_path / "gap")


def failed_at(uri: str, at: int, plan: build.Plan, front: Any) -> bool:
    """Whether the `at`-th put of a run was there to fail; the run is then gone on with and compared."""
    put, calls = Bucket.put, [0]

    def full(place: Bucket, name: str, content: bytes) -> None:
        calls[0] += not name.endswith(".beat")  # those come by the clock
        if calls[0] == at and not name.endswith(".beat"):
            raise StoreError(f"cannot write {name!r}")
        put(place, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Depot.__init__, "__defaults__", (None, partial(Lease, sleep=lambda seconds: None)))
        with patch.context() as broken:
            broken.setattr(Bucket, "put", full)
            with suppress(StoreError):
                build.run(plan, uri)
        resumed = build.resume(uri) if Depot(uri).exists() and Bucket(uri).read("config.yaml") else None
    assert resumed is None or resumed.front == front, at
    return calls[0] >= at


@pytest.mark.timeout(600)
def test_any_put_may_fail_and_the_run_goes_on_to_the_same_front(uri: str, tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path, cache={"enabled": False}, **FEW))
    front = build.run(plan, tmp_path / "calm").front
    at = 1
    while failed_at(below(uri, f"at-{at}"), at, plan, front):
        at += 1
    assert at > 15


def test_a_place_that_cannot_be_reached_or_is_none_is_told(uri: str, server: str) -> None:
    with pytest.raises(ConfigError, match="names no object storage"):
        Bucket("ftp://somewhere/run")
    with pytest.raises(StoreError, match=r"cannot write .*what was saved before is intact: check the bucket"):
        Bucket(uri.replace("//runs/", "//nowhere/")).put("x", b"1")
    with pytest.raises(RunDamaged, match="holds no run"):
        build.resume(uri)
    assert shown("s3://key:secret@runs/x") == "s3://runs/x"
