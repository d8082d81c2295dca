"""What a configuration has to keep: limits on objectives, and by how much each is broken.

Feasibility comes before the objectives and is no penalty on them (constrained domination, Deb et al. 2002, section VI):
who breaks the limits by less is ahead, and among those that break them alike, above all those that keep them, the
objectives decide. What is judged are the values as measured, from however few examples.

    Constraint                          as it stands in a config
    Limits(constraints, objectives)     the same bound to the objectives of a run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_serializer, model_validator

from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Json
from evocluster.search.objectives import BUILT_IN, SHORT, Objective, Tally
from evocluster.search.recommend import OPERATORS, Bound, bound, refuse_equals, words
from evocluster.search.space import nearest

SIDES: Mapping[str, str] = {">=": "min", "<=": "max", ">": "above", "<": "below"}
"""Comparison -> the setting of a constraint that means it."""
AGGREGATES = ("mean", "p95")
LEAST = 1e-9
"""What a broken limit counts at least, however near the value is to it."""


class Constraint(Part):
    """A limit that a configuration has to keep.

    YAML: `quality >= 0.8`, `latency_ms p95 <= 900`, or {objective: latency, aggregate: p95, max: 900}.
    """

    objective: str = Field(min_length=1)
    """Name of an objective of the run, or what one may be of: quality, latency_ms, ..., scores.SCORER."""
    aggregate: Literal["mean", "p95"] | None = None
    """Default: as the objective of this name has it, else the mean."""
    min: float | None = Field(default=None, allow_inf_nan=False)
    """At least this."""
    max: float | None = Field(default=None, allow_inf_nan=False)
    """At most this."""
    above: float | None = Field(default=None, allow_inf_nan=False)
    """More than this."""
    below: float | None = Field(default=None, allow_inf_nan=False)
    """Less than this."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Json) -> Json:
        return _parsed(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        sides = [name for name in SIDES.values() if getattr(self, name) is not None]
        if len(sides) != 1:
            what = f"has {' and '.join(sides)}" if sides else f"{self.objective!r} has no limit"
            raise ValueError(f"{what}; give one of {', '.join(SIDES.values())}, and a second limit as a second entry")
        return self

    @model_serializer
    def _sentence(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """As a sentence, which reads back as the same."""
        limit = f"{self.limit:g}" if float(f"{self.limit:g}") == self.limit else repr(self.limit)
        return f"{self.measure} {self.operator} {limit}"

    @property
    def operator(self) -> str:
        """How values are compared with the limit: >=, <=, > or <."""
        return next(sign for sign, side in SIDES.items() if getattr(self, side) is not None)

    @property
    def limit(self) -> float:
        """The number."""
        return float(getattr(self, SIDES[self.operator]))

    @property
    def measure(self) -> str:
        """The left side as a sentence has it."""
        return f"{self.objective} {self.aggregate}" if self.aggregate else self.objective

    @classmethod
    def in_editors(cls, made: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema with the sentence too."""
        whole = {name: made.pop(name) for name in ("type", "properties", "required", "additionalProperties")}
        sides = [{"required": [side]} for side in SIDES.values()]
        number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
        made["anyOf"] = [
            {"type": "string", "pattern": rf"^\s*[^<>=\s][^<>=]*(>=|<=|>|<)\s*{number}\s*$"},
            {**whole, "oneOf": sides},
        ]
        return made

    def wrong(self, names: Sequence[str], scorers: Sequence[str] | None = None) -> str | None:
        """What is wrong with its objective, if anything. `names` of the run's own; `scorers`: those there are."""
        if self.measure in names or self.objective in names:
            return None
        source = SHORT.get(self.objective, self.objective)
        if source in BUILT_IN or (source.startswith("scores.") and (scorers is None or source in scorers)):
            return None
        allowed = tuple(dict.fromkeys((*names, *BUILT_IN, *(scorers or ("scores.SCORER",)))))
        return f"{self.objective!r} is no objective; allowed: {', '.join(allowed)}{nearest(self.objective, allowed)}"

    def measured(self, objectives: Sequence[Objective]) -> Objective:
        """What its limit is compared with. Raises: ValueError for an objective that is none."""
        if text := self.wrong([one.name for one in objectives]):
            raise ValueError(text)
        # The worst of several tasks is the one that is nearest to breaking the limit.
        direction: Literal["max", "min"] = "max" if self.operator in (">=", ">") else "min"
        named = {one.name: one for one in objectives}
        source = SHORT.get(self.objective, self.objective)
        known = named.get(self.measure) or named.get(self.objective) or named.get(source)
        found = known or Objective(name=source, source=source, direction=direction)
        if found.name == self.measure or self.aggregate in (None, found.aggregate):
            return found.model_copy(update={"direction": direction})
        changes = {"name": f"{found.name} {self.aggregate}", "aggregate": self.aggregate, "direction": direction}
        return found.model_copy(update=changes)


def _parsed(text: str) -> dict[str, Json]:
    """The settings that a sentence means. Raises: ValueError that quotes it."""
    tokens = words(text)
    signs = [word for word in tokens if word in OPERATORS]
    if len(tokens) < 3 or len(signs) > 1:
        refuse_equals(text)
        raise ValueError(
            f"got {text!r}; write one limit, such as `quality >= 0.8` or `latency_ms p95 <= 900`; "
            f"allowed comparisons: {', '.join(OPERATORS)}"
        )
    *left, sign, number = tokens
    aggregate = left.pop() if len(left) > 1 and left[-1] in AGGREGATES else None
    found = bound(" ".join(left), sign, number, text)
    return {"objective": found.name, "aggregate": aggregate, SIDES[sign]: found.limit}


class Limits:
    """The constraints of a run."""

    def __init__(
        self,
        constraints: Sequence[Constraint | str | Mapping[str, Json]] = (),
        objectives: Sequence[Objective] = (),
    ) -> None:
        """`objectives`: of the run, which constraints may name. Raises: ConfigError."""
        try:
            parsed = [Constraint.model_validate(one) for one in constraints]
            self.measures = tuple(one.measured(objectives) for one in parsed)
            """What each limit is compared with."""
        except ValidationError as error:
            lines = (line["msg"].removeprefix("Value error, ") for line in error.errors())
            raise ConfigError(f"constraints: {'; '.join(lines)}") from None
        except ValueError as error:
            raise ConfigError(f"constraints: {error}") from None
        self.bounds = tuple(
            Bound(name=measure.name, operator=one.operator, limit=one.limit)
            for one, measure in zip(parsed, self.measures, strict=True)
        )
        """The limits themselves."""

    def __bool__(self) -> bool:
        return bool(self.bounds)

    def values(self, tally: Tally) -> list[float]:
        """What was measured, limit by limit."""
        return [tally.value(one) for one in self.measures]

    def missed(self, values: Sequence[float]) -> float:
        """By how much these values, limit by limit, break the limits in all; 0: none is broken.

        Each as a share of its limit (of 1 where the limit is 0), so that no unit counts for more; what was not
        measured breaks its limit infinitely.
        """
        return float(sum(map(_missed, self.bounds, values)))

    def violation(self, tally: Tally) -> float:
        """By how much what was measured breaks the limits in all; 0: a feasible configuration."""
        return self.missed(self.values(tally)) if self.bounds else 0.0

    def broken(self, tally: Tally) -> str:
        """The limits that are broken and by what value; '' when all are kept."""
        pairs = zip(self.bounds, self.values(tally), strict=True)
        return ", ".join(f"{one} (it has {value:.4g})" for one, value in pairs if _missed(one, value))

    def reason(self, tally: Tally, why: str) -> str:
        """Why a member is recommended, and where it breaks limits, that nobody keeps them."""
        broken = self.broken(tally)
        if not broken:
            return why
        return f"{why}; but it breaks {broken}: no member keeps all constraints, and this one is nearest"

    def facts(self) -> list[dict[str, Json]]:
        """Each limit as {name, operator, limit}."""
        return [one.model_dump() for one in self.bounds]


def _missed(limit: Bound, value: float) -> float:
    if not np.isfinite(value):
        return float("inf")
    if OPERATORS[limit.operator](value, limit.limit):
        return 0.0
    return max(abs(value - limit.limit) / (abs(limit.limit) or 1.0), LEAST)


NONE = Limits()
"""Of a run without constraints: everything is feasible."""
