"""What nobody carries out any more, because it ends the processes that do: it is neither asked for nor made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from breed_world import breeding
from search_world import drive, search

from evocluster.cluster.suspects import Suspects
from evocluster.records import Genome, Proposal, Trial
from evocluster.search.budget import Budget
from evocluster.search.operators import EVALUATE
from evocluster.search.optimizer import Optimizer
from evocluster.search.settings import Search

LOOKAHEAD = 4
STRATEGIES: dict[str, dict[str, Any]] = {
    "race": {},
    "steady": {"selection": "steady"},
    "plain": {"selection": "generational"},
    "refine": {"strategy": "refine"},
    "hybrid": {"strategy": "hybrid"},
    "breed": {"strategy": "breed"},
}


def given(proposal: Proposal) -> str | None:
    """The id of the genome that a proposal is about, where it is known before it is made."""
    if proposal.operator == EVALUATE:
        return proposal.parents[0].id
    return Genome(genes=proposal.hints["genome"]).id if "genome" in proposal.hints else None


def refusing(run: Callable[[Proposal], Trial], poisonous: Callable[[Proposal, set[str]], bool]) -> Any:
    """Carries out what does not end it; `seen`: what was refused, by the number from which on nobody may ask."""
    seen: dict[str, int] = {}

    def carry_out(proposal: Proposal) -> Trial:
        id = given(proposal)
        if id is not None and (id in seen or poisonous(proposal, set(seen))):
            seen.setdefault(id, proposal.number + LOOKAHEAD)
            return Trial(proposal=proposal, error=f"worker: genome {id} is quarantined: 3 worker processes died")
        return run(proposal)

    carry_out.seen = seen  # type: ignore[attr-defined]
    return carry_out


def ran(which: str, poisonous: Callable[[Proposal, set[str]], bool]) -> tuple[Optimizer, list[Trial], dict[str, int]]:
    changes = {"population": 6, "block": 8, "finalists": 3, "lookahead": LOOKAHEAD, **STRATEGIES[which]}
    begin = breeding if which == "breed" else search
    optimizer, world = begin(Search(**changes), Budget(calls=1800), in_flight=2)
    carry_out = refusing(world.run, poisonous)
    return optimizer, drive(optimizer, carry_out, workers=3), carry_out.seen


def spoiled(trials: list[Trial], seen: dict[str, int]) -> list[tuple[int, str]]:
    """Proposals that asked for a refused genome, or made one, when that was known."""
    made = [trial.genome.id if trial.genome else "" for trial in trials]
    named = [(trial.proposal, given(trial.proposal) or id) for trial, id in zip(trials, made, strict=True)]
    # In the check, more is under way at once.
    return [
        (one.number, id)
        for one, id in named
        if id in seen and one.number > seen[id] + (20 if one.purpose in ("validation", "test") else 0)
    ]


@pytest.mark.parametrize("which", [name for name in STRATEGIES if name != "plain"])
def test_a_genome_refused_in_the_search_never_comes_back(which: str) -> None:
    def poisonous(proposal: Proposal, seen: set[str]) -> bool:
        return proposal.purpose == "extend" and proposal.number % 3 == 0 and len(seen) < 8

    optimizer, trials, seen = ran(which, poisonous)
    assert seen
    assert spoiled(trials, seen) == []
    assert optimizer.done
    assert not {one.genome.id for one in optimizer.front()} & set(seen)
    assert len(trials) > 40, "the search goes on without it"


@pytest.mark.parametrize("which", STRATEGIES)
def test_a_seed_or_a_child_that_was_refused_is_not_made_again(which: str) -> None:
    def poisonous(proposal: Proposal, seen: set[str]) -> bool:
        return proposal.purpose in ("seed", "search") and proposal.number % 5 == 3 and len(seen) < 8

    optimizer, trials, seen = ran(which, poisonous)
    assert seen
    assert spoiled(trials, seen) == []
    assert optimizer.done
    # Refinement has nothing but what it was given.
    lost = which == "refine" and "is quarantined" in str(optimizer.stop_reason)
    assert lost or optimizer.front()


@pytest.mark.parametrize("which", STRATEGIES)
def test_a_finalist_that_was_refused_is_asked_nothing_more(which: str) -> None:
    def poisonous(proposal: Proposal, seen: set[str]) -> bool:
        return proposal.purpose == "validation" and not seen

    optimizer, trials, seen = ran(which, poisonous)
    assert len(seen) == 1
    assert not [one for one in trials if one.proposal.purpose == "test" and given(one.proposal) in seen]
    assert sum(given(one.proposal) in seen and one.proposal.purpose == "validation" for one in trials) <= 4
    assert optimizer.front()


def test_the_words_that_quarantine_are_the_words_that_bar() -> None:
    one = Proposal(number=0, operator=EVALUATE, parents=(Genome(genes={"rubric": "x"}),))
    suspects = Suspects()
    while suspects.sentence(one) is None:
        suspects.died(one, 1.0, alone=True)
    assert Trial(proposal=one, error=suspects.sentence(one)).quarantined == one.parents[0].id
    assert Trial(proposal=one, error="model: genome 0123456789abcdef is quarantined: no").quarantined is None
    assert Trial(proposal=one).quarantined is None
