"""Damage of a run folder: every cut and every flipped bit is refused, or is what a crash leaves and changes nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from small import small_config

from evocluster import build
from evocluster.engine.folder import Folder
from evocluster.records import Trial

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from damage import sweep

CRASH = ("trials/tail-000001.arrows", "trials/tail-000001.receipts", "genomes.jsonl")
"""Where a crash may leave a half-written end."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small run as a kill after its fifth commit leaves it, and as it is when it was closed."""
    path = tmp_path_factory.mktemp("damage")
    few = {"search": {"population": 4, "block": 4, "finalists": 1}, "budget": {"generations": 1}}
    keep, kept = Folder.append_many, []

    def killed(folder: Folder, trials: Sequence[Trial]) -> None:
        keep(folder, trials)
        kept.append(trials)
        if len(kept) == 5:
            shutil.copytree(folder.path, path / "killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "append_many", killed)
        build.run(build.plan(small_config(path, cache={"enabled": False}, **few)), path / "closed")
    return {"killed": path / "killed", "closed": path / "closed"}


def swept(folder: Path, flips: int | None) -> None:
    counts = sweep(folder, flips)
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = {name for name in files if not name.startswith(".") and name != "log.jsonl"}  # a log decides nothing
    assert set(counts) == names
    for name, found in counts.items():
        assert found["cut unnoticed"] == found["flip unnoticed"] == 0, (name, found)
        if flips is None:
            size = (folder / name).stat().st_size
            assert found["cut refused"] + found["cut same"] == found["flip refused"] + found["flip same"] == size
        if name not in CRASH:
            assert found["flip same"] == 0, (name, found)
    assert sum(found["flip refused"] for found in counts.values()) > 0


@pytest.mark.parametrize("state", ["killed", "closed"])
def test_damage_at_places_of_every_file_is_noticed(folders: dict[str, Path], state: str) -> None:
    swept(folders[state], 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("state", ["killed", "closed"])
def test_damage_at_every_byte_of_every_file_is_noticed(folders: dict[str, Path], state: str) -> None:
    swept(folders[state], None)
