"""Files that an earlier version wrote load for ever: run folders under tests/golden/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command import call

from evocluster.store.table import scan

GOLDEN = Path(__file__).parent / "golden"
FRONT_OF_1 = ["f284d4b440752fc2", "845125ca"]
"""What the version that began folder-1 found when it resumed it."""


def test_folder_without_the_later_columns_is_resumed_to_the_same_front(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "folder-1", run)
    done = call("resume", run, "--json")
    assert done.code == 0, done.err
    front = json.loads(done.out)["front"]
    found = {member["genome"] for member in front["members"]}
    assert all(any(genome.startswith(wanted) for genome in found) for wanted in FRONT_OF_1)
    assert next(one["genome"] for one in front["members"] if one["recommended"]) == FRONT_OF_1[0]
    parts = sorted(path.name for path in (run / "trials").iterdir())
    assert parts == ["part-000001.parquet", "part-000002.parquet"]
    rows = [row for chunk in scan(run / "trials") for row in chunk]
    assert "trace" not in rows[0]
    assert "trace" in rows[-1]
    assert sum(row["kind"] == "evaluation" for row in rows) == 221
