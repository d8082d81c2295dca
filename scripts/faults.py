"""The fault plan of a seed: which faults, how often, how hard; and the order in which chance is asked while it acts.

Each seed enables a random subset of the faults with rates of its own (swarm testing: Groce et al. 2012, "Swarm
Testing"; so FoundationDB's simulator): faults that always come together hide what only one of them would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from typing import Any

from searches import LONG, SEARCHES, SHORT

KINDS = (
    "worker crash",
    "node crash",
    "driver crash",
    "driver crash at a step",
    "driver crash at the disk",
    "population crash",
    "cache crash",
    "limits crash",
    "interrupt",
    "second driver",
    "cut off",
    "late messages",
    "doubled messages",
    "429 storm",
    "5xx",
    "cut streams",
    "slow answers",
    "dead requests",
    "disk full",
    "cache full",
    "lost calls",
    "endless failures",
    "poison",
)
"""Every fault there is. Those of LOSSY make calls or trials fail that would not have failed without them."""
LOSSY = ("lost calls", "endless failures", "poison")
SPAN_S = (6.0, 15.0)
"""Faults come within so many seconds of virtual time, of a short search and of another: a run takes about as long."""
STEPS = (1200, 2500)
"""Faults at a step come before so many, likewise."""
WRITES = (60, 90)
"""Faults at the disk come before so many writes, likewise."""
WIDE = 0.05
"""Share of the seeds that carry out one of the searches that are not short."""
SHARE = 0.13
"""Of the kinds of faults that a seed enables, on average."""


@dataclass(frozen=True)
class Plan:
    """What happens in one seed; everything else follows from the seed."""

    seed: int
    search: int
    """Which of the searches is carried out."""
    nodes: int
    workers: int
    in_flight: int
    max_concurrency: int
    kinds: tuple[str, ...] = ()
    worker_crashes: tuple[float, ...] = ()
    """When, in seconds of virtual time; so the next five."""
    node_crashes: tuple[float, ...] = ()
    driver_crashes: tuple[float, ...] = ()
    population_crashes: tuple[float, ...] = ()
    cache_crashes: tuple[float, ...] = ()
    limits_crashes: tuple[float, ...] = ()
    interrupts: tuple[float, ...] = ()
    """When the user stops the run, to resume it."""
    intruders: tuple[float, ...] = ()
    """When another driver tries to open the run folder."""
    cuts: tuple[tuple[float, float], ...] = ()
    """When a worker is cut off, and for how long."""
    driver_steps: tuple[int, ...] = ()
    """Before which steps of the loop the driver is killed."""
    disk_deaths: tuple[tuple[int, str], ...] = ()
    """At which writes or syncs of the run folder the driver is killed: before, torn, after."""
    disk_full: tuple[tuple[int, int], ...] = ()
    """From which write on the disk is full, and for how many."""
    cache_full: tuple[int, ...] = ()
    """Which writes of the cache fail."""
    late: float = 0.0
    """Share of messages that are late."""
    late_s: float = 0.0
    doubled: float = 0.0
    """Share of handed-in results that arrive twice."""
    storms: tuple[tuple[float, float, float], ...] = ()
    """When every call is answered with 429, for how long, and what Retry-After says."""
    overloaded: float = 0.0
    """Share of attempts answered with 5xx."""
    broken: float = 0.0
    """Share of attempts whose answer breaks off, which may be charged for."""
    slow: float = 0.0
    """Share of answers from a heavy tail."""
    dead: float = 0.0
    """Share of requests that are never answered, whoever asks; the fault-free run has them too."""
    lost: float = 0.0
    """Share of attempts that are never answered."""
    unbounded: bool = False
    """Attempts of one call may fail more often than it is repeated."""
    poison: bool = False
    """One genome kills every worker that evaluates it."""

    alone: bool = False
    """At a step or at the disk the population dies alone, and the driver starts another."""

    @property
    def stormy(self) -> bool:
        """Nothing happens but a minute of 429."""
        return self.kinds == ("429 storm",) and self.storms[0][1] >= STORM_S

    @property
    def lossy(self) -> bool:
        """Calls fail that would not fail without faults: its front cannot be that of the fault-free run."""
        return bool(self.lost or self.unbounded or self.poison)

    @property
    def quiet(self) -> Plan:
        """The same search without faults (requests that nobody ever answers are the endpoint's, no fault)."""
        return Plan(0, self.search, 1, 2, 8, 0, dead=self.dead)

    def told(self) -> dict[str, Any]:
        """What is not as in a plan without faults."""
        return {name: value for name, value in asdict(self).items() if value or name in ("seed", "search")}


DEAD = 0.04


STORM_S = 60.0
STORMY = 100
"""Every so many seeds one brings a storm of a minute, and nothing else."""


def plan(seed: int) -> Plan:
    """The plan of this seed."""
    if seed % STORMY == STORMY - 1:
        return storm(seed, LONG)
    rng = Random(f"plan {seed}")
    wide = rng.random() < WIDE
    nodes = rng.choice((1, 1, 2, 3))
    shape: dict[str, Any] = {
        "seed": seed,
        "search": rng.randrange(len(SHORT), len(SEARCHES)) if wide else rng.randrange(len(SHORT)),
        "nodes": nodes,
        "workers": rng.randint(nodes, 4 if wide else 3),
        "in_flight": rng.choice((4, 8, 12)),
        "max_concurrency": rng.choice((0, 0, 0, 0, 4, 6)),
        "alone": rng.random() < 0.5,
    }
    kinds = tuple(kind for kind in KINDS if rng.random() < (0.07 if kind in LOSSY else SHARE))
    drawn: dict[str, Any] = {}
    for kind in kinds:
        drawn.update(_draw(kind, rng, wide))
    return Plan(**shape, kinds=kinds, **drawn)


def storm(seed: int, search: int) -> Plan:
    """A minute of 429 in the midst of this search."""
    rng = Random(f"storm {seed}")
    nodes = rng.choice((1, 2))
    storms = ((round(rng.uniform(3, 15), 3), STORM_S, rng.choice((0.0, 1.0, 3.0, 10.0))),)
    most = rng.choice((0, 0, 6))
    return Plan(seed, search, nodes, rng.randint(nodes, 4), 12, most, ("429 storm",), storms=storms)


def _times(rng: Random, wide: bool, most: int) -> tuple[float, ...]:
    """At most so many; half of them for a short search."""
    count = rng.randint(1, most if wide else (most + 1) // 2)
    return tuple(sorted(round(rng.uniform(0, SPAN_S[wide]), 3) for _ in range(count)))


def _draw(kind: str, rng: Random, wide: bool) -> dict[str, Any]:
    """The settings that one kind of fault takes."""
    times, steps, writes = partial(_times, rng, wide), STEPS[wide], WRITES[wide]
    # Of what takes time, less in what is over soon.
    long_s = 20 if wide else 8
    makes: dict[str, Callable[[], dict[str, Any]]] = {
        "worker crash": lambda: {"worker_crashes": times(4)},
        "node crash": lambda: {"node_crashes": times(2)},
        "driver crash": lambda: {"driver_crashes": times(2)},
        "driver crash at a step": lambda: {
            "driver_steps": tuple(rng.randint(20, steps) for _ in range(rng.randint(1, 2)))
        },
        "driver crash at the disk": lambda: {
            "disk_deaths": tuple(
                (rng.randint(1, writes), rng.choice(("before", "torn", "after"))) for _ in range(rng.randint(1, 2))
            )
        },
        "population crash": lambda: {"population_crashes": times(3)},
        "limits crash": lambda: {"limits_crashes": times(3)},
        "cache crash": lambda: {"cache_crashes": times(2)},
        "interrupt": lambda: {"interrupts": times(2)},
        "second driver": lambda: {"intruders": times(3)},
        "cut off": lambda: {"cuts": tuple((at, round(rng.uniform(1, long_s), 3)) for at in times(2))},
        "late messages": lambda: {"late": rng.uniform(0.01, 0.3), "late_s": rng.choice((0.1, 1.0, 5.0))},
        "doubled messages": lambda: {"doubled": rng.uniform(0.05, 0.5)},
        "429 storm": lambda: {
            "storms": tuple((at, rng.uniform(1, long_s), rng.choice((0.0, 1.0, 3.0))) for at in times(2))
        },
        "5xx": lambda: {"overloaded": rng.uniform(0.05, 0.5)},
        "cut streams": lambda: {"broken": rng.uniform(0.05, 0.3)},
        "slow answers": lambda: {"slow": rng.uniform(0.02, 0.2)},
        "dead requests": lambda: {"dead": DEAD},
        "disk full": lambda: {"disk_full": ((rng.randint(1, 50), rng.randint(1, 3)),)},
        "cache full": lambda: {"cache_full": (rng.randint(1, 20),)},
        "lost calls": lambda: {"lost": rng.uniform(0.02, 0.2)},
        "endless failures": lambda: {"unbounded": True, "overloaded": rng.uniform(0.5, 0.75)},
        "poison": lambda: {"poison": True},
    }
    return makes[kind]()
