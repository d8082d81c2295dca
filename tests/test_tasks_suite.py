"""Several related tasks: each keeps its own labels, scorers and demos; a genome is judged over all of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import call
from small import settings, write_data

from evocluster import build
from evocluster.config import parse
from evocluster.errors import ConfigError
from evocluster.records import Evaluation, Item, Usage
from evocluster.report.result import Result
from evocluster.search.across import Tasks
from evocluster.search.objectives import Composite, Objective, Tally
from evocluster.tasks.suite import task_of


def several(folder: Path, **changes: Any) -> dict[str, Any]:
    """Colours as a classification of four labels, and how the same things look as free text."""
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    write_data(folder / "one")
    write_data(folder / "two", {"train": 8, "validation": 4, "test": 8})
    given = settings(**changes)
    task = given.pop("task")
    files = ("train", "validation", "test")
    given["tasks"] = {
        "label": {**task, "data": {split: str(folder / "one" / f"{split}.jsonl") for split in files}},
        "words": {
            "kind": "text",
            "data": {split: str(folder / "two" / f"{split}.jsonl") for split in files},
            "scorers": [{"kind": "contains"}],
        },
    }
    return given


def test_one_genome_is_searched_over_all_tasks_and_scored_per_task(tmp_path: Path) -> None:
    config = parse(several(tmp_path), tmp_path)
    result = build.run(build.plan(config), tmp_path / "run")
    best = result.recommended
    assert best is not None
    assert best["tasks"].keys() == {"label", "words"}
    both = [best["tasks"][name]["test"]["quality"]["value"] for name in ("label", "words")]
    assert best["test"]["quality"]["value"] == pytest.approx(np.mean(both))
    rows = [json.loads(line) for line in (tmp_path / "run" / "examples.jsonl").read_text().splitlines()]
    assert sum(row["split"] == "test" for row in rows) == 20
    assert {task_of(row["id"]) for row in rows} == {"label", "words"}
    assert Result(tmp_path / "run").run["examples"] == {"train": 24, "validation": 12, "test": 20}


def test_labels_that_do_not_fit_are_named_by_task_file_and_line(tmp_path: Path) -> None:
    given = several(tmp_path)
    given["tasks"]["label"]["labels"] = ["red", "blue"]
    with pytest.raises(ConfigError) as caught:
        build.plan(parse(given, tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/one/train.jsonl:2: tasks.label.labels: 2 expected value(s) are not among the labels (red, blue): "
        "'green' (train 'label::train-1'); 'black' (train 'label::train-3'); correct the data, "
        "or list every label under `tasks.label.labels`"
    )


def test_worst_of_the_tasks(tmp_path: Path) -> None:
    config = parse({**several(tmp_path), "across": "worst"}, tmp_path)
    result = build.run(build.plan(config), tmp_path / "run")
    for member in (*result.members, result.start):
        assert member is not None
        both = [member["tasks"][name]["test"]["quality"]["value"] for name in ("label", "words")]
        assert member["test"]["quality"]["value"] == min(both)
        slow = [member["tasks"][name]["test"]["latency_ms"]["value"] for name in ("label", "words")]
        assert member["test"]["latency_ms"]["value"] == max(slow)


async def test_demos_of_another_task_are_not_shown(tmp_path: Path) -> None:
    plan = build.plan(parse(several(tmp_path), tmp_path))
    suite = pickle.loads(pickle.dumps(plan.evaluator))
    genome = plan.start[0].replace(demos=("label::train-0", "words::train-1"))
    asked: list[str] = []

    class Model:
        async def __call__(self, request: Any) -> Any:
            asked.append(" / ".join(message.content for message in request.messages))
            raise AssertionError

    for task, own, other in (("label", "thing 0", "thing 1"), ("words", "thing 1", "thing 0")):
        with pytest.raises(AssertionError):
            await suite.evaluate(Item(split="test", example=f"{task}::test-3"), genome, Model())
        assert f"the train {own}" in asked[-1]
        assert f"the train {other}" not in asked[-1]


def test_blocks_hold_every_task(tmp_path: Path) -> None:
    items = build.plan(parse(several(tmp_path), tmp_path)).items("train")
    examples = list(dict.fromkeys(item.example for item in items))
    for start in range(0, len(examples) - 5, 6):
        assert {task_of(id) for id in examples[start : start + 6]} == {"label", "words"}


@pytest.mark.parametrize("selection", ["race", "steady"])
def test_blocks_of_a_search_hold_every_task_however_uneven(tmp_path: Path, selection: str) -> None:
    given = several(tmp_path)
    write_data(tmp_path / "one", {"train": 100, "validation": 8, "test": 8})
    given["search"] = {"population": 6, "block": 16, "finalists": 2, "lookahead": 30, "selection": selection}
    plan = build.plan(parse({**given, "space": {**given["space"], "demos": []}}, tmp_path))
    optimizer = plan.optimizer()
    asked = []
    while (proposal := optimizer.ask()) is not None and proposal.operator == "evaluate":
        asked.append(proposal)
    examples = [list(dict.fromkeys(item.example for item in one.items)) for one in asked]
    assert [len(block) for block in examples] == [16] * 6 + [12]
    assert len({id for block in examples for id in block}) == 108
    words = [sum(task_of(id) == "words" for id in block) for block in examples]
    if selection == "race":
        assert min(words) >= 1
        assert max(words) <= 2
    else:
        mixed = list(dict.fromkeys(item.example for item in plan.items("train")))
        assert [id for block in examples for id in block] == mixed, "as they come"


def test_one_task_or_several_but_not_both(tmp_path: Path) -> None:
    given = several(tmp_path)
    with pytest.raises(ConfigError, match="is there beside `tasks:`; keep one of them"):
        parse({**given, "task": given["tasks"]["label"]}, tmp_path)
    with pytest.raises(ConfigError, match="tasks: holds one task; write it under `task:`"):
        parse({**given, "tasks": {"label": given["tasks"]["label"]}}, tmp_path)
    with pytest.raises(ConfigError, match="task: missing; describe the task here, or several under `tasks:`"):
        parse({**given, "tasks": {}}, tmp_path)
    wrong = {"label": given["tasks"]["label"], "words": {**given["tasks"]["words"], "scorers": [{"kind": "labl"}]}}
    with pytest.raises(ConfigError, match=r"tasks\.words\.scorers\.0\.kind: unknown kind \(got 'labl'\)"):
        parse({**given, "tasks": wrong}, tmp_path)


def _tally(how: Any, values: dict[str, list[float]]) -> Tally:
    index = {f"{task}::{n}": 0 for task, all_ in values.items() for n in range(len(all_))}
    index = {name: number for number, name in enumerate(index)}
    tally = Tally(Composite(), index=index, tasks=Tasks.among(index, task_of, how))
    tally.add(
        [
            Evaluation(
                item=Item(split="test", example=f"{task}::{n}"), quality=value, usage=Usage(calls=1, seconds=value)
            )
            for task, all_ in values.items()
            for n, value in enumerate(all_)
        ]
    )
    return tally


def test_every_task_counts_alike() -> None:
    quality, latency = (Objective.model_validate(name) for name in ("quality", "latency_ms"))
    values = {"big": [1.0] * 30, "small": [0.0, 1.0, 0.0, 0.0]}
    mean, worst = _tally("mean", values), _tally("worst", values)
    assert mean.value(quality) == pytest.approx(0.625)
    assert worst.value(quality) == 0.25
    assert worst.value(latency) == 1000.0
    assert mean.part("small").value(quality) == 0.25
    for tally in (mean, worst):
        found = tally.interval(quality, np.random.default_rng(1))
        assert found.low < found.value < found.high
        assert tally.lower(quality) < tally.value(quality)
    assert mean.interval(quality, np.random.default_rng(1)).low >= 0.5  # the big task is sure


def test_show_lists_quality_task_by_task(tmp_path: Path) -> None:
    build.run(build.plan(parse(several(tmp_path), tmp_path)), tmp_path / "run")
    shown = call("show", tmp_path / "run", columns=100)
    line = next(line for line in shown.out.splitlines() if line.startswith("quality by task"))
    assert line.split() == ["quality", "by", "task", "genome", "label", "words"]
    assert call("show", tmp_path / "run", columns=60).code == 0
