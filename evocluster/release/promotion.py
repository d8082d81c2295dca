"""When a candidate takes the place of what serves: wealth won by betting that it is better, and no guard broken.

Pairs (the same input answered by both, scored blind) come in one by one. The wealth of `EProcess` is a test that may be
looked at after every pair: were the candidate no better, it would ever reach 1 / alpha with a chance of alpha at most
(Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024, section 4; Ville).

How sure the guards are (`Guard`): with z = 1.645 and the harm's standard error s, the harm seen must be below
    margin - z s           where margin >= 2 z s: non-inferiority as it is taught, upper 95 % bound of harm < margin
    min(z s, margin + s/2) else: no harm is significant, and what is seen is near the margin at most
The first rule alone would keep an equal candidate out for good: one more failure in a hundred is only told from none
by some thousands of pairs. So a guard lets an equal candidate pass with 80 to 95 % at its first look, and more of them
soon after, and is as strict as the data allow; what it cannot see yet is left to the breaker, the live share and the
watch. Harm beyond the margin by 3 standard errors rejects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log, log1p, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evocluster.records import FrozenDict, FrozenMap, Record, born
from evocluster.release.settings import Promotion

Floats = NDArray[np.float64]
Move = Literal["promote", "reject", "wait", "inconclusive"]

MOST_BET = 0.5
"""Share of the wealth that is bet at most."""
HOPE = 0.05
"""Lift that the first bets reckon with; those that come later know the pairs seen."""
SPREAD = 0.08
"""And its variance: two scores of a noise of 0.2."""
HOPE_MASS = 200.0
"""Pairs that the hope counts for: a wrong one costs power, never validity."""
SURE = 1.6448536269514722
"""Standard normal quantile of 95 %."""
HARMFUL = 3.0
"""Standard errors beyond the margin that reject."""
PERCENTILE = 0.95


class EProcess(Record):
    """Wealth of who bets that the mean of D in [-1, 1] is above `null` (or, with `side` -1, below it).

    Each bet is known before its pair: aGRAPA, the mean over the second moment of what was seen (appendix B.3), within
    [0, 0.5]. A supermartingale where the bettor is wrong, so `wealth >= 1 / alpha` may be checked at any time.
    """

    null: float = Field(default=0.0, gt=-1, lt=1)
    side: Literal[1, -1] = 1
    hope: float = HOPE
    """Mean of the gain per unit bet that the first bets reckon with."""
    n: int = Field(default=0, ge=0)
    total: float = 0.0
    """Sum of the gains."""
    squares: float = 0.0
    """Sum of the squared gains."""
    log_wealth: float = 0.0
    log_peak: float = 0.0

    @property
    def bet(self) -> float:
        """Share of the wealth that is on the next pair."""
        mass = HOPE_MASS + self.n
        mean = (HOPE_MASS * self.hope + self.total) / mass
        second = (HOPE_MASS * (SPREAD + self.hope**2) + self.squares) / mass
        return min(MOST_BET, max(0.0, mean / second))

    @property
    def wealth(self) -> float:
        """E, of 1 at the start; at most 1e300."""
        return exp(min(690.0, self.log_wealth))

    def update(self, difference: float) -> EProcess:
        """After one more pair, in the order in which they come. Raises: ValueError (outside [-1, 1])."""
        if not -1.0 <= difference <= 1.0:
            raise ValueError(f"difference {difference!r} is not within [-1, 1]; scores are within [0, 1]")
        gain = self.side * (difference - self.null)
        log_wealth = self.log_wealth + log1p(self.bet * gain)
        return born(
            EProcess,
            {
                **self.__dict__,
                "n": self.n + 1,
                "total": self.total + gain,
                "squares": self.squares + gain * gain,
                "log_wealth": log_wealth,
                "log_peak": max(self.log_peak, log_wealth),
            },
        )


class Comparison(Record):
    """The two bets of an experiment: that the lift is above nothing, and that it is below what is worth having."""

    better: EProcess = EProcess()
    futile: EProcess
    scores: float = 0.0
    """Sum of the candidate's scores."""

    @classmethod
    def begun(cls, settings: Promotion) -> Comparison:
        """Before the first pair."""
        return cls(futile=EProcess(null=settings.futile, side=-1, hope=settings.futile))

    def update(self, candidate: float, baseline: float) -> Comparison:
        """After the scores of one more pair, in the order in which they were judged."""
        difference = candidate - baseline
        return Comparison(
            better=self.better.update(difference),
            futile=self.futile.update(difference),
            scores=self.scores + candidate,
        )

    @property
    def n(self) -> int:
        """Judged pairs."""
        return self.better.n

    @property
    def lift(self) -> float:
        """Mean difference so far; 0 before the first pair."""
        return self.better.total / self.n if self.n else 0.0


class Side(Record):
    """One answer of a pair."""

    score: float | None = Field(default=None, ge=0, le=1)
    """None: the judge failed; that is missing, not bad."""
    failed: bool = False
    malformed: bool = False
    """The answer did not have its format."""
    latency_ms: float = Field(default=0.0, ge=0)
    cost_usd: float = Field(default=0.0, ge=0)


class Pair(Record):
    """The same input, answered by both."""

    baseline: Side
    candidate: Side
    intent: str = ""


class Guard(NamedTuple):
    """One harm that a better candidate may not do: its size, its standard error, its margin."""

    name: str
    harm: float
    error: float
    margin: float

    @property
    def limit(self) -> float:
        """Harm that may be seen, at most; see the head of this file."""
        slack = SURE * self.error
        return max(self.margin - slack, min(slack, self.margin + self.error / 2))

    @property
    def passed(self) -> bool:
        """Not inferior, as surely as the data allow."""
        return self.harm <= self.limit

    @property
    def harmful(self) -> bool:
        """Surely beyond the margin."""
        return self.harm - HARMFUL * self.error > self.margin


class Evidence(Record):
    """All that is known of an experiment when it is decided."""

    comparison: Comparison
    pairs: tuple[Pair, ...] = ()
    """Judged and unjudged ones; the guards look at all."""
    hours: float = Field(ge=0)
    """Since the first pair could come."""
    candidates: int = Field(default=1, ge=1)
    """Of this cycle: the best of many looks good by chance (Bonferroni)."""
    exposures: FrozenMap = FrozenDict()
    """Arm -> episodes it had; empty: nothing was split, as in shadow."""
    planned: FrozenMap = FrozenDict()
    """Arm -> episodes it should have had: the sum of the propensities over all epochs."""


class Decision(Record):
    """What becomes of a candidate, and why."""

    move: Move
    reason: str
    evidence: FrozenMap = FrozenDict()


def decide(evidence: Evidence, settings: Promotion, passes: float, most_hours: float) -> Decision:
    """Promote, reject, wait; past `most_hours` inconclusive, which keeps the baseline.

    `passes` is the judge's pass mark (0.6), `most_hours` the shadow's longest time. Harm, futility and a mean score
    below the pass mark reject from `pairs` judged pairs on, whatever the hour; only time can make a wait inconclusive.
    """
    comparison = evidence.comparison
    checks = guards(evidence.pairs, settings)
    p = split(evidence.exposures, evidence.planned)
    told = _told(evidence, checks, p, settings)
    if comparison.n >= settings.pairs and (reason := _against(comparison, checks, settings, passes)):
        return Decision(move="reject", reason=reason, evidence=told)
    lacking = _lacking(evidence, checks, p, settings)
    if not lacking:
        reason = f"E = {comparison.better.wealth:.4g} over {comparison.n} pairs, lift {comparison.lift:+.3f}"
        return Decision(move="promote", reason=reason, evidence=told)
    if evidence.hours >= most_hours:
        reason = f"after {evidence.hours:.1f} h of at most {most_hours:g}: {'; '.join(lacking)}"
        return Decision(move="inconclusive", reason=reason, evidence=told)
    return Decision(move="wait", reason="; ".join(lacking), evidence=told)


def guards(pairs: Sequence[Pair], settings: Promotion) -> list[Guard]:
    """Failures, latency, cost, format and each intent with enough pairs, as harm of the candidate."""
    if not pairs:
        return []
    answered = [pair for pair in pairs if not (pair.baseline.failed or pair.candidate.failed)]
    found = [
        _rate("failure", [(p.candidate.failed, p.baseline.failed) for p in pairs], settings.failure_margin),
        _rate("format", [(p.candidate.malformed, p.baseline.malformed) for p in pairs], settings.format_margin),
    ]
    if answered:
        latencies = np.array([(p.candidate.latency_ms, p.baseline.latency_ms) for p in answered])
        costs = np.array([(p.candidate.cost_usd, p.baseline.cost_usd) for p in answered])
        found.append(_latency(latencies, settings.latency_margin))
        found.append(_cost(costs, settings.cost_margin))
    return found + _intents(pairs, settings)


def split(exposures: Mapping[str, float], planned: Mapping[str, float]) -> float:
    """p of the chi-square test that episodes were split as planned (sample ratio mismatch); 1 where nothing was split.

    Raises: ValueError (an arm was given episodes that no plan gave it).
    """
    from scipy.special import chdtrc

    if unplanned := sorted(arm for arm, count in exposures.items() if count and not planned.get(arm)):
        raise ValueError(f"exposures of {unplanned!r} were planned for nobody; planned: {sorted(planned)!r}")
    names = sorted(arm for arm, share in planned.items() if share > 0)
    count = sum(exposures.values())
    if len(names) < 2 or not count:
        return 1.0
    scale = count / sum(planned[name] for name in names)
    expected = np.array([planned[name] * scale for name in names])
    seen = np.array([exposures.get(name, 0) for name in names], dtype=float)
    return float(chdtrc(len(names) - 1, np.sum((seen - expected) ** 2 / expected)))


def _against(comparison: Comparison, checks: Iterable[Guard], settings: Promotion, passes: float) -> str:
    """Why the candidate is rejected now; empty: it is not."""
    score = comparison.scores / comparison.n
    if score < passes:
        return f"mean judged score {score:.3f} is below {passes:g}"
    for guard in checks:
        if guard.harmful:
            return f"{guard.name}: harm {guard.harm:+.3g} (se {guard.error:.2g}) is surely above {guard.margin:g}"
    if comparison.futile.log_wealth >= -log(settings.alpha):
        return f"futile: the lift is surely below {settings.futile:g} (seen: {comparison.lift:+.3f})"
    return ""


def _lacking(evidence: Evidence, checks: Iterable[Guard], p: float, settings: Promotion) -> list[str]:
    """What keeps the candidate from being promoted; empty: nothing."""
    comparison = evidence.comparison
    needed = evidence.candidates / settings.alpha
    lacking = []
    if comparison.n < settings.pairs:
        lacking.append(f"{comparison.n} of {settings.pairs} pairs")
    if evidence.hours < settings.hours:
        lacking.append(f"{evidence.hours:.1f} of {settings.hours:g} h")
    if comparison.better.log_wealth < log(needed):
        lacking.append(f"E = {comparison.better.wealth:.3g} of {needed:g}")
    if p < settings.split_p:
        lacking.append(f"traffic was not split as planned (p = {p:.2g})")
    lacking += [f"{each.name}: harm {each.harm:+.3g} of at most {each.limit:.3g}" for each in checks if not each.passed]
    return lacking


def _rate(name: str, pairs: Sequence[tuple[bool, bool]], margin: float) -> Guard:
    """Difference of two paired rates, half a pair added to each cell (Agresti & Min, 2005): 0 of 50 is not certain."""
    n = len(pairs) + 2.0
    worse = 0.5 + sum(candidate and not baseline for candidate, baseline in pairs)
    better = 0.5 + sum(baseline and not candidate for candidate, baseline in pairs)
    harm = (worse - better) / n
    return Guard(name, harm, sqrt(max(0.0, (worse + better) / n - harm**2) / n), margin)


def _latency(latencies: Floats, margin: float) -> Guard:
    """Relative rise of the p95, by logarithms; errors from the order statistics around it, as if unpaired."""
    if not latencies.min() > 0:
        return Guard("latency", 0.0, 0.0, log1p(margin))
    logs = np.sort(np.log(latencies), axis=0)
    n = len(logs)
    centre, off = n * PERCENTILE, SURE * sqrt(n * PERCENTILE * (1 - PERCENTILE))
    low = logs[min(n - 1, max(0, int(centre - off) - 1))]
    high = logs[min(n - 1, int(centre + off))]
    errors = (high - low) / (2 * SURE)
    candidate, baseline = np.quantile(logs, PERCENTILE, axis=0)
    return Guard("latency", float(candidate - baseline), float(np.hypot(*errors)), log1p(margin))


def _cost(costs: Floats, margin: float) -> Guard:
    """Relative rise of the mean cost of paired answers (delta method of a ratio)."""
    candidate, baseline = costs.mean(axis=0)
    if baseline <= 0:
        return Guard("cost", float(candidate > 0), 0.0, margin)
    ratio = candidate / baseline
    rest = costs[:, 0] - ratio * costs[:, 1]
    error = sqrt(float(np.mean(rest**2)) / max(1, len(costs) - 1)) / float(baseline)
    return Guard("cost", float(ratio - 1.0), error, margin)


def _intents(pairs: Iterable[Pair], settings: Promotion) -> list[Guard]:
    """Loss of quality of each intent with at least `intent_least` judged pairs."""
    losses: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.candidate.score is not None and pair.baseline.score is not None:
            losses.setdefault(pair.intent, []).append(pair.baseline.score - pair.candidate.score)
    found = []
    for intent, each in sorted(losses.items()):
        if len(each) >= settings.intent_least:
            loss = np.array(each)
            error = float(loss.std(ddof=1)) / sqrt(len(each))
            found.append(Guard(f"intent {intent!r}", float(loss.mean()), error, settings.intent_margin))
    return found


def _told(evidence: Evidence, checks: Iterable[Guard], p: float, settings: Promotion) -> dict[str, object]:
    """The evidence of a decision, as JSON."""
    comparison = evidence.comparison
    return {
        "e": comparison.better.wealth,
        "e_needed": evidence.candidates / settings.alpha,
        "e_futile": comparison.futile.wealth,
        "pairs": comparison.n,
        "lift": comparison.lift,
        "score": comparison.scores / comparison.n if comparison.n else None,
        "hours": evidence.hours,
        "split_p": p,
        "guards": [
            {"name": each.name, "harm": each.harm, "error": each.error, "margin": each.margin, "passed": each.passed}
            for each in checks
        ],
    }
