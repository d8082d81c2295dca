"""Constraints in refinement, hybrid and breeding: whoever breaks them by less is ahead, whatever its quality."""

from __future__ import annotations

from typing import Any

import breed_world
import numpy as np
import pytest
import search_world
from breed_world import ABLE, BREED, GENES, breeding
from search_world import ONE, START, drive, hashed, search, space

from evocluster.llm.client import Reply, Request
from evocluster.records import Evaluation, Genome, Item, Proposal, Trial, Usage
from evocluster.search.breed_strategy import Breed
from evocluster.search.budget import Budget
from evocluster.search.feasible import LEAST, Limits
from evocluster.search.hybrid import Hybrid
from evocluster.search.objectives import Composite, Tally
from evocluster.search.optimizer import Optimizer
from evocluster.search.population import Individual
from evocluster.search.refine import Refine, best_of
from evocluster.search.rounds import breach, excess
from evocluster.search.settings import Search
from evocluster.search.space import Space

LONGEST = 8
"""Words of a prompt that keeps `TOKENS`."""
TOKENS = (f"tokens <= {20 * LONGEST}",)
LONG = "Sort this by what it is about and say nothing more than that."
"""A prompt that breaks it."""
SMALL: dict[str, Any] = {"population": 6, "block": 8, "finalists": 3, "lookahead": 5}


def words(genome: Genome) -> int:
    return len(genome["rubric"].split())


def measured(genome: Genome, item: Item) -> Evaluation:
    """Every word makes the prompt better and dearer."""
    right = 0.2 + 0.03 * words(genome)
    quality = float(hashed("hard", item.example) * 0.4 + 0.6 * hashed("luck", item.example, genome.id) < right)
    usage = Usage(calls=1, prompt_tokens=20 * words(genome), usd=1e-6, seconds=0.1)
    return Evaluation(item=item, quality=quality, validator=quality, usage=usage)


async def wordy(request: Request) -> Reply:
    """Proposes a prompt of 2 to 6 words every third time, else three words more."""
    text, seed = request.messages[-1].content, request.seed or 0
    old = text.split("<<<OLD\n")[1].split("\nOLD>>>")[0] if "<<<OLD" in text else "Sort it."
    new = f"Sort {'very ' * (seed % 5)}well{seed % 997}." if seed % 3 == 0 else f"{old} And also{seed % 997} so."
    return Reply(text=f"Change: x\n<<<NEW\n{new}\nNEW>>>", prompt_tokens=9, completion_tokens=9, usd=0, seconds=0.1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_world, "evaluate", measured)
    monkeypatch.setattr(search_world, "echo", wordy)


def limited(start: str, strategy: str = "refine", **given: Any) -> tuple[Optimizer, search_world.World]:
    where = space(rubric=[start], model="able", demo_style="chat", constrain=False, temperature=0)
    settings = Search(**SMALL, strategy=strategy, reflector="able")
    rest: dict[str, Any] = {"objectives": ONE, "constraints": TOKENS, "start": (where.complete({"rubric": start}),)}
    return search(settings, given.pop("budget", Budget(calls=1500)), where=where, **{**rest, **given})


def refining(optimizer: Optimizer) -> Refine | None:
    strategy = optimizer._strategy
    found = strategy._refine if isinstance(strategy, Hybrid) else strategy
    return found if isinstance(found, Refine) else None


def line(optimizer: Optimizer, world: search_world.World) -> tuple[list[Individual], list[Trial]]:
    """Who was the current one, one after the other, once all of train was known of it; and all trials."""
    seen: list[Individual] = []

    def run(proposal: Proposal) -> Trial:
        now = refining(optimizer)
        one = now._current if now is not None and now._rounds else None
        if one is not None and (not seen or seen[-1] is not one):
            seen.append(one)
        return world.run(proposal)

    return seen, drive(optimizer, run)


# Refinement.


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("start", ["Sort this.", LONG])
def test_what_breaks_limits_by_more_never_takes_the_place_of_the_current_one(start: str) -> None:
    optimizer, world_ = limited(start)
    current, trials = line(optimizer, world_)
    assert [one.violation for one in current] == sorted((one.violation for one in current), reverse=True)
    assert not current[-1].violation
    tried = [trial.genome for trial in trials if trial.genome is not None and trial.proposal.operator == "reflect"]
    assert sum(words(genome) > LONGEST for genome in tried) > 10, "there were better ones that break it"
    assert len(current) > 2
    refine = refining(optimizer)
    assert refine is not None
    assert refine._best is not None
    assert not refine._best.violation
    assert refine._best in optimizer._ground.population.members


@pytest.mark.usefixtures("world")
def test_from_a_prompt_that_breaks_limits_the_first_step_is_to_one_that_breaks_them_by_less() -> None:
    current, _ = line(*limited(LONG))
    first, second = current[:2]
    assert first.genome["rubric"] == LONG
    assert words(second.genome) <= LONGEST
    assert second.by_example.mean() < first.by_example.mean(), "whatever it loses of quality"


@pytest.mark.usefixtures("world")
def test_candidates_that_break_limits_do_not_get_all_of_train() -> None:
    _, trials = line(*limited("Sort this."))
    children = {trial.genome.id for trial in trials if trial.genome is not None and trial.proposal.purpose == "search"}
    spent: dict[bool, list[int]] = {False: [], True: []}
    for id in children:
        own = [trial for trial in trials if trial.genome is not None and trial.genome.id == id]
        searched = [len(one.evaluations) for one in own if one.proposal.purpose in ("search", "extend")]
        assert own[0].genome is not None
        spent[words(own[0].genome) > LONGEST].append(sum(searched))
    assert max(spent[True]) <= 12, "one of five blocks, and the twins in it, tells it"
    assert max(spent[False]) == 50


@pytest.mark.usefixtures("world")
def test_reflection_is_told_of_the_limits_that_are_broken_and_only_then() -> None:
    _, trials = line(*limited(LONG))
    told = [(one.proposal.parents[0], one.proposal.hints["broken"]) for one in trials if "broken" in one.proposal.hints]
    assert {words(genome) > LONGEST for genome, _ in told} == {False, True}
    for genome, said in told:
        assert said == (f"tokens <= 160 (it has {20 * words(genome)})" if words(genome) > LONGEST else "")


@pytest.mark.usefixtures("world")
def test_all_right_is_not_the_end_while_limits_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def perfect(genome: Genome, item: Item) -> Evaluation:
        return measured(genome, item).model_copy(update={"quality": 1.0, "validator": 1.0})

    monkeypatch.setattr(search_world, "evaluate", perfect)
    optimizer, world_ = limited(LONG)
    current, _ = line(optimizer, world_)
    assert current[0].genome["rubric"] == LONG
    refine = refining(optimizer)
    assert refine is not None
    assert refine._current is not None
    assert not refine._current.violation
    assert optimizer.stop_reason == "exhausted"


@pytest.mark.usefixtures("world")
def test_of_several_starts_the_one_that_keeps_the_limits_is_refined() -> None:
    where = space(rubric=[LONG, "Sort this."], model="able", demo_style="chat", constrain=False, temperature=0)
    starts = tuple(where.complete({"rubric": text}) for text in (LONG, "Sort this."))
    settings = Search(**SMALL, strategy="refine", reflector="able")
    current, _ = line(*search(settings, Budget(calls=900), where, objectives=ONE, constraints=TOKENS, start=starts))
    assert current[0].genome["rubric"] == "Sort this."


LIMITS = Limits(TOKENS, ONE)


def member(rubric: str, right: float, examples: range = range(4)) -> Individual:
    made = Individual(
        Genome(genes={"rubric": rubric}), lambda split: Tally(Composite(), index=dict(INDEX)), limits=LIMITS
    )
    items = [Item(split="train", example=f"e{number}") for number in examples]
    found = [measured(made.genome, item).model_copy(update={"quality": right}) for item in items]
    # Every example adds its number to what a prompt takes.
    dearer = [
        one.model_copy(update={"usage": Usage(calls=1, prompt_tokens=20 * words(made.genome) + 10 * number)})
        for one, number in zip(found, examples, strict=True)
    ]
    made.learn(dearer, ONE, 4)
    return made


INDEX = {f"e{number}": number for number in range(4)}


def test_the_best_of_members_breaks_limits_by_least() -> None:
    short, longer, longest = member("a b", 0.1), member("a " * 9, 0.5), member("a " * 12, 1.0)
    assert not short.violation
    assert 0 < longer.violation < longest.violation
    assert best_of([longest, longer, short]) is short
    assert best_of([longest, longer]) is longer
    assert best_of([short, member("a c", 0.2)]).genome["rubric"] == "a c"


def test_limits_are_compared_on_the_examples_in_common() -> None:
    whole, hard, easy = member("a " * 7, 1.0), member("b " * 7, 1.0, range(3, 4)), member("c " * 7, 1.0, range(1))
    assert not whole.violation
    assert hard.violation
    assert excess(hard, whole) == excess(whole, hard) == excess(easy, whole) == 0
    assert excess(member("d " * 8, 1.0, range(3, 4)), whole) == 1
    assert excess(whole, member("d " * 8, 1.0, range(3, 4))) == -1


def test_the_order_of_a_sum_is_no_breach_and_the_least_one_is() -> None:
    assert breach(0.1 + 0.2) == breach(0.3)
    assert breach(0.0) == 0 < breach(LEAST) < breach(float("inf"))


# Hybrid.


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("seed", range(2))
def test_hybrid_hands_over_one_that_keeps_the_limits(seed: int) -> None:
    current, _ = line(*limited(LONG, "hybrid", seed=seed, budget=Budget(calls=2500)))
    assert current
    assert not any(one.violation for one in current)


# Breeding.


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of a prompt takes 10 tokens."""
    plain = breed_world.evaluate

    def dear(genome: Genome, item: Item) -> Evaluation:
        usage = Usage(calls=1, prompt_tokens=10 * words(genome), usd=2e-6, seconds=0.1)
        return plain(genome, item).model_copy(update={"usage": usage})

    monkeypatch.setattr(breed_world, "evaluate", dear)


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("seed", range(3))
def test_units_that_keep_the_limits_are_not_displaced_by_those_that_do_not(seed: int) -> None:
    optimizer, world_ = breeding(constraints=("tokens <= 45",), seed=seed)
    population = optimizer._ground.population
    swap, steps = population.swap, list[tuple[float, float]]()

    def watched(gone: str, come: Individual) -> None:
        loser = population.get(gone)
        assert loser is not None
        steps.append((loser.violation, come.violation))
        swap(gone, come)

    population.swap = watched  # type: ignore[method-assign]
    trials = drive(optimizer, world_.run)
    made = {trial.genome.id: trial.genome for trial in trials if trial.genome is not None}
    assert sum(words(genome) <= 4 for genome in made.values()) > 10
    assert len(population) == 6
    assert not any(one.violation for one in population.members)
    assert steps
    assert all(come <= gone for gone, come in steps)


@pytest.mark.usefixtures("priced")
def test_a_tournament_is_won_by_who_breaks_limits_by_less() -> None:
    limits = Limits(("tokens <= 45",), ONE)

    def unit(text: str, right: float) -> Individual:
        made = Individual(Genome(genes={"rubric": text}), lambda split: Tally(Composite()), limits=limits)
        items = [Item(split="train", example=f"e{number}") for number in range(4)]
        usage = Usage(calls=1, prompt_tokens=10 * len(text.split()))
        made.learn([Evaluation(item=item, quality=right, validator=right, usage=usage) for item in items], ONE, 4)
        return made

    optimizer, _ = breeding()
    strategy = optimizer._strategy
    assert isinstance(strategy, Breed)
    short, long, longest = unit("a b", 0.1), unit("a b c d e f", 0.5), unit("a b c d e f g", 1.0)
    for one, other in ((short, long), (long, longest), (short, longest)):
        assert strategy._before(one, other)
        assert strategy._better(one, other)
        assert not strategy._before(other, one)
        assert not strategy._better(other, one)
    assert strategy._better(unit("a c", 0.2), short)


@pytest.mark.usefixtures("priced")
def test_more_starts_than_places_leave_those_that_keep_the_limits() -> None:
    where = Space({**GENES}, models=ABLE)
    texts = [*(f"Do {word} and so on and on." for word in breed_world.USEFUL), *(f"Do {n}." for n in range(4))]
    optimizer, world_ = breeding(
        BREED.model_copy(update={"population": 4}),
        constraints=("tokens <= 45",),
        start=tuple(where.complete({"rubric": text}) for text in texts),
        budget=Budget(calls=4000),
    )
    strategy = optimizer._strategy
    assert isinstance(strategy, Breed)
    settle, kept = strategy._settle, list[list[float]]()

    def watched(one: Individual) -> bool:
        placed = settle(one)
        kept.append([unit.violation for unit in optimizer._ground.population.members])
        return placed

    strategy._settle = watched  # type: ignore[method-assign]
    drive(optimizer, world_.run)
    assert len(kept) >= len(texts)
    assert all(kept[3])
    assert kept[-1] == [0.0] * 4


# All of them.


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("strategy", ["refine", "hybrid"])
def test_arrival_order_changes_nothing_under_constraints(strategy: str) -> None:
    first, world_ = limited(LONG, strategy, budget=Budget(calls=900))
    reference = [trial.proposal for trial in drive(first, world_.run)]
    second, _ = limited(LONG, strategy, budget=Budget(calls=900))
    again = drive(second, world_.run, np.random.default_rng(3), 7)
    assert [one.proposal for one in sorted(again, key=lambda one: one.proposal.number)] == reference
    assert second.front() == first.front()


@pytest.mark.parametrize("strategy", ["refine", "hybrid", "breed"])
def test_limits_that_everybody_keeps_change_nothing(strategy: str) -> None:
    made = []
    for constraints in ((), ("quality >= 0", "latency_ms <= 1e9")):
        if strategy == "breed":
            optimizer, run = breeding(constraints=constraints, budget=Budget(calls=700))
            made.append([trial.proposal for trial in drive(optimizer, run.run)])
        else:
            where = space()
            settings = Search(**SMALL, strategy=strategy)
            optimizer, world_ = search(
                settings, Budget(calls=900), where=where, constraints=constraints, start=(where.complete(START),)
            )
            made.append([trial.proposal for trial in drive(optimizer, world_.run)])
    assert made[0] == made[1]
