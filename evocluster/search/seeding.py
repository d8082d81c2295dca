"""The first proposals of a search: start genomes on all of train, a diverse population on one block."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from evocluster.records import Genome, Item, Proposal
from evocluster.search.operators import EVALUATE
from evocluster.search.space import Space

NEAR = 4
"""Every NEAR-th random genome is crossed with a given one: some of the diversity lies around what runs today.
"""
TRIES = 20
"""Draws for each genome that is still missing; a small space has fewer genomes than asked for."""


def seeding(
    space: Space,
    start: Sequence[Genome],
    warm: Sequence[Genome],
    blocks: Sequence[tuple[Item, ...]],
    population: int,
    seed: int,
) -> list[Proposal]:
    """Start genomes on every block, then warm ones and random ones on the first, all distinct."""
    rng = np.random.default_rng([seed, 0, 0])
    given = {genome.id: genome for genome in start}
    plans: list[tuple[str, Genome, tuple[Item, ...]]] = []
    for genome in given.values():
        plans += [(EVALUATE, genome, block) for block in blocks]
    early = {genome.id: genome for genome in (space.fix(one.genes) for one in warm)}
    early = {id: genome for id, genome in early.items() if id not in given}
    plans += [(EVALUATE, genome, blocks[0]) for genome in early.values()]
    known = {**given, **early}
    plans += [("seed", genome, blocks[0]) for genome in diverse(space, population - len(known), known, rng)]
    return [
        Proposal(
            number=number,
            operator=operator,
            parents=(genome,) if operator == EVALUATE else (),
            hints={} if operator == EVALUATE else {"genome": genome.genes},
            items=items,
            seed=int(rng.integers(2**53)),
            purpose="seed",
        )
        for number, (operator, genome, items) in enumerate(plans)
    ]


def diverse(
    space: Space, count: int, known: Mapping[str, Genome], rng: np.random.Generator, avoided: Collection[str] = ()
) -> list[Genome]:
    """`count` genomes not among the known (fewer in a small space) that cover the space evenly.

    `avoided`: more ids that none of them may have.
    """
    taken = {*known, *avoided}
    chosen: dict[str, Genome] = {}
    given = list(known.values())
    for at, genome in enumerate(space.spread(max(0, count), rng)):
        near = bool(given) and at % NEAR == NEAR - 1
        child = space.mix(given[at // NEAR % len(given)], genome, rng) if near else genome
        if child.id not in taken:
            chosen.setdefault(child.id, child)
    for _ in range(TRIES * max(0, count)):
        if len(chosen) >= count:
            break
        genome = space.sample(rng)
        if genome.id not in taken:
            chosen.setdefault(genome.id, genome)
    return list(chosen.values())
