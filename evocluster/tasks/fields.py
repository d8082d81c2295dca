"""Field by field: the share of an expected JSON's fields that the answer has right, each compared in its own way.

A field is a leaf: `city` of {"address": {"city": "Rome"}} is 'address.city', and 'items[].sku' stands for the sku of
every item of a list. A path named in `fields` that leads to an object or a list makes the whole of it one field.
With `lists: match` the items of a list are paired so that the most is right (the assignment problem), whatever their
order, and the fields of a pair are compared: each sku stays beside its own price. What remains unpaired is missing
or extra.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, Json, Score, canonical
from evocluster.tasks.dates import same_date
from evocluster.tasks.execution import Execution
from evocluster.tasks.paths import json_of
from evocluster.tasks.words import as_json, equal_json, last_number, nearest, normalise, plain, shown, thawed

How = Literal["exact", "normalised", "numeric", "contains", "similarity", "date", "ignore"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MAX_PAIRS = 2_500
"""Pairs of items compared for one answer, at most (equal items are paired before); the rest is taken in order."""
_SHOWN = 5
_NOTHING: Any = object()
"""What stands where nothing does: null is a value."""


class Rule(Part):
    """How one field is compared."""

    compare: How = "normalised"
    """exact: as JSON (1 is 1.0); normalised: but for case, spacing and punctuation; numeric: the last number in it;
    contains: the expected text is part of the found one; similarity: matching characters, 0 to 1; date: the same day;
    ignore: not at all."""
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of numeric: the difference that does not count."""
    weight: Weight = 1.0


def _as_rule(given: Any) -> Any:
    """A word is the way to compare. Raises: ValueError for another word."""
    if not isinstance(given, str):
        return given
    if given not in get_args(How):
        ways = get_args(How)
        raise ValueError(f"unknown way to compare {given!r}; allowed: {', '.join(ways)}{nearest(given, ways)}")
    return {"compare": given}


Ruled = Annotated[Rule, BeforeValidator(_as_rule, json_schema_input_type=How | Rule)]


class Leaf(NamedTuple):
    """One field of expected, found or both."""

    path: str
    weight: float
    right: float = 0.0
    """0 to 1."""
    expected: Json = _NOTHING
    found: Json = _NOTHING


class Fields(Part):
    """The weighted share of fields that are right."""

    kind: Literal["fields"] = "fields"
    name: str = "fields"
    fields: dict[str, Ruled] = Field(default_factory=dict)
    """Path -> how it is compared, or {compare, tolerance, weight}."""
    default: Ruled = Rule()
    """Of every field not named."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Path -> weight of the field, or of each field below; the same as `weight` under the path."""
    extra: Literal["count", "ignore"] = "count"
    """count: a field that is not expected is wrong."""
    missing_is_null: bool = False
    """A field that is not there is as good as one that is null."""
    lists: Literal["match", "order"] = "match"
    """order: the first item is compared with the first, and so on."""
    report: Literal["share", "f1"] = "share"
    """share: right of all fields, expected or found; f1: the harmonic mean of right of found and right of expected."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for path, rule in self.fields.items():
            if path in self.weights and "weight" in rule.model_fields_set:
                raise ValueError(f"weights.{path} and fields.{path}.weight are both given; remove one of them")
            inside = [other for other in self.fields if other != path and _covers(path, other)]
            if inside:
                raise ValueError(f"{path!r} is compared as a whole, so {inside[0]!r} has no effect; remove one of them")
        return self

    def unexpected(self, expected: Iterable[Json]) -> str | None:
        """What is wrong with the paths named here when no example expects such a field; None: nothing."""
        paths = {path for value in expected for path in _paths(as_json(value), "")}
        for path in (*self.fields, *self.weights):
            if path not in paths:
                named = ", ".join(sorted(paths)[:12]) or "none"
                return f"no example expects a field {path!r}; expected are {named}{nearest(path, paths)}"
        return None

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ValueError where no object or array is expected, or no number in a numeric field."""
        expected, found = as_json(example.expected), json_of(execution)
        if not isinstance(expected, Mapping | list | tuple):
            raise ValueError(f"expected {shown(example.expected)} is no JSON object or array; use another scorer")
        if found is None:
            return Score(value=0.0, reason="no JSON in the output")
        leaves = [leaf for leaf in _Comparison(self).leaves("", expected, found) if leaf.weight]
        return Score(value=self._value(leaves), reason=_reason(leaves))

    def rule(self, path: str) -> Rule:
        """How the field at this path is compared."""
        rule = self.fields.get(path, self.default)
        around = [named for named in self.weights if _covers(named, path)]
        return rule.model_copy(update={"weight": self.weights[max(around, key=len)]}) if around else rule

    def _value(self, leaves: Sequence[Leaf]) -> float:
        right = sum(leaf.weight * leaf.right for leaf in leaves)
        total = self.size(leaves)
        return min(1.0, right / total) if total else 1.0

    def size(self, leaves: Sequence[Leaf]) -> float:
        """What a share of 1 would have right."""
        wanted = sum(leaf.weight for leaf in leaves if leaf.expected is not _NOTHING)
        if self.report == "f1":
            return (wanted + sum(leaf.weight for leaf in leaves if leaf.found is not _NOTHING)) / 2
        return wanted + sum(leaf.weight for leaf in leaves if leaf.expected is _NOTHING)


class _Comparison:
    """One expected JSON beside one found."""

    def __init__(self, settings: Fields) -> None:
        self._settings = settings
        self._pairs_left = MAX_PAIRS

    def leaves(self, path: str, expected: Json, found: Json) -> list[Leaf]:
        """Every field at or below the path, compared."""
        if path in self._settings.fields or not _inner(expected, found):
            return self._leaf(path, self._settings.rule(path), expected, found)
        whole = expected if expected is not _NOTHING else found
        if isinstance(whole, Mapping):
            return self._of_objects(path, expected, found)
        return self._of_lists(f"{path}[]", _items(expected), _items(found))

    def _leaf(self, path: str, rule: Rule, expected: Json, found: Json) -> list[Leaf]:
        if rule.compare == "ignore":
            return []
        if self._settings.missing_is_null and found is _NOTHING:
            found = None
        if expected is _NOTHING:
            fine = self._settings.extra == "ignore" or (self._settings.missing_is_null and found is None)
            return [] if fine else [Leaf(path, rule.weight, 0.0, _NOTHING, found)]
        ours, theirs = expected, found
        if self._settings.lists == "match" and _is_list(ours) != _is_list(theirs):
            ours, theirs = _unordered(ours), _unordered(theirs)
        right = 0.0 if found is _NOTHING else _compared(rule, path, ours, theirs)
        return [Leaf(path, rule.weight, right, expected, found)]

    def _of_objects(self, path: str, expected: Json, found: Json) -> list[Leaf]:
        ours, theirs = (value if isinstance(value, Mapping) else {} for value in (expected, found))
        inside = []
        for key in dict.fromkeys([*ours, *theirs]):
            below = f"{path}.{key}" if path else str(key)
            inside += self.leaves(below, ours.get(key, _NOTHING), theirs.get(key, _NOTHING))
        return inside

    def _of_lists(self, path: str, expected: Sequence[Json], found: Sequence[Json]) -> list[Leaf]:
        pairs = self._paired(path, expected, found)
        ours, theirs = {one for one, _ in pairs}, {other for _, other in pairs}
        inside = [leaf for one, other in pairs for leaf in self.leaves(path, expected[one], found[other])]
        for at, item in enumerate(expected):
            inside += self.leaves(path, item, _NOTHING) if at not in ours else []
        for at, item in enumerate(found):
            inside += self.leaves(path, _NOTHING, item) if at not in theirs else []
        return inside

    def _paired(self, path: str, expected: Sequence[Json], found: Sequence[Json]) -> list[tuple[int, int]]:
        """Positions that belong together: the most right, and then the least left over."""
        if self._settings.lists == "order":
            return [(at, at) for at in range(min(len(expected), len(found)))]
        pairs = _equal(expected, found)
        ours = sorted(set(range(len(expected))) - {one for one, _ in pairs})
        theirs = sorted(set(range(len(found))) - {other for _, other in pairs})
        count = len(ours) * len(theirs)
        if count <= 1 or count > self._pairs_left:
            return [*pairs, *zip(ours, theirs, strict=False)]
        self._pairs_left -= count
        best = self._assigned(path, [expected[at] for at in ours], [found[at] for at in theirs])
        return [*pairs, *((ours[one], theirs[other]) for one, other in best)]

    def _assigned(self, path: str, expected: Sequence[Json], found: Sequence[Json]) -> list[tuple[int, int]]:
        from scipy.optimize import linear_sum_assignment

        ours = [self._worth(self.leaves(path, item, _NOTHING)) for item in expected]
        theirs = [self._worth(self.leaves(path, _NOTHING, item)) for item in found]
        gain = np.zeros((len(expected), len(found)))
        for one, item in enumerate(expected):
            for other, given in enumerate(found):
                right, size = self._worth(self.leaves(path, item, given))
                # Left alone, an item may be right too (a null that is missing) and takes its own room.
                spared = ours[one][1] + theirs[other][1] - size
                gain[one, other] = right - ours[one][0] - theirs[other][0] + 1e-6 * spared
        rows, columns = linear_sum_assignment(gain, maximize=True)
        return [(int(one), int(other)) for one, other in zip(rows, columns, strict=True)]

    def _worth(self, leaves: Sequence[Leaf]) -> tuple[float, float]:
        """What is right, and out of how much."""
        return sum(leaf.weight * leaf.right for leaf in leaves), self._settings.size(leaves)


def _covers(named: str, path: str) -> bool:
    """The path is the one named, or leads below it."""
    return path == named or path.startswith((f"{named}.", f"{named}["))


def _equal(expected: Sequence[Json], found: Sequence[Json]) -> list[tuple[int, int]]:
    """Positions of items that are the very same."""
    places: dict[str, list[int]] = {}
    for at, item in enumerate(found):
        places.setdefault(canonical(item), []).append(at)
    texts = [(at, canonical(item)) for at, item in enumerate(expected)]
    return [(at, places[text].pop(0)) for at, text in texts if places.get(text)]


def _is_list(value: Json) -> bool:
    return isinstance(value, list | tuple)


def _unordered(value: Json) -> Json:
    """The same value whatever order its lists came in: one beside something else is compared as text."""
    if isinstance(value, Mapping):
        return {name: _unordered(item) for name, item in value.items()}
    return sorted(map(_unordered, value), key=canonical) if isinstance(value, list | tuple) else value


def _inner(expected: Json, found: Json) -> bool:
    """There are fields below: an object or list that is not empty, beside one of its kind or nothing of its kind."""
    whole = expected if expected is not _NOTHING else found
    if isinstance(whole, Mapping):
        return bool(whole) or (isinstance(found, Mapping) and bool(found))
    if isinstance(whole, list | tuple):
        return bool(whole) or (isinstance(found, list | tuple) and bool(found))
    return False


def _items(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list | tuple) else ()


def _compared(rule: Rule, path: str, expected: Json, found: Json) -> float:
    """How right the found value is. Raises: ValueError for an expected value that the rule cannot be used on."""
    if expected is None or found is None:
        return float(expected is None and found is None)
    if rule.compare in ("exact", "normalised"):
        return float(equal_json(expected, found, text=rule.compare == "normalised"))
    ours, theirs = plain(thawed(expected)), plain(thawed(found))
    if rule.compare == "numeric":
        return float(_near(path, ours, theirs, rule.tolerance))
    if rule.compare == "date":
        same = same_date(ours, theirs)
        return float(normalise(ours) == normalise(theirs) if same is None else same)
    one, other = normalise(ours), normalise(theirs)
    if rule.compare == "contains":
        return float(one in other if one else not other)
    return difflib.SequenceMatcher(None, other, one, autojunk=False).ratio()


def _near(path: str, expected: str, found: str, tolerance: float) -> bool:
    wanted, given = last_number(expected), last_number(found)
    if wanted is None:
        raise ValueError(f"field {path!r} expects {expected!r}, which holds no number; compare it in another way")
    return given is not None and abs(given - wanted) <= max(tolerance, 1e-9 * abs(wanted))


def _reason(leaves: Iterable[Leaf]) -> str:
    """Which fields are not right, as expected and as found."""
    said = []
    for leaf in leaves:
        if leaf.right < 1:
            expected, found = (
                "nothing" if v is _NOTHING else shown(thawed(v), 40) for v in (leaf.expected, leaf.found)
            )
            said.append(f"{leaf.path}: expected {expected}, found {found}")
    more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more


def _paths(value: Json, path: str) -> Iterable[str]:
    """Every path at and below a value."""
    if path:
        yield path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        yield f"{path}[]"
        for item in value:
            yield from _paths(item, f"{path}[]")
