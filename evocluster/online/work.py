"""What a cycle is given to work with: what the wiring makes of tasks, models, the engine and the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from evocluster.online.ledger import Row
from evocluster.release.lifecycle import Move
from evocluster.release.settings import Online
from evocluster.release.snapshot import Snapshot


class Made(NamedTuple):
    """What an evolution came to."""

    snapshot: Snapshot | None
    why: str = ""
    """Why there is none."""
    origin: Mapping[str, Any] = {}
    """Where it comes from: run, examples, budget..."""
    variants: Sequence[Row] = ()
    """Rows of the table `variants`."""


class Gate(Protocol):
    """The verdict of one gate (`release.gates.Gate`)."""

    @property
    def name(self) -> str: ...

    @property
    def passed(self) -> bool: ...

    @property
    def reasons(self) -> tuple[str, ...]: ...


class Judged(NamedTuple):
    """What a test of the evidence says (`release.promotion.decide`), and what it was told."""

    move: Move
    reason: str
    judged: int = 0
    score: float | None = None
    """Mean of the candidate, 0 to 1."""
    told: Mapping[str, Any] = {}
    """Metrics of both sides as JSON, kept with the experiment."""


class Weighed(NamedTuple):
    """What the bandit would have the arms weigh."""

    weights: Mapping[str, float]
    rewards: int
    """Matured ones so far, of all arms."""


class Tripped(NamedTuple):
    """The breaker would open."""

    why: str
    evidence: Mapping[str, Any] = {}


class Work(Protocol):
    """All that a cycle asks for. Whatever raises is tried again by the next turn, a few times where it costs.

    An experiment is its row: `baseline`, `candidate` (snapshots), `layer`, `trigger` (`candidates`: how many its cycle
    has), `work` (`paired_at`, `live_at`: when its shadow and its live traffic began). The same row must give the same
    result, or go on with what was begun: a turn that was killed asks again.
    """

    def settings(self, deployment: str) -> Online: ...

    async def analyze(self, deployment: str, now: float) -> Sequence[Row]:
        """Rows of the table `findings`; an id says what was found, so that finding it again is the same row."""
        ...

    async def drift(self, deployment: str, now: float) -> Sequence[Row]:
        """Findings of the last day's drift alarms alone, with the ids that `analyze` gives them; cheap."""
        ...

    async def evolve(self, experiment: Row, now: float) -> Made:
        """A candidate that changes the experiment's layer of its baseline, and nothing else."""
        ...

    async def gate(self, experiment: Row, now: float) -> Sequence[Gate]:
        """Syntax, scope, barred content, replay of recent successes."""
        ...

    async def judge(self, experiment: Row, now: float) -> Judged:
        """Judge open pairs, and hold all of them against the promotion's rules."""
        ...

    async def live(self, experiment: Row, now: float) -> Judged:
        """Hold live traffic against the guardrails: `promote` is no harm, the split as planned, seen often enough."""
        ...

    async def weigh(self, experiment: Row, now: float) -> Weighed | None:
        """The bandit's weights for the two arms by the rewards so far, its caps kept; None: as they are."""
        ...

    async def tripped(self, experiment: Row, now: float) -> Tripped | None:
        """Whether the counts of all replicas open the breaker: for candidates whose replicas could not say so."""
        ...

    async def probe(self, deployment: str, now: float) -> None:
        """`Judging.probe` with questions of recent traffic."""
        ...

    async def seal(self, deployment: str, now: float) -> None:
        """Old exchanges to Parquet, bodies past their time away."""
        ...
