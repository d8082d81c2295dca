"""JSON inside an output, and places inside JSON (JSONPath, RFC 9535)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, NoReturn

from pydantic import AfterValidator

from evocluster.records import Json, canonical
from evocluster.tasks.execution import Execution
from evocluster.tasks.patterns import search

if TYPE_CHECKING:
    from jsonpath import CompoundJSONPath, JSONPath, JSONPathEnvironment


def checked_path(path: str) -> str:
    """The path, once it parses. Raises: ValueError."""
    from jsonpath import JSONPathError

    try:
        _parsed(path)
    except (JSONPathError, RecursionError) as error:
        said = error.args[0] if path.startswith("$") else "it does not begin with '$'"
        raise ValueError(f"path {path!r} is not a JSONPath: {said}; write it like '$.items[0].price'") from error
    return path


Path = Annotated[str, AfterValidator(checked_path)]
"""A setting that is a JSONPath."""


def at_path(path: str, value: Json) -> list[Json]:
    """What stands at the path, none to many. Raises: ValueError where the JSON is nested too deeply to look."""
    try:
        return [match.obj for match in _parsed(path).finditer(value)]
    except RecursionError as error:
        raise ValueError(f"path {path!r}: the JSON is nested too deeply for it") from error


def json_of(execution: Execution) -> Json:
    """The object or array that was answered: what was parsed, else the longest one in the output; None: none."""
    if isinstance(execution.parsed, Mapping | list | tuple):
        return execution.parsed
    return json_in(execution.output)


def json_in(text: str) -> Json:
    """The longest JSON object or array inside a text, None where there is none."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    found, longest, at = None, 0, 0
    while at < len(text):
        if text[at] not in "{[":
            at += 1
            continue
        try:
            value, end = decoder.raw_decode(text, at)
            canonical(value).encode()
        except (ValueError, RecursionError):
            at += 1
            continue
        if end - at > longest:
            found, longest = value, end - at
        at = end
    return found


def read_whole(text: str) -> Json:
    """The JSON value that the whole text is. Raises: ValueError."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        canonical(value).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


@lru_cache(maxsize=256)
def _parsed(path: str) -> JSONPath | CompoundJSONPath:
    return _environment().compile(path)


@lru_cache(maxsize=1)
def _environment() -> JSONPathEnvironment:
    """The RFC's language, with regular expressions in filters that stop when they backtrack without end."""
    from jsonpath import JSONPathEnvironment
    from jsonpath.function_extensions import Search

    class Stopping(Search):
        """`search(@.a, 'pattern')`, and `match` over the whole text."""

        def __init__(self, around: str) -> None:
            super().__init__()
            self._around = around

        def __call__(self, value: object, pattern: object) -> bool:
            """As the RFC has it: False for what is no text or no pattern. Raises: TimeoutError."""
            compiled = self.check_cache(pattern) if isinstance(pattern, str) else None
            if compiled is None or not isinstance(value, str):
                return False
            return search(self._around.format(compiled.pattern), value) is not None

    environment = JSONPathEnvironment(strict=True)
    environment.function_extensions["search"] = Stopping("{}")
    environment.function_extensions["match"] = Stopping(r"\A(?:{})\Z")
    return environment


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
