"""How a child is made from its parents: small frozen callables, each one idea, and the names of all there are.

The four-callables shape is learned from Optuna's NSGA-II sampler. Operators run where the proposal is carried
out, with the proposal's own generator, so a retried proposal is the same child. Those that ask a model are in
`rewrite.py`, those on demos in `fewshot.py`; `portfolio.py` says which can act, `credit.py` shares draws among them.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM, Reply, Request
from evocluster.records import Genome, Json
from evocluster.search.space import Space

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


async def nobody(request: Request) -> Reply:
    """The model of operators that ask none. Raises: OperatorFailed."""
    raise OperatorFailed("this operator asks a model, and there is none here")


def now(making: Coroutine[Any, Any, Child]) -> Child:
    """What an operator makes that waits for nothing."""
    try:
        making.send(None)
    except StopIteration as done:
        child: Child = done.value
        return child
    raise OperatorFailed("this operator waits for something, and nothing comes here")


def known(parents: Sequence[Genome], hints: Mapping[str, Json]) -> frozenset[str]:
    """Ids that a child should not have: its parents' and those to avoid."""
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
        made = known(parents, hints)
        child = space.sample(rng)
        for _ in range(REDRAWS):
            if child.id not in made:
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
        made = known(parents, hints)
        start = space.fix(parents[0].genes)
        child = self._step(space, start, movable, rng)
        for _ in range(REDRAWS):
            if child.id not in made:
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
        made = known(parents, hints)
        child = space.mix(parents[0], parents[-1], rng)
        for _ in range(REDRAWS):
            if child.id not in made:
                return Child(child)
            child = space.mix(parents[0], parents[-1], rng)
        if any(space.movable(name) for name in space.free):
            return await Mutate().vary(space, [child], hints, llm, rng)
        return Child(child)


BREED = (
    *("zero_order", "first_order", "distribution", "ranked", "lineage"),
    *("hyper_zero", "hyper_first", "lamarck", "context"),
)
"""PromptBreeder's nine (see `breed.py`), which act only where they are named."""
STEADY = ("seed", "mutate", "demos", "crossover", "rewrite", "merge")
"""The operators of `selection: steady`, in the order of the portfolio."""
NAMES = (*STEADY, "model", "calls", "numbers", "similar", "disputed", "reflect", *BREED)
"""Every operator there is."""
GROUPS: Mapping[str, tuple[str, ...]] = {"breed": BREED}
"""Names that stand for several operators."""
