"""Refinement: it climbs by what failures say, accepts by its rules, spends little, and shows nothing it must not."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reflect_world import FIXES, World, asked, colours, old_rubric, proposed, repairing, rubrics, secret
from search_world import START, drive, search, space

from evocluster.errors import ConfigError, DataError
from evocluster.llm.client import Request
from evocluster.records import Item, Proposal, Trial
from evocluster.search.budget import Budget
from evocluster.search.optimizer import Optimizer
from evocluster.search.refine import Refine
from evocluster.search.rounds import accepts, behind, parts
from evocluster.search.settings import Search


def searched(
    folder: Path, says: Callable[[Request], str] = repairing, **given: Any
) -> tuple[World, Optimizer, list[Trial]]:
    world = World(folder, says, **given)
    return (world, *world.searched())


def rounds(trials: list[Trial]) -> list[list[Trial]]:
    """Proposals of `reflect` that share parent and hints, in order."""
    made: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.proposal.operator == "reflect":
            key = f"{trial.proposal.parents[0].id} {json.dumps(trial.proposal.hints, sort_keys=True, default=list)}"
            made.setdefault(key, []).append(trial)
    return list(made.values())


def strategy(optimizer: Optimizer) -> Refine:
    found = optimizer._strategy
    assert isinstance(found, Refine)
    return found


def test_it_repairs_what_fails_and_tells_the_changes(tmp_path: Path) -> None:
    world, optimizer, trials = searched(tmp_path)
    best = next(member for member in optimizer.front() if member.recommended)
    start = optimizer.start_member
    assert start is not None
    assert all(sentence in best.genome["rubric"] for sentence in FIXES.values())
    assert (start.test["quality"].value, best.test["quality"].value) == (0.25, 1.0)
    told = [str(trial.notes["change"]) for trial in trials if trial.notes]
    assert all(any(failure in change for change in told) for failure in FIXES)
    questions = world.scribe.of("reflect")
    assert "What was tried" not in asked(questions[0])
    assert "- worked: added a rule against:" in asked(questions[-1])
    assert optimizer.stop_reason == "exhausted", "everything is right"


def test_a_round_shares_parent_and_cases_and_differs_by_seed(tmp_path: Path) -> None:
    _, _, trials = searched(tmp_path, search={"candidates": 4})
    for made in rounds(trials):
        assert len(made) == 4
        assert len({trial.proposal.seed for trial in made}) == 4
        assert len({trial.proposal.items for trial in made}) == 1
    assert len(rounds(trials)) >= 3


def test_arrival_order_and_workers_change_nothing(tmp_path: Path) -> None:
    first, second = World(tmp_path / "a"), World(tmp_path / "b")
    one, trials = first.searched()
    other, again = second.searched(np.random.default_rng(3), 7)
    assert [trial.proposal for trial in again] == [trial.proposal for trial in trials]
    assert other.front() == one.front()
    assert other.progress() == one.progress()


@pytest.mark.parametrize("cut", [2, 9, 17])
def test_it_is_resumed_by_telling_it_again(tmp_path: Path, cut: int) -> None:
    world, optimizer, trials = searched(tmp_path)
    kept = {one.proposal.number: Trial.model_validate_json(one.model_dump_json()) for one in trials[:cut]}
    run, paid = world.run, list[int]()

    def replayed(proposal: Proposal) -> Trial:
        if proposal.number in kept:
            assert kept[proposal.number].proposal == proposal
            return kept[proposal.number]
        paid.append(proposal.number)
        return run(proposal)

    world.run = replayed  # type: ignore[method-assign]
    again, told = world.searched()
    assert [trial.proposal for trial in told] == [trial.proposal for trial in trials]
    assert again.front() == optimizer.front()
    assert len(paid) == len(trials) - cut


# ------------------------------------------------------------ what is shown


def test_nothing_of_held_validation_or_test_examples_gets_into_a_prompt(tmp_path: Path) -> None:
    def leaking(request: Request) -> str:
        """Puts a whole case into the prompt it proposes, every second time."""
        if request.purpose != "reflect" or request.seed % 2:
            return repairing(request)
        found = re.search(r"Input: (.*) looks", asked(request))
        return proposed(f"{old_rubric(request)} Like: {found[1] if found else ''}")

    world, optimizer, trials = searched(tmp_path, leaking, budget={"calls": 330}, search={"candidates": 4})
    held = strategy(optimizer)._ground.focus.held
    every = [item.example for item in world.plan.items("train")]
    assert 0 < len(held) < len(every)
    shown = {secret("train", int(id.split("-")[1])) for id in every if id not in held}
    hidden = {secret("train", int(id.split("-")[1])) for id in held}
    hidden |= {secret(split, number) for split in ("validation", "test") for number in range(8)}
    questions = [asked(request) for request in world.scribe.of("reflect", "rewrite")]
    told = "\n".join(questions)
    assert any(words in told for words in shown)
    assert not any(word in told for words in hidden for word in words.split())
    prompts = "\n".join(rubrics(trials))
    assert not any(words in prompts for words in shown | hidden)
    assert any("copies a training case" in str(trial.error) for trial in trials)
    memory = strategy(optimizer)._ground.memory.render()
    assert "no prompt came of a proposal) | the new text copies a training case" in told + memory
    assert not any(words[:20] in memory for words in shown | hidden)
    assert all("example" not in json.dumps(dict(trial.notes)) for trial in trials)


def test_only_train_is_looked_up_and_of_held_examples_no_input(tmp_path: Path) -> None:
    worker = World(tmp_path).plan.worker()
    given = {"cases": [{"example": "train-1", "twin": 0}], "held": [{"example": "train-2"}], "preserve": (), "n": 1}
    told = worker._told(given)
    assert told["cases"][0]["input"].startswith(secret("train", 1))
    assert told["cases"][0]["expected"] == "green"
    assert told["held"] == [{"example": "train-2", "expected": "blue"}]
    assert (told["preserve"], told["n"]) == ((), 1)
    assert worker._told({"preserve": [{"example": "train-3"}]})["preserve"][0]["input"].startswith(secret("train", 3))
    for name in ("cases", "held", "preserve"):
        with pytest.raises(DataError, match="validation-1"):
            worker._told({name: [{"example": "validation-1"}]})


def test_reasons_and_traces_of_a_custom_executor_reach_reflection(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "own.py").write_text(
        "from evocluster import Score\n"
        "async def answer(example, genome, llm):\n"
        "    llm.note('lookup', 'shade', 'NO-SHADE-FOUND')\n"
        "    return 'black'\n"
        "def judge(output, example):\n"
        "    return Score(value=float(output == example.expected), reason='THE-SHADE-IS-OFF')\n"
    )
    task = {
        "kind": "classification",
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
        "labels": ["red", "green", "blue", "black"],
        "executor": {"function": "own.py:answer"},
        "scorers": [{"kind": "function", "function": "own.py:judge"}],
    }
    world, _, _ = searched(tmp_path, task=task, budget={"generations": 1})
    question = asked(world.scribe.of("reflect")[0])
    assert "Step: lookup: shade -> NO-SHADE-FOUND" in question
    assert "THE-SHADE-IS-OFF" in question


# ------------------------------------------------------------ what is accepted


@pytest.mark.parametrize(
    ("now", "new", "taken"),
    [
        (0.0, 0.0, False),
        (0.0, 0.01, True),
        (0.09, 0.09, False),
        (0.1, 0.1, True),
        (0.5, 0.5, True),
        (0.5, 0.49, False),
        (0.5, 0.51, True),
    ],
)
def test_a_poor_prompt_is_left_for_a_better_one_only(now: float, new: float, taken: bool) -> None:
    assert accepts(now, new) is taken


def chooser(texts: list[str]) -> Callable[[Request], str]:
    """Proposes these sentences one after the other, whatever it is asked."""
    left = list(texts)

    def says(request: Request) -> str:
        if request.purpose != "reflect":
            return colours(request)
        return proposed(f"{old_rubric(request)} {left.pop(0) if left else f'Idle {request.seed}.'}")

    return says


def test_lateral_moves_are_made_and_the_best_is_not_lost(tmp_path: Path) -> None:
    fixes = list(FIXES.values())
    world, optimizer, trials = searched(
        tmp_path, chooser([fixes[0]]), search={"candidates": 1, "population": 2}, budget={"generations": 8}
    )
    parents = list(dict.fromkeys(made[0].proposal.parents[0]["rubric"] for made in rounds(trials)))
    assert len(parents) > 8, "every candidate is as good as its parent, so each takes its place"
    assert all(fixes[0] in rubric for rubric in parents[1:])
    best = next(member for member in optimizer.front() if member.recommended)
    assert best.test["quality"].value == 0.5
    assert best.train["quality"].value == 0.5
    assert len(strategy(optimizer)._ground.population) <= 2
    assert world.scribe.of("reflect")


def test_the_best_stays_in_a_crowded_population(tmp_path: Path) -> None:
    fixes = " ".join(FIXES.values())
    _, optimizer, _ = searched(
        tmp_path,
        chooser([fixes.replace("Always answer.", "")]),
        search={"candidates": 2, "population": 2},
        budget={"generations": 6},
    )
    best = strategy(optimizer)._best
    assert best is not None
    members = strategy(optimizer)._ground.population.members
    assert best in members
    assert best.tally("train").items == 16


def breaking(request: Request) -> str:
    """One sentence repairs all but breaks what was right; told what to preserve, another repairs without harm."""
    text = asked(request)
    if request.purpose == "reflect":
        preserve = "MUST STAY RIGHT" in text
        return proposed(f"{old_rubric(request)} {'Careful' if preserve else 'Bold'} {request.seed}.")
    number = int(re.findall(r"train(\d+)w", text)[-1]) if "train" in text else 0
    shown, right = number in SHOWN, number % 2 == 0
    if "Careful" in text:
        return label(text)
    if "Bold" in text:
        right = not shown
    return label(text) if right else "zut"


def label(text: str) -> str:
    return text.rpartition(" looks ")[2].split()[0]


SHOWN: set[int] = set()


def test_a_candidate_that_wins_and_breaks_right_cases_is_rejected_and_they_are_preserved(tmp_path: Path) -> None:
    world = World(tmp_path, breaking, search={"candidates": 1}, budget={"calls": 260})
    optimizer = world.plan.optimizer()
    held = strategy(optimizer)._ground.focus.held
    SHOWN.clear()
    SHOWN.update(int(item.example.split("-")[1]) for item in world.plan.items("train") if item.example not in held)
    right_before = {f"train-{number}" for number in SHOWN if number % 2 == 0}
    again, trials = world.searched()
    made = rounds(trials)
    assert "Bold" in str(made[0][0].genome)
    assert made[0][0].proposal.hints["preserve"] == ()
    second = made[1][0].proposal
    assert "Bold" not in second.parents[0]["rubric"], "it won on the held part and was rejected"
    preserved = second.hints["preserve"]
    assert {one["example"] for one in preserved} <= right_before
    assert preserved
    question = asked(world.scribe.of("reflect")[1])
    assert "not one of the allowed answers" in question, "the patterns to fix are still there"
    for one in preserved:
        words = secret("train", int(one["example"].split("-")[1]))
        assert f"Input: {words}" in question.split("MUST STAY RIGHT")[1]
    assert "A rejected instruction made it answer: zut" in question
    assert made[1][0].genome is not None
    assert "Bold" in question.split("REJECTED BEFORE")[1]
    best = strategy(again)._best
    assert best is not None
    assert "Careful" in best.genome["rubric"]
    assert "Bold" not in best.genome["rubric"]


def test_repeats_bring_other_cases_and_in_the_end_it_is_exhausted(tmp_path: Path) -> None:
    def same(request: Request) -> str:
        return proposed("Which colour is it?") if request.purpose == "reflect" else "zut"

    _, optimizer, trials = searched(tmp_path, same, budget={"calls": 4000})
    assert optimizer.stop_reason == "exhausted"
    made = rounds(trials)
    assert 6 <= len(made) <= 9
    cases = [{one["example"] for one in one[0].proposal.hints["cases"]} for one in made]
    assert cases[0] != cases[1]
    assert len(set().union(*cases)) == 8, "all shown examples fail, and all get their turn"
    assert any("rejected" in str(trial.error) for trial in trials)
    assert optimizer.front()


def test_a_model_that_gives_nothing_usable_ends_it_with_the_start(tmp_path: Path) -> None:
    _, optimizer, trials = searched(tmp_path, lambda request: "no idea", budget={"calls": 4000})
    assert optimizer.stop_reason == "exhausted"
    assert [member.operator for member in optimizer.front()] == ["start"]
    questions = [trial for trial in trials if trial.error]
    assert all("no instruction between" in str(trial.error) for trial in questions)


# ------------------------------------------------------------ what it takes


def test_what_is_surely_behind_is_not_evaluated_to_the_end(tmp_path: Path) -> None:
    def harmful(request: Request) -> str:
        if request.purpose == "reflect":
            return proposed(f"{old_rubric(request)} Harm {request.seed}.")
        return (
            "zut" if "Harm" in asked(request) else label(asked(request)) if "train0w" not in asked(request) else "zut"
        )

    _, optimizer, trials = searched(tmp_path, harmful, budget={"generations": 3})
    counts = Counter(trial.genome.id for trial in trials for _ in trial.evaluations if trial.genome is not None
                     and trial.proposal.purpose in ("search", "extend"))  # fmt: skip
    assert counts
    assert max(counts.values()) <= 4, "one of four blocks tells it"
    assert next(member for member in optimizer.front() if member.recommended).operator == "start"


def test_the_worse_half_of_a_round_goes_first(tmp_path: Path) -> None:
    def distinct(request: Request) -> str:
        said = repairing(request)
        return said.replace("\nNEW>>>", f" Number {request.seed}.\nNEW>>>") if request.purpose == "reflect" else said

    _, _, trials = searched(tmp_path, distinct, search={"candidates": 8}, budget={"generations": 3})
    blocks = Counter(trial.genome.id for trial in trials if trial.genome is not None
                     and trial.proposal.purpose in ("search", "extend"))  # fmt: skip
    first = {trial.genome.id for trial in rounds(trials)[0] if trial.genome is not None}
    assert len(first) == 8
    assert sum(blocks[id] > 1 for id in first) <= 4, "half of eight go on after the first part"
    assert sum(blocks[id] > 2 for id in first) <= 2
    assert max(blocks[id] for id in first) == 4


@pytest.mark.parametrize("calls", [70, 90, 150, 233])
def test_calls_are_never_exceeded(tmp_path: Path, calls: int) -> None:
    world, optimizer, trials = searched(tmp_path, budget={"calls": calls})
    assert len(world.scribe.requests) == sum(trial.total.calls for trial in trials) <= calls
    assert optimizer.progress()["calls"] <= calls
    start = optimizer.start_member
    assert start is not None
    assert all(member.test for member in [*optimizer.front(), start])


def test_what_reflection_costs_is_counted_by_its_purpose(tmp_path: Path) -> None:
    world, optimizer, trials = searched(tmp_path)
    lines = [line for trial in trials for line in trial.spend if line.purpose == "reflect"]
    assert sum(line.usage.calls for line in lines) == len(world.scribe.of("reflect"))
    assert optimizer.progress()["calls"] == len(world.scribe.requests)
    assert optimizer.progress()["operators"]["reflect"]["uses"] >= len(lines) - 3


def test_the_given_genomes_are_evaluated_and_no_random_ones(tmp_path: Path) -> None:
    _, _, trials = searched(tmp_path)
    seeds = [trial.proposal for trial in trials if trial.proposal.purpose == "seed"]
    assert {one.parents[0]["rubric"] for one in seeds} == {"Which colour?"}
    assert [one.number for one in seeds] == list(range(4))


def test_the_best_of_several_starts_is_refined(tmp_path: Path) -> None:
    start = [{"rubric": "Which colour?"}, {"rubric": f"Which one? {FIXES['empty answer']}"}]
    _, _, trials = searched(tmp_path, start=start)
    assert all(made[0].proposal.parents[0]["rubric"].startswith("Which one?") for made in rounds(trials))


# ------------------------------------------------------------ what cannot be refined


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({}, {"rubric": "Only this."}, r"'refine' rewrites the gene `rubric`.*\['Only this.'\]; write it as a list"),
        ({}, {"rubric": {"texts": ["a", "b"], "fixed": True}}, "without `fixed: true`"),
        ({"operators": ("mutate",)}, {}, r"got \['mutate'\]; strategy 'refine' needs 'reflect'; add it"),
    ],
)
def test_what_cannot_be_refined_is_refused_with_the_fix(
    settings: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    where = space(**changes)
    start = {**START, **({"rubric": "Only this."} if isinstance(changes.get("rubric"), str) else {})}
    with pytest.raises(ConfigError, match=reason):
        search(Search(strategy="refine", **settings), Budget(calls=900), where=where, start=(where.complete(start),))


def test_one_block_is_cut_in_two_and_one_example_is_refused() -> None:
    items = tuple(Item(split="train", example=id, twin=twin) for id in ("a", "b", "c") for twin in (0, 1))
    first, second = parts((items,))
    assert [item.example for item in first] == ["a", "a", "b", "b"]
    assert [item.example for item in second] == ["c", "c"]
    with pytest.raises(ConfigError, match=r"at least 2 train examples.*got 1"):
        parts((items[:2],))
    assert parts((items, items[:1])) == (items, items[:1])


def test_a_single_block_is_refined_too(tmp_path: Path) -> None:
    _, optimizer, trials = searched(tmp_path, search={"block": 16})
    assert next(member for member in optimizer.front() if member.recommended).test["quality"].value == 1.0
    assert {len(trial.proposal.items) for trial in trials if trial.proposal.purpose == "search"} == {8}


def test_the_sign_test_is_exact() -> None:
    from test_search_memory import one

    parent = one("p", [1.0] * 10)
    for losses, alpha, sure in ((5, 0.04, True), (5, 0.03, False), (1, 0.4, False), (0, 0.9, False)):
        child = one("c", [0.0] * losses + [1.0] * (10 - losses))
        assert behind(child, parent, alpha) is sure
    assert not behind(one("c", [float("nan")] * 10), parent, 0.9)


def test_one_as_good_as_the_leader_is_seldom_sent_away_for_being_surely_behind(tmp_path: Path) -> None:
    from test_search_memory import one

    refine, rng = strategy(World(tmp_path).plan.optimizer()), np.random.default_rng(5)
    size, count, times, sent = 80, 8, 400, 0
    refine._parts = tuple((Item(split="train", example=str(part)),) for part in range(count))
    refine._every = refine._held = np.arange(size)
    nobody = one("n", [0.0] * size)
    for _ in range(times):
        leader, child = (rng.random(size) < 0.6).astype(float), (rng.random(size) < 0.6).astype(float)
        for known in range(size // count, size, size // count):
            left = size - known
            if child[:known].sum() + left < leader.sum():
                break  # It can no longer win, whatever is to come.
            if refine._lost(one("c", [*child[:known], *[math.nan] * left]), nobody, one("l", [*leader])):
                sent += 1
                break
    assert 0 < sent / times <= refine._ground.settings.alpha


def test_the_calls_of_an_operator_are_those_that_its_candidates_took() -> None:
    settings = Search(population=6, block=8, finalists=3, lookahead=5, strategy="refine")
    optimizer, world = search(settings, Budget(calls=1000))
    trials = drive(optimizer, world.run)
    made = {trial.genome.id for trial in trials if trial.proposal.purpose == "search" and trial.genome}
    took = sum(
        trial.total.calls
        for trial in trials
        if trial.proposal.purpose == "search"
        or (trial.proposal.purpose == "extend" and trial.proposal.parents[0].id in made)
    )
    told = optimizer.progress()["operators"]["reflect"]
    assert told["gain"] == 0
    assert 0.7 * took <= told["calls"] <= took, "a round under way at the end is not told of yet"
