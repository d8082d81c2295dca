"""How exported files hold answers against a schema: in the words of the library that the run used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from export_world import scoring
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema.validators import validator_for
from portable_world import loaded
from test_export_requests import SCHEMA, exported

from evocluster.cli.flaws import flaw
from evocluster.cli.standalone import standalone
from evocluster.records import Genome

LEAVES = st.none() | st.booleans() | st.integers(-2, 10) | st.sampled_from([1.0, 2.5, "", "a", "Ab", "today", "Bonn"])
NAMES = st.sampled_from(["city", "people", "when", "tags", "x y", "it's"])
JSON = st.recursive(LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each), max_leaves=6)
RULES: list[dict[str, Any]] = [
    SCHEMA,
    {"type": ["object", "null"], "properties": {"x y": {"type": "number", "maximum": 3}, "city": {"const": True}}},
    {"minItems": 1, "maxItems": 2, "items": {"enum": [1, "a", None, False]}, "minLength": 1, "maxLength": 3},
    {
        "required": ["city"],
        "additionalProperties": False,
        "properties": {"tags": {"minItems": 2}, "it's": {"type": "null"}},
    },
    {"exclusiveMinimum": 0, "minimum": 1, "type": "integer", "title": "n", "maxLength": 0},
]
MODEL = """
from pydantic import BaseModel, field_validator


class Booking(BaseModel):
    city: str
    people: int

    @field_validator("people")
    @classmethod
    def even(cls, people: int) -> int:
        if people % 2:
            raise ValueError("must be even")
        return people
"""


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(RULES), JSON)
def test_flaws_are_told_in_the_words_of_jsonschema(schema: dict[str, Any], value: Any) -> None:
    error = next(validator_for(schema)(schema).iter_errors(value), None)
    assert flaw(value, schema) == (f"{error.message} at {error.json_path}" if error else "")


def test_the_users_pydantic_model_still_decides(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODEL)
    plan = scoring(tmp_path, "extraction", [], [{"city": "Bonn", "people": 2}] * 2, json_schema="models.py:Booking")
    text = standalone(exported(plan, Genome(genes={"model": "one", "rubric": "Read."})))
    assert str(tmp_path) not in text
    assert '"model": "models.py:Booking"' in text
    winner = loaded(text)
    winner.__dict__["__file__"] = str(tmp_path / "winner.py")
    assert winner.read('{"city": "Bonn", "people": 4}').ok
    assert winner.read('{"city": "Bonn", "people": 3}').problem == "people: Value error, must be even"
    sys.modules.pop("models", None)


def test_a_schema_of_more_than_everyday_rules_needs_jsonschema(tmp_path: Path) -> None:
    schema = {"anyOf": [{"$ref": "#/$defs/city"}], "$defs": {"city": {"type": "object", "required": ["city"]}}}
    plan = scoring(tmp_path, "extraction", [], [{"city": "Bonn"}] * 2, json_schema=schema)
    text = standalone(exported(plan, Genome(genes={"model": "one", "rubric": "Read."})))
    assert '# dependencies = ["openai>=1.40", "jsonschema>=4.20"]' in text
    assert "pip install openai jsonschema" in text
    found = loaded(text).read('{"town": "Bonn"}')
    assert found.problem == "{'town': 'Bonn'} is not valid under any of the given schemas at $"
