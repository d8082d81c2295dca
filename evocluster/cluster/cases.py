"""Which searches the scaling benchmark carries out: a pure function of what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from evocluster.cluster.loopback import Latency
from evocluster.cluster.scaling import Case, Shape
from evocluster.errors import ConfigError

PARTS = ("strong", "weak", "in-flight", "history", "steady")
CLIENTS = ("direct", "litellm")
WAVES = 10
"""Calls of a search in the part `in-flight`, for each place in flight, at least."""
SLOTS = 32
"""Calls in flight on each simulated node."""
LEAST_CALLS = 100
"""What a search with its final check needs."""
COMPARED: Mapping[str, Mapping[str, Any]] = {
    "race": {"selection": "race"},
    "steady": {"selection": "steady"},
    "steady, by generations": {"selection": "steady", "mode": "generational"},
    "generational": {"selection": "generational"},
}
"""Steady state against generational: the default; the plain steady state, and the same search when it waits for whole
generations; plain NSGA-II, which waits for them too and tries everybody on everything."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    parts: tuple[str, ...] = PARTS
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16)
    in_flight: tuple[int, ...] = (50, 200, 500, 1000, 2000)
    latencies: tuple[str, ...] = ("fixed:1", "lognormal:1:10")
    calls: int = 2560
    """Of a search of strong scaling and of steady state; weak scaling takes a quarter of it a node."""
    repeat: int = 3
    client: str = "direct"
    history: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Evaluations after which the cost of one more is told."""
    address: str | None = None
    """The cluster to measure on; None: simulated nodes on this machine."""


SHORT = Options(
    nodes=(1, 2),
    in_flight=(50, 200),
    latencies=("fixed:0.2", "lognormal:0.2:1"),
    calls=640,
    repeat=1,
    history=(1_000, 10_000),
)
"""About two minutes."""


def checked(options: Options) -> Options:
    """The options, their lists in order and each entry once. Raises: ConfigError."""
    for part in options.parts:
        _among("--parts", part, PARTS)
    _among("--client", options.client, CLIENTS)
    for latency in options.latencies:
        try:
            Latency.parse(latency)
        except ValueError as error:
            raise ConfigError(f"--latency: {error}") from error
    lists = {"--nodes": options.nodes, "--in-flight": options.in_flight, "--history": options.history}
    for name, given in lists.items():
        if not given or min(given) < 1:
            raise ConfigError(f"{name} {','.join(map(str, given))!r}: allowed are whole numbers from 1, e.g. 1,2,4")
    if options.calls < LEAST_CALLS:
        raise ConfigError(f"--calls {options.calls!r}: a search and its final check need {LEAST_CALLS} or more")
    if options.repeat < 1:
        raise ConfigError(
            f"--repeat {options.repeat!r}: allowed are whole numbers from 1; 3 give a median and a spread"
        )
    if not options.latencies or not options.parts:
        raise ConfigError(f"nothing to measure: give --latency, and --parts of {', '.join(PARTS)}")
    return Options(
        **{
            **vars(options),
            "parts": tuple(part for part in PARTS if part in options.parts),
            "nodes": tuple(sorted(set(options.nodes))),
            "in_flight": tuple(sorted(set(options.in_flight))),
            "history": tuple(sorted(set(options.history))),
        }
    )


def _among(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r} is not known; allowed: {', '.join(allowed)}")


def by_nodes(options: Options) -> dict[int, list[Case]]:
    """Nodes -> the searches to carry out there, what is compared by turns, as often as they are repeated."""
    found: dict[int, list[Case]] = {}
    for case in (*_nodes(options), *_in_flight(options), *_steady(options)):
        found.setdefault(case.nodes, []).append(case)
    return {nodes: cases * options.repeat for nodes, cases in found.items()}


def _nodes(options: Options) -> Iterator[Case]:
    """Strong and weak scaling: so many in flight a node, on one worker a node."""
    for nodes, latency, part in product(options.nodes, options.latencies, ("strong", "weak")):
        each = max(LEAST_CALLS, options.calls // 4)
        calls = options.calls if part == "strong" else each * nodes
        shape = Shape.of(options.calls if part == "strong" else each * options.nodes[0])
        if part in options.parts:
            yield Case(part, nodes, SLOTS * nodes, latency, calls, shape, options.client, workers=nodes)


def _in_flight(options: Options) -> Iterator[Case]:
    """More and more in flight on this machine, or on all of the cluster."""
    if "in-flight" in options.parts:
        for places in options.in_flight:
            calls = max(options.calls, WAVES * places)
            yield Case("in-flight", 1, places, options.latencies[0], calls, Shape.of(calls), options.client)


def _steady(options: Options) -> Iterator[Case]:
    """Ways to select, in flight enough that whoever waits for a generation is seen to."""
    if "steady" in options.parts:
        places = max(8, options.calls // 40)
        shape = Shape(population=max(4, options.calls // 200), checked=max(4, options.calls // 160), block=4)
        for label, search in COMPARED.items():
            latency = options.latencies[-1]
            yield Case("steady", 1, places, latency, options.calls, shape, options.client, None, search, label)
