"""The portfolio: which operators act in a search, by what its space allows and its settings name."""

from __future__ import annotations

from evocluster.errors import ConfigError
from evocluster.search import breed
from evocluster.search.operators import BREED, GROUPS, NAMES, STEADY, Crossover, Mutate, Operator, Seed
from evocluster.search.reflect import Reflect
from evocluster.search.rewrite import Merge, Rewrite
from evocluster.search.settings import Search
from evocluster.search.space import Space, nearest
from evocluster.search.typed import refined


def _named(settings: Search, space: Space) -> tuple[str, ...] | None:
    """The operators asked for, groups spelled out; None: all but the nine. Raises: ConfigError."""
    allowed = (*(NAMES if settings.selection != "steady" else (*STEADY, "reflect", *BREED)), *GROUPS)
    for name in settings.operators or ():
        if name not in allowed:
            raise ConfigError(f"search.operators: got {name!r}; allowed: {', '.join(allowed)}{nearest(name, allowed)}")
    breeds = settings.strategy == "breed"
    if breeds and not space.rewritable:
        raise ConfigError(
            "search.strategy: 'breed' writes new prompts, but the rubric may not change (space.rubric: "
            f'{space.settings.root.get("rubric", "")!r}); allowed: a list of texts, as in `rubric: ["..."]`; '
            "write one, or take another strategy"
        )
    if settings.operators is None:
        return BREED if breeds else None
    return tuple(one for name in settings.operators for one in GROUPS.get(name, (name,)))


def _reflects(settings: Search, space: Space) -> bool:
    """Failures are read where that is what the strategy does, or where a model is named for it: a small one that only
    answers questions makes nothing of them.
    """
    if settings.strategy in ("refine", "hybrid"):
        return bool(settings.reflector or settings.rewriter or "model" in space.names)
    return settings.selection != "steady" and bool(settings.reflector or "reflect" in (settings.operators or ()))


def portfolio(settings: Search, space: Space) -> dict[str, Operator]:
    """The operators that can act in this space, of those the settings name.

    `seed` is always there, for seeding.

    Raises: ConfigError when a name is unknown, or when nothing is left that makes children.
    """
    names, rewriter = _named(settings, space), settings.rewriter
    movable = [name for name in space.free if space.movable(name)]
    able: dict[str, Operator] = {"seed": Seed()}
    if movable:
        able["mutate"] = Mutate()
    if "demos" in movable and len(movable) > 1:
        able["demos"] = Mutate(name="demos", only=("demos",))
    if len(movable) > 1 or "demos" in movable:
        able["crossover"] = Crossover()
    # Steady state is kept as it was before there was a memory.
    old = settings.selection == "steady"
    if space.rewritable:
        needs = () if old else ("memory",)
        able["rewrite"] = Rewrite(model=rewriter, needs=needs)
        able["merge"] = Merge(model=rewriter, needs=needs)
        if _reflects(settings, space):
            able["reflect"] = Reflect(settings.reflector or rewriter, settings.reflect_tokens)
    if not old:
        able = refined(able, space)
    usual = tuple(able)
    able.update(breed.able(space, rewriter))
    chosen = {name: one for name, one in able.items() if name in ("seed", *(usual if names is None else names))}
    if space.free and len(chosen) == 1 and not (names and "seed" in names):
        raise ConfigError(
            f"search.operators: none of {list(names or ())!r} can act on the genes {list(space.free)!r}; "
            f"allowed here: {', '.join(able)}"
        )
    return chosen
