"""What a run will take, before it is paid for: the search played through with evaluations that cost what one cost.

The optimizer, its budget and its final check are the real ones; only answers are made up (a coin per example, so that
members differ), and children are random genomes of the space. What it says is an order of magnitude: how many blocks
the promising get depends on how good they turn out.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evocluster.records import Evaluation, Genome, Proposal, Score, Trial, Usage
from evocluster.search.optimizer import Optimizer

PATIENCE_S = 20.0
"""How long the play may take; after it the forecast is a lower bound."""
REWRITES = ("rewrite", "merge")
"""Operators that call a model themselves."""


class Forecast(NamedTuple):
    """About what a run takes."""

    evaluations: int
    calls: int
    usd: float
    minutes: float
    ends_by: str
    """What ends the search."""
    checking: int
    """Evaluations of the final check, among `evaluations`; 0: the budget ends before it, and there is no front."""
    kept_usd: float
    """What the check takes, at what the search came to."""
    whole: bool
    """False: the play was given up, and everything is at least so much."""


def forecast(
    optimizer: Optimizer,
    sample: Callable[[np.random.Generator], Genome],
    each: Usage,
    at_once: int,
    minutes: float | None = None,
) -> Forecast:
    """Play a fresh optimizer to its end. `each`: what an evaluation takes; `at_once`: evaluations under way."""
    play = _Play(optimizer, sample, each, at_once, minutes)
    while not optimizer.done and play.goes_on():
        proposal = optimizer.ask()
        if proposal is not None:
            play.hand_out(proposal)
        elif not optimizer.done:
            play.hand_in()
    return play.found()


class _Play:
    """Virtual time over a queue of trials under way."""

    def __init__(
        self,
        optimizer: Optimizer,
        sample: Callable[[np.random.Generator], Genome],
        each: Usage,
        at_once: int,
        minutes: float | None,
    ) -> None:
        self._optimizer, self._sample, self._each = optimizer, sample, each
        self._at_once, self._limit_s = at_once, minutes * 60 if minutes else None
        self._free = [0.0] * at_once
        self._queue: list[tuple[float, int, Proposal]] = []
        self._now = 0.0
        self._checking = 0
        self._until = time.monotonic() + PATIENCE_S

    def goes_on(self) -> bool:
        return time.monotonic() < self._until

    def hand_out(self, proposal: Proposal) -> None:
        """Every item takes the slot that is free first."""
        end = self._now
        for _ in proposal.items:
            begin = max(heapq.heappop(self._free), self._now)
            end = max(end, begin + self._each.seconds)
            heapq.heappush(self._free, begin + self._each.seconds)
        self._checking += len(proposal.items) * (proposal.purpose in ("validation", "test"))
        heapq.heappush(self._queue, (end, proposal.number, proposal))

    def hand_in(self) -> None:
        """The trial that ends first."""
        end, number, proposal = heapq.heappop(self._queue)
        self._now = max(self._now, end)
        if self._limit_s is not None and self._now >= self._limit_s / 2:
            self._optimizer.halfway()
        if self._limit_s is not None and self._now >= self._limit_s:
            self._optimizer.stop("minutes")
        rng = np.random.default_rng([proposal.seed, number])
        genome = proposal.parents[0] if proposal.operator == "evaluate" else self._sample(rng)
        evaluations = tuple(
            Evaluation(
                item=item,
                quality=float(right),
                validator=float(right),
                scores={name: Score(value=float(right)) for name in self._optimizer.scorers},
                usage=self._each,
            )
            for item, right in zip(proposal.items, rng.random(len(proposal.items)) < 0.5, strict=True)
        )
        usage = self._each if proposal.operator in REWRITES else Usage()
        self._optimizer.tell(Trial(proposal=proposal, genome=genome, evaluations=evaluations, usage=usage))

    def found(self) -> Forecast:
        progress = self._optimizer.progress()
        return Forecast(
            evaluations=progress["evaluations"],
            calls=progress["calls"],
            usd=progress["usd"],
            minutes=max(self._now, *self._free) / 60,
            ends_by=str(progress["stop_reason"]),
            checking=self._checking,
            kept_usd=progress["kept_usd"],
            whole=self._optimizer.done,
        )
