"""The search on recorded landscapes finds good configurations; and the landscapes are what they are said to be."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import bench_landscape
import landscape
import numpy as np
import pytest
import record_landscape
from hypothesis import given
from hypothesis import strategies as st
from landscape import GENES, Landscape
from small import write_config

from evocluster import build
from evocluster.errors import ConfigError, RunDamaged
from evocluster.records import Genome, Proposal
from evocluster.search.objectives import FOUR
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search

COMMITTED = sorted((Path(__file__).parent / "landscape").glob("*.parquet"))
SETTINGS = Search(population=10, block=16, finalists=2)
KB = 1000
PRICE = {"prompt_usd_per_mtok": 2.0, "completion_usd_per_mtok": 6.0}
RUBRICS, SHOTS = ("Which?", "Sort it."), ("none", "r1a", "r2a")
COUNTS = {"train": 24, "validation": 12, "test": 12}


def quality(config: dict[str, Any], number: int) -> float:
    """The invented truth: demos and a bounded output help, and every fourth example is hard."""
    skill = {"none": 0, "r1a": 1, "r2a": 2}[config["shots"]] + 2 * config["constrain"] + config["rubric"]
    return float(number % 6 < skill + (number % 4 > 0))


def lines(part: float = 1.0) -> list[dict[str, Any]]:
    """An invented recording; `part`: how much of the grid is there."""
    made = []
    for rubric, shots, constrain in product((0, 1), SHOTS, (False, True)):
        config = {"rubric": rubric, "shots": shots, "constrain": constrain, "demo_style": "chat"}
        config["label_names"] = "as_is"
        genes = {**config, "rubric": RUBRICS[rubric], "demos": [] if shots == "none" else [f"demo-{shots}"]}
        rows = [
            [split, f"{split}-{n}", twin, quality(config, n), quality(config, n), 1, 0, 123.456 + n, 100 + n, 3]
            for split, count in COUNTS.items()
            for n in range(count)
            for twin in range(1 + (n % 6 == 0 and split != "test"))
        ]
        made.append({"config": config, "genes": genes, "rows": rows})
    order = np.random.default_rng(5).permutation(len(made))
    return [made[int(n)] for n in order[: round(part * len(made))]]


def invented(folder: Path, part: float = 1.0) -> Landscape:
    """The invented recording as a landscape, through its file."""
    groups = {f"{split}-{n}": n % 3 for split, count in COUNTS.items() for n in range(count)}
    landscape.write(folder / "invented.parquet", "invented", lines(part), groups, PRICE)
    return landscape.read(folder / "invented.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Landscape:
    return invented(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> Landscape:
    return invented(tmp_path_factory.mktemp("part"), 0.6)


def test_what_is_written_is_read(whole: Landscape) -> None:
    assert (whole.task, len(whole.configs), whole.size) == ("invented", 12, 12)
    for line in lines():
        config = {**line["config"], "rubric": line["genes"]["rubric"]}
        row = whole.place[tuple(config[name] for name in GENES)]
        found = {(one.split, one.example, one.twin): whole.evaluate(row, one) for one in whole.items}
        assert len(found) == len(line["rows"])
        for split, example, twin, right, _, _, _, _, prompt, completion in line["rows"]:
            done = found[split, example, twin]
            assert (done.quality, done.validator, done.error) == (right, right, None)
            assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt, completion)
            assert done.usage.usd == pytest.approx((prompt * 2 + completion * 6) / 1e6)
            assert done.usage.seconds == pytest.approx(0.13, rel=0.2)


def test_the_truth_is_the_mean_over_what_no_search_trains_on(whole: Landscape) -> None:
    for line in lines():
        right = [row[3] for row in line["rows"] if row[0] != "train" and row[2] == 0]
        tested = [row[3] for row in line["rows"] if row[0] == "test"]
        config = {**line["config"], "rubric": line["genes"]["rubric"]}
        row = whole.place[tuple(config[name] for name in GENES)]
        assert whole.truth[row] == pytest.approx(np.mean(right))
        assert whole.test[row] == pytest.approx(np.mean(tested))


def test_a_run_deals_the_examples_by_its_seed_with_twins_behind_them(whole: Landscape) -> None:
    dealt = {seed: whole.dealt("train", seed) for seed in (1, 1, 2)}
    assert dealt[1] == whole.dealt("train", 1)
    assert dealt[1] != dealt[2]
    assert set(dealt[1]) == set(dealt[2]) == {item for item in whole.items if item.split == "train"}
    for before, after in zip(dealt[1], dealt[1][1:], strict=False):
        assert after.twin == 0 or (before.example, before.twin) == (after.example, 0)
    assert {whole.groups[one.example] for one in dealt[1][:4]} == {0, 1, 2}, "blocks hold all groups"


@given(seed=st.integers(0, 10_000))
def test_every_genome_of_the_space_was_recorded(partly: Landscape, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = partly.space.sample(rng), partly.space.sample(rng)
    moved = {**one.genes, "shots": partly.space.move("shots", one["shots"], rng)}
    for genome in (one, other, partly.space.mix(one, other, rng), partly.space.fix(moved), partly.start):
        assert 0 <= partly.row(genome) < len(partly.configs) < partly.size
        assert partly.space.fix(genome.genes) == genome


def test_what_was_not_recorded_becomes_its_nearest(partly: Landscape) -> None:
    for values in product(*partly.grid.values()):
        asked = dict(zip(partly.grid, values, strict=True))
        found = partly.space.fix(asked)
        shared = [sum(config[n] == asked[name] for n, name in enumerate(GENES)) for config in partly.configs]
        assert sum(found[name] == asked[name] for name in GENES) == max(shared)


def test_a_child_that_stands_in_its_proposal_is_taken_as_it_is(whole: Landscape) -> None:
    rng = np.random.default_rng(1)
    operators = portfolio(SETTINGS, whole.space)
    for number in range(12):
        parent, wanted = whole.space.sample(rng), whole.space.sample(rng)
        items, hints = whole.dealt("train", 1)[:4], {"genome": wanted.genes}
        proposal = Proposal(number=number, operator="mutate", parents=(parent,), items=items, hints=hints)
        assert bench_landscape.carry_out(whole, operators, proposal).genome == wanted


def test_a_search_is_the_same_every_time_and_keeps_its_budget(whole: Landscape) -> None:
    one, again, other = (bench_landscape.search(whole, SETTINGS, FOUR, seed, 260) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    for found in (one, other):
        calls = [made for made, _ in found.curve]
        assert calls == sorted(calls)
        assert calls[-1] <= 260
        assert found.quality == whole.truth[found.chosen]
        assert found.chosen in found.front
        assert 1 < found.tried <= 12


def test_the_gap_is_what_validation_promised_and_test_did_not_keep(whole: Landscape) -> None:
    found = bench_landscape.search(whole, SETTINGS, FOUR, 3, 260)
    right = [
        whole.evaluate(found.chosen, item).quality
        for item in whole.items
        if item.split == "validation" and not item.twin
    ]
    assert found.gap == pytest.approx(100 * (np.mean(right) - whole.test[found.chosen]))


def test_the_gap_of_the_line_is_of_each_task_whatever_its_sign(whole: Landscape) -> None:
    def ones(*gaps: float | None) -> bench_landscape.Found:
        return {"evolve": [bench_landscape.Outcome(((1, 0.5),), 0, gap, 0.5, (0,), 1) for gap in gaps]}

    found = bench_landscape.figures({"up": (whole, ones(8.0, -2.0)), "down": (whole, ones(-6.0, -4.0))})
    assert found["gap_points"] == 4.0
    assert bench_landscape.figures({"up": (whole, ones(8.0)), "none": (whole, ones(1.0, None))})["gap_points"] is None


def test_the_whole_grid_has_all_the_volume(whole: Landscape) -> None:
    some = bench_landscape.search(whole, SETTINGS, FOUR, 1, 260)
    everything = bench_landscape.Outcome(((1, 1.0),), 0, None, None, tuple(range(12)), 12)
    found = bench_landscape.front_volumes(whole, {"some": [some], "all": [everything]}, FOUR)
    assert found["all"] == pytest.approx(1.0)
    assert 0 < found["some"] <= 1.0


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_landscape_is_small_and_holds_no_texts_of_examples(path: Path) -> None:
    assert path.stat().st_size < 150 * KB
    found = landscape.read(path)
    assert found.task == path.stem
    assert len(found.configs) >= 16
    assert all(item.example.startswith(f"{found.task}-{item.split}-") for item in found.items)
    assert np.isfinite(found.arrays["quality"]).all(), "every configuration answered every item"
    assert found.truth.max() - found.truth.min() > 0.2, "there is something to find"


@pytest.mark.parametrize(
    ("selection", "calls", "least"), [("steady", 500, 0.25), ("race", 500, 0.3), ("race", 1000, 0.6)]
)
def test_the_search_finds_good_configurations(selection: str, calls: int, least: float) -> None:
    """How much of the way from a random configuration to the best of the grid the calls go, over some seeds.

    Groups of four seeds went 0.27 to 0.50, 0.48 to 0.66 and 0.76 to 0.88 of it.
    """
    settings, went = SETTINGS.model_copy(update={"selection": selection}), []
    for path in COMMITTED:
        where = landscape.read(path)
        ends = [bench_landscape.search(where, settings, FOUR, seed, calls).quality for seed in range(1, 5)]
        went.append((np.mean(ends) - where.truth.mean()) / (where.truth.max() - where.truth.mean()))
    assert np.mean(went) > least, went


@pytest.mark.slow
def test_a_recording_goes_on_and_becomes_a_landscape(tmp_path: Path) -> None:
    fake = {"kind": "scripted", "rules": [{"pattern": "looks red", "text": "red"}], "default": "green", "latency_s": 0}
    config, path = write_config(tmp_path, models={"fake": {**fake, "price": PRICE}}), tmp_path / "small.jsonl"
    record_landscape.record(config, path, ["as_is"])
    first = record_landscape.lines(path)
    assert len(first) == 2 * 8 * 2 * 2
    torn = path.read_text().splitlines(keepends=True)
    path.write_text("".join(torn[:60]) + torn[60][:40])
    with pytest.raises(RunDamaged, match="other genes"):
        record_landscape.record(config, _spoiled(path, tmp_path), ["as_is"])
    record_landscape.record(config, path, ["as_is"])
    again = record_landscape.lines(path)
    assert again[:60] == first[:60]
    assert {json.dumps(one["config"]) for one in again} == {json.dumps(one["config"]) for one in first}
    assert record_landscape.convert(config, path, tmp_path / "small.parquet") == 64
    found = landscape.read(tmp_path / "small.parquet")
    assert (found.size, len(found.configs)) == (64, 64)
    assert found.start["shots"] == "none"
    assert set(found.groups.values()) == {0, 1, 2, 3}


def _spoiled(path: Path, folder: Path) -> Path:
    line = json.loads(path.read_text().splitlines()[0])
    line["genes"]["rubric"] = "Another."
    (folder / "spoiled.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "spoiled.jsonl"


def test_nothing_recorded_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match="holds no recorded configuration"):
        record_landscape.convert(config, tmp_path / "none.jsonl", tmp_path / "none.parquet")


def test_demos_of_a_recording_come_from_what_may_be_shown(tmp_path: Path) -> None:
    plan = build.plan(write_config(tmp_path))
    named = record_landscape.shots(plan)
    assert named == record_landscape.shots(plan)
    assert (named["none"], len(named["r1a"]), len(named["any4"])) == ((), 4, 4)
    assert not plan.scored & {id for ids in named.values() for id in ids}
    groups = record_landscape.groups(plan)
    assert len({groups[id] for id in named["r1a"]}) == 4
    genomes = [genome for _, genome in record_landscape.grid(plan, ["as_is"])]
    assert len({genome.id for genome in genomes}) == len(genomes) == 64
    assert all(isinstance(genome, Genome) and plan.space.contains(genome) for genome in genomes)
