"""What is wrong with a value by a JSON schema of everyday rules, in the words of the library `jsonschema`.

For exported configurations, whose file brings these functions along so that it needs no other library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BOUNDS = {
    "minimum": "less than",
    "maximum": "greater than",
    "exclusiveMinimum": "less than or equal to",
    "exclusiveMaximum": "greater than or equal to",
}
_SIZES = {"minItems": list, "maxItems": list, "minLength": str, "maxLength": str}
_TYPES = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}


def flaw(value: Any, schema: Mapping[str, Any], at: str = "$") -> str:
    """What is first wrong with a value by a JSON schema, in the words that the run used; '' for nothing."""
    for rule, limit in schema.items():
        inner: list[tuple[Any, Any, str]] = []
        if rule == "properties" and isinstance(value, dict):
            inner = [(value[name], each, at + _step(name)) for name, each in limit.items() if name in value]
        elif rule == "items" and isinstance(value, list):
            inner = [(each, limit, f"{at}[{place}]") for place, each in enumerate(value)]
        said = _broken(rule, limit, value, schema)
        if said:
            return f"{said} at {at}"
        for each in inner:
            said = flaw(*each)
            if said:
                return said
    return ""


def _broken(rule: str, limit: Any, value: Any, schema: Mapping[str, Any]) -> str:
    """What one rule of a schema says of a value itself."""
    kinds = limit if isinstance(limit, list) else [limit]
    if rule == "type" and not any(_is(value, kind) for kind in kinds):
        return f"{value!r} is not of type {', '.join(map(repr, kinds))}"
    if rule == "enum" and not any(_same(value, each) for each in kinds):
        return f"{value!r} is not one of {limit!r}"
    if rule == "const" and not _same(value, limit):
        return f"{limit!r} was expected"
    if rule == "pattern" and isinstance(value, str) and not re.search(limit, value):
        return f"{value!r} does not match {limit!r}"
    if isinstance(value, dict):
        return _lacking(rule, limit, value, schema)
    return _out_of_bounds(rule, limit, value)


def _lacking(rule: str, limit: Any, value: dict[str, Any], schema: Mapping[str, Any]) -> str:
    if rule == "required":
        missing = [name for name in limit if name not in value]
        return f"{missing[0]!r} is a required property" if missing else ""
    if rule == "additionalProperties" and limit is False:
        extra = sorted(name for name in value if name not in schema.get("properties", {}))
        verb = "was" if len(extra) == 1 else "were"
        named = ", ".join(map(repr, extra))
        return f"Additional properties are not allowed ({named} {verb} unexpected)" if extra else ""
    return ""


def _out_of_bounds(rule: str, limit: Any, value: Any) -> str:
    if rule in _BOUNDS and _is(value, "number") and _beyond(rule, limit, value):
        return f"{value!r} is {_BOUNDS[rule]} the {rule[-7:].lower()} of {limit!r}"
    if rule in _SIZES and isinstance(value, _SIZES[rule]):
        if rule.startswith("min") and len(value) < limit:
            return f"{value!r} {'should be non-empty' if limit == 1 else 'is too short'}"
        if rule.startswith("max") and len(value) > limit:
            return f"{value!r} {'is expected to be empty' if limit == 0 else 'is too long'}"
    return ""


def _beyond(rule: str, limit: Any, value: Any) -> bool:
    if rule.startswith("exclusive") and value == limit:
        return True
    return bool(value < limit if rule.lower().endswith("minimum") else value > limit)


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole or (kind == "number" and isinstance(value, float)))
    return isinstance(value, _TYPES[kind])


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _step(name: str) -> str:
    if re.match("^[a-zA-Z][a-zA-Z0-9_]*$", name):
        return f".{name}"
    escaped = name.replace("\\", "\\\\").replace("'", r"\'")
    return f"['{escaped}']"
