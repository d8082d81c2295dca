"""What a member got wrong and right on train: a bounded sample of its evaluations, short enough to keep and to show.

A case holds an id, what came out and how it was judged; the texts of the example are looked up where a child is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evocluster.records import Evaluation, Json

RIGHT = 0.85
"""The quality from which a case counts as right, as in the composite."""
FAILING, RIGHT_ONES = 24, 8
"""Cases kept of one member at most."""
SHOWN_FAILING, SHOWN_RIGHT = 6, 2
"""Cases shown for one child at most."""
DESCRIBED = 12
"""Cases that are described and not shown, at most."""
PRESERVED = 6
OUTPUT, REASON, STEP, STEPS, LABEL = 300, 200, 120, 4, 60
"""Characters of an output, of a scorer's reason, of a step; steps of a case; characters of what is only described."""


def clip(text: str, length: int) -> str:
    """The text, its middle left out where it is longer."""
    if len(text) <= length:
        return text
    tail = length // 4
    return f"{text[: length - tail - 5]} ... {text[len(text) - tail :]}"


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluation, clipped."""

    example: str
    twin: int
    batch: int
    """Which of the member's batches of evaluations it came with."""
    kind: str
    """right, error, timeout, flagged, empty, format, partial or wrong: what shows without the expected answer."""
    quality: float
    output: str
    words: int
    """Of the whole output."""
    error: str
    reasons: Mapping[str, str]
    """Scorer -> why it gave its score; scorers that told nothing are left out."""
    steps: tuple[str, ...]
    """'purpose: what came of it', where steps were recorded."""

    @property
    def key(self) -> tuple[str, int]:
        """Which example, and which twin of it."""
        return self.example, self.twin

    def told(self) -> dict[str, Json]:
        """As JSON, to be shown."""
        return {
            "example": self.example,
            "twin": self.twin,
            "kind": self.kind,
            "quality": round(self.quality, 4),
            "output": self.output,
            "words": self.words,
            "error": self.error,
            "reasons": dict(self.reasons),
            "steps": self.steps,
        }

    def described(self) -> dict[str, Json]:
        """As JSON, to be counted and measured only."""
        return {
            "example": self.example,
            "twin": self.twin,
            "kind": self.kind,
            "output": self.output[:LABEL],
            "words": self.words,
        }


def case(done: Evaluation, batch: int) -> Case:
    """An evaluation made short."""
    scores = {name: score if isinstance(score, Mapping) else vars(score) for name, score in sorted(done.scores.items())}
    steps = done.trace if len(done.trace) <= STEPS else (done.trace[0], *done.trace[-STEPS + 1 :])
    return Case(
        example=done.item.example,
        twin=done.item.twin,
        batch=batch,
        kind=kind(done),
        quality=done.quality,
        output=clip(done.output, OUTPUT),
        words=len(done.output.split()),
        error=clip(done.error or "", REASON),
        reasons={name: clip(score["reason"], REASON) for name, score in scores.items() if score.get("reason")},
        steps=tuple(_step(step) for step in steps),
    )


def kind(done: Evaluation) -> str:
    """What shows of an evaluation without the expected answer."""
    if done.error is not None:
        late = any(word in done.error for word in ("DeadlinePassed", "TimeoutError", "timed out"))
        return "timeout" if late else "error"
    if done.flags:
        return "flagged"
    if not done.output.strip():
        return "empty"
    if not done.schema_ok:
        return "format"
    if done.quality >= RIGHT:
        return "right"
    return "partial" if done.quality > 0 else "wrong"


def _step(step: Mapping[str, Json]) -> str:
    """One line of a step. Long prompts are left out: the case's input stands beside it, and demos are no business of
    a reader.
    """
    asked = str(step.get("prompt", ""))
    lead = f"{asked} -> " if 0 < len(asked) <= STEP else ""
    return f"{step.get('purpose', 'step')}: {lead}{clip(str(step.get('reply', '')), STEP)}"


class Cases:
    """The cases of one member that are kept: at most `FAILING` failing and `RIGHT_ONES` right ones, evenly over the
    batches they came in and within a batch over the kinds.
    """

    __slots__ = ("_batches", "failing", "right")

    def __init__(self) -> None:
        self.failing: list[Case] = []
        self.right: list[Case] = []
        self._batches = 0

    def add(self, evaluations: Sequence[Evaluation]) -> None:
        """Take one more batch; an example that is there already stays as it is."""
        known = {one.key for one in (*self.failing, *self.right)}
        for done in evaluations:
            if (done.item.example, done.item.twin) not in known:
                one = case(done, self._batches)
                known.add(one.key)
                (self.right if one.kind == "right" else self.failing).append(one)
        _trim(self.right, RIGHT_ONES)
        _trim(self.failing, FAILING)
        self._batches += 1

    def get(self, example: str) -> Case | None:
        """The case of an example as given."""
        return next((one for one in (*self.failing, *self.right) if one.key == (example, 0)), None)


def _trim(kept: list[Case], most: int) -> None:
    """Drop what is missed least: the last of the most frequent kind of the largest batch, as often as it takes."""
    batches = Counter(one.batch for one in kept)
    kinds = Counter((one.batch, one.kind) for one in kept)
    while len(kept) > most:
        batch = max(batches, key=lambda it: (batches[it], it))
        kind = max((it for it in kinds if it[0] == batch), key=lambda it: (kinds[it], it))
        at = max(at for at, one in enumerate(kept) if (one.batch, one.kind) == kind)
        del kept[at]
        batches[batch] -= 1
        kinds[kind] -= 1


@dataclass
class Focus:
    """What a strategy wants reflection to look at."""

    held: frozenset[str] = frozenset()
    """Train examples that are described and never shown."""
    preserve: tuple[Mapping[str, Json], ...] = ()
    """Cases that were right and that a rejected child broke."""
    tired: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often a case of the present parent was shown and nothing came of it."""

    def refresh(self, preserve: Sequence[Mapping[str, Json]] = ()) -> None:
        """There is another parent; `preserve`: what its making broke."""
        self.tired.clear()
        self.preserve = tuple(preserve)[:PRESERVED]

    def tire(self, shown: Sequence[Mapping[str, Json]], broken: Sequence[Mapping[str, Json]]) -> None:
        """Nothing came of these cases; children that won broke those."""
        self.tired.update((one["example"], one["twin"]) for one in shown)
        newest: dict[str, Mapping[str, Json]] = {}
        for one in (*broken, *self.preserve):
            newest.setdefault(one["example"], one)
        self.preserve = tuple(newest.values())[:PRESERVED]

    def pick(self, cases: Cases, rng: np.random.Generator) -> list[Case]:
        """Cases to show: failing ones by turns of their kinds, those shown least for nothing first, and right ones."""
        failing = [one for one in cases.failing if one.example not in self.held]
        order = {one.key: int(place) for one, place in zip(failing, rng.permutation(len(failing)), strict=True)}
        failing.sort(key=lambda one: (self.tired[one.key], order[one.key]))
        seen: Counter[tuple[int, str]] = Counter()
        turns: dict[tuple[str, int], tuple[int, int]] = {}
        for one in failing:
            group = (self.tired[one.key], one.kind)
            turns[one.key] = (self.tired[one.key], seen[group])
            seen[group] += 1
        failing.sort(key=lambda one: turns[one.key])
        right = [one for one in cases.right if one.example not in self.held]
        chosen = rng.permutation(len(right))[:SHOWN_RIGHT]
        return [*failing[:SHOWN_FAILING], *(right[int(at)] for at in sorted(chosen))]
