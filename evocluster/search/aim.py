"""How near a member comes to what `recommend:` asks for, where that is not just the best quality or composite.

Two pairs, compared place by place: by how much the rule's bounds are missed (less is better), then the value of what is
to be best. `aim` is careful, a deviation less; `reach` is hopeful, a deviation more; so aim <= reach. Who cannot reach
the best aim of others will hardly be recommended (as in Hoeffding races, Maron and Moore 1994).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evocluster.search.beliefs import Belief
from evocluster.search.objectives import Objective
from evocluster.search.population import Individual
from evocluster.search.recommend import Rule


class Aim:
    """What a rule asks for."""

    def __init__(self, rule: Rule, named: Sequence[Objective]) -> None:
        """`named`: all that the rule may speak of."""
        self._rule = rule
        self._named = {one.name: one for one in named}

    @classmethod
    def of(cls, rule: Rule, named: Sequence[Objective]) -> Aim | None:
        """None where the rule asks for the best quality or composite alone, or for the knee."""
        return cls(rule, named) if rule.bounds or rule.best not in ("quality", "composite", "") else None

    def objective(self) -> Objective | None:
        """What is to be best; None for the knee."""
        return self._named.get(self._rule.best)

    def take(self, one: Individual, believed: Mapping[str, Belief]) -> None:
        """Renew how near it comes: by what is believed, under the objective's name, and else by what was measured."""
        one.aim, one.reach = self._near(one, believed, -1.0), self._near(one, believed, 1.0)

    def _near(self, one: Individual, believed: Mapping[str, Belief], hope: float) -> tuple[float, float]:
        missed = 0.0
        for bound in self._rule.bounds:
            belief = self._belief(one, bound.name, believed)
            better = 1.0 if bound.operator.startswith(">") else -1.0
            missed += bound.missed_by({bound.name: belief.mean + better * hope * belief.deviation})
        if (best := self.objective()) is None:
            return -missed, 0.0
        belief = self._belief(one, best.name, believed)
        return -missed, -best.sign * belief.mean + hope * belief.deviation

    def _belief(self, one: Individual, name: str, believed: Mapping[str, Belief]) -> Belief:
        if name in believed:
            return believed[name]
        objective, tally = self._named[name], one.tally("train")
        return Belief(tally.value(objective), tally.noise(objective))
