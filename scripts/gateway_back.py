"""Roll-backs between two versions while eight processes serve: how long until every one of them has acknowledged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gateway_load import Aim, beside, quantile
from gateway_site import VERSIONS, made, served

from evocluster import deploying
from evocluster.cluster.loopback import Latency, running

REPLICAS = 8
TARGET_S = 1.0
RATE = 2.0
"""Requests a second to each of them meanwhile."""


@dataclass(frozen=True)
class Back:
    """What was seen."""

    seconds: tuple[float, ...]
    """Of each roll-back, until all had acknowledged."""
    late: int
    """Roll-backs after which somebody had not, within the 10 s that are waited."""
    answered: int
    failed: int
    replicas: int
    """That the ledger knew when it began."""
    load: float

    @property
    def p50_s(self) -> float:
        """Half of them took less."""
        return quantile(self.seconds, 0.5)

    @property
    def p99_s(self) -> float:
        """By nearest rank: of few, the longest."""
        return quantile(self.seconds, 0.99)


def measured(folder: Path, count: int, replicas: int = REPLICAS) -> Back:
    """So many roll-backs, to and fro."""
    seconds: list[float] = []
    late = 0
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(folder, url)
        with served(place, "named", count=replicas) as sites, place.open() as home:
            there = home.ledger.count("replicas", {"deployment": "named"})
            aims = [Aim(site.url, "named", RATE, 3600.0, seed=n) for n, site in enumerate(sites)]
            with beside(*aims) as answers:
                for number in range(count):
                    wanted = VERSIONS[(number + 1) % len(VERSIONS)]
                    done = deploying.roll_back(home, "named", wanted)
                    seconds.append(done["seconds"])
                    late += bool(done["late"])
            failed = sum(one.status != 200 for one in answers)
    return Back(tuple(seconds), late, len(answers), failed, there, os.getloadavg()[0])


def shown(back: Back) -> str:
    """In a few lines."""
    verdict = "met" if back.p99_s < TARGET_S and not back.late else "MISSED"
    return (
        f"roll-back over {back.replicas} processes, {len(back.seconds)} times: p50 {back.p50_s:.3f} s, "
        f"p99 {back.p99_s:.3f} s (target below {TARGET_S:g} s: {verdict}); not acknowledged: {back.late}; "
        f"{back.failed} of {back.answered} requests failed meanwhile; load average {back.load:.1f}"
    )
