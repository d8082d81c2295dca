"""Nunjucks templates as far as they only put values in: parsed, filled in, and rewritten as our `{field}` templates.

`{{ a.b[0] | upper }}` is an `Expression`: a path into the variables and filters. Logic (`{% %}`) is not taken.
Nothing is evaluated: a path is looked up, and the filters are the fixed ones below.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from evocluster.cli.imported import NotTaken
from evocluster.records import Json

RESERVED = ("input", "context", "labels")
"""Names that mean something else in our rubrics."""
_PIECE = re.compile(r"\{\{-?(.*?)-?\}\}|(\{%.*?%\})|\{#.*?#\}", re.DOTALL)
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PATH = re.compile(rf"\s*([A-Za-z_]\w*)((?:\s*(?:\.\s*\w+|\[\s*(?:\d+|{_STRING})\s*\]))*)\s*")
_STEP = re.compile(rf"\.\s*(\w+)|\[\s*(?:(\d+)|({_STRING}))\s*\]")
_FILTER = re.compile(rf"\|\s*(\w+)\s*(?:\(\s*((?:{_STRING}|[\w.-]+|\s|,)*)\))?\s*")
_ARGUMENT = re.compile(rf"{_STRING}|[\w.-]+")
_LITERAL = re.compile(r"\{(\w+)\}")


def as_text(value: Json) -> str:
    """A value as a prompt shows it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first(value: Json, *_: str) -> Json:
    return value[0] if isinstance(value, list | str) and value else None


def _last(value: Json, *_: str) -> Json:
    return value[-1] if isinstance(value, list | str) and value else None


def _length(value: Json, *_: str) -> Json:
    return len(value) if isinstance(value, list | str | Mapping) else 0


def _join(value: Json, between: str = "", *_: str) -> Json:
    return between.join(map(as_text, value)) if isinstance(value, list) else as_text(value)


def _default(value: Json, other: str = "", *_: str) -> Json:
    return other if value is None else value


def _replace(value: Json, old: str = "", new: str = "", *_: str) -> Json:
    return as_text(value).replace(old, new)


def _dump(value: Json, *_: str) -> Json:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


FILTERS: Mapping[str, Callable[..., Json]] = {
    "upper": lambda value, *_: as_text(value).upper(),
    "lower": lambda value, *_: as_text(value).lower(),
    "trim": lambda value, *_: as_text(value).strip(),
    "capitalize": lambda value, *_: as_text(value).capitalize(),
    "title": lambda value, *_: as_text(value).title(),
    "string": lambda value, *_: as_text(value),
    "safe": lambda value, *_: value,
    "dump": _dump,
    "first": _first,
    "last": _last,
    "length": _length,
    "join": _join,
    "default": _default,
    "d": _default,
    "replace": _replace,
}
"""The filters that are understood, as functions of a value and their arguments as text."""


class Expression(NamedTuple):
    """What stands between `{{` and `}}`."""

    path: tuple[str | int, ...]
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def variable(self) -> str:
        """The variable it starts from."""
        return str(self.path[0])

    @property
    def name(self) -> str:
        """A field name for its value: 'user_name', 'title_upper'."""
        words = [*map(str, self.path), *(word for word, _ in self.filters if word not in ("safe", "string"))]
        name = "_".join(re.sub(r"\W", "_", word) for word in words)
        return f"{name}_text" if name in RESERVED else name

    def of(self, variables: Mapping[str, Json]) -> Json:
        """Its value; None where the path leads nowhere. Raises: NotTaken when an argument does not fit."""
        value: Json = variables
        for step in self.path:
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                value = None
        for name, arguments in self.filters:
            value = FILTERS[name](value, *arguments)
        return value


class Template(NamedTuple):
    """Text and expressions in turn."""

    parts: tuple[str | Expression, ...]

    @property
    def expressions(self) -> list[Expression]:
        """Those in it, each once."""
        return list(dict.fromkeys(part for part in self.parts if isinstance(part, Expression)))

    def filled(self, variables: Mapping[str, Json]) -> str:
        """The text for these variables."""
        return "".join(part if isinstance(part, str) else as_text(part.of(variables)) for part in self.parts)

    def rewritten(self, names: Mapping[Expression, str]) -> str:
        """The text with `{field}` for every expression; a literal `{field}` gets spaces inside, so it stays text."""
        taken = {*names.values(), *RESERVED}

        def apart(found: re.Match[str]) -> str:
            return f"{{ {found[1]} }}" if found[1] in taken else found[0]

        return "".join(
            f"{{{names[part]}}}" if isinstance(part, Expression) else _LITERAL.sub(apart, part) for part in self.parts
        )


def parse(text: str) -> Template:
    """A template of a text. Raises: NotTaken for logic and for what is no plain expression."""
    parts: list[str | Expression] = []
    at = 0
    for found in _PIECE.finditer(text):
        parts.append(text[at : found.start()])
        at = found.end()
        if found[2] is not None:
            raise NotTaken(
                f"it holds template logic, {_short(found[2])}",
                "write one text for each case, or choose between them in a pipeline (`executor`)",
            )
        if found[1] is not None:
            parts.append(_expression(found[1]))
    parts.append(text[at:])
    return Template(tuple(part for part in parts if part != ""))


def filled(value: Json, variables: Mapping[str, Json]) -> Json:
    """A value with the templates in all of its texts filled in. Raises: NotTaken."""
    if isinstance(value, str):
        template = parse(value)
        if len(template.parts) == 1 and isinstance(template.parts[0], Expression):
            return template.parts[0].of(variables)
        return template.filled(variables) if template.expressions else value
    if isinstance(value, Mapping):
        return {key: filled(item, variables) for key, item in value.items()}
    return [filled(item, variables) for item in value] if isinstance(value, list) else value


def _expression(text: str) -> Expression:
    head = _PATH.match(text)
    if head is None:
        raise _too_much(text)
    if head[1] == "env":
        raise NotTaken(f"{{{{{_short(text)}}}}} reads the environment", "write the value out")
    path: list[str | int] = [head[1]]
    for step in _STEP.finditer(head[2]):
        path.append(step[1] or (int(step[2]) if step[2] else _unquoted(step[3])))
    filters: list[tuple[str, tuple[str, ...]]] = []
    at = head.end()
    while at < len(text):
        found = _FILTER.match(text, at)
        if found is None:
            raise _too_much(text)
        if found[1] not in FILTERS:
            raise NotTaken(
                f"filter {found[1]!r} is none of {', '.join(FILTERS)}", "put its result into a variable of the tests"
            )
        filters.append((found[1], tuple(map(_unquoted, _ARGUMENT.findall(found[2] or "")))))
        at = found.end()
    return Expression(tuple(path), tuple(filters))


def _too_much(text: str) -> NotTaken:
    return NotTaken(f"{{{{{_short(text)}}}}} is more than a variable with filters", "make it a variable of the tests")


def _unquoted(text: str) -> str:
    if text[:1] not in ("'", '"'):
        return text
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text[1:-1])


def _short(text: str) -> str:
    return " ".join(text.split())[:60]
