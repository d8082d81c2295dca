"""An audit: a judge grades labelled answers, and what it says is held against the labels.

Check(task, ...)  finds the judge  ->  prepare  reads rubric and labels  ->  run  asks  ->  Audit
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evocluster.errors import FATAL, ConfigError, ModelError
from evocluster.llm.client import LLM, Abilities, unconfigured
from evocluster.records import Json, Record
from evocluster.tasks.agreement import Agreement, Stability, agreement, stability, verdict
from evocluster.tasks.calls import together
from evocluster.tasks.dataset import ReadParquet
from evocluster.tasks.grading import Grade
from evocluster.tasks.judge import Judge, JudgeFlag
from evocluster.tasks.labelled import Labelled, read_labelled
from evocluster.tasks.task import Task
from evocluster.tasks.words import nearest

WORST = 5
"""Disagreements that are listed."""
MOST_REPEATS = 100


class Case(Record):
    """One labelled answer and what the judge made of it."""

    id: str
    input: Json
    expected: Json
    output: str
    label: float
    """0 to 1."""
    judged: float | None
    """0 to 1; None: no reply could be read."""
    reason: str
    error: str | None
    again: tuple[float | None, ...]
    """What it said when it was asked once more, and once more."""


class Audit(Record):
    """What a check of one judge found."""

    judge: str
    model: str
    rubric: dict[str, Any]
    """path, version, digest and scale."""
    labels: int
    failed: int
    """Answers that got no grade."""
    agreement: Agreement
    stability: Stability | None
    verdict: tuple[str, ...]
    worst: tuple[Case, ...]
    cases: tuple[Case, ...]


class Check:
    """One judge of the tasks and the labels to hold it against. Call order: construct, prepare, run."""

    def __init__(
        self,
        tasks: Sequence[Task],
        scorer: str | None = None,
        labels: Path | None = None,
        *,
        limit: int | None = None,
        repeats: int = 1,
        pass_at: float | None = None,
    ) -> None:
        """`scorer`: name of a judge scorer or flag (None: the only one); `labels`: their file (None: the judge's own).

        `limit`: only the first so many labels. `repeats`: how often each answer is graded. `pass_at`: the score that
        passes (None: the flag's threshold, or the task's accuracy_threshold). Raises: ConfigError.
        """
        self.judge = choose([part for task in tasks for part in (*task.scorers, *task.safety)], scorer)
        self._path = labels
        self._limit = limit
        self._repeats = repeats
        owner = next(task for task in tasks if self.judge in (*task.scorers, *task.safety))
        ours = self.judge.threshold if isinstance(self.judge, JudgeFlag) else owner.accuracy_threshold
        self._bar = ours if pass_at is None else pass_at
        self._labels: tuple[Labelled, ...] = ()
        for what, value, fits, allowed in (
            ("limit", limit, limit is None or limit >= 1, "1 or more"),
            ("repeats", repeats, 1 <= repeats <= MOST_REPEATS, f"1 to {MOST_REPEATS}"),
            ("pass_at", self._bar, 0 < self._bar <= 1, "above 0, to 1"),
        ):
            if not fits:
                raise ConfigError(f"{what} {value!r}: allowed: {allowed}")

    def prepare(self, models: Mapping[str, Abilities], read_parquet: ReadParquet | None = None) -> None:
        """Read rubric and labels; `models`: what every configured model can do. Nothing is spent.

        Raises: ConfigError, errors.DataError.
        """
        judge = self.judge
        if judge.model not in models:
            raise unconfigured(judge.model, models)
        judge.check(models[judge.model])
        if self._path is None and judge.labelled is None:
            raise ConfigError(f"judge {judge.title!r} names no labels; give --labels FILE, or set its `labelled:`")
        path = self._path or Path(judge.labelled or "")
        self._labels = read_labelled(path, judge.pinned.scale, read_parquet, self._limit)

    async def run(self, llm: LLM, seed: int = 0) -> Audit:
        """Every labelled answer graded; a grade that failed is in its case.

        Raises: FATAL errors; errors.ModelError where not one call came back.
        """
        judge, repeats = self.judge, self._repeats
        asked = [(label, replicate) for label in self._labels for replicate in range(repeats)]
        grades = await together(_one(judge, label, llm, replicate) for label, replicate in asked)
        _refuse_silence(grades)
        said = [grades[at : at + repeats] for at in range(0, len(grades), repeats)]
        cases = tuple(_case(label, each) for label, each in zip(self._labels, said, strict=True))
        graded = [case for case in cases if case.judged is not None]
        found = agreement(
            np.array([case.judged for case in graded], dtype=np.float64),
            np.array([case.label for case in graded], dtype=np.float64),
            self._bar,
            np.random.default_rng(seed),
        )
        table = [[grade.value if isinstance(grade, Grade) else np.nan for grade in each] for each in said]
        steady = stability(np.array(table, dtype=np.float64).T) if repeats > 1 else None
        rubric = judge.pinned
        return Audit(
            judge=judge.title,
            model=judge.model,
            rubric={**rubric.model_dump(include={"path", "version", "digest"}), "scale": rubric.scale.name},
            labels=len(cases),
            failed=len(cases) - len(graded),
            agreement=found,
            stability=steady,
            verdict=verdict(found, len(cases) - len(graded), steady),
            worst=tuple(case for case in sorted(graded, key=_apart, reverse=True)[:WORST] if _apart(case) > 1e-9),
            cases=cases,
        )


def choose(parts: Iterable[object], name: str | None) -> Judge | JudgeFlag:
    """The judge of this name among scorers and safety checks, or the only one. Raises: ConfigError."""
    judges = [part for part in parts if isinstance(part, Judge | JudgeFlag)]
    titles = [judge.title for judge in judges]
    if not judges:
        raise ConfigError(
            "the task has no judge; add one under task.scorers, e.g. {kind: judge, model: big, rubric: rubric.md}"
        )
    if name is None and len(judges) > 1:
        raise ConfigError(f"the task has several judges; name one with --scorer: {', '.join(titles)}")
    if name is not None and name not in titles:
        raise ConfigError(f"no judge {name!r} in the task; there are: {', '.join(titles)}{nearest(name, titles)}")
    return judges[0] if name is None else judges[titles.index(name)]


def _apart(case: Case) -> float:
    return abs((case.judged or 0.0) - case.label)


def _refuse_silence(grades: Sequence[Grade | Exception]) -> None:
    """Raises: errors.ModelError: the model cannot be used, which is no finding about the judge."""
    if grades and all(isinstance(each, ModelError) for each in grades):
        raise next(each for each in grades if isinstance(each, ModelError))


def _case(label: Labelled, said: Sequence[Grade | Exception]) -> Case:
    first = said[0]
    return Case(
        id=label.example.id,
        input=label.example.input,
        expected=label.example.expected,
        output=label.output,
        label=label.value,
        judged=first.value if isinstance(first, Grade) else None,
        reason=first.reason if isinstance(first, Grade) else "",
        error=None if isinstance(first, Grade) else f"{type(first).__name__}: {first}",
        again=tuple(grade.value if isinstance(grade, Grade) else None for grade in said[1:]),
    )


async def _one(judge: Judge | JudgeFlag, label: Labelled, llm: LLM, replicate: int) -> Grade | Exception:
    """The grade, or why there is none."""
    try:
        return await judge.grade(label.example, label.output, llm, replicate)
    except FATAL:
        raise
    except (ValueError, ModelError) as failure:
        return failure
