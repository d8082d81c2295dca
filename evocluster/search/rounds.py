"""A round of candidates that were made of the same failures, and the rules by which it is decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from evocluster.errors import ConfigError
from evocluster.records import Item
from evocluster.search.ground import Block
from evocluster.search.memory import paired
from evocluster.search.population import Individual

LATERAL = 0.1
"""The quality from which a candidate that is as good takes the place of the current one; below it, only a better."""
EXACT = 1e-9
"""Means of the same values may differ by so much."""
State = Literal["made", "running", "through", "behind", "failed", "known"]


@dataclass
class Candidate:
    """One proposal of a round and what became of it."""

    number: int
    one: Individual | None = None
    state: State = "made"
    calls: int = 0
    """What making and trying it took."""


@dataclass
class Round:
    """Candidates that share parent and cases."""

    number: int
    hints: Mapping[str, Any]
    order: Sequence[int]
    """The parts, as its candidates are evaluated on them."""
    candidates: list[Candidate] = field(default_factory=list)
    rung: int = 1
    """Parts that all running candidates are to have before the worse half of them goes."""
    transient: bool = False
    """A model could not be asked, which says nothing of what is left to try."""

    def among(self, *states: State) -> list[Individual]:
        """Whom of its candidates these states hold for, the first proposed first."""
        return [it.one for it in self.candidates if it.state in states and it.one is not None]


def values(one: Individual, at: np.ndarray) -> np.ndarray:
    """Its quality on the examples at these places; NaN where there is none yet."""
    return one.by_example[at].astype(np.float64) if len(one.by_example) else np.full(len(at), np.nan)


def covered(one: Individual, at: np.ndarray) -> bool:
    """Whether its quality is known on all of them."""
    return not np.isnan(values(one, at)).any()


def quality(one: Individual, at: np.ndarray) -> float:
    """Its mean quality on the examples at these places."""
    return float(values(one, at).mean())


def accepts(now: float, new: float) -> bool:
    """Whether quality `new` may take the place of `now`: a better one always, an equal one where `now` is not poor."""
    return new > now + EXACT or (now >= LATERAL - EXACT and new >= now - EXACT)


def breach(violation: float) -> float:
    """A violation without what the order of a sum makes of it; what keeps the limits stays apart from what does not."""
    return round(violation, 9)


def excess(child: Individual, rival: Individual) -> int:
    """1 where the child breaks the limits by more than its rival on the examples both have, -1 by less, 0 by as much.

    A limit on quality is broken by more on a hard part than on all, so a child is not held against all of its rival.
    """
    if not child.limits:
        return 0
    mine, other = child.tally("train"), rival.tally("train")
    both = np.intersect1d(mine.examples, other.examples)
    ours, theirs = (breach(child.limits.violation(tally.within(both))) for tally in (mine, other))
    return int(ours > theirs) - int(ours < theirs)


def behind(child: Individual, rival: Individual, alpha: float) -> bool:
    """The child is worse than its rival on the examples both have, by an exact one-sided sign test at `alpha`."""
    from math import comb

    differences = paired(child, rival)[0]
    losses, wins = int((differences < 0).sum()), int((differences > 0).sum())
    n = losses + wins
    return losses > wins and sum(comb(n, k) for k in range(losses, n + 1)) / 2**n <= alpha


def parts(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks of train; a single one in two halves. Raises: ConfigError for one example alone."""
    if len(blocks) > 1:
        return tuple(blocks)
    examples = ids(blocks)
    if len(examples) < 2:
        raise ConfigError(
            f"search.strategy: refine needs at least 2 train examples, one to show and one held back; got "
            f"{len(examples)!r}; add examples to train, or choose strategy 'evolve'"
        )
    first = frozenset(examples[: (len(examples) + 1) // 2])
    halves: tuple[list[Item], list[Item]] = ([], [])
    for item in blocks[0]:
        halves[item.example not in first].append(item)
    return tuple(tuple(half) for half in halves)


def ids(parts: Iterable[Block]) -> tuple[str, ...]:
    """The examples of these parts, in order."""
    return tuple(dict.fromkeys(item.example for part in parts for item in part))
