"""Who is alive: genomes with what is known of them, NSGA-II's survival among them, and the choice of parents.

Values compared are means over whatever items each member has. Besides rank and crowding two elites are kept:
the most reliably right member and the one with the most reliable composite, so that the recommended one is
never crowded out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Evaluation, Genome, Json, Split
from evocluster.search import nsga2
from evocluster.search.objectives import Objective, Tally, built_in

Floats = NDArray[np.float64]
QUALITY, COMPOSITE = built_in("quality"), built_in("composite")
ENLARGED = 0.1
"""The hypervolume's reference lies this share of the seeds' width beyond the worst of them."""


@dataclass(eq=False, slots=True)
class Individual:
    """A genome and everything the search knows of it."""

    genome: Genome
    make: Callable[[Split], Tally]
    generation: int = 0
    parents: tuple[str, ...] = ()
    operator: str = "seed"
    tallies: dict[Split, Tally] = field(default_factory=dict)
    notes: Mapping[str, Json] = field(default_factory=dict)
    """What the operator that made it told besides the genome."""
    blocks: set[int] = field(default_factory=set)
    """Train blocks that were asked for."""
    values: Floats = field(default_factory=lambda: np.zeros(0))
    """Of the objectives on train, minimised."""
    careful: tuple[float, float] = (0.0, 0.0)
    """Quality and composite less one standard error."""
    hopeful: tuple[float, float] = (0.0, 0.0)
    """Quality and composite and one standard error more."""
    by_example: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def tally(self, split: Split) -> Tally:
        """Its evaluations on a split."""
        if split not in self.tallies:
            self.tallies[split] = self.make(split)
        return self.tallies[split]

    def learn(self, evaluations: Sequence[Evaluation], objectives: Sequence[Objective], examples: int) -> None:
        """Count train evaluations and renew what is derived from them. `examples`: how many train has."""
        tally = self.tally("train")
        if not tally.add(evaluations) and len(self.values):
            return
        self.values = np.array([one.sign * tally.value(one) for one in objectives])
        self.careful = (tally.lower(QUALITY), tally.lower(COMPOSITE))
        means = (tally.value(QUALITY), tally.value(COMPOSITE))
        self.hopeful = (2 * means[0] - self.careful[0], 2 * means[1] - self.careful[1])
        self.by_example = tally.by_example(examples).astype(np.float32)


class Population:
    """At most `size` members, the oldest first."""

    def __init__(self, size: int, objectives: Sequence[Objective]) -> None:
        self._size = size
        self._ideal = np.array([one.sign * one.ideal() for one in objectives])
        self._scale: Floats | None = None
        self._members: dict[str, Individual] = {}
        self._ranked: tuple[NDArray[np.int64], Floats] | None = None

    @property
    def members(self) -> list[Individual]:
        """All of them, the oldest first."""
        return list(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def get(self, id: str) -> Individual | None:
        """The member with this genome id."""
        return self._members.get(id)

    def changed(self) -> None:
        """A member learned something: ranks are no longer true."""
        self._ranked = None

    def insert(self, individual: Individual) -> bool:
        """Add it, then let the surplus go; True when it is still there."""
        self._members[individual.genome.id] = individual
        self._ranked = None
        if len(self._members) > self._size:
            self._trim()
        return individual.genome.id in self._members

    def _trim(self) -> None:
        members = self.members
        kept = [int(i) for i in nsga2.order(*self.ranked)[: self._size]]
        for elite in self._elites(members):
            if elite not in kept:
                loser = next((i for i in reversed(kept) if i not in self._elites(members)), None)
                if loser is not None:
                    kept[kept.index(loser)] = elite
        ranks, crowding = self.ranked
        chosen = sorted(kept)
        self._members = {members[i].genome.id: members[i] for i in chosen}
        # As in the paper, tournaments compare what survival was decided by.
        self._ranked = (ranks[chosen], crowding[chosen])

    @staticmethod
    def _elites(members: Sequence[Individual]) -> tuple[int, int]:
        """The places of the best careful quality and of the best careful composite."""
        places = range(len(members))
        return (
            max(places, key=lambda i: (*members[i].careful, -i)),
            max(places, key=lambda i: (*members[i].careful[::-1], -i)),
        )

    @property
    def ranked(self) -> tuple[NDArray[np.int64], Floats]:
        """Ranks and crowding of the members, in their order."""
        if self._ranked is None:
            self._ranked = nsga2.rank_and_crowding(self._table())
        return self._ranked

    def _table(self) -> Floats:
        return np.array([one.values for one in self._members.values()]).reshape(len(self._members), len(self._ideal))

    def front(self) -> list[Individual]:
        """The non-dominated members, the oldest first."""
        ranks, _ = self.ranked
        return [one for one, rank in zip(self.members, ranks, strict=True) if rank == 0]

    def crowding(self) -> Mapping[str, float]:
        """Crowding by genome id."""
        return dict(zip(self._members, self.ranked[1].tolist(), strict=True))

    def tournament(self, rng: np.random.Generator) -> Individual:
        """The better of two random members by rank, then crowding (Deb et al. 2002)."""
        ranks, crowding = self.ranked
        one, other = (int(i) for i in rng.integers(len(self._members), size=2))
        if (ranks[other], -crowding[other]) < (ranks[one], -crowding[one]):
            one = other
        return self.members[one]

    def winner(self, rng: np.random.Generator) -> Individual:
        """One of the best on random train examples, drawn one after the other until one member is left.

        Lexicase selection (Spector 2012) over the examples that at least half of the members have and that
        tell them apart: a member that alone masters an example is drawn even when its mean is low (compare
        Agrawal et al. 2025, GEPA, section 3), and one that masters most is drawn most. A tournament where no
        example tells members apart.
        """
        table = np.stack([one.by_example for one in self._members.values()])
        seen = ~np.isnan(table)
        low = np.where(seen, table, np.inf).min(axis=0)
        high = np.where(seen, table, -np.inf).max(axis=0)
        telling = np.flatnonzero((seen.sum(axis=0) * 2 >= len(table)) & (high > low))
        if not len(telling):
            return self.tournament(rng)
        left = np.arange(len(table))
        for example in rng.permutation(telling):
            column = table[left, example]
            if np.isnan(column).all():
                continue
            left = left[column >= np.nanmax(column)]
            if len(left) == 1:
                break
        return self.members[int(left[int(rng.integers(len(left)))])]

    def refer(self) -> None:
        """Fix the hypervolume's reference point a little beyond the worst of the present members.

        Call once, after seeding.
        """
        table = self._table()
        worst = np.where(np.isfinite(table), table, -np.inf).max(axis=0, initial=-np.inf)
        width = np.where(np.isfinite(worst), worst - self._ideal, 1.0)
        self._scale = np.where(width > 0, width, 1.0) * (1 + ENLARGED)

    def hypervolume(self) -> float:
        """Of the front on train, with the ideal at 0 and the reference at 1 in every objective; 0 before
        `refer`.
        """
        if self._scale is None or not self._members:
            return 0.0
        values = (np.array([one.values for one in self.front()]) - self._ideal) / self._scale
        return nsga2.hypervolume(values, np.ones(len(self._ideal)))
