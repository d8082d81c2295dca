"""`evocluster compare`: readable at 80 columns, whole as JSON, and clear about what it cannot do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call
from small import edited
from two_runs import ASKED, PLAIN, finished

WILD = "\x1b[2J[red]evil\u202e"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run that begins at PLAIN and one that begins at ASKED."""
    folder = tmp_path_factory.mktemp("runs")
    objectives = ["quality", {"latency": "p95"}, "composite", {"name": "label", "source": "scores.label"}]
    return (
        finished(folder / "plain", PLAIN).path,
        finished(folder / "asked", ASKED, objectives=objectives).path,
    )


def genome(run: Path, role: str) -> str:
    """The id of the start or of the recommended member."""
    front = json.loads((run / "front.json").read_text())
    if role == "start":
        return str(front["start"]["genome"])
    return str(next(member["genome"] for member in front["members"] if member["recommended"]))


def other(run: Path) -> str:
    """The id of a genome that is not on the front."""
    front = json.loads((run / "front.json").read_text())
    known = {member["genome"] for member in [front["start"], *front["members"]]}
    ids = [json.loads(line)["id"] for line in (run / "genomes.jsonl").read_text().splitlines()]
    return str(next(id for id in ids if id not in known))


def test_two_runs_at_80_columns(runs: tuple[Path, Path]) -> None:
    done = call("compare", *runs, "--a", "start", "--b", "start", "--examples", 2, columns=80)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(len(line) for line in lines if str(runs[0].parent.parent) not in line) <= 80
    text = " ".join(done.out.split())
    for said in (
        f"A {genome(runs[0], 'start')[:8]} start",
        f"B {genome(runs[1], 'start')[:8]} start",
        "rubric [-Which colour?-]{+Name the colour out of {labels}.+}",
        "On test, the 60 examples both were evaluated on, 75 evaluations with twins",
        "quality 0.75 1.00 +0.25 [",
        "quality B is better by 0.25 [",
        "] on 60 examples, p < 0.001",
        "Examples: 15 fixed, 0 broken, 0 changed, 45 with the same output",
        "fixed test-3 better under B: quality 0 -> 1 input the test thing 3 looks black expected black A no idea "
        "(label 0: no label in the output; expected 'black') B black",
        "13 more changed: --all shows them",
    ):
        assert said in text, said
    assert text.count("better under B") == 2


def test_all_shows_every_example(runs: tuple[Path, Path]) -> None:
    words = ("compare", *runs, "--a", "start", "--b", "start")
    assert call(*words).out.count("better under B") == 10
    assert call(*words, "--all").out.count("better under B") == 15
    assert "more changed" not in call(*words, "--all").out


def test_json_holds_all_of_it(runs: tuple[Path, Path]) -> None:
    done = call("compare", *runs, "--a", "start", "--b", "start", "--json", "--examples", 0)
    found = json.loads(done.out)
    assert done.out.isascii()
    assert (found["split"], found["examples"], found["counts"]) == (
        "test",
        60,
        {"fixed": 15, "broken": 0, "changed": 0},
    )
    quality = found["objectives"]["quality"]
    assert (quality["test"], quality["better"], quality["difference"]) == ("exact McNemar", "B", 0.25)
    assert quality["low"] < 0.25 < quality["high"]
    assert len(found["changes"]) == 15
    assert found["genes"] == {"rubric": {"a": PLAIN["rubric"], "b": ASKED["rubric"]}}
    assert found["b"]["genome"] == genome(runs[1], "start")


def test_objectives_are_what_the_config_says(runs: tuple[Path, Path]) -> None:
    run = runs[1]
    found = json.loads(call("compare", run, "start", other(run), "--json").out)
    assert found["split"] == "train"
    assert set(found["objectives"]) == {"quality", "latency_ms", "composite", "label"}
    latency = found["objectives"]["latency_ms"]
    assert latency["aggregate"] == "p95"
    assert latency["test"].endswith("swaps of p95")
    assert found["objectives"]["label"]["a"] == found["objectives"]["quality"]["a"]
    assert "latency p95" in call("compare", run, "start", other(run)).out


def test_composite_is_that_of_the_front(runs: tuple[Path, Path], tmp_path: Path) -> None:
    twice = Path(shutil.copytree(runs[1], tmp_path / "twice"))
    found = json.loads(call("compare", runs[1], twice, "--a", "start", "--b", "start", "--json").out)
    start = json.loads((runs[1] / "front.json").read_text())["start"]["test"]
    for name, line in found["objectives"].items():
        assert line["a"] == pytest.approx(start[name]["value"]), name
        assert (line["b"], line["better"]) == (line["a"], None)


def test_a_config_that_cannot_be_read_is_no_obstacle(runs: tuple[Path, Path], tmp_path: Path) -> None:
    older = Path(shutil.copytree(runs[1], tmp_path / "older"))
    (older / "config.yaml").write_text("nonsense: true\n")
    found = json.loads(call("compare", runs[1], older, "--a", "start", "--b", "start", "--json").out)
    assert any(note.startswith("Objectives are taken by their names: ") for note in found["notes"])
    assert "Left out, since it cannot be told from the trials table alone: composite, label." in found["notes"]


def test_runs_that_score_differently_are_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    stricter = Path(shutil.copytree(runs[0], tmp_path / "stricter"))
    config: dict[str, Any] = yaml.safe_load((stricter / "config.yaml").read_text())
    config["task"]["twins"]["share"] = 0.5
    config["task"]["scorers"].append({"kind": "exact"})
    (stricter / "config.yaml").write_text(yaml.safe_dump(config))
    printed = " ".join(call("compare", runs[0], stricter, "--a", "start", "--b", "start").out.split())
    assert "Note: The runs score differently (task: scorers, twins), so their values are not of one scale." in printed


def test_one_run_compares_start_and_recommended(runs: tuple[Path, Path]) -> None:
    run = runs[0]
    member = genome(run, "recommended")
    done = call("compare", run)
    if member == genome(run, "start"):
        assert done.code == 2
        assert "(start, recommended): there is nothing to compare" in done.err
    else:
        assert f"B  {member[:8]}  recommended" in done.out
    explicit = json.loads(call("compare", run, other(run)[:10], "--json").out)
    assert (explicit["a"]["role"][:5], explicit["b"]["genome"]) == ("start", other(run))
    pair = json.loads(call("compare", run, other(run), "start", "--json").out)
    assert (pair["a"]["genome"], pair["b"]["role"][:5]) == (other(run), "start")


WRONG = (
    (("nowhere",), 4, "'nowhere' holds no run"),
    (("{0}", "no/where"), 2, "'no/where' is neither a run folder (no run.json in it) nor the id of a genome"),
    (("{0}", "xyz"), 2, "has no genome 'xyz'; allowed: start, recommended, or the first digits of an id"),
    (("{0}", "{1}", "abc"), 2, "got 'abc' after two run folders; name the genomes of two runs with --a GENOME"),
    (("{0}", "start", "abc", "--a", "abc"), 2, "genomes are named twice"),
    (("{0}", "abc", "--b", "abc"), 2, "genomes are named twice"),
    (("{0}", "{1}", "--split", "tests"), 2, "got split 'tests'; allowed: test, validation, train"),
)


@pytest.mark.parametrize(("words", "code", "said"), WRONG)
def test_wrong_words_are_explained(runs: tuple[Path, Path], words: tuple[str, ...], code: int, said: str) -> None:
    done = call("compare", *(word.format(*runs) for word in words))
    assert done.code == code
    assert said in done.err
    assert done.out == ""


def test_texts_cannot_command_the_terminal(runs: tuple[Path, Path], tmp_path: Path) -> None:
    wild = Path(shutil.copytree(runs[0], tmp_path / "wild"))
    edited(wild)
    lines = (wild / "examples.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "input": f"{WILD} {{x}}\n two"} for line in lines]
    (wild / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    front = (wild / "front.json").read_text()
    (wild / "front.json").write_text(front.replace('"Which colour?"', json.dumps(f"Which {WILD} colour?")))
    (wild / "genomes.jsonl").unlink()
    done = call("compare", wild, runs[1], "--a", "start", "--b", "start", "--anyway")
    assert not any(sign in done.out for sign in "\x1b\u202e")
    assert "[red]evil {x} two" in done.out
    assert "Which [red]evil colour?" in done.out
    assert call("compare", wild, runs[1], "--a", "start", "--b", "start").code == 0, "the data's fingerprints agree"
