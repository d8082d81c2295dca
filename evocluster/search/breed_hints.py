"""What breeding is told of the search: the functions behind its lines in `hints.HINTS`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

import numpy as np

from evocluster.records import Json
from evocluster.search.breed_form import MUTATION
from evocluster.search.ground import Ground
from evocluster.search.pedigree import CLIPPED
from evocluster.search.population import Individual

TWINS = 0.9
"""Rubrics more alike than this (difflib's ratio) are near twins; one of them is shown."""
SHOWN = 8
"""Rubrics in a list at most."""
LOOKED = 64
"""Different rubrics that are looked at to find those to show, the best first: comparing texts takes time."""
CASES = 3
"""Right cases told at most."""


def mutation_prompt(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """The parent's mutation prompt; '' where it has none, and then the operator draws one."""
    return str(parents[0].notes.get(MUTATION, "")) if parents else ""


def description(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """What the problem is: the rubric of the first start; '' without one."""
    first = next(iter(ground.starts.values()), None)
    return str(first.genome.genes.get("rubric", "")) if first is not None else ""


def ranked(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """Rubrics of members, the best of every group of near twins, in ascending order of how surely right they are."""
    best: dict[str, float] = {}
    for one in ground.population.members:
        text = str(one.genome.genes.get("rubric", ""))[:CLIPPED]
        best[text] = max(best.get(text, -np.inf), one.careful[0])
    chosen: list[str] = []
    for text in sorted(best, key=lambda text: (-best[text], text))[:LOOKED]:
        if len(chosen) < SHOWN and not any(twins(text, other) for other in chosen):
            chosen.append(text)
    return chosen[::-1]


@lru_cache(maxsize=4096)
def twins(one: str, other: str) -> bool:
    """Two texts are nearly equal."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    # The quick ones are upper bounds of the ratio.
    return min(matcher.real_quick_ratio(), matcher.quick_ratio()) > TWINS and matcher.ratio() > TWINS


def lineage(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """Rubrics of the parent's ancestors, and its own, that were the best of their time; the oldest first."""
    return list(ground.pedigree.of(parents[0].genome.id)) if parents else []


def right(ground: Ground, parents: Sequence[Individual], rng: np.random.Generator) -> Json:
    """Some train cases that the parent got right, as ids and outputs."""
    cases = [one for one in parents[0].cases.right if one.twin == 0] if parents else []
    chosen = sorted(int(i) for i in rng.permutation(len(cases))[:CASES])
    return [{"example": cases[i].example, "twin": 0, "output": cases[i].output, "right": True} for i in chosen]
