"""Who is alive: genomes with what is known of them, NSGA-II's survival among them, and the choice of parents.

Values compared are means over whatever items each member has. Besides rank and crowding two elites are kept:
the most reliably right member and the one with the most reliable composite, so that the recommended one is
never crowded out; a strategy may pin a third. Constraints come before values everywhere (see feasible.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evocluster.records import Evaluation, Genome, Json, Split
from evocluster.search import diversity, nsga2
from evocluster.search.cases import Cases
from evocluster.search.feasible import NONE, Limits
from evocluster.search.objectives import Objective, Tally, built_in

Floats = NDArray[np.float64]
QUALITY, COMPOSITE = built_in("quality"), built_in("composite")
NOWHERE = (-np.inf, -np.inf)
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
    aim: tuple[float, float] | None = None
    """How near it surely comes to what the rule asks for (see aim.py)."""
    reach: tuple[float, float] | None = None
    """How near it may come."""
    by_example: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    limits: Limits = NONE
    """The constraints of the run."""
    violation: float = 0.0
    """By how much they are broken on train; 0: it is feasible."""
    slack: Floats = field(default_factory=lambda: np.zeros(0))
    """Within what its values are not told apart from others (see diversity.py)."""
    cases: Cases = field(default_factory=Cases)
    """What it got wrong and right on train, a sample."""

    def tally(self, split: Split) -> Tally:
        """Its evaluations on a split."""
        if split not in self.tallies:
            self.tallies[split] = self.make(split)
        return self.tallies[split]

    def learn(self, evaluations: Sequence[Evaluation], objectives: Sequence[Objective], examples: int) -> None:
        """Count train evaluations and renew what is derived from them. `examples`: how many train has."""
        tally = self.tally("train")
        self.cases.add(evaluations)
        if not tally.add(evaluations) and len(self.values):
            return
        self.values = np.array([one.sign * tally.value(one) for one in objectives])
        self.violation = self.limits.violation(tally)
        self.slack = diversity.slack(tally, objectives)
        self.careful = (tally.lower(QUALITY), tally.lower(COMPOSITE))
        means = (tally.value(QUALITY), tally.value(COMPOSITE))
        self.hopeful = (2 * means[0] - self.careful[0], 2 * means[1] - self.careful[1])
        self.by_example = tally.by_example(examples).astype(np.float32)


class Population:
    """At most `size` members, the oldest first."""

    def __init__(self, size: int, objectives: Sequence[Objective], distinct: bool = False) -> None:
        """`distinct`: of members that cannot be told apart the oldest stays alone."""
        self._size = size
        self._objectives, self._distinct = tuple(objectives), distinct
        self._ideal = np.array([one.sign * one.ideal() for one in objectives])
        self._scale: Floats | None = None
        self._members: dict[str, Individual] = {}
        self._ranked: nsga2.Ranking | None = None
        self._front: tuple[NDArray[np.int64], list[Individual]] | None = None
        self._pinned: str | None = None

    @property
    def members(self) -> list[Individual]:
        """All of them, the oldest first."""
        return list(self._members.values())

    @property
    def feasible(self) -> list[Individual]:
        """Those that keep the constraints, the oldest first; without constraints all of them."""
        return [one for one in self._members.values() if not one.violation]

    def __len__(self) -> int:
        return len(self._members)

    def get(self, id: str) -> Individual | None:
        """The member with this genome id."""
        return self._members.get(id)

    def pin(self, individual: Individual) -> None:
        """Keep this one whatever comes, in place of one pinned before; inserts it where it is missing."""
        self._pinned = individual.genome.id
        if self._pinned not in self._members:
            self.insert(individual)

    def changed(self) -> None:
        """A member learned something: ranks are no longer true."""
        self._ranked = None

    def insert(self, individual: Individual) -> bool:
        """Add it, then let the surplus go; True when it is still there.

        Where members are to be `distinct`, one that cannot be told apart from an older one is not added; it takes the
        older one's place when it breaks the constraints by less.
        """
        older = self.double(individual)
        if older is not None and older.violation <= individual.violation:
            return False
        if older is not None:
            del self._members[older.genome.id]
        self._members[individual.genome.id] = individual
        self._ranked = None
        if len(self._members) > self._size:
            self._trim()
        return individual.genome.id in self._members

    def extend(self, individuals: Iterable[Individual]) -> None:
        """Add all of them, then let the surplus go at once."""
        self._members.update({one.genome.id: one for one in individuals})
        self._ranked = None
        if len(self._members) > self._size:
            self._trim()

    def double(self, individual: Individual) -> Individual | None:
        """The member that it cannot be told apart from, where members are to be `distinct`."""
        others = [one for one in self._members.values() if one is not individual]
        if not self._distinct or individual.genome.id in self._members or not others:
            return None
        values, slack = (np.array([getattr(one, name) for one in others]) for name in ("values", "slack"))
        near = np.flatnonzero(diversity.near(values, slack, individual.values, individual.slack))
        others = [others[int(at)] for at in near]
        quality = np.array([one.by_example[None] for one in others])
        for at in np.flatnonzero(diversity.same(quality, individual.by_example[None])):
            if len(self._apart([others[int(at)], individual])) == 1:
                return others[int(at)]
        return None

    def _apart(self, ones: Sequence[Individual]) -> list[Individual]:
        """Of those that cannot be told apart the first alone."""
        if len(ones) < 2:
            return list(ones)
        values, slack = (np.array([getattr(one, name) for one in ones]) for name in ("values", "slack"))
        # Quality is at hand, and tells nearly all apart; the rest is read only where it does not.
        quality = np.array([one.by_example[None] for one in ones])
        if (diversity.twins(values, slack, quality) == np.arange(len(ones))).all():
            return list(ones)
        tallies = [one.tally("train") for one in ones]
        return [ones[at] for at in diversity.distinct(tallies, self._objectives, len(ones[0].by_example))]

    def retain(self, ids: Collection[str]) -> None:
        """Let all others go, as a restart does."""
        self._members = {id: one for id, one in self._members.items() if id in ids}
        self._ranked = None

    def swap(self, gone: str, come: Individual) -> None:
        """Let one come in the place of the member with this genome id, whatever their ranks."""
        del self._members[gone]
        self._members[come.genome.id] = come
        self._ranked = None

    def _trim(self) -> None:
        members = self.members
        ranks, crowding = self.ranked.ranks, self.ranked.crowding
        kept = [int(i) for i in nsga2.order(ranks, crowding)[: self._size]]
        elites = self._elites(members)
        for elite in elites:
            if elite not in kept:
                loser = next((i for i in reversed(kept) if i not in elites), None)
                if loser is not None:
                    kept[kept.index(loser)] = elite
        chosen = sorted(kept)
        self._members = {members[i].genome.id: members[i] for i in chosen}
        # As in the paper, tournaments compare what survival was decided by.
        self._ranked = nsga2.Ranking(ranks[chosen], lambda: crowding[chosen])

    def _elites(self, members: Sequence[Individual]) -> tuple[int, ...]:
        """The places of the pinned one, of the best careful quality, of the best careful composite and of the best aim,
        feasible ones before others.
        """
        places = [at for at, one in enumerate(members) if not one.violation] or range(len(members))
        return (
            *(i for i in places if members[i].genome.id == self._pinned),
            max(places, key=lambda i: (*members[i].careful, -i)),
            max(places, key=lambda i: (*members[i].careful[::-1], -i)),
            *([max(places, key=lambda i: (members[i].aim or NOWHERE, -i))] if members[0].aim is not None else []),
        )

    @property
    def ranked(self) -> nsga2.Ranking:
        """Ranks and crowding of the members, in their order."""
        if self._ranked is None:
            broken = np.array([one.violation for one in self._members.values()])
            self._ranked = nsga2.ranking(self._table(), broken if broken.any() else None)
        return self._ranked

    def _table(self) -> Floats:
        return np.array([one.values for one in self._members.values()]).reshape(len(self._members), len(self._ideal))

    def front(self) -> list[Individual]:
        """The non-dominated members, the oldest first: feasible ones, or where nobody is, the least violating.

        Where members are to be `distinct`, those that have become alike since they came stand for each other.
        """
        ranks = self.ranked.ranks
        if self._front is None or self._front[0] is not ranks:
            found = [one for one, rank in zip(self.members, ranks, strict=True) if rank == 0]
            self._front = (ranks, self._apart(found) if self._distinct else found)
        return list(self._front[1])

    def elites(self) -> list[Individual]:
        """Those with the best careful quality and the best careful composite; once where they are the same one."""
        members = self.members
        return [members[at] for at in dict.fromkeys(self._elites(members))] if members else []

    def contenders(self) -> list[Individual]:
        """The feasible members; where nobody is, all."""
        return self.feasible or self.members

    def crowding(self) -> Mapping[str, float]:
        """Crowding by genome id."""
        return dict(zip(self._members, self.ranked.crowding.tolist(), strict=True))

    def tournament(self, rng: np.random.Generator) -> Individual:
        """The better of two random members by rank, then crowding (Deb et al. 2002)."""
        ranks, crowding = self.ranked.ranks, self.ranked.crowding
        one, other = (int(i) for i in rng.integers(len(self._members), size=2))
        if (ranks[other], -crowding[other]) < (ranks[one], -crowding[one]):
            one = other
        return self.members[one]

    def winner(self, rng: np.random.Generator) -> Individual:
        """One of the best on random train examples, drawn one after the other until one member is left.

        Lexicase selection (Spector 2012) over the examples that at least half of the members have and that
        tell them apart: a member that alone masters an example is drawn even when its mean is low (compare
        Agrawal et al. 2025, GEPA, section 3), and one that masters most is drawn most. A tournament where no
        example tells members apart. Feasible members alone, where there are two.
        """
        members = self.feasible if len(self.feasible) > 1 else self.members
        table = np.stack([one.by_example for one in members])
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
        return members[int(left[int(rng.integers(len(left)))])]

    def refer(self) -> None:
        """Fix the hypervolume's reference point a little beyond the worst of the present members.

        The ideal is the best there could be, or the best of them where that is better still. Call once, after seeding.
        """
        table = self._table()
        best = np.where(np.isfinite(table), table, np.inf).min(axis=0, initial=np.inf)
        self._ideal = np.minimum(self._ideal, best)
        worst = np.where(np.isfinite(table), table, -np.inf).max(axis=0, initial=-np.inf)
        width = np.where(np.isfinite(worst), worst - self._ideal, 1.0)
        self._scale = np.where(width > 0, width, 1.0) * (1 + ENLARGED)

    def hypervolume(self) -> float:
        """Of the feasible front on train, with the ideal at 0 and the reference at 1 in every objective; 0 before
        `refer`.
        """
        front = [one for one in self.front() if not one.violation]
        if self._scale is None or not front:
            return 0.0
        values = (np.array([one.values for one in front]) - self._ideal) / self._scale
        return nsga2.hypervolume(values, np.ones(len(self._ideal)))
