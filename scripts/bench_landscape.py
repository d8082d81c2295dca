"""The strategies compared on recorded landscapes: many seeds in seconds, the true quality of every choice known.

`search` carries one search out, `compare` all of them, `show` prints the tables, `figures` sums up. Strategies that
ask a model (refine, hybrid, breed) have nothing to ask here and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_figures import (
    Floats,
    Incumbent,
    alike,
    at,
    calls_ratio,
    hypervolumes,
    mean,
    paired,
    saved,
)
from bench_figures import figures as line
from landscape import Landscape

from evocluster.errors import OperatorFailed
from evocluster.llm.client import Reply, Request
from evocluster.records import Genome, Proposal, Trial
from evocluster.search.budget import Budget
from evocluster.search.objectives import Composite, Objective
from evocluster.search.operators import EVALUATE
from evocluster.search.optimizer import Optimizer
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search

SELECTIONS = {"random": "random", "generational": "generational", "steady": "steady", "evolve": "race"}
"""Name -> what it is under `search.selection`."""
IN_FLIGHT = 8
POINTS = (150, 300, 600)
"""Calls after which the incumbent is looked at, besides the end."""
RULE = "best quality"


@dataclass(frozen=True)
class Outcome:
    """What one search came to."""

    curve: tuple[tuple[int, float], ...]
    """(calls, true quality of the incumbent from then on); at the end that of the recommended configuration."""
    chosen: int
    """Row of the recommended configuration."""
    gap: float | None
    """Quality reported (on validation, without the luck of the choice) less that on test, in points."""
    saved: float | None
    front: tuple[int, ...]
    tried: int

    @property
    def quality(self) -> float:
        """The true quality of what was recommended."""
        return self.curve[-1][1]


async def nobody(request: Request) -> Reply:
    """The model there is none of. Raises: OperatorFailed."""
    raise OperatorFailed(f"a landscape has no model to ask for {request.purpose!r}")


def search(where: Landscape, settings: Search, objectives: Sequence[Objective], seed: int, calls: int) -> Outcome:
    """One search of so many calls."""
    train = where.dealt("train", seed)
    optimizer = Optimizer(
        space=where.space,
        settings=settings,
        objectives=objectives,
        composite=Composite(),
        recommend=RULE,
        budget=Budget(calls=calls),
        items={"train": train, "validation": where.dealt("validation", seed)},
        start=(where.start,),
        seed=seed,
        in_flight=IN_FLIGHT,
    )
    operators = portfolio(settings, where.space)
    watch = Incumbent(where.space.free, dict.fromkeys(item.example for item in train))
    evaluated, spent, rows = 0, 0, dict[str, int]()
    curve: list[tuple[int, float]] = []
    while not optimizer.done:
        asked = []
        while (proposal := optimizer.ask()) is not None:
            asked.append(proposal)
        for trial in (carry_out(where, operators, proposal) for proposal in asked):
            optimizer.tell(trial)
            spent += len(trial.evaluations)
            if trial.genome is None or trial.proposal.purpose == "validation":
                continue
            evaluated += len(trial.evaluations)
            rows[trial.genome.id] = where.row(trial.genome)
            watch.add(trial.genome, [(e.item.example, e.quality) for e in trial.evaluations if not e.item.twin])
            if watch.best is not None:
                curve.append((spent, float(where.truth[rows[watch.best]])))
    front = optimizer.front()
    (found,) = [one for one in front if one.recommended]
    chosen = where.row(found.genome)
    told = found.honest.get("quality")
    return Outcome(
        curve=(*changes(curve), (spent, float(where.truth[chosen]))),
        chosen=chosen,
        gap=None if told is None else 100 * (told.value - float(where.test[chosen])),
        saved=saved(evaluated, watch.tried, len(train)),
        front=tuple(where.row(one.genome) for one in front),
        tried=watch.tried,
    )


def changes(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The curve without points that change nothing."""
    return [one for n, one in enumerate(curve) if not n or one[1] != curve[n - 1][1]]


def carry_out(where: Landscape, operators: Mapping[str, Any], proposal: Proposal) -> Trial:
    """The trial of a proposal, looked up."""
    try:
        genome, notes = _made(where, operators, proposal)
    except OperatorFailed as error:
        return Trial(proposal=proposal, error=str(error))
    row = where.row(genome)
    evaluations = tuple(where.evaluate(row, item) for item in proposal.items)
    return Trial(proposal=proposal, genome=genome, evaluations=evaluations, notes=dict(notes))


def _made(where: Landscape, operators: Mapping[str, Any], proposal: Proposal) -> tuple[Genome, Mapping[str, Any]]:
    if proposal.operator == EVALUATE:
        return proposal.parents[0], {}
    if "genome" in proposal.hints:
        return where.space.fix(proposal.hints["genome"]), {}
    rng = np.random.default_rng(proposal.seed)
    steps = operators[proposal.operator].vary(where.space, proposal.parents, proposal.hints, nobody, rng)
    try:
        steps.send(None)
    except StopIteration as end:
        return where.space.fix(end.value.genome.genes), end.value.notes
    raise RuntimeError(f"operator {proposal.operator!r} waits for something that a landscape does not have")


Found = Mapping[str, Sequence[Outcome]]
"""Strategy -> an outcome a seed."""


def compare(
    where: Landscape,
    settings: Search,
    objectives: Sequence[Objective],
    strategies: Sequence[str],
    seeds: int,
    calls: int,
) -> Found:
    """Every strategy with seeds 1 to `seeds`."""
    return {
        name: [
            search(where, settings.model_copy(update={"selection": SELECTIONS[name]}), objectives, seed, calls)
            for seed in range(1, seeds + 1)
        ]
        for name in strategies
    }


def show(where: Landscape, found: Found, objectives: Sequence[Objective], calls: int) -> None:
    """The tables of one landscape."""
    seeds, start = len(next(iter(found.values()))), float(where.truth[where.row(where.start)])
    best = float(where.truth.max())
    print(
        f"\n{where.task}: {len(where.configs)} of {where.size} configurations recorded, true quality "
        f"{where.truth.min():.3f} to {best:.3f}, median {np.median(where.truth):.3f}, start {start:.3f}; "
        f"{seeds} seeds, {calls} calls"
    )
    print(f"  validation less test, of the better half of the configurations: {100 * apart(where):+.1f} points")
    points = [point for point in POINTS if point < calls]
    heads = [*(f"{point:>6}" for point in points), f"{'end':>15}", *("regret", "   gap", " saved", "volume", " tried")]
    print(f"  {'strategy':<13}" + " ".join(heads))
    volumes = front_volumes(where, found, objectives)
    for name, outcomes in found.items():
        print(f"  {name:<13}" + " ".join(_row(outcomes, points, start, best, volumes[name])))
    if same := alike(found):
        print(f"  the same search as another, seed by seed: {', '.join(same)}")
    _differences(found, points, start)


def apart(where: Landscape) -> float:
    """By how much validation is easier than test, whoever is chosen: a part of every gap."""
    half = np.argsort(-where.truth)[: max(1, len(where.truth) // 2)]
    return float(np.mean(where.validation[half] - where.test[half]))


def _row(outcomes: Sequence[Outcome], points: Sequence[int], start: float, best: float, volume: float) -> list[str]:
    ends = np.array([one.quality for one in outcomes])
    looked = [float(np.mean([at(one.curve, point, start) for one in outcomes])) for point in points]
    gaps = [one.gap for one in outcomes if one.gap is not None]
    shares = [one.saved for one in outcomes if one.saved is not None]
    return [
        *(f"{value:6.3f}" for value in looked),
        f"{ends.mean():6.3f} ({np.median(ends):.3f})".rjust(15),
        f"{best - ends.mean():6.3f}",
        f"{np.mean(gaps):+6.1f}" if gaps else "     -",
        f"{100 * np.mean(shares):5.0f}%" if shares else "     -",
        f"{volume:6.3f}",
        f"{np.mean([one.tried for one in outcomes]):6.1f}",
    ]


def front_volumes(where: Landscape, found: Found, objectives: Sequence[Objective]) -> dict[str, float]:
    """Mean hypervolume of the fronts by what is true of their members, as a share of the whole grid's."""
    table = where.values(objectives)
    fronts: dict[str, Floats] = {"": table}
    for name, outcomes in found.items():
        fronts.update({f"{name} {n}": table[list(one.front)] for n, one in enumerate(outcomes)})
    signs, ideal = (
        np.array([getattr(one, part) if part == "sign" else one.ideal() for one in objectives])
        for part in ("sign", "ideal")
    )
    volumes = hypervolumes(fronts, signs, ideal)
    return {
        name: float(np.mean([volumes[f"{name} {n}"] for n in range(len(outcomes))])) / (volumes[""] or 1.0)
        for name, outcomes in found.items()
    }


def _differences(found: Found, points: Sequence[int], start: float) -> None:
    """Strategies in pairs, seed by seed, in points of true quality; and the calls to generational's end."""
    same = alike(found)
    names = [name for name in found if name not in same]
    for n, name in enumerate(names):
        for other in names[n + 1 :]:
            cells = []
            for point in (*points, math.inf):
                values = [np.array([at(one.curve, point, start) for one in found[who]]) for who in (other, name)]
                cells.append("{:+5.1f} [{:+5.1f} {:+5.1f}]".format(*paired(100 * (values[0] - values[1]), _rng())))
            print(f"  {other + ' - ' + name:<24}" + "  ".join(cells))
    for name in names:
        if name != "generational" and "generational" in names:
            ours, theirs = ([one.curve for one in found[who]] for who in (name, "generational"))
            ends = calls_ratio(ours, theirs, start, _rng())
            print("  calls to generational's end, {}: {} [{} {}]".format(name, *map(_times, ends)))


def _times(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}x"


def _rng() -> np.random.Generator:
    return np.random.default_rng(1)


def figures(found: Mapping[str, tuple[Landscape, Found]]) -> dict[str, object]:
    """The watched line, by task; `test` is the mean true quality at the end, the gap of a task its mean over seeds."""
    test: dict[str, dict[str, float | None]] = {}
    ratios, gaps, shares = [], [], []
    for task, (where, row) in found.items():
        test[task] = {name: float(np.mean([one.quality for one in ones])) for name, ones in row.items()}
        start = float(where.truth[where.row(where.start)])
        curves = [[one.curve for one in row.get(name, ())] for name in ("evolve", "generational")]
        ratios.append(calls_ratio(curves[0], curves[1], start, _rng(), 1)[0])
        gaps.append(mean(one.gap for one in row.get("evolve", ())))
        shares += [one.saved for one in row.get("evolve", ())]
    return line(test, ratios, gaps, shares)
