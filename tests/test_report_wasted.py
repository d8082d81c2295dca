"""A run whose rewriting model is too weak for it says so, with the reason and the setting that helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from reflect_world import write

from evocluster import build
from evocluster.cli import show
from evocluster.config import load
from evocluster.report.caveats import caveats, stop_reason
from evocluster.report.found import Found
from evocluster.report.wasted import wasted


def ran(folder: Path, search: dict[str, Any], **changes: Any) -> Found:
    """A run with a model that answers with colours, whatever it is asked for."""
    plan = build.plan(load(write(folder, search, {"generations": 6}, **changes)))
    build.run(plan, folder / "run")
    return Found(folder / "run")


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return ran(tmp_path_factory.mktemp("weak"), {"strategy": "refine", "reflector": "fake"})


def test_reflections_without_a_prompt_are_counted_and_explained(weak: Found) -> None:
    uses = weak.run["operators"]["reflect"]["uses"]
    (said,) = wasted(weak)
    assert said.startswith(
        f"reflect brought no prompt in {uses} of {uses} tries, most often ({uses}) since no instruction"
    )
    assert said.endswith("name it under search.reflector.")
    assert {"kind": "note", "text": said} in caveats(weak, None, 0, 1, True)


def test_refinement_that_has_nothing_left_does_not_say_that_every_configuration_was_tried(weak: Found) -> None:
    assert weak.run["stop_reason"] == "exhausted"
    said = stop_reason(weak)
    assert said == "nothing was left to repair, or reflection had brought no new prompt for several rounds"
    weak.run["exploring"] = False
    try:
        assert stop_reason(weak) == "neither the population nor refinement had more to try"
    finally:
        del weak.run["exploring"]


def test_the_same_reason_in_other_words_is_one_reason(tmp_path: Path) -> None:
    rule = {"pattern": r"(?s)improve the instruction.*\[(?P<code>\w+) RESULTS", "text": 'it\'s "red" \\g<code>'}
    fake = {"kind": "scripted", "rules": [rule], "default": "red"}
    found = ran(tmp_path, {"strategy": "refine", "reflector": "fake"}, models={"fake": fake})
    uses = found.run["operators"]["reflect"]["uses"]
    assert f"in {uses} of {uses} tries, most often ({uses}) since no instruction" in wasted(found)[0]


def test_the_end_of_a_run_says_it(weak: Found, capsys: pytest.CaptureFixture[str]) -> None:
    show.print_result(weak, as_json=False)
    said = capsys.readouterr().out
    assert wasted(weak)[0] in said
    assert "The search ended by: exhausted (nothing was left to repair, or reflection had brought no new" in said


def test_where_no_model_was_asked_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert (
        wasted(ran(tmp_path, {"operators": ["mutate"]}, space={"rubric": {"texts": ["A?", "B?"], "fixed": True}})) == []
    )


def test_a_damaged_table_is_said_and_ends_nothing(weak: Found, tmp_path: Path) -> None:
    shutil.copytree(weak.path, tmp_path / "run")
    for part in (tmp_path / "run" / "trials").iterdir():
        part.write_bytes(b"nothing of a table")
    (said,) = wasted(Found(tmp_path / "run"))
    assert said.startswith("Whether calls were wasted cannot be told: ")
