"""The hypervolume of a population is of one scale, whatever is aimed at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evocluster.records import Evaluation, Genome, Item, Score, Usage
from evocluster.search.objectives import FOUR, Composite, Objective, Tally
from evocluster.search.population import Individual, Population


def aims(direction: str) -> tuple[Objective, ...]:
    mood = {"name": "mood", "source": "scores.mood", "direction": direction}
    return (Objective.model_validate("quality"), Objective.model_validate(mood))


def member(name: str, objectives: Sequence[Objective], quality: float, mood: float, seconds: float = 0.1) -> Individual:
    one = Individual(Genome(genes={"rubric": name}), lambda split: Tally(Composite(), ("mood",)))
    done = Evaluation(
        item=Item(split="train", example="a"),
        quality=quality,
        validator=quality,
        scores={"mood": Score(value=mood)},
        usage=Usage(calls=1, usd=1e-3, seconds=seconds),
    )
    one.learn([done], objectives, 1)
    return one


@pytest.mark.parametrize("shift", [-7.0, 0.0, 300.0])
@pytest.mark.parametrize("direction", ["max", "min"])
def test_scores_outside_0_to_1(direction: str, shift: float) -> None:
    objectives = aims(direction)
    sign = 1 if direction == "max" else -1
    found = Population(10, objectives)
    for n, (quality, mood) in enumerate([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)]):
        found.insert(member(str(n), objectives, quality, sign * mood * 2 + shift))
    found.refer()
    before = found.hypervolume()
    assert 0 < before < 1.1**2
    found.insert(member("better", objectives, 0.6, sign * 0.6 * 2 + shift))
    assert before < found.hypervolume() < 1.1**2


def test_the_usual_objectives_keep_their_ideal() -> None:
    found = Population(10, FOUR)
    for n in range(3):
        found.insert(member(str(n), FOUR, 0.2 + 0.3 * n, 0, 0.1 + 0.1 * n))
    found.refer()
    assert np.array_equal(found._ideal, [-1.0, 0.0, 0.0, -1.0])
