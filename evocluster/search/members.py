"""What is said of a member of a front: its lineage, and every measure with its interval on every split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from evocluster.records import Genome, Item, Record
from evocluster.search.objectives import FOUR, Interval, Objective, Tally, built_in
from evocluster.search.population import Individual
from evocluster.search.recommend import Rule


class Member(Record):
    """One genome of a front with all that was measured of it."""

    genome: Genome
    generation: int
    parents: tuple[str, ...]
    """Ids of its parents."""
    operator: str
    """What made it; 'start' and 'warm' were given."""
    recommended: bool = False
    why: str = ""
    """The rule that recommends it, and by what value."""
    train: Mapping[str, Interval] = Field(default_factory=dict)
    """Objective name -> value and 95 % interval; empty where it was not evaluated on the split."""
    validation: Mapping[str, Interval] = Field(default_factory=dict)
    test: Mapping[str, Interval] = Field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Mapping[str, Interval]]] = Field(default_factory=dict)
    """With several tasks: task -> split -> the same of its examples alone."""


def measures(objectives: Sequence[Objective], rule: Rule, target: str) -> tuple[Objective, ...]:
    """Everything reported of a member: the objectives, the usual four, the composite, and what rule and
    target name.
    """
    named = {one.name: one for one in objectives}
    for name in (*(one.name for one in FOUR), "composite", *rule.names, target):
        if name not in named:
            named[name] = built_in(name)
    return tuple(named.values())


def describe(one: Individual, named: Sequence[Objective], seed: int, choice: tuple[str, str] = ("", "")) -> Member:
    """What is known of a member; the same seed gives the same intervals.

    `choice`: the recommended id and why.
    """

    def intervals(tally: Tally | None) -> dict[str, Interval]:
        if tally is None or not tally.items:
            return {}
        return {o.name: tally.interval(o, np.random.default_rng([seed, 1, 1])) for o in named}

    names = dict.fromkeys(name for tally in one.tallies.values() for name in tally.tasks)
    parts = {
        name: {split: found for split, tally in one.tallies.items() if (found := intervals(tally.part(name)))}
        for name in names
    }
    chosen = one.genome.id == choice[0]
    return Member(
        genome=one.genome,
        generation=one.generation,
        parents=one.parents,
        operator=one.operator,
        recommended=chosen,
        why=choice[1] if chosen else "",
        train=intervals(one.tallies.get("train")),
        validation=intervals(one.tallies.get("validation")),
        test=intervals(one.tallies.get("test")),
        tasks=parts,
    )


def blocks(items: Sequence[Item], examples: int) -> tuple[tuple[Item, ...], ...]:
    """Items in their order, cut after every `examples` examples; twins and replicates stay with theirs."""
    cut: list[list[Item]] = []
    seen: set[str] = set()
    for item in items:
        if not cut or (item.example not in seen and len(seen) == examples):
            cut.append([])
            seen = set()
        seen.add(item.example)
        cut[-1].append(item)
    return tuple(tuple(block) for block in cut)


def enough(train: Sequence[tuple[Item, ...]]) -> int:
    """How many items make a mean that is believed: those of two blocks, or of all where there are fewer."""
    return sum(len(block) for block in train[:2])
