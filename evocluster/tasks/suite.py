"""Several related tasks that one genome serves: each keeps its own examples, scorers and program.

An example of a suite is called 'task::id', so that items, rows and demos say whose they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from evocluster.errors import ConfigError
from evocluster.llm.client import LLM
from evocluster.records import Evaluation, Example, Genome, Item, Json, Split
from evocluster.tasks.dataset import SPLITS, Splits
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.execution import Execution
from evocluster.tasks.words import nearest

MARK = "::"
"""Between the name of a task and the id of its example."""


def task_of(example: str) -> str:
    """The task that an example of a suite belongs to."""
    return example.partition(MARK)[0]


def marked(name: str, splits: Splits) -> Splits:
    """The splits with the task's name before every id."""
    renamed = {
        split: [example.model_copy(update={"id": f"{name}{MARK}{example.id}"}) for example in splits.of(split)]
        for split in SPLITS
    }
    return Splits(renamed["train"], renamed["validation"], renamed["test"], places=splits.places)


class Suite:
    """Evaluators of several tasks as one. Picklable."""

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        """Task name -> evaluator over `marked` splits."""
        self._evaluators = dict(evaluators)
        parts = [one.splits for one in self._evaluators.values()]
        self.splits = Splits(*([example for part in parts for example in part.of(split)] for split in SPLITS))

    @property
    def names(self) -> list[str]:
        """Of the tasks, in the config's order."""
        return list(self._evaluators)

    def named(self, task: str) -> Evaluator:
        """The evaluator of one task. Raises: ConfigError where there is none of that name."""
        if task not in self._evaluators:
            known = f"{', '.join(self.names)}{nearest(task, self.names)}"
            raise ConfigError(f"task {task!r} is none of this run; there are {known}")
        return self._evaluators[task]

    async def prepare(self) -> None:
        """What is made once, before this is pickled to the workers. Raises: ConfigError."""
        for one in self._evaluators.values():
            await one.prepare()

    def sources(self) -> dict[str, dict[str, str]]:
        """What scores depend on besides config and data: kind -> file or code -> digest."""
        found: dict[str, dict[str, str]] = {}
        for one in self._evaluators.values():
            for kind, named in one.sources().items():
                found.setdefault(kind, {}).update(named)
        return found

    def label_names(self) -> tuple[str, ...]:
        """Every style that one of the tasks has."""
        return tuple(dict.fromkeys(name for one in self._evaluators.values() for name in one.label_names()))

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """As of the task that takes most."""
        known = {name: tuple(values) for name, values in possible.items()}
        return max(one.calls_per_item(known) for one in self._evaluators.values())

    def items(self, split: Split, seed: int) -> tuple[Item, ...]:
        """Every item of a split, the tasks mixed so that any block holds nearly their overall shares."""
        groups = [_by_example(one.items(split, seed)) for one in self._evaluators.values()]
        rng = np.random.default_rng([seed, len(groups)])
        places = [
            ((at + offset) / max(len(group), 1), number, at)
            for number, (group, offset) in enumerate(zip(groups, rng.random(len(groups)), strict=True))
            for at in range(len(group))
        ]
        return tuple(item for _, number, at in sorted(places) for item in groups[number][at])

    def example(self, split: Split, id: str, twin: int = 0) -> Example:
        """The example, or its perturbed twin. Raises: DataError for an unknown id."""
        return self._of(id).example(split, id, twin)

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation:
        """The record of this genome on this item. Raises: FATAL errors (and cancellation) only."""
        return await self._of(item.example).evaluate(item, genome, llm)

    async def attempt(self, item: Item, genome: Genome, llm: LLM) -> tuple[Evaluation, Execution]:
        """The same, and how the answer came about."""
        return await self._of(item.example).attempt(item, genome, llm)

    def _of(self, example: str) -> Evaluator:
        return self._evaluators[task_of(example)]


def one_of(evaluator: Evaluator | Suite, task: str | None) -> Evaluator:
    """The evaluator of one task of a run. Raises: ConfigError where `task` does not say which, or needlessly."""
    if isinstance(evaluator, Evaluator):
        if task is not None:
            raise ConfigError(f"task {task!r}: this run has one task, which has no name; leave it out")
        return evaluator
    if task is None:
        raise ConfigError(f"this run has several tasks; say which with --task: {', '.join(evaluator.names)}")
    return evaluator.named(task)


def _by_example(items: Iterable[Item]) -> list[list[Item]]:
    """Twins together with their example."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.example, []).append(item)
    return list(groups.values())
