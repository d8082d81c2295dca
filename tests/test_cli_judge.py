"""`evocluster judge check`: what it prints and leaves with, whatever judge and labels it is given."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command import Outcome, call
from small import settings, write_config

from evocluster import build
from evocluster.config import load
from evocluster.errors import ConfigError

GRADES = {"great": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1}
SCORER = {"kind": "judge", "name": "helpful", "model": "big"}


def rules(grades: dict[str, int]) -> list[dict[str, str]]:
    """Rules of a scripted judge: an answer that begins with this word gets this grade."""
    return [
        {"pattern": rf"<<< ANSWER \w+\n{word}\b", "text": json.dumps({"reason": f"it is {word}", "score": number})}
        for word, number in grades.items()
    ]


def write_labels(path: Path, count: int = 30, **changed: Any) -> Path:
    """Labelled answers in turn great, good, fair, poor and bad; their path."""
    rows = []
    for at in range(count):
        word = list(GRADES)[at % 5]
        row = {"input": f"question {at}", "output": f"{word} answer {at}", "score": 1 - (at % 5) / 4, **changed}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def write(
    folder: Path,
    grades: dict[str, int] | None = None,
    default: str = "no idea",
    scorers: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """A config with a scripted judge, its rubric and its labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rubric, labels = folder / "rubric.md", folder / "labels.jsonl"
    rubric.write_text("---\nversion: 7\nscale: 1-5\n---\nHow much does it help?\n")
    if not labels.exists():
        write_labels(labels)
    task = settings()["task"] | {"kind": "text"}
    del task["labels"], task["twins"]
    task["scorers"] = [{**scorer, "rubric": str(rubric), "labelled": str(labels)} for scorer in scorers or [SCORER]]
    models = {
        "fake": {"kind": "scripted"},
        "big": {"kind": "scripted", "rules": rules(GRADES if grades is None else grades), "default": default},
    }
    space = {"rubric": ["x"], "model": ["fake"], "max_tokens": [8]}
    return write_config(folder, task=task, models=models, space=space, start=[{"rubric": "x"}], **changes)


def checked(config: Path, *words: object) -> dict[str, Any]:
    """What `judge check --json` found."""
    outcome = call("judge", "check", config, "--json", *words)
    assert (outcome.code, outcome.err) == (0, "")
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def refused(outcome: Outcome, code: int, *said: str) -> None:
    """One error with these words."""
    assert outcome.code == code, outcome
    assert outcome.err.count("error:") == 1
    for words in said:
        assert words in outcome.err


def test_a_judge_that_agrees(tmp_path: Path) -> None:
    outcome = call("judge", "check", write(tmp_path))
    assert (outcome.code, outcome.err) == (0, "")
    for text in (
        "Judge helpful, model big",
        f"Rubric {tmp_path / 'rubric.md'} (version 7, ",
        "scale 1-5)",
        "30 labelled answers, 0 without a grade",
        "Pass is 0.85 or more:",
        "Spent: 30 calls (0 from the cache)",
        "Verdict: kappa 1.00: it grades much like the labels\n",
    ):
        assert text in outcome.out
    rows = {line.split("  ")[0]: line.split() for line in outcome.out.splitlines()}
    assert rows["mean absolute error"][3:] == ["0.00", "0.00", "to", "0.00"]
    assert rows["bias (judge - label)"][4:] == ["+0.00", "+0.00", "to", "+0.00"]
    assert rows["judge passes"][2:] == ["6", "0"]
    assert rows["judge fails"][2:] == ["0", "24"]
    assert "Furthest apart" not in outcome.out


def test_a_judge_that_does_not(tmp_path: Path) -> None:
    turned = {word: 6 - number for word, number in GRADES.items()}
    config = write(tmp_path, turned)
    outcome = call("judge", "check", config)
    assert outcome.code == 0
    assert "do not trust it for selection" in outcome.out
    assert "line 1: judge 0.00, label 1.00" in outcome.out
    assert "answer: great answer 0" in outcome.out
    assert "reason: it is great" in outcome.out
    found = checked(config)
    assert found["agreement"]["kappa"]["value"] == pytest.approx(-1.0)
    assert found["agreement"]["spearman"]["value"] == pytest.approx(-1.0)
    assert len(found["worst"]) == 5
    assert {abs(case["judged"] - case["label"]) for case in found["worst"]} == {1.0}


def test_min_kappa_decides_the_exit_code_after_the_report(tmp_path: Path) -> None:
    config = write(tmp_path / "a", {word: 6 - number for word, number in GRADES.items()})
    outcome = call("judge", "check", config, "--min-kappa", "0.6")
    refused(outcome, 8, "judge 'helpful': kappa is -1.000", "--min-kappa asks for 0.6 or more")
    assert "Verdict:" in outcome.out
    assert call("judge", "check", write(tmp_path / "b"), "--min-kappa", "0.6").code == 0
    undefined = call("judge", "check", write(tmp_path / "c", {}), "--min-kappa", "0", "--json")
    refused(undefined, 8, "kappa is not defined: nothing was graded")
    assert json.loads(undefined.out)["failed"] == 30


def test_replies_without_a_grade_are_counted_and_shown(tmp_path: Path) -> None:
    outcome = call("judge", "check", write(tmp_path, {"great": 5, "good": 4, "bad": 1}, default="Well\x1b[31m, hm"))
    assert "30 labelled answers, 12 without a grade" in outcome.out
    assert "Without a grade (12):" in outcome.out
    assert "line 3: ValueError: judge (model 'big') answered no score: 'Well" in outcome.out
    assert "12 of 30 answers got no grade" in outcome.out
    assert "\x1b" not in outcome.out
    found = checked(tmp_path / "small.yaml")
    assert (found["agreement"]["pairs"], found["failed"], found["agreement"]["kappa"]["value"]) == (18, 12, 1.0)
    nothing = call("judge", "check", write(tmp_path / "none", {}))
    assert nothing.code == 0
    assert "kappa (quadratic)" not in nothing.out
    assert "Verdict: no reply could be read" in nothing.out


def test_checked_again_it_costs_nothing(tmp_path: Path) -> None:
    config = write(tmp_path)
    first, second = checked(config)["spend"], checked(config)["spend"]
    assert first["calls"] == second["calls"] == second["cached"] == 30
    assert first["paid_usd"] == first["usd"] > 0
    assert second["paid_usd"] == 0
    assert second["usd"] == pytest.approx(first["usd"])
    assert checked(config, "--set", "cache.enabled=false")["spend"]["cached"] == 0


def test_repeats_measure_whether_it_agrees_with_itself(tmp_path: Path) -> None:
    config = write(tmp_path)
    found = checked(config, "--repeats", 3, "--limit", 10)
    assert found["spend"]["calls"] == 30
    assert found["stability"] == {"asked": 3, "answers": 10, "identical": 1.0, "spread": 0.0, "kappa": 1.0}
    assert [len(case["again"]) for case in found["cases"]] == [2] * 10
    printed = call("judge", "check", config, "--repeats", 3, "--limit", 10).out
    assert "With itself, asked 3 times (10 answers): 100% always the same grade" in printed
    assert "With itself" not in call("judge", "check", config).out


def test_where_the_bar_lies(tmp_path: Path) -> None:
    config = write(tmp_path)
    assert checked(config)["agreement"]["both"] == 6
    assert checked(config, "--pass-at", "0.5")["agreement"]["both"] == 18
    assert checked(config, "--set", "task.accuracy_threshold=0.75")["agreement"]["both"] == 12
    refused(call("judge", "check", config, "--pass-at", "1.5"), 2, "pass_at 1.5", "above 0, to 1")


def test_of_several_judges_one_is_named(tmp_path: Path) -> None:
    config = write(tmp_path, scorers=[SCORER, {**SCORER, "name": "strict", "attempts": 1}])
    refused(call("judge", "check", config), 2, "several judges", "--scorer: helpful, strict")
    refused(call("judge", "check", config, "--scorer", "stric"), 2, "no judge 'stric'", "did you mean 'strict'?")
    assert checked(config, "--scorer", "strict")["judge"] == "strict"
    refused(call("judge", "check", write_config(tmp_path / "none")), 2, "the task has no judge", "task.scorers")


def test_only_the_judges_model_is_opened(tmp_path: Path) -> None:
    config = write(tmp_path)
    nowhere = '{"kind": "direct", "base_url": "http://127.0.0.1:1/v1", "model": "x", "key_env": "UNSET_KEY"}'
    assert checked(config, "--set", f"models.fake={nowhere}")["failed"] == 0
    big = nowhere.replace(
        ', "key_env": "UNSET_KEY"', ', "retries": 0, "price": {"prompt_usd_per_mtok": 0, "completion_usd_per_mtok": 0}'
    )
    refused(call("judge", "check", config, "--set", f"models.big={nowhere}"), 2, "'UNSET_KEY'")
    refused(call("judge", "check", config, "--set", f"models.big={big}"), 7, "http://127.0.0.1:1/v1")
    refused(call("judge", "check", config, "--set", "task.scorers.0.model=bgi"), 2, "'bgi'")


def test_what_the_model_cannot_do_is_said_before_it_is_asked(tmp_path: Path) -> None:
    config = write(tmp_path)
    sets = ("--set", 'models.big={"kind": "direct", "base_url": "http://127.0.0.1:1/v1", "model": "x"}')
    wrong = call("judge", "check", config, *sets, "--set", "task.scorers.0.choices=true")
    refused(wrong, 2, "judge with choices: true", "model 'big' cannot do that")


def test_labels_from_csv_and_on_the_rubrics_scale(tmp_path: Path) -> None:
    config = write(tmp_path)
    rows = [
        {"input": "q", "output": f"{word} {at}", "rating": number} for at in range(4) for word, number in GRADES.items()
    ]
    path = tmp_path / "more.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["input", "output", "rating", "by"])
        writer.writeheader()
        writer.writerows([{**row, "by": "Ada"} for row in rows])
    found = checked(config, "--labels", path)
    assert (found["labels"], found["agreement"]["error"]["value"]) == (20, 0.0)
    words = write_labels(tmp_path / "words.jsonl")
    text = "".join(f'{{"input": "q", "output": "bad {at}", "score": "FAIL"}}\n' for at in range(5))
    words.write_text(text + '{"id": 9, "input": {"a": 1}, "output": "great", "expected": "x", "score": true}\n')
    cases = checked(config, "--labels", words)["cases"]
    assert [case["label"] for case in cases] == [0.0] * 5 + [1.0]
    assert (cases[5]["id"], cases[5]["input"], cases[5]["expected"]) == ("9", {"a": 1}, "x")


WRONG = (
    ('{"input": "q", "score": 1}', "labels.jsonl:1: no column 'output'; columns here: input, score"),
    ('{"input": "q", "output": "a"}', "labels.jsonl:1: has neither 'score' nor 'rating'"),
    ('{"input": "q", "output": "a", "score": 1, "rating": 4}', "has both 'score' and 'rating'"),
    (
        '{"input": "q", "output": "a", "score": 4}',
        "score 4 must be from 0 to 1, or pass or fail; a grade on the rubric's",
    ),
    ('{"input": "q", "output": "a", "rating": 0}', "rating 0 must be from 1 to 5, or pass or fail\n"),
    ('{"input": "q", "output": "a", "score": "good"}', "score 'good' must be from 0 to 1"),
    ('{"input": ["q"], "output": "a", "score": 1}', "input ['q'] must be text or an object"),
    (
        '{"id": "a", "input": "q", "output": "a", "score": 1}\n\n{"id": "a", "input": "r", "output": "b", "score": 0}',
        "labels.jsonl:3: id 'a' is already used in line 1",
    ),
    ("{", "labels.jsonl:1: not JSON"),
    ("", "labels.jsonl:1: the file has no rows"),
)


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[:30] for _, said in WRONG])
def test_wrong_labels_are_refused_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    config = write(tmp_path)
    (tmp_path / "labels.jsonl").write_text(text + "\n" if text else "")
    refused(call("judge", "check", config), 2, said)


def test_labels_and_rubric_have_to_be_there(tmp_path: Path) -> None:
    config = write(tmp_path)
    refused(call("judge", "check", config, "--labels", tmp_path / "label.jsonl"), 2, "did you mean 'labels.jsonl'?")
    unnamed = call("judge", "check", config, "--set", "task.scorers.0.labelled=null")
    refused(unnamed, 2, "judge 'helpful' names no labels", "--labels FILE")
    (tmp_path / "rubric.md").write_text("How much does it help?")
    refused(call("judge", "check", config), 2, "rubric.md:1: no header")


def test_usage(tmp_path: Path) -> None:
    assert call("judge", "check", write(tmp_path), "--limit", "0").code == 2
    shown = call("judge", "check", "--help").out
    assert "evocluster judge check my.yaml --scorer helpful --min-kappa 0.6" in shown
    assert "8 below what was asked" in " ".join(call("--help").out.split())


async def test_from_python_inside_a_running_loop(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    found = build.judge_check(config, tmp_path / "labels.jsonl", limit=5, pass_at=0.5)
    assert asyncio.get_running_loop().is_running()
    assert (found["labels"], found["agreement"]["both"]) == (5, 3)
    with pytest.raises(ConfigError, match="repeats 0: allowed: 1 to 100"):
        build.judge_check(config, repeats=0)


def test_the_labels_that_ship_fit_the_rubric_that_ships(tmp_path: Path) -> None:
    ours = Path(__file__).parents[1] / "configs" / "judge"
    config = write(tmp_path, {}, default=json.dumps({"reason": "", "score": 3}))
    sets = ("--set", f"task.scorers.0.rubric={ours / 'helpful.md'}", "--labels", ours / "labels.jsonl")
    found = checked(config, *sets)
    assert (found["labels"], found["rubric"]["scale"], found["rubric"]["version"]) == (30, "1-5", "1")
    assert sorted({case["label"] for case in found["cases"]}) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found["agreement"]["pearson"]["note"] == "not defined: all grades are equal"
    assert len({case["output"] for case in found["cases"]}) == 30


@pytest.mark.slow
@pytest.mark.parametrize("style", ["chat", "completion"])
def test_on_the_embedded_model_every_grade_is_on_the_scale(tmp_path: Path, smollm2: str, style: str) -> None:
    config = write(tmp_path, scorers=[{**SCORER, "choices": True, "style": style, "attempts": 1}])
    price = '{"prompt_usd_per_mtok": 0.02, "completion_usd_per_mtok": 0.06}'
    model = f'{{"kind": "local", "name": "{smollm2}", "processes": 1, "price": {price}}}'
    found = checked(config, "--set", f"models.big={model}", "--limit", 3)
    assert (found["labels"], found["failed"], found["spend"]["calls"]) == (3, 0, 3)
    assert {case["judged"] for case in found["cases"]} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert found["spend"]["paid_usd"] > 0
