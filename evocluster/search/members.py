"""What is said of a member of a front: its lineage, and every measure with its interval on every split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from evocluster.records import Genome, Item, Record, Split
from evocluster.search.across import Tasks
from evocluster.search.objectives import FOUR, Interval, Objective, Tally, built_in
from evocluster.search.paired import Versus, versus
from evocluster.search.population import Individual
from evocluster.search.recommend import Rule


class Honest(Interval):
    """What the choice of a member is worth where it was not made: see `winner`, and `worth` for its interval."""

    folds: int
    split: Split
    """Whose examples were left out by turns."""


class Choice(NamedTuple):
    """The recommended member, why, and what can be said of it that nobody else needs."""

    genome: str = ""
    why: str = ""
    honest: Mapping[str, Honest] = {}
    """Objective name -> value, as if it had not been chosen by it."""
    start: Individual | None = None
    """Whom it is compared with on test."""


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
    feasible: bool = True
    """It keeps the constraints on validation, or before that is known on train."""
    train: Mapping[str, Interval] = Field(default_factory=dict)
    """Objective name -> value and 95 % interval; empty where it was not evaluated on the split."""
    validation: Mapping[str, Interval] = Field(default_factory=dict)
    test: Mapping[str, Interval] = Field(default_factory=dict)
    honest: Mapping[str, Honest] = Field(default_factory=dict)
    """Of the recommended one: objective name -> what validation says without the luck of having been chosen by it."""
    honest_gap: Mapping[str, Interval] = Field(default_factory=dict)
    """The honest value less that on test, and its interval."""
    versus_start: Mapping[str, Versus] = Field(default_factory=dict)
    """Of the recommended one: objective name -> how far it is from the start on the test examples of both."""
    tasks: Mapping[str, Mapping[str, Mapping[str, Interval]]] = Field(default_factory=dict)
    """With several tasks: task -> split -> the same of its examples alone."""


def measures(
    objectives: Sequence[Objective], rule: Rule, target: str, limited: Sequence[Objective] = ()
) -> tuple[Objective, ...]:
    """Everything reported of a member: the objectives, the usual four, the composite, what rule and target
    name, and what is `limited` by constraints.
    """
    named = {one.name: one for one in objectives}
    for name in (*(one.name for one in FOUR), "composite", *rule.names, target):
        if name not in named:
            named[name] = built_in(name)
    for one in limited:
        named.setdefault(one.name, one)
    return tuple(named.values())


def intervals(tally: Tally | None, named: Sequence[Objective], seed: int) -> dict[str, Interval]:
    """Every measure of a tally; nothing where nothing was evaluated. The same seed gives the same intervals."""
    if tally is None or not tally.items:
        return {}
    return {o.name: tally.interval(o, np.random.default_rng([seed, 1, 1])) for o in named}


def describe(one: Individual, named: Sequence[Objective], seed: int, choice: Choice = Choice()) -> Member:  # noqa: B008
    """What is known of a member."""

    names = dict.fromkeys(name for tally in one.tallies.values() for name in tally.tasks)
    parts = {
        name: {
            split: found for split, tally in one.tallies.items() if (found := intervals(tally.part(name), named, seed))
        }
        for name in names
    }
    chosen = one.genome.id == choice.genome
    decided = one.tallies.get("validation")
    if decided is None or not decided.items:
        decided = one.tally("train")
    test = intervals(one.tallies.get("test"), named, seed)
    honest = choice.honest if chosen else {}
    return Member(
        genome=one.genome,
        generation=one.generation,
        parents=one.parents,
        operator=one.operator,
        recommended=chosen,
        why=choice.why if chosen else "",
        feasible=not one.limits.violation(decided),
        train=intervals(one.tallies.get("train"), named, seed),
        validation=intervals(one.tallies.get("validation"), named, seed),
        test=test,
        honest=honest,
        honest_gap={name: _less(honest[name], test[name]) for name in honest if name in test},
        versus_start=_against(one, choice.start, named) if chosen and choice.start is not None else {},
        tasks=parts,
    )


def _less(one: Interval, other: Interval) -> Interval:
    """The difference of two independent values, its interval from theirs (Zou and Donner 2008)."""
    value = one.value - other.value
    low = value - np.hypot(one.value - one.low, other.high - other.value)
    return Interval(
        value=value, low=float(low), high=float(value + np.hypot(one.high - one.value, other.value - other.low))
    )


def _against(one: Individual, start: Individual, named: Sequence[Objective]) -> dict[str, Versus]:
    """Against the start on the test examples that both have: every mean, unless it is that of the worst of several
    tasks.
    """
    if one is start or not all(who.tallies.get("test") for who in (one, start)):
        return {}
    mine, theirs = one.tally("test").both(start.tally("test"))
    gaps = {o.name: mine.differences(theirs, o) for o in named if o.aggregate == "mean"}
    return {name: versus(found[0]) for name, found in gaps.items() if len(found) == 1 and len(found[0])}


def blocks(items: Sequence[Item], examples: int, tasks: Tasks | None = None) -> tuple[tuple[Item, ...], ...]:
    """Items in their order, cut after every `examples` examples; twins and replicates stay with theirs.

    With `tasks` (of the examples by their order) every block has some of each task that has enough for it.
    """
    cut: list[list[Item]] = []
    seen: set[str] = set()
    for item in items:
        if not cut or (item.example not in seen and len(seen) == examples):
            cut.append([])
            seen = set()
        seen.add(item.example)
        cut[-1].append(item)
    if tasks is None:
        return tuple(tuple(block) for block in cut)
    whole: dict[str, list[Item]] = {}
    for item in items:
        whole.setdefault(item.example, []).append(item)
    owners = {example: int(owner) for example, owner in zip(whole, tasks.of, strict=True)}
    dealt = _evened([list(dict.fromkeys(item.example for item in block)) for block in cut], owners)
    return tuple(tuple(item for example in block for item in whole[example]) for block in dealt)


def _evened(dealt: list[list[str]], owners: Mapping[str, int]) -> list[list[str]]:
    """The same blocks of examples; one that lacks a task with an example for every block swaps for one of it, with the
    nearest block that has two.
    """
    counts = [Counter(owners[example] for example in block) for block in dealt]
    sizes = Counter(owners.values())
    for at, block in enumerate(dealt):
        for task in sorted(task for task, size in sizes.items() if size >= len(dealt) and not counts[at][task]):
            much = max(counts[at], key=lambda other: (counts[at][other], -other))
            if counts[at][much] < 2 and sizes[much] >= len(dealt):
                break
            where = min((n for n in range(len(dealt)) if counts[n][task] > 1), key=lambda n: abs(n - at))
            given = max(n for n, example in enumerate(block) if owners[example] == much)
            taken = min(n for n, example in enumerate(dealt[where]) if owners[example] == task)
            block[given], dealt[where][taken] = dealt[where][taken], block[given]
            counts[at] += Counter({task: 1, much: -1})
            counts[where] += Counter({much: 1, task: -1})
    return dealt


def enough(train: Sequence[tuple[Item, ...]]) -> int:
    """How many items make a mean that is believed: those of two blocks, or of all where there are fewer."""
    return sum(len(block) for block in train[:2])
