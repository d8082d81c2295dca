"""The space: what YAML says, what is inside, and that nothing leads out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from search_world import ABLE, GENES, LABELS, POOL, START, space

from evocluster.errors import ConfigError
from evocluster.llm.client import Abilities
from evocluster.records import Genome, canonical
from evocluster.search.space import Genes, Space

NUMBERS: dict[str, Any] = {
    "temperature": {"low": 0, "high": 1.5},
    "max_tokens": {"low": 4, "high": 512, "log": True},
    "beams": {"low": 1, "high": 10, "step": 3},
    "flavour": ["sweet", "sour"],
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_everything_drawn_is_inside(seed: int) -> None:
    where, random = space(**NUMBERS), rng(seed)
    genome = where.sample(random)
    assert where.contains(genome)
    other = where.spread(5, random)[3]
    assert where.contains(other)
    assert where.contains(where.mix(genome, other, random))
    for name in where.names:
        moved = where.fix({**genome.genes, name: where.move(name, genome[name], random)})
        assert where.contains(moved)
        if name not in where.free:
            assert moved[name] == genome[name]


JSON = st.one_of(st.none(), st.booleans(), st.integers(-9, 999), st.floats(-3, 3), st.text(max_size=5))


@settings(max_examples=80, deadline=None)
@given(genes=st.dictionaries(st.sampled_from([*GENES, *NUMBERS, "other"]), JSON | st.lists(JSON, max_size=4)))
def test_fix_brings_anything_inside_and_leaves_it_there(genes: dict[str, Any]) -> None:
    where = space(**NUMBERS)
    fixed = where.fix(genes)
    assert where.contains(fixed)
    assert where.fix(fixed.genes) == fixed


def test_moves_change_every_movable_gene() -> None:
    where = space(**NUMBERS)
    for name in where.free:
        for seed in range(20):
            value = where.sample(rng(seed))[name]
            assert canonical(where.move(name, value, rng(seed))) != canonical(value), name


def test_ranges_keep_ints_steps_and_ends() -> None:
    where = space(**NUMBERS)
    genomes = [where.sample(rng(seed)) for seed in range(200)]
    assert {genome["beams"] for genome in genomes} == {1, 4, 7, 10}
    assert all(isinstance(genome["max_tokens"], int) and 4 <= genome["max_tokens"] <= 512 for genome in genomes)
    assert np.median([genome["max_tokens"] for genome in genomes]) < 120
    assert all(isinstance(genome["temperature"], float) for genome in genomes)


def test_equal_numbers_are_one_genome() -> None:
    assert space().complete({**START, "temperature": 0}) == space().complete({**START, "temperature": 0.0})


def test_omitted_genes_are_frozen_at_documented_values() -> None:
    where = Space({"rubric": ["a", "b"]}, models={"only": Abilities()})
    genome = where.sample(rng())
    assert where.free == ("rubric",)
    assert genome.genes == {
        "rubric": genome["rubric"],
        "cot": False,
        "temperature": 0.0,
        "max_tokens": 64,
        "demos": (),
        "demo_style": "chat",
        "constrain": False,
        "label_names": "as_is",
        "model": "only",
    }


def test_abilities_repair() -> None:
    where = space()
    genes = {**where.sample(rng()).genes, "model": "chatty", "demo_style": "completion", "constrain": True}
    fixed = where.fix(genes)
    assert (fixed["model"], fixed["demo_style"], fixed["constrain"]) == ("chatty", "chat", False)
    kept = where.fix({**genes, "model": "able"})
    assert (kept["demo_style"], kept["constrain"]) == ("completion", True)


def test_demo_samples_are_a_mixture_with_whole_rounds() -> None:
    where = space()
    samples = [where.sample(rng(seed))["demos"] for seed in range(400)]
    groups = dict(POOL)
    balanced = [demos for demos in samples if demos and len(demos) % LABELS == 0 and _even(demos, groups)]
    assert 0.05 < sum(not demos for demos in samples) / 400 < 0.17
    assert len(balanced) / 400 > 0.5
    assert {len(demos) for demos in balanced} == {4, 8, 12}
    assert all(len(set(demos)) == len(demos) <= 12 for demos in samples)


def _even(demos: tuple[str, ...], groups: dict[str, str]) -> bool:
    counts = [sum(groups[id] == f"label {label}" for id in demos) for label in range(LABELS)]
    return min(counts) == max(counts)


def test_demo_moves_reach_whole_rounds_and_single_swaps() -> None:
    where, groups = space(), dict(POOL)
    one_round = ("t000", "t001", "t002", "t003")
    moved = [where.move("demos", one_round, rng(seed)) for seed in range(300)]
    assert any(len(demos) == 8 and _even(demos, groups) for demos in moved)
    assert any(len(demos) == 0 for demos in moved)
    assert any(len(demos) == 4 and len(set(demos) & set(one_round)) == 3 for demos in moved)
    assert any(demos != one_round and set(demos) == set(one_round) for demos in moved)


def test_spread_covers_every_choice_evenly() -> None:
    genomes = space(model="able").spread(18, rng())
    for name, count in (("demo_style", 6), ("constrain", 9), ("label_names", 6)):
        values = [canonical(genome[name]) for genome in genomes]
        assert {values.count(value) for value in values} == {count}, name


def test_demos_without_labels_are_random_subsets() -> None:
    where = Space({"demos": {"max": 3}}, pool=[(f"e{i}", f"answer {i}") for i in range(9)])
    sizes = {len(where.sample(rng(seed))["demos"]) for seed in range(100)}
    assert sizes == {0, 1, 2, 3}


class Config(BaseModel):
    space: Genes


@pytest.mark.parametrize(
    ("genes", "gene", "words"),
    [
        ({"demo_style": ["chat", "complete"]}, "demo_style", ["'complete'", "inline", "did you mean 'completion'"]),
        ({"temperature": 3}, "temperature", ["3", "from 0 to 2"]),
        ({"temperature": {"low": 0, "hihg": 1}}, "temperature", ["'hihg'", "low, high"]),
        ({"temperature": {"low": 1, "high": 1}}, "temperature", ["low=1", "below"]),
        ({"max_tokens": [0, 4]}, "max_tokens", ["0", "whole number from 1"]),
        ({"max_tokens": []}, "max_tokens", ["empty list"]),
        ({"cot": "yes"}, "cot", ["'yes'", "true or false"]),
        ({"constrain": [True, True]}, "constrain", ["listed 2 times"]),
        ({"demos": 5}, "demos", ["5", "{max: 8}"]),
        ({"demos": {"max": 1, "min": 2}}, "demos", ["min=2", "max=1"]),
        ({"demos": ["a", "a"]}, "demos", ["once"]),
        ({"temprature": 0}, "temprature", ["did you mean 'temperature'"]),
        ({"rubric": {"texts": ["a"], "fix": True}}, "rubric", ["fixed"]),
    ],
)
def test_wrong_yaml_is_named_at_its_gene(genes: dict[str, Any], gene: str, words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"space": genes})
    (error,) = caught.value.errors()
    assert error["loc"] == ("space", gene)
    assert all(word in error["msg"] for word in words), error["msg"]
    with pytest.raises(ConfigError, match="space"):
        Space(genes)


def test_settings_of_a_gene_are_refused_with_their_value() -> None:
    with pytest.raises(ConfigError, match=r"^space: demos\.max: .* \(got -1\); rubric\.texts: .* \(got \(\)\)$"):
        Space({"demos": {"max": -1}, "rubric": {"texts": []}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ["able", "chaty"]}, ["'chaty'", "able, chatty", "did you mean 'chatty'"]),
        ({"label_names": ["letter"]}, ["'letter'", "did you mean 'letters'"]),
        ({"demos": ["t000", "val3"]}, ["'val3'", "train only"]),
        ({"demos": {"max": 90, "min": 80}}, ["min=80", "40"]),
        ({"demo_style": "completion"}, ["'chatty'", "chat"]),
        ({"constrain": True}, ["'chatty'", "[false, true]"]),
    ],
)
def test_a_space_that_does_not_fit_its_world_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_model_needs_saying_only_when_there_are_several() -> None:
    with pytest.raises(ConfigError, match="able, chatty"):
        Space({"rubric": "a"}, models=ABLE)
    assert Space({"rubric": "a"}, models={"able": ABLE["able"]}).free == ()


def test_start_genes_are_checked_and_completed() -> None:
    genome = space().complete(START)
    assert (genome["demos"], genome["constrain"], genome["demo_style"]) == ((), False, "chat")
    assert space().complete({**START, "max_tokens": 999})["max_tokens"] == 999
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        space().complete({"temprature": 1})
    with pytest.raises(ConfigError, match="'loud'"):
        space().complete({"demo_style": "loud"})
    with pytest.raises(ConfigError, match=r"demos: got \{'max': 3\}; allowed: a list of ids"):
        space().complete({"demos": {"max": 3}})


def test_settings_round_trip_and_have_a_schema() -> None:
    genes = Genes(dict(GENES))
    assert Genes.model_validate(genes.model_dump(mode="json")) == genes
    assert Genes.model_json_schema()["type"] == "object"
    assert space().possible["constrain"] == (False, True)


def test_a_genome_missing_a_gene_is_outside() -> None:
    where = space()
    genome = where.sample(rng())
    assert not where.contains(Genome(genes={k: v for k, v in genome.genes.items() if k != "cot"}))
    assert not where.contains(genome.replace(extra=1))
