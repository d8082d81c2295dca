"""What a scaling benchmark found, as tables and as sentences: where the first bottleneck lies, and what grows.

tables(found)       [(title, note, heads, rows)], the same in the terminal and on the page
findings(found)     sentences, each derived from the figures and nothing else
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
FULL = 0.85
"""Share of a core from which a Python process counts as saturated: more leaves no room for what comes at once."""
BUSY = 0.9
"""Share of all cores from which the machine does."""
GROWS = 1.5
"""The cost of a trial grows with history when it takes so many times what it took at the second size."""
LATE_MS = 50
"""Milliseconds late from which the endpoint itself counts as held up."""
SIDES: Mapping[str, tuple[str, ...]] = {
    "population": ("ray::Population",),
    "workers": ("ray::Puller",),
    "cache": ("ray::CacheKeeper",),
    "driver": ("driver",),
    "Ray": ("raylet", "gcs_server"),
    "endpoint": ("endpoint",),
}
"""Name in the tables -> processes. Whatever else there is (agents, monitors, idle workers) is `other`."""
TITLES = {
    "strong": "Strong scaling: the same work on more nodes",
    "weak": "Weak scaling: work that grows with the nodes",
    "in-flight": "More calls in flight",
    "steady": "Steady state against generational",
}


class Table(NamedTuple):
    """A table for people."""

    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sides(row: Row) -> dict[str, float]:
    """CPU milliseconds an evaluation by side of the engine."""
    cpu: Mapping[str, float] = row["cpu_ms"]
    found = {side: sum(cpu.get(name, 0.0) for name in names) for side, names in SIDES.items()}
    known = {name for names in SIDES.values() for name in names}
    return {**found, "other": sum(ms for name, ms in cpu.items() if name not in known)}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What was measured, part by part."""
    made = []
    for part in TITLES:
        rows = [row for row in found["searches"] if row["part"] == part]
        if rows:
            made += [_timings(part, rows), _cpu(part, rows)]
    if found["history"]:
        made.append(_history(found["history"]))
    return made


def _what(part: str, row: Row) -> tuple[str, str, str]:
    first = {"in-flight": str(row["in_flight"]), "steady": row["label"]}.get(part, str(row["nodes"]))
    return first, row["latency"], str(row["in_flight"])


def _timings(part: str, rows: Sequence[Row]) -> Table:
    heads = {"in-flight": "in flight", "steady": "selection"}.get(part, "nodes")
    against = "speed-up" if part == "strong" else "per node" if part == "weak" else "per hour"
    lines = []
    for row in rows:
        relative = f"{row['evaluations_per_s']['median'] * 3600:,.0f}"
        if part in ("strong", "weak"):
            relative = f"{relation(part, row, rows):.2f}"
        phases = " ".join(f"{phase['efficiency']:.2f}" for phase in row["phases"])
        lines.append(
            (
                *_what(part, row),
                f"{row['evaluations']:,}",
                f"{row['ideal_s']['median']:.1f}",
                _spread(row["wall_s"], ".1f"),
                _spread(row["efficiency"], ".3f"),
                f"{row['efficiency_phases']['median']:.3f} ({phases})",
                f"{row['evaluations_per_s']['median']:.0f}",
                relative,
            )
        )
    note = (
        "efficiency: the perfect makespan on the very same latencies over the wall time; by phase: with search, "
        "validation and test each begun when the one before is over, and each of the three by itself"
    )
    more = ("latency", "in flight", "evals", "perfect s", "wall s", "efficiency", "by phase (each)", "evals/s")
    return Table(TITLES[part], note, (heads, *more, against), tuple(lines))


def relation(part: str, row: Row, rows: Sequence[Row]) -> float:
    """Strong: times as fast as on the fewest nodes. Weak: evaluations/s a node, held against those there."""
    least = min((one for one in rows if one["latency"] == row["latency"]), key=lambda one: int(one["nodes"]))
    ratio = float(row["evaluations_per_s"]["median"] / least["evaluations_per_s"]["median"])
    return ratio if part == "strong" else ratio * least["nodes"] / row["nodes"]


def _cpu(part: str, rows: Sequence[Row]) -> Table:
    heads = {"in-flight": "in flight", "steady": "selection"}.get(part, "nodes")
    lines = []
    for row in rows:
        name, latency, _ = _what(part, row)
        each = sides(row)
        lines.append(
            (
                name,
                latency,
                _spread(row["engine_ms"], ".2f"),
                *(f"{ms:.2f}" for ms in each.values()),
                _busiest(row),
                f"{row['machine']['median']:.0%}",
                f"{row['late_ms']['median']:.0f}",
                f"{row['node_mb']['median']:.0f}",
                f"{row['head_mb']['median']:.0f}",
            )
        )
    note = (
        "CPU milliseconds an evaluation; engine: population, workers (with the client's own HTTP), cache, driver and "
        "Ray; busiest: the process that used most of one core; late: of the endpoint, 99th percentile; MiB: private "
        "memory of a node, and of the largest"
    )
    last = ("busiest", "machine", "late ms", "MiB", "largest")
    return Table(
        f"{TITLES[part]}: CPU and memory", note, (heads, "latency", "engine", *SIDES, "other", *last), tuple(lines)
    )


def _busiest(row: Row) -> str:
    name, share = busiest(row)
    return f"{name} {share:.0%}"


def busiest(row: Row) -> tuple[str, float]:
    """The side whose one process used most of a core, and how much."""
    shares: Mapping[str, float] = row["busiest"]
    found = {side: max(shares.get(name, 0.0) for name in names) for side, names in SIDES.items()}
    return max(found.items(), key=lambda one: one[1])


def _history(rows: Sequence[Row]) -> Table:
    lines = tuple(
        (
            f"{row['evaluations']:,}",
            f"{row['trials']:,}",
            f"{row['ask_ms'] + row['tell_ms']:.3f}",
            f"{row['append_ms']:.3f}",
            f"{row['slowest_ms']:.0f}",
            f"{row['resident_mb']:.0f}",
        )
        for row in rows
    )
    note = (
        "CPU milliseconds an evaluation over the last fifth of the way to each size, in one process without model and "
        "Ray; slowest: the longest that one trial held everything up there"
    )
    heads = ("evaluations", "trials", "ask and tell ms", "append ms", "slowest trial ms", "resident MiB")
    return Table("The population as history grows", note, heads, lines)


def _spread(figure: Mapping[str, float], form: str) -> str:
    """The median, and the lowest and highest where there are several."""
    low, middle, high = (format(figure[name], form) for name in ("low", "median", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def findings(found: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    rows: Sequence[Row] = found["searches"]
    said = [_machine(found["machine"], rows)]
    for part in ("strong", "weak"):
        said += _scaling(part, [row for row in rows if row["part"] == part])
    said += bottleneck([row for row in rows if row["part"] == "in-flight"], found["machine"]["cores"])
    said += growth(found["history"])
    said += _steady([row for row in rows if row["part"] == "steady"])
    return said


def _machine(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    cores = machine["cores"]
    full = [row for row in rows if row["machine"]["median"] >= BUSY]
    text = (
        f"Measured on {cores} core(s), {machine['system']}, Python {machine['python']}, load {machine['load']} before."
    )
    if not rows:
        return text
    if full:
        least = min(full, key=lambda row: float(row["evaluations_per_s"]["median"]))
        text += (
            f" From {least['evaluations_per_s']['median']:.0f} evaluations/s on all of them were busy, endpoint and "
            "meter included: beyond that only CPU an evaluation can be told, not efficiency."
        )
    else:
        text += " They were never all busy, so the efficiencies are the engine's own."
    return text


def _scaling(part: str, rows: Sequence[Row]) -> list[str]:
    said = []
    for latency in dict.fromkeys(row["latency"] for row in rows):
        same = sorted((row for row in rows if row["latency"] == latency), key=lambda row: int(row["nodes"]))
        first, last = same[0], same[-1]
        if first is last:
            continue
        ratio = relation(part, last, same)
        cpu = last["engine_ms"]["median"] / first["engine_ms"]["median"]
        what = (
            f"{last['nodes']} nodes are {ratio:.2f} times as fast as {first['nodes']}"
            if part == "strong"
            else f"a node of {last['nodes']} gets {ratio:.2f} of what a node of {first['nodes']} gets done"
        )
        said.append(
            f"{part.capitalize()} scaling, {latency}: {what}; efficiency {first['efficiency']['median']:.3f} and "
            f"{last['efficiency']['median']:.3f}; CPU an evaluation times {cpu:.2f}."
        )
    return said


def bottleneck(rows: Sequence[Row], cores: int) -> list[str]:
    """Which process fills a core first as more is in flight, or what comes nearest to it."""
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: int(row["in_flight"]))
    for row in ordered:
        side, share = busiest(row)
        at = f"{row['in_flight']} in flight ({row['evaluations_per_s']['median']:.0f} evaluations/s)"
        late = (
            f" The endpoint answered {row['late_ms']['median']:.0f} ms late."
            if row["late_ms"]["median"] > LATE_MS
            else ""
        )
        if share >= FULL:
            text = f"The first bottleneck: at {at} the {side} process fills {share:.0%} of a core"
            return [f"{text}; efficiency is {row['efficiency']['median']:.3f} there.{late}"]
        if row["machine"]["median"] >= BUSY:
            full = f"{row['machine']['median']:.0%} of its cores"
            text = f"The first bottleneck: at {at} the machine itself is full ({full})"
            ours = sum(row["cpu_ms"].values()) / 1000 * row["evaluations_per_s"]["median"] / cores
            other = " Most of that was other work: repeat it on a quiet machine." if ours < BUSY / 2 else ""
            return [f"{text}; the busiest process is the {side} with {share:.0%} of a core.{late}{other}"]
    last = ordered[-1]
    side, share = busiest(last)
    rate = last["evaluations_per_s"]["median"] / share if share else 0.0
    return [
        f"No bottleneck up to {last['in_flight']} in flight: the busiest process, the {side}, uses {share:.0%} of a "
        f"core; by that it would be full at about {rate:.0f} evaluations/s."
    ]


def growth(rows: Sequence[Row]) -> list[str]:
    """Whether a trial gets dearer with history. The first size holds the start, so it is not what is compared with."""
    if len(rows) < 2:
        return []
    base, last = rows[min(1, len(rows) - 2)], rows[-1]
    each = [sum(row[name] for name in ("ask_ms", "tell_ms", "append_ms")) for row in (base, last)]
    ratio = each[1] / each[0] if each[0] else 0.0
    how = "grows with" if ratio >= GROWS else "does not grow with"
    return [
        f"The population's cost {how} history: {each[0]:.3f} ms CPU an evaluation at {base['evaluations']:,}, "
        f"{each[1]:.3f} at {last['evaluations']:,} (times {ratio:.2f}); memory {base['resident_mb']:.0f} and "
        f"{last['resident_mb']:.0f} MiB. By itself it allows {1000 / each[1] if each[1] else 0:.0f} evaluations/s."
    ]


def _steady(rows: Sequence[Row]) -> list[str]:
    if len(rows) < 2:
        return []
    hourly = {row["label"]: row["evaluations_per_s"]["median"] * 3600 for row in rows}
    told = ", ".join(f"{label} {rate:,.0f}" for label, rate in hourly.items())
    first = rows[0]
    said = f"Evaluations an hour with {first['in_flight']} in flight at {first['latency']}: {told}."
    pairs = (("race", "generational"), ("steady", "steady, by generations"))
    ratios = [f"{a} / {b} {hourly[a] / hourly[b]:.2f}" for a, b in pairs if a in hourly and b in hourly]
    return [said + (f" Ratios: {'; '.join(ratios)}." if ratios else "")]
