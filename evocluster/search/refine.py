"""Refinement: one current configuration, its rubric improved by reflection, a round of candidates after the other.

    seeds       the given genomes on all of train; the best of them is the current one
    a round     `candidates` proposals of `reflect`, all from the current one and its failures, which differ by their
                seed; evaluated part by part until they are through or surely behind; after 1, 2, 4... parts the
                worse half and whoever is worse than the current one goes (successive halving, Jamieson and
                Talwalkar 2016)
    its end     the best on the held parts takes the current one's place, if that is allowed

Constraints come before quality: who breaks them by less goes first and takes the current one's place, who breaks them
by more never does, and quality decides where both break them alike (constrained domination, Deb et al. 2002).

The blocks of train are shown and held by turns: cases of shown ones are told to the model, held ones only described.
A candidate that wins on the held part and breaks as many shown cases as it repairs, or more, is rejected, and the next
round is told the very cases to preserve. Validation stays untouched: the check after the search uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evocluster.errors import ConfigError
from evocluster.records import Proposal, Trial
from evocluster.search.cases import RIGHT
from evocluster.search.ground import Block, Ground
from evocluster.search.hints import collect
from evocluster.search.memory import paired
from evocluster.search.operators import EVALUATE
from evocluster.search.population import Individual
from evocluster.search.rounds import (
    EXACT,
    Candidate,
    Round,
    accepts,
    behind,
    breach,
    covered,
    excess,
    ids,
    parts,
    quality,
    values,
)

BARREN = 6
"""Rounds in a row of which no new genome came, before there is nothing left to try."""
VAIN = 6
"""Rounds in a row without a successor after which refinement stands still."""
OPERATOR = "reflect"


class Refine:
    """A strategy of `ground.Strategy`."""

    def __init__(self, ground: Ground, current: Individual | None = None) -> None:
        """`current`: what is refined; None: the best start, once the seeds are evaluated. Raises: ConfigError."""
        able(ground)
        self._ground = ground
        self._parts = parts(ground.blocks)
        self._at = [np.array([ground.index[example] for example in ids([part])]) for part in self._parts]
        self._every, self._held = np.concatenate(self._at), np.concatenate(self._at[1::2])
        self._begins = np.cumsum([0, *(len(at) for at in self._at[:-1])])
        """Where each part begins in `_every`."""
        self._shown = ids(self._parts[::2])
        ground.focus.held = frozenset(ids(self._parts[1::2]))
        self._current, self._best = current, current
        self._out: dict[int, Proposal] = {}
        self._round: Round | None = None
        self._rounds = 0
        self._accepted = 0
        self._barren = 0
        self._vain = 0
        """Rounds in a row that gave the current one no successor, though the model could be asked."""
        if current is None:
            _given_only(ground)

    def barrier(self, number: int) -> int:
        """None: a round waits by itself."""
        return 0

    def finish(self) -> None:
        """Nothing is left: whoever was evaluated was offered to the population."""

    @property
    def stands(self) -> bool:
        """No round is under way, and the last `VAIN` brought nothing better: whoever can do something else may."""
        return self._round is None and self._vain >= VAIN

    def told(self) -> dict[str, Any]:
        """For progress: rounds begun, and how many gave the current prompt a successor."""
        return {"refine": {"rounds": self._rounds, "accepted": self._accepted}}

    def draft(self, number: int, rng: np.random.Generator) -> Proposal | None:
        """A seed, more of the current one, a candidate, or more of a candidate."""
        ground, current = self._ground, self._current
        if ground.seeds:
            return ground.seeds[0]
        if current is None:
            return None
        if not covered(current, self._every):
            return self._more(number, current, range(len(self._parts)), rng)
        if self._round is None:
            perfect = quality(current, self._every) >= 1 - EXACT and not current.violation
            done = ground.stopping.worn or self._barren >= BARREN or perfect
            return None if done else self._candidate(number, current, rng)
        if len(self._round.candidates) < ground.settings.candidates:
            return self._candidate(number, current, rng)
        return self._next_part(number, self._round, current, rng)

    def handed(self, proposal: Proposal) -> None:
        """A draft goes out."""
        if proposal.purpose == "seed":
            self._ground.seeds.popleft()
        if proposal.purpose == "search":
            if self._round is None:
                self._round = Round(self._rounds, proposal.hints, self._order(self._rounds))
                self._rounds += 1
            self._round.candidates.append(Candidate(proposal.number))
        self._out[proposal.number] = proposal

    def count(self, proposal: Proposal, trial: Trial) -> None:
        """Take a trial into the population, the round and the accounts."""
        ground = self._ground
        del self._out[proposal.number]
        known = trial.genome is not None and self._find(trial.genome.id) is not None
        one = self._learned(proposal, trial)
        if proposal.purpose == "search":
            ground.children += 1
            self._arrived(proposal, trial, one, known)
        for candidate in self._round.candidates if self._round else ():
            if proposal.number == candidate.number or (proposal.purpose == "extend" and one is candidate.one):
                candidate.calls += trial.total.calls
        seeded = proposal.purpose == "seed" and not ground.seeds and not self._out
        if seeded:
            ground.population.refer()
            self._current = max(ground.population.members, key=_surest, default=None)
        if not self._rounds:
            self._settle_first()
        self._judge()
        if seeded or (proposal.purpose == "search" and ground.children % ground.settings.population == 0):
            ground.stopping.hypervolume.append(ground.population.hypervolume())

    # What is tried.

    def _candidate(self, number: int, current: Individual, rng: np.random.Generator) -> Proposal:
        """One more of this round; the first one draws the cases for all of them."""
        ground, now = self._ground, self._round
        hints = now.hints if now else collect(ground, ground.operators[OPERATOR], (current,), rng)
        first = (now.order if now else self._order(self._rounds))[0]
        return ground.propose(number, "search", OPERATOR, (current,), self._parts[first], rng, hints)

    def _next_part(self, number: int, now: Round, current: Individual, rng: np.random.Generator) -> Proposal | None:
        """More of the most promising candidate below the rung; each has one part out at most."""
        waiting = [one for one in now.among("running") if not self._asked(one) and self._reached(one) < now.rung]
        best = max(waiting, key=lambda one: _promise(one, current), default=None)
        return self._more(number, best, now.order, rng) if best is not None else None

    def _more(self, number: int, one: Individual, order: Sequence[int], rng: np.random.Generator) -> Proposal | None:
        """The first part that is neither known nor asked for."""
        asked = self._asked(one)
        lacking = (part for part in order if not covered(one, self._at[part]) and self._parts[part] not in asked)
        items = next((self._parts[part] for part in lacking), None)
        return self._ground.propose(number, "extend", EVALUATE, (one,), items, rng) if items is not None else None

    def _order(self, turn: int) -> Sequence[int]:
        """The parts, beginning with another held one every round: nobody goes on for what it was shown, nor for one
        block alone.
        """
        every = len(self._parts)
        first = 2 * (turn % len(self._parts[1::2])) + 1
        return [(first + step) % every for step in range(every)]

    def _asked(self, one: Individual) -> list[Block]:
        """The parts of it that are out."""
        out = self._out.values()
        return [it.items for it in out if it.purpose == "extend" and it.parents[0].id == one.genome.id]

    # What came of it.

    def _find(self, id: str) -> Individual | None:
        """A member, a start, or one that refinement holds although the population let it go."""
        mine = [self._current, self._best, *(it.one for it in (self._round.candidates if self._round else ()))]
        return self._ground.known(id) or next((one for one in mine if one is not None and one.genome.id == id), None)

    def _learned(self, proposal: Proposal, trial: Trial) -> Individual | None:
        """The individual that a trial is of, the trial counted; None where nothing came of it."""
        ground = self._ground
        if trial.genome is None or trial.error is not None or not trial.evaluations:
            ground.stopping.missed(trial.error)
            if ground.gone(proposal):
                self._let_go(proposal.parents[0].id)
            return None
        ground.stopping.made()
        one = self._find(trial.genome.id)
        if one is None:
            if proposal.purpose == "extend":
                return None
            one = ground.born(proposal, trial, trial.genome)
        if proposal.items in ground.blocks:
            one.blocks.add(ground.block_of(proposal))
        ground.learn(one, trial)
        if covered(one, self._every):
            # Halves of a single block, too.
            one.blocks.update(range(len(ground.blocks)))
        if ground.population.get(one.genome.id) is not None:
            ground.population.changed()
        else:
            ground.population.insert(one)
        return one

    def _let_go(self, id: str) -> None:
        """Go on without a genome that is barred: as a candidate it failed, as the current one the next best follows."""
        for candidate in self._round.candidates if self._round else ():
            if candidate.one is not None and candidate.one.genome.id == id:
                candidate.state = "failed"
        if self._best is not None and self._best.genome.id == id:
            self._best = None
        if self._current is not None and self._current.genome.id == id:
            members = self._ground.population.members
            self._current, self._round = best_of(members) if members else None, None

    def _arrived(self, proposal: Proposal, trial: Trial, one: Individual | None, known: bool) -> None:
        """The genome of a candidate is there, or is not."""
        now = self._round
        if now is None:
            return
        candidate = next(it for it in now.candidates if it.number == proposal.number)
        if one is None:
            candidate.state = "failed"
            error = str(trial.error)
            if error.startswith("model"):
                now.transient = True
            else:
                self._ground.memory.note("(no prompt came of a proposal)", "", _why(error), now.number)
            return
        self._ground.stopping.repeated(known)
        candidate.one, candidate.state = one, "known" if known else "running"

    def _settle_first(self) -> None:
        """What is refined first: once all of train is known of it, the best of those of whom all is known."""
        if self._current is None or not covered(self._current, self._every):
            return
        whole = [one for one in self._ground.population.members if covered(one, self._every)]
        self._current = max(
            [self._current, *whole], key=lambda one: (-breach(one.violation), quality(one, self._every))
        )
        self._best = None
        self._keep(self._current)

    def _judge(self) -> None:
        """Who of the round is through, who is behind; when nobody runs any more, the round ends."""
        now, current = self._round, self._current
        if now is None or current is None:
            return
        for candidate in now.candidates:
            if candidate.state == "running" and candidate.one is not None and covered(candidate.one, self._every):
                candidate.state = "through"
        leader, _ = self._winner(now.among("through"), current)
        for candidate in now.candidates:
            one = candidate.one if candidate.state == "running" else None
            if one is not None and self._lost(one, current, leader):
                candidate.state = "behind"
        self._halve(now, current)
        all_asked = len(now.candidates) == self._ground.settings.candidates
        if all_asked and not any(candidate.state in ("made", "running") for candidate in now.candidates):
            self._settle(now, current)

    def _halve(self, now: Round, current: Individual) -> None:
        """On a rung that all who run have reached, the worse half of them goes, and who is worse than the current: who
        breaks the limits by more, and with equal breaches who has lost quality.
        """
        running = [it for it in now.candidates if it.state in ("made", "running")]
        while (
            len(now.candidates) == self._ground.settings.candidates
            and now.rung < len(self._parts)
            and all(it.one is not None and self._reached(it.one) >= now.rung for it in running)
        ):
            promises = {it.number: _promise(it.one, current) for it in running if it.one is not None}
            running.sort(key=lambda it: (promises[it.number], it.number))
            half = len(running) // 2
            for place, candidate in enumerate(running):
                if place < half or (candidate.one is not None and _worse(candidate.one, current)):
                    candidate.state = "behind"
            running = [it for it in running if it.state == "running"]
            now.rung *= 2

    def _reached(self, one: Individual) -> int:
        """How many parts are known of it."""
        known = ~np.isnan(values(one, self._every))
        return int(np.logical_and.reduceat(known, self._begins).sum())

    def _lost(self, one: Individual, current: Individual, leader: Individual | None) -> bool:
        """It could not win even if all that is still to come were right, or it is surely behind; never by quality to
        somebody who breaks the limits by more.
        """
        known = values(one, self._held)
        most = float(np.where(np.isnan(known), 1.0, known).mean())
        # A candidate is looked at after every part, so the error is shared by the parts.
        alpha = self._ground.settings.alpha / len(self._parts)
        if excess(one, current) >= 0:
            hopeless = not accepts(quality(current, self._held), most)
            if hopeless or behind(one, current, alpha):
                return True
        if leader is None or excess(one, leader) < 0:
            return False
        return most < quality(leader, self._held) - EXACT or behind(one, leader, alpha)

    def _settle(self, now: Round, current: Individual) -> None:
        """Accept the best candidate that may be accepted, and tell what came of all of them."""
        ground = self._ground
        winner, broken = self._winner(now.among("through"), current)
        for candidate in now.candidates:
            kept = candidate.one is not None and candidate.one is winner and candidate.state != "known"
            ground.credit.count(OPERATOR, kept, candidate.calls)
            if candidate.one is not None and candidate.state != "known":
                ground.memory.tell(candidate.one, current, kept, now.number)
        self._vain = 0 if winner is not None else self._vain + (not now.transient)
        self._barren = 0 if now.transient or now.among("through", "behind") else self._barren + 1
        if winner is None:
            ground.focus.tire(now.hints["cases"], broken or self._harm(now.among("behind"), current))
        else:
            ground.focus.refresh(self._broken(winner, current)[0])
            self._current = winner
            self._accepted += 1
            self._keep(winner)
        self._round = None

    def _winner(
        self, through: Sequence[Individual], current: Individual
    ) -> tuple[Individual | None, Sequence[Mapping[str, Any]]]:
        """Who takes the current one's place, and the cases that a better one was rejected for."""
        now = quality(current, self._held)
        broken: Sequence[Mapping[str, Any]] = ()
        # Best by >=: of those that are as good, the later one.
        limit, breaches = breach(current.violation), [breach(one.violation) for one in through]
        order = sorted(
            range(len(through)), key=lambda at: (-breaches[at], quality(through[at], self._held), at), reverse=True
        )
        for one, broke in ((through[at], breaches[at]) for at in order):
            if broke < limit:
                return one, broken
            if broke > limit or not accepts(now, quality(one, self._held)):
                break
            lost, repaired = self._broken(one, current)
            if not lost or len(lost) < repaired:
                return one, broken
            broken = broken or lost
        return None, broken

    def _harm(self, sent: Sequence[Individual], current: Individual) -> Sequence[Mapping[str, Any]]:
        """What the best of those who were sent away early broke, if it was winning on the held parts."""
        now = values(current, self._held)
        gains = [float(np.nansum(values(one, self._held) - now)) for one in sent]
        best = max(range(len(sent)), key=lambda at: (gains[at], at), default=None)
        if best is None or gains[best] <= EXACT:
            return ()
        lost, repaired = self._broken(sent[best], current)
        return lost if len(lost) >= repaired else ()

    def _broken(self, one: Individual, current: Individual) -> tuple[list[dict[str, Any]], int]:
        """The shown cases that were right and no longer are, and how many it repaired."""
        at = np.concatenate(self._at[::2])
        was, now = values(current, at), values(one, at)
        lost = [self._shown[int(place)] for place in np.flatnonzero((was >= RIGHT) & (now < RIGHT))]
        told = []
        for example in lost:
            case = one.cases.get(example)
            told.append({"example": example, "twin": 0, "output": case.output if case is not None else ""})
        return told, int(((now >= RIGHT) & (was < RIGHT)).sum())

    def _keep(self, one: Individual) -> None:
        """Remember the best there was, whatever lateral moves lead to."""

        def value(it: Individual) -> tuple[float, float, float]:
            return -breach(it.violation), quality(it, self._held), quality(it, self._every)

        if self._best is None or value(one) > value(self._best):
            self._best = one
            self._ground.population.pin(one)


def _why(error: str) -> str:
    """Why an operator failed, without what it quotes: that may be a case's text."""
    return re.split(r"['\"(]", error.rpartition(f"{OPERATOR}: ")[2])[0].strip()


def able(ground: Ground) -> None:
    """Raises: ConfigError where there is nothing that reflection could refine."""
    name, space = ground.settings.strategy, ground.space
    if OPERATOR in ground.operators:
        return
    if not space.rewritable:
        raise ConfigError(
            f"search.strategy: {name!r} rewrites the gene `rubric`, and the space keeps it at "
            f"{list(space.settings.values('rubric'))!r}; write it as a list of texts without `fixed: true` "
            "(space.rubric: [...]), or choose strategy 'evolve'"
        )
    if ground.settings.operators is not None and OPERATOR not in ground.settings.operators:
        raise ConfigError(
            f"search.operators: got {list(ground.settings.operators)!r}; strategy {name!r} needs {OPERATOR!r}; add it, "
            "or leave `operators` out"
        )
    raise ConfigError(f"search.strategy: {name!r} needs a model that reflects; set search.reflector")


def _given_only(ground: Ground) -> None:
    """Of the seeds keep the genomes that were given: refinement begins with what there is."""
    given = [proposal for proposal in ground.seeds if proposal.operator == EVALUATE]
    ground.seeds.clear()
    ground.seeds.extend(proposal.model_copy(update={"number": number}) for number, proposal in enumerate(given))


def best_of(members: Iterable[Individual]) -> Individual:
    """The member that breaks the constraints by least, then with the surest quality, then the surest composite."""
    return max(members, key=_surest)


def _surest(one: Individual) -> tuple[float, tuple[float, float]]:
    return -breach(one.violation), one.careful


def _promise(one: Individual, current: Individual) -> tuple[float, float]:
    """How little a candidate breaks the limits, then what it gains over the current one."""
    return -breach(one.violation), float(paired(one, current)[0].sum())


def _worse(one: Individual, current: Individual) -> bool:
    """It breaks the limits by more than the current one, or by as much and has lost quality."""
    more = excess(one, current)
    return more > 0 or (not more and float(paired(one, current)[0].sum()) < -EXACT)
