"""What an operator is told of the search so far: a function per hint, called where the child is planned.

Hints are part of the proposal, so they are JSON, small, and hold ids and outputs only; the worker looks up the texts
of the train examples that `cases` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evocluster.records import Json
from evocluster.search.ground import Ground
from evocluster.search.operators import Operator
from evocluster.search.population import Individual

Hint = Callable[[Ground, Sequence[Individual], np.random.Generator], Json]
HINTS: Mapping[str, Hint] = {}
"""Name in `Operator.needs` -> what makes it of the ground, the parents and a generator."""


def collect(
    ground: Ground, operator: Operator, parents: Sequence[Individual], rng: np.random.Generator
) -> dict[str, Json]:
    """The hints of one proposal. `avoid`: ids of genomes made lately."""
    told: dict[str, Json] = {"avoid": tuple(ground.recent)}
    for name in operator.needs:
        told[name] = HINTS[name](ground, parents, rng)
    return told
