"""Files: whole or absent, lines never joined, one holder a folder."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evocluster.errors import RunDamaged, RunHeld, StoreError
from evocluster.store.files import append_line, lock, read_json, refuse_links, write_atomic

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, '{"a": "ü"}\r\n')
    assert path.read_bytes() == '{"a": "ü"}\r\n'.encode()
    write_atomic(path, "[]")
    assert read_json(path) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.json"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"run\.json.*No space left on device.*free disk space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(StoreError, match="No such file"):
        write_atomic(tmp_path / "nowhere" / "run.json", "new")


def test_lines_are_appended_and_a_half_line_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, "1")
    append_line(path, "2")
    path.write_bytes(path.read_bytes() + b'{"hal')
    append_line(path, "3")
    assert path.read_text() == '1\n2\n{"hal\n3\n'
    with pytest.raises(ValueError, match="line break"):
        append_line(path, "a\nb")
    with pytest.raises(StoreError, match="Is a directory"):
        append_line(tmp_path, "1")


LIMITED = """
import json, resource, sys
from pathlib import Path
from evocluster.errors import StoreError
from evocluster.store.files import append_line
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for number in range(1000):
    try:
        append_line(path, "x" * 98)
    except StoreError as error:
        print(json.dumps([number, str(error), path.stat().st_size]))
        break
    if number == 5:
        append_line(path, "y" * 48)
"""


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "lines")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    number, message, size = json.loads(done.stdout)
    assert (number, size) == (9, 9 * 99 + 49)
    assert "File too large" in message


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_broken_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "front.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunDamaged, match=r"front\.json.*restore it"):
        read_json(path)


HOLDING = """
import sys
from pathlib import Path
from evocluster.store.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_holder_and_is_free_after_a_kill(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(RunHeld, match=f"in use by process {child.pid} "), lock(tmp_path):
            pass
        child.kill()
    with lock(tmp_path), pytest.raises(RunHeld, match=f"in use by process {os.getpid()} "), lock(tmp_path):
        pass
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    with pytest.raises(StoreError, match="No such file"), lock(tmp_path / "nowhere"):
        pass


def _locked(path: Path) -> None:
    with lock(path.parent):
        pass


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("genomes.jsonl", lambda path: append_line(path, "{}")),
        (f".run.json.{os.getpid()}.tmp", lambda path: write_atomic(path.with_name("run.json"), "{}")),
        (".lock", _locked),
    ],
)
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, write: Callable[[Path], Any]) -> None:
    aim = tmp_path / "aim"
    aim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(aim)
    with contextlib.suppress(StoreError):
        write(run / name)
    assert aim.read_text() == "mine"


def test_a_run_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    refuse_links(tmp_path)
    (tmp_path / "trials" / "tail.arrows").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunDamaged, match=r"tail\.arrows' is a symbolic link to .*nowhere'"):
        refuse_links(tmp_path)
