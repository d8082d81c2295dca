"""The few-shot gene: which training examples stand in the prompt, how many, in which order.

It moves small models more than any other gene (which demos, how many of each label), so its moves work on
whole rounds of labels as well as on single examples: one or two demos a label beat a random handful.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from evocluster.parts import Part
from evocluster.records import Json

NONE, BALANCED = 0.1, 0.6
"""Shares of zero-shot and of balanced samples among random ones; the rest are random subsets."""


ANEW = 0.1
"""How often a refill draws every demo anew."""


class Demos(Part):
    """Settings of the gene: `demos: {max: 8}`. A list of ids in its place freezes it."""

    max: int = Field(ge=0)
    min: int = Field(default=0, ge=0)
    share: float = Field(default=0.5, gt=0, le=1)
    """Of train that demos are drawn from; the rest of train is what configurations are scored on. With 1 all of
    train is both: an example is then left out of its own prompt, so the prompt's beginning changes and no longer
    comes from the model's prompt cache.
    """

    @model_validator(mode="after")
    def _ordered(self) -> Demos:
        if self.min > self.max:
            raise ValueError(f"min={self.min} must not be above max={self.max}; lower min or raise max")
        return self


class Shots:
    """The gene bound to its pool: values are tuples of distinct example ids, `low` to `high` of them, in
    order.
    """

    def __init__(self, settings: Demos, pool: Sequence[tuple[str, str]]) -> None:
        self._ids = tuple(dict.fromkeys(id for id, _ in pool))
        self._known = frozenset(self._ids)
        self._group = dict(pool)
        groups: dict[str, list[str]] = {}
        for id in self._ids:
            groups.setdefault(self._group[id], []).append(id)
        self.high = min(settings.max, len(self._ids))
        self.low = min(settings.min, self.high)
        self._groups = [tuple(members) for _, members in sorted(groups.items())]
        fits = 2 <= len(self._groups) <= self.high and len(self._groups) * 2 <= len(self._ids)
        self.rounds = min(self.high // len(self._groups), max(map(len, self._groups))) if fits else 0
        """How many whole rounds (one example of every group) fit; 0 where groups mean nothing, as with free
        text.
        """

    @property
    def free(self) -> bool:
        return self.high > 0

    @property
    def first(self) -> Json:
        return self._ids[: self.low]

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self._groups)

    def group(self, id: str) -> str:
        """The group (the label as text) of an example of the pool."""
        return self._group[id]

    def _pick(self, ids: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
        return [ids[int(i)] for i in rng.permutation(len(ids))[:count]]

    def _balanced(self, rounds: int, rng: np.random.Generator, used: frozenset[str] = frozenset()) -> list[str]:
        """`rounds` examples of every group, round by round, the groups shuffled in each."""
        columns = []
        for members in self._groups:
            left = [id for id in members if id not in used]
            columns.append(self._pick(left, rounds, rng))
        chosen = []
        for turn in range(rounds):
            for column in (columns[int(i)] for i in rng.permutation(len(columns))):
                chosen += column[turn : turn + 1]
        return chosen

    def _subset(self, rng: np.random.Generator) -> list[str]:
        """A random handful: sizes are drawn by their logarithm, so that small ones are as common as large
        ones.
        """
        low = max(1, self.low)
        size = int(np.exp(rng.uniform(np.log(low), np.log(self.high + 1))))
        return self._pick(self._ids, min(size, self.high), rng)

    def _draw(self, share: float, rng: np.random.Generator) -> Json:
        """The sample at this share (0 to 1) of the mixture: none, then balanced by rounds, then subsets."""
        if not self.free or (share < NONE and self.low == 0):
            return self.fix(())
        if share < NONE + BALANCED and self.rounds:
            rounds = 1 + min(self.rounds - 1, int(max(share - NONE, 0.0) / BALANCED * self.rounds))
            return self.fix(self._balanced(rounds, rng))
        return self.fix(self._subset(rng))

    def sample(self, rng: np.random.Generator) -> Json:
        return self._draw(float(rng.random()), rng)

    def spread(self, count: int, rng: np.random.Generator) -> list[Json]:
        strata = (rng.permutation(count) + rng.random(count)) / max(count, 1)
        return [self._draw(float(share), rng) for share in strata]

    def move(self, value: Json, rng: np.random.Generator) -> Json:
        """Add, drop or swap one, add or drop a whole round, shuffle, or draw the same size anew."""
        return self.moved(value, rng)[1]

    def moved(self, value: Json, rng: np.random.Generator) -> tuple[str, Json]:
        """Which move it was (add, drop, swap, twin, shuffle, round, less, anew), and what came of it."""
        now = list(self.fix(value))
        for _ in range(8):
            kind, step = self._step(now, rng)
            moved = self.fix(step)
            if moved != tuple(now):
                return kind, moved
        return "anew", self.sample(rng)

    def _step(self, now: list[str], rng: np.random.Generator) -> tuple[str, list[str]]:
        moves = ["add", "drop", "swap", "twin", "shuffle", "anew"]
        weights = [1.0, 1.0, 1.5, 1.5, 1.0, 1.5]
        if self.rounds:
            moves += ["round", "less"]
            weights += [2.5, 1.5]
        kind = moves[int(rng.choice(len(moves), p=np.array(weights) / sum(weights)))]
        if kind in ("swap", "twin"):
            return kind if now else "anew", self._swap(now, kind == "twin", rng)
        if kind in ("round", "less"):
            return kind, self._round(now, kind == "round", rng)
        if kind == "shuffle":
            return kind, self._pick(now, len(now), rng)
        if kind == "drop" and now:
            gone = int(rng.integers(len(now)))
            return kind, now[:gone] + now[gone + 1 :]
        if kind == "add":
            left = [id for id in self._ids if id not in now]
            return kind, [*self._pick(left, 1, rng), *now] if len(now) < self.high else now
        return "anew", self._anew(len(now), rng)

    def _anew(self, size: int, rng: np.random.Generator) -> list[str]:
        """As many as before, drawn afresh; balanced where the size is that of whole rounds."""
        if self.rounds and size and size % len(self._groups) == 0:
            return self._balanced(size // len(self._groups), rng)
        return self._pick(self._ids, size, rng) if size else self._subset(rng)

    def _swap(self, now: list[str], same_group: bool, rng: np.random.Generator) -> list[str]:
        if not now:
            return self._subset(rng)
        at = int(rng.integers(len(now)))
        group = self._group[now[at]]
        left = [id for id in self._ids if id not in now and (not same_group or self._group[id] == group)]
        return [*now[:at], *self._pick(left, 1, rng), *now[at + 1 :]] if left else now

    def _round(self, now: list[str], more: bool, rng: np.random.Generator) -> list[str]:
        """One more example of every group, put first (the input stands last), or one fewer of every group."""
        if more:
            added = self._balanced(1, rng, frozenset(now))
            return [*added, *now] if len(now) + len(added) <= self.high else now
        seen: set[str] = set()
        kept = []
        for id in reversed(now):
            if self._group[id] in seen:
                kept.append(id)
            seen.add(self._group[id])
        return kept[::-1]

    def refill(self, value: Json, rng: np.random.Generator) -> Json:
        """Filled up, or with one replaced where it is full, or sometimes all anew; then in another order.

        The context shuffling of PromptBreeder (Fernando et al. 2023, section 3.2.5).
        """
        now = list(self.fix(value))
        left = [id for id in self._ids if id not in now]
        if now and rng.random() < ANEW:
            now = self._pick(self._ids, len(now), rng)
        elif len(now) < self.high and left:
            room = min(self.high - len(now), len(left))
            now += self._pick(left, int(rng.integers(1, room + 1)), rng)
        elif left and now:
            now[int(rng.integers(len(now)))] = self._pick(left, 1, rng)[0]
        return self.fix(self._pick(now, len(now), rng))

    def mix(self, one: Json, other: Json, rng: np.random.Generator) -> Json:
        """Either parent's, or a sample of both of a size between theirs, in the order they stand."""
        first, second = self.fix(one), self.fix(other)
        if rng.random() < 0.5:
            return first if rng.random() < 0.5 else second
        union = list(dict.fromkeys([*first, *second]))
        low, high = sorted((len(first), len(second)))
        size = int(rng.integers(low, high + 1))
        keep = frozenset(self._pick(union, size, rng))
        return self.fix(tuple(id for id in union if id in keep))

    def fix(self, value: Json) -> Json:
        ids = value if isinstance(value, list | tuple) else ()
        kept = [id for id in dict.fromkeys(id for id in ids if isinstance(id, str)) if id in self._known]
        kept = kept[: self.high]
        if len(kept) < self.low:
            kept += [id for id in self._ids if id not in kept][: self.low - len(kept)]
        return tuple(kept)
