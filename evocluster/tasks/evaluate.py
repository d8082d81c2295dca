"""Evaluation: one genome on one item, answered, scored, checked and recorded.

Call order: `Evaluator(task, splits)` -> `items(split, seed)` says what to evaluate -> `evaluate` each.
Failures of one example are in its record (GEPA, Agrawal et al. 2025: no exception); only `FATAL` are raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evocluster.errors import FATAL, ConfigError
from evocluster.llm.client import LLM
from evocluster.records import (
    Evaluation,
    Example,
    FrozenDict,
    Genome,
    Item,
    Json,
    Score,
    Split,
    born,
    canonical,
    digest,
)
from evocluster.tasks.calls import Calls
from evocluster.tasks.code import extend_path, fingerprint
from evocluster.tasks.dataset import SPLITS, Splits, order
from evocluster.tasks.documents import read_documents
from evocluster.tasks.execution import Execution
from evocluster.tasks.executor import Pipeline
from evocluster.tasks.fields import Fields
from evocluster.tasks.grading import Grader
from evocluster.tasks.perturb import perturb
from evocluster.tasks.program import Program, Runs
from evocluster.tasks.recall import Recall
from evocluster.tasks.retrieval import Index
from evocluster.tasks.safety import flags
from evocluster.tasks.scorers import Scorer
from evocluster.tasks.task import BUILT_IN_NAMES, Task
from evocluster.tasks.words import normalise


@runtime_checkable
class Prepared(Protocol):
    """A scorer or check whose settings name something that has to be there: code, a rubric."""

    def check(self) -> None:
        """Raises: ConfigError."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A scorer or check that asks models."""

    @property
    def calls(self) -> int:
        """The most calls for one evaluation."""
        ...


class Evaluator:
    """A task, its examples and the program, ready to judge genomes. Picklable; holds nothing of a run."""

    def __init__(self, task: Task, splits: Splits, root: Path = Path(), python_path: Sequence[str] = ()) -> None:
        """`root`: the config's folder, for a schema given by path; `python_path`: folders that user code is in.

        Raises: ConfigError: data, documents or the user's code do not fit.
        """
        self._python_path = tuple(python_path)
        extend_path(self._python_path)
        self.task = task.settled(splits, root)
        self.splits = splits
        self.index = Index(task.retrieval, read_documents(task.retrieval)) if task.retrieval else None
        train = splits.by_id("train")
        self.program: Runs = (
            Program(self.task, train, self.index)
            if self.task.executor is None
            else Pipeline(self.task, self.task.executor, train)
        )
        for part in (*self.task.scorers, *self.task.safety):
            if isinstance(part, Prepared):
                part.check()
            if isinstance(part, Fields) and (wrong := part.unexpected(_expected(splits))):
                raise ConfigError(f"scorer {part.name!r}: {wrong}")
            if isinstance(part, Recall) and self.index is not None:
                ids = [passage.id for passage in self.index.passages]
                part.fits((example for split in SPLITS for example in splits.of(split)), ids)
        self._kept = frozenset(word for label in self.task.labels for word in normalise(label).split())

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In another process, where the folders of user code are not known yet.
        extend_path(state["_python_path"])
        self.__dict__.update(state)

    async def prepare(self) -> None:
        """What is made once, before this is pickled to the workers. Raises: ConfigError."""
        if self.index is not None:
            await self.index.prepare()

    def sources(self) -> dict[str, dict[str, str]]:
        """What scores depend on besides config and data, by kind: file or code -> digest."""
        task = self.task
        rubrics = [part.pinned for part in (*task.scorers, *task.safety) if isinstance(part, Grader)]
        documents = (
            {task.retrieval.documents: digest([passage.model_dump() for passage in self.index.passages])[:16]}
            if task.retrieval and self.index
            else {}
        )
        found = {
            "code": {spec: fingerprint(spec) for spec in task.code},
            "rubrics": {rubric.path: f"{rubric.version} {rubric.digest}" for rubric in rubrics},
            "documents": documents,
        }
        return {kind: named for kind, named in found.items() if named}

    def label_names(self) -> tuple[str, ...]:
        """What the gene `label_names` may be: the built-in ways and the task's mappings."""
        return (*BUILT_IN_NAMES, *self.task.label_names) if self.task.kind == "classification" else ("as_is",)

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """The most model calls of one item, judges included, given the values each gene can take (left out: its
        default).
        """
        parts = (*self.task.scorers, *self.task.safety)
        judged = sum(part.calls for part in parts if isinstance(part, Judging))
        return self.program.calls_per_item(possible) + judged

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
        return (await self.attempt(item, genome, llm))[0]

    async def attempt(self, item: Item, genome: Genome, llm: LLM) -> tuple[Evaluation, Execution]:
        """The same, and how the answer came about."""
        example = self.example(item.split, item.example, item.twin)
        execution = await self.program.run(example, genome, llm, item.replicate, item.twin)
        judging = Calls(llm)
        scores, failures = await self._scored(example, execution, judging)
        raised: tuple[str, ...] = ()
        if execution.error is None:
            raised, broken = await flags(self.task.safety, example, execution, judging)
            failures += broken
        quality = 0.0 if failures else self._quality(scores)
        named = self.task.validator.scorer
        record = born(
            Evaluation,
            {
                "item": item,
                "output": execution.output,
                "scores": FrozenDict(scores),
                "quality": quality,
                "validator": quality if failures or named is None else scores[named].value,
                "schema_ok": bool(execution.schema_ok),
                "usage": execution.usage,
                "repairs": execution.repairs,
                "flags": tuple(dict.fromkeys(execution.flags + raised)),
                "error": "; ".join(failures) or None,
                "judging": judging.usage,
                "trace": tuple(FrozenDict(vars(step)) for step in execution.trace) if self.task.traced else (),
            },
        )
        return record, execution

    async def _scored(self, example: Example, execution: Execution, llm: LLM) -> tuple[dict[str, Score], list[str]]:
        """Every scorer's score, and why there is none where there is none."""
        if execution.error is not None:
            return {}, [execution.error]
        scores: dict[str, Score] = {}
        failures: list[str] = []
        for scorer in self.task.scorers:
            outcome = await self._score(scorer, example, execution, llm)
            if isinstance(outcome, Score):
                scores[scorer.name] = outcome
            else:
                failures.append(outcome)
        return scores, failures

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
        """Weighted mean of the scorers; 0 when one that must pass did not."""
        if any(scores[name].value < threshold for name, threshold in self.task.must_pass.items()):
            return 0.0
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


def _expected(splits: Splits) -> list[Json]:
    return [example.expected for split in SPLITS for example in splits.of(split)]
