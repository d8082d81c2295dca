"""Assertions that need no code: what an output must hold, whatever the example expects. Each passes (1) or not (0).

`texts`, patterns and bounds are fixed in the config; scorers that look for what the example expects are in
`scorers`. Every verdict says what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from evocluster.errors import ConfigError
from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, FrozenJson, Json, Score
from evocluster.tasks.answers import Schema
from evocluster.tasks.execution import Execution
from evocluster.tasks.paths import Path, at_path, json_of, read_whole
from evocluster.tasks.patterns import Expression, search
from evocluster.tasks.words import equal_json, normalise, numbers, sentences, shown, thawed

Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
"""At least one text, none of them empty."""
Amount = Annotated[float, Field(allow_inf_nan=False)]
_LISTED = 8


class Includes(Part):
    """Fixed texts in the output. With `need: all` the score is the share of them that is there."""

    kind: Literal["includes"] = "includes"
    name: str = "includes"
    texts: Texts
    need: Literal["all", "any", "none"] = "all"
    """none: they are forbidden."""
    ignore_case: bool = True

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        output = self._folded(execution.output)
        found = [text for text in self.texts if self._folded(text) in output]
        missing = [text for text in self.texts if text not in found]
        reason = f"found {_listed(found)}" + (f"; missing {_listed(missing)}" if self.need == "all" and missing else "")
        if self.need == "all":
            return Score(value=len(found) / len(self.texts), reason=reason)
        return Score(value=float(bool(found) == (self.need == "any")), reason=reason)

    def _folded(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text


class Matches(Part):
    """A fixed regular expression that the output holds, or must not hold."""

    kind: Literal["matches"] = "matches"
    name: str = "matches"
    pattern: Expression
    present: bool = True
    """false: it must not be found."""
    ignore_case: bool = False

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: TimeoutError for a pattern that backtracks without end."""
        found = search(self.pattern, execution.output, self.ignore_case)
        reason = f"{self.pattern!r} not found" if found is None else f"found {shown(found)}"
        return Score(value=float((found is not None) == self.present), reason=reason)


class OneOf(Part):
    """The whole output is one of fixed texts, but for case, spacing and punctuation."""

    kind: Literal["one_of"] = "one_of"
    name: str = "one_of"
    texts: Texts

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        right = normalise(execution.output) in map(normalise, self.texts)
        return _verdict(right, shown(execution.output), _listed(self.texts))


class IsJson(Part):
    """The output is JSON, of this schema where one is given."""

    kind: Literal["is_json"] = "is_json"
    name: str = "is_json"
    json_schema: dict[str, Any] | None = None
    """The schema itself."""
    inside: bool = False
    """Text around the JSON (a fence, a sentence) is no failure."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            return None if schema is None else Schema(schema).schema
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @cached_property
    def _schema(self) -> Schema:
        return Schema({} if self.json_schema is None else self.json_schema)

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        try:
            value = json_of(execution) if self.inside else read_whole(execution.output)
        except ValueError as error:
            return Score(value=0.0, reason=f"not JSON: {error}")
        if self.inside and value is None:
            return Score(value=0.0, reason="no JSON object or array in the output")
        problem = self._schema.problem(thawed(value))
        return Score(value=float(problem is None), reason=problem or f"found {shown(value)}")


class JsonPath(Part):
    """What stands at a path of the JSON that was answered. Of the conditions, those given must all hold.

    Where the path names several places, each of them counts; with none given, something must stand there.
    """

    kind: Literal["json_path"] = "json_path"
    name: str = "json_path"
    path: Path
    """JSONPath (RFC 9535), e.g. '$.items[0].price' or '$..sku'."""
    exists: bool = True
    """false: nothing may stand there."""
    equals: FrozenJson = None
    """Any JSON, null too where it is written; 1 equals 1.0 but not true."""
    pattern: Expression | None = None
    contains: FrozenJson = None
    """A text inside the text, an element of the list, or a key of the object."""
    min: Amount | None = None
    max: Amount | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        asked = sorted({"equals", "contains"} & self.model_fields_set)
        asked += [name for name in ("pattern", "min", "max") if getattr(self, name) is not None]
        if asked and not self.exists:
            raise ValueError(f"exists: false leaves nothing for {asked[0]}; remove one of them")
        _refuse_crossed(self.min, self.max)
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `equals` and `contains` where they were not given: null would be a condition."""
        absent = {"equals", "contains"} - self.model_fields_set
        return {name: value for name, value in dump(self).items() if name not in absent}

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: TimeoutError for a pattern that backtracks without end."""
        value = json_of(execution)
        if value is None:
            return Score(value=0.0, reason="no JSON in the output")
        there = at_path(self.path, value)
        if not there or not self.exists:
            found = f"{self.path} holds {shown(thawed(there[0]))}" if there else f"nothing at {self.path}"
            return Score(value=float(bool(there) == self.exists), reason=found)
        problems = [problem for place in there for problem in self._problems(place)]
        reason = problems[0] if problems else f"found {shown(thawed(there[0]))}"
        return Score(value=float(not problems), reason=reason)

    def _problems(self, found: Json) -> list[str]:
        here = f"{self.path} holds {shown(thawed(found))}"
        number = found if isinstance(found, int | float) and not isinstance(found, bool) else None
        problems = []
        if "equals" in self.model_fields_set and not equal_json(found, self.equals):
            problems.append(f"{here}; allowed: {shown(thawed(self.equals))}")
        if self.pattern is not None and (not isinstance(found, str) or search(self.pattern, found) is None):
            problems.append(f"{here}; allowed: a text with {self.pattern!r}")
        if "contains" in self.model_fields_set and not _holds(found, self.contains):
            problems.append(f"{here}; it must contain {shown(thawed(self.contains))}")
        bounded = self.min is not None or self.max is not None
        if bounded and (number is None or not _within(number, self.min, self.max)):
            problems.append(f"{here}; allowed: {_range(self.min, self.max)}")
        return problems


_PARTS: dict[str, Callable[[str], Sized]] = {
    "chars": str,
    "words": str.split,
    "lines": str.splitlines,
    "sentences": lambda text: [part for part in sentences(text)[0] if part.strip()],
}


class Length(Part):
    """How long the output is. Words stand between spaces; blank lines are lines too, but not at either end."""

    kind: Literal["length"] = "length"
    name: str = "length"
    unit: Literal["chars", "words", "lines", "sentences"]
    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _refuse_unbounded(self.min, self.max)
        return self

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        text = execution.output.strip()
        count = len(_PARTS[self.unit](text))
        return _verdict(_within(count, self.min, self.max), f"{count} {self.unit}", _range(self.min, self.max))


class Number(Part):
    """The number in the output lies between bounds."""

    kind: Literal["number"] = "number"
    name: str = "number"
    which: Literal["last", "first", "all"] = "last"
    min: Amount | None = None
    max: Amount | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        _refuse_unbounded(self.min, self.max)
        return self

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        found = numbers(execution.output)
        chosen = {"last": found[-1:], "first": found[:1], "all": found}[self.which]
        wrong = [number for number in chosen if not _within(number, self.min, self.max)]
        said = f"{(wrong or chosen)[0]:g}" if chosen else "no number"
        return _verdict(bool(chosen) and not wrong, said, _range(self.min, self.max))


class Cost(Part):
    """The evaluation's model calls cost at most this, at list price."""

    kind: Literal["cost"] = "cost"
    name: str = "cost"
    max_usd: float = Field(ge=0, allow_inf_nan=False)

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        usd = execution.usage.usd
        return _verdict(usd <= self.max_usd, f"{usd:.6g} USD", f"up to {self.max_usd:.6g}")


class Latency(Part):
    """The evaluation's model calls took at most this long, one after the other."""

    kind: Literal["latency"] = "latency"
    name: str = "latency"
    max_ms: float = Field(gt=0, allow_inf_nan=False)

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        ms = execution.usage.seconds * 1000
        return _verdict(ms <= self.max_ms, f"{ms:.6g} ms", f"up to {self.max_ms:.6g}")


def _verdict(right: bool, found: str, allowed: str) -> Score:
    return Score(value=float(right), reason=f"found {found}" if right else f"found {found}; allowed: {allowed}")


def _listed(texts: Iterable[str]) -> str:
    each = [shown(text) for text in texts]
    more = f" and {len(each) - _LISTED} more" if len(each) > _LISTED else ""
    return ", ".join(each[:_LISTED]) + more or "none of the texts"


def _holds(found: Json, wanted: Json) -> bool:
    if isinstance(found, list | tuple):
        return any(equal_json(item, wanted) for item in found)
    return isinstance(wanted, str) and not isinstance(found, int | float | None) and wanted in found


def _within(number: float, low: float | None, high: float | None) -> bool:
    return (low is None or number >= low) and (high is None or number <= high)


def _range(low: float | None, high: float | None) -> str:
    """'1 to 80', 'from 1' or 'up to 80'."""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"from {low:g}" if low is not None else f"up to {high:g}"


def _refuse_crossed(low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"min {low:g} is above max {high:g}; swap them")


def _refuse_unbounded(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise ValueError("neither min nor max is given; give at least one of them")
    _refuse_crossed(low, high)
