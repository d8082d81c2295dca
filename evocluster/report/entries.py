"""A run as an experiment tracker takes it: params, metrics, tags and texts, cut to the limits trackers have.

    run_entry(result) -> Entry             the run: facts, start and recommended, what it spent over time
    member_entries(result) -> Entry ...    the start and each member of the front

Nothing here knows a tracker's library.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from evocluster.records import canonical, digest
from evocluster.report.figures import BEST_SPLIT, best_split, number
from evocluster.report.found import Found
from evocluster.report.side import role

RUN = "evocluster.run"
OURS = "evocluster run, "
"""How the description of a run begins, until a person writes another."""
VALUE = 500
"""Characters of a param or tag: the least that any version of MLflow's server takes (500 to 6,000)."""
KEY = 200
"""Characters of a name; servers take 250."""
STEPS = 1000
"""Points of a curve at most; the last one is always among them."""
CURVES = ("usd", "paid_usd", "calls", "evaluations")


class Point(NamedTuple):
    """One value of a metric."""

    step: int
    value: float


@dataclass
class Entry:
    """What is recorded of one run or of one member of its front."""

    name: str
    started_ms: int
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Path of an artefact -> its text: values too long for a param or a tag, and names that had to be changed."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Name as recorded -> the name it stands for."""
    unmeasured: list[str] = field(default_factory=list)
    """Metrics that are not finite."""

    def param(self, name: str, value: Any) -> None:
        """Add a param."""
        key = self._key(name)
        self.params[key] = self._short(value if isinstance(value, str) and value else canonical(value), key)

    def tag(self, name: str, value: Any) -> None:
        """Add a tag; None and '' are left out."""
        if value not in (None, ""):
            self.tags[name] = self._short(value if isinstance(value, str) else canonical(value), name)

    def metric(self, key: str, value: Any, step: int = 0) -> None:
        """Add a point of a metric; one that is not finite is listed."""
        if isinstance(value, int | float) and math.isfinite(value):
            self.metrics.setdefault(key, []).append(Point(step, float(value)))
        else:
            self.unmeasured.append(key if not step else f"{key} at step {step}")

    def measured(self, member: Mapping[str, Any] | None, prefix: str = "") -> None:
        """All that a member of front.json was measured to be: each objective on each split with the ends of its 95 %
        interval, the gap from validation to test, and of the recommended one what is left without the luck of the
        choice (`honest`, `honest_gap`).
        """
        for split in (*BEST_SPLIT, "honest", "honest_gap"):
            for name, interval in ((member or {}).get(split) or {}).items():
                for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                    self.metric(f"{prefix}{split}/{self._key(name)}{suffix}", interval.get(end))
        for name, value in ((member or {}).get("gap") or {}).items():
            self.metric(f"{prefix}gap/{self._key(name)}", value)

    def closed(self) -> Entry:
        """Itself, with what could not be recorded as it is said in tags and texts."""
        if self.unmeasured:
            self.tag("evocluster.not_finite", ", ".join(self.unmeasured))
        if self.renamed:
            self.texts["names.json"] = json.dumps(self.renamed, indent=1, ensure_ascii=False)
            self.tag("evocluster.renamed", "names.json")
        return self

    def _key(self, name: str) -> str:
        """A name every server takes; one that had to change ends in a digest, so that it stays the only one."""
        safe = re.sub(r"^\.+|[^\w.\- ]", "_", name).strip() or "_"
        if safe != name or len(safe) > KEY:
            safe = f"{safe[:KEY]}_{digest(name)[:8]}"
            self.renamed[safe] = name
        return safe

    def _short(self, text: str, name: str) -> str:
        """The text, or its beginning and the artefact that holds it whole."""
        clean = text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
        if len(clean) <= VALUE:
            return clean
        path = f"values/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}_{digest(name)[:8]}.txt"
        self.texts[path] = clean
        note = f"… [{len(clean)} characters, whole in {path}]"
        return clean[: VALUE - len(note)] + note


def run_entry(result: Found) -> Entry:
    """The run itself."""
    run, best = result.run, result.recommended
    entry = Entry(str(run.get("name") or result.path.name), _started_ms(result))
    for name, value in _facts(run):
        entry.param(f"run.{name}", value)
    if best and result.status == "finished":
        for name, value in sorted(best["genes"].items()):
            entry.param(name, value)
    entry.measured(best)
    entry.measured(result.start, "start/")
    for name in ("evaluations", "calls", "cached", "usd", "paid_usd", "elapsed_s", "generation"):
        if name in run:
            entry.metric(f"total/{name}", run[name])
    entry.metric("total/front", len(result.members))
    _curves(entry, result)
    _tag_run(entry, result)
    return entry.closed()


def _curves(entry: Entry, result: Found) -> None:
    for step, value in enumerate(result.run.get("hypervolume") or ()):
        entry.metric("hypervolume", value, step)
    for step, spent in thinned(list(_spent(result))):
        for name, value in zip(CURVES, spent, strict=True):
            entry.metric(f"spend/{name}", value, step)


def _facts(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a run knew of itself before it began, which never changes."""
    for name in ("name", "seed"):
        if name in run:
            yield name, run[name]
    for group in ("examples", "data", "models"):
        for name, value in (run.get(group) or {}).items():
            yield f"{group}.{name}", value
    if run.get("objectives"):
        yield "objectives", ", ".join(map(str, run["objectives"]))


def _tag_run(entry: Entry, result: Found) -> None:
    run, best, start = result.run, result.recommended, result.start
    entry.tag(RUN, identity(result))
    entry.tag("evocluster.folder", result.place)
    for name in ("status", "stop_reason", "error", "budget", "versions"):
        entry.tag(f"evocluster.{name}", run.get(name))
    entry.tag("evocluster.start", start and start["genome"])
    entry.tag("evocluster.recommended", best and best["genome"])
    entry.tag("evocluster.why", best and best["why"])
    entry.tag("mlflow.source.name", "evocluster")
    entry.tag("mlflow.source.type", "LOCAL")
    entry.tag("mlflow.note.content", _note(result))


def identity(result: Found) -> str:
    """16 hex digits that name this run wherever its folder lies, resumed or not."""
    told = {name: result.run.get(name) for name in ("name", "seed", "started_at", "data", "models")}
    if told["started_at"] is None:
        told["folder"] = result.place
    return digest(told)[:16]


def _started_ms(result: Found) -> int:
    started = result.run.get("started_at")
    if started:
        return round(datetime.fromisoformat(str(started)).timestamp() * 1000)
    return round((result.path / "run.json").stat().st_mtime * 1000)


def _note(result: Found) -> str:
    """One line that says what came of it."""
    start, best = result.start, result.recommended
    if not best:
        return f"{OURS}{result.status}, no front yet"
    split = best_split(best)
    before, after = (((one or {}).get(split) or {}).get("quality") or {} for one in (start, best))
    said = [number("quality", one["value"]) for one in (before, after) if one.get("value") is not None]
    return f"{OURS}{result.status}: quality {' -> '.join(said)} on {split}"


def _spent(result: Found) -> Iterator[tuple[float, float, float, float]]:
    """After each trial in the order they were kept, all that was spent up to then (see CURVES)."""
    from evocluster.store.table import scan  # pyarrow: only where it is needed

    if not (result.path / "trials").exists():
        return
    rows = (row for chunk in scan(result.path / "trials") for row in chunk)
    total = [0.0] * len(CURVES)
    for _, trial in groupby(rows, key=lambda row: row["proposal"]):
        batch = list(trial)
        total = [before + now for before, now in zip(total, _trial(batch), strict=True)]
        yield total[0], total[1], total[2], total[3]


def _trial(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    """What one trial spent: as its first row says, else its rows added up."""
    evaluations = float(sum(row["kind"] == "evaluation" for row in rows))
    if said := next((row["spend"] for row in rows if row.get("spend")), None):
        parts = json.loads(said)
        usd, paid, calls = (float(sum(part[name] for part in parts)) for name in ("usd", "paid_usd", "calls"))
        return usd, paid, calls, evaluations
    columns = (("cost_usd", "judge_usd"), ("paid_usd", "judge_paid_usd"), ("calls", "judge_calls"))
    usd, paid, calls = (float(sum(row.get(name) or 0 for row in rows for name in names)) for names in columns)
    return usd, paid, calls, evaluations


def thinned(curve: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """(step, value) of at most STEPS values, evenly, the last among them; steps count from 1.

    A curve that grew keeps the steps it had, so that drawing it again adds points and moves none.
    """
    every = 1
    while len(curve) / every > STEPS:
        every *= 2
    for step, value in enumerate(curve, 1):
        if step % every == 0 or step == len(curve):
            yield step, value


def member_entries(result: Found) -> Iterator[Entry]:
    """The start, then the other members of the front, the recommended first."""
    start = result.start
    others = [one for one in result.members if start is None or one["genome"] != start["genome"]]
    on_front = {member["genome"] for member in result.members}
    for member in [*([start] if start else []), *others]:
        is_what = role(result, str(member["genome"]))
        entry = Entry(f"{member['genome'][:8]} {is_what}", _started_ms(result))
        for name, value in sorted(member["genes"].items()):
            entry.param(name, value)
        entry.measured(member)
        entry.metric("generation", member["generation"])
        for name in ("genome", "operator", "why"):
            entry.tag(f"evocluster.{name}", member.get(name))
        entry.tag("evocluster.parents", ", ".join(member.get("parents") or ()))
        entry.tag("evocluster.role", is_what)
        entry.tag("evocluster.on_front", "true" if member["genome"] in on_front else "false")
        yield entry.closed()
