"""Objectives of the user's own and constraints on them, from the config to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from browser import launched, opened
from command import call
from small import settings, small_config

from evocluster import build
from evocluster.engine.forecast import forecast
from evocluster.records import Usage
from evocluster.report import page
from evocluster.report.result import Result
from evocluster.report.story import facts

EVALS = """
def words(output, example):
    return 10.0 * len(str(output).split())


def mood(output, example):
    return -3.0 if "no" in str(output) else 0.5
"""
OBJECTIVES = [
    "quality",
    {"name": "politeness", "source": "scores.mood", "direction": "max"},
    {"name": "words", "source": "scores.words", "direction": "min", "aggregate": "mean"},
    {"name": "longest", "source": "scores.words", "direction": "min", "aggregate": "p95"},
    {"name": "tokens", "source": "tokens", "direction": "max"},
]


def run(folder: Path, **changes: Any) -> Result:
    """A run with scorers of the user's own that have no weight, so that any number is allowed."""
    folder.mkdir()
    (folder / "evals.py").write_text(EVALS)
    own = [{"kind": "function", "function": f"evals.py:{name}", "name": name} for name in ("words", "mood")]
    task = {
        **settings()["task"],
        "scorers": [{"kind": "label"}, {"kind": "length", "unit": "words", "max": 1}, *own],
        "weights": {"length": 0, "words": 0, "mood": 0},
    }
    changes = {"objectives": OBJECTIVES, "recommend": "best politeness where words <= 30", **changes}
    config = small_config(folder, task=task, budget={"generations": 2}, **changes)
    return build.run(build.plan(config), folder / "run")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run whose constraints can be kept."""
    limits = ["quality >= 0.5", "latency p95 <= 900", {"objective": "words", "max": 18}]
    return run(tmp_path_factory.mktemp("kept") / "here", constraints=limits)


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run whose constraints nobody can keep."""
    return run(tmp_path_factory.mktemp("hopeless") / "here", constraints=["quality >= 0.99", "latency_ms <= 1"])


def best(result: Result) -> dict[str, Any]:
    assert result.recommended is not None
    return result.recommended


def test_own_objectives_are_measured_as_they_say(kept: Result) -> None:
    rows = pandas.read_parquet(kept.path / "trials")
    mine = rows[(rows.kind == "evaluation") & (rows.genome_id == best(kept)["genome"]) & (rows.split == "test")]
    given = mine[mine.twin == 0]
    scores = [json.loads(text) for text in given.scores]
    values = {name: one["value"] for name, one in best(kept)["test"].items()}
    assert values["politeness"] == pytest.approx(np.mean([one["mood"]["value"] for one in scores]))
    assert values["words"] == pytest.approx(np.mean([one["words"]["value"] for one in scores]))
    assert values["longest"] == max(one["words"]["value"] for one in scores)
    assert values["tokens"] == pytest.approx((mine.prompt_tokens + mine.completion_tokens).mean())
    assert best(kept)["why"].startswith(
        "no member surely meets quality >= 0.5 (it has 0.75, surely no less than 0.4601): this one is nearest to it; "
        "of 4 as near, best politeness where words <= 30: politeness "
    ), "8 examples promise little"


def test_the_hypervolume_is_of_one_scale_whatever_is_aimed_at(kept: Result) -> None:
    volumes = kept.run["hypervolume"]
    assert len(volumes) >= 3
    assert all(0 < value < 1.1**5 for value in volumes)


def test_members_keep_what_they_have_to(kept: Result) -> None:
    assert kept.front["constraints"] == [
        {"name": "quality", "operator": ">=", "limit": 0.5},
        {"name": "latency_ms p95", "operator": "<=", "limit": 900.0},
        {"name": "words", "operator": "<=", "limit": 18.0},
    ]
    for one in kept.members:
        assert one["feasible"] is True
        values = {name: found["value"] for name, found in one["validation"].items()}
        assert values["quality"] >= 0.5
        assert values["latency_ms p95"] <= 900
        assert values["words"] <= 18


def test_verbs_and_report_know_them(kept: Result) -> None:
    shown = call("show", kept.path, columns=200)
    assert shown.code == 0
    assert "All keep the constraints (quality >= 0.5, latency_ms p95 <= 900, words <= 18)." in shown.out
    assert "politeness" in shown.out
    found = facts(kept.path)
    aims = {one["name"]: one for one in found["aims"]}
    assert aims["longest"] == {"name": "longest", "source": "scores.words", "direction": "min", "aggregate": "p95"}
    assert aims["latency_ms p95"]["source"] == "latency_ms"
    assert aims["tokens"]["direction"] == "max"
    assert found["objectives"] == ["quality", "politeness", "words", "longest", "tokens"]
    train = {name: one["value"] for name, one in best(kept)["train"].items()}
    at = found["genomes"]["id"].index(best(kept)["genome"])
    values = found["genomes"]["splits"]["train"]["values"]
    assert {name: values[name][at] for name in train} == pytest.approx(train, rel=1e-5)
    start = kept.start
    assert start is not None
    if start["genome"] != best(kept)["genome"]:
        compared = kept.compare()
        assert [line.measure.name for line in compared.lines] == found["objectives"]
        assert not compared.notes
        assert set(found["tested"]) == set(found["objectives"])


def test_a_notebook_and_the_front_as_data(hopeless: Result, kept: Result) -> None:
    assert "! breaks a constraint" in hopeless._repr_html_()
    assert [row["feasible"] for row in kept.table()][1:] == [True] * (len(kept.table()) - 1)


def test_when_nobody_keeps_them_it_is_said_everywhere(hopeless: Result) -> None:
    assert [one["feasible"] for one in hopeless.members] == [False]
    has = {name: one["value"] for name, one in best(hopeless)["validation"].items()}
    broken = f"quality >= 0.99 (it has {has['quality']:.4g}), latency_ms <= 1 (it has {has['latency_ms']:.4g})"
    assert f"but it breaks {broken}: no member keeps all constraints" in best(hopeless)["why"]
    shown = call("show", hopeless.path, columns=200).out
    assert "!: breaks a constraint (quality >= 0.99, latency_ms <= 1)." in shown
    assert any(line.startswith(("*! ", "start*! ")) for line in shown.splitlines())
    first = facts(hopeless.path)["caveats"][0]
    assert first["kind"] == "bad"
    assert first["text"].startswith("No configuration keeps the constraints; the recommended one breaks them least: ")
    assert hopeless.run["feasible"] == 0


def test_what_is_kept_on_validation_and_broken_on_test_is_a_caveat(kept: Result, tmp_path: Path) -> None:
    front = json.loads((kept.path / "front.json").read_text())
    for one in front["members"]:
        one["test"]["quality"]["value"] = 0.25
    (tmp_path / "front.json").write_text(json.dumps(front))
    for name in ("run.json", "config.yaml", "genomes.jsonl"):
        (tmp_path / name).write_text((kept.path / name).read_text())
    (tmp_path / "trials").symlink_to(kept.path / "trials")
    said = [one["text"] for one in facts(tmp_path)["caveats"] if one["kind"] == "warn"]
    assert any("on test it breaks quality >= 0.5 (it has 0.25)" in text for text in said)


def test_the_page_draws_limits_and_marks_who_breaks_them(hopeless: Result, tmp_path: Path) -> None:
    page.write(facts(hopeless.path), tmp_path / "report.html")
    with launched() as browser, opened(browser, tmp_path / "report.html") as seen:
        assert seen.page.locator("#front svg.plot .glyph.winner.broken").count() >= 1
        plot = seen.page.locator(".plot-card").first
        plot.get_by_label("vertical axis").select_option("quality")
        assert plot.locator("svg.plot line.limit").count() == 1
        assert "quality >= 0.99" in str(plot.locator("svg.plot .limit-name").first.text_content())
        assert "infeasible" in seen.text(".genomes .badge.infeasible")
        assert seen.quiet


def test_a_run_without_constraints_says_nothing_of_them(tmp_path: Path) -> None:
    result = build.run(build.plan(small_config(tmp_path, budget={"generations": 1})), tmp_path / "run")
    assert "constraints" not in result.front
    assert "constraints" not in result.run
    assert "feasible" not in best(result)
    assert "constraint (" not in call("show", tmp_path / "run", columns=200).out
    assert "the constraints" not in call("show", tmp_path / "run", columns=200).out
    assert facts(tmp_path / "run")["constraints"] == []


def test_the_forecast_plays_own_objectives_through(tmp_path: Path) -> None:
    constraints = [{"objective": "label score", "min": 0.2}]
    objectives = [{"name": "label score", "source": "scores.label"}, "cost"]
    budget = {"calls": 300, "target": 0.3, "target_objective": "label score"}
    config = small_config(tmp_path, objectives=objectives, constraints=constraints, budget=budget)
    plan = build.plan(config)
    found = forecast(plan.optimizer(), plan.space.sample, Usage(calls=1, usd=0.001, seconds=0.1), plan.at_once())
    assert found.ends_by == "target", "the made-up answers have made-up scores"
