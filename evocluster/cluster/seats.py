"""Where workers sit, and when so many have died that going on is no use: decisions without Ray, values in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CRASHES = 20
"""Worker deaths without a single finished trial between them before a run stops: something kills them all."""
PREEMPTIONS = 200
"""The same for workers that died with their node."""


@dataclass(frozen=True)
class Layout:
    """How the work is spread."""

    in_flight: int
    """Evaluations at once, over all workers."""
    workers: int | None = None
    """Worker processes over the cluster; None: one a core, at most two a node (an async process fills a core)."""


@dataclass(frozen=True)
class Change:
    """What makes the seats fit the nodes."""

    leave: tuple[str, ...]
    """Names of seats to be vacated."""
    join: tuple[str, ...]
    """Nodes that get one more, as often as they are named."""


def places(cores: Mapping[str, int], layout: Layout) -> list[str]:
    """The node of each worker, dealt round over the nodes: `cores` is CPUs by node."""
    most = {node: max(1, min(2, count)) for node, count in cores.items()}
    total = min(layout.workers or sum(most.values()), layout.in_flight)
    names = list(most)
    if layout.workers is None or not names:
        dealt = [name for turn in range(2) for name in names if most[name] > turn]
        return dealt[:total]
    return [names[index % len(names)] for index in range(total)]


def arrange(cores: Mapping[str, int], layout: Layout, seats: Mapping[str, str]) -> Change:
    """How the seats (name -> node) change so that they fit the nodes there are now; the fullest come first."""
    taken = Counter(seats.values())
    ordered = {node: cores[node] for node in sorted(cores, key=lambda node: (-taken[node], node))}
    missing = Counter(places(ordered, layout))
    leave = []
    for name, node in seats.items():
        if missing[node] > 0:
            missing[node] -= 1
        else:
            leave.append(name)
    return Change(tuple(leave), tuple(missing.elements()))


def shares(names: Iterable[str], in_flight: int) -> dict[str, int]:
    """Evaluations at once for each name: they add up to `in_flight` where there are no more names than that."""
    ordered = list(names)
    return {
        name: max(1, in_flight // len(ordered) + (index < in_flight % len(ordered)))
        for index, name in enumerate(ordered)
    }


class Patience:
    """Counts deaths between finished trials; crashes and preemptions apart, as Ray Train v2 does."""

    def __init__(self) -> None:
        self._crashes = 0
        self._preemptions = 0
        self._finished = 0

    def died(self, finished: int, workers: int, preempted: bool) -> bool:
        """A worker died, when so many trials were finished and so many workers sat; True: stop the run."""
        if finished != self._finished:
            self._finished, self._crashes, self._preemptions = finished, 0, 0
        self._crashes += not preempted
        self._preemptions += preempted
        return self._crashes >= max(CRASHES, 3 * workers) or self._preemptions >= max(PREEMPTIONS, 3 * workers)

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next worker is started: nothing as long as something is finished now and then."""
        return 0.0 if self._crashes < 5 else min(5.0, 0.1 * 2 ** (self._crashes - 5))

    @property
    def deaths(self) -> int:
        """Since the last finished trial."""
        return self._crashes + self._preemptions
