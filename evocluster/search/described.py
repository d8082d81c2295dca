"""How the `space:` section is written, as JSON schema for editors: every known gene, its forms and its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocluster.search.genes import STYLES

Node = dict[str, Any]

_NUMBERS: Node = {"type": "object", "required": ["low", "high"], "additionalProperties": False}


def _choice(value: Node) -> list[Node]:
    """One value, or a list of them."""
    return [value, {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}]


def _range(end: Node) -> Node:
    log = {"type": "boolean", "description": "Spread and moved by its logarithm; low must be above 0."}
    step = {"type": "number", "exclusiveMinimum": 0, "description": "Values are low, low + step, low + 2 step..."}
    return {**_NUMBERS, "properties": {"low": end, "high": end, "step": step, "log": log}}


def _gene(text: str, value: Node, *more: Node) -> Node:
    return {"description": text, "anyOf": [*_choice(value), *more]}


_TEXT: Node = {"type": "string"}
_BOOL: Node = {"type": "boolean"}
_TEMPERATURE: Node = {"type": "number", "minimum": 0, "maximum": 2}
_IDS: Node = {"type": "array", "items": _TEXT, "uniqueItems": True}
_DEMOS: Node = {
    "type": "object",
    "required": ["max"],
    "additionalProperties": False,
    "properties": {
        "max": {"type": "integer", "minimum": 0, "description": "The most examples shown."},
        "min": {"type": "integer", "minimum": 0, "default": 0, "description": "The fewest examples shown."},
        "share": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": 0.5,
            "description": "Of train that demos are drawn from; configurations are scored on the rest of train.",
        },
    },
}
_SEEDS: Node = {
    "type": "object",
    "required": ["texts"],
    "additionalProperties": False,
    "properties": {
        "texts": {"type": "array", "items": _TEXT, "minItems": 1},
        "fixed": {"type": "boolean", "default": False, "description": "Only these texts: no rewriting."},
    },
}


def _whole(low: int) -> Node:
    return {"type": "integer", "minimum": low}


KNOWN: Mapping[str, Node] = {
    "rubric": _gene("The instruction: a text, or seed texts that rewriting may go beyond.", _TEXT, _SEEDS),
    "cot": _gene("Think step by step first.", _BOOL),
    "temperature": _gene("Of sampling, 0 to 2.", _TEMPERATURE, _range(_TEMPERATURE)),
    "max_tokens": _gene("Of the answer.", _whole(1), _range(_whole(1))),
    "model": _gene("Names of models under `models:`.", _TEXT),
    "demos": {
        "description": "Few-shot examples, always from train: {max: 8}, or a list of ids.",
        "anyOf": [_DEMOS, _IDS],
    },
    "demo_style": _gene(
        "chat: examples as turns; inline: all in one message; completion: plain text.", {"enum": list(STYLES)}
    ),
    "constrain": _gene("Only label names, or only JSON of the schema, may come out.", _BOOL),
    "label_names": _gene("How labels are called: as_is, spaced, letters, or a name under task.label_names.", _TEXT),
    "retriever_topk": _gene("How many retrieved passages the question is asked with.", _whole(0), _range(_whole(0))),
    "use_consensus": _gene(
        "How many samples vote on the answer (1: none do), or a list of models that do.",
        {"anyOf": [_whole(1), {"type": "array", "items": _TEXT, "minItems": 1}]},
    ),
}
"""Gene -> what may stand under its name. Any other name is a gene of the user's own."""


def section(made: Node) -> Node:
    """The schema of the whole section, out of that of a mapping."""
    return {**made, "properties": dict(KNOWN), "additionalProperties": True, "minProperties": 1}
