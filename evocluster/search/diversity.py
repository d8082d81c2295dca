"""Who is there twice: members that nothing measured tells apart, so that a front does not fill with one of them.

What answers are worth (quality, robustness, scores) is compared example by example: alike is who got the same on every
example that both have. Cost and tokens are alike within one per cent, latency and the composite within their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocluster.search.objectives import Floats, Objective, Tally, built_in

Ints = NDArray[np.int64]
QUALITY = built_in("quality")
COUNTED = ("cost_usd", "tokens")
"""Sources that are alike within `SHARE`."""
SHARE = 0.01
TIMED = ("latency_ms", "composite")
"""Sources that are alike within the noise: `SURE` standard errors of the difference."""
SURE = 2.0
SPREAD = {"mean": 1.0, "p95": 2.1}
"""The standard error of an aggregate in that of the mean, of normal values."""
EQUAL = 1e-6
"""Outcomes of an example that differ by no more are equal."""
EXAMPLES = 8
"""So many examples two must have in common (or all there are) before they can be alike."""


def twins(values: Floats, slack: Floats, outcomes: Floats) -> Ints:
    """The first row that each row of a table cannot be told apart from; its own number where it is the first.

    `values` and `slack` [n, m]: two rows are alike where every difference of values is within their slack, put together
    as errors are; `outcomes` [n, objectives, examples], NaN where unknown: and where all that both know is equal.
    """
    found = np.arange(len(values))
    close = np.tril(_close(values, slack), -1)
    for at in np.flatnonzero(close.any(axis=1)).tolist():
        first = np.flatnonzero(close[at, :at] & (found[:at] == np.arange(at)))
        first = first[same(outcomes[first], outcomes[at])]
        if len(first):
            found[at] = first[0]
    return found


def _close(values: Floats, slack: Floats) -> NDArray[np.bool_]:
    """[n, n]: see `near`, each row with each."""
    close = np.ones((len(values), len(values)), dtype=bool)
    for own, mine in zip(values.T, slack.T, strict=True):
        with np.errstate(invalid="ignore"):
            apart = np.abs(own[:, None] - own)
        # As in `near`, what neither was measured at does not tell them apart.
        apart[np.isnan(apart)] = 0.0
        close &= apart <= np.hypot(mine[:, None], mine)
    return close


def same(outcomes: NDArray[Any], one: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the outcomes [n, objectives, examples] equal those of `one` on all that both have, enough of it."""
    if not len(outcomes):
        return np.zeros(0, dtype=bool)
    both = ~np.isnan(outcomes) & ~np.isnan(one)
    apart = both & (np.abs(outcomes - one) > EQUAL)
    enough = both.any(axis=1).sum(axis=1) >= min(EXAMPLES, outcomes.shape[2])
    return np.asarray(enough & ~apart.any(axis=(1, 2)))


def near(values: Floats, slack: Floats, one: Floats, own: Floats) -> NDArray[np.bool_]:
    """Which rows have values within the slack of those of `one`, whose own slack is `own`."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(values - one)
    # What neither was measured at does not tell them apart.
    apart = np.where(np.isnan(apart), 0.0, apart)
    return np.asarray((apart <= np.hypot(slack, own)).all(axis=1))


def slack(tally: Tally, objectives: Sequence[Objective]) -> Floats:
    """Within what each value of a member is not told apart from another's; infinite where outcomes are compared."""
    return np.array([_slack(tally, one) for one in objectives])


def _slack(tally: Tally, objective: Objective) -> float:
    if objective.source not in (*COUNTED, *TIMED):
        return np.inf
    value = tally.value(objective)
    if not np.isfinite(value):
        return 0.0
    if objective.source in COUNTED:
        return SHARE * abs(value) / 2**0.5
    return SURE * SPREAD[objective.aggregate] * tally.noise(objective)


def distinct(tallies: Sequence[Tally], objectives: Sequence[Objective], examples: int) -> list[int]:
    """The places of those that are not alike to an earlier one. `examples`: how many the split has."""
    if not tallies:
        return []
    compared = {one.source: one for one in (QUALITY, *objectives) if one.source not in (*COUNTED, *TIMED)}
    found = twins(
        np.array([[one.value(objective) for objective in objectives] for one in tallies]),
        np.array([slack(one, objectives) for one in tallies]),
        np.array([[one.outcomes(objective, examples) for objective in compared.values()] for one in tallies]),
    )
    return [at for at, first in enumerate(found.tolist()) if at == first]
