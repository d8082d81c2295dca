"""What measurements of the gateway come to: added latency over rounds, what was disturbed, the table, the JSON line.

A round asks every target at a rate, one after the other, so that what a round disturbs it disturbs alike; the added
latency of a round is the difference of a percentile to that of the model endpoint asked directly in the same round,
and what is told is the median over rounds. A round in which strangers used the machine is left out where there are
others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

DIRECT = "direct"
RIVAL = "litellm proxy"
FOREIGN = 0.15
"""Of the machine used by strangers: more, and a measurement is disturbed."""
FULL = 0.92
"""Of the machine, or of the one core of a serving process, in use: more, and latency is that of a line of waiting."""
LATE_MS = 5.0
"""Requests left the generator later than this (p99): what is measured is the generator too."""
RATE = 200.0
"""Of the line of JSON, and of the target."""


@dataclass(frozen=True)
class Shot:
    """One target asked at one rate in one round."""

    target: str
    rate: float
    round: int
    p50_ms: float
    p99_ms: float
    sent: int
    failed: int
    achieved: float
    cpu_ms: float
    """Of the serving process, a request."""
    core: float
    """Of one core, used by the serving process."""
    machine: float
    """Share of all cores in use."""
    foreign: float
    """Share of all cores used by processes that are not ours."""
    late_ms: float
    load: float
    """Average of a minute, when it ended."""

    @property
    def disturbed(self) -> bool:
        """By somebody else."""
        return self.foreign > FOREIGN

    @property
    def saturated(self) -> bool:
        """There was no room: the figures are of waiting for a core."""
        return self.machine > FULL or self.core > FULL


@dataclass(frozen=True)
class Cell:
    """One target at one rate, over all rounds."""

    target: str
    rate: float
    added_p50_ms: float
    added_p99_ms: float
    p99_ms: float
    failed: int
    sent: int
    achieved: float
    cpu_ms: float
    rounds: int
    """That count."""
    of: int
    late_ms: float
    load: tuple[float, float]
    """Lowest and highest load average."""
    saturated: bool
    disturbed: bool
    """No round was without strangers, so all of them count."""


def cells(shots: Sequence[Shot]) -> list[Cell]:
    """All targets at all rates, in the order they came."""
    named = dict.fromkeys((one.rate, one.target) for one in shots)
    return [_cell(shots, target, rate) for rate, target in sorted(named, key=lambda key: key[0])]


def _cell(shots: Sequence[Shot], target: str, rate: float) -> Cell:
    bare = {one.round: one for one in shots if one.target == DIRECT and one.rate == rate}
    pairs = [(one, bare[one.round]) for one in shots if one.target == target and one.rate == rate and one.round in bare]
    calm = [pair for pair in pairs if not pair[0].disturbed and not pair[1].disturbed]
    counted = calm or pairs
    mine = [one for one, _ in counted]
    every = [one for one, _ in pairs]
    return Cell(
        target,
        rate,
        median(one.p50_ms - other.p50_ms for one, other in counted),
        median(one.p99_ms - other.p99_ms for one, other in counted),
        median(one.p99_ms for one in mine),
        sum(one.failed for one in every),
        sum(one.sent for one in every),
        median(one.achieved for one in mine),
        median(one.cpu_ms for one in mine),
        len(counted),
        len(pairs),
        median(one.late_ms for one in mine),
        (min(one.load for one in mine), max(one.load for one in mine)),
        median(one.machine for one in mine) > FULL or median(one.core for one in mine) > FULL,
        not calm,
    )


HEADS = {
    "target": 22,
    "rate": 5,
    "added p50 ms": 13,
    "added p99 ms": 13,
    "p99 ms": 9,
    "errors": 11,
    "achieved": 9,
    "CPU ms": 7,
    "rounds": 7,
    "load": 10,
}


def shown(found: Iterable[Cell]) -> str:
    """The table, and under it what is to be doubted."""
    lines, doubts = [_line(list(HEADS))], []
    for cell in found:
        load = f"{cell.load[0]:.1f}-{cell.load[1]:.1f}"
        direct = cell.target == DIRECT
        lines.append(
            _line(
                [
                    cell.target,
                    f"{cell.rate:g}",
                    "" if direct else _ms(cell.added_p50_ms),
                    "" if direct else _ms(cell.added_p99_ms),
                    _ms(cell.p99_ms),
                    f"{cell.failed}/{cell.sent}",
                    f"{cell.achieved:.0f}",
                    "" if direct else f"{cell.cpu_ms:.2f}",
                    f"{cell.rounds}/{cell.of}",
                    load,
                ]
            )
        )
        doubts += [f"  ! {cell.target} at {cell.rate:g}/s: {why}" for why in _doubts(cell)]
    return "\n".join([*lines, *doubts])


def _doubts(cell: Cell) -> Iterable[str]:
    if cell.saturated:
        yield "the machine, or the serving process's core, was saturated: the latency is that of waiting for a core"
    if cell.disturbed:
        yield f"other processes used more than {FOREIGN:.0%} of the machine in every round: not a quiet machine"
    if cell.late_ms > LATE_MS:
        yield f"requests left the generator up to {cell.late_ms:.0f} ms late (p99); that counts into the latency"


def _line(told: Sequence[str]) -> str:
    widths = list(HEADS.values())
    rest = (f"{cell:>{width}}" for cell, width in zip(told[1:], widths[1:], strict=True))
    return " ".join((f"{told[0]:<{widths[0]}}", *rest))


def _ms(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def summary(found: Sequence[Cell], serving: str, rollback_p99_s: float | None) -> dict[str, Any]:
    """The line of JSON; null is what was not run. `litellm_proxy_p99_ms`: added by the proxy, at the same rate."""
    ours, theirs = _at(found, serving), _at(found, RIVAL)
    return {
        "added_p50_ms_200rps": _number(ours.added_p50_ms if ours else None),
        "added_p99_ms_200rps": _number(ours.added_p99_ms if ours else None),
        "litellm_proxy_p99_ms": _number(theirs.added_p99_ms if theirs else None),
        "rollback_p99_s": _number(rollback_p99_s),
    }


def _at(found: Sequence[Cell], target: str) -> Cell | None:
    return next((cell for cell in found if cell.target == target and cell.rate == RATE), None)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
