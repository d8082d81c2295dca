"""Evaluation: one genome on one item, answered, scored, checked and recorded.

Call order: `Evaluator(task, splits)` -> `items(split, seed)` says what to evaluate -> `evaluate` each.
Failures of one example are in its record (GEPA, Agrawal et al. 2025: no exception); only `FATAL` are raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from evocluster.errors import FATAL
from evocluster.llm.client import LLM
from evocluster.records import Evaluation, Example, Genome, Item, Json, Score, Split, canonical
from evocluster.tasks.dataset import Splits, order
from evocluster.tasks.execution import Execution
from evocluster.tasks.perturb import perturb
from evocluster.tasks.program import Program
from evocluster.tasks.safety import flags
from evocluster.tasks.scorers import Scorer
from evocluster.tasks.task import BUILT_IN_NAMES, Task
from evocluster.tasks.words import normalise


class Evaluator:
    """A task, its examples and the program, ready to judge genomes. Picklable; holds nothing of a run."""

    def __init__(self, task: Task, splits: Splits, root: Path = Path()) -> None:
        """`root`: the config's folder, for a schema given by path. Raises: ConfigError: data does not fit."""
        self.task = task.settled(splits, root)
        self.splits = splits
        self.program = Program(self.task, splits.by_id("train"))
        self._kept = frozenset(word for label in self.task.labels for word in normalise(label).split())

    def label_names(self) -> tuple[str, ...]:
        """What the gene `label_names` may be: the built-in ways and the task's mappings."""
        return (*BUILT_IN_NAMES, *self.task.label_names) if self.task.kind == "classification" else ("as_is",)

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """The most model calls of one item, given the values each gene can take (left out: its default)."""
        return self.program.calls_per_item(possible)

    def items(self, split: Split, seed: int) -> tuple[Item, ...]:
        """Every item of a split: seeded, stratified by `expected`, an example's twins directly after it."""
        ids = order(self.splits.of(split), seed)
        chosen = self._with_twins(split, ids, seed)
        count = self.task.twins.count if self.task.twins else 0
        return tuple(
            Item(split=split, example=id, twin=twin)
            for id in ids
            for twin in range(1 + (count if id in chosen else 0))
            if twin == 0 or self.example(split, id, twin).input != self.example(split, id).input
        )

    def example(self, split: Split, id: str, twin: int = 0) -> Example:
        """The example, or its perturbed twin. Raises: DataError for an unknown id."""
        example = self.splits.get(split, id)
        twins = self.task.twins
        if twin == 0 or twins is None:
            return example
        return perturb(example, twin, twins.kinds, twins.seed, self._kept)

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation:
        """The record of this genome on this item. Raises: FATAL errors (and cancellation) only."""
        example = self.example(item.split, item.example, item.twin)
        execution = await self.program.run(example, genome, llm, item.replicate, item.twin)
        scores: dict[str, Score] = {}
        failures = [execution.error] if execution.error is not None else []
        if not failures:
            for scorer in self.task.scorers:
                outcome = await self._score(scorer, example, execution, llm)
                if isinstance(outcome, Score):
                    scores[scorer.name] = outcome
                else:
                    failures.append(outcome)
        quality = 0.0 if failures else self._quality(scores)
        named = self.task.validator.scorer
        return Evaluation(
            item=item,
            output=execution.output,
            scores=scores,
            quality=quality,
            validator=quality if failures or named is None else scores[named].value,
            schema_ok=execution.schema_ok,
            usage=execution.usage,
            repairs=execution.repairs,
            flags=tuple(dict.fromkeys(execution.flags + flags(self.task.safety, execution.output))),
            error="; ".join(failures) or None,
        )

    async def _score(self, scorer: Scorer, example: Example, execution: Execution, llm: LLM) -> Score | str:
        """The score, or why there is none."""
        try:
            score = await scorer.score(example, execution, llm)
            self._check(scorer, score)
        except FATAL:
            raise
        except Exception as failure:
            return f"scorer {scorer.name}: {type(failure).__name__}: {failure}"
        return score

    def _check(self, scorer: Scorer, score: Score) -> None:
        if not math.isfinite(score.value):
            raise ValueError(f"score {score.value!r} is not a finite number")
        if self.task.weight(scorer.name) and not 0 <= score.value <= 1:
            raise ValueError(f"score {score.value!r} is outside 0 to 1; scale it, or give the scorer weight 0")

    def _quality(self, scores: dict[str, Score]) -> float:
        """Weighted mean of the scorers."""
        weights = {name: self.task.weight(name) for name in scores}
        return sum(scores[name].value * weight for name, weight in weights.items()) / sum(weights.values())

    def _with_twins(self, split: Split, ids: tuple[str, ...], seed: int) -> frozenset[str]:
        """Ids of the share that gets twins, spread evenly over the order and over the classes."""
        twins = self.task.twins
        if twins is None:
            return frozenset()
        classes: dict[str, list[str]] = {}
        for id in ids:
            classes.setdefault(canonical(self.splits.get(split, id).expected), []).append(id)
        if len(classes) > len(ids) / 2:
            classes = {"": list(ids)}
        rng = np.random.default_rng([seed, twins.seed])
        starts = (rng.permutation(len(classes)) + 0.5) / len(classes)
        return frozenset(
            id
            for start, members in zip(starts, classes.values(), strict=True)
            for place, id in enumerate(members)
            if math.floor((place + 1) * twins.share + start) > math.floor(place * twins.share + start)
        )
