"""The facts of a run folder: equal to front.json and the table, whatever state the run is in, and small."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
from invented import LABELS, OBJECTIVES, Invented, invent
from small import small_config

from evocluster import build
from evocluster.errors import RunDamaged
from evocluster.report import page
from evocluster.report.aims import Ruler, aims, setting, weights
from evocluster.report.failures import text_class
from evocluster.report.lineage import changes, diff
from evocluster.report.story import facts
from evocluster.report.texts import LONGEST, Texts


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that evocluster itself made."""
    folder = tmp_path_factory.mktemp("real")
    build.run(build.plan(small_config(folder)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An invented run."""
    return invent(tmp_path_factory.mktemp("invented") / "run")


def table(folder: Path) -> Any:
    """All rows."""
    return pandas.read_parquet(folder / "trials")


def genome(found: dict[str, Any], number: int) -> str:
    """The id of a genome of the facts."""
    return str(found["genomes"]["id"][number])


def test_means_of_every_genome_are_those_of_the_table(real: Path) -> None:
    found, rows = facts(real), table(real)
    rows = rows[(rows.kind == "evaluation") & (rows.split == "train")]
    # A child that was bred twice answered the same examples twice; the search, too, counts them once.
    rows = rows.drop_duplicates(["genome_id", "example_id", "twin", "replicate"])
    values = found["genomes"]["splits"]["train"]["values"]
    for number, id in enumerate(found["genomes"]["id"]):
        mine = rows[rows.genome_id == id]
        assert found["genomes"]["splits"]["train"]["n"][number] == len(mine)
        assert values["quality"][number] == pytest.approx(mine[mine.twin == 0].quality.mean(), rel=1e-5)
        assert values["latency_ms"][number] == pytest.approx(mine.latency_ms.mean(), rel=1e-5)
        assert values["cost_usd"][number] == pytest.approx(mine.cost_usd.mean(), rel=1e-5)


def test_members_and_their_own_means_agree(real: Path) -> None:
    """What is computed from the table for every genome is what front.json says of the members, the composite too."""
    found = facts(real)
    for member in (found["start"], *found["members"]):
        for split, measured in member["splits"].items():
            values = found["genomes"]["splits"][split]["values"]
            for name, (value, low, high) in measured.items():
                assert values[name][member["genome"]] == pytest.approx(value, rel=1e-4, abs=1e-9), (split, name)
                assert low <= value <= high
    assert {"composite", *OBJECTIVES} <= set(found["genomes"]["splits"]["test"]["values"])


def test_a_real_run_from_start_to_recommended(real: Path) -> None:
    found, front = facts(real), json.loads((real / "front.json").read_text())
    best = next(member for member in front["members"] if member["recommended"])
    assert genome(found, found["winner"]["genome"]) == best["genome"]
    assert genome(found, found["start"]["genome"]) == front["start"]["genome"]
    assert found["split"] == "test"
    assert found["run"]["ended_by"] == "the number of generations asked for"
    assert found["pairs"]["split"] == "test"
    rows = table(real)
    test = rows[(rows.genome_id == best["genome"]) & (rows.split == "test")]
    assert sum(found["pairs"]["counts"].values()) == len(test)
    right = [row for row in found["pairs"]["rows"] if row["twin"] == 0 and row["winner"]["quality"] >= found["right"]]
    assert len(right) / sum(test.twin == 0) == pytest.approx(best["test"]["quality"]["value"])
    assert sum(one["children"] for one in found["operators"]) == len(found["genomes"]["id"])
    assert found["curves"]["calls"][-1] <= found["run"]["calls"]
    assert found["curves"]["hypervolume"]["values"]
    assert found["lineage"]["steps"][-1]["genome"] == found["winner"]["genome"]


def test_spend_adds_up_and_says_when_it_is_guessed(tmp_path: Path, invented: Path) -> None:
    found, rows = facts(invented)["spend"], table(invented)
    assert found["guessed"] == 0
    for part in ("models", "splits", "operators"):
        for field, column in (
            ("calls", "calls"),
            ("cached", "cached_calls"),
            ("usd", "cost_usd"),
            ("paid_usd", "paid_usd"),
        ):
            assert sum(one[field] for one in found[part]) == pytest.approx(rows[column].sum()), (part, field)
    assert {(one["model"], one["purpose"]) for one in found["models"]} == {
        ("small", "evaluate"),
        ("large", "evaluate"),
        ("large", "rewrite"),
    }
    old = facts(invent(tmp_path / "old", spend=False))["spend"]
    assert (old["told"], old["guessed"]) == (0, len(set(table(tmp_path / "old").proposal)))
    assert sum(one["usd"] for one in old["models"]) == pytest.approx(table(tmp_path / "old").cost_usd.sum())


def test_judging_is_part_of_the_spend(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run", spend=True)
    made.search(children=2)
    trial = {
        "proposal": made.number,
        "purpose": "search",
        "kind": "evaluation",
        "operator": "evaluate",
        "split": "train",
    }
    spent = {"judge_calls": 2, "judge_cached": 1, "judge_usd": 0.5, "judge_paid_usd": 0.25, "judge_prompt_tokens": 7}
    made.table.append(
        [
            {
                **trial,
                **spent,
                "genome_id": made.start.id,
                "example_id": "train-000",
                "twin": 5,
                "replicate": 0,
                "calls": 0,
            }
        ]
    )
    found = facts(made.finish(status="running"))["spend"]
    judge = next(one for one in found["models"] if one["purpose"] == "judge")
    assert (judge["calls"], judge["cached"], judge["usd"], judge["paid_usd"]) == (2, 1, 0.5, 0.25)
    train = next(one for one in found["splits"] if one["name"] == "train")
    assert train["usd"] > 0.5


def test_operators_gain_against_the_better_parent(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run")
    made.search(children=0, seeds=0)
    child = made.start.replace(model="large", cot=True)
    made.trial(child, made.items("train", 0, 16), "mutate", [made.start], "search", 1)
    found = facts(made.finish(status="running"))
    mine, theirs = (made.tallies[one.id]["train"].by_example for one in (child, made.start))
    gain = sum(mine[id] - theirs[id] for id in mine) / len(mine)
    row = next(one for one in found["operators"] if one["name"] == "mutate")
    assert row["gain"] == pytest.approx(gain, rel=1e-5)
    assert (row["children"], row["survived"], row["extended"], row["front"]) == (1, 4, 0, 0)


def test_lineage_names_the_change_of_every_step(invented: Path) -> None:
    found = facts(invented)
    steps = found["lineage"]["steps"]
    assert len(steps) > 1
    genes, numbers = found["genomes"]["genes"], [step["genome"] for step in steps]
    assert [step["parent"] for step in steps[1:]] == numbers[:-1]
    for step in steps[1:]:
        differing = {name for name, gene in genes.items() if gene["at"][step["genome"]] != gene["at"][step["parent"]]}
        assert {change["gene"] for change in step["changes"]} == differing
    nodes = {node["genome"] for node in found["lineage"]["nodes"]}
    assert set(numbers) <= nodes


def test_a_difference_of_words_is_exact() -> None:
    before, after = "Answer in one word.\nBe brief, please.", "Answer in two words.\nBe brief."
    segments = diff(before, after)
    assert "".join(text for kind, text in segments if kind != "+") == before
    assert "".join(text for kind, text in segments if kind != "-") == after
    assert ("-", "one") in segments
    assert ("+", "two") in segments


def test_changes_of_genes() -> None:
    before = {"cot": False, "demos": ["a", "b"], "model": "small", "rubric": "Which queue?", "same": 1}
    after = {"cot": True, "demos": ["b", "c"], "model": "small", "rubric": "Which queue? " + "Answer. " * 8, "same": 1}
    found = {one["gene"]: one for one in changes(before, after)}
    assert set(found) == {"cot", "demos", "rubric"}
    assert (found["cot"]["before"], found["cot"]["after"]) == ("false", "true")
    assert (found["demos"]["added"], found["demos"]["removed"], found["demos"]["count"]) == (["c"], ["a"], 2)
    assert found["rubric"]["diff"][0] == ("=", "Which queue?")


def test_failures_by_kind(invented: Path) -> None:
    found, rows = facts(invented), table(invented)
    texts = found["texts"]["all"]
    best = genome(found, found["winner"]["genome"])
    test = rows[(rows.genome_id == best) & (rows.split == "test")]
    part = found["failures"]["test"]
    assert part["evaluations"] == len(test)
    counts = {
        kind: sum(one["count"] for one in part["groups"] if one["kind"] == kind) for kind in ("error", "flag", "wrong")
    }
    assert counts["error"] == sum(test.error.notna())
    assert counts["wrong"] == sum((test.quality < found["right"]) & test.error.isna())
    pair = next(one for one in part["groups"] if one["kind"] == "wrong")
    expected, got = (texts[number] for number in pair["label"])
    assert expected in LABELS
    assert expected != got
    example = pair["examples"][0]
    assert texts[example["expected"]] == expected
    assert texts[example["answer"]["output"]] == got


def test_messages_fall_in_one_class_without_what_differs() -> None:
    one = text_class("model 'big' gave no answer within 60 s (request 17)")
    assert one == text_class('model "small" gave no answer within 5.5 s (request 0x1f)')
    assert one != text_class("model 'big' refused")


def test_without_examples_only_ids_are_known(tmp_path: Path, invented: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(invented, run)
    (run / "examples.jsonl").unlink()
    found = facts(run)
    assert {(row["input"], row["expected"]) for row in found["pairs"]["rows"]} == {(-1, -1)}
    assert any("examples.jsonl" in one["text"] for one in found["caveats"])
    assert {one["input"] for one in facts(invented)["pairs"]["rows"]} != {-1}


def test_a_run_on_its_way_shows_who_leads(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run").search(children=20)
    made.status("running")
    found = facts(tmp_path / "run")
    made.table.close()
    assert not found["winner"]["recommended"]
    assert found["split"] == "train"
    assert genome(found, found["start"]["genome"]) == made.start.id
    best = genome(found, found["winner"]["genome"])
    assert made.value(best, "train", "quality") > made.value(made.start.id, "train", "quality")
    assert any("Nothing is recommended yet" in one["text"] for one in found["caveats"])
    assert page.html(found).startswith("<!doctype html>")


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run")
    made.status("running")
    found = facts(tmp_path / "run")
    assert found["winner"] is None
    assert found["genomes"]["id"] == []
    assert "Nothing has been measured" in page.html(found)


def test_torn_tails_are_left_out(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run").search(children=4)
    made.status("interrupted")
    whole = facts(tmp_path / "run")
    tail = next((tmp_path / "run" / "trials").glob("tail*"))
    made.trial(made.start, made.items("train", 0, 4), "evaluate", [made.start], "extend", 0)
    os.truncate(tail, tail.stat().st_size - 3)
    with (tmp_path / "run" / "genomes.jsonl").open("a") as lines:
        lines.write('{"id": "torn')
    torn = facts(tmp_path / "run")
    assert torn["genomes"] == whole["genomes"]
    assert torn["spend"] == whole["spend"]


@pytest.mark.parametrize(
    "name", ["genomes.jsonl", "examples.jsonl", "front.json", "run.json", "trials/part-000001.parquet"]
)
def test_damaged_folders_are_refused(tmp_path: Path, invented: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(invented, run)
    (run / name).write_text("neither JSON nor Parquet\n")
    with pytest.raises(RunDamaged, match=name.rpartition("/")[2].replace(".", r"\.")):
        facts(run)


def test_a_trial_kept_twice_counts_once(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run").search(children=3)
    made.status("running")
    once = facts(tmp_path / "run")
    from evocluster.store.table import scan

    first = [row for chunk in scan(tmp_path / "run" / "trials") for row in chunk if row["proposal"] == 0]
    made.table.append(first)
    twice = facts(tmp_path / "run")
    made.table.close()
    assert once["spend"] == twice["spend"]
    assert once["genomes"] == twice["genomes"]


def test_several_tasks(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run").search(children=6)
    run = made.finish(made.check(members=2))
    front = json.loads((run / "front.json").read_text())
    for member in (front["start"], *front["members"]):
        member["tasks"] = {"mail": {"test": member["test"]}, "chat": {"test": member["validation"]}}
    (run / "front.json").write_text(json.dumps(front))
    found = facts(run)
    best = next(member for member in front["members"] if member["recommended"])
    assert found["winner"]["tasks"]["chat"]["test"]["quality"][0] == pytest.approx(
        best["validation"]["quality"]["value"], rel=1e-5
    )


def test_caveats_say_what_to_keep_in_mind(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run", test=20, validation=20).search(children=6)
    members = made.check(members=2)
    run = made.finish(members, error="ModelError: no answer", status="failed")
    front = json.loads((run / "front.json").read_text())
    front["members"][0]["gap"]["quality"] = 0.11
    for member in (front["start"], *front["members"]):
        member["train"]["quality"] = {"value": 0.0, "low": 0.0, "high": 0.1}
    (run / "front.json").write_text(json.dumps(front))
    found = facts(run)["caveats"]
    texts = " | ".join(one["text"] for one in found)
    for said in (
        "No configuration got anything right",
        "ModelError: no answer",
        "Only 20 test examples",
        "Only 20 validation examples: below 40, intervals are wider",
        "(gap +0.11)",
    ):
        assert said in texts
    kinds = [one["kind"] for one in found]
    assert kinds == sorted(kinds, key=("bad", "warn", "note").index)


def test_the_gap_is_warned_of_only_where_the_luck_of_the_choice_does_not_explain_it(tmp_path: Path) -> None:
    made = Invented(tmp_path / "run", test=20, validation=20).search(children=6)
    run = made.finish(made.check(members=2))
    front = json.loads((run / "front.json").read_text())
    best = front["members"][0]
    best["gap"]["quality"] = 0.11
    worth = {"value": 0.7, "low": 0.6, "high": 0.8, "folds": 10, "split": "validation"}
    for low, warned in ((-0.05, False), (0.02, True)):
        best |= {"honest": {"quality": worth}, "honest_gap": {"quality": {"value": 0.1, "low": low, "high": 0.2}}}
        (run / "front.json").write_text(json.dumps(front))
        found = facts(run)
        texts = " | ".join(one["text"] for one in found["caveats"])
        assert ("loses +0.10 [+0.02..+0.20] of its quality from validation to test" in texts) is warned
        assert "(gap +0.11)" not in texts
        assert found["honest"].startswith("quality 0.70 [0.60-0.80] on validation without the luck of the choice")


CONFIG = """name: x
objectives:
- name: slowest
  source: latency_ms
  direction: min
  aggregate: p95
  threshold: 0.9
- name: polite
  source: scores.polite
  direction: max
  aggregate: mean
  threshold: 0.7
composite:
  validator: 0.5
  accuracy: 0.6
  per_ms: 0.002
search:
  population: 12
"""


def test_objectives_are_read_from_the_config() -> None:
    slow, polite, cost = aims(CONFIG, ["slowest", "polite", "cost_usd"])
    assert (slow.source, slow.direction, slow.aggregate, slow.sign) == ("latency_ms", "min", "p95", 1.0)
    assert (polite.source, polite.sign) == ("scores.polite", -1.0)
    assert (cost.source, cost.direction, cost.aggregate) == ("cost_usd", "min", "mean")
    assert weights(CONFIG) == {**weights(""), "validator": 0.5, "accuracy": 0.6, "per_ms": 0.002}
    assert setting(CONFIG, "search", "population") == 12
    assert setting(CONFIG, "search", "nothing") is None


def test_rows_count_as_the_objectives_say() -> None:
    row: dict[str, Any] = {
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "calls"), 1),
        "error": None,
        "scores": '{"polite":{"value":0.25,"reason":""}}',
        "twin": 0,
        "quality": 0.5,
        "validator": 0.8,
        "schema_ok": True,
        "flags": [],
        "repairs": 0,
        "latency_ms": 40.0,
        "cost_usd": 0.25,
    }
    ruler = Ruler(aims(CONFIG, ["slowest", "polite", "quality", "robustness", "tokens"]), weights(CONFIG))
    assert ruler.measure(row) == [40.0, 0.25, 0.5, 0.0, 2.0]
    assert ruler.measure({**row, "twin": 1}) == [40.0, None, None, 0.0, 2.0]
    assert ruler.measure({**row, "error": "no"}) == [40.0, 0.0, 0.0, 0.0, 2.0]
    assert ruler.measure({**row, "error": "no", "calls": 0})[0] is None
    assert ruler.measure({**row, "validator": 0.95})[3] == 1.0


def test_texts_are_cut_to_the_budget_and_it_is_said() -> None:
    texts = Texts(budget=10_000)
    numbers = [texts.add(f"{n} " + "word " * 400) for n in range(20)]
    short, kept = texts.add("short"), texts.add("whole " * 2000, keep=True)
    assert texts.add("short") == short
    assert texts.add(None) == -1
    assert texts[texts.add({"a": [1]})] == '{"a":[1]}'
    column = texts.column()
    assert sum(len(text) for at, text in enumerate(column["all"]) if at != kept) <= 10_000
    assert column["all"][short] == "short"
    assert len(column["all"][kept]) == 12_000
    for number in numbers:
        assert len(column["all"][number]) + column["cut"][str(number)] == len(f"{number} " + "word " * 400)
    assert len(Texts()._texts) == 0
    huge = Texts()
    huge.add("x" * 50_000)
    assert huge.column()["cut"] == {"0": 50_000 - LONGEST}


@pytest.mark.slow
def test_a_page_of_thousands_of_evaluations_stays_small(tmp_path: Path) -> None:
    """More than 5,000 evaluations with long answers that all differ: under 3 MB."""
    turn = iter(range(10**9))
    made = Invented(
        tmp_path / "run",
        train=60,
        validation=120,
        test=1000,
        say=lambda text: f"{text} {next(turn)} " + "<many> words & signs of an answer. " * 25,
    )
    run = made.search(children=24).finish(made.check(members=6))
    assert made.evaluations > 5000
    found = facts(run)
    assert len(page.html(found).encode()) < 3_000_000
    assert found["texts"]["cut"]
    assert len(found["pairs"]["rows"]) == 1250


@pytest.mark.slow
def test_a_page_of_a_hundred_thousand_evaluations(tmp_path: Path) -> None:
    """Per-genome sums only, and the rows of start and winner: under 10 MB."""
    made = Invented(tmp_path / "run", train=40, validation=20, test=60).search(children=40, block=10)
    long = "More words of a long prompt. " * 30
    while made.evaluations < 100_000:
        made.copy(made.start.replace(rubric=f"{long} {made.number}"), made.items("train", 0, 40))
    found = facts(made.finish(made.check(members=3)))
    assert len(found["genomes"]["id"]) > 1900
    assert max(found["genomes"]["splits"]["train"]["n"]) == 50
    assert len(page.html(found).encode()) < 10_000_000
