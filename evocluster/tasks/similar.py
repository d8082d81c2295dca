"""Train dealt into the demo pool and what configurations are scored on, and which of the first are like which of the
second: by ids, from the inputs alone.

Likeness is BM25 over words (see `retrieval.py`). On intents, questions and sentiments the eight nearest shared the
label about as often as with TF-IDF cosines of words, of character groups or of both; it is the one the house has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evocluster.records import Example
from evocluster.tasks.dataset import Splits, order
from evocluster.tasks.retrieval import matched
from evocluster.tasks.words import plain

FEW = 8
"""Examples of the pool listed for a scored one, at most."""
COMPARED = 2000
"""Scored examples, and examples of the pool, that are compared at most, the first of each: more than a run gets round
to.
"""
CHARS = 1000
"""Characters of an input that count, from its beginning."""


class Dealt(NamedTuple):
    """The train examples of a task."""

    pool: tuple[Example, ...]
    """Those that may become demos."""
    scored: tuple[Example, ...]
    """Those that configurations are scored on."""


def deal(splits: Splits, share: float | None) -> Dealt:
    """Deal `share` of train into the pool; None, or all of it: every example is both.

    By the data alone, not by the seed, so that demos of an earlier run's front stay demos.
    """
    if share is None or share == 1:
        return Dealt(splits.train, splits.train)
    ids = order(splits.train, 0)
    count = min(max(1, round(share * len(ids))), len(ids) - 1)
    pool, taken = tuple(splits.get("train", id) for id in ids[:count]), frozenset(ids[:count])
    return Dealt(pool, tuple(example for example in splits.train if example.id not in taken))


def near(parts: Iterable[Dealt]) -> dict[str, tuple[str, ...]]:
    """Id of a scored example -> ids of its own task's pool with inputs most like its own, the nearest first and itself
    left out. An example that shares no word with any has none. Equally near ones in the order of the pool.
    """
    found: dict[str, tuple[str, ...]] = {}
    for pool, scored in parts:
        some, asked = pool[:COMPARED], scored[:COMPARED]
        for example, numbers in zip(asked, matched(_texts(some), _texts(asked), FEW + 1), strict=True):
            found[example.id] = tuple(some[at].id for at in numbers if some[at].id != example.id)[:FEW]
    return found


def _texts(examples: Sequence[Example]) -> list[str]:
    return [plain(example.input)[:CHARS] for example in examples]
