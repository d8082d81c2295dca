"""How a candidate stands: pairs of the shadow, live traffic, rewards, failures, as the tests of `release/` take them.

    paired(rows, ...)      rows of `pairs`                 -> release.promotion.Evidence
    harmless(rows, ...)    live exchanges of both arms      -> a move: no harm, the split as planned, enough of it
    weighed(outcomes, ...) matured rewards                  -> the weights of the next epoch
    tripped(buckets, ...)  what all replicas counted        -> a verdict of the breaker

Rows in, values out; whoever calls reads the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evocluster.online.ledger import Row
from evocluster.online.outcomes import Outcome
from evocluster.online.work import Judged, Weighed
from evocluster.release import bandit, breaker, promotion
from evocluster.release.breaker import Bucket, Counts, Verdict, Window
from evocluster.release.exchange import HARD
from evocluster.release.settings import Bandit, Breaker, Promotion

PERCENTILE = 0.95
HOUR_S = 3600.0


def paired(
    rows: Iterable[Row], judge: str, settings: Promotion, *, hours: float, candidates: int = 1
) -> promotion.Evidence:
    """The pairs of one experiment; scores of another judge count as missing. Judged ones in the order of judging."""
    whole = [row for row in rows if row["state"] != "skipped"]
    scored = [row for row in whole if row["state"] == "judged" and row["judge"] == judge]
    scored.sort(key=lambda row: (row["candidate"]["judged_at"], row["at"], row["pair_id"]))
    comparison = promotion.Comparison.begun(settings)
    for row in scored:
        candidate, difference = row["candidate"]["score"], row["candidate"]["difference"]
        comparison = comparison.update(candidate, candidate - difference)
    known = {row["pair_id"] for row in scored}
    pairs = tuple(
        promotion.Pair(
            baseline=_side(row["baseline"], row["pair_id"] in known),
            candidate=_side(row["candidate"], row["pair_id"] in known),
            intent=row["intent"],
        )
        for row in whole
    )
    return promotion.Evidence(comparison=comparison, pairs=pairs, hours=max(0.0, hours), candidates=candidates)


def _side(facts: Mapping[str, Any], judged: bool) -> promotion.Side:
    return promotion.Side(
        score=facts.get("score") if judged else None,
        failed=facts["error_class"] in HARD,
        malformed=facts["error_class"] == "format" or not facts["schema_ok"],
        latency_ms=facts["latency_ms"],
        cost_usd=facts["cost_usd"],
    )


class _Arm(NamedTuple):
    """Live requests of one arm."""

    failed: NDArray[np.float64]
    malformed: NDArray[np.float64]
    latencies: NDArray[np.float64]
    """Logarithms, of answers."""
    costs: NDArray[np.float64]


def harmless(rows: Sequence[Row], candidate: str, baseline: str, settings: Promotion) -> Judged:
    """Live exchanges of an experiment against the guardrails: two samples, since nothing is paired here.

    promote: `pairs` requests of each, no guard broken and the split as planned; reject: surely harmful; else wait.
    """
    counted = [row for row in rows if not row["is_shadow"] and row["error_class"] not in ("client", "judge")]
    ours, theirs = (_arm(counted, arm) for arm in (candidate, baseline))
    n = min(len(ours.failed), len(theirs.failed))
    p = promotion.split(*_split(counted, (candidate, baseline)))
    guards = _guards(ours, theirs, settings) if n else []
    told = {
        "requests": {"candidate": len(ours.failed), "baseline": len(theirs.failed)},
        "split_p": p,
        "guards": {each.name: {"harm": each.harm, "limit": each.limit} for each in guards},
    }
    harmful = [each for each in guards if each.harmful]
    if n >= settings.pairs and harmful:
        worst = harmful[0]
        return Judged("reject", f"live: {worst.name} is worse by {worst.harm:+.3g}, surely above its margin", told=told)
    lacking = [f"{n} of {settings.pairs} requests of each arm"] if n < settings.pairs else []
    lacking += [f"traffic was not split as planned (p = {p:.2g})"] if p < settings.split_p else []
    lacking += [f"{each.name}: harm {each.harm:+.3g} of at most {each.limit:.3g}" for each in guards if not each.passed]
    if lacking:
        return Judged("wait", f"live: {'; '.join(lacking)}", judged=n, told=told)
    return Judged("promote", f"no harm in {n} live requests of each arm", judged=n, told=told)


def _arm(rows: Iterable[Row], arm: str) -> _Arm:
    own = [row for row in rows if row["arm"] == arm]
    answered = [row for row in own if row["error_class"] not in HARD]
    return _Arm(
        np.array([row["error_class"] in HARD for row in own], dtype=float),
        np.array([row["error_class"] == "format" or not row["schema_ok"] for row in own], dtype=float),
        np.sort(np.log([max(1e-3, row["latency_ms"]) for row in answered])),
        np.array([row["cost_usd"] for row in answered], dtype=float),
    )


def _split(rows: Iterable[Row], arms: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Episodes that each arm had, and should have had: the sum of the propensities with which they were drawn."""
    seen = dict.fromkeys(arms, 0.0)
    planned = dict.fromkeys(arms, 0.0)
    done: set[str] = set()
    for row in sorted(rows, key=lambda row: (row["at"], row["request_id"])):
        if row["episode_id"] in done or row["arm"] not in seen:
            continue
        done.add(row["episode_id"])
        other = next(arm for arm in arms if arm != row["arm"])
        seen[row["arm"]] += 1
        planned[row["arm"]] += row["propensity"]
        planned[other] += 1 - row["propensity"]
    return seen, planned


def _guards(ours: _Arm, theirs: _Arm, settings: Promotion) -> list[promotion.Guard]:
    found = [
        _rate("failure", ours.failed, theirs.failed, settings.failure_margin),
        _rate("format", ours.malformed, theirs.malformed, settings.format_margin),
    ]
    if len(ours.costs) and len(theirs.costs):
        (mine, error), (base, other) = _p95(ours.latencies), _p95(theirs.latencies)
        spread, margin = sqrt(error**2 + other**2), log(1 + settings.latency_margin)
        found.append(promotion.Guard("latency", mine - base, spread, margin))
        found.append(_cost(ours.costs, theirs.costs, settings.cost_margin))
    return found


def _rate(name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], margin: float) -> promotion.Guard:
    """Difference of two rates, one request of each kind added to both (Agresti and Caffo, 2000)."""
    (p, n), (q, m) = (((each.sum() + 1) / (len(each) + 2), len(each) + 2) for each in (ours, theirs))
    return promotion.Guard(name, float(p - q), sqrt(p * (1 - p) / n + q * (1 - q) / m), margin)


def _p95(logs: NDArray[np.float64]) -> tuple[float, float]:
    """The 95th percentile of sorted values and its standard error, from the order statistics around it."""
    n = len(logs)
    off = promotion.SURE * sqrt(n * PERCENTILE * (1 - PERCENTILE))
    low = logs[min(n - 1, max(0, int(n * PERCENTILE - off) - 1))]
    high = logs[min(n - 1, int(n * PERCENTILE + off))]
    return float(np.quantile(logs, PERCENTILE)), float(high - low) / (2 * promotion.SURE)


def _cost(ours: NDArray[np.float64], theirs: NDArray[np.float64], margin: float) -> promotion.Guard:
    """Relative rise of the mean."""
    base = float(theirs.mean())
    if base <= 0:
        return promotion.Guard("cost", float(ours.mean() > 0), 0.0, margin)
    error = sqrt(float(ours.var()) / len(ours) + float(theirs.var()) / len(theirs)) / base
    return promotion.Guard("cost", float(ours.mean()) / base - 1, error, margin)


def weighed(
    outcomes: Sequence[Outcome],
    candidate: str,
    baseline: str,
    settings: Bandit,
    *,
    live_s: float,
    priors: Mapping[str, tuple[float | None, int]] | None = None,
) -> tuple[Weighed, dict[str, bandit.Arm]]:
    """The weights of the next epoch by all rewards so far, and the arms; a missing reward is no failure.

    `live_s`: how long the candidate has been live; `priors`: arm -> its mean score in the shadow, and pairs.
    """
    known = priors or {}
    arms = {arm: bandit.newcomer(*known.get(arm, (None, 0)), settings) for arm in (baseline, candidate)}
    for one in sorted(outcomes, key=lambda one: (one.at, one.episode_id)):
        if one.reward is not None and one.arm in arms:
            arms = bandit.observe(arms, one.arm, one.reward, settings)
    step, hours = 0, live_s / HOUR_S
    for _ in range(int(max(0.0, live_s - settings.hours * HOUR_S) // settings.epoch_s) + 1):
        step = bandit.ramped(step, arms, baseline, hours, settings)
    weights = bandit.weights(arms, baseline, bandit.cap(step, settings), settings)
    return Weighed(weights, sum(arm.rewards for arm in arms.values())), arms


def tripped(buckets: Iterable[Row], candidate: str, control: str, settings: Breaker, now: float) -> Verdict:
    """What the breaker makes of the counts of all replicas."""
    windows = {snapshot: Window("", settings) for snapshot in (candidate, control)}
    until = int((now - settings.window_s) // breaker.MINUTE_S)
    past = [0, 0, 0, 0, 0]
    for row in buckets:
        if row["snapshot"] == control and row["minute"] < until:
            past = [have + row[name] for have, name in zip(past, Bucket._fields[2:], strict=True)]
        elif row["snapshot"] in windows:
            windows[row["snapshot"]].merge([Bucket(*(row[name] for name in Bucket._fields))])
    span = windows[candidate].span(now)
    ours, theirs = windows[candidate].counts(span), windows[control].counts(span)
    return breaker.judge(ours, theirs, Counts(*past), settings)
