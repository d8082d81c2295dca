"""The daily analysis: what recorded requests say of the deployment, as findings; it looks and never acts.

    repeated failures (failures.py), prompt weaknesses (weakness.py), cost inefficiency (thrift.py), latency
    (slowness.py), memory gaps (gaps.py), and the drift that was told

Everything is taken from rows as `outcome.joined` makes them, whatever they were read from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evocluster.llm.prices import Price
from evocluster.online.failures import repeated
from evocluster.online.finding import Finding, of_intent, ranked
from evocluster.online.gaps import gaps
from evocluster.online.outcome import Row, served
from evocluster.online.slowness import slow
from evocluster.online.thrift import Replay, cheaper
from evocluster.online.weakness import weaknesses
from evocluster.records import Example, FrozenDict
from evocluster.release.settings import Metric
from evocluster.release.snapshot import Note


async def analyse(
    rows: Sequence[Row],
    *,
    notes: Sequence[Note] = (),
    drift: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    tombstoned: Collection[str] = (),
    examples: Sequence[Example] = (),
    replay: Replay | None = None,
    prices: Mapping[str, Price] | None = None,
) -> tuple[Finding, ...]:
    """Every finding, the gravest first.

    `notes`: of the memory that served; `drift`: warnings as {intent, model, state: "warn" | "alarm", ...evidence};
    `versions`: snapshot -> name of its prompt; costs are looked at where `examples`, `replay` and `prices` are given.
    Raises: FATAL errors of a replay only.
    """
    counted = served(rows, frozenset(tombstoned))
    found = [
        *repeated(counted, metrics),
        *weaknesses(counted, versions, metrics),
        *slow(counted),
        *gaps(counted, notes, metrics),
        *map(drifted, drift),
    ]
    if replay is not None and prices and examples:
        found += await cheaper(counted, examples, replay, prices)
    return ranked(found)


def drifted(warning: Mapping[str, Any]) -> Finding:
    """A drift warning as a finding: an alarm is of high severity, a warning of medium."""
    intent, model = str(warning.get("intent") or ""), str(warning.get("model") or "")
    alarm = warning.get("state") == "alarm"
    evidence = {str(name): value for name, value in warning.items() if name not in ("intent", "model", "state")}
    return Finding(
        kind="drift",
        severity="high" if alarm else "medium",
        layer="prompt",
        intent=intent,
        model=model,
        title=f"{of_intent(intent, model)}: accuracy {'has gone down' if alarm else 'may be going down'}",
        evidence=FrozenDict(evidence),
        recommendation="evolve on the latest traffic" if alarm else "watch it; an alarm starts an evolution",
    )
