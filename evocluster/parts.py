"""A part is its own settings: `kind` picks the class, the fields are its configuration, and the object does the work.

    class Exact(Part):
        kind: Literal["exact"] = "exact"
        ...
    AnyScorer = Annotated[Exact | Label, Field(discriminator="kind")]     # what a config field is typed as

so YAML `{kind: exact}` becomes a ready scorer with no factory beside it (pydantic discriminated unions). Learned from
pydantic-evals: an evaluator is its own YAML settings.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Settings that can work. Frozen; a misspelt setting is refused; state of a run lives in private attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
