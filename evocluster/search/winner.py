"""Which candidate is recommended, and what it is honestly worth.

    Contest(candidates, ...).decide()   by the confidence bound of what the rule asks for; a bound of the rule is met
                                        only by who surely meets it; among those as good but for noise, the cheaper
    Contest(candidates, ...).honest()   the same choice made again without some examples, and measured on those
    Contest(candidates, ...).worth()    an interval around that, whichever way the luck of the choice went (`worth.py`)

The best of several noisy means is too good to be true (the winner's curse): of 20 equal candidates, by 9 points with
100 examples of 0/1 outcomes. A bound orders candidates with equally many examples as the mean does, so it does not
lift that; what does is to measure a choice where it was not made (cross-validation, Stone 1974). The value that comes
out is that of choosing by a little fewer examples: on the safe side, since choosing by all of them is no worse.

Where there are few examples they are left out in tenths or one by one, since a choice by four fifths of 40 is another
one than by 40. Train helps to choose in every fold, but nothing is measured there: the search has selected by it.

Constraints come before the rule. Who keeps them as measured is ahead of who does not; of those, who surely keeps them,
by the same bounds that a rule's are held to; where nobody surely does, who is nearest to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from evocluster.records import digest
from evocluster.search.evidence import Weighed, measured, trained, weigh
from evocluster.search.feasible import NONE, Limits
from evocluster.search.objectives import Floats, Interval, Objective, Tally, built_in
from evocluster.search.race import TAKEN
from evocluster.search.recommend import Bound, Rule, choose
from evocluster.search.worth import widened

NOISE = 0.2
"""Standard errors of the difference below which one candidate is as good as another: without any difference, paired
tests see a larger one five times in six. Taking the cheaper of these costs up to a quarter of a point of quality and
saves a tenth to a quarter of the price; of all that a test at 5 % does not tell apart, 1 to 4 points (simulated)."""
SAVING = 0.1
"""A share of the price that is worth taking another one for, among equals but for noise."""
MANY, FEW = 100, 20
"""From so many examples on five folds are enough; below FEW, each example is its own fold."""
Examples = NDArray[np.int64]
Places = NDArray[np.int64]
Held = tuple[Bound, Weighed]
"""A bound, and what is known of the objective that it is on."""
T = TypeVar("T")


class Candidate(NamedTuple):
    """Who can be recommended."""

    id: str
    decided: Tally
    """On the split that decides."""
    train: Tally | None = None
    """Where another split decides."""


class Contest:
    """Candidates before a rule. Their order changes nothing, nor who is nowhere better than another one."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rule: Rule,
        named: Sequence[Objective],
        objectives: Sequence[Objective],
        seed: int,
        limits: Limits = NONE,
    ) -> None:
        """`named`: all that the rule may speak of; `limits`: what has to hold before it is asked.

        Raises: ValueError when there are no candidates.
        """
        if not candidates:
            raise ValueError("there is no candidate to choose from; give at least one")
        self._rule, self._objectives, self._seed, self._limits = rule, tuple(objectives), seed, limits
        names = {*rule.names, "quality", *(one.name for one in objectives if not rule.best)}
        self._named = [one for one in named if one.name in names]
        told = [*objectives, *self._named, *limits.measures]
        self._candidates = _worthwhile(sorted(candidates, key=lambda one: one.id), told)
        trains = [one.train for one in self._candidates]
        whole = [one for one in trains if one is not None]
        use = len(whole) == len(trains)
        self._trained = [trained(whole, one) if use else None for one in (*self._named, *limits.measures)]

    def decide(self, examples: Examples | None = None) -> tuple[str, str]:
        """Id of the recommended candidate and why; `examples`: numbers of those to go by, all by default."""
        tallies = [one.decided for one in self._candidates]
        if examples is not None:
            tallies = [one.within(examples) for one in tallies]
        asked = (*self._named, *self._limits.measures)
        known = [weigh(measured(tallies, one, self._seed), by) for one, by in zip(asked, self._trained, strict=True)]
        found = {one.name: said for one, said in zip(self._named, known, strict=False)}
        # A limit from the other side than its objective's better one measures something else under the same name.
        held = list(zip(self._limits.bounds, known[len(self._named) :], strict=True))
        able, promised = _able(tallies, self._limits, held)
        at, why = pick(found, self._rule, self._named, self._objectives, _prices(tallies), able)
        if not promised:
            why = _nearest(held, at) + (f"; of {len(able)} as near, {why}" if len(able) > 1 else "")
        return self._candidates[at].id, why

    def honest(self, ids: Sequence[str]) -> tuple[Tally, int] | None:
        """What the rule's choice is worth where it was not made, and in how many folds; None for a single example.

        `ids`: of the examples, by their number.
        """
        numbers = np.unique(np.concatenate([one.decided.examples for one in self._candidates]))
        if len(numbers) < 2:
            return None
        fold = folds([ids[int(number)] for number in numbers])
        by_id = {one.id: one.decided for one in self._candidates}
        parts = [
            by_id[chosen].within(numbers[held])
            for held, chosen in crossfit(fold, lambda kept: self.decide(numbers[kept])[0])
        ]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.joined(part)
        return whole, len(parts)

    def worth(self, id: str, objective: Objective, left_out: Interval, own: Interval) -> Interval:
        """The interval of an honest value. `id`: of the recommended; `left_out`: of `honest`'s tally; `own`: of its
        own tally.
        """
        ids = [one.id for one in self._candidates]
        if id not in ids:
            return left_out
        found = measured([one.decided for one in self._candidates], objective, self._seed)
        return widened(left_out, own, found, ids.index(id), objective)


def folds(ids: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each example: by its name alone, so that neither their order nor its patterns matter."""
    count = len(ids)
    parts = 5 if count >= MANY else 10 if count >= FEW else count
    fold = np.zeros(count, dtype=np.int64)
    fold[sorted(range(count), key=lambda at: digest(ids[at]))] = np.arange(count) % parts
    return fold


def crossfit(fold: NDArray[np.int64], decide: Callable[[NDArray[np.bool_]], T]) -> list[tuple[NDArray[np.bool_], T]]:
    """For every fold: which examples are in it, and who is chosen by the others."""
    return [(fold == one, decide(fold != one)) for one in range(int(fold.max()) + 1)]


def pick(
    found: Mapping[str, Weighed],
    rule: Rule,
    named: Sequence[Objective],
    objectives: Sequence[Objective],
    prices: Floats,
    able: Places | None = None,
) -> tuple[int, str]:
    """The place of the recommended candidate and why.

    `found`: by the name of the objective; `prices` [g]; `able`: the places of those to choose from, all by default.
    """
    able = np.arange(len(prices)) if able is None else able
    if not rule.best:
        signs = {one.name: one.sign for one in objectives}
        careful = [
            {name: float((found[name].low if sign < 0 else found[name].high)[at]) for name, sign in signs.items()}
            for at in able
        ]
        at, why = choose(careful, rule, objectives)
        return int(able[at]), why
    known = {one.name: one for one in named}
    best = known.get(rule.best) or built_in(rule.best)
    said = found[rule.best]
    careful_best = best.sign * (said.low if best.sign < 0 else said.high)
    held = [(bound, found[bound.name]) for bound in rule.bounds]
    missed = np.array([_missed(held, at) for at in range(len(prices))])
    if missed[able].min() > 0:
        at = int(min(able, key=lambda one: (missed[one], careful_best[one], prices[one])))
        return at, _nearest(held, at)
    met = able[missed[able] == 0]
    leader = int(min(met, key=lambda one: (careful_best[one], prices[one])))
    at = _among_equals(found, best, met, leader, prices)
    value = said.measured.value
    why = f"{rule.text}: {rule.best} {value[at]:.4g}"
    if at != leader:
        why += f", as good but for noise as the best by its bound ({value[leader]:.4g}), and "
        why += "of higher quality" if best.source in TAKEN else "cheaper"
    return at, why


def _able(tallies: Sequence[Tally], limits: Limits, held: Sequence[Held]) -> tuple[Places, bool]:
    """The places of those that the limits leave to the rule; whether they surely keep them, if anybody keeps them."""
    broken = np.array([limits.violation(one) for one in tallies])
    able = np.flatnonzero(broken == broken.min())
    if not limits or broken.min() > 0:
        return able, True
    missed = np.array([limits.missed([_sure(bound, said, at) for bound, said in held]) for at in range(len(tallies))])
    sure = able[missed[able] == 0]
    if len(sure):
        return sure, True
    first = int(min(able, key=lambda one: missed[one]))
    near = np.ones(len(tallies), dtype=bool)
    for bound, said in held:
        missing = np.array([_missed([(bound, said)], at) for at in range(len(tallies))])
        # Who has measured no worse is as near, so that all without a fault are, whatever train says of them.
        value = said.measured.value if bound.operator.startswith(">") else -said.measured.value
        near &= value >= value[first] if missing[first] else missing == 0
    return able[near[able]], False


def _sure(bound: Bound, said: Weighed, at: int) -> float:
    """What surely holds of one, from the side that the bound is on."""
    return float((said.surely_low if bound.operator.startswith(">") else said.surely_high)[at])


def _missed(held: Sequence[Held], at: int) -> float:
    """How far one is from surely meeting the bounds."""
    return sum((bound.missed_by({bound.name: _sure(bound, said, at)}) for bound, said in held), 0.0)


def _nearest(held: Sequence[Held], at: int) -> str:
    parts = []
    for bound, said in held:
        sure = _sure(bound, said, at)
        if bound.missed_by({bound.name: sure}):
            less = "less" if bound.operator.startswith(">") else "more"
            parts.append(f"{bound} (it has {float(said.measured.value[at]):.4g}, surely no {less} than {sure:.4g})")
    return f"no member surely meets {', '.join(parts)}: this one is nearest to it"


def _among_equals(
    found: Mapping[str, Weighed], best: Objective, met: NDArray[np.int64], leader: int, prices: Floats
) -> int:
    """The cheapest of those as good as the leader but for noise; where the rule asks for little, the ablest."""
    said = found[best.name]
    apart = np.abs(said.estimate - said.estimate[leader])
    noise = NOISE * said.measured.between(leader) + 1e-12
    equal = [int(one) for one in met if apart[one] <= noise[one]]
    if best.source in TAKEN:
        return min(equal, key=lambda one: (-found["quality"].low[one], prices[one]))
    cheap = [one for one in equal if prices[one] <= (1 - SAVING) * prices[leader] or apart[one] <= 1e-12]
    return min(cheap, key=lambda one: (prices[one], one != leader))


def _prices(tallies: Sequence[Tally]) -> Floats:
    """What a query costs; where nobody's costs anything, the tokens it takes."""
    usd, tokens = (np.array([one.value(built_in(name)) for one in tallies]) for name in ("cost_usd", "tokens"))
    return usd if usd.any() else tokens


def _worthwhile(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Without those that are on every single example no better than another, and on some worse."""
    first = candidates[0].decided.examples
    if not all(np.array_equal(one.decided.examples, first) for one in candidates):
        return list(candidates)
    tables = [
        np.concatenate([one.sign * candidate.decided.sums(one)[0] for one in objectives]) for candidate in candidates
    ]
    counts = [np.concatenate([candidate.decided.sums(one)[1] for one in objectives]) for candidate in candidates]
    return [
        one
        for at, one in enumerate(candidates)
        if not any(
            np.array_equal(counts[at], counts[other])
            and (tables[other] <= tables[at]).all()
            and (tables[other] < tables[at]).any()
            for other in range(len(candidates))
        )
    ]
