"""What a person is told about wrong data, whatever the model; and what is taken for a secret."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from evocluster.complaints import Complaints, secrets
from evocluster.errors import ConfigError
from evocluster.parts import Part
from evocluster.records import Json


class Leaf(Part):
    kind: Literal["leaf"] = "leaf"
    size: int | bool | None = Field(default=1)


class Twig(Part):
    kind: Literal["twig"] = "twig"
    leaves: tuple[Leaf, ...] = Field(default=(), max_length=2)


class Tree(Part):
    grown: Annotated[Leaf | Twig, Field(discriminator="kind")]
    weight: float = Field(gt=0)


class Names(Part):
    names: tuple[str, ...] = Field(min_length=2)


def test_any_model_can_be_fitted() -> None:
    complaints = Complaints("tree", {"grown": {"kind": "twig", "leaves": [{"size": "big"}, {"sise": 1}]}, "weight": 0})
    with pytest.raises(ConfigError) as caught:
        complaints.fit(Tree)
    lines = sorted(str(caught.value).split("\n"))
    assert lines[0].startswith("tree: grown.leaves.0.size: ")
    assert lines[0].count("; or ") == 1
    assert lines[1] == "tree: grown.leaves.1.sise: unknown setting; allowed: kind, size; did you mean 'size'?"
    assert lines[2] == "tree: weight: should be greater than 0 (got 0); allowed: a number above 0"
    assert Complaints("tree", {"grown": {"kind": "leaf"}, "weight": 1}).fit(Tree).weight == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a"], "names: should have at least 2 items (got ['a']); allowed: a list with at least one entry"),
        (("a",), "names: should have at least 2 items (got ['a']); allowed: a list with at least one entry"),
        (["a", 1], "names.1: should be a valid string (got 1); allowed: a text; put it in quotes"),
        ("a", "names: should be a list (got 'a'); allowed: a list with at least one entry"),
    ],
)
def test_lists_are_told_in_words_of_yaml_and_once(given: Json, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Complaints("list", {"names": given}).fit(Names)
    assert str(caught.value) == f"list: {said}"


def test_names_of_variables_are_no_secrets() -> None:
    innocent = {
        "key_env": "AZURE_OPENAI_API_KEY_2",
        "other_key_env": "my_lower_case_key_2_env",
        "keywords": ["task-management-is-risk-management-2"],
        "max_tokens": 12345678901234567890123,
        "text": "desk-1234567890 is a text with spaces",
    }
    assert secrets(innocent) == []
