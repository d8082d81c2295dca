"""What one more trial costs as the history grows: ask, tell and append, with answers that are made up.

The optimizer and the folder are the real ones, in one process, without a model and without Ray; so whatever gets
dearer with the history is theirs. Time is CPU of the process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evocluster.engine.folder import Folder
from evocluster.records import Evaluation, Genome, Proposal, Score, Trial, Usage
from evocluster.search.optimizer import Optimizer

WINDOW = 0.2
"""Of the evaluations before a size, the share over which the cost there is the mean."""


@dataclass(frozen=True)
class Age:
    """What an evaluation costs at a size, over the last fifth of the way there. CPU milliseconds an evaluation."""

    evaluations: int
    trials: int
    ask_ms: float
    tell_ms: float
    """The optimizer commits in `ask`, so nearly all of its work is there."""
    append_ms: float
    slowest_ms: float
    """Of one trial, in that window, wall time: what all workers would have waited for."""
    resident_mb: float


def aged(
    optimizer: Optimizer,
    sample: Callable[[np.random.Generator], Genome],
    folder: Folder,
    sizes: Sequence[int],
    resident_mb: Callable[[], float],
    ahead: int = 32,
) -> Iterator[Age]:
    """Play a fresh optimizer, with `ahead` proposals out, and tell at each size. It ends where the search does."""
    rng = np.random.default_rng(2)
    out: deque[Proposal] = deque()
    evaluations = trials = 0
    before: tuple[int, float, float, float] | None = None
    asking = telling = appending = slowest = 0.0
    left = deque(sorted(sizes))
    while left and not optimizer.done:
        started, at = time.process_time(), time.perf_counter()
        while len(out) < ahead and (proposal := optimizer.ask()) is not None:
            out.append(proposal)
        asking += time.process_time() - started
        taken = time.perf_counter() - at
        if not out:
            continue
        done = made(out.popleft(), sample, rng)
        started, at = time.process_time(), time.perf_counter()
        folder.append(done)
        appended = time.process_time()
        optimizer.tell(done)
        appending += appended - started
        telling += time.process_time() - appended
        slowest = max(slowest, taken + time.perf_counter() - at)
        evaluations += len(done.evaluations)
        trials += 1
        if before is None and evaluations >= (1 - WINDOW) * left[0]:
            before, slowest = (evaluations, asking, telling, appending), 0.0
        if evaluations >= left[0] and before is not None:
            count = max(1, evaluations - before[0])
            asked, told, kept = (
                (now - then) / count * 1000 for now, then in zip((asking, telling, appending), before[1:], strict=True)
            )
            yield Age(evaluations, trials, asked, told, kept, slowest * 1000, resident_mb())
            left.popleft()
            before = None


def made(proposal: Proposal, sample: Callable[[np.random.Generator], Genome], rng: np.random.Generator) -> Trial:
    """A proposal as if it had been carried out, with answers that are right as often as its genome is skilled."""
    genome = proposal.parents[0] if proposal.operator == "evaluate" else sample(rng)
    skill = int(genome.id[:4], 16) / 2**16
    right = rng.random(len(proposal.items)) < skill
    spent = rng.random((len(proposal.items), 2))
    evaluations = tuple(
        Evaluation(
            item=item,
            output="refund",
            scores={"label": Score(value=float(one))},
            quality=float(one),
            validator=float(one),
            usage=Usage(calls=1, prompt_tokens=200, completion_tokens=2, usd=1e-5 * (1 + more), seconds=seconds),
        )
        for item, one, (more, seconds) in zip(proposal.items, right.tolist(), spent.tolist(), strict=True)
    )
    return Trial(proposal=proposal, genome=genome, evaluations=evaluations)
