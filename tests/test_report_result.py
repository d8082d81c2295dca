"""Reading a run folder: what is in it, short forms of numbers and genes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import RunDamaged
from evocluster.report.figures import best_split, cell, describe
from evocluster.report.front import front_rows
from evocluster.report.result import Result

GENES = {"cot": False, "demos": [], "rubric": "Which?", "temperature": 0.30000001}


def interval(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


CELLS: tuple[tuple[str, Any, tuple[str, str]], ...] = (
    ("quality", interval(0.5584, 0.4611, 0.6497), ("0.56", "[0.46-0.65]")),
    ("latency_ms", interval(433.7, 400.2, 480.1), ("434 ms", "[400-480]")),
    ("latency_ms", interval(0.123, 0.1, 2.0), ("0.12 ms", "[0.1-2]")),
    ("latency_ms", interval(-1375.2, -1647.0, -4.21), ("-1375 ms", "[-1647..-4.2]")),
    ("cost_usd", interval(3.05e-6, 2.93e-6, 3.19e-6), ("3.05", "[2.93-3.19]")),
    ("cost_usd", interval(1.23456e-3, 1e-3, 2e-3), ("1235", "[1000-2000]")),
    ("margin", interval(-0.5, -0.75, 0.25), ("-0.50", "[-0.75..0.25]")),
    ("tokens", interval(12345.0, 12000.0, 13000.0), ("12345", "[12000-13000]")),
    ("latency_ms", interval(434, 400, None), ("434 ms", "[400-inf]")),
    ("latency_ms", interval(None, None, None), ("-", "")),
    ("latency_ms", None, ("-", "")),
)


@pytest.mark.parametrize(("name", "given", "shown"), CELLS)
def test_cells_are_short(name: str, given: Any, shown: tuple[str, str]) -> None:
    assert cell(name, given) == shown


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_share_with_its_interval_has_at_most_16_signs(value: float, low: float, high: float) -> None:
    assert len(" ".join(cell("quality", interval(value, low, high)))) <= 16


def test_genes_in_one_line() -> None:
    assert describe(GENES) == "cot=False demos=0 rubric='Which?' temperature=0.3"
    changed = {**GENES, "rubric": "One\n  line", "demos": ["a", "b"]}
    assert describe(changed, GENES) == "demos=2 (a, b) rubric='One line'"
    assert describe(GENES, GENES) == ""
    assert describe({"topk": 3}, GENES) == "topk=3"
    assert len(describe({"rubric": "long " * 100})) < 260


def member(genome: str, **more: Any) -> dict[str, Any]:
    return {"genome": genome, "genes": GENES, "recommended": False, "why": "", **more}


def result(folder: Path, start: dict[str, Any] | None, *members: dict[str, Any]) -> Result:
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    front = {"objectives": ["quality"], "start": start, "members": members}
    (folder / "front.json").write_text(json.dumps(front))
    return Result(folder)


def test_rows_are_the_start_then_the_recommended_then_the_rest(tmp_path: Path) -> None:
    test = {"quality": interval(0.5, 0.4, 0.6)}
    found = result(
        tmp_path,
        member("s" * 16, test=test),
        member("a" * 16, train=test, validation=test, test={}),
        member("b" * 16, test=test, gap={"quality": -0.031}, recommended=True, genes={**GENES, "cot": True}),
    )
    rows = front_rows(found)
    assert [row.mark for row in rows] == ["start", "*", ""]
    assert [row.genome for row in rows] == ["s" * 8, "b" * 8, "a" * 8]
    assert [row.split for row in rows] == ["test", "test", "validation"]
    assert [row.gap for row in rows] == ["-", "-0.03", "-"]
    assert [row.configuration for row in rows[1:]] == ["cot=True", "as the start"]
    assert rows[1].cells == (("0.50", "[0.40-0.60]"),)


def test_without_a_start_configurations_stand_whole(tmp_path: Path) -> None:
    assert front_rows(result(tmp_path, None, member("a" * 16)))[0].configuration == describe(GENES)


def test_the_most_honest_split() -> None:
    assert best_split({"test": {"q": 1}, "validation": {"q": 1}}) == "test"
    assert best_split({"test": {}, "validation": {"q": 1}, "train": {"q": 1}}) == "validation"
    assert best_split({}) == "train"


def test_a_run_without_a_front(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    found = Result(tmp_path)
    assert (found.status, found.members, found.start, found.recommended) == ("running", [], None, None)
    assert front_rows(found) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_folders_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RunDamaged, match="holds no run"):
        Result(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDamaged, match=r"run\.json"):
        Result(tmp_path)
