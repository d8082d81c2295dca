"""Beliefs: means of few examples shrunk towards what similar genomes gave, freed of how hard the examples are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.records import Genome, Json
from evocluster.search.beliefs import KEPT, Beliefs, adjusted, alike

GENES = ("model", "temperature", "demos")


def genome(model: str, temperature: float = 0.0, demos: tuple[str, ...] = ()) -> Genome:
    return Genome(genes={"model": model, "temperature": temperature, "demos": demos})


def outcomes(right: int, of: int, total: int = 40) -> np.ndarray:
    row = np.full(total, np.nan, dtype=np.float32)
    row[:of] = 0.0
    row[:right] = 1.0
    return row


def test_few_examples_are_shrunk_more_than_many() -> None:
    beliefs = Beliefs(GENES)
    for place, share in enumerate((4, 8, 12, 16, 20, 24)):
        beliefs.learn(genome(f"m{place}"), outcomes(share, 40))
    beliefs.learn(genome("few"), outcomes(8, 8))
    beliefs.learn(genome("many"), outcomes(40, 40))
    few, many = beliefs.of(genome("few"))[0], beliefs.of(genome("many"))[0]
    assert few.mean < many.mean <= 1.05
    assert few.deviation > many.deviation


def test_where_all_are_equal_the_luckiest_is_hardly_believed_better() -> None:
    rng = np.random.default_rng(5)
    excess, naive = [], []
    for _ in range(60):
        beliefs = Beliefs(GENES)
        rows = (rng.random((20, 40)) < 0.6).astype(np.float32)
        for place, row in enumerate(rows):
            beliefs.learn(genome(f"m{place}"), row)
        means = [beliefs.of(genome(f"m{place}"))[0].mean for place in range(20)]
        excess.append(max(means) - 0.6)
        naive.append(rows.mean(axis=1).max() - 0.6)
    assert np.mean(naive) > 0.12
    assert np.mean(excess) < 0.35 * np.mean(naive)


def test_what_was_never_tried_is_believed_by_its_likes() -> None:
    beliefs = Beliefs(GENES)
    for place in range(6):
        beliefs.learn(genome("good", place / 10), outcomes(36, 40))
        beliefs.learn(genome("bad", place / 10), outcomes(4, 40))
    likely, unlikely = beliefs.of(genome("good", 0.9))[0], beliefs.of(genome("bad", 0.9))[0]
    assert likely.mean > 0.7 > 0.3 > unlikely.mean
    assert beliefs.of(genome("other", 0.9))[0].deviation > likely.deviation


def test_a_hard_block_is_not_held_against_those_who_had_it() -> None:
    rng = np.random.default_rng(2)
    hard = np.where(np.arange(40) < 20, 0.2, 0.8)
    table = (rng.random((30, 40)) < hard).astype(float)
    table[0, 20:] = np.nan
    table[1, :20] = np.nan
    values, noise = adjusted(table)
    raw = np.nanmean(table[:2], axis=1)
    assert raw[1] - raw[0] > 0.4
    assert abs(values[1] - values[0]) < 0.2
    assert 0.1 < noise < 0.25


def test_what_everything_else_gave_is_kept_bounded_and_members_stay() -> None:
    beliefs = Beliefs(GENES)
    for place in range(KEPT + 30):
        beliefs.learn(genome(f"m{place}"), outcomes(place % 9, 8))
    first = genome("m0")
    beliefs.keep([first.id])
    assert len(beliefs) == KEPT
    assert beliefs.of(first)[0].deviation < beliefs.of(genome("m1"))[0].deviation


def test_nothing_known_is_wide_open() -> None:
    assert Beliefs(GENES, outcomes=2).of(genome("a")) == ((0.5, 0.5),) * 3


@given(st.permutations(range(8)))
def test_the_order_of_learning_changes_nothing(order: list[int]) -> None:
    rows = [(genome(f"m{i % 3}", i / 10), outcomes(i, 8 + 4 * (i % 2))) for i in range(8)]
    straight, mixed = Beliefs(GENES, 1), Beliefs(GENES, 1)
    for one, row in rows:
        straight.learn(one, row, [0.5])
    for at in order:
        mixed.learn(*rows[at], [0.5])
    for one, _ in rows:
        assert np.allclose(mixed.of(one), straight.of(one), atol=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ("a", "a", 1, 1),
        ("a", "b", 0, 0),
        (0.1, 0.1, 1, 1),
        (100, 110, 0.8, 0.99),
        (0.0, 1.0, 0, 0.2),
        (("a", "b"), ("b", "a"), 1, 1),
        (("a", "b"), ("c", "d"), 0.5, 0.5),
        ((), ("c", "d"), 0, 0),
        ("Sort the message.", "Sort the message please.", 0.5, 0.95),
        (True, False, 0, 0),
        ([{"a": 1}], [{"a": 1}, {"b": 2}], 0.5, 0.5),
    ],
)
def test_alike(one: object, other: object, low: float, high: float) -> None:
    assert low <= alike(one, other) <= high
    assert alike(one, other) == alike(other, one)


NUMBERS = st.one_of(st.integers(-2, 2), st.sampled_from([0.5, 1.0, 2.0, -0.0, 1e-3, 2**60, 2**60 + 1]))
LISTS = st.lists(st.sampled_from(["d1", "d2", "d3", "d4"]), max_size=4)
VALUES = st.one_of(
    st.booleans(),
    NUMBERS,
    st.sampled_from(["a", "say yes", "say no", "say no or yes"]),
    LISTS,
    st.just({"deep": [1]}),
    st.lists(st.sampled_from([{"deep": 1}, {"deep": 2}]), min_size=1, max_size=2),
)
PAIRS = st.one_of(
    *(st.lists(st.tuples(one, other), min_size=1, max_size=12) for one, other in ((VALUES, VALUES), (NUMBERS, LISTS)))
)


@given(PAIRS, st.lists(st.booleans(), min_size=12, max_size=12))
def test_remembered_likeness_is_that_of_every_pair_to_the_last_bit(
    pairs: list[tuple[Json, Json]], stays: list[bool]
) -> None:
    genomes = list({one.id: one for one in (Genome(genes={"x": x, "y": y}) for x, y in pairs)}.values())
    beliefs = Beliefs(("x", "y", "absent"))
    for one in genomes:
        beliefs.learn(one, outcomes(1, 4))
    stay = [at for at in range(len(genomes)) if stays[at]] or [0]
    for values in beliefs._values:
        values.keep(stay)
    for name, values in zip(("x", "y", "absent"), beliefs._values, strict=True):
        for one in genomes:
            plain = [alike(one.genes.get(name), genomes[at].genes.get(name)) for at in stay]
            assert values.column(one.genes.get(name)).tolist() == plain
