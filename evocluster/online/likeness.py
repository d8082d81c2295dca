"""Texts that are like one another, by groups of characters weighed by how rare they are (TF-IDF, cosine). The same
texts give the same groups every time, whatever the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evocluster.tasks.words import normalise

SAME = 0.92
"""Cosine from which two texts are nearly identical, where their numbers are the same too."""
CHARS = 2000
"""Characters of a text that count, from its beginning."""
APART = 0.8
"""Cosine distance up to which clusters are joined (average linkage)."""
CLUSTERED = 1500
"""Texts that are clustered at most: the first."""
TERMS = 5
"""Words that name a cluster."""
BLOCK = 512
_NUMBER = re.compile(r"\d+")


class Cluster(NamedTuple):
    """Texts of one kind."""

    members: tuple[int, ...]
    """Their numbers, the most typical first."""
    terms: tuple[str, ...]
    """Words that they share, the most telling first."""


def identical(texts: Sequence[str], at: float = SAME) -> list[int]:
    """The group of each text; nearly identical texts are in one, named by the first of it."""
    plain = [normalise(text[:CHARS]) for text in texts]
    parent = list(range(len(texts)))
    first: dict[str, int] = {}
    for number, text in enumerate(plain):
        join(parent, first.setdefault(text, number), number)
    alone = sorted(first.values())
    numbers = {number: _NUMBER.findall(plain[number]) for number in alone}
    for one, other in _pairs([plain[number] for number in alone], at):
        if numbers[alone[one]] == numbers[alone[other]]:
            join(parent, alone[one], alone[other])
    return [root(parent, number) for number in range(len(texts))]


def join(parent: list[int], one: int, other: int) -> None:
    """Put two of a union-find into one set, named by its smallest member."""
    first, second = sorted((root(parent, one), root(parent, other)))
    parent[second] = first


def root(parent: list[int], number: int) -> int:
    """The name of a member's set."""
    while parent[number] != number:
        parent[number] = number = parent[parent[number]]
    return number


def _pairs(texts: Sequence[str], at: float) -> Iterable[tuple[int, int]]:
    able = [number for number, text in enumerate(texts) if text.strip()]
    if len(able) < 2:
        return
    found = _letters([texts[number] for number in able])
    for start in range(0, len(able), BLOCK):
        near = (found[start : start + BLOCK] @ found.T).tocoo()
        for row, column, value in zip(near.row, near.col, near.data, strict=True):
            if value >= at and start + row < column:
                yield able[start + int(row)], able[int(column)]


def _letters(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True).fit_transform(texts)


def clusters(texts: Sequence[str], least: int, apart: float = APART) -> list[Cluster]:
    """Clusters of at least so many of the first `CLUSTERED` texts, the largest first, by the words they share."""
    texts = [text[:CHARS] for text in texts[:CLUSTERED]]
    if len(texts) < max(2, least) or not any(re.search(r"\w\w", text) for text in texts):
        return []
    from sklearn.cluster import AgglomerativeClustering  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True)
    points = words.fit_transform(texts)
    distances = np.clip(1.0 - (points @ points.T).toarray(), 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    made = AgglomerativeClustering(n_clusters=None, metric="precomputed", linkage="average", distance_threshold=apart)
    labels = made.fit(distances).labels_
    names = np.asarray(words.get_feature_names_out())
    groups = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    found = [_cluster(points, members, names) for members in groups if len(members) >= least]
    return sorted(found, key=lambda each: (-len(each.members), each.members))


def _cluster(points: Any, members: NDArray[np.intp], names: NDArray[Any]) -> Cluster:
    middle = np.asarray(points[members].mean(axis=0)).ravel()
    near = np.asarray(points[members] @ middle).ravel()
    typical = tuple(int(members[at]) for at in np.lexsort((members, -near.round(9))))
    telling = np.lexsort((names, -middle.round(9)))[:TERMS]
    return Cluster(typical, tuple(str(names[at]) for at in telling if middle[at] > 0))


def similar(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of each text with each of the others, by their words: one row a text."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(re.search(r"\w\w", text) for text in (*texts, *others)):
        return np.zeros((len(texts), len(others)))
    words = TfidfVectorizer(sublinear_tf=True).fit([*texts, *others])
    return np.asarray((words.transform(texts) @ words.transform(others).T).toarray())
