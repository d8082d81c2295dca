"""The k-th write of a run fails, for every k: a clean end, nothing undetected, and a resume to the same front."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from damage import memory
from small import small_config, write_config

from evocluster import build
from evocluster.errors import StoreError
from evocluster.store import arrow

CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("open", "write", "fsync", "ftruncate", "pwrite")),
    *((Path, name) for name in ("write_text", "replace", "unlink", "mkdir")),
    (arrow, "write_part"),
)
"""Everything by which the store touches the disk for writing."""
FEW: dict[str, Any] = {"search": {"population": 4, "block": 4, "finalists": 1}, "budget": {"generations": 1}}


class Disk:
    """Fails the `at`-th call of the store, or that and all after it."""

    def __init__(self, at: int, number: int, ever_after: bool) -> None:
        self.at = at
        self.calls = 0
        self.number = number
        self.ever_after = ever_after

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if f"{os.sep}store{os.sep}" in sys._getframe(1).f_code.co_filename:
                self.calls += 1
                if self.calls == self.at or (self.ever_after and self.calls > self.at):
                    raise OSError(self.number, os.strerror(self.number))
            return call(*args, **kwargs)

        return wrapper


@contextmanager
def failing(at: int, number: int, ever_after: bool) -> Iterator[Disk]:
    disk = Disk(at, number, ever_after)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, disk.wrapped(getattr(owner, name)))
        yield disk


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[build.Plan, dict[str, Any]]:
    """A small run that nothing disturbs: its plan and its front."""
    path = tmp_path_factory.mktemp("calm")
    plan = build.plan(small_config(path, cache={"enabled": False}, **FEW))
    return plan, build.run(plan, path / "run").front


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where runs are written over and over."""
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


def disturbed(calm: tuple[build.Plan, dict[str, Any]], path: Path, at: int, number: int, ever_after: bool) -> bool:
    """Whether the failure came at all; the run is then gone on with and compared."""
    plan, front = calm
    said = ""
    with failing(at, number, ever_after) as disk:
        try:
            build.run(plan, path)
        except StoreError as error:
            said = str(error)
    if said:
        assert os.strerror(number) in said
        assert "resume" in said
    elif ever_after:
        assert disk.calls <= at + 1  # the very last: giving the lease back
    resumed = build.resume(path) if (path / "config.yaml").exists() else build.run(plan, path)
    assert resumed.front == front, (at, number, ever_after)
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=path, check=False).returncode == 0
    shutil.rmtree(path)
    return disk.calls >= at


@pytest.mark.parametrize("ever_after", [False, True])
def test_some_writes_fail(calm: tuple[build.Plan, dict[str, Any]], folder: Path, ever_after: bool) -> None:
    for at in (1, 2, 3, 4, 8, 17, 23, 34, 45, 61):
        assert disturbed(calm, folder / "run", at, errno.ENOSPC, ever_after)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ever_after", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_write_fails_in_its_turn(
    calm: tuple[build.Plan, dict[str, Any]], folder: Path, number: int, ever_after: bool
) -> None:
    at = 1
    while disturbed(calm, folder / "run", at, number, ever_after):
        at += 1
    assert at > 60


REALLY_FULL = """
import json, os, subprocess, sys
from pathlib import Path
from evocluster import build
from evocluster.errors import StoreError
config, small = sys.argv[1], Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
plan = build.plan(config)
try:
    build.run(plan, small / "run")
except StoreError as error:
    said = str(error)
open_files = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if number.isdigit()
              and os.path.islink(f"/proc/self/fd/{number}")]
held = [path for path in open_files if path.startswith(str(small))]
subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
print(json.dumps([said, held, build.resume(small / "run").front]))
"""


def test_a_disk_that_is_really_full_ends_the_run_and_it_goes_on_when_there_is_space(tmp_path: Path) -> None:
    # In a mount namespace of its own: whatever happens, the file system goes with the process.
    alone = ["unshare", "--mount"]
    if os.geteuid() != 0 or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own takes root")
    config = write_config(tmp_path, cache={"enabled": False}, **FEW)
    (tmp_path / "small").mkdir()
    command = [*alone, sys.executable, "-c", REALLY_FULL, str(config), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said, held, front = json.loads(done.stdout.splitlines()[-1])
    assert "No space left on device" in said
    assert held == []
    assert front == build.run(build.plan(config), tmp_path / "whole").front
