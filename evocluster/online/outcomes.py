"""What came of the answers: feedback joined to the record of its request, never to what serves today."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

from evocluster.online.feedback import last, reward
from evocluster.online.ledger import Ledger, Row
from evocluster.records import Json
from evocluster.release.settings import Online

TRUST = ("human", "code", "judge", "user")
"""Where several sources speak of the same target and metric, the first of these is believed."""
QUALITY = "quality"


class Outcome(NamedTuple):
    """One episode on one arm of an experiment, old enough to be counted."""

    episode_id: str
    experiment: str
    arm: str
    """On its record."""
    at: float
    """Of its last request."""
    epoch: int
    """Of its first request."""
    propensity: float
    intent: str
    """Of its first request."""
    model: str
    requests: int
    reward: float | None
    """0 to 1, the mean of its requests', or what was said of the episode; None is missing, and no failure."""
    metric: str
    """That the reward is of; empty where it is missing."""


def outcomes(ledger: Ledger, deployment: str, since: float, now: float, settings: Online) -> list[Outcome]:
    """The episodes of the requests at or after `since`, where the last one is older than the reward window, by time.

    What is observed after the window does not count. Shadows are not exposures, nor are answers that another snapshot
    gave than the arm. Raises: StoreError.
    """
    told = verdicts(ledger, deployment, since)
    metrics = rewarding(settings)
    window = max((settings.metrics[name].window_s for name in metrics), default=0.0)
    episodes: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    where = {"deployment": deployment, "is_shadow": False, "at": (">=", since)}
    for row in ledger.find("exchanges", where, order="at,request_id"):
        if row["arm"] and row["snapshot_id"] in ("", row["arm"]):
            episodes[row["episode_id"] or row["request_id"], row["experiment"], row["arm"]].append(row)
    found = []
    for (episode, experiment, arm), rows in episodes.items():
        first, end = rows[0], rows[-1]["at"]
        if end + window <= now:
            value, metric = _rewarded(episode, rows, told, metrics, settings)
            kept = (first["epoch"], first["propensity"], first["intent"], first["model"], len(rows))
            found.append(Outcome(episode, experiment, arm, end, *kept, value, metric))
    return sorted(found, key=lambda one: (one.at, one.episode_id, one.arm))


def rewarding(settings: Online) -> tuple[str, ...]:
    """Metrics that the bandit is rewarded by: the first of them that was said of an episode counts."""
    named = tuple(name for name, metric in settings.metrics.items() if metric.reward)
    return named or tuple(name for name in (QUALITY,) if name in settings.metrics)


def said(ledger: Ledger, deployment: str, since: float) -> dict[str, dict[str, Json]]:
    """Request -> metric -> value, e.g. of `correct` and `correction`: whenever it was observed. Raises: StoreError."""
    told: dict[str, dict[str, Json]] = defaultdict(dict)
    for (request, episode, metric), row in verdicts(ledger, deployment, since).items():
        if not episode:
            told[request][metric] = row["value"]
    return dict(told)


Verdicts = Mapping[tuple[str, str, str], Row]
"""(request, episode, metric) -> what is believed; one of the first two is empty."""


def verdicts(ledger: Ledger, deployment: str, since: float) -> Verdicts:
    """What counts of all feedback that was received at or after `since`, each once. Raises: StoreError."""
    where = {"deployment": deployment, "state": "accepted", "received_at": (">=", since)}
    return believed(ledger.find("feedback", where))


def believed(rows: Iterable[Row]) -> Verdicts:
    """See `last` for one source, and TRUST for several."""
    slots: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        slots[row["request_id"], row["episode_id"], row["metric"], row["source"]].append(row)
    told: dict[tuple[str, str, str], Row] = {}
    for source in reversed(TRUST):
        for slot, several in slots.items():
            if slot[3] == source:
                told[slot[:3]] = last(several)
    return told


def _rewarded(
    episode: str, rows: list[Row], told: Verdicts, metrics: tuple[str, ...], settings: Online
) -> tuple[float | None, str]:
    for metric in metrics:
        window = settings.metrics[metric].window_s
        whole = _worth(told.get(("", episode, metric)), rows[-1]["at"] + window, settings)
        if whole is not None:
            return whole, metric
        each = [_worth(told.get((row["request_id"], "", metric)), row["at"] + window, settings) for row in rows]
        known = [one for one in each if one is not None]
        if known:
            return fmean(known), metric
    return None, ""


def _worth(row: Row | None, until: float, settings: Online) -> float | None:
    """The reward of what was said, where it was observed in time."""
    return None if row is None or row["observed_at"] > until else reward(row["metric"], row["value"], settings)
