"""The notebook that ships: clean as committed, and every cell of it runs in a real kernel."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "configs" / "notebook.ipynb"


def cells(notebook: Any, kind: str = "code") -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def texts(cell: Any, mime: str = "text/plain") -> Iterator[str]:
    """What a cell printed or showed."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif mime in output.get("data", {}):
            yield output.data[mime]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, executed by this Python in a folder of its own."""
    home = tmp_path_factory.mktemp("home")
    kernel = home / "jupyter" / "kernels" / "evocluster-test"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    (home / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(home / "jupyter"))
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HOME", "TMPDIR"):
            (home / name.lower()).mkdir()
            patch.setenv(name, str(home / name.lower()))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        client = NotebookClient(
            notebook,
            timeout=120,
            kernel_name="evocluster-test",
            resources={"metadata": {"path": str(home / "work")}},
        )
        client.execute()
    assert list((home / "work").iterdir()) == [], "it writes into its temporary folder only"
    runs = list((home / "tmpdir").glob("evocluster-*/run"))
    assert len(runs) == 1
    return notebook


def test_as_committed_it_is_clean() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells(notebook))
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    source = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"""["'(\s](/|~/|[A-Z]:\\)\w""", source), "relative paths only"
    assert "sk-" not in source


@pytest.mark.slow
def test_the_result_shows_itself(executed: Any) -> None:
    shown = next(cell for cell in cells(executed) if cell.source.rstrip().endswith("\nresult"))
    (html,) = texts(shown, "text/html")
    assert "<svg" in html
    assert "tickets" in html
    assert "recommended" in html
    (plain,) = texts(shown)
    assert plain.startswith("Result(")


@pytest.mark.slow
def test_the_winner_beats_the_start(executed: Any) -> None:
    shown = next(cell for cell in cells(executed) if "result.compare" in cell.source)
    (plain,) = texts(shown)
    assert re.search(r"quality: B is better by 0\.\d\d \[0\.\d\d, 0\.\d\d\] on 40 examples, p = 0\.0\d+", plain)
    (html,) = texts(shown, "text/html")
    assert "B is better by" in html


@pytest.mark.slow
def test_tables_and_answer(executed: Any) -> None:
    front, changes, trials = (
        next("".join(texts(cell, "text/html")) for cell in cells(executed) if part in cell.source)
        for part in ("to_pandas", "comparison.changes", "read_parquet")
    )
    assert "genes.rubric" in front
    assert "fixed" in changes
    assert "latency_ms" in trials
    (printed,) = texts(next(cell for cell in cells(executed) if "program.run" in cell.source))
    assert "The app crashes when I look at my orders" in printed
    assert printed.rstrip().endswith("-> technical")


@pytest.mark.slow
def test_nothing_was_written_to_standard_error(executed: Any) -> None:
    assert [output.text for cell in cells(executed) for output in cell.outputs if output.get("name") == "stderr"] == []
