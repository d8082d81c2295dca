"""Whose fault a worker's death is: suspicion by company, proof by being alone, and no sentence that chance explains.

A worker carries dozens of proposals, so its death accuses all of them, and where workers are killed for other reasons
(spot nodes, memory pressure from outside, chaos tests) innocents die by the dozen. So deaths are weighed: with rate
deaths a second, a proposal that was under way for t seconds meets one by chance with probability 1 - exp(-rate t),
and k of them with the product (exponential lifetimes). Who cannot be explained so is carried out alone, and only
deaths alone convict. Dask's allowed-failures is a plain count of deaths in company, which convicts innocents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from evocluster.records import Genome, Proposal, Trial

Verdict = Literal["free", "alone", "guilty"]

CROWD = 2
"""Deaths in company before a proposal is carried out alone."""
ALONE = 3
"""Deaths alone before a proposal is quarantined."""
ENOUGH = 6
"""Deaths alone that are no longer put down to chance: where a proposal dies of it this often, none would ever end."""
SUSPICIOUS = 1e-3
"""It is carried out alone when its deaths are less probable than this by chance."""
CERTAIN = 1e-6
"""It is quarantined when its deaths alone are less probable than this by chance."""
CALM = 1 / 43_200
"""Deaths a second of one worker that are always reckoned with: one in twelve hours."""


def subject(proposal: Proposal) -> str:
    """What is quarantined: the genome where it is known before it is made, else this one proposal."""
    if proposal.operator == "evaluate" and proposal.parents:
        return proposal.parents[0].id
    if "genome" in proposal.hints:
        return Genome(genes=proposal.hints["genome"]).id
    return f"proposal {proposal.number}"


@dataclass
class _Record:
    """Seconds a proposal was under way before each of its deaths."""

    subject: str
    crowd: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


class Suspects:
    """Deaths, weighed. Call order: `served` as workers come and go, `died` for each proposal of a dead worker,
    `acquit` for whatever was finished. Seconds are the caller's.
    """

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        self._quarantined: dict[str, str] = {}
        self._deaths = 0
        self._served_s = 0.0

    def served(self, seconds: float) -> None:
        """A worker lived for this long."""
        self._served_s += seconds

    def death(self) -> None:
        """One worker died, and not with its node."""
        self._deaths += 1

    def died(self, proposal: Proposal, seconds: float, alone: bool, living_s: float = 0.0) -> Verdict:
        """A worker died with this proposal under way for `seconds`; what is to become of the proposal.

        `living_s`: seconds that the workers alive now have served so far.
        """
        name = subject(proposal)
        if name in self._quarantined:
            return "guilty"
        record = self._records.setdefault(proposal.number, _Record(name))
        (record.alone if alone else record.crowd).append(seconds)
        served = max(1.0, self._served_s + living_s)
        # Where one genome ends worker after worker, in proposal after proposal, that must not pass for the usual.
        its = [one for one in self._records.values() if one.subject == name]
        alone_s = [each for one in its for each in one.alone]
        # What the others met tells how often one dies here; before the sentence its own deaths in company count too.
        elsewhere = self._deaths - len(alone_s)
        if len(alone_s) >= ALONE and (len(alone_s) >= ENOUGH or _chance(alone_s, elsewhere / served) < CERTAIN):
            self._quarantined[name] = _sentence(name, len(alone_s), sum(len(one.crowd) for one in its))
            self._records = {number: one for number, one in self._records.items() if one.subject != name}
            return "guilty"
        if record.alone:
            return "alone"
        others = elsewhere - len(record.crowd)
        suspicious = len(record.crowd) >= CROWD and _chance(record.crowd, others / served) < SUSPICIOUS
        return "alone" if suspicious else "free"

    def acquit(self, proposal: Proposal) -> None:
        """It was carried out and its worker lives."""
        self._records.pop(proposal.number, None)

    def sentence(self, proposal: Proposal) -> str | None:
        """Why this proposal is not carried out; None when nothing is held against it."""
        return self._quarantined.get(subject(proposal)) if self._quarantined else None

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Genome id, or 'proposal N' -> why."""
        return self._quarantined

    def recall(self, trial: Trial) -> None:
        """A trial of an earlier sitting: a genome that was quarantined then stays so."""
        if trial.quarantined:
            self._quarantined[trial.quarantined] = str(trial.error)


def _chance(seconds: list[float], rate: float) -> float:
    """Probability that every one of these stretches ended in a death by chance."""
    return math.prod(1 - math.exp(-max(rate, CALM) * max(one, 1e-3)) for one in seconds)


def _sentence(name: str, alone: int, crowd: int) -> str:
    who = name if name.startswith("proposal ") else f"genome {name}"
    return (
        f"worker: {who} is quarantined: {alone} worker processes died while they carried out nothing else, "
        f"{crowd} before that in company; look for what takes the memory or crashes the process: a native "
        "library, a function of the task"
    )
