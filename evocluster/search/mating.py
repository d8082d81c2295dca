"""Which operator makes the next child, and of whom: an operator that can act on the present population.

A proposal that must fail costs a place in the queue and teaches the bandit nothing of the operator: `merge` of two
equal rubrics, `similar` for a parent that fails nothing. So a drawn operator gets parents that suit it, and is left
out of the draw where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from evocluster.search.ground import Ground
from evocluster.search.hints import disputed, failing
from evocluster.search.operators import Operator
from evocluster.search.population import Individual

TRIES = 4
"""Draws of a parent before any that suits is taken."""
Mates = Callable[[Ground, Operator, np.random.Generator], list[Individual] | None]


def pick_operator(ground: Ground, rng: np.random.Generator) -> tuple[str, list[Individual]]:
    """The name of an operator and its parents; `seed` and none for the share of immigrants, and where no other can
    act.
    """
    if not len(ground.population) or rng.random() < ground.settings.immigrants:
        return "seed", []
    left = sorted(ground.credit.probabilities())
    while left:
        name = ground.credit.draw(rng, among=left)
        parents = mates(ground, ground.operators[name], rng)
        if parents is not None:
            return name, parents
        left.remove(name)
    return "seed", []


def mates(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    """Parents that an operator can make a child of; None when there are none."""
    return RULES.get(operator.name, _any)(ground, operator, rng)


def _any(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    return ground.parents(operator.arity, rng)


def _two(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    """Two members that are not one."""
    return _apart(ground, rng, lambda one: one.genome.id)


def _two_rubrics(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    """Two members with different rubrics."""
    return _apart(ground, rng, lambda one: str(one.genome.genes.get("rubric")))


def _apart(ground: Ground, rng: np.random.Generator, key: Callable[[Individual], str]) -> list[Individual] | None:
    """A parent, and another one that differs in `key`: by the usual draw if it can be, else anybody."""
    first = ground.parent(rng)
    others = [one for one in ground.population.members if key(one) != key(first)]
    if not others:
        return None
    for _ in range(TRIES):
        second = ground.parent(rng)
        if key(second) != key(first):
            return [first, second]
    return [first, others[int(rng.integers(len(others)))]]


def _who_fails(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    """A parent that fails examples with demos near to them."""
    for _ in range(TRIES):
        one = ground.parent(rng)
        if any(map(ground.space.near.get, failing(ground, [one], rng))):
            return [one]
    return None


def _who_disagree(ground: Ground, operator: Operator, rng: np.random.Generator) -> list[Individual] | None:
    """Any parent, while members disagree about examples with demos near to them."""
    return [ground.parent(rng)] if any(map(ground.space.near.get, disputed(ground, (), rng))) else None


RULES: Mapping[str, Mates] = {
    "crossover": _two,
    "merge": _two_rubrics,
    "similar": _who_fails,
    "disputed": _who_disagree,
}
"""Operators that do not take just any parents."""
