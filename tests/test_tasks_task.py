"""Tasks as settings: what defaults to what, and which contradictions are refused with names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from evocluster.errors import ConfigError
from evocluster.records import Example, Json, Split
from evocluster.tasks.answers import Schema
from evocluster.tasks.dataset import Splits
from evocluster.tasks.task import Task

DATA = {"train": "train.jsonl"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def make(kind: str = "classification", **settings: Json) -> Task:
    return Task.model_validate({"kind": kind, "data": DATA, **settings})


def splits(*expected: Json) -> Splits:
    """The same expected values in every split."""
    return Splits(
        *(
            [Example(id=f"{name}{at}", input=f"{name} {at}", expected=value) for at, value in enumerate(expected)]
            for name in ("train", "validation", "test")
        )
    )


@pytest.mark.parametrize(
    ("kind", "scorer", "words"),
    [
        ("classification", "label", ("Text", "Label")),
        ("extraction", "json_equal", ("Input", "Output")),
        ("text", "normalised", ("Input", "Output")),
    ],
)
def test_defaults_by_kind(kind: str, scorer: str, words: tuple[str, str]) -> None:
    task = make(kind)
    assert [each.kind for each in task.scorers] == [scorer]
    assert task.words == words
    assert make(kind, input_name="Q", output_name="A").words == ("Q", "A")
    assert Task.model_validate(json.loads(task.model_dump_json())) == task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["a", "a"]}, r"\['a', 'a'\] name one twice"),
        ({"labels": ["a"]}, r"needs at least two"),
        ({"labels": ["a", "b"], "label_names": {"letters": {}}}, r"label_names\.letters: is built in"),
        (
            {"labels": ["refund", "b"], "label_names": {"p": {"refnd": "x"}}},
            r"'refnd'.*did you mean 'refund'",
        ),
        ({"labels": ["a", "b"], "label_names": {"p": {"a": "x"}}}, r"label_names\.p: no name for 'b'"),
        (
            {"labels": ["a", "b"], "label_names": {"p": {"a": "x", "b": "x"}}},
            r"'a' and 'b' are both called 'x'",
        ),
        ({"labels": ["a", "b"], "label_names": {"p": {"a": "x", "b": " "}}}, r"the name of 'b' is empty"),
        ({"json_schema": SCHEMA}, r"json_schema is for kind 'extraction', but kind is 'classification'"),
        ({"kind": "text", "labels": ["a", "b"]}, r"labels is for kind 'classification'"),
        ({"kind": "text", "scorers": [{"kind": "label"}]}, r"scorer 'label' is for kind 'classification'"),
        ({"scorers": [{"kind": "exact"}, {"kind": "exact"}]}, r"two scorers are named 'exact'"),
        ({"weights": {"lable": 1}}, r"no scorer 'lable'; scorers are label; did you mean 'label'"),
        ({"validator": {"scorer": "exact"}}, r"no scorer 'exact'"),
        ({"weights": {"label": 0}}, r"leave no scorer for quality"),
        ({"weights": {"label": -1}}, r"greater than or equal to 0"),
        ({"twins": {"kinds": []}}, r"at least 1 item"),
        ({"twins": {"kinds": ["typo"]}}, r"'typos'"),
        ({"safety": [{"kind": "pattern", "flag": "f", "pattern": "("}]}, r"not a regular expression"),
        ({"sorers": []}, r"sorers"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Json], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**settings)


def test_labels_come_from_train_as_text() -> None:
    task = make().settled(splits(1, True, "x"))
    assert task.labels == ("1", "true", "x")
    assert make(labels=[1, True, "x"]).labels == ("1", "true", "x")
    assert task.settled(splits(1, True, "x")) == task


def test_mappings_are_checked_once_labels_are_known() -> None:
    with pytest.raises(ConfigError, match=r"no name for 'b'"):
        make(label_names={"p": {"a": "x"}}).settled(splits("a", "b"))
    with pytest.raises(ConfigError, match="needs at least two"):
        make().settled(splits("a"))


def test_expected_values_that_are_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"1 expected .*'Refunds' \(train 'train0'\); did you mean 'refund'"):
        make(labels=["refund", "billing"]).settled(splits("Refunds", "billing"))
    known = splits("a", "b")
    odd = Splits(known.train, splits("a", "c").validation, known.test)
    with pytest.raises(ConfigError, match=r"labels of train \(a, b\): 'c' \(validation 'validation1'\)"):
        make().settled(odd)


def test_what_the_data_break_is_named_by_task_file_and_line() -> None:
    given = splits("a", "c", "b", "d")
    places: dict[Split, list[str]] = {"train": [f"rows.csv:{line}" for line in (2, 3, 5, 6)]}
    known = Splits(given.train, given.validation, given.test, places=places)
    labelled, shaped = make(labels=["a", "b"]), make("extraction", json_schema={"type": "integer"})
    with pytest.raises(ConfigError, match=r"^rows\.csv:3: task\.labels: 2 expected .* under `task\.labels`$"):
        labelled.settled(known)
    with pytest.raises(ConfigError, match=r"^rows\.csv:3: tasks\.topic\.labels: 2 .* under `tasks\.topic\.labels`$"):
        labelled.sharing("topic").settled(known)
    with pytest.raises(
        ConfigError, match=r"^rows\.csv:2: tasks\.form\.json_schema: train example 'train0' .*; correct"
    ):
        shaped.sharing("form").settled(known)
    with pytest.raises(ConfigError, match=r"^tasks\.topic: labels \['a'\]: a classification needs at least two$"):
        make().sharing("topic").settled(splits("a"))


def test_schemas_come_inline_or_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    by_path = make("extraction", json_schema="s.json").settled(splits({"n": 1}, '{"n": 2}'), tmp_path)
    inline = make("extraction", json_schema=SCHEMA).settled(splits({"n": 1}))
    assert by_path.json_schema == inline.json_schema == SCHEMA
    with pytest.raises(ConfigError, match=r"'t\.json': .*No such file.*relative to the config"):
        make("extraction", json_schema="t.json").settled(splits({"n": 1}), tmp_path)
    (tmp_path / "t.json").write_text("[")
    with pytest.raises(ConfigError, match=r"t\.json is not JSON"):
        make("extraction", json_schema="t.json").settled(splits({"n": 1}), tmp_path)
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"holds list, not an object"):
        make("extraction", json_schema="t.json").settled(splits({"n": 1}), tmp_path)


def test_schemas_that_are_wrong_or_that_the_data_breaks() -> None:
    with pytest.raises(ConfigError, match=r"not a JSON schema: 'nmber' is not valid.*\$\.type"):
        Schema({"type": "nmber"})
    with pytest.raises(ConfigError, match=r"train example 'train1' expects what it forbids: 'x' is not of type"):
        make("extraction", json_schema=SCHEMA).settled(splits({"n": 1}, {"n": "x"}))
    arrays = {"type": "object", "properties": {"a": {"type": "array"}}}
    make("extraction", json_schema=arrays).settled(splits({"a": [1]}))


def test_remote_references_are_not_fetched() -> None:
    schema = Schema({"$ref": "http://127.0.0.1:9/x.json"})
    with pytest.raises(ConfigError, match=r"cannot resolve 'http://127\.0\.0\.1:9/x\.json'"):
        schema.problem({})


def test_safety_patterns_of_earlier_configs_load() -> None:
    task = Task.model_validate(
        {"kind": "text", "data": {"train": "t"}, "safety": [{"flag": "at", "pattern": "@"}, {"kind": "pii"}]}
    )
    assert [check.kind for check in task.safety] == ["pattern", "pii"]
