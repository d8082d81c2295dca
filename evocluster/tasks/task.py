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

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Json, Split
from evocluster.tasks import code
from evocluster.tasks.answers import Schema, load_model
from evocluster.tasks.dataset import SPLITS, Data, Splits
from evocluster.tasks.documents import Retrieval
from evocluster.tasks.perturb import Kind
from evocluster.tasks.safety import AnyCheck
from evocluster.tasks.scorers import AnyScorer, JsonEqual, Label, Normalised
from evocluster.tasks.words import as_json, nearest, plain

BUILT_IN_NAMES = ("as_is", "spaced", "letters")
"""Ways to call labels toward the model that need no mapping."""
TextOf = Annotated[str, BeforeValidator(lambda value: plain(value) if isinstance(value, int | float) else value)]
"""YAML's 1 and true are the labels '1' and 'true'."""


Threshold = Annotated[float, Field(gt=0, le=1)]


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


class Executor(Part):
    """A pipeline of the user's own in place of the built-in program."""

    function: str
    """`file.py:name` or `module:name` of an async function (example, genome, llm) -> Execution, text or JSON."""
    calls: int = Field(default=8, ge=0)
    """The most model calls it makes for one example through `llm`: budgets reckon by it, and one more fails."""
    timeout_s: float = Field(default=300, gt=0, allow_inf_nan=False)
    """Of one example."""


class Consensus(Part):
    """How several votes become one answer (gene `use_consensus`)."""

    decide: Literal["majority", "judge"] = "majority"
    """majority: the answer most votes agree on, the earliest of them; judge: a model picks among those that differ."""
    model: str | None = None
    """Which model picks; None: the genome's."""


def _named(given: Any) -> Any:
    return {"function": given} if isinstance(given, str) else given


def _thresholds(given: Any) -> Any:
    return {str(name): 1.0 for name in given} if isinstance(given, list | tuple) else given


def _kinded(given: Any) -> Any:
    """Checks as they were written while patterns were the only kind."""
    if not isinstance(given, list | tuple):
        return given
    return [
        {"kind": "pattern", **one} if isinstance(one, Mapping) and "pattern" in one and "kind" not in one else one
        for one in given
    ]


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
    """Extraction only: the schema, the path of its file (relative to the config file), or a pydantic model as
    `file.py:Name` or `module:Name`, which then validates."""
    repairs: int | None = Field(default=None, ge=0, le=5)
    """How often an answer that does not parse is asked for again, the error shown; None: once for extraction, else
    never. Every repair costs, and counts against robustness."""
    scorers: tuple[AnyScorer, ...] = ()
    """Empty: label, json_equal or normalised, by kind."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Scorer name -> its weight in quality; 1 where unnamed, 0 to only watch it."""
    must_pass: Annotated[
        dict[str, Threshold], BeforeValidator(_thresholds, json_schema_input_type=dict[str, Threshold] | list[str])
    ] = Field(default_factory=dict)
    """Scorers that decide alone: below its threshold (a list: 1) the quality of an evaluation is 0."""
    validator: Validator = Validator()
    accuracy_threshold: float = Field(default=0.85, ge=0, le=1)
    """Quality from which the composite counts an evaluation as right."""
    twins: Twins | None = None
    safety: Annotated[tuple[AnyCheck, ...], BeforeValidator(_kinded)] = ()
    executor: Annotated[Executor | None, BeforeValidator(_named, json_schema_input_type=str | Executor | None)] = None
    """The user's own pipeline; None: the built-in program."""
    retrieval: Retrieval | None = None
    """What the gene `retriever_topk` retrieves from."""
    consensus: Consensus = Consensus()
    keep_trace: bool | None = None
    """Write every step's prompt and reply into the trials table; None: with an executor only."""
    input_name: str = ""
    """The word before inputs in inline and completion prompts; empty: 'Text' (classification) or 'Input'."""
    output_name: str = ""
    """The word before answers; empty: 'Label' (classification) or 'Output'."""

    _model: str | None = PrivateAttr(default=None)
    _name: str = PrivateAttr(default="")

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
        asked = [
            *self.weights,
            *self.must_pass,
            *([self.validator.scorer] if self.validator.scorer is not None else []),
        ]
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

    @property
    def models(self) -> dict[tuple[str | int, ...], str]:
        """Models that judge or decide, by where the setting stands."""
        found: dict[tuple[str | int, ...], str] = {
            (section, index, "model"): part.model
            for section, parts in (("scorers", self.scorers), ("safety", self.safety))
            for index, part in enumerate(parts)
            if hasattr(part, "model")
        }
        if self.consensus.model is not None:
            found[("consensus", "model")] = self.consensus.model
        return found

    @property
    def code(self) -> tuple[str, ...]:
        """Everything that it names of the user's own code."""
        parts = (*self.scorers, *self.safety)
        model = self._model or (self.json_schema if isinstance(self.json_schema, str) else None)
        named = [
            *(part.function for part in parts if hasattr(part, "function")),
            self.executor.function if self.executor else None,
            self.retrieval.embed if self.retrieval else None,
            model if model and code.is_spec(model) else None,
        ]
        return tuple(dict.fromkeys(spec for spec in named if spec))

    @property
    def most_repairs(self) -> int:
        """How often one answer may be asked for again."""
        return self.repairs if self.repairs is not None else int(self.kind == "extraction")

    @property
    def traced(self) -> bool:
        """Steps go into the trials table."""
        return self.keep_trace if self.keep_trace is not None else self.executor is not None

    @property
    def answer_schema(self) -> Schema | None:
        """What answers are held against, once settled."""
        if not isinstance(self.json_schema, Mapping):
            return None
        return Schema(dict(self.json_schema), model=self._model)

    @property
    def shared(self) -> bool:
        """Its genomes serve other tasks too."""
        return bool(self._name)

    @property
    def section(self) -> str:
        """Where the config describes it."""
        return f"tasks.{self._name}" if self._name else "task"

    def sharing(self, name: str) -> Task:
        """This task as the one of several that has this name."""
        task = self.model_copy()
        task._name = name
        return task

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
            _refuse_unknown(task, splits, given=bool(self.labels))
            return task
        if self.kind == "extraction" and self.json_schema:
            schema = self._schema(root)
            _refuse_invalid(schema, splits, self.section)
            task = _checked(self, json_schema=schema.schema)
            task._model = schema.model
            return task
        return self

    def _schema(self, root: Path) -> Schema:
        if not isinstance(self.json_schema, str):
            return Schema(self.json_schema or {}, model=self._model)
        if code.is_spec(self.json_schema):
            return Schema(load_model(self.json_schema).model_json_schema(), self.json_schema, self.json_schema)
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
        made = Task(**{**{name: getattr(task, name) for name in Task.model_fields}, **changes})
    except ValidationError as error:
        told = "; ".join(line["msg"].removeprefix("Value error, ") for line in error.errors(include_url=False))
        raise ConfigError(f"{task.section}: {told}") from error
    made._name, made._model = task._name, task._model
    return made


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


def _refuse_unknown(task: Task, splits: Splits, given: bool) -> None:
    labels, unknown = task.labels, dict[str, tuple[Split, str]]()
    for split in SPLITS:
        for example in splits.of(split):
            if plain(example.expected) not in labels:
                unknown.setdefault(plain(example.expected), (split, example.id))
    if unknown:
        first = next(iter(unknown.values()))
        named = "; ".join(
            f"{value!r} ({split} {id!r}){nearest(value, labels)}" for value, (split, id) in list(unknown.items())[:5]
        )
        where = "labels" if given else "labels of train"
        raise ConfigError(
            f"{splits.begins(*first)}{task.section}.labels: {len(unknown)} expected value(s) are not among the {where} "
            f"({', '.join(labels)}): {named}; correct the data, or list every label under `{task.section}.labels`"
        )


def _refuse_invalid(schema: Schema, splits: Splits, section: str) -> None:
    for split in SPLITS:
        for example in splits.of(split):
            problem = schema.problem(_thawed(as_json(example.expected)))
            if problem:
                raise ConfigError(
                    f"{splits.begins(split, example.id)}{section}.json_schema: {split} example {example.id!r} expects "
                    f"what it forbids: {problem}; correct the example or the schema"
                )


def _thawed(value: Json) -> Json:
    """Tuples as lists again, which is what a schema calls an array."""
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value
