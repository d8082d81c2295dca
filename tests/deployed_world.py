"""A tiny real run, deployed: what the online half stands on in tests."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from small import write_config

from evocluster import build
from evocluster.deploying import Home, deploy

NAME = "colours"
NOW = 1_800_000_000.0
ONLINE = {"gateway": {"poll_s": 0.02}}


@functools.cache
def made(seed: int = 5) -> Path:
    """The folder of a finished run, one for all tests of this process; it is only read."""
    folder = Path(tempfile.mkdtemp(prefix="evocluster-run-"))
    config = write_config(
        folder, seed=seed, budget={"generations": 1}, cache={"path": None}, search={"population": 4, "block": 4}
    )
    build.run(build.plan(config), folder / "run")
    return folder / "run"


def home(folder: Path, ledger: str | None = None) -> Home:
    """An empty one."""
    return Home.open(folder / "deployments", ledger)


def deployed(folder: Path, name: str = NAME, **how: Any) -> Home:
    """One with a deployment: the start of the run."""
    where = home(folder, how.pop("ledger", None))
    deploy(made(), name, where, **{"genome": "start", "now": NOW, "sets": ["online.gateway.poll_s=0.02"], **how})
    return where


def copied(folder: Path) -> Path:
    """A run folder that a test may change."""
    return Path(shutil.copytree(made(), folder / "copied"))
