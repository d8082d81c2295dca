"""How a search came along over its LLM calls: best quality so far, hypervolume, and what each operator brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evocluster.report.aims import Aim, finite
from evocluster.report.board import Board, Bred
from evocluster.search import nsga2

POINTS = 96
"""Points of a curve at most; half as many are left when it is full."""
LARGEST = 120
"""Members of a front that count for a computed hypervolume."""
ENLARGED = 0.1
"""The reference point lies this share beyond the worst of the seeds, as in the search."""
OFFICIAL = 4
"""From so many values on, the hypervolume the run itself noted is drawn instead of a computed one."""


class Curves:
    """Call order: `add` after every trial the board took, then `facts`."""

    def __init__(
        self, board: Board, objectives: Sequence[Aim], run: Mapping[str, Any], generation: float | None
    ) -> None:
        """`run`: run.json; `generation`: children that make one (search.population), None when unknown."""
        self._board = board
        self._signs = np.array([aim.sign for aim in objectives])
        self._ideal = np.array([-1.0 if aim.direction == "max" else 0.0 for aim in objectives])
        self._columns = [board.ruler.aims.index(aim) for aim in objectives]
        names = [aim.name for aim in board.ruler.aims]
        self._quality = names.index("quality") if "quality" in names else None
        self._generation = int(generation) if generation else None
        self._table = np.full((0, len(objectives)), np.nan)
        self._dirty: set[str] = set()
        self._official = [finite(value) for value in run.get("hypervolume") or ()]
        # Which genomes keep the constraints of a run is not computed again.
        self._noted = len(self._official) >= OFFICIAL or bool(run.get("constraints"))
        self._step = self._next = max(1, int(run.get("calls") or 0) // POINTS)
        self._points: list[tuple[int, float | None, Any]] = []
        self._seeds: list[Any] = []
        self._marks: list[int] = []
        self._children = 0
        self._train = int((run.get("examples") or {}).get("train") or 0)
        self._first = self._at = 0

    def add(self, trial: Sequence[Mapping[str, Any]], one: Bred | None) -> None:
        """Note a trial; a point is taken where enough calls have gone by."""
        purpose = trial[0]["purpose"]
        if purpose in ("validation", "test"):
            return
        self._at = self._board.calls
        if one is not None:
            self._first = self._first or len(trial)
            self._dirty.add(one.id)
        if purpose == "search":
            self._refer()
            self._children += 1
            if self._generation and self._children % self._generation == 0:
                self._marks.append(self._board.calls)
        if self._board.calls >= self._next:
            self._take()

    def _refer(self) -> None:
        """The seeds are in: where the search began."""
        if not self._seeds:
            self._update()
            self._seeds = [np.array(self._table)]
            self._marks.append(self._board.calls)

    def _update(self) -> None:
        genomes = self._board.genomes
        if len(genomes) > len(self._table):
            more = np.full((max(64, len(genomes)), len(self._signs)), np.nan)
            self._table = np.concatenate([self._table, more])
        for id in self._dirty:
            one = genomes[id]
            values = one.tallies["train"].values()
            self._table[one.number] = self._signs * [values[at] for at in self._columns]
        self._dirty.clear()

    def _take(self) -> None:
        self._update()
        self._points.append((self._at, self._best(), self._front()))
        if len(self._points) >= POINTS:
            self._points = self._points[1::2]
            self._step *= 2
        self._next = self._at + self._step

    def _front(self) -> Any:
        """What a computed hypervolume needs; nothing where the run noted its own."""
        known = self._table[np.isfinite(self._table).all(axis=1)]
        if self._noted or not len(known):
            return known[:0]
        front = known[nsga2.front(known)]
        return front if len(front) <= LARGEST else front[nsga2.survive(front, LARGEST)]

    def _best(self) -> float | None:
        """The best mean quality on train of a genome with at least two first portions, or all there is."""
        if self._quality is None:
            return None
        wanted = min(2 * self._first, self._train)
        believed = [one.tallies["train"] for one in self._board.genomes.values() if "train" in one.tallies]
        values = [tally.values()[self._quality] for tally in believed if tally.items >= wanted]
        return finite(max(values, default=np.nan))

    def facts(self) -> dict[str, Any]:
        """`calls` with `quality` beside it, and `hypervolume` {calls, values, computed}."""
        if self._dirty:
            self._take()
        self._refer()
        return {
            "calls": [point[0] for point in self._points],
            "quality": [point[1] for point in self._points],
            "hypervolume": self._hypervolume(),
            "generations": self._marks,
        }

    def _hypervolume(self) -> dict[str, Any]:
        if self._noted:
            marks = self._marks[: len(self._official)]
            return {"calls": marks, "values": self._official[: len(marks)], "computed": False}
        finished = np.isfinite(self._seeds[0])
        worst = np.where(finished, self._seeds[0], -np.inf).max(axis=0, initial=-np.inf)
        ideal = np.minimum(self._ideal, np.where(finished, self._seeds[0], np.inf).min(axis=0, initial=np.inf))
        width = np.where(np.isfinite(worst), worst - ideal, 1.0)
        scale = np.where(width > 0, width, 1.0) * (1 + ENLARGED)
        ones = np.ones(len(self._ideal))
        found = [finite(nsga2.hypervolume((front - ideal) / scale, ones)) for _, _, front in self._points]
        return {"calls": [point[0] for point in self._points], "values": found, "computed": True}


def operators(board: Board, run: Mapping[str, Any], members: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each operator brought: one row an operator, the busiest first.

    `gain`: the child's quality on train minus its better parent's, over the examples both answered; `survived`: how
    many of its children stayed in the population when they came, where run.json says it.
    """
    made: dict[str, list[Bred]] = {}
    for one in board.genomes.values():
        made.setdefault(one.operator, []).append(one)
    for name in board.missed:
        made.setdefault(name, [])
    credit = run.get("operators") or {}
    rows = [_row(name, ones, board, credit.get(name), members) for name, ones in made.items()]
    return sorted(rows, key=lambda row: -row["children"])


def _row(
    name: str, ones: Sequence[Bred], board: Board, credit: Mapping[str, Any] | None, members: Mapping[str, Any]
) -> dict[str, Any]:
    gains = [gain for one in ones if (gain := _gain(one, board)) is not None]
    return {
        "name": name,
        "children": len(ones),
        "failed": board.missed.get(name, 0),
        "survived": None if credit is None else int(credit.get("successes", 0)),
        "extended": sum(one.extended for one in ones),
        "checked": sum("validation" in one.tallies for one in ones),
        "front": sum(one.id in members for one in ones),
        "gain": finite(float(np.mean(gains))) if gains else None,
        "best_gain": finite(max(gains)) if gains else None,
        "own_calls": sum(one.own_calls for one in ones),
        "own_usd": finite(sum(one.own_usd for one in ones)),
        "usd": finite(sum(one.usd + one.own_usd for one in ones)),
    }


def _gain(one: Bred, board: Board) -> float | None:
    mine = one.tallies["train"].by_example if "train" in one.tallies else {}
    differences = []
    for id in one.parents:
        parent = board.genomes.get(id)
        theirs = parent.tallies["train"].by_example if parent and "train" in parent.tallies else {}
        shared = [example for example in mine if example in theirs]
        if shared:
            differences.append(sum(mine[example] - theirs[example] for example in shared) / len(shared))
    return min(differences) if differences else None
