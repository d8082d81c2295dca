"""How a child is made from its parents: small frozen callables, each one idea, and the credit that shares
draws among them.

The four-callables shape is learned from Optuna's NSGA-II sampler. Operators run where the proposal is carried
out, with the proposal's own generator, so a retried proposal is the same child. Those that ask a model are in
`rewrite.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from evocluster.errors import ConfigError, OperatorFailed
from evocluster.llm.client import LLM
from evocluster.records import Genome, Json
from evocluster.search.space import Space, nearest

REDRAWS = 8
"""How often a child that is known already is drawn again."""
EVALUATE = "evaluate"
"""The operator of a proposal that takes parents[0] as it is; it needs no object."""


class Child(NamedTuple):
    """What an operator made."""

    genome: Genome
    notes: Mapping[str, Json] = {}
    """JSON that is kept with the trial and handed to the search: what was changed and why."""


class Operator(Protocol):
    """Makes one child. Call order: any; nothing is kept between calls."""

    @property
    def name(self) -> str: ...

    @property
    def arity(self) -> int:
        """How many parents it takes."""
        ...

    @property
    def calls(self) -> int:
        """At most this many LLM calls for one child."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The hints it reads besides `avoid`, by their names in `hints.HINTS`."""
        ...

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        """A genome inside the space. `hints["avoid"]`: ids not to make again.

        Raises: errors.OperatorFailed; errors.ModelError where it asks a model.
        """
        ...


def _known(parents: Sequence[Genome], hints: Mapping[str, Json]) -> frozenset[str]:
    return frozenset([*(parent.id for parent in parents), *hints.get("avoid", ())])


@dataclass(frozen=True)
class Seed:
    """The genome in `hints["genome"]` as it is, else a random one: seeding and immigrants."""

    name: str = "seed"
    arity: int = 0
    calls: int = 0
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        if "genome" in hints:
            return Child(Genome(genes=hints["genome"]))
        known = _known(parents, hints)
        child = space.sample(rng)
        for _ in range(REDRAWS):
            if child.id not in known:
                break
            child = space.sample(rng)
        return Child(child)


@dataclass(frozen=True)
class Mutate:
    """Moves one to three genes of a parent; one gene most often. `only`: these genes and no other."""

    name: str = "mutate"
    only: tuple[str, ...] = ()
    arity: int = 1
    calls: int = 0
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        movable = [name for name in (self.only or space.free) if space.movable(name)]
        if not movable:
            raise OperatorFailed(f"{self.name}: none of the genes {list(self.only or space.free)!r} can move; free one")
        known = _known(parents, hints)
        start = space.fix(parents[0].genes)
        child = self._step(space, start, movable, rng)
        for _ in range(REDRAWS):
            if child.id not in known:
                break
            # Walking on from the known child reaches new ground where all neighbours are known.
            child = self._step(space, child if rng.random() < 0.5 else start, movable, rng)
        return Child(child)

    @staticmethod
    def _step(space: Space, parent: Genome, movable: Sequence[str], rng: np.random.Generator) -> Genome:
        count = min(len(movable), 1 + int(rng.choice(3, p=(0.6, 0.3, 0.1))))
        chosen = [movable[int(i)] for i in rng.permutation(len(movable))[:count]]
        return space.fix({**parent.genes, **{name: space.move(name, parent.genes[name], rng) for name in chosen}})


@dataclass(frozen=True)
class Crossover:
    """A child of two parents, gene by gene (see `Space.mix`); a known one is mutated until it is new."""

    name: str = "crossover"
    arity: int = 2
    calls: int = 0
    needs: tuple[str, ...] = ()

    async def vary(
        self,
        space: Space,
        parents: Sequence[Genome],
        hints: Mapping[str, Json],
        llm: LLM,
        rng: np.random.Generator,
    ) -> Child:
        known = _known(parents, hints)
        child = space.mix(parents[0], parents[-1], rng)
        for _ in range(REDRAWS):
            if child.id not in known:
                return Child(child)
            child = space.mix(parents[0], parents[-1], rng)
        if any(space.movable(name) for name in space.free):
            return await Mutate().vary(space, [child], hints, llm, rng)
        return Child(child)


NAMES = ("seed", "mutate", "demos", "crossover", "rewrite", "merge")
"""Every operator there is, in the order of the portfolio."""


class Choosing(Protocol):
    """The settings a portfolio is made from (see `optimizer.Search`)."""

    @property
    def operators(self) -> tuple[str, ...] | None: ...

    @property
    def rewriter(self) -> str | None: ...


def portfolio(settings: Choosing, space: Space) -> dict[str, Operator]:
    """The operators that can act in this space, of those the settings name.

    `seed` is always there, for seeding.

    Raises: ConfigError when a name is unknown, or when nothing is left that makes children.
    """
    from evocluster.search.rewrite import Merge, Rewrite

    names, rewriter = settings.operators, settings.rewriter
    for name in names or ():
        if name not in NAMES:
            raise ConfigError(f"search.operators: got {name!r}; allowed: {', '.join(NAMES)}{nearest(name, NAMES)}")
    movable = [name for name in space.free if space.movable(name)]
    able: dict[str, Operator] = {"seed": Seed()}
    if movable:
        able["mutate"] = Mutate()
    if "demos" in movable and len(movable) > 1:
        able["demos"] = Mutate(name="demos", only=("demos",))
    if len(movable) > 1 or "demos" in movable:
        able["crossover"] = Crossover()
    if space.rewritable:
        able["rewrite"] = Rewrite(model=rewriter)
        able["merge"] = Merge(model=rewriter)
    chosen = {name: one for name, one in able.items() if name == "seed" or names is None or name in names}
    if space.free and len(chosen) == 1 and not (names and "seed" in names):
        raise ConfigError(
            f"search.operators: none of {list(names or ())!r} can act on the genes {list(space.free)!r}; "
            f"allowed here: {', '.join(able)}"
        )
    return chosen


class Credit:
    """How often each operator was used and how often its child survived; operators that pay get more draws.

    A draw has a floor of `FLOOR`; the rest is shared by success rates, smoothed with one success in two uses
    (Laplace), times `PRIOR`.
    """

    FLOOR = 0.05
    PRIOR: ClassVar[Mapping[str, float]] = {"rewrite": 0.3, "merge": 0.15}
    """Wording moves results less than other genes do, and a reworded parent survives because it is nearly the
    same.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._uses = dict.fromkeys(self._names, 0)
        self._successes = dict.fromkeys(self._names, 0)

    def count(self, name: str, success: bool) -> None:
        """One child of this operator was committed. Names outside the portfolio are not counted."""
        if name in self._uses:
            self._uses[name] += 1
            self._successes[name] += int(success)

    def probabilities(self) -> dict[str, float]:
        """The chance of each operator; they add up to 1."""
        floor = min(self.FLOOR, 1 / len(self._names))
        rates = {
            name: self.PRIOR.get(name, 1.0) * (self._successes[name] + 1) / (self._uses[name] + 2)
            for name in self._names
        }
        rest, total = 1 - floor * len(self._names), sum(rates.values())
        return {name: floor + rest * rate / total for name, rate in rates.items()}

    def draw(self, rng: np.random.Generator) -> str:
        """The name of an operator."""
        chances = list(self.probabilities().values())
        return self._names[int(rng.choice(len(self._names), p=np.array(chances) / sum(chances)))]

    def state(self) -> dict[str, dict[str, float]]:
        """Per operator: uses, successes, probability."""
        return {
            name: {"uses": self._uses[name], "successes": self._successes[name], "probability": chance}
            for name, chance in self.probabilities().items()
        }
