"""Runs of the search benchmark that are kept in a file: found again by what their settings decide, and never twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_kept
import bench_search
import pyarrow.parquet as pq
import pytest
from bench_kept import Kept
from bench_runs import Case, Run
from small import write_config

from evocluster.errors import ConfigError

RUN = Run(
    task="small",
    strategy="evolve",
    seed=1,
    calls=150,
    tested={"a": 1.0, "b": 0.0, "ü": 0.5},
    start={"a": 0.0, "b": 0.0, "ü": 0.0},
    curve=((0, 0.0), (75, 0.25), (150, 0.5)),
    reported=0.625,
    saved=None,
    front=({"quality": 0.5, "latency_ms": 12.5}, {"quality": 0.25, "latency_ms": 3.0}),
)


def case(folder: Path, **changes: Any) -> Case:
    config = folder / "task" / "small.yaml"
    if not config.exists():
        config.parent.mkdir(parents=True)
        write_config(config.parent, models={"fake": {"kind": "scripted", "default": "blue", "latency_s": 0.0}})
    given = {"out": folder / "out", "config": config, "task": "small", "strategy": "evolve", "seed": 1, "calls": 150}
    return Case(**{**given, "sets": ("space.cot=false",), **changes})


def test_what_is_kept_is_read_as_it_was_and_is_written_once(tmp_path: Path) -> None:
    path, one = tmp_path / "kept.parquet", case(tmp_path)
    assert Kept(path).read(one) is None
    Kept(path).keep(one, RUN)
    assert Kept(path).read(one) == RUN
    stamp = path.stat().st_mtime_ns
    Kept(path).keep(one, replace(RUN))
    assert path.stat().st_mtime_ns == stamp
    Kept(path).keep(one, replace(RUN, reported=None))
    found = Kept(path).read(one)
    assert found is not None
    assert found.reported is None, "the later one takes its place"
    other = replace(RUN, seed=2, strategy="refine")
    Kept(path).keep(replace(one, seed=2, strategy="refine"), other)
    assert pq.read_table(path).select(["strategy", "seed"]).to_pylist() == [
        {"strategy": "evolve", "seed": 1},
        {"strategy": "refine", "seed": 2},
    ]


def test_a_run_is_found_by_what_its_settings_decide(tmp_path: Path) -> None:
    path, one = tmp_path / "kept.parquet", case(tmp_path / "one")
    Kept(path).keep(one, RUN)
    kept = Kept(path)
    assert kept.read(case(tmp_path / "other", out=tmp_path / "elsewhere")) == RUN, "in another folder"
    assert kept.read(replace(one, sets=(*one.sets, "search.alpha=0.2"))) == RUN, "a default that is written out"
    other = ("search.alpha=0.1", "search.block=3", "task.data.limit=8", "task.data.test=other.jsonl")
    for text in (*other, "task.scorers=[{kind: exact}]"):
        assert kept.read(replace(one, sets=(*one.sets, text))) is None, text
    for change in ({"seed": 2}, {"calls": 151}, {"strategy": "breed"}):
        assert kept.read(replace(one, **change)) is None


def test_runs_of_other_code_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, one = tmp_path / "kept.parquet", case(tmp_path)
    Kept(path).keep(one, RUN)
    assert Kept(path).aged([one, replace(one, seed=2)]) == 0
    monkeypatch.setattr(bench_kept, "code", lambda: "another")
    assert Kept(path).aged([one, replace(one, seed=2)]) == 1


@pytest.mark.parametrize("table", [False, True])
def test_another_file_is_refused_and_stays(table: bool, tmp_path: Path) -> None:
    path = tmp_path / "kept.parquet"
    if table:
        pq.write_table(pq.read_table(bench_search.LANDSCAPES / "trec.parquet").slice(0, 2), path)
    else:
        path.write_text("not this")
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match=r"--kept: got '.*kept.parquet', which cannot be read as runs .*; give a file"
    ):
        Kept(path)
    assert path.read_bytes() == before


def test_what_is_kept_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, one = tmp_path / "kept.parquet", case(tmp_path)
    monkeypatch.setattr(bench_search, "cases", lambda given: [one])
    asked = ["--calls", "150", "--data", str(tmp_path), "--json"]
    bench_search.main([*asked, "--out", str(one.out), "--kept", str(path)])
    first = capsys.readouterr().out.splitlines()
    assert first[0] == "small:evolve:1 (150 calls) ..."
    fresh = replace(one, out=tmp_path / "new")
    monkeypatch.setattr(bench_search, "cases", lambda given: [fresh])
    for more in ([], ["--collect"]):
        bench_search.main([*asked, "--out", str(fresh.out), "--kept", str(path), *more])
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == first[-1]
        assert json.loads(said[-1])["test"]["small"]["evolve"] is not None
        assert [line for line in said if " ..." in line] == []
        assert (fresh.out / "curves.svg").exists()
        assert not fresh.home.exists()
