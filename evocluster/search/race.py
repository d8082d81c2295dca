"""The race: when is a child surely behind a rival on the examples both were tried on?

A rival is ahead for sure when, objective by objective, the child is not better than it. What answers are worth
(quality, robustness, scores, composite) is noisy and decides winners, so there it takes a paired one-sided test; what
they take (latency, cost, tokens) is compared by its value with a margin, because a saving of a few per cent is no
reason to go on (epsilon-dominance, Laumanns et al. 2002). All claims must hold at once, so each may use the whole
error of the look (intersection-union test, Berger 1982), and the error of a race is spread evenly over its looks
(Bonferroni): a child that is truly better in one of the outcomes is sent away with probability alpha at most.

Races of paired tests on growing blocks: Birattari et al. 2002 (F-Race); for prompts, CAPO (Zehle et al. 2025), which
spends its error anew at every look. The exact test of 0/1 outcomes: McNemar 1947.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from evocluster.search.objectives import Floats, Objective, Tally

TAKEN = ("latency_ms", "cost_usd", "tokens")
"""Sources that are compared by value, with the margin."""
MARGIN = 0.1
"""A saving below this share of the rival's value does not count as one."""


def spent(alpha: float, looks: int) -> float:
    """The error that one of so many looks may use."""
    return alpha / max(1, looks)


def behind(child: Tally, rival: Tally, objectives: Sequence[Objective], alpha: float, margin: float = MARGIN) -> bool:
    """The child is surely not better than the rival in any objective, by the examples that both have.

    `alpha`: the error of this look. False where they share no example.
    """
    mine, theirs = child.both(rival)
    if not mine.items or any(_cheaper(mine, theirs, one, margin) for one in objectives if one.source in TAKEN):
        return False
    outcomes = [one for one in objectives if one.source not in TAKEN]
    if not outcomes:
        return any(one.sign * (mine.value(one) - theirs.value(one)) > 0 for one in objectives)
    claims = [one.sign * gaps for one in outcomes for gaps in mine.differences(theirs, one)]
    return all(len(worse) and chance(worse) <= alpha for worse in claims)


def _cheaper(mine: Tally, theirs: Tally, objective: Objective, margin: float) -> bool:
    """The first takes less than the second by more than the margin; what was not measured is no saving."""
    one, other = mine.value(objective), theirs.value(objective)
    if not (np.isfinite(one) and np.isfinite(other)):
        return bool(np.isfinite(one))
    return bool(objective.sign * (other - one) > margin * abs(other))


def chance(worse: Floats) -> float:
    """The one-sided p-value of: these differences (positive: worse) come from a child that is no worse.

    Exact by the sign of the discordant pairs where all are -1, 0 or 1 (McNemar 1947); else Student's t, with a quarter
    of variance added as if one more pair had been seen, so that few equal pairs prove nothing.
    """
    if np.isin(worse, (-1.0, 0.0, 1.0)).all():
        against, ahead = int((worse > 0).sum()), int((worse < 0).sum())
        return _binomial(against, against + ahead)
    n = len(worse)
    error = np.sqrt((worse.var() * n + 0.25) / (n + 1) / n)
    return _student(float(worse.mean() / error), n - 1)


def _binomial(against: int, discordant: int) -> float:
    """The chance of so many of the discordant pairs or more by fair coins."""
    return float(sum(comb(discordant, k) for k in range(against, discordant + 1)) / 2**discordant)


def _student(t: float, degrees: int) -> float:
    """The upper tail of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(max(1, degrees), -t))
