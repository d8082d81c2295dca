"""What counts as lost, double and paid again: pure functions of what the endpoint and the run folder say.

The endpoint's ledger (chaos_ledger.py) tells which request came and was answered when; the cache on disk tells,
at the moment of a fault, which answers were acknowledged, because each answer carries the digest of its request.

    lost        a proposal, or an evaluation of one, that the undisturbed run has and this one lacks
    double      a row of a proposal and item that the table holds twice
    paid again  a request that came again although its answer was stored when the fault struck, or came twice
                without any fault in between
    issued again  a request under way at the fault (not stored) that came again: nobody can avoid these, so they
                are counted apart; those that had not been answered may be no more than the places in flight, and
                those that had no more than can gather on their way to the disk
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from evocluster.records import LOST

Entry = tuple[str, float, float]
"""(digest of a request, arrived_s, answered_s or 0)"""
Key = tuple[Any, ...]
GATHERED = 2
"""Answers that gather on their way to the disk (llm/cached.py), for each place in flight: those that came in one
batch, and those that came while it was written; and calls begun by who has not noticed yet that an actor is gone.
It holds where calls take as long as gathering, 0.02 s, and longer.
"""
SHOWN = 10
"""Of what is wrong in a row is told in full."""
UNSTEADY = ("cached_calls", "judge_cached", "paid_usd", "spend")
"""Columns that two runs of one seed may differ in: who paid (the ends of their names)."""


@dataclass(frozen=True)
class Fault:
    """One fault as it happened."""

    struck_s: float
    """Monotonic clock, when it struck."""
    over_s: float
    """When nothing that it had broken could ask any more."""
    stored: frozenset[str]
    """Digests acknowledged (in the cache on disk) when it struck."""
    places: int | None = None
    """The most calls that can have been under way; None: it is not a kill, so that this is not judged."""


@dataclass(frozen=True)
class Verdict:
    """What one run under faults came to."""

    lost: tuple[str, ...] = ()
    double: tuple[str, ...] = ()
    repaid: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    """Whatever else is not as it must be: another front, too much issued again, a bad exit."""
    reissued: int = 0

    @property
    def passed(self) -> bool:
        """Nothing lost, double, paid again or wrong."""
        return not (self.lost or self.double or self.repaid or self.wrong)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.lost + other.lost,
            self.double + other.double,
            self.repaid + other.repaid,
            self.wrong + other.wrong,
            self.reissued + other.reissued,
        )

    def of(self, what: str) -> Verdict:
        """The same, with the fault named in what is wrong."""
        return replace(self, wrong=tuple(f"{what}: {text}" for text in self.wrong))


def complaint(*texts: str) -> Verdict:
    """A verdict that only says what else is wrong."""
    return Verdict(wrong=texts)


class Repeat(NamedTuple):
    """A request that came again."""

    name: str
    came_s: float
    answered_s: float
    """0: it was not."""
    again_s: float

    def excused(self, faults: Iterable[Fault]) -> list[Fault]:
        """The faults that it can have come again for, the earliest first."""
        found = [fault for fault in faults if self.came_s <= fault.over_s and self.again_s >= fault.struck_s]
        return sorted(found, key=lambda fault: fault.struck_s)


def repeats(entries: Iterable[Entry]) -> list[Repeat]:
    """Every request that came again, once for each time."""
    found: list[Repeat] = []
    latest: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry[1]):
        if entry[0] in latest:
            found.append(Repeat(*latest[entry[0]], entry[1]))
        latest[entry[0]] = entry
    return found


def calls(entries: Iterable[Entry], faults: Sequence[Fault]) -> Verdict:
    """The verdict on the endpoint's ledger."""
    paid: dict[str, None] = {}
    again: dict[Fault, list[Repeat]] = {fault: [] for fault in faults}
    for repeat in repeats(entries):
        excuses = repeat.excused(faults)
        if not excuses or any(repeat.name in fault.stored for fault in excuses):
            paid[repeat.name] = None
        else:
            again[excuses[0]].append(repeat)
    wrong = [text for fault, issued in again.items() for text in _excess(fault, issued)]
    return Verdict(repaid=tuple(paid), wrong=tuple(wrong), reissued=sum(map(len, again.values())))


def _excess(fault: Fault, again: Sequence[Repeat]) -> list[str]:
    """What is wrong with the requests that were issued again after a kill."""
    if fault.places is None:
        return []
    waiting = sum(repeat.came_s <= fault.struck_s and not 0 < repeat.answered_s <= fault.over_s for repeat in again)
    others = len(again) - waiting
    wrong = []
    if waiting > fault.places:
        wrong.append(f"{waiting} unanswered calls issued again, at most {fault.places} were in flight")
    if others > GATHERED * fault.places:
        wrong.append(f"{others} answers not stored or asked for after the fault; {fault.places} calls were in flight")
    return wrong


def keys(rows: Iterable[Mapping[str, Any]]) -> Counter[Key]:
    """How often each row of each proposal is there: (proposal, kind, split, example, twin, replicate)."""
    names = ("proposal", "kind", "split", "example_id", "twin", "replicate")
    return Counter(tuple(row.get(name) for name in names) for row in rows)


def gaps(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Proposal numbers that are missing below the highest one."""
    numbers = {row["proposal"] for row in rows}
    return sorted(set(range(max(numbers, default=-1) + 1)) - numbers)


def table(rows: Sequence[Mapping[str, Any]], calm: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on a finished trials table against that of the undisturbed run of the same seed."""
    mine, theirs = keys(rows), keys(calm)
    lost = [f"proposal {number}" for number in gaps(rows)] + [f"row {key}" for key in theirs.keys() - mine.keys()]
    double = [f"row {key} is there {count} times" for key, count in mine.items() if count > 1]
    wrong = [f"row {key} is not in the undisturbed run" for key in mine.keys() - theirs.keys()]
    wrong += [] if lost or double or wrong else _changed(rows, calm)
    return Verdict(lost=tuple(lost), double=tuple(double), wrong=tuple(wrong[:5]))


def _changed(rows: Sequence[Mapping[str, Any]], calm: Sequence[Mapping[str, Any]]) -> list[str]:
    steady = [{_key(row): _steady(row) for row in each} for each in (rows, calm)]
    return [
        f"row {key} says something else than undisturbed" for key, row in steady[0].items() if row != steady[1][key]
    ]


def _key(row: Mapping[str, Any]) -> Key:
    return next(iter(keys([row])))


def _steady(row: Mapping[str, Any]) -> dict[str, Any]:
    # What was lost to connections that broke off is also of the faults.
    notes = {name: value for name, value in json.loads(row.get("notes") or "{}").items() if name != LOST}
    return {**{name: value for name, value in row.items() if not name.endswith(UNSTEADY)}, "notes": notes}


def front(found: Any, calm: Any) -> Verdict:
    """front.json equals that of the undisturbed run, to the last digit."""
    if found == calm:
        return Verdict()
    mine, theirs = ([member["genome"][:8] for member in each.get("members", [])] for each in (found, calm))
    return complaint(f"front.json differs: members {mine}, undisturbed {theirs}")


@dataclass
class Row:
    """A line of the fault table, filled while its faults are injected."""

    name: str
    faults: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    seen: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    not_run: str = ""
    """Why it could not be run here; it is then neither passed nor failed."""

    @property
    def passed(self) -> bool:
        """It was run, faults were injected, and nothing was wrong."""
        return not self.not_run and self.faults > 0 and self.verdict.passed

    def told(self) -> dict[str, Any]:
        """The row of the JSON line."""
        verdict = self.verdict
        wrong = [*verdict.lost[:3], *verdict.double[:3], *(f"paid again: {one}" for one in verdict.repaid[:3])]
        return {
            "name": self.name,
            "faults": self.faults,
            "lost": len(verdict.lost),
            "double": len(verdict.double),
            "repaid": len(verdict.repaid),
            "passed": self.passed,
            "seen": {
                **self.seen,
                **({"issued_again": verdict.reissued} if verdict.reissued else {}),
                **({"wrong": [*wrong, *verdict.wrong[:SHOWN]]} if wrong or verdict.wrong else {}),
                **({"more_wrong": len(verdict.wrong) - SHOWN} if len(verdict.wrong) > SHOWN else {}),
                **({"not_run": self.not_run} if self.not_run else {}),
            },
            "seconds": round(self.seconds, 1),
        }


def total(rows: Iterable[Row]) -> dict[str, Any]:
    """The JSON line of the whole table."""
    told = [row.told() for row in rows]
    sums = {name: sum(row[name] for row in told) for name in ("lost", "double", "repaid", "faults")}
    return {**sums, "rows": told}
