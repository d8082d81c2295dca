"""A task as the config describes it: its data, the shape of its answers, and how they are judged.

Call order: built from YAML; then `settled(splits, root)` once the data is read, which fills in labels and
schema and checks them against the examples. Programs and evaluators take settled tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Json
from evocluster.tasks.answers import Schema
from evocluster.tasks.dataset import SPLITS, Data, Splits
from evocluster.tasks.perturb import Kind
from evocluster.tasks.safety import AnyCheck
from evocluster.tasks.scorers import AnyScorer, JsonEqual, Label, Normalised
from evocluster.tasks.words import as_json, nearest, plain

BUILT_IN_NAMES = ("as_is", "spaced", "letters")
"""Ways to call labels toward the model that need no mapping."""
TextOf = Annotated[str, BeforeValidator(lambda value: plain(value) if isinstance(value, int | float) else value)]
"""YAML's 1 and true are the labels '1' and 'true'."""


class Validator(Part):
    """The score that robustness and the composite hold against a threshold."""

    scorer: str | None = None
    """Name of a scorer; None: the quality."""
    threshold: float = Field(default=0.9, ge=0, le=1)


class Twins(Part):
    """Robustness: seeded perturbations of a share of the examples."""

    kinds: tuple[Kind, ...] = Field(default=("typos", "case", "spacing"), min_length=1)
    share: float = Field(default=0.25, gt=0, le=1)
    """Of the examples that get twins."""
    count: int = Field(default=1, ge=1, le=16)
    """Twins each of them gets."""
    seed: int = Field(default=0, ge=0)


class Task(Part):
    """What is to be answered and how answers are judged."""

    kind: Literal["classification", "extraction", "text"]
    """A label out of a set, JSON, or free text."""
    data: Data
    labels: tuple[TextOf, ...] = ()
    """Classification only; empty: those that train expects, sorted."""
    label_names: dict[str, dict[TextOf, TextOf]] = Field(default_factory=dict)
    """Named mappings label -> name shown to the model; as_is, spaced and letters are built in."""
    json_schema: dict[str, Any] | str | None = None
    """Extraction only: the schema, or the path of its file (relative to the config file)."""
    scorers: tuple[AnyScorer, ...] = ()
    """Empty: label, json_equal or normalised, by kind."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Scorer name -> its weight in quality; 1 where unnamed, 0 to only watch it."""
    validator: Validator = Validator()
    accuracy_threshold: float = Field(default=0.85, ge=0, le=1)
    """Quality from which the composite counts an evaluation as right."""
    twins: Twins | None = None
    safety: tuple[AnyCheck, ...] = ()
    input_name: str = ""
    """The word before inputs in inline and completion prompts; empty: 'Text' (classification) or 'Input'."""
    output_name: str = ""
    """The word before answers; empty: 'Label' (classification) or 'Output'."""

    @model_validator(mode="before")
    @classmethod
    def _default_scorer(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and not given.get("scorers"):
            by_kind = {"classification": Label(), "extraction": JsonEqual(), "text": Normalised()}
            scorer = by_kind.get(str(given.get("kind")))
            return {**given, "scorers": (scorer,) if scorer else ()}
        return given

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for field, kind in (
            ("labels", "classification"),
            ("label_names", "classification"),
            ("json_schema", "extraction"),
        ):
            if getattr(self, field) and self.kind != kind:
                raise ValueError(
                    f"{field} is for kind {kind!r}, but kind is {self.kind!r}; remove {field} or change kind"
                )
        if self.kind != "classification" and any(scorer.kind == "label" for scorer in self.scorers):
            raise ValueError(
                f"scorer 'label' is for kind 'classification', but kind is {self.kind!r}; use 'normalised'"
            )
        return self

    @model_validator(mode="after")
    def _scorers_known(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two scorers are named {twice[0]!r}; give one another `name:`")
        asked = [*self.weights, *([self.validator.scorer] if self.validator.scorer is not None else [])]
        for name in asked:
            if name not in names:
                raise ValueError(f"no scorer {name!r}; scorers are {', '.join(names)}{nearest(name, names)}")
        if not any(self.weight(name) for name in names):
            raise ValueError(f"weights {self.weights!r} leave no scorer for quality; give one a weight above 0")
        return self

    @model_validator(mode="after")
    def _labels_named(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)!r} name one twice; remove it")
        if len(self.labels) == 1:
            raise ValueError(f"labels {list(self.labels)!r}: a classification needs at least two")
        for style, mapping in self.label_names.items():
            problem = _mapping_problem(mapping, self.labels)
            if style in BUILT_IN_NAMES:
                problem = f"is built in; choose another name than {', '.join(BUILT_IN_NAMES)}"
            if problem:
                raise ValueError(f"label_names.{style}: {problem}")
        return self

    @cached_property
    def words(self) -> tuple[str, str]:
        """What inputs and answers are called in prompts."""
        ours = ("Text", "Label") if self.kind == "classification" else ("Input", "Output")
        return self.input_name or ours[0], self.output_name or ours[1]

    def weight(self, scorer: str) -> float:
        """The scorer's weight in quality."""
        return self.weights.get(scorer, 1.0)

    def settled(self, splits: Splits, root: Path = Path()) -> Task:
        """This task with labels and schema filled in and checked against every example; idempotent.

        Raises: ConfigError naming the examples that could never be answered right.
        """
        if self.kind == "classification":
            labels = self.labels or tuple(sorted({plain(example.expected) for example in splits.train}))
            task = _checked(self, labels=labels)
            _refuse_unknown(task.labels, splits, given=bool(self.labels))
            return task
        if self.kind == "extraction" and self.json_schema:
            schema = self._schema(root)
            _refuse_invalid(schema, splits)
            return _checked(self, json_schema=schema.schema)
        return self

    def _schema(self, root: Path) -> Schema:
        if not isinstance(self.json_schema, str):
            return Schema(self.json_schema or {})
        path = root / self.json_schema
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            where = f"{path}: {error.strerror}; paths are relative to the config file"
            raise ConfigError(f"json_schema {self.json_schema!r}: {where}") from error
        except ValueError as error:
            raise ConfigError(f"json_schema {self.json_schema!r}: {path} is not JSON: {error}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"json_schema {self.json_schema!r}: {path} holds {type(loaded).__name__}, not an object")
        return Schema(loaded, str(path))


def _checked(task: Task, **changes: Json) -> Task:
    """A changed copy that went through the validators. Raises: ConfigError."""
    try:
        return Task(**{**{name: getattr(task, name) for name in Task.model_fields}, **changes})
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error


def _mapping_problem(mapping: Mapping[str, str], labels: Iterable[str]) -> str:
    known = list(labels)
    if known:
        for label in mapping:
            if label not in known:
                return f"no label {label!r}; labels are {', '.join(known)}{nearest(label, known)}"
        missing = [label for label in known if label not in mapping]
        if missing:
            return f"no name for {', '.join(map(repr, missing))}; every label needs one"
    names = list(mapping.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        alike = [label for label, name in mapping.items() if name == twice[0]]
        return f"{' and '.join(map(repr, alike))} are both called {twice[0]!r}; names must differ"
    blank = [label for label, name in mapping.items() if not name.strip()]
    return f"the name of {blank[0]!r} is empty" if blank else ""


def _refuse_unknown(labels: tuple[str, ...], splits: Splits, given: bool) -> None:
    unknown: dict[str, str] = {}
    for split in SPLITS:
        for example in splits.of(split):
            if plain(example.expected) not in labels:
                unknown.setdefault(plain(example.expected), f"{split} {example.id!r}")
    if unknown:
        named = "; ".join(f"{value!r} ({place}){nearest(value, labels)}" for value, place in list(unknown.items())[:5])
        where = "labels" if given else "labels of train"
        raise ConfigError(
            f"{len(unknown)} expected value(s) are not among the {where} ({', '.join(labels)}): {named}. "
            f"Correct the data, or list every label under `labels:`"
        )


def _refuse_invalid(schema: Schema, splits: Splits) -> None:
    for split in SPLITS:
        for example in splits.of(split):
            problem = schema.problem(_thawed(as_json(example.expected)))
            if problem:
                raise ConfigError(f"json_schema: {split} example {example.id!r} expects what it forbids: {problem}")


def _thawed(value: Json) -> Json:
    """Tuples as lists again, which is what a schema calls an array."""
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value
