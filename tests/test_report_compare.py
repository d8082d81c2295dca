"""Comparing two configurations of real small runs: what differs, on which examples, and when it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import edited
from two_runs import ASKED, PLAIN, finished

from evocluster.errors import ConfigError, RunDamaged
from evocluster.report.changes import gene_changes, word_diff
from evocluster.report.compare import as_json, compare, first, verdict
from evocluster.report.measure import measure
from evocluster.report.result import Result
from evocluster.report.side import choose


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """Runs that begin at PLAIN and at ASKED, on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    return finished(folder / "plain", PLAIN), finished(folder / "asked", ASKED)


def copied(result: Result, folder: Path) -> Path:
    """A copy of a run folder, to be changed."""
    copy = Path(shutil.copytree(result.path, folder / "copy"))
    edited(copy)
    return copy


def test_a_better_configuration_is_said_to_be_better(runs: tuple[Result, Result]) -> None:
    found = compare(choose(runs[0], "start"), choose(runs[1], "start"))
    assert (found.split, found.examples) == ("test", 60)
    line = found.lines[0]
    assert line.measure.name == "quality"
    assert (line.paired.a, line.paired.b, line.paired.up, line.paired.down) == (0.75, 1.0, 15, 0)
    assert (line.paired.test, line.better) == ("exact McNemar", "B")
    assert line.paired.p == pytest.approx(2 / 2**15)
    low, high = line.paired.low, line.paired.high
    assert verdict(line) == f"quality: B is better by 0.25 [{low:.2f}, {high:.2f}] on 60 examples, p < 0.001"
    assert (found.count("fixed"), found.count("broken"), found.count("changed")) == (15, 0, 0)
    assert str(found).startswith("A = start")
    assert f" {found.a.genome[:8]} of " in str(found).split(", B = ")[0]
    back = compare(choose(runs[1], "start"), choose(runs[0], "start"))
    assert (back.lines[0].better, back.lines[0].paired.difference) == ("A", -0.25)
    assert verdict(back.lines[0]).startswith("quality: A is better by 0.25 [")
    assert back.count("broken") == 15


def test_the_numbers_are_those_of_the_trials_table_and_of_the_front(runs: tuple[Result, Result]) -> None:
    found = compare(choose(runs[0], "start"), choose(runs[1], "start"))
    for side, values in (("a", found.a), ("b", found.b)):
        table = pandas.read_parquet(values.result.path / "trials")
        rows = table[(table.kind == "evaluation") & (table.genome_id == values.genome) & (table.split == "test")]
        said = {line.measure.name: getattr(line.paired, side) for line in found.lines}
        assert said["quality"] == pytest.approx(rows[rows.twin == 0].quality.mean())
        assert said["latency_ms"] == pytest.approx(rows.latency_ms.mean())
        assert said["cost_usd"] == pytest.approx(rows.cost_usd.mean())
        assert values.result.start is not None
        measured = values.result.start["test"]
        assert said == pytest.approx({name: measured[name]["value"] for name in said}), "as `show` has it"
        assert set(said) == set(values.result.objectives)


def test_changed_examples_come_with_input_outputs_and_reasons(runs: tuple[Result, Result]) -> None:
    found = compare(choose(runs[0], "start"), choose(runs[1], "start"))
    change = next(one for one in found.changes if one.example == "test-3")
    assert change.content["input"] == "the test thing 3 looks black"
    assert change.content["expected"] == "black"
    said = as_json(found)["changes"][0]
    assert said["kind"] == "fixed"
    assert (said["a"]["output"], said["b"]["output"]) == ("no idea", "black")
    assert (said["a"]["quality"], said["b"]["quality"]) == (0, 1)
    assert said["a"]["scores"]["label"]["reason"] == "no label in the output; expected 'black'"
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["objectives"]["quality"]["better"] == "B"


def test_the_same_genome_in_two_runs_shows_no_difference(runs: tuple[Result, Result], tmp_path: Path) -> None:
    found = compare(choose(runs[0], "start"), choose(Result(copied(runs[0], tmp_path)), "start"))
    assert not found.genes
    assert not found.changes
    assert [line.better for line in found.lines] == [""] * 4
    assert verdict(found.lines[0]) == "quality: the same on every one of 60 examples (0.75)"


def test_without_examples_only_ids_are_known(runs: tuple[Result, Result], tmp_path: Path) -> None:
    older = copied(runs[0], tmp_path)
    (older / "examples.jsonl").unlink()
    found = compare(choose(Result(older), "start"), choose(runs[1], "start"))
    assert found.changes
    assert all(change.content for change in found.changes), "the other run knows them"
    (newer := Path(shutil.copytree(runs[1].path, tmp_path / "newer")) / "examples.jsonl").unlink()
    found = compare(choose(Result(older), "start"), choose(Result(newer.parent), "start"))
    assert found.changes
    assert all(change.content == {} for change in found.changes)


def test_splits_are_chosen_by_honesty(runs: tuple[Result, Result]) -> None:
    front = {str(member["genome"]) for member in [runs[0].start or {}, *runs[0].members]}
    lines = (runs[0].path / "genomes.jsonl").read_text().splitlines()
    other = next(id for id in (json.loads(line)["id"] for line in lines) if id not in front)
    found = compare(choose(runs[0], "start"), choose(runs[0], other))
    assert found.split == "train"
    assert found.notes[-1].startswith("The search chose by train")
    assert 0 < found.examples <= 16
    with pytest.raises(
        ConfigError, match=r"was not evaluated on 'test'; it was on: train \(\d+ examples\); compare th"
    ):
        compare(choose(runs[0], "start"), choose(runs[0], other), "test")
    with pytest.raises(ConfigError, match="got split 'tests'; allowed: test, validation, train"):
        compare(choose(runs[0], "start"), choose(runs[0], other), "tests")


def test_other_data_are_refused_unless_the_examples_are_the_same(runs: tuple[Result, Result], tmp_path: Path) -> None:
    fewer = finished(tmp_path / "fewer", ASKED, {"train": 16, "validation": 12, "test": 20})
    a, b = choose(runs[0], "start"), choose(fewer, "start")
    found = compare(a, b)
    assert found.examples == 20
    assert found.notes[0] == "The runs' test data differ, but the 20 examples compared are the same in both."
    assert "A was evaluated on 40 more examples, which are left out." in found.notes
    texts = (fewer.path / "examples.jsonl").read_text()
    (fewer.path / "examples.jsonl").write_text(texts.replace("the test thing 3 ", "the best thing 3 "))
    with pytest.raises(
        ConfigError, match=r"1 of the 20 example ids in common stand for other examples, first 'test-3'"
    ):
        compare(a, b)
    (fewer.path / "examples.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"ran on other test data: the fingerprints in run\.json differ .*--anyway"):
        compare(a, b)
    assert compare(a, b, anyway=True).notes[0].endswith("Compared all the same, as asked.")


def test_nothing_in_common_is_refused_with_the_counts(runs: tuple[Result, Result], tmp_path: Path) -> None:
    other = copied(runs[1], tmp_path)
    table = pandas.read_parquet(other / "trials")
    table["example_id"] = "other-" + table["example_id"]
    shutil.rmtree(other / "trials")
    (other / "trials").mkdir()
    table.to_parquet(other / "trials" / "part-000001.parquet", index=False)
    said = r"no example of test in common: .* 60 example ids \('test-.*\), .* on 60 \('other-test-"
    with pytest.raises(ConfigError, match=said):
        compare(choose(runs[0], "start"), choose(Result(other), "start"))


def test_genomes_are_chosen_by_words_and_prefixes(runs: tuple[Result, Result]) -> None:
    run = runs[0]
    assert run.start is not None
    assert run.recommended is not None
    start = str(run.start["genome"])
    assert choose(run, "start").genome == start == choose(run, start[:6]).genome == choose(run, start.upper()).genome
    assert choose(run, "start").genes == {**choose(run, "start").genes, **PLAIN}
    assert choose(run, "recommended").genome == run.recommended["genome"]
    assert "recommended" in choose(run, "recommended").role
    with pytest.raises(ConfigError, match=rf"no genome '{start[:7]}zz'; .*did you mean '{start[:9]}'\?"):
        choose(run, f"{start[:7]}zz")
    ids = [json.loads(line)["id"] for line in (run.path / "genomes.jsonl").read_text().splitlines()]
    shared = next(one[0] for one in ids if sum(id[0] == one[0] for id in ids) > 1)
    with pytest.raises(ConfigError, match=rf"'{shared}' is the beginning of \d+ genomes .*; give more digits"):
        choose(run, shared)
    with pytest.raises(ConfigError, match="has no genome ''"):
        choose(run, "")
    with pytest.raises(ConfigError, match="A and B are both genome"):
        compare(choose(run, "start"), choose(run, start))


def test_an_unfinished_run_is_compared_as_far_as_it_went(runs: tuple[Result, Result], tmp_path: Path) -> None:
    going = copied(runs[0], tmp_path)
    (going / "front.json").unlink()
    edited(going, status="running")
    with (going / "genomes.jsonl").open("a") as file:
        file.write('{"id": "being writ')
    result = Result(going)
    a = choose(result, "start")
    assert runs[0].start is not None
    assert a.genome == runs[0].start["genome"]
    found = compare(a, choose(runs[1], "start"))
    assert found.notes == [f"{str(going)!r} is not finished (running): compared is what is there."]
    assert [line.measure.name for line in found.lines] == runs[0].objectives
    with pytest.raises(
        ConfigError, match=r"\(running\) has no front yet, so nothing in it is 'recommended'; name a ge"
    ):
        choose(result, "recommended")
    shutil.rmtree(going / "trials")
    with pytest.raises(ConfigError, match=r"\(running\) has evaluated nothing yet"):
        choose(result, "start")
    lone = choose(result, a.genome)
    with pytest.raises(ConfigError, match=r"no split in common: .* on nothing; genome .* on test \(60 examples\)"):
        compare(lone, choose(runs[1], "start"))


def test_a_damaged_folder_is_refused(runs: tuple[Result, Result], tmp_path: Path) -> None:
    broken = copied(runs[0], tmp_path)
    (broken / "genomes.jsonl").write_text("{}\n")
    with pytest.raises(RunDamaged, match=r"genomes\.jsonl:1: not a genome"):
        choose(Result(broken), "start")
    (broken / "genomes.jsonl").unlink()
    side = choose(Result(broken), "start")
    assert side.genes["rubric"] == "Which colour?", "what front.json holds can be compared without it"
    (broken / "examples.jsonl").write_text("[]\n")
    with pytest.raises(RunDamaged, match=r"examples\.jsonl:1: not an example"):
        compare(side, choose(runs[1], "start"))


ROW: dict[str, Any] = dict(
    twin=0, error=None, quality=0.5, seconds=0.25, cost_usd=0.1, prompt_tokens=3, completion_tokens=4
)
ROW |= dict(calls=1, schema_ok=True, flags=[], repairs=0, validator=0.8)
ROW |= dict(scores='{"polite": {"value": 0.5, "reason": ""}}')
MEASURED: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("quality", {}, 0.5),
    ("quality", {"twin": 1}, None),
    ("quality", {"error": "lost"}, 0.0),
    ("latency_ms", {"twin": 2}, 250.0),
    ("latency_ms", {"error": "lost", "calls": 0}, None),
    ("cost_usd", {"error": "lost"}, 0.1),
    ("tokens", {}, 7.0),
    ("robustness", {}, 0.0),
    ("robustness", {"validator": 0.95}, 1.0),
    ("robustness", {"validator": 0.95, "repairs": 1}, 0.0),
    ("robustness", {"validator": 0.95, "flags": ["pii"]}, 0.0),
    ("scores.polite", {}, 0.5),
    ("scores.polite", {"twin": 1}, None),
    ("scores.kind", {}, 0.0),
)


@pytest.mark.parametrize(("name", "changed", "expected"), MEASURED)
def test_rows_are_measured_as_the_search_measures_them(
    name: str, changed: dict[str, Any], expected: float | None
) -> None:
    one = measure(name)
    assert one is not None
    assert one.value({**ROW, **changed}) == expected
    assert one.direction == ("min" if name in ("latency_ms", "cost_usd", "tokens") else "max")


def test_objectives_whose_names_say_nothing_need_their_source() -> None:
    assert measure("speed") is None
    assert measure("composite") is None
    one = measure("speed", "latency_ms", "min", "p95")
    assert one is not None
    assert (one.value(ROW), one.aggregate) == (250.0, "p95")


def test_shown_examples_take_turns(runs: tuple[Result, Result]) -> None:
    recommended = compare(choose(runs[1], "start"), choose(runs[0], "start"))
    forth = compare(choose(runs[0], "start"), choose(runs[1], "start"))
    mixed = [*forth.changes[:3], *recommended.changes[:5]]
    assert [one.kind for one in first(mixed, 4)] == ["fixed", "fixed", "broken", "broken"]
    assert [one.kind for one in first(mixed, 7)] == ["fixed"] * 3 + ["broken"] * 4
    assert first(mixed, 0) == []
    assert first(mixed, 100) == mixed


WORDS = st.lists(st.sampled_from(["a", "bc", " ", "  ", "\n", ".", "{x}"]), max_size=15).map("".join)


@given(WORDS, WORDS)
def test_a_word_diff_holds_both_texts_whole(a: str, b: str) -> None:
    pieces = word_diff(a, b)
    assert "".join(piece.text for piece in pieces if piece.kind != "new") == a
    assert "".join(piece.text for piece in pieces if piece.kind != "gone") == b
    assert all(piece.text for piece in pieces)


def test_words_that_changed_stand_out() -> None:
    pieces = word_diff("Name the queue of it. One word.", "Name the right queue of it, in one word.")
    assert [tuple(piece) for piece in pieces] == [
        ("same", "Name the"),
        ("new", " right"),
        ("same", " queue of it"),
        ("gone", ". One"),
        ("new", ", in one"),
        ("same", " word."),
    ]
    assert [piece.kind for piece in word_diff("Which colour?", "Say what it looks like.")] == ["gone", "new"]


def test_genes_that_differ() -> None:
    changes = gene_changes(
        {"cot": False, "rubric": "a b", "old": 1, "same": 2}, {"cot": True, "rubric": "a c", "same": 2}
    )
    assert [(one.name, one.a, one.b) for one in changes] == [
        ("cot", False, True),
        ("old", 1, None),
        ("rubric", "a b", "a c"),
    ]
    assert [piece.kind for piece in changes[-1].pieces] == ["same", "gone", "new"]
