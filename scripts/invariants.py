"""What must hold at the end of every seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from faults import Plan

from evocluster.cluster.suspects import ALONE
from evocluster.records import LOST
from evocluster.store.table import scan

if TYPE_CHECKING:
    from simulated import Outcome, World

SAME = (
    *("recipe", "purpose", "kind", "genome_id", "operator", "example_id", "split", "twin", "replicate"),
    *("output", "quality", "seconds", "cost_usd", "calls", "error", "judge_usd", "notes"),
)
"""Columns of a trial that no fault may change."""
CAPS = {"calls", "usd"}
CLOSE = 1e-9
PER_ANSWER = 1.2
"""HTTP calls an answer over a run with a storm of a minute."""


def read(folder: Path) -> tuple[Any, dict[str, Any], dict[int, list[dict[str, Any]]]]:
    """The front, run.json, and the rows by trial of a finished run."""
    trials: dict[int, list[dict[str, Any]]] = {}
    for chunk in scan(folder / "trials"):
        for row in chunk:
            trials.setdefault(row["proposal"], []).append(row)
    return json.loads((folder / "front.json").read_text()), json.loads((folder / "run.json").read_text()), trials


def poisoned(reference: Outcome, plan: Plan) -> str | None:
    """A genome to be deadly: one of the children of the fault-free run."""
    born = sorted(
        {row["genome_id"] for rows in reference.trials.values() for row in rows if row["purpose"] == "search"} - {None}
    )
    return Random(f"poison {plan.seed}").choice(born) if born else None


def check(world: World, outcome: Outcome) -> list[str]:
    """Every invariant that is broken."""
    return [
        *_counted(outcome),
        *_accounts(world, outcome),
        *_budget(world, outcome),
        *_quarantine(world, outcome),
        *_same(world, outcome),
        *_weathered(world, outcome),
    ]


def _counted(outcome: Outcome) -> list[str]:
    """Nothing lost, nothing twice."""
    wrong = []
    numbers = sorted(outcome.trials)
    if numbers != list(range(len(numbers))) or len(numbers) != outcome.run["asked"]:
        wrong.append(f"lost: {outcome.run['asked']} trials were asked for, kept are {numbers}")
    for number, rows in outcome.trials.items():
        names = Counter((row["kind"], row["example_id"], row["split"], row["twin"], row["replicate"]) for row in rows)
        wrong += [f"double: trial {number} has {count} rows of {name}" for name, count in names.items() if count > 1]
    if outcome.run["status"] != "finished":
        wrong.append(f"status: run.json says {outcome.run['status']!r}")
    return wrong


def _sum(outcome: Outcome, name: str) -> float:
    return float(sum(row[name] or 0 for rows in outcome.trials.values() for row in rows))


def _accounts(world: World, outcome: Outcome) -> list[str]:
    """What is recorded as paid is what the endpoint was asked and may charge for; run.json is the sum of the rows."""
    wrong, books = [], world.books
    taken: dict[int, list[tuple[int, float]]] = {}
    for attempt in books.attempts:
        taken.setdefault(attempt.proposal, []).append((books.taken[attempt.serial], books.charged[attempt.serial]))
    for number, rows in outcome.trials.items():
        calls = sum((row["calls"] or 0) - (row["cached_calls"] or 0) for row in rows)
        usd = sum(row["paid_usd"] or 0 for row in rows)
        known = any(calls == count and abs(usd - charged) < CLOSE for count, charged in taken.get(number, ()))
        if not known and not (calls == 0 and _died(rows)):
            wrong.append(f"accounts: trial {number} says {calls} paid calls for {usd!r}, taken {taken.get(number)}")
    for name, column in (("calls", "calls"), ("usd", "cost_usd"), ("paid_usd", "paid_usd"), ("cached", "cached_calls")):
        total = _sum(outcome, column)
        if abs(total - outcome.run[name]) > CLOSE:
            wrong.append(f"accounts: run.json says {name} {outcome.run[name]!r}, the rows {total!r}")
    return wrong


def _budget(world: World, outcome: Outcome) -> list[str]:
    """Calls never pass their cap; dollars by no more than what was in flight when it was reached."""
    wrong = []
    budget = world.product.config.budget
    if budget.calls is not None and outcome.run["calls"] > budget.calls:
        wrong.append(f"budget: {outcome.run['calls']} calls, the cap is {budget.calls}")
    dearest = max((sum(row["cost_usd"] or 0 for row in rows) for rows in outcome.trials.values()), default=0.0)
    flying = world.product.config.search.ahead(world.product.config.engine.in_flight)
    if budget.usd is not None and outcome.run["usd"] > budget.usd + flying * dearest:
        wrong.append(f"budget: {outcome.run['usd']:g} usd, the cap is {budget.usd:g}, {flying} trials may be out")
    return wrong


def _died(rows: list[dict[str, Any]]) -> bool:
    return any((row["error"] or "").startswith("worker:") for row in rows)


def _quarantine(world: World, outcome: Outcome) -> list[str]:
    """Only what workers died of is given up; a deadly genome is."""
    wrong = []
    given_up = outcome.given_up = [number for number, rows in outcome.trials.items() if _died(rows)]
    if given_up and world.books.deadliest < ALONE:
        wrong.append(
            f"quarantine: {given_up} were given up, but at most {world.books.deadliest} workers died in a sitting"
        )
    judged = [row for rows in outcome.trials.values() for row in rows if row["genome_id"] == world.poison]
    if world.poison is not None and judged:
        wrong.append(f"quarantine: genome {world.poison} kills who evaluates it, and yet has {len(judged)} rows")
    return wrong


def _same(world: World, outcome: Outcome) -> list[str]:
    """The front and every trial are those of the fault-free run, where no call and no trial failed by a fault.

    What failed requests were charged counts as spent, so with it a search that a cap ends may end otherwise.
    """
    if world.plan.lossy or world.plan == world.plan.quiet or any(_died(rows) for rows in outcome.trials.values()):
        return []
    wrong, reference = [], world.reference()
    if _lost(outcome) != _lost(reference) and {outcome.run["stop_reason"], reference.run["stop_reason"]} & CAPS:
        return []
    for number, rows in reference.trials.items():
        if list(map(_same_of, outcome.trials.get(number, []))) != list(map(_same_of, rows)):
            wrong.append(f"trial: trial {number} is not that of the fault-free run")
            break
    if outcome.front != reference.front:
        wrong.append("front: it is not that of the fault-free run")
    return wrong


def _same_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What no fault may change of a row."""
    notes = {name: value for name, value in json.loads(row["notes"] or "{}").items() if name != LOST}
    return {**{name: row[name] for name in SAME}, "notes": notes}


def _lost(outcome: Outcome) -> dict[int, Any]:
    """What failed requests were charged, by trial."""
    told = {number: rows[0]["notes"] or "" for number, rows in outcome.trials.items()}
    return {number: json.loads(notes)[LOST] for number, notes in told.items() if LOST in notes}


def _weathered(world: World, outcome: Outcome) -> list[str]:
    """A storm of 429 alone costs few calls and no candidate."""
    if not world.plan.stormy:
        return []
    wrong, answers = [], sum(world.books.paid.values())
    if outcome.calls > PER_ANSWER * answers:
        wrong.append(f"storm: {outcome.calls} HTTP calls for {answers} answers, at most {PER_ANSWER:g} each")
    told = [(number, row["error"] or "") for number, rows in outcome.trials.items() for row in rows]
    failed = [one for one in told if one[1].startswith(("model", "worker"))]
    if failed:
        wrong.append(f"storm: candidates failed: {failed}")
    return wrong
