"""PromptBreeder's nine operators by name: prompts change, and the advice that changes them changes too.

Fernando et al. 2023, arXiv 2309.16797, section 3.2. In `strategy: breed` they are drawn alike; elsewhere they are
members of the portfolio where `search.operators` names them, one by one or all as `breed`.
"""

from __future__ import annotations

from dataclasses import replace

from evocluster.search.breed_context import Context, Lamarck
from evocluster.search.breed_direct import FirstOrder, ZeroOrder
from evocluster.search.breed_form import Breeding
from evocluster.search.breed_hyper import HyperFirst, HyperZero
from evocluster.search.breed_lists import Distribution, Lineage, Ranked
from evocluster.search.space import Space

ALL: tuple[Breeding, ...] = (
    *(ZeroOrder(), FirstOrder(), Distribution(), Ranked(), Lineage()),
    *(HyperZero(), HyperFirst(), Lamarck(), Context()),
)


def able(space: Space, model: str | None) -> dict[str, Breeding]:
    """Those that can act in a space, by name; they ask `model`, or the genome's own.

    Where nothing but the prompt is free, another's prompt is nothing new: no `context` there.
    """
    context = "demos" in space.free or ("rubric" in space.free and len(space.free) > 1)
    return {one.name: replace(one, model=model) for one in ALL if (space.rewritable if one.calls else context)}
