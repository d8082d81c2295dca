"""Latency: answers far outside their stream, and streams that get slower.

Slower is a trend of the hourly p95 by Mann and Kendall (Mann 1945; Kendall 1975), its size by the median of slopes
(Theil 1950; Sen 1968). Over three days and more hours of the day are compared with the same hours only (Hirsch, Slack
and Smith 1982), so that a busy afternoon is no trend.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist, median
from typing import NamedTuple

import numpy as np

from evocluster.online.finding import FEWEST, LEAST, Finding, concerned, named, of_intent, rate, severity, streams, told
from evocluster.online.outcome import Row

HOUR_S = 3600.0
HOURS = 12
"""That a trend is seen in, at least."""
PER_HOUR = 5
"""Answers that an hour's p95 is taken from, at least."""
P_VALUE = 0.01
SLOWER = 0.2
"""Growth of the p95 over the window, relative, from which a trend matters."""
SEASONAL_DAYS = 3
FAR = 5.0
"""Robust standard deviations (1.4826 MAD, of the logarithm) from which a latency is an outlier: by chance alone fewer
than one of a million answers of a log-normal stream."""
LEAST_SPREAD = 0.1
"""Of the logarithm: streams that hardly vary are not all outliers."""
OUTLYING = 0.005
"""Share that surely is, from which they are a finding."""


class Trend(NamedTuple):
    """Of a series in time."""

    p: float
    """One-sided, of no growth."""
    slope: float
    """Per hour."""


def slow(rows: Sequence[Row]) -> list[Finding]:
    """Streams with outliers or a growing p95."""
    answered = [row for row in rows if float(row.get("latency_ms") or 0) > 0]
    found: list[Finding] = []
    for (intent, model), members in streams(answered):
        found += _slower(members, answered, intent, model)
        found += _outliers(members, answered, intent, model)
    return found


def hourly(rows: Sequence[Row]) -> dict[int, float]:
    """Hour since 1970 -> p95 in milliseconds, where enough was answered."""
    hours: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        hours[int(float(row["at"]) // HOUR_S)].append(float(row["latency_ms"]))
    return {hour: float(np.quantile(each, 0.95)) for hour, each in sorted(hours.items()) if len(each) >= PER_HOUR}


def trend(series: Mapping[int, float]) -> Trend:
    """Of values by hour; none where there are too few."""
    hours = sorted(series)
    seasonal = bool(hours) and hours[-1] - hours[0] >= 24 * SEASONAL_DAYS
    seasons: dict[int, list[int]] = defaultdict(list)
    for hour in hours:
        seasons[hour % 24 if seasonal else 0].append(hour)
    score, variance = 0.0, 0.0
    slopes: list[float] = []
    for members in seasons.values():
        values = [series[hour] for hour in members]
        for at, first in enumerate(values):
            for later in range(at + 1, len(values)):
                score += float(np.sign(values[later] - first))
                slopes.append((values[later] - first) / (members[later] - members[at]))
        variance += _variance(values)
    if variance <= 0:
        return Trend(1.0, 0.0)
    z = (score - np.sign(score)) / sqrt(variance)
    return Trend(1 - NormalDist().cdf(float(z)), median(slopes))


def _variance(values: Sequence[float]) -> float:
    n = len(values)
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    return (n * (n - 1) * (2 * n + 5) - ties) / 18


def _slower(members: Sequence[Row], everything: Sequence[Row], intent: str, model: str) -> list[Finding]:
    series = hourly(members)
    if len(members) < LEAST or len(series) < HOURS:
        return []
    seen = trend(series)
    hours = max(series) - min(series)
    begin = median(series.values()) - seen.slope * hours / 2
    growth = seen.slope * hours / begin if begin > 0 else 0.0
    if seen.p >= P_VALUE or growth < SLOWER:
        return []
    late = [row for row in members if int(float(row["at"]) // HOUR_S) > min(series) + hours / 2]
    return [
        Finding(
            kind="slower",
            severity=severity(growth * len(members) / len(everything)),
            layer="strategy",
            intent=intent,
            model=model,
            title=f"{of_intent(intent, model)}: p95 grew by {growth:.0%} in {hours} h (p = {seen.p:.2g})",
            evidence=told(
                p95_ms={str(hour): round(value, 1) for hour, value in series.items()},
                slope_ms_per_hour=round(seen.slope, 3),
                p_value=float(f"{seen.p:.3g}"),
                requests=named(late),
            ),
            recommendation="look at the endpoint; set a timeout, fewer at once, or another model for this intent",
        )
    ]


def _outliers(members: Sequence[Row], everything: Sequence[Row], intent: str, model: str) -> list[Finding]:
    if len(members) < LEAST:
        return []
    logs = np.log([float(row["latency_ms"]) for row in members])
    middle = float(np.median(logs))
    spread = max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(logs - middle))))
    far = [bool(value > middle + FAR * spread) for value in logs]
    hits = [row for row, out in zip(members, far, strict=True) if out]
    seen = rate(members, far)
    if len(hits) < FEWEST or seen.low < OUTLYING:
        return []
    bound = float(np.exp(middle + FAR * spread))
    return [
        Finding(
            kind="outliers",
            severity=concerned(hits, everything),
            layer="strategy",
            intent=intent,
            model=model,
            title=f"{of_intent(intent, model)}: {seen.text()} answers took longer than {bound:.0f} ms, "
            f"half of all less than {np.exp(middle):.0f} ms",
            evidence=told(
                rate=seen, bound_ms=round(bound, 1), median_ms=round(float(np.exp(middle)), 1), requests=named(hits)
            ),
            recommendation="set the timeout nearer to what is usual, and escalate what passes it",
        )
    ]
