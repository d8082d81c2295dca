"""What a person is told about wrong data, whatever the model; and what is taken for a secret."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from evocluster.complaints import Complaints, secrets
from evocluster.errors import ConfigError
from evocluster.parts import Part


class Leaf(Part):
    kind: Literal["leaf"] = "leaf"
    size: int | bool | None = Field(default=1)


class Twig(Part):
    kind: Literal["twig"] = "twig"
    leaves: tuple[Leaf, ...] = Field(default=(), max_length=2)


class Tree(Part):
    grown: Annotated[Leaf | Twig, Field(discriminator="kind")]
    weight: float = Field(gt=0)


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


def test_names_of_variables_are_no_secrets() -> None:
    innocent = {
        "key_env": "AZURE_OPENAI_API_KEY_2",
        "other_key_env": "my_lower_case_key_2_env",
        "keywords": ["task-management-is-risk-management-2"],
        "max_tokens": 12345678901234567890123,
        "text": "desk-1234567890 is a text with spaces",
    }
    assert secrets(innocent) == []
