"""Completions read as answers: a label, a JSON value, or text. What is not clearly there is not guessed."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, ValidationError

from evocluster.errors import ConfigError
from evocluster.records import FrozenJson, Json, Record, canonical
from evocluster.tasks import code
from evocluster.tasks.words import normalise

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


class Answer(Record):
    """What was read from a completion."""

    output: str
    parsed: FrozenJson = None
    ok: bool = True
    problem: str = ""
    """Why it is not ok, in words for who has to correct it."""


class Naming:
    """How the labels are called toward the model, and back: shown name <-> label."""

    def __init__(self, shown: dict[str, str], *, whole_words_fold: bool = True) -> None:
        """`shown`: label -> the name the model sees. Inside a text the case of letters counts."""
        self.shown = shown
        self._fold = whole_words_fold
        self._labels = {name: label for label, name in shown.items()}
        folded = [normalise(name) for name in shown.values()]
        self._folded = {normalise(name): label for label, name in shown.items() if folded.count(normalise(name)) == 1}

    def read(self, text: str) -> str | None:
        """The label: exact, then normalised, then the first shown name that is a whole word of the text."""
        stripped = text.strip()
        label = self._labels.get(stripped)
        if label is None:
            label = self._folded.get(normalise(stripped))
        return label if label is not None else self._first_inside(stripped)

    def _first_inside(self, text: str) -> str | None:
        names = self._folded if self._fold else self._labels
        padded = f" {normalise(text)} "
        found: list[tuple[int, int, str]] = []
        for name, label in names.items():
            if self._fold:
                at = padded.find(f" {name} ")
            else:
                match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
                at = match.start() if match else -1
            if at >= 0:
                found.append((at, -len(name), label))
        return min(found)[2] if found else None


class Schema:
    """A JSON schema, checked when made and compiled when first used. Remote `$ref`s are never fetched."""

    def __init__(self, schema: dict[str, Any], source: str = "json_schema", model: str | None = None) -> None:
        """`model`: the import path of a pydantic model, which then is what decides (it may hold validators).

        Raises: ConfigError when it is not a JSON schema.
        """
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        self.schema = schema
        self._source = source
        self.model = model
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"{source}: not a JSON schema: {error.message} at {error.json_path}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return (Schema, (self.schema, self._source, self.model))

    @cached_property
    def _validator(self) -> Validator:
        from jsonschema.validators import validator_for
        from referencing import Registry

        return validator_for(self.schema)(self.schema, registry=Registry())

    def problem(self, value: Json) -> str | None:
        """What is wrong with the value, or None. Raises: ConfigError for a `$ref` that leads nowhere."""
        if self.model is not None:
            return _complaint(self.model, value)
        from referencing.exceptions import Unresolvable

        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except Unresolvable as missing:
            message = f"{self._source}: cannot resolve {missing.ref!r}; put the definition under $defs"
            raise ConfigError(message) from missing
        return f"{error.message} at {error.json_path}" if error else None


def load_model(spec: str) -> type[BaseModel]:
    """The pydantic model of an import path. Raises: ConfigError."""
    model = code.load(spec)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ConfigError(f"json_schema {spec!r} is {model!r}; allowed: a pydantic model (a class of BaseModel)")
    return model


def _complaint(spec: str, value: Json) -> str | None:
    """What a pydantic model says of a value, every field once."""
    try:
        load_model(spec).model_validate(value)
    except ValidationError as error:
        lines = error.errors(include_url=False, include_context=False)
        return "; ".join(f"{'.'.join(map(str, line['loc'])) or 'the object'}: {line['msg']}" for line in lines)
    return None


def read_label(text: str, naming: Naming) -> Answer:
    """The label, or the raw text and not ok."""
    label = naming.read(text)
    if label is None:
        problem = f"it is none of {', '.join(naming.shown.values())}"
        return Answer(output=encodable(text.strip()), ok=False, problem=problem)
    return Answer(output=label, parsed=label)


def read_json(text: str, schema: Schema | None) -> Answer:
    """The first object in the text (or array, where the schema asks for one), checked against the schema."""
    array = schema is not None and schema.schema.get("type") == "array"
    value = first_json(text, "[" if array else "{")
    if value is None:
        problem = f"there is no JSON {'array' if array else 'object'} in it"
        return Answer(output=encodable(text.strip()), ok=False, problem=problem)
    problem = (schema.problem(value) if schema else None) or ""
    return Answer(output=canonical(value), parsed=value, ok=not problem, problem=problem)


def read_text(text: str) -> Answer:
    """The stripped text."""
    output = encodable(text.strip())
    return Answer(output=output, parsed=output)


def first_json(text: str, opening: str = "{") -> Json:
    """The first JSON value that starts with this bracket, or None."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    at = text.find(opening)
    while at >= 0:
        try:
            value, _ = decoder.raw_decode(text, at)
            canonical(value).encode()
            return value
        except (ValueError, RecursionError):
            at = text.find(opening, at + 1)
    return None


def after_marker(text: str, words: tuple[str, ...]) -> str:
    """What follows the last 'Answer:' (any of the words, any case); the whole text where nothing does."""
    pattern = "|".join(re.escape(word) for word in words)
    parts = re.split(rf"(?<!\w)(?:{pattern})\W{{0,2}}:", text, flags=re.IGNORECASE)
    return parts[-1].lstrip(" *") if parts[-1].strip(" *\n") else text


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot hold (lone surrogates) replaced, so it can be stored."""
    return text.encode("utf-8", "replace").decode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
