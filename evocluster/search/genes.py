"""The kinds of gene: one value, a choice, a range of numbers, prompt texts; each knows how to sample, move,
mix and fix itself.

`parse` turns the YAML of one gene into its kind. Every method takes its randomness as an argument and returns
plain JSON values (never numpy scalars), because genes are named by their canonical JSON. The few-shot gene is
in `demos.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Protocol

import numpy as np
from pydantic import Field, field_validator, model_validator

from evocluster.parts import Part
from evocluster.records import FrozenJson, Json, canonical

STEP = 0.15
"""Standard deviation of a numeric move, as a share of the range's width (of its logarithm where `log`)."""
CLOSE = 0.05
"""Numbers of a range are alike when they are no further apart than this share of its width."""
MOST_VOTES = 16
STYLES = ("chat", "inline", "completion")
"""Where demos stand: as chat turns, inside one user message, or as plain completion text."""


class Gene(Protocol):
    """What every kind of gene can do."""

    @property
    def free(self) -> bool:
        """False when it can only ever have one value."""
        ...

    @property
    def first(self) -> Json:
        """The value of a genome that does not mention the gene."""
        ...

    def sample(self, rng: np.random.Generator) -> Json: ...

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        """`count` values that together cover the gene evenly, in random order."""
        ...

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        """A value near this one, and another one whenever there is another."""
        ...

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        """A child's value from two parents' values."""
        ...

    def fix(self, value: Json) -> Json:
        """The value itself when it is allowed, else the nearest allowed one; the same every time."""
        ...


def either(one: Json, other: Json, rng: np.random.Generator) -> Json:
    """One of two, by a fair coin."""
    return one if rng.random() < 0.5 else other


def is_number(value: object) -> bool:
    """A finite int or float that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Frozen(Part):
    """A gene with one value."""

    value: FrozenJson

    @property
    def free(self) -> bool:
        return False

    @property
    def first(self) -> Json:
        return self.value

    def sample(self, rng: np.random.Generator) -> Json:
        return self.value

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        return [self.value] * count

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        return self.value

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        return self.value

    def fix(self, value: Json) -> Json:
        return self.value


class Choice(Part):
    """A gene with a list of values. Numbers have an order: a move prefers the neighbours."""

    values: tuple[FrozenJson, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[Json, ...]) -> tuple[Json, ...]:
        names = [canonical(value) for value in values]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is listed {names.count(name)} times; list every value once")
        return values

    @property
    def free(self) -> bool:
        return len(self.values) > 1

    @property
    def first(self) -> Json:
        return self.values[0]

    def _index(self, value: Json) -> int | None:
        name = canonical(value)
        return next((i for i, known in enumerate(self.values) if canonical(known) == name), None)

    def sample(self, rng: np.random.Generator) -> Json:
        return self.values[int(rng.integers(len(self.values)))]

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        rounds = -(-count // len(self.values))
        order = [int(i) for _ in range(rounds) for i in rng.permutation(len(self.values))]
        return [self.values[i] for i in order[:count]]

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        if not self.free:
            return self.first
        at = self._index(self.fix(value))
        others = [i for i in range(len(self.values)) if i != at]
        if all(is_number(known) for known in self.values) and rng.random() < 0.7:
            order = sorted(range(len(self.values)), key=lambda i: self.values[i])
            place = order.index(at if at is not None else 0)
            others = [order[j] for j in (place - 1, place + 1) if 0 <= j < len(order)]
        return self.values[others[int(rng.integers(len(others)))]]

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        return self.fix(either(one, other, rng))

    def fix(self, value: Json) -> Json:
        at = self._index(value)
        if at is not None:
            return self.values[at]
        numbers = [known for known in self.values if is_number(known)]
        if is_number(value) and numbers:
            return min(numbers, key=lambda known: (abs(known - value), known))
        return self.first


class Range(Part):
    """A gene that is a number between two others. With ints on both ends it stays an int."""

    low: int | float
    high: int | float
    step: int | float | None = Field(default=None, gt=0)
    """Values are low, low + step, low + 2 step..."""
    log: bool = False
    """Spread and moved by its logarithm; low must be above 0."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not (is_number(self.low) and is_number(self.high)) or self.low >= self.high:
            raise ValueError(f"low={self.low!r} must be below high={self.high!r}, both finite numbers")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low!r} must be above 0 where log is true; raise it or drop log")
        return self

    @property
    def whole(self) -> bool:
        """All its values are ints."""
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    @property
    def free(self) -> bool:
        return True

    @property
    def first(self) -> Json:
        return self.fix(self.low)

    def _at(self, share: float) -> Json:
        """The value at this share (0 to 1) of the range."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return self.fix(math.exp(low + share * (high - low)))
        return self.fix(self.low + share * (self.high - self.low))

    def _share(self, value: Json) -> float:
        value = self.fix(value)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def sample(self, rng: np.random.Generator) -> Json:
        return self._at(float(rng.random()))

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        strata = (rng.permutation(count) + rng.random(count)) / max(count, 1)
        return [self._at(float(share)) for share in strata]

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        value = self.fix(value)
        for _ in range(8):
            moved = self._at(float(np.clip(self._share(value) + rng.normal(0.0, STEP), 0.0, 1.0)))
            if moved != value:
                return moved
        return self._at(float(rng.random()))

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        """Blend with a quarter beyond either end (BLX-alpha, Eshelman and Schaffer 1993)."""
        first, second = self._share(one), self._share(other)
        blend = first + float(rng.uniform(-0.25, 1.25)) * (second - first)
        return self._at(min(1.0, max(0.0, blend)))

    def alike(self, one: Json, other: Json) -> bool:
        """No further apart than `CLOSE` of the width (of its logarithm where `log`)."""
        return abs(self._share(one) - self._share(other)) <= CLOSE + 1e-9

    def fix(self, value: Json) -> Json:
        number = float(value) if is_number(value) else float(self.low)
        number = min(float(self.high), max(float(self.low), number))
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            number = self.low + self.step * min(steps, round((number - self.low) / self.step))
        if self.whole:
            return round(number)
        near = float(f"{number:.4g}")
        return near if self.low <= near <= self.high else float(number)


class Texts(Part):
    """A gene that is a prompt text: seed texts, and (unless `fixed`) whatever a rewrite makes of them."""

    texts: tuple[str, ...] = Field(min_length=1)
    fixed: bool = False
    """True: only the given texts."""

    @field_validator("texts")
    @classmethod
    def _distinct(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"{text!r} is listed {texts.count(text)} times; list every text once")
        return texts

    @property
    def free(self) -> bool:
        return not self.fixed or len(self.texts) > 1

    @property
    def first(self) -> Json:
        return self.texts[0]

    def sample(self, rng: np.random.Generator) -> Json:
        return self.texts[int(rng.integers(len(self.texts)))]

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        return Choice(values=self.texts).spread(count, rng)

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        others = [text for text in self.texts if text != value]
        return others[int(rng.integers(len(others)))] if others else self.fix(value)

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        return self.fix(either(one, other, rng))

    def fix(self, value: Json) -> Json:
        if isinstance(value, str) and (value in self.texts or (value.strip() and not self.fixed)):
            return value
        return self.first


def _float_between(low: float, high: float) -> Callable[[Json], Json]:
    def check(value: Json) -> Json:
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"got {value!r}; allowed: a number from {low:g} to {high:g}")
        return float(value)

    return check


def _int_from(low: int) -> Callable[[Json], Json]:
    def check(value: Json) -> Json:
        if not is_number(value) or value != int(value) or value < low:
            raise ValueError(f"got {value!r}; allowed: a whole number from {low}")
        return int(value)

    return check


def _bool(value: Json) -> Json:
    if not isinstance(value, bool):
        raise ValueError(f"got {value!r}; allowed: true or false")
    return value


def _text(value: Json) -> Json:
    if not isinstance(value, str):
        raise ValueError(f"got {value!r}; allowed: a text (put it in quotes)")
    return value


def _style(value: Json) -> Json:
    if value not in STYLES:
        near = get_close_matches(str(value), STYLES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"got {value!r}; allowed: {', '.join(STYLES)}{hint}")
    return value


def _votes(value: Json) -> Json:
    """false: one answer; true: three samples; a number of samples; or the models that vote."""
    if isinstance(value, bool):
        return 3 if value else 1
    if is_number(value) and value == int(value) and 1 <= value <= MOST_VOTES:
        return int(value)
    names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    if names and 2 <= len(value) <= MOST_VOTES:
        return tuple(value)
    raise ValueError(f"got {value!r}; allowed: a number of samples from 1 to {MOST_VOTES}, or a list of model names")


CHECKS: Mapping[str, Callable[[Json], Json]] = {
    "rubric": _text,
    "cot": _bool,
    "temperature": _float_between(0.0, 2.0),
    "max_tokens": _int_from(1),
    "model": _text,
    "demo_style": _style,
    "constrain": _bool,
    "label_names": _text,
    "retriever_topk": _int_from(0),
    "use_consensus": _votes,
}
"""Known genes -> what one value of them must be; returns it in its one type.

`demos` is checked in `demos.py`.
"""


def checked(name: str, value: Json) -> Json:
    """The value in the gene's one type (temperature is always a float). Raises: ValueError."""
    return CHECKS[name](value) if name in CHECKS else value


def parse(name: str, given: Json) -> Gene:
    """The gene of one YAML value (all but `demos`).

    Raises: ValueError naming the value, what is allowed and the remedy.
    """
    if isinstance(given, Mapping):
        return _parse_mapping(name, given)
    if isinstance(given, list | tuple):
        values = tuple(checked(name, value) for value in given)
        if not values:
            raise ValueError("got an empty list; list the values to choose from, or leave the gene out")
        return Texts(texts=values) if name == "rubric" else Choice(values=values)
    return Frozen(value=checked(name, given))


def _parse_mapping(name: str, given: Mapping[str, Json]) -> Gene:
    if name == "rubric":
        if "texts" not in given or set(given) - {"texts", "fixed"}:
            raise ValueError(f"got keys {sorted(given)}; allowed: texts (a list) and fixed (true or false)")
        return Texts(texts=given["texts"], fixed=given.get("fixed", False))
    allowed = ("low", "high", "step", "log")
    unknown = sorted(set(given) - set(allowed))
    if unknown or "low" not in given or "high" not in given:
        wrong = f"unknown key {unknown[0]!r}" if unknown else f"only {sorted(given)}"
        raise ValueError(
            f"{wrong} in a range; allowed: low, high (both needed), step, log; write one value to freeze it"
        )
    ends = {end: checked(name, given[end]) for end in ("low", "high")}
    if any(not is_number(value) for value in ends.values()):
        raise ValueError(f"got {ends!r}; a range has numbers at both ends; write a list for a choice")
    return Range(**{**given, **ends})
