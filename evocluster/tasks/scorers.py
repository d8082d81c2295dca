"""Scorers: each a Part that says how good one output is, from 0 to 1, against what the example expects.

A scorer reads `execution.output` (the answer as text) or `execution.parsed` (label, JSON). It may raise:
that is the failure of this evaluation. Learned from pydantic-evals: an evaluator is its own YAML settings.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

from pydantic import Field, field_validator

from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, Json, Score
from evocluster.tasks.assertions import (
    Cost,
    Includes,
    IsJson,
    JsonPath,
    Latency,
    Length,
    Matches,
    Number,
    OneOf,
)
from evocluster.tasks.execution import Execution
from evocluster.tasks.fields import Fields
from evocluster.tasks.function import Function
from evocluster.tasks.judge import Judge
from evocluster.tasks.patterns import checked_pattern, escape, search
from evocluster.tasks.recall import Recall
from evocluster.tasks.words import as_json, equal_json, last_number, normalise, plain


class Scorer(Protocol):
    """Judges one execution."""

    @property
    def name(self) -> str:
        """What its score is called; unique in a task."""
        ...

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score: ...


class Exact(Part):
    """1 when the output is the expected text, surrounding spaces aside."""

    kind: Literal["exact"] = "exact"
    name: str = "exact"

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        return _verdict(execution.output.strip() == plain(example.expected).strip(), example)


class Normalised(Part):
    """1 when the output is the expected text but for case, spacing and punctuation."""

    kind: Literal["normalised"] = "normalised"
    name: str = "normalised"

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        return _verdict(normalise(execution.output) == normalise(plain(example.expected)), example)


class Label(Part):
    """1 when the label read from the output is the expected one."""

    kind: Literal["label"] = "label"
    name: str = "label"

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        if execution.parsed is None:
            return Score(value=0.0, reason=f"no label in the output; expected {plain(example.expected)!r}")
        return _verdict(execution.parsed == plain(example.expected), example)


class Numeric(Part):
    """1 when the last number in the output is the expected number within a tolerance."""

    kind: Literal["numeric"] = "numeric"
    name: str = "numeric"
    absolute: float = Field(default=1e-6, ge=0)
    """Tolerated difference."""
    relative: float = Field(default=0.0, ge=0)
    """Tolerated difference as a share of the expected number; the larger of both counts."""

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ValueError when no number is expected."""
        expected, found = last_number(plain(example.expected)), last_number(execution.output)
        if expected is None:
            raise ValueError(f"expected {example.expected!r} holds no number; use another scorer for this data")
        if found is None:
            return Score(value=0.0, reason=f"no number in the output; expected {expected!r}")
        return _verdict(abs(found - expected) <= max(self.absolute, self.relative * abs(expected)), example)


class Contains(Part):
    """1 when the output contains the expected text; for a list, the share of its texts it contains."""

    kind: Literal["contains"] = "contains"
    name: str = "contains"
    ignore_case: bool = True

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: ValueError for an empty list."""
        wanted = example.expected if isinstance(example.expected, list | tuple) else (example.expected,)
        if not wanted:
            raise ValueError("expected is an empty list; name at least one text")
        texts = [self._folded(plain(each)) for each in wanted]
        missing = [text for text in texts if text not in self._folded(execution.output)]
        reason = f"missing {', '.join(map(repr, missing))}" if missing else ""
        return Score(value=1 - len(missing) / len(texts), reason=reason)

    def _folded(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text


class Regex(Part):
    """1 when a regular expression is found in the output; `{expected}` in it stands for the expected text."""

    kind: Literal["regex"] = "regex"
    name: str = "regex"
    pattern: str
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        checked_pattern(pattern.replace("{expected}", "expected"))
        return pattern

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        """Raises: TimeoutError for a pattern that backtracks without end."""
        pattern = self.pattern.replace("{expected}", escape(plain(example.expected)))
        found = search(pattern, execution.output, self.ignore_case) is not None
        return Score(value=float(found), reason="" if found else f"{pattern!r} not found")


class JsonEqual(Part):
    """1 when the JSON read from the output equals the expected JSON (1 and 1.0 are equal)."""

    kind: Literal["json_equal"] = "json_equal"
    name: str = "json_equal"
    partial: bool = False
    """The share of equal fields instead, text compared without case, spacing and punctuation; extra fields
    count against it, and null equals only null."""

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        expected = as_json(example.expected)
        found = as_json(execution.parsed)
        if found is None and expected is not None:
            return Score(value=0.0, reason="no JSON in the output")
        if self.partial and isinstance(expected, Mapping) and isinstance(found, Mapping):
            return _share(expected, found)
        return _verdict(equal_json(found, expected), example)


class Similarity(Part):
    """How near the output is to the expected text, from 0 to 1, no threshold."""

    kind: Literal["similarity"] = "similarity"
    name: str = "similarity"
    measure: Literal["ratio", "tokens"] = "ratio"
    """ratio: matching characters (Ratcliff and Obershelp 1988, difflib); tokens: F1 of normalised words
    (Rajpurkar et al. 2016, SQuAD)."""

    async def score(self, example: Example, execution: Execution, llm: LLM) -> Score:
        output, expected = normalise(execution.output), normalise(plain(example.expected))
        if self.measure == "ratio":
            return Score(value=difflib.SequenceMatcher(None, output, expected, autojunk=False).ratio())
        said, wanted = Counter(output.split()), Counter(expected.split())
        total = said.total() + wanted.total()
        return Score(value=2 * (said & wanted).total() / total if total else 1.0)


Compared = Exact | Normalised | Label | Numeric | Contains | Regex | JsonEqual | Similarity
"""Scorers that compare with what the example expects."""
Asserted = Includes | Matches | OneOf | IsJson | JsonPath | Length | Number | Cost | Latency
"""Scorers that look at the output alone."""
AnyScorer = Annotated[Compared | Fields | Asserted | Function | Recall | Judge, Field(discriminator="kind")]


def _verdict(right: bool, example: Example) -> Score:
    return Score(value=float(right), reason="" if right else f"expected {plain(example.expected)!r}")


def _share(expected: Mapping[str, Json], found: Mapping[str, Json]) -> Score:
    fields = list(dict.fromkeys([*expected, *found]))
    shared = expected.keys() & found.keys()
    wrong = [field for field in fields if field not in shared or not equal_json(expected[field], found[field], True)]
    value = 1 - len(wrong) / len(fields) if fields else 1.0
    return Score(value=value, reason=f"wrong: {', '.join(wrong)}" if wrong else "")
