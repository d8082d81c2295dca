"""Candidates in shadow, pair by pair, through the promotion rule and beside it through the rules that peek."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from evocluster.release.bandit import Arm, best
from evocluster.release.promotion import Comparison, Evidence, Pair, Side, decide
from evocluster.release.settings import Promotion

Floats = NDArray[np.float64]
SETTINGS = Promotion()
PASSES = 0.6
LOOK = 20
"""Pairs between two looks of the rules that peek, and of `decide` once the wealth is there."""
SELDOM = 100
"""Pairs between its looks before: it may reject."""
FAILURES = 0.01
"""Rate of hard failures, and of malformed answers, of either side; of nothing in common."""
SURE = 1.6448536269514722


@dataclass(frozen=True)
class Case:
    """A kind of candidate."""

    lift: float
    noise: float = 0.2
    """Standard deviation of a score; the two of a pair have nothing in common but the question."""
    quality: float = 0.7
    failures: float = 0.0
    """Points of hard failures that the candidate has more."""
    latency: float = 1.0
    """Its latency over the baseline's."""
    pairs: int = 1500


@dataclass(frozen=True)
class Trial:
    """After how many pairs each rule promoted; None: never."""

    ours: int | None
    wealth: int | None
    """E was 20, over 50 pairs at least, whatever the guards say."""
    rejected: str
    """Why the candidate was rejected; empty: it was not."""
    peeking: int | None
    """z above 1.645, as one goes."""
    probable: int | None
    """P(best) of passed answers above 95 %, as one goes."""


def trial(rng: np.random.Generator, case: Case) -> Trial:
    """One candidate, until it is promoted or rejected, and for the rules that peek until the end."""
    scores = [_scores(rng, case, lift) for lift in (case.lift, 0.0)]
    comparison, pairs, wealth = Comparison.begun(SETTINGS), [], None
    ours, rejected = None, ""
    asked = rng.normal(0, 0.4, case.pairs)
    sides = [_sides(rng, case, each, asked, worse) for each, worse in zip(scores, (True, False), strict=True)]
    for n, (candidate, baseline) in enumerate(zip(*sides, strict=True), start=1):
        comparison = comparison.update(float(scores[0][n - 1]), float(scores[1][n - 1]))
        pairs.append(Pair(candidate=candidate, baseline=baseline))
        rich = comparison.better.log_wealth >= -log(SETTINGS.alpha)
        if wealth is None and rich and n >= SETTINGS.pairs:
            wealth = n
        if n % (LOOK if rich else SELDOM) == 0 and ours is None and not rejected:
            evidence = Evidence.model_construct(comparison=comparison, pairs=tuple(pairs), hours=SETTINGS.hours)
            decision = decide(evidence, SETTINGS, PASSES, 72.0)
            ours = n if decision.move == "promote" else None
            rejected = decision.reason if decision.move == "reject" else ""
        if (ours or rejected) and wealth is not None:
            break
    return Trial(ours, wealth, rejected, _peeking(scores[0] - scores[1]), _probable(*scores))


def _scores(rng: np.random.Generator, case: Case, lift: float) -> Floats:
    """Scores in [0, 1] of exactly this mean and deviation (Beta)."""
    mean = case.quality + lift
    mass = mean * (1 - mean) / case.noise**2 - 1
    return rng.beta(mean * mass, (1 - mean) * mass, case.pairs)


def _sides(rng: np.random.Generator, case: Case, scores: Floats, asked: Floats, worse: bool) -> list[Side]:
    """One side's answers; `asked` is what the question does to the latency of both."""
    failed = rng.random(case.pairs) < FAILURES + (case.failures if worse else 0.0)
    malformed = rng.random(case.pairs) < FAILURES
    latency = np.exp(6.5 + asked + rng.normal(0, 0.3, case.pairs)) * (case.latency if worse else 1.0)
    cost = np.exp(rng.normal(-7.0, 0.3, case.pairs))
    rows = zip(scores.tolist(), failed.tolist(), malformed.tolist(), latency.tolist(), cost.tolist(), strict=True)
    return [
        Side.model_construct(score=score, failed=bad, malformed=odd, latency_ms=ms, cost_usd=usd)
        for score, bad, odd, ms, usd in rows
    ]


def _peeking(differences: Floats) -> int | None:
    for n in range(SETTINGS.pairs, len(differences) + 1, LOOK):
        seen = differences[:n]
        if seen.mean() > SURE * seen.std(ddof=1) / sqrt(n):
            return n
    return None


def _probable(*scores: Floats) -> int | None:
    right = [np.cumsum(each >= PASSES) for each in scores]
    for n in range(SETTINGS.pairs, len(right[0]) + 1, 2 * LOOK):
        arms = {
            name: Arm(alpha=float(each[n - 1]), beta=float(n - each[n - 1]))
            for name, each in zip(("candidate", "baseline"), right, strict=True)
        }
        if best(arms)["candidate"] >= 0.95:
            return n
    return None
