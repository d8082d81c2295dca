"""The portfolio of `portfolio`, finer: moves of one kind of gene each, so that credit tells which kind pays, few-shot
operators that know which examples matter, and all of them wary of what was rejected.
"""

from __future__ import annotations

from collections.abc import Mapping

from evocluster.search.fewshot import DemoMove, Nearby
from evocluster.search.operators import Mutate, Operator
from evocluster.search.space import Space
from evocluster.search.tabu import Wary

CALLS = ("cot", "constrain", "use_consensus")
"""How an answer is asked for."""


def kinds(space: Space) -> dict[str, tuple[str, ...]]:
    """The operators that move one kind of gene, and which genes: those that can move, where there are two kinds."""
    movable = [name for name in space.free if space.movable(name)]
    numbers = tuple(name for name in movable if name not in (*CALLS, "model") and space.numeric(name))
    found = {
        "model": tuple(name for name in movable if name == "model"),
        "calls": tuple(name for name in movable if name in CALLS),
        "numbers": numbers,
    }
    able = {name: genes for name, genes in found.items() if genes}
    return able if len(able) > 1 else {}


def refined(able: Mapping[str, Operator], space: Space) -> dict[str, Operator]:
    """The operators that can act, with the finer ones beside or in place of them."""
    made: dict[str, Operator] = {}
    movable = [name for name in space.free if space.movable(name)]
    for name, one in able.items():
        made[name] = one
        if name == "mutate":
            made |= {kind: Mutate(name=kind, only=genes) for kind, genes in kinds(space).items()}
    if space.shots is not None:
        if movable == ["demos"]:
            del made["mutate"]
        made["demos"] = DemoMove()
        if any(space.near.values()):
            made |= {"similar": Nearby(), "disputed": Nearby(name="disputed", by="disputed")}
    return {name: one if name == "seed" else Wary(one) for name, one in made.items()}
