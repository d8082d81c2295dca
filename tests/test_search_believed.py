"""What members of a race are worth: with several tasks, own outcomes and rules, in a hybrid, and on another CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import search_world
from search_world import ABLE, ONE, POOL, drive, hashed, items, search, space

from evocluster.records import Evaluation, Genome, Item, Score, Split
from evocluster.search.across import Tasks
from evocluster.search.budget import Budget
from evocluster.search.objectives import Objective, built_in
from evocluster.search.settings import Search
from evocluster.search.space import Space
from evocluster.tasks.suite import Suite, task_of

SIZES: dict[Split, int] = {"train": 80, "validation": 60, "test": 60}
POLITE = Objective.model_validate({"name": "politeness", "source": "scores.polite"})
QUALITY, COST = ONE[0], built_in("cost_usd")


def task(example: str) -> str:
    """One in four belongs to the small task."""
    return "small" if int("".join(filter(str.isdigit, example))) % 4 == 3 else "large"


def test_where_the_worst_task_counts_its_best_leads_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    able = {"chat": (0.95, 0.1), "inline": (0.6, 0.6), "completion": (0.2, 0.2)}

    def answer(genome: Genome, item: Item) -> Evaluation:
        chance = able[str(genome["demo_style"])][task(item.example) == "small"]
        right = float(hashed("l", item.split, item.example, genome.id) < chance)
        return EVALUATE(genome, item).model_copy(update={"quality": right, "validator": right})

    monkeypatch.setattr(search_world, "evaluate", answer)
    genes = {"demo_style": ["chat", "inline", "completion"], "max_tokens": [8, 16], "label_names": ["as_is", "letters"]}
    where = Space({"rubric": "x", "model": "able", "demos": [], **genes}, pool=POOL, models=ABLE,
                  label_names=("as_is", "letters"))  # fmt: skip
    optimizer, world = search(
        Search(population=8, block=16, finalists=3),
        Budget(calls=1500),
        where=where,
        items=items(SIZES),
        objectives=ONE,
        start=(where.complete({"demo_style": "completion", "max_tokens": 16}),),
        tasks=lambda index: Tasks.among(index, task, "worst"),
    )
    drive(optimizer, world.run)
    assert {one.genome["demo_style"] for one in optimizer._population.front()} == {"inline"}
    for one in optimizer._population.members:
        assert abs(-one.values[0] - one.tally("train").value(QUALITY)) < 0.3, "no mean of both tasks"


@dataclass
class Part:
    """A task of a suite, by its sizes alone."""

    name: str
    sizes: dict[str, int]

    @property
    def splits(self) -> Part:
        return self

    def of(self, split: Split) -> list[Item]:
        return []

    def items(self, split: str, seed: int) -> list[Item]:
        return [Item(split=split, example=f"{self.name}::{split}{at}") for at in range(self.sizes[split])]


@pytest.mark.parametrize("strategy", ["refine", "hybrid"])
def test_uneven_tasks_are_asked_no_block_again_and_again(strategy: str) -> None:
    sizes = {"a": {"train": 10, "validation": 8, "test": 8}, "b": {"train": 60, "validation": 8, "test": 8}}
    suite = Suite({name: cast(Any, Part(name, one)) for name, one in sizes.items()})
    optimizer, world = search(
        Search(population=8, block=8, finalists=3, strategy=strategy, reflector="able"),
        Budget(calls=900),
        where=space(),
        items={split: suite.items(split, 3) for split in ("train", "validation", "test")},
        objectives=ONE,
        tasks=lambda index: Tasks.among(index, task_of, "mean"),
        seed=3,
    )
    trials = drive(optimizer, world.run)
    given = [
        t.proposal for t in trials if t.proposal.purpose in ("seed", "extend") and t.proposal.operator == "evaluate"
    ]
    assert max(Counter((one.parents[0].id, one.items[0].example) for one in given).values()) <= 2
    assert all(optimizer._ground.ids[at] == id for id, at in optimizer._ground.index.items())


def politeness(genome: Genome) -> float:
    """True politeness, in other genes than quality, and against it."""
    letters, inline = bool(genome["label_names"] == "letters"), bool(genome["demo_style"] == "inline")
    warm, free = bool(genome["temperature"]), not genome["constrain"]
    return 0.1 + 0.25 * letters + 0.25 * inline + 0.2 * warm + 0.1 * free


EVALUATE = search_world.evaluate


def polite(genome: Genome, item: Item) -> Evaluation:
    value = float(hashed("polite", item.example, item.split, genome.id) < politeness(genome))
    return EVALUATE(genome, item).model_copy(update={"scores": {"polite": Score(value=value)}})


def test_what_the_rule_wants_best_is_raced_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_world, "evaluate", polite)
    lost = []
    for seed in range(3):
        optimizer, world = search(
            Search(population=12, block=8, finalists=4),
            Budget(calls=2500),
            objectives=(QUALITY, POLITE),
            recommend="best politeness",
            items=items(SIZES),
            seed=seed,
        )
        made = {trial.genome.id: trial.genome for trial in drive(optimizer, world.run) if trial.genome}
        (chosen,) = (one for one in optimizer.front() if one.recommended)
        lost.append(max(map(politeness, made.values())) - politeness(chosen.genome))
    assert np.mean(lost) <= 0.15, "before, when quality and composite alone were raced for: 0.3 and more"


def test_the_cheapest_that_is_good_enough_is_among_the_finalists() -> None:
    found = []
    for seed in range(5):
        optimizer, world = search(
            Search(population=12, block=8, finalists=4),
            Budget(calls=2500),
            recommend="cheapest where quality >= 0.4",
            items=items(SIZES),
            seed=seed,
        )
        drive(optimizer, world.run)
        checked = [one.genome for one in optimizer._check._members.values()]
        prices = {one.genome.id: one.tally("train").value(COST) for one in optimizer._population.members}
        fit = [one.genome for one in optimizer._population.members if search_world.truth(one.genome) >= 0.5]
        cheapest = min(prices[genome.id] for genome in fit)
        found.append(any(prices.get(one.id, np.inf) <= cheapest * 1.05 for one in checked))
    assert all(found)


def test_an_own_threshold_of_robustness_is_what_dominates(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(genome: Genome, item: Item) -> Evaluation:
        return EVALUATE(genome, item).model_copy(update={"validator": 0.7 if genome["constrain"] else 0.2})

    monkeypatch.setattr(search_world, "evaluate", answer)
    own = Objective.model_validate({"source": "robustness", "threshold": 0.5})
    optimizer, world = search(
        Search(population=8, block=8, finalists=3),
        Budget(calls=800),
        objectives=(COST, own),
        recommend="best robustness",
    )
    drive(optimizer, world.run)
    for one in optimizer._population.members:
        assert abs(-one.values[1] - one.tally("train").value(own)) < 0.35
    assert any(one.genome["constrain"] for one in optimizer._population.front())


def test_a_hybrid_compares_refined_members_with_explored_ones_on_one_scale() -> None:
    optimizer, world = search(
        Search(population=6, block=8, finalists=3, strategy="hybrid", reflector="able"), Budget(calls=1200)
    )
    drive(optimizer, world.run)
    believed = optimizer._ground.believed
    assert believed is not None
    assert not optimizer._strategy.told()["exploring"]
    for one in optimizer._population.members:
        assert one.values[0] == -believed.of(one.genome)[0].mean


def test_an_operator_pays_for_children_that_were_known() -> None:
    where = space(rubric="One.", temperature=0, max_tokens=[4, 8, 16], demos=[], constrain=[False, True])
    settings = Search(population=8, block=8, finalists=3, operators=("mutate", "numbers", "crossover"))
    start = where.complete({"max_tokens": 8})
    optimizer, world = search(settings, Budget(calls=2500), where=where, start=(start,))
    drive(optimizer, world.run)
    uses = sum(one["uses"] for one in optimizer.progress()["operators"].values())
    assert uses >= 0.75 * optimizer._ground.children


SCRIPT = """
import hashlib
from search_world import Budget, Search, drive, items, search

optimizer, world = search(Search(population=20, block=8, finalists=4), Budget(calls=4000), seed=2,
                          items=items({"train": 80, "validation": 60, "test": 60}))
told = hashlib.sha256()
for trial in drive(optimizer, world.run):
    told.update(trial.proposal.model_dump_json().encode())
print(told.hexdigest())
"""


@pytest.mark.slow
def test_another_kind_of_cpu_asks_the_same() -> None:
    def run(kind: str) -> str:
        env = {**os.environ, **({"OPENBLAS_CORETYPE": kind} if kind else {})}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), env.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True, timeout=300
        ).stdout

    assert run("Sandybridge") == run("")
