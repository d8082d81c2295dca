"""The user's own assertion: a Python function that says how good an output is.

    def polite(output, example):              # or (output, example, execution); async too
        return "please" in output             # bool, number, Score, {"value", "reason"} or (value, reason)

It gets the answer as text and its own copy of the example with plain lists and dicts. What it raises is the failure
of that evaluation, with the place in the user's file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from evocluster.errors import ConfigError
from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, Score
from evocluster.tasks.code import call, is_spec, load_function, where_raised
from evocluster.tasks.execution import Execution
from evocluster.tasks.words import shown, thawed

_RETURNS = "allowed: bool, a number, Score, {'value': ..., 'reason': ...} or (value, reason)"
_TAKES = "allowed: (output, example) or (output, example, execution)"


class FunctionFailed(Exception):
    """What a user's function raised, with its place; the exception itself is the cause."""


class Function(Part):
    """The score that a function of the user's returns. Call order: check, any number of scores."""

    kind: Literal["function"] = "function"
    function: str
    """'evals.py:polite' or 'package.module:polite'."""
    name: str = ""
    """Left out: the function's."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which a call is a failure."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "name" not in given:
            return {**given, "name": str(given.get("function", "")).rpartition(":")[2] or "function"}
        return given

    @field_validator("function")
    @classmethod
    def _names_code(cls, function: str) -> str:
        if not is_spec(function):
            raise ValueError(f"{function!r} names no code; write 'file.py:name' or 'package.module:name'")
        return function

    def check(self) -> None:
        """Import it and look at its parameters. Raises: ConfigError."""
        _prepared(self.function)

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ConfigError where `check` would; FunctionFailed; TypeError for what is no verdict."""
        function, count = _prepared(self.function)
        given = (execution.output, _plain(example, "input", "expected", "meta"), _plain(execution, "parsed"))
        try:
            returned = await call(function, *given[:count], timeout_s=self.timeout_s)
        except Exception as error:
            place = where_raised(error, function)
            text = f"{type(error).__name__}: {error}"
            raise FunctionFailed(f"{text} at {place}" if place else text) from error
        return verdict(returned, self.name)


def verdict(returned: object, name: str) -> Score:
    """What a user's function returned, as a score. Raises: TypeError."""
    value, reason = returned, None
    if isinstance(returned, Score):
        return returned
    if isinstance(returned, Mapping) and "value" in returned and set(returned) <= {"value", "reason"}:
        value, reason = returned["value"], returned.get("reason")
    elif isinstance(returned, tuple) and len(returned) == 2:
        value, reason = returned
    if not isinstance(value, Real | np.bool_) or not isinstance(reason, str | None):
        forgot = "; is a `return` missing?" if returned is None else ""
        raise TypeError(f"{name} returned {type(returned).__name__} {shown(returned)}; {_RETURNS}{forgot}")
    return Score(value=float(value), reason=f"{name} returned {value!r}" if reason is None else reason)


@lru_cache(maxsize=256)
def _prepared(spec: str) -> tuple[Callable[..., Any], int]:
    """The function and how many arguments it gets. Raises: ConfigError."""
    function = load_function(spec)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in, without a signature
        return function, 2
    three, two = _takes(signature, 3), _takes(signature, 2)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    third = list(signature.parameters)[2:3]
    if three and (not two or inspect.Parameter.VAR_POSITIONAL in kinds or third == ["execution"]):
        return function, 3
    if two:
        return function, 2
    raise ConfigError(f"{spec!r}: takes {signature}; {_TAKES}")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _plain(record: Any, *fields: str) -> Any:
    """A copy that holds ordinary lists and dicts, as comparing them with json.loads needs."""
    return record.model_copy(update={field: thawed(getattr(record, field)) for field in fields})
