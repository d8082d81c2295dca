"""What members of a race are worth: their outcomes as believed (`beliefs.py`), what they take as measured.

With several tasks each has beliefs of its own, and they become one as the tasks do: their mean, or the worst of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from evocluster.records import Genome
from evocluster.search.across import Tasks
from evocluster.search.aim import Aim
from evocluster.search.beliefs import Belief, Beliefs
from evocluster.search.objectives import Objective, built_in
from evocluster.search.population import Individual
from evocluster.search.race import TAKEN

COMPOSITE = built_in("composite")


class Believed:
    """Call order: `learn` after a member's tally grew; `of` any genome."""

    def __init__(
        self, genes: Sequence[str], objectives: Sequence[Objective], tasks: Tasks | None = None, aim: Aim | None = None
    ) -> None:
        """`genes`: names of those that can differ; `tasks`: of the train examples, where there are several."""
        self._objectives, self._tasks, self._aim = tuple(objectives), tasks, aim
        best = aim.objective() if aim is not None else None
        more = {one.name: one for one in (*objectives, *([best] if best else [])) if _shrinks(one)}
        self._outcomes = (COMPOSITE, *more.values())
        self._parts = [Beliefs(genes, outcomes=len(self._outcomes)) for _ in (tasks.names if tasks else ("",))]
        others = {one.name: at for at, one in enumerate(self._outcomes[1:], 2)}
        sources = {name: at for at, source in enumerate(("quality", "composite")) for name in self._means(source)}
        self._named = {**others, **sources}
        """Name of an outcome -> its place in what `of` returns."""
        self._shrunk = [
            (at, one.sign, self._named[one.name]) for at, one in enumerate(objectives) if one.name in self._named
        ]
        self.racing: Collection[str] = ()
        """Genomes that are to be remembered although they are no members."""
        names = ["quality", "composite", *more]
        self.wanted = names.index(best.name) if best is not None and best.name in names else 0
        """Place in `of` of what the rule wants best, where that is an outcome; else that of the quality."""

    def learn(self, one: Individual, members: Iterable[Individual]) -> None:
        """What is known of one now; everybody is worth what is believed since."""
        tally = one.tally("train")
        if self._tasks is None:
            self._parts[0].learn(one.genome, one.by_example, [tally.value(o) for o in self._outcomes])
        else:
            for place, name in enumerate(self._tasks.names):
                own, part = self._tasks.of[: len(one.by_example)] == place, tally.part(name)
                outcomes = np.where(own, one.by_example, np.float32(np.nan))
                self._parts[place].learn(one.genome, outcomes, [part.value(o) for o in self._outcomes])
        every = {id(each): each for each in (*members, one)}
        for each in every.values():
            self._believe(each)
        for beliefs in self._parts:
            beliefs.keep([*(each.genome.id for each in members), *self.racing])

    def of(self, genome: Genome) -> tuple[Belief, ...]:
        """Quality, composite, then the other outcomes that are objectives, of a genome, tried or not."""
        found = [beliefs.of(genome) for beliefs in self._parts]
        return found[0] if self._tasks is None else tuple(map(self._joined, zip(*found, strict=True)))

    def _joined(self, parts: Sequence[Belief]) -> Belief:
        assert self._tasks is not None
        if self._tasks.how == "worst":
            return min(parts)
        means, deviations = np.array(parts).T
        return Belief(float(means.mean()), float(np.sqrt(np.square(deviations).sum()) / len(parts)))

    def _believe(self, one: Individual) -> None:
        found = self.of(one.genome)
        quality, composite = found[:2]
        for at, sign, place in self._shrunk:
            one.values[at] = sign * found[place].mean
        one.careful = (quality.mean - quality.deviation, composite.mean - composite.deviation)
        one.hopeful = (quality.mean + quality.deviation, composite.mean + composite.deviation)
        if self._aim is not None:
            self._aim.take(one, {name: found[place] for name, place in self._named.items()})

    def _means(self, source: str) -> list[str]:
        """Names of the objectives that are the mean of this source, the source's own among them."""
        return [source, *(one.name for one in self._objectives if one.source == source and _mean(one))]


def _shrinks(objective: Objective) -> bool:
    """An outcome besides quality and composite whose mean can be shrunken. What is better when lower is left as it is:
    nothing measured would count as the best.
    """
    other = objective.source not in (*TAKEN, "quality", "composite")
    return other and _mean(objective) and objective.direction == "max"


def _mean(objective: Objective) -> bool:
    return objective.aggregate == "mean"
