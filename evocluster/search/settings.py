"""Settings of the search, as they stand under `search:` in a config."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from pydantic import Field, model_validator

from evocluster.parts import Part
from evocluster.records import Json
from evocluster.search.operators import GROUPS, NAMES


class Search(Part):
    """Settings of the search."""

    strategy: Literal["evolve", "refine", "breed", "hybrid"] = "evolve"
    """evolve: a population; refine: one configuration, its prompt improved by reflection; breed: a population that
    evolves its mutation prompts too (PromptBreeder); hybrid: evolve, then refine the winner."""
    selection: Literal["race", "steady", "generational", "random"] = "race"
    """How evaluations are shared out. race: children stop as soon as they are surely behind; steady: first block, then
    more for the promising; for comparison generational (plain NSGA-II, everybody on everything) and random."""
    population: int = Field(default=20, ge=2, le=10_000)
    block: int = Field(default=16, ge=1)
    """Train examples a child is first tried on, and the size of every further portion."""
    finalists: int = Field(default=6, ge=1)
    """Members checked on validation, besides the start."""
    replicates: int = Field(default=0, ge=0, le=50)
    """Further answers to every validation example, of those checked whose temperature is above 0 or that vote."""
    lookahead: int | None = Field(default=None, ge=1)
    """How many proposals may be out beyond the last committed one; default: from in_flight and block."""
    mode: Literal["steady", "generational"] = "steady"
    """Of `selection: steady`, for comparison. generational: a generation is asked for once all of the one before is
    committed."""
    alpha: float = Field(default=0.2, gt=0, lt=1)
    """The chance that a race sends the best away, over all looks at it."""
    screen: int = Field(default=16, ge=1, le=1000)
    """Children made, without a call, for every other one that is tried, which is the one believed best. 1: no such
    choice, which found the best configuration more often where only two genes together bring it."""
    rewriter: str | None = None
    """Name of the model that rewrites rubrics; default: the genome's own."""
    reflector: str | None = None
    """Name of the model that reads failures and proposes prompts; default: the rewriter."""
    candidates: int = Field(default=3, ge=1, le=10)
    """Prompts that one reflection proposes."""
    reflect_tokens: int = Field(default=1200, ge=50, le=100_000)
    """What the answer of one reflection may take; a reflector that thinks aloud first needs more, a small one less."""
    memory_tokens: int = Field(default=1200, ge=100, le=20_000)
    """What the memory given to rewrites may take of their prompt."""
    restart_after: int | None = Field(default=3, ge=1)
    """Generations without progress of the hypervolume after which part of the population is replaced; null: never.
    Not under `selection: steady`."""
    operators: tuple[str, ...] | None = None
    """Which operators may act; default: all that can and that pay, and of `strategy: breed` its nine. `breed` stands
    for those nine, which may act elsewhere too."""
    variants: int = Field(default=3, ge=1, le=10)
    """Of `strategy: breed`. Children that the winner of a tournament gets, each by another draw of an operator."""
    extend: bool = True
    """Of `selection: steady`. Give promising members more blocks; false: a member is judged on its first block for
    ever."""
    immigrants: float = Field(default=0.05, ge=0, le=1)
    """Share of children that are random genomes; `strategy: breed` has none."""

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, given: Json) -> Json:
        """Configs of before there was a race name `mode`, and mean what it stood for then."""
        if isinstance(given, dict) and "mode" in given and "selection" not in given:
            return {**given, "selection": "steady"}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Search:
        """What one setting takes the sense from is refused, not ignored."""
        if self.strategy != "evolve" and self.selection in ("generational", "random"):
            raise ValueError(
                f"selection {self.selection!r} with strategy {self.strategy!r}: it is for `strategy: evolve` alone, to "
                "compare with; allowed here: race, steady; leave `selection` out"
            )
        if self.selection != "steady" and (self.mode != "steady" or not self.extend):
            name, value = ("mode", self.mode) if self.mode != "steady" else ("extend", self.extend)
            raise ValueError(
                f"{name} {value!r} with selection {self.selection!r}: it is a setting of `selection: steady` alone; "
                f"leave `{name}` out, or write `selection: steady`"
            )
        return self

    @classmethod
    def in_editors(cls, made: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema with the names of the operators."""
        made["properties"]["operators"]["anyOf"][0]["items"] = {"enum": [*NAMES, *GROUPS]}
        return made

    def ahead(self, in_flight: int) -> int:
        """The lookahead: the setting, else enough to keep `in_flight` evaluations under way, whoever works."""
        return self.lookahead or max(4, ceil(3 * in_flight / self.block) + 1)
