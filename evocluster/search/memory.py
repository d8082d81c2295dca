"""The memory of the optimisation: lessons of what worked and what regressed, and the last iterations in detail.

Everything in it comes from outcomes by rule: the change an operator says it made, and what became of the quality of
the same examples from parent to child. Call order: `tell` once a child whose evaluation is over, `render` any time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from evocluster.search.population import Individual

DETAILED = 3
"""Iterations that are told in detail."""
LESSONS = 64
"""Lessons kept; the oldest goes first."""
ALIKE = 0.7
"""Share of words in common from which two changes are the same lesson."""
CHANGE, TARGETS, RESULT, PER_ITERATION = 160, 90, 110, 10
"""Characters of a line's parts; lines of an iteration."""
DETAIL_SHARE = 0.6
"""Of the room, what the last iterations may take while there are lessons."""
CHARS_PER_TOKEN = 3
"""Fewer than any tokenizer of English needs, so that the estimate is never too low there."""
REJECTED, PARENTS = 8, 64
"""Rejected texts kept of a parent, and parents they are kept of."""


@dataclass
class Lesson:
    """What one kind of change did, over all the times it was tried."""

    change: str
    targets: str
    words: frozenset[str]
    tries: int = 0
    examples: int = 0
    gain: float = 0.0
    """Of quality, summed over the examples."""
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Gain of quality an example."""
        return self.gain / self.examples if self.examples else 0.0

    @property
    def verdict(self) -> str:
        """Beyond one standard error it worked or regressed; a quarter of variance is added as if one more example had
        been seen.
        """
        n = max(1, self.examples)
        variance = max(0.0, self.squares / n - self.mean**2) + 0.25 / n
        if abs(self.mean) <= sqrt(variance / n):
            return "made no clear difference"
        return "worked" if self.mean > 0 else "regressed"

    def line(self) -> str:
        """As one line."""
        often = f" in {self.tries} tries" if self.tries > 1 else ""
        aim = f" [{self.targets}]" if self.targets else ""
        return f"- {self.verdict}: {self.change}{aim}: {self.mean:+.2f} over {self.examples} examples{often}"


class Memory:
    """Within a budget of tokens, and bounded however long a run is."""

    def __init__(self, tokens: int = 1200) -> None:
        self._room = tokens * CHARS_PER_TOKEN
        self._lessons: deque[Lesson] = deque()
        self._iterations: deque[tuple[int | None, list[str]]] = deque(maxlen=DETAILED)
        self._rejected: dict[str, deque[str]] = {}

    def tell(self, child: Individual, parent: Individual | None, kept: bool, iteration: int | None = None) -> None:
        """A child's evaluation is over. `kept`: it took its parent's place, or joined the population.

        `iteration`: of children that were proposed side by side; without it every child is one of its own.
        """
        if not kept and parent is not None:
            self._reject(parent, child)
        change = line(child.notes.get("change", ""), CHANGE)
        if not change:
            return
        targets = line(_joined(child.notes.get("targets", ())), TARGETS)
        differences, before = paired(child, parent)
        if len(differences):
            self._learn(change, targets, differences)
            result = f"quality {before:.2f} -> {before + differences.mean():.2f} on {len(differences)} examples"
        else:
            result = "no example in common with its parent"
        self.note(change, targets, f"{result}, {'kept' if kept else 'rejected'}", iteration)

    def note(self, change: str, targets: str, result: str, iteration: int | None = None) -> None:
        """One line of the last iterations: a change, the issues it targeted, and what came of it."""
        aim = f" | targets: {line(targets, TARGETS)}" if targets else ""
        text = f"  - {line(change, CHANGE)}{aim} | {line(result, RESULT)}"
        if iteration is None or not self._iterations or self._iterations[-1][0] != iteration:
            self._iterations.append((iteration, []))
        lines = self._iterations[-1][1]
        if len(lines) < PER_ITERATION:
            lines.append(text)

    def rejected(self, parent: str) -> tuple[str, ...]:
        """Rubrics that were tried from the parent of this id and rejected, the oldest first."""
        return tuple(self._rejected.get(parent, ()))

    def render(self) -> str:
        """What a model is told of it; '' when nothing happened yet. The oldest lessons are left out first."""
        share = DETAIL_SHARE if self._lessons else 1.0
        detail = self._detail(int(self._room * share))
        head = "Lessons, the newest first (gain of quality on the same examples):"
        left = self._room - len(detail) - len(head) - 2
        lessons: list[str] = []
        for lesson in reversed(self._lessons):
            text = lesson.line()
            left -= len(text) + 1
            if left < 0:
                break
            lessons.append(text)
        return "\n".join([*([head, *lessons] if lessons else []), *([detail] if detail else [])])

    def _detail(self, room: int) -> str:
        head = f"The last iterations, the newest first (at most {DETAILED}):"
        lines, left = [head], room - len(head)
        for back, (_, made) in enumerate(reversed(self._iterations), 1):
            title = f"{back} iterations ago:" if back > 1 else "the last one:"
            part = [title]
            left -= len(title) + 1
            for text in made:
                left -= len(text) + 1
                if left < 0:
                    break
                part.append(text)
            if len(part) == 1:
                break
            lines += part
            if left < 0:
                break
        return "\n".join(lines) if len(lines) > 1 else ""

    def _learn(self, change: str, targets: str, differences: np.ndarray) -> None:
        words = frozenset(re.findall(r"\w+", change.lower()))
        lesson = next((one for one in self._lessons if _alike(one.words, words)), None)
        if lesson is None:
            lesson = Lesson(change, targets, words)
        else:
            self._lessons.remove(lesson)
            lesson.change, lesson.targets, lesson.words = change, targets or lesson.targets, words
        lesson.tries += 1
        lesson.examples += len(differences)
        lesson.gain += float(differences.sum())
        lesson.squares += float(np.square(differences).sum())
        self._lessons.append(lesson)
        while len(self._lessons) > LESSONS:
            self._lessons.popleft()

    def _reject(self, parent: Individual, child: Individual) -> None:
        text = str(child.genome.genes.get("rubric", ""))
        if text == parent.genome.genes.get("rubric"):
            return
        texts = self._rejected.pop(parent.genome.id, deque(maxlen=REJECTED))
        if text not in texts:
            texts.append(text)
        self._rejected[parent.genome.id] = texts
        while len(self._rejected) > PARENTS:
            del self._rejected[next(iter(self._rejected))]


def paired(child: Individual, parent: Individual | None) -> tuple[np.ndarray, float]:
    """Child less parent in quality on every train example that both have, and the parent's mean there."""
    if parent is None or len(parent.by_example) != len(child.by_example):
        return np.zeros(0), 0.0
    both = ~(np.isnan(child.by_example) | np.isnan(parent.by_example))
    before = parent.by_example[both].astype(np.float64)
    if not len(before):
        return np.zeros(0), 0.0
    return child.by_example[both].astype(np.float64) - before, float(before.mean())


def tokens(text: str) -> int:
    """How many tokens a text takes at most, by its length."""
    return -(-len(text) // CHARS_PER_TOKEN)


def line(text: object, length: int) -> str:
    """On one line, cut to a length."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."


def _joined(targets: object) -> str:
    return (
        ", ".join(map(str, targets)) if isinstance(targets, Sequence) and not isinstance(targets, str) else str(targets)
    )


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= ALIKE * max(1, len(one | other))
