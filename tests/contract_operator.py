"""What every operator keeps: subclass it and say how the operator is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from search_world import echo, space

from evocluster.errors import EvoclusterError
from evocluster.llm.client import LLM
from evocluster.records import Genome, Proposal, canonical
from evocluster.search.operators import Operator
from evocluster.search.space import Space

FROZEN: Mapping[str, Any] = {"cot": True, "max_tokens": 8, "label_names": "spaced"}


class OperatorContract:
    """Run over every operator."""

    def operator(self) -> Operator:
        raise AssertionError("a subclass says which operator")

    def hints(self) -> Mapping[str, Any]:
        """What it is told."""
        return {}

    def space(self, **changes: Any) -> Space:
        """Where it acts."""
        return space(**changes)

    llm: LLM = staticmethod(echo)
    """The model it asks."""

    async def children(self, where: Space, count: int = 30) -> list[Genome]:
        """Children of random parents; those that could not be made are left out."""
        made = []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            parents = [where.sample(rng) for _ in range(self.operator().arity)]
            try:
                made.append((await self.operator().vary(where, parents, self.hints(), self.llm, rng)).genome)
            except EvoclusterError:
                continue
        assert len(made) > count // 3
        return made

    async def test_children_are_inside_the_space(self) -> None:
        where = self.space()
        assert all(where.contains(child) for child in await self.children(where))

    async def test_frozen_genes_stay(self) -> None:
        for child in await self.children(self.space(**FROZEN)):
            assert {name: child[name] for name in FROZEN} == FROZEN

    async def test_the_same_generator_gives_the_same_child(self) -> None:
        where = self.space()
        assert await self.children(where) == await self.children(where)

    async def test_a_child_is_plain_json(self) -> None:
        for child in await self.children(self.space(temperature={"low": 0, "high": 1}, spice={"low": 1, "high": 9})):
            proposal = Proposal(number=0, operator="evaluate", parents=(child,))
            back = Proposal.model_validate_json(proposal.model_dump_json())
            assert back == proposal
            assert canonical(back.parents[0].genes) == canonical(child.genes)

    async def test_parents_outside_the_space_are_brought_in(self) -> None:
        where = self.space(max_tokens=8, rubric={"texts": ["Sort this.", "Name it."]}, demos={"max": 4})
        rng = np.random.default_rng(3)
        outside = [
            where.sample(rng).replace(max_tokens=999, demos=("gone", f"t00{i}"), rubric=f"Own {i}.") for i in range(2)
        ]
        parents = outside[: self.operator().arity]
        child = (await self.operator().vary(where, parents, self.hints(), self.llm, rng)).genome
        assert where.contains(child)

    def test_it_names_its_needs(self) -> None:
        operator = self.operator()
        assert operator.name.islower()
        assert 0 <= operator.arity <= 2
        assert 0 <= operator.calls <= 2
