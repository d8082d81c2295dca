"""What is wrong with plain data, in words for who wrote it: where, what, what is allowed, what was meant.

`Complaints` holds data, the place every value came from and the problems; `fit` makes a pydantic model of it
or raises one error that lists all. What is allowed is read off the model's JSON schema.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from evocluster.errors import ConfigError
from evocluster.records import Json

Keys = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices from the root."""
Place = tuple[int, str]
"""(order in the report, what a message begins with: 'file.yaml:12' or '--set a.b=c')."""
M = TypeVar("M", bound=BaseModel)
Node = Mapping[str, Any]
"""A piece of JSON schema."""

SECRET = re.compile(
    r"\b(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{16,}"
    r"|\b(?:gh[opsu]|github_pat|hf|gsk|xai|glpat|xox[abprs])[-_](?=\w*\d)[\w-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bBearer\s+[\w.~+/=-]{16,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*"
)
"""Texts that providers give out as keys and tokens."""
_TELLING = re.compile(r"(key|token)(?![a-z])|secret|password|credential|authorization", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9+/=._~-]{20,}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*|[a-z_][a-z0-9_]*_[a-z0-9_]*")
LEAKED = (
    "looks like a secret, and configs are copied into run folders; allowed: the name of an environment "
    "variable that holds it, e.g. key_env: OPENAI_API_KEY"
)
_ABSENT = "absent"
"""Type of an error of ours whose location ends with a key that is not there."""
MAX_SHOWN = 30
"""Problems listed in one error."""
_LONGEST = 80
"""Characters of a value that a message shows."""
_BUILT_IN = frozenset(get_args(core_schema.ErrorType))
"""Pydantic's own types of error; any other is a text of ours."""


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> dict[str, Any]:
        """With `kind` required wherever it decides between parts: without it no part is meant."""
        made = super().generate(schema, mode)
        for node in _nodes(made):
            tag = node.get("discriminator", {})
            for target in tag.get("mapping", {}).values():
                part = made["$defs"][target.rsplit("/", 1)[-1]]
                part["required"] = list(dict.fromkeys([tag["propertyName"], *part.get("required", ())]))
        return made


class _Editors(_Generator):
    """With the texts under the fields as descriptions, and in every form that may be written: a class says with
    `in_editors(made) -> schema` what its validators take besides.

    The texts are read here and not when a class is made: that would cost every start of every process 2 ms a class.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        made = super().model_schema(schema)
        texts = _texts(schema["cls"])
        for name, field in made.get("properties", {}).items():
            if name in texts:
                field.setdefault("description", texts[name])
        forms = getattr(schema["cls"], "in_editors", None)
        return forms(made) if forms else made

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> dict[str, Any]:
        """What a `BeforeValidator` that does not say what it takes is for: a plain value that stands for the whole."""
        made = super().function_before_schema(schema)
        of_class = isinstance(getattr(schema["function"]["function"], "__self__", None), type)
        if of_class or "json_schema_input_schema" in schema:
            return made
        return {"anyOf": [made, {"type": ["string", "number", "boolean"]}]}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> dict[str, Any]:
        """A part or null, said so that what is wrong within the part is marked there and not at its name."""
        inner = self.generate_inner(schema["schema"])
        return {"if": {"not": {"type": "null"}}, "then": inner} if "$ref" in inner else super().nullable_schema(schema)


class Complaints:
    """Plain data, the place every value came from, and what is wrong so far. Call order: add, fit."""

    def __init__(self, name: str, data: Mapping[str, Json]) -> None:
        self.name = name
        self.data: dict[str, Json] = _thawed(data)
        self.places: dict[Keys, Place] = {(): (0, name)}
        self.problems: list[tuple[int, str]] = []
        self._said: list[Keys] = []

    def place(self, keys: Keys) -> Place:
        """Where the value came from, or the nearest thing around it."""
        return self.places.get(keys) or self.place(keys[:-1])

    def add(self, keys: Keys, what: str, place: Place | None = None) -> None:
        """One more problem; what the model then says of the same value is left out."""
        self._said.append(keys)
        order, begins = place or self.place(keys)
        parts = (begins, dotted(keys) if keys else "", what)
        self.problems.append((order, SECRET.sub("(hidden)", ": ".join(filter(None, parts)))))

    def refuse(self) -> None:
        """Raises: ConfigError with the problems so far in the order of places, where there are any."""
        lines = [text for _, text in sorted(dict.fromkeys(self.problems), key=lambda problem: problem[0])]
        if lines:
            more = [f"... and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
            raise ConfigError("\n".join([*lines[:MAX_SHOWN], *more]))

    def fit(self, cls: type[M]) -> M:
        """The model that the data describe. Raises: ConfigError with all problems."""
        for keys in secrets(self.data):
            self.add(keys, LEAKED)
        said = [keys for keys in self._said if keys]
        try:
            made = cls.model_validate(self.data)
        except ValidationError as error:
            for keys, what in explain(error, self.data, described(cls, for_editors=False)):
                if not any(keys[: len(known)] == known or known[: len(keys)] == keys for known in said):
                    self.add(keys, what)
            self.refuse()
            raise
        self.refuse()
        return made


def explain(error: ValidationError, data: Json, schema: Node) -> list[tuple[Keys, str]]:
    """Every problem once: where in `data`, and what to say. Failed union branches at one place are joined."""
    found: dict[Keys, list[str]] = {}
    known = _Schema(schema)
    for line in _told(error.errors(include_url=False)):
        keys, text = _explained(line, data, known)
        if text not in found.setdefault(keys, []):
            found[keys].append(text)
    return [(keys, "; or ".join(texts)) for keys, texts in found.items()]


def failure(wrong: Iterable[tuple[Keys, str]]) -> ValidationError:
    """What a validator raises that finds several things wrong inside its model; keys count from there.

    A text that begins with 'missing' speaks of a key that is not there.
    """
    lines = []
    for keys, text in wrong:
        kind = _ABSENT if text.startswith("missing") else "unfit"
        error = PydanticCustomError(kind, "{text}", {"text": text})
        lines.append(InitErrorDetails(type=error, loc=keys, input=None))
    return ValidationError.from_exception_data("settings", lines)


def described(cls: type[BaseModel], for_editors: bool = True) -> dict[str, Any]:
    """The JSON schema of a model; defaults that JSON cannot show are left out.

    For editors with the descriptions of fields and all short forms; else as a model is after its validators.
    """
    return cls.model_json_schema(schema_generator=_Editors if for_editors else _Generator)


def secrets(data: Json, keys: Keys = ()) -> list[Keys]:
    """Where values look like keys, tokens or passwords."""
    if isinstance(data, Mapping):
        return [found for key, value in data.items() for found in secrets(value, (*keys, key))]
    if isinstance(data, list | tuple):
        return [found for index, value in enumerate(data) for found in secrets(value, (*keys, index))]
    if not isinstance(data, str):
        return []
    name = next((key for key in reversed(keys) if isinstance(key, str)), "")
    random = _TELLING.search(name) and _RANDOM.fullmatch(data) and not _VARIABLE.fullmatch(data)
    return [keys] if random or SECRET.search(data) else []


def holders(data: Json, keys: Keys) -> list[tuple[Any, Any]]:
    """The mappings or lists that hold a setting, and under what; '*' among the keys is every entry."""
    first, *rest = keys
    names: list[Any] = [first]
    if first == "*":
        names = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    found: list[tuple[Any, Any]] = []
    for name in names:
        if first == "*" or (isinstance(data, dict) and name in data):
            found += holders(data[name], tuple(rest)) if rest else [(data, name)]
    return found


def nearest(word: object, allowed: Iterable[object]) -> str:
    """'; did you mean 'x'?' for a misspelt word, or ''."""
    folded = {str(name).lower(): str(name) for name in allowed}
    close = get_close_matches(str(word).lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def unknown(what: str, got: object, allowed: Iterable[object]) -> str:
    """The text for a name that is none of the allowed ones."""
    names = [str(name) for name in allowed]
    return f"{what} (got {brief(got)}); allowed: {', '.join(names) or 'none'}{nearest(got, names)}"


def dotted(keys: Keys) -> str:
    """Keys as `--set` takes them."""
    return ".".join(map(str, keys)) or "the file"


def brief(value: object) -> str:
    """A value as a message shows it."""
    text = repr(_thawed(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a JSON schema."""
    if isinstance(schema, dict):
        yield schema
        schema = list(schema.values())
    for inner in schema if isinstance(schema, list) else ():
        yield from _nodes(inner)


def _texts(cls: type) -> dict[str, str]:
    """Field -> the text under it in the source, own fields before inherited ones; none where there is no source."""
    found: dict[str, str] = {}
    for one in cls.__mro__:
        if not issubclass(one, BaseModel) or one is BaseModel:
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        except (OSError, SyntaxError, IndexError):
            continue
        for field, below in pairwise(getattr(body, "body", ())):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                text = below.value.value if isinstance(below.value, ast.Constant) else None
                if isinstance(text, str):
                    found.setdefault(field.target.id, inspect.cleandoc(text))
    return found


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _told(lines: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are only too short since pydantic does not count entries that are wrong themselves."""
    wrong = {line["loc"][:end] for line in lines for end in range(len(line["loc"]))}
    return [line for line in lines if line["type"] != "too_short" or line["loc"] not in wrong]


def _explained(line: ErrorDetails, data: Json, schema: _Schema) -> tuple[Keys, str]:
    kind, context = line["type"], line.get("ctx", {})
    keys, given = _along(line["loc"], data), line["input"]
    if kind == "extra_forbidden":
        names = schema.names(keys[:-1], data)
        return keys, f"unknown setting; allowed: {', '.join(names)}{nearest(keys[-1], names)}"
    if kind in ("missing", _ABSENT):
        keys = (*keys, line["loc"][-1])
        return keys, line["msg"] if kind == _ABSENT else f"missing{_allowed(schema.at(keys, data))}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = context["discriminator"].strip("'")
        tags = schema.tags(keys, data)
        if kind == "union_tag_invalid":
            return (*keys, tag), unknown(f"unknown {tag}", context["tag"], tags)
        return (*keys, tag), f"missing; allowed: {', '.join(tags)}"
    if kind in ("value_error", "assertion_error") or kind not in _BUILT_IN:
        return _as_written(keys, line["msg"], given)
    options = schema.at(keys, data)
    values = [value for option in options for value in _values(option)]
    if kind in ("literal_error", "enum") and values:
        return keys, unknown("unknown value", given, values)
    text = re.sub(r"^(Input|String|Tuple|List|Dictionary|Value) should", "should", line["msg"])
    text = re.sub(r" after validation, not \d+$", "", text).replace("a valid tuple", "a list")
    quotes = "; put it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""
    return keys, f"{text} (got {brief(given)}){_allowed(options)}{quotes}"


def _as_written(keys: Keys, message: str, given: Json) -> tuple[Keys, str]:
    """A text of our own validators: 'path: text' moves to that path; a value not shown is added."""
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    begins, colon, rest = text.partition(": ")
    deeper = _along(begins.split("."), given)
    if colon and deeper and dotted(deeper) == begins:
        return (*keys, *deeper), rest
    scalar = given is not None and not isinstance(given, Mapping | list | tuple)
    return keys, f"{text} (got {brief(given)})" if scalar and str(given) not in text else text


def _inside(data: Json, key: str | int) -> bool:
    if isinstance(data, list | tuple):
        return isinstance(key, int) and 0 <= key < len(data)
    return isinstance(data, Mapping) and key in data


def _along(location: Sequence[str | int], data: Json) -> Keys:
    """The part of a pydantic location that is in the data: tags of unions are skipped."""
    keys: Keys = ()
    for part in location:
        if _inside(data, part):
            keys, data = (*keys, part), data[part]
    return keys


class _Schema:
    """A JSON schema, walked along the data it describes."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def at(self, keys: Keys, data: Json) -> list[Node]:
        """The alternatives for the value at `keys`; none where the schema says nothing."""
        options = self._open(self._root, data)
        for key in keys:
            data = data[key] if _inside(data, key) else None
            options = [
                found for option in options for child in _children(option, key) for found in self._open(child, data)
            ]
        return options

    def names(self, keys: Keys, data: Json) -> list[str]:
        """The settings of the mapping at `keys`."""
        return list(dict.fromkeys(name for option in self.at(keys, data) for name in option.get("properties", {})))

    def tags(self, keys: Keys, data: Json) -> list[str]:
        """The kinds that the value at `keys` may have."""
        options = self.at((*keys, "kind"), data)
        return list(dict.fromkeys(str(value) for option in options for value in _values(option)))

    def _open(self, node: Node, data: Json) -> list[Node]:
        """References followed, alternatives listed; of tagged ones only the one that the data names."""
        if "$ref" in node:
            return self._open(self._root["$defs"][node["$ref"].rsplit("/", 1)[-1]], data)
        tag = node.get("discriminator")
        chosen = data.get(tag["propertyName"]) if tag and isinstance(data, Mapping) else None
        if tag and isinstance(chosen, str) and chosen in tag["mapping"]:
            return self._open({"$ref": tag["mapping"][chosen]}, data)
        branches = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
        return [found for branch in branches for found in self._open(branch, data)] if branches else [node]


def _children(option: Node, key: str | int) -> list[Node]:
    if isinstance(key, int):
        return [option["items"]] if isinstance(option.get("items"), Mapping) else []
    if key in option.get("properties", {}):
        return [option["properties"][key]]
    return [option["additionalProperties"]] if isinstance(option.get("additionalProperties"), Mapping) else []


def _values(option: Node) -> list[Json]:
    return [option["const"]] if "const" in option else list(option.get("enum", ()))


_BOUNDS = (
    ("minimum", "from"),
    ("exclusiveMinimum", "above"),
    ("maximum", "to"),
    ("exclusiveMaximum", "below"),
)
_SHAPES = {
    "boolean": "true or false",
    "null": "null",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "a mapping",
}


def _shape(option: Node) -> str:
    """One alternative in words."""
    if values := _values(option):
        return ", ".join(map(str, values))
    words = [_SHAPES.get(str(option.get("type")), "")]
    words += [f"{word} {option[bound]}" for bound, word in _BOUNDS if bound in option]
    if "pattern" in option:
        words.append(f"matching {option['pattern']}")
    if option.get("minItems") or option.get("minProperties"):
        words.append("with at least one entry")
    if "properties" in option:
        words.append(f"of {', '.join(option['properties'])}")
    return " ".join(filter(None, words))


def _allowed(options: Sequence[Node]) -> str:
    shapes = list(dict.fromkeys(filter(None, map(_shape, options))))
    return f"; allowed: {' or '.join(shapes)}" if shapes else ""
