"""Which member of a front is recommended: the best composite, the knee, or a sentence such as "cheapest where
quality >= 0.8".

rule  := "composite" | "knee" | pick [ "where" bound { "and" bound } ] pick  := "cheapest" | "fastest" |
"best" NAME bound := NAME (">=" | "<=" | ">" | "<") NUMBER
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from evocluster.parts import Part
from evocluster.records import Record
from evocluster.search.objectives import BUILT_IN, SHORT, Objective, built_in
from evocluster.search.space import nearest

FORMS = 'composite, knee, "cheapest where quality >= 0.8", "fastest where ...", "best quality where cost_usd <= 0.001"'
PICKS: Mapping[str, str] = {"cheapest": "cost_usd", "fastest": "latency_ms"}
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}
MEANT: Mapping[str, str] = {"=>": ">=", "=<": "<=", "≥": ">=", "≤": "<="}
"""What is written for a comparison and is none -> the comparison."""


class Bound(Record):
    """One condition: name, operator, number."""

    name: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.limit:g}"

    def missed_by(self, values: Mapping[str, float]) -> float:
        """How far the values are from meeting it, as a share of the limit; 0 when they do."""
        value = values[self.name]
        if OPERATORS[self.operator](value, self.limit):
            return 0.0
        return max(abs(value - self.limit) / max(abs(self.limit), 1e-9), 1e-9) if np.isfinite(value) else np.inf


class Rule(Part):
    """A parsed rule. `best` names what is best among the members that meet every bound; '' for the knee."""

    text: str
    best: str
    bounds: tuple[Bound, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives it speaks of."""
        return tuple(dict.fromkeys(name for name in (self.best, *(bound.name for bound in self.bounds)) if name))


def parse(text: str, names: Sequence[str] | None = ()) -> Rule:
    """The rule of a text. `names`: of the run's own objectives; None: any name will do.

    Raises: ValueError that names the word, what is allowed, and the nearest.
    """
    tokens = words(text)
    if tokens in (["composite"], ["knee"]):
        return Rule(text=text, best="composite" if tokens == ["composite"] else "")
    if not tokens:
        raise ValueError(f"got an empty rule; allowed: {FORMS}")
    if tokens[0] == "best" and len(tokens) > 1:
        best, rest = _name(tokens[1], text, names), tokens[2:]
    elif tokens[0] in PICKS:
        best, rest = PICKS[tokens[0]], tokens[1:]
    else:
        starts = ("composite", "knee", "best", *PICKS)
        raise ValueError(f"got {text!r}: it starts with {tokens[0]!r}; allowed: {FORMS}{nearest(tokens[0], starts)}")
    return Rule(text=text, best=best, bounds=tuple(_bounds(rest, text, names)))


def words(text: str) -> list[str]:
    """The words of a condition, comparisons standing alone: 'quality>=0.8' has three."""
    return re.sub(r"(=[<>]|[<>]=?|[≥≤])", r" \1 ", text).split()


def _name(word: str, text: str, names: Sequence[str] | None) -> str:
    if names is not None and word in names:
        return word
    name = SHORT.get(word, word)
    if names is not None and name not in BUILT_IN and not name.startswith("scores."):
        allowed = tuple(dict.fromkeys((*names, *BUILT_IN)))
        raise ValueError(
            f"got {text!r}: {word!r} is no objective; allowed: {', '.join(allowed)}{nearest(word, allowed)}"
        )
    return name


def bound(name: str, operator: str, number: str, text: str) -> Bound:
    """One condition out of its words. Raises: ValueError that quotes the whole `text`."""
    if operator not in OPERATORS:
        hint = _meant(name, operator)
        raise ValueError(f"got {text!r}: {operator!r} is no comparison; allowed: {', '.join(OPERATORS)}{hint}")
    try:
        limit = float(number)
    except ValueError:
        raise ValueError(f"got {text!r}: {number!r} is no number; write for example 0.8") from None
    return Bound(name=name, operator=operator, limit=limit)


def refuse_equals(text: str) -> None:
    """Raises: ValueError where '=' or '==' stands for a comparison, with or without spaces around it."""
    if found := re.search(r"([^\s<>=]+)\s*(==?)\s*[-+.\d]", text):
        bound(found[1], found[2], "0", text)


def _meant(name: str, operator: str) -> str:
    """'; did you mean ...?' for what is no comparison, or ''."""
    if sign := MEANT.get(operator):
        return f"; did you mean {sign!r}?"
    if operator.strip("="):
        return ""
    source = SHORT.get(name, name)
    if source not in BUILT_IN and not source.startswith("scores."):
        return "; write '>=' for at least, '<=' for at most"
    return (
        "; did you mean '<=' (at most)?" if built_in(source).direction == "min" else "; did you mean '>=' (at least)?"
    )


def _bounds(tokens: Sequence[str], text: str, names: Sequence[str] | None) -> list[Bound]:
    bounds = []
    joint = "where"
    while tokens:
        if tokens[0] != joint or len(tokens) < 4:
            refuse_equals(text)
            raise ValueError(
                f"got {text!r}: expected `{joint} OBJECTIVE >= NUMBER` at {' '.join(tokens)!r}; allowed: {FORMS}"
            )
        _, word, operator, number = tokens[:4]
        bounds.append(bound(_name(word, text, names), operator, number, text))
        tokens, joint = tokens[4:], "and"
    return bounds


def _checked(text: str) -> str:
    parse(text, None)
    return text


Recommend = Annotated[str, AfterValidator(_checked)]
"""What a config field is typed as: a text that parses, whatever objectives there are."""


def choose(members: Sequence[Mapping[str, float]], rule: Rule, objectives: Sequence[Objective] = ()) -> tuple[int, str]:
    """The index of the recommended member and why.

    `members` hold a value for every name the rule and objectives use.

    Ties go to the higher quality, then to the cheaper. When nobody meets the bounds, the member nearest to
    them is chosen and the reason says so. Raises: ValueError when there are no members.
    """
    if not members:
        raise ValueError("there is no member to choose from; give at least one")
    if not rule.best:
        at = _knee(members, objectives)
        return at, f"knee: the best trade-off of {', '.join(one.name for one in objectives)}"
    known = {one.name: one for one in objectives}
    best = known.get(rule.best) or built_in(rule.best)
    missed = [sum(bound.missed_by(values) for bound in rule.bounds) for values in members]
    met = [i for i, miss in enumerate(missed) if miss == 0]
    if met:
        at = min(met, key=lambda i: (best.sign * members[i][rule.best], *_ties(members[i])))
        return at, f"{rule.text}: {rule.best} {members[at][rule.best]:.4g}"
    at = min(range(len(members)), key=lambda i: (missed[i], best.sign * members[i][rule.best], *_ties(members[i])))
    broken = [bound for bound in rule.bounds if bound.missed_by(members[at])]
    said = ", ".join(f"{bound} (it has {members[at][bound.name]:.4g})" for bound in broken)
    return at, f"no member meets {said}: this one is nearest to it"


def _ties(values: Mapping[str, float]) -> tuple[float, float]:
    return (-values.get("quality", 0.0), values.get("cost_usd", 0.0))


def _knee(members: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> int:
    """The member farthest in front of the plane through the extremes (Das 1999): the least sum of normalised
    values.
    """
    from evocluster.search.nsga2 import finite

    table = finite(np.array([[one.sign * values[one.name] for one in objectives] for values in members]))
    spread = np.ptp(table, axis=0)
    share = (table - table.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return int(np.argmin(share.sum(axis=1)))
