"""The search benchmark: its arithmetic on invented runs, runs that go on where they stopped, figures never made up."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from xml.etree import ElementTree

import bench_figures as figures
import bench_runs
import bench_search
import numpy as np
import pytest
import yaml
from bench_picture import picture
from bench_runs import Case, Run
from hypothesis import given
from hypothesis import strategies as st
from small import write_config

from evocluster import build
from evocluster.config import load
from evocluster.engine.engine import carry
from evocluster.engine.runner import LocalRunner
from evocluster.errors import ConfigError
from evocluster.llm.cached import LocalCache
from evocluster.records import Genome
from evocluster.search.objectives import built_in
from evocluster.search.portfolio import portfolio
from evocluster.store.cache import DiskCache
from evocluster.store.files import read_json
from evocluster.store.table import scan

STEP = ((100, 0.2), (200, 0.5), (400, 0.4), (600, 0.8))
OUTCOMES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.sampled_from((0.0, 0.5, 1.0))), min_size=1, max_size=40
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_curve_holds_until_it_changes() -> None:
    assert [figures.at(STEP, calls, 0.1) for calls in (0, 99, 100, 399, 400, 9999)] == [0.1, 0.1, 0.2, 0.5, 0.4, 0.8]
    assert math.isnan(figures.at(STEP, 99))


@pytest.mark.parametrize(("target", "calls"), [(0.0, 100), (0.2, 100), (0.21, 200), (0.6, 600), (0.81, None)])
def test_calls_to_reach(target: float, calls: int | None) -> None:
    assert figures.calls_to_reach(STEP, target) == calls


def test_the_mean_of_curves_changes_where_one_of_them_does() -> None:
    calls, values = zip(*figures.mean_curve([((100, 0.2), (300, 0.6)), ((200, 1.0),)], before=0.0), strict=True)
    assert calls == (100, 200, 300)
    assert values == pytest.approx((0.1, 0.6, 0.8))


def test_the_ratio_is_of_calls_to_the_same_quality() -> None:
    theirs, ours = [((100, 0.1), (800, 0.5))], [((100, 0.3), (200, 0.5), (900, 0.9))]
    assert figures.calls_ratio(ours, theirs, 0.0, rng()) == (0.25, 0.25, 0.25)
    assert figures.calls_ratio(theirs, ours, 0.0, rng()) == (None, None, None), "never reached"
    assert figures.calls_ratio([], theirs, 0.0, rng()) == (None, None, None)
    assert figures.calls_ratio(ours, [((0, 0.5),)], 0.0, rng()) == (None, None, None), "they had it from the start"


def test_an_interval_of_the_ratio_that_now_and_then_never_ends_has_no_upper_end() -> None:
    theirs = [((100, 0.5),)] * 4
    ours = [((50, 0.9),), ((50, 0.0),), ((50, 0.6),), ((50, 0.6),)]
    value, low, high = figures.calls_ratio(ours, theirs, 0.0, rng())
    assert (value, low, high) == (0.5, 0.5, None)


def test_the_interval_over_seeds_and_examples() -> None:
    alike = np.tile([1.0, 0.0, 1.0, 1.0], (3, 1))
    found = figures.crossed(alike, rng())
    assert found == pytest.approx((0.75, 0.25, 1.0)), "seeds that agree leave the examples' uncertainty"
    assert figures.crossed(np.ones((3, 4)), rng()) == pytest.approx((1.0, 1.0, 1.0))
    apart = np.repeat([[0.0], [0.5], [1.0]], 50, axis=1)
    assert figures.crossed(apart, rng()) == pytest.approx((0.5, 0.0, 1.0), abs=0.05), "seeds that differ count"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    drawn, covered = np.random.default_rng(1), 0
    for _ in range(60):
        outcomes = (drawn.random((8, 60)) < 0.6).astype(float)
        _, low, high = figures.crossed(outcomes, drawn)
        covered += low <= 0.6 <= high
    assert covered >= 51


def test_paired_differences() -> None:
    assert figures.paired(np.array([2.0, 2.0, 2.0]), rng()) == (2.0, 2.0, 2.0)
    value, low, high = figures.paired(np.array([-1.0, 0.0, 1.0, 4.0]), rng())
    assert (value, low < 1.0 < high) == (1.0, True)


def test_what_was_saved_against_everybody_on_everything() -> None:
    assert figures.saved(evaluated=80, tried=10, items=10) == pytest.approx(0.2)
    assert figures.saved(evaluated=100, tried=10, items=10) == 0.0
    assert figures.saved(evaluated=0, tried=0, items=10) is None


def test_strategies_that_do_the_same_are_named() -> None:
    assert figures.alike({"a": [1, 2], "b": [1, 3], "c": [1, 2], "d": [1]}) == ["c"]


def test_hypervolumes_share_one_reference() -> None:
    signs, ideal = np.array([-1.0, 1.0]), np.array([1.0, 0.0])
    near, far = np.array([[0.8, 2.0]]), np.array([[0.5, 4.0]])
    found = figures.hypervolumes({"near": near, "far": far}, signs, ideal)
    # The reference: 10 % beyond the worst of both, in shares of the way from the ideal to it.
    assert found["near"] == pytest.approx((1 - 0.2 / 0.55) * (1 - 2.0 / 4.4))
    assert found["far"] == pytest.approx((1 - 1 / 1.1) ** 2)


GENOMES = {name: Genome(genes={"gene": name}) for name in "abc"}


def onlooker(*outcomes: tuple[str, int, float]) -> figures.Incumbent:
    watch = figures.Incumbent(["gene"], [str(number) for number in range(40)])
    for name, example, quality in outcomes:
        watch.add(GENOMES[name], [(str(example), quality)])
    return watch


@given(OUTCOMES)
def test_the_incumbent_counts_every_example_once(outcomes: list[tuple[str, int, float]]) -> None:
    first = {(name, example): (name, example, quality) for name, example, quality in reversed(outcomes)}
    once = [first[key] for key in dict.fromkeys((name, example) for name, example, _ in outcomes)]
    watch, other = onlooker(*outcomes, *outcomes), onlooker(*once)
    assert watch.tried == other.tried == len({name for name, _, _ in outcomes})
    assert watch.best == other.best
    assert watch.best in [GENOMES[name].id for name, _, _ in outcomes]


def test_the_incumbent_is_not_who_was_lucky_once() -> None:
    many = [("a", number, float(number % 10 < 8)) for number in range(40)]
    assert onlooker(*many, ("b", 0, 1.0)).best == GENOMES["a"].id
    sure = [("b", number, 1.0) for number in range(20)]
    assert onlooker(*many, *sure).best == GENOMES["b"].id
    assert onlooker().best is None


def run(strategy: str, seed: int, right: float = 0.5, **changes: Any) -> Run:
    tested = {f"test-{n}": float(n < 10 * right) for n in range(10)}
    given: dict[str, Any] = {"task": "trec", "strategy": strategy, "seed": seed, "calls": 600, "tested": tested}
    given |= {"start": dict.fromkeys(tested, 0.0), "curve": ((0, 0.0), (300, right)), "reported": right + 0.1}
    given |= {"saved": 0.4, "front": ({"quality": right, "cost_usd": 1e-6},), **changes}
    return Run(**given)


def cases(*strategies: str, seeds: int = 2) -> list[Case]:
    return [
        Case(Path("out"), Path("config.yaml"), "trec", name, seed, 600)
        for seed in range(1, seeds + 1)
        for name in strategies
    ]


def test_the_watched_line_is_of_whole_results_only() -> None:
    todo = cases("evolve", "generational")
    late = run("generational", 2, curve=((0, 0.0), (600, 0.5)))
    runs = [run("evolve", 1, 0.6), run("evolve", 2, 0.6), run("generational", 1, curve=((0, 0.0), (600, 0.5)))]
    partial = bench_search.summed(runs, todo, 600)
    assert partial["test"] == {"trec": {"evolve": 0.6, "generational": None}}
    assert partial["calls_ratio_to_generational"] is None
    assert (partial["gap_points"], partial["evaluations_saved"]) == (10.0, 0.4)
    full = bench_search.summed([*runs, late, run("evolve", 1, 0.9, calls=2000)], todo, 600)
    assert full["test"] == {"trec": {"evolve": 0.6, "generational": 0.5}}
    assert full["calls_ratio_to_generational"] == 0.5
    below = run("evolve", 2, 0.6, reported=0.4)
    assert bench_search.summed([runs[0], below], todo, 600)["gap_points"] == 5.0, "10 and -20 points: 5 below"
    nothing = bench_search.summed([], todo, 600)
    assert nothing == {
        "test": {"trec": {"evolve": None, "generational": None}},
        **dict.fromkeys(("calls_ratio_to_generational", "gap_points", "evaluations_saved")),
    }


def test_gaps_of_tasks_do_not_cancel_out() -> None:
    assert figures.figures({}, [], [8.3, -1.9, -5.9], [])["gap_points"] == 5.3667
    assert figures.figures({}, [], [8.3, None], [])["gap_points"] is None
    assert figures.figures({}, [], [], [])["gap_points"] is None


def test_the_table_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run("evolve", 1, 0.9), run("evolve", 2, 0.9), run("steady", 1, 0.5), run("evolve", 1, 0.7, calls=2000)]
    row = bench_search.by(runs, 600)["trec"]
    assert list(row) == ["evolve", "steady", "evolve 2000"]
    bench_search.show("trec", row, [built_in("quality"), built_in("cost_usd")])
    said = capsys.readouterr().out
    assert "evolve                2  0.900" in said
    assert "evolve - steady: +40.0 points" in said
    (steady,) = [line for line in said.splitlines() if line.startswith("  steady")]
    assert steady.split()[-3:] == ["-", "+10.0", "40%"], "0.5 is not 90 % of 0.9"


def test_what_had_more_calls_is_compared_with_what_had_as_many(capsys: pytest.CaptureFixture[str]) -> None:
    late = run("generational", 1, 0.4, calls=2000, curve=((0, 0.0), (600, 0.4)))
    row = bench_search.by([run("evolve", 1, 0.9), run("evolve", 1, 0.7, calls=2000), late], 600)["trec"]
    bench_search.differences(row)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("  evolve 2000 - generational 2000: +30.0 points")
    assert said[1:] == ["  calls to the end of generational 2000, evolve 2000: 300 of 2000, 0.50x what it took"]


@pytest.mark.parametrize(
    ("only", "picked"),
    [
        *(([], 4), (["trec:evolve:1"], 1), (["trec:evolve"], 2), (["::2"], 2), (["snips7"], 0)),
        *((["::1", "trec::2"], 4), (["trec:evolve:1:600"], 0)),
    ],
)
def test_runs_are_picked_by_parts(only: list[str], picked: int) -> None:
    assert sum(bench_search.wanted(case, only) for case in cases("evolve", "steady")) == picked


def test_long_runs_are_more_of_a_few_strategies() -> None:
    given = bench_search.arguments().parse_args(["--long", "--tasks", "trec", "--seeds", "1", "--calls", "600"])
    made = bench_search.cases(given)
    assert len(made) == len(bench_runs.STRATEGIES) + 3
    longer = {case.strategy for case in made if case.calls == bench_search.LONG}
    assert longer == {"evolve", "generational", "no-rewrite"}
    assert len({case.home for case in made}) == len(made)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--collect --strategies evolv", "--strategies: got 'evolv'; allowed: random, generational"),
        (
            "--landscape --strategies refine",
            "--strategies: got 'refine'; allowed: at least one of random, generational",
        ),
        ("--landscape --strategies refine,hybrid", "--strategies: got 'refine,hybrid'; allowed: at least one of"),
        ("--landscape --tasks snipz7", "--tasks: got 'snipz7'; allowed: snips7, trec, sst2; separate several"),
        ("--collect --tasks trec,snipz7", "--tasks: got 'snipz7'; allowed: snips7, trec, sst2; separate several"),
        ("--landscape --calls -5", "--calls: got -5; allowed: 1 or more; leave it out for the usual"),
        ("--landscape --calls 0", "--calls: got 0; allowed: 1 or more"),
        ("--collect --calls 0", "--calls: got 0; allowed: 1 or more"),
        ("--landscape --seeds 0", "--seeds: got 0; allowed: 1 or more"),
        ("--collect --seeds 0", "--seeds: got 0; allowed: 1 or more"),
        ("--collect --seeds -1", "--seeds: got -1; allowed: 1 or more; leave it out for the usual"),
        (
            "--collect --only snips7:evolve:9",
            "--only: got 'snips7:evolve:9'; allowed: TASK:STRATEGY:SEED of snips7, trec",
        ),
        (
            "--collect --only trec --only trec:evolv:1",
            "--only: got 'trec:evolv:1'; allowed: TASK:STRATEGY:SEED of snips7",
        ),
        (
            "--collect --only trec:evolve:1:600",
            "--only: got 'trec:evolve:1:600'; allowed: .*; 1, 2, 3; leave a part empty",
        ),
        (
            "--data /nonexistent",
            "--data: got '/nonexistent'; allowed: a folder with one a task in it, .*; give the one",
        ),
        ("--record trec --data /nonexistent", "--data: got '/nonexistent'; allowed: a folder"),
    ],
)
def test_what_cannot_be_meant_is_named_with_what_can(asked: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^bench_search: {said}"):
        bench_search.main([*asked.split(), "--out", str(tmp_path)])


def test_a_task_that_is_not_recorded_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    bench_search.main(["--landscape", "--tasks", "sst2", "--json"])
    said = capsys.readouterr().out.splitlines()
    assert "sst2: not recorded" in said
    assert json.loads(said[-1])["gap_points"] is None


def test_the_picture_has_a_line_for_every_strategy_with_points() -> None:
    panels = {"a < b": {"evolve": [(0, 0.1), (600, 0.8)], "steady": []}, "c": {"steady": [(0, 0.2), (600, 0.2)]}}
    text = picture(panels, "calls", "quality")
    root = ElementTree.fromstring(text)
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 2
    assert len({one.get("stroke") for one in lines}) == 2
    numbers = [float(n) for one in lines for pair in str(one.get("points")).split() for n in pair.split(",")]
    assert all(math.isfinite(n) and n >= 0 for n in numbers)


def test_every_strategy_has_a_colour_and_a_longer_run_is_dashed() -> None:
    points = [(0, 0.1), (600, 0.8)]
    names = [*bench_runs.STRATEGIES, "evolve 2000", "generational 2000"]
    root = ElementTree.fromstring(picture({"one": dict.fromkeys(names, points)}, "calls", "quality"))
    lines = [one for one in root.iter() if one.tag.endswith("polyline")]
    looks = dict(zip(names, ((one.get("stroke"), one.get("stroke-dasharray")) for one in lines), strict=True))
    assert len({looks[name] for name in bench_runs.STRATEGIES}) == len(bench_runs.STRATEGIES)
    assert looks["evolve 2000"] == (looks["evolve"][0], "5 3")
    legend = [one for one in root.iter() if one.tag.endswith("text") and one.text in names]
    ends = [float(str(one.get("x"))) + 6 * len(str(one.text)) for one in legend]
    assert all(end < float(str(one.get("x"))) for end, one in zip(ends, legend[1:], strict=False)), "no name on another"
    assert ends[-1] < float(str(root.get("width")))


# Whole runs, with the scripted model.


def case(folder: Path, **changes: Any) -> Case:
    fake = {"kind": "scripted", "rules": [{"pattern": "looks red", "text": "red"}], "default": "blue", "latency_s": 0.0}
    config = folder / "small.yaml"
    if not config.exists():
        write_config(folder, models={"fake": fake})
    given = {"out": folder / "out", "config": config, "task": "small", "strategy": "evolve", "seed": 1, "calls": 150}
    return Case(**{**given, "sets": ("space.cot=false",), **changes})


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Case:
    one = case(tmp_path_factory.mktemp("bench"))
    bench_runs.carry_out(one)
    return one


def test_the_search_never_sees_the_test_set_and_keeps_its_calls(finished: Case) -> None:
    rows = [row for chunk in scan(finished.home / "run" / "trials") for row in chunk]
    assert {row["split"] for row in rows if row["kind"] == "evaluation"} == {"train", "validation"}
    assert sum(row["calls"] for row in rows) == read_json(finished.home / "run" / "run.json")["calls"] <= 150


def test_the_bench_tests_what_is_recommended(finished: Case) -> None:
    found, front = bench_runs.read(finished), read_json(finished.home / "run" / "front.json")
    assert found is not None
    (member,) = [one for one in front["members"] if one["recommended"]]
    assert len(found.tested) == len(found.start) == 12
    assert found.reported == member["validation"]["quality"]["value"]
    assert found.gap == pytest.approx(100 * (member["validation"]["quality"]["value"] - found.quality))
    assert [calls for calls, _ in found.curve] == list(range(0, 151, 15))
    assert found.curve[0][1] == pytest.approx(np.mean([*found.start.values()]))
    assert found.curve[-1][1] == pytest.approx(found.quality), "all twelve are looked at"
    assert len(found.front) == len(front["members"])


def test_a_finished_run_is_left_alone(finished: Case) -> None:
    before = stamps(finished.home)
    bench_runs.carry_out(finished)
    assert stamps(finished.home) == before


def test_a_run_that_was_not_measured_is_measured_and_nothing_else(finished: Case) -> None:
    path = finished.home / "measured.json"
    measured, before = path.read_text(), stamps(finished.home / "run")
    path.unlink()
    assert bench_runs.read(finished) is None
    bench_runs.carry_out(finished)
    assert path.read_text() == measured
    assert stamps(finished.home / "run") == before


def test_an_interrupted_run_goes_on_to_the_same_end(finished: Case, tmp_path: Path) -> None:
    one = case(tmp_path)

    async def interrupted() -> str:
        plan = one.plan()
        with closing(DiskCache(tmp_path / "other")) as disk:
            runner = LocalRunner([plan.worker()], LocalCache(disk))
            engine = build.engine(plan, one.home / "run", True, runner)
            return await carry(engine, interrupted=lambda: True)

    assert asyncio.run(interrupted()) in ("interrupted", "finished")
    assert bench_runs.read(one) is None
    bench_runs.carry_out(one)
    found, same = bench_runs.read(one), bench_runs.read(finished)
    assert found == same


OTHER = "holds a run with other settings than these; give another folder with --out, .*different: search"


@pytest.mark.parametrize("measured", [True, False])
def test_a_folder_of_other_settings_is_refused(finished: Case, tmp_path: Path, measured: bool) -> None:
    other = elsewhere(finished, tmp_path, sets=("space.cot=false", "search.block=3"))
    if not measured:
        (other.home / "measured.json").unlink()
    before = stamps(tmp_path)
    for use in (bench_runs.carry_out, bench_runs.read):
        with pytest.raises(ConfigError, match=OTHER):
            use(other)
    assert stamps(tmp_path) == before


def elsewhere(one: Case, folder: Path, **changes: Any) -> Case:
    """A copy of the case's folder in another, as a case with these changes."""
    copytree(one.out, folder / "moved")
    return replace(one, out=folder / "moved", **changes)


def test_a_run_of_the_same_settings_is_read_wherever_its_folder_is(finished: Case, tmp_path: Path) -> None:
    same = elsewhere(finished, tmp_path, sets=("space.cot=false", "search.alpha=0.2", "search.lookahead=null"))
    assert bench_runs.read(same) == bench_runs.read(finished), "defaults that are written out change nothing"


def test_settings_are_compared_by_what_they_decide(tmp_path: Path) -> None:
    data = [f"task.data.{split}={tmp_path / split}.jsonl" for split in ("train", "validation", "test")]
    one, other = (load(write_config(tmp_path / checkout / "real"), data) for checkout in ("one", "other"))
    assert one != other
    assert bench_runs.different(one, other) == [], "in two checkouts"
    laid = {
        "search.block=3": "search",
        "task.data.limit=8": "task",
        "seed=6": "seed",
        "python_path=[code]": "python_path",
    }
    for text, section in laid.items():
        assert bench_runs.different(one, load(tmp_path / "one" / "real" / "small.yaml", [*data, text])) == [section]


def test_a_measurement_without_its_run_is_none(finished: Case, tmp_path: Path) -> None:
    torn = elsewhere(finished, tmp_path)
    rmtree(torn.home / "run")
    assert bench_runs.read(torn) is None
    bench_runs.carry_out(torn)
    assert bench_runs.read(torn) == bench_runs.read(finished)


@pytest.mark.parametrize("strategy", bench_runs.STRATEGIES)
def test_every_strategy_has_settings_of_its_own(strategy: str, tmp_path: Path) -> None:
    plan = case(tmp_path, strategy=strategy).plan()
    key, value = bench_runs.STRATEGIES[strategy].removeprefix("search.").split("=")
    wanted = yaml.safe_load(value)
    assert getattr(plan.config.search, key) == (tuple(wanted) if isinstance(wanted, list) else wanted)
    asking = {name for name, one in portfolio(plan.config.search, plan.space).items() if one.calls}
    assert (strategy == "no-rewrite") == (not asking)
    assert plan.items("test") == ()
    assert (plan.config.budget.calls, plan.config.budget.minutes, plan.config.seed) == (150, None, 1)


@pytest.mark.slow
def test_the_short_benchmark_ends_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    bench_search.main(["--short", "--json"])
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    assert set(found) == {"test", "calls_ratio_to_generational", "gap_points", "evaluations_saved"}
    assert set(found["test"]["scripted"]) == {"evolve", "generational"}
    assert any(line.startswith("snips7: ") and "true quality" in line for line in said)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poor, rich = case(tmp_path, calls=20), case(tmp_path)
    (failed,) = bench_search.carried_through([poor, rich])
    assert failed.startswith("failed: small:evolve:1 (20 calls): budget.calls=20 is too small")
    assert (poor.finished, rich.finished) == (False, True)


@pytest.mark.parametrize("collect", [True, False])
def test_a_failed_run_is_named_after_the_table_and_in_the_status(
    collect: bool, finished: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = elsewhere(finished, tmp_path)
    copytree(same.home, replace(same, seed=2).home)
    monkeypatch.setattr(bench_search, "cases", lambda given: [same, replace(same, seed=2)])
    asked = ["--out", str(same.out), "--calls", "150", "--data", str(tmp_path), "--json"]
    with pytest.raises(SystemExit, match=r"^bench_search: runs failed: 1, as said above") as end:
        bench_search.main([*asked, *(["--collect"] if collect else [])])
    assert end.value.code not in (0, None)
    said = capsys.readouterr().out.splitlines()
    (table,) = [n for n, line in enumerate(said) if line.startswith("  evolve                1  ")]
    (named,) = [n for n, line in enumerate(said) if line.startswith("failed: small:evolve:2 (150 calls): ")]
    assert said[named].endswith("(different: seed)")
    assert table < named
    assert json.loads(said[-1])["test"] == {"small": {"evolve": None}}, "one of two seeds"


def test_nothing_there_is_said_as_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_search.main(["--collect", "--out", str(tmp_path), "--tasks", "trec", "--strategies", "evolve", "--json"])
    said = capsys.readouterr().out.splitlines()
    assert "0 of 3 runs are there" in said
    assert json.loads(said[-1])["test"] == {"trec": {"evolve": None}}
