"""Hybrid: exploring first, then the winner is refined; and whole runs of both strategies, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reflect_world import FIXES, World, write
from search_world import ITEMS, START, drive, search, space
from small import edited

from evocluster import build
from evocluster.config import load
from evocluster.engine.engine import Engine
from evocluster.errors import ConfigError
from evocluster.records import Proposal, Trial
from evocluster.report.result import Result
from evocluster.search.budget import Budget
from evocluster.search.hybrid import Hybrid
from evocluster.search.optimizer import Optimizer
from evocluster.search.settings import Search

SMALL: dict[str, Any] = {"population": 6, "block": 8, "finalists": 3, "lookahead": 5, "strategy": "hybrid"}
STEADY: dict[str, Any] = {**SMALL, "selection": "steady"}
"""Explored by steady state, which takes its time."""


def strategy(optimizer: Optimizer) -> Hybrid:
    found = optimizer._strategy
    assert isinstance(found, Hybrid)
    return found


def ordered(trials: list[Trial]) -> list[Proposal]:
    return [trial.proposal for trial in sorted(trials, key=lambda trial: trial.proposal.number)]


def refined_from(proposals: list[Proposal]) -> int:
    """The first proposal of the refinement: from there on all children are of `reflect` and of few parents."""
    children = [one for one in proposals if one.purpose == "search"]
    last = max(one.number for one in children if one.operator != "reflect")
    return next(one.number for one in proposals if one.number > last and one.purpose in ("search", "extend"))


def returned(asked: list[Proposal], cut: int) -> int:
    """The first proposal of the population after refinement, which began at `cut`; their number where none is."""
    children = (one.number for one in asked[cut:] if one.purpose == "search" and one.operator != "reflect")
    return next(children, len(asked))


def test_it_explores_and_then_refines_the_winner() -> None:
    optimizer, world = search(Search(**STEADY), Budget(calls=1600))
    refining: list[int] = []

    def run(proposal: Proposal) -> Trial:
        refining.extend([] if strategy(optimizer).exploring else [proposal.number])
        return world.run(proposal)

    trials = drive(optimizer, run)
    asked = ordered(trials)
    assert optimizer.stop_reason == "calls"
    cut = min(refining)
    back = returned(asked, cut)
    before = [one for one in asked[:cut] if one.purpose == "search"]
    after = [one for one in asked[cut:back] if one.purpose == "search"]
    assert len({one.operator for one in before}) > 2
    assert {one.operator for one in after} == {"reflect"}
    assert len(after) >= 18, "six rounds of three before it may be left"
    winner = after[0].parents[0]
    known = {item for trial in trials if trial.genome == winner for item in trial.proposal.items}
    assert known >= set(ITEMS["train"]), "all of train is known of the winner before it is refined"


def test_half_of_the_calls_is_the_latest_switch() -> None:
    optimizer, world = search(Search(**SMALL), Budget(calls=1400))
    spent, at = 0, 0

    def run(proposal: Proposal) -> Trial:
        nonlocal spent, at
        trial = world.run(proposal)
        spent += trial.total.calls
        at = at or (spent if not strategy(optimizer).exploring else 0)
        return trial

    drive(optimizer, run)
    kept = (3 + 1) * (len(ITEMS["validation"]) + len(ITEMS["test"]))
    assert 0 < at <= (1400 - kept) / 2 + 8 * 10, "half of what the check afterwards leaves"


def test_half_of_the_time_switches() -> None:
    optimizer, world = search(Search(**STEADY), Budget(minutes=1, generations=40))
    refining: list[int] = []

    def timed(proposal: Proposal) -> Trial:
        if proposal.number == 40:
            optimizer.halfway()
        refining.extend([] if strategy(optimizer).exploring else [proposal.number])
        return world.run(proposal)

    drive(optimizer, timed)
    assert 40 < min(refining) < 60


def test_a_run_that_switched_by_the_clock_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"strategy": "hybrid", "selection": "steady", "operators": ["mutate", "demos", "crossover", "reflect"]}
    config = write(tmp_path, search, {"minutes": 10}, space={"rubric": ["Which?", "Which one?"], "model": ["fake"]})
    monkeypatch.setattr(Engine, "elapsed_s", property(lambda engine: 30.0 * engine._optimizer.asked))
    done = build.run(build.plan(load(config)), tmp_path / "run")
    assert done.run["halfway"] == 10
    assert not done.run["exploring"]
    assert done.run["commits"] > 20
    edited(tmp_path / "run", status="interrupted")
    monkeypatch.setattr(Engine, "elapsed_s", property(lambda engine: 0.0))
    resumed = build.resume(tmp_path / "run")
    assert resumed.status == "finished"
    assert resumed.run["commits"] == done.run["commits"]
    assert resumed.front == done.front


def test_a_budget_by_which_it_has_switched_is_not_raised(tmp_path: Path) -> None:
    config = write(tmp_path, {"strategy": "hybrid", "selection": "steady"}, {"calls": 500})
    done = build.run(build.plan(load(config)), tmp_path / "run")
    assert not done.run["exploring"]
    edited(tmp_path / "run", status="interrupted")
    for part in (tmp_path / "run" / "trials").iterdir():
        part.rename(tmp_path / part.name)
    with pytest.raises(ConfigError, match=r"half of its budget ended exploring, so 'budget.calls' can no longer"):
        build.resume(tmp_path / "run", sets=["budget.calls=900"])


def test_a_stalled_front_switches_earlier_and_does_not_end_the_search() -> None:
    optimizer, world = search(Search(**STEADY), Budget(calls=6000, stall=2))
    drive(optimizer, world.run)
    assert not strategy(optimizer).exploring
    history = optimizer.progress()["hypervolume"]
    assert optimizer.stop_reason == "stall"
    assert optimizer.progress()["calls"] < 6000
    switched = next(
        at for at in range(2, len(history)) if max(history[at - 1 : at + 1]) <= max(history[: at - 1]) * 1.001
    )
    assert len(history) - 1 > switched + 1, "refinement got generations of its own"


@pytest.mark.parametrize("budget", [Budget(usd=0.01), Budget(generations=6)])
def test_half_of_any_budget_switches(budget: Budget) -> None:
    optimizer, world = search(Search(**STEADY), budget)
    drive(optimizer, world.run)
    assert not strategy(optimizer).exploring


def test_a_population_that_is_worn_out_hands_over() -> None:
    where = space(rubric=["One."], temperature=0, max_tokens=[4, 8], model="able", demos=[], demo_style="chat",
                  constrain=False, label_names="as_is")  # fmt: skip
    start = where.complete({"rubric": "One.", "max_tokens": 8})
    given = Search(**{**SMALL, "operators": ("mutate", "reflect")})
    optimizer, world = search(given, Budget(generations=40), where=where, start=(start,))
    world.broken = ("reflect",)
    drive(optimizer, world.run)
    assert not strategy(optimizer).exploring
    assert optimizer.done
    assert str(optimizer.stop_reason).startswith(("exhausted", "failures", "generations"))
    assert optimizer.front()


def in_vain(workers: int = 1, selection: str = "race") -> tuple[Optimizer, list[Trial]]:
    """A search whose model cannot reflect."""
    given = {**SMALL, "selection": selection, "operators": ("mutate", "demos", "crossover", "reflect")}
    optimizer, world = search(Search(**given), Budget(calls=1600))
    world.broken = ("reflect",)
    return optimizer, drive(optimizer, world.run, np.random.default_rng(workers), workers)


@pytest.mark.parametrize("selection", ["race", "steady"])
def test_where_refinement_comes_to_a_stand_the_population_goes_on(selection: str) -> None:
    optimizer, trials = in_vain(selection=selection)
    asked = ordered(trials)
    vain = [one for one in asked if one.operator == "reflect"]
    first = next(at for at, one in enumerate(vain) if all(it.hints == one.hints for it in vain[at : at + 3]))
    back = returned(asked, vain[first].number)
    tried = [one for one in asked[vain[first].number : back] if one.purpose == "search"]
    assert len(tried) == 18, "six rounds of three"
    assert {one.operator for one in asked[back:] if one.purpose == "search"} - {"seed"} <= {
        *("mutate", "demos", "crossover", "reflect")
    }
    assert sum(trial.total.calls for trial in trials if trial.proposal.number >= back) > 150, "the rest of the budget"
    assert optimizer.stop_reason == "calls"
    told = optimizer.progress()
    assert told["refine"] == {"rounds": 6, "accepted": 0}
    assert told["exploring"] is False


def test_a_model_that_cannot_be_asked_is_no_sign_that_refinement_stands() -> None:
    optimizer, world = search(Search(**SMALL), Budget(calls=1600))

    def run(proposal: Proposal) -> Trial:
        gone = proposal.operator == "reflect" and not strategy(optimizer).exploring
        return Trial(proposal=proposal, error="model fake: not reachable") if gone else world.run(proposal)

    drive(optimizer, run)
    assert optimizer.progress()["refine"]["rounds"] > 6
    assert str(optimizer.stop_reason).startswith("failures")


def test_arrival_order_changes_nothing_after_the_return_either() -> None:
    first, trials = in_vain()
    second, again = in_vain(7)
    assert ordered(again) == ordered(trials)
    assert second.front() == first.front()


def test_a_single_block_is_known_to_the_population_once_its_halves_are() -> None:
    given = Search(**{**SMALL, "block": 64})
    optimizer, world = search(given, Budget(calls=3000))
    trials = drive(optimizer, world.run)
    assert optimizer.progress()["refine"]["rounds"] >= 6
    seen = [
        (trial.genome.id, item)
        for trial in trials
        if trial.genome is not None and trial.proposal.purpose in ("seed", "search", "extend")
        for item in trial.proposal.items
        if trial.proposal.operator == "evaluate"
    ]
    assert len(seen) == len(set(seen)), "nobody is asked anything twice"


def test_arrival_order_and_workers_change_nothing() -> None:
    first, world = search(Search(**SMALL), Budget(calls=1000))
    reference = ordered(drive(first, world.run))
    for workers in (3, 20):
        second, _ = search(Search(**SMALL), Budget(calls=1000))
        again = ordered(drive(second, world.run, np.random.default_rng(workers), workers))
        assert again == reference
        assert second.front() == first.front()


def test_it_is_resumed_by_telling_it_again() -> None:
    first, world = search(Search(**SMALL), Budget(calls=1000))
    trials = drive(first, world.run)
    cut = refined_from(ordered(trials)) + 3
    kept = {one.proposal.number: Trial.model_validate_json(one.model_dump_json()) for one in trials[:cut]}
    second, _ = search(Search(**SMALL), Budget(calls=1000))
    again = drive(second, lambda proposal: kept.get(proposal.number) or world.run(proposal))
    assert ordered(again) == ordered(trials)
    assert second.front() == first.front()


def test_a_frozen_rubric_is_refused_before_anything_is_spent() -> None:
    where = space(rubric="Only this.")
    start = where.complete({**START, "rubric": "Only this."})
    with pytest.raises(ConfigError, match="'hybrid' rewrites the gene `rubric`"):
        search(Search(**SMALL), Budget(calls=900), where=where, start=(start,))


def test_steady_state_may_explore_for_it() -> None:
    optimizer, world = search(Search(**{**SMALL, "selection": "steady"}), Budget(calls=1000))
    drive(optimizer, world.run)
    assert not strategy(optimizer).exploring


def test_it_improves_a_prompt_end_to_end(tmp_path: Path) -> None:
    world = World(tmp_path, search={"strategy": "hybrid", "population": 4}, budget={"calls": 420})
    optimizer, _ = world.searched()
    best = next(member for member in optimizer.front() if member.recommended)
    assert best.test["quality"].value == 1.0
    assert all(sentence in best.genome["rubric"] for sentence in FIXES.values())


# ------------------------------------------------------------ whole runs


def rule(pattern: str, text: str) -> dict[str, str]:
    return {"pattern": pattern, "text": text}


def new(rubric: str, change: str) -> str:
    return f"Change: {change}\n<<<NEW\n{rubric}\nNEW>>>"


ASKED = r"(?s)^You improve.*"
RULES = [
    rule(
        ASKED + r"OLD\nWhich colour\?\nOLD.*- not one of the allowed answers",
        new("A name of the list.", "named the list"),
    ),
    rule(
        ASKED + r"OLD\nA name of the list\.\nOLD.*'black' where 'blue'", new("A name of the list, blue or not.", "blue")
    ),
    rule(r"(?s)^You (improve|rewrite)", "no idea"),
    rule(r"(?s)blue or not.*looks (?P<name>\w+)\n", r"\g<name>"),
    rule(r"(?s)A name of.*looks blue", "black"),
    rule(r"(?s)A name of.*looks (?P<name>\w+)\n", r"\g<name>"),
    rule("looks red", "red"),
]
"""A model that answers better when the prompt says so, and that repairs a prompt by the failures it is shown."""


def config(folder: Path, strategy: str) -> Path:
    models = {"fake": {"kind": "scripted", "rules": RULES, "default": "zut", "latency_s": 0.05, "sigma": 0.6}}
    return write(
        folder, {"strategy": strategy}, {"calls": 260}, models=models, engine={"runner": "local", "in_flight": 6}
    )


def front(run: Path) -> Any:
    return json.loads((run / "front.json").read_text())


@pytest.mark.parametrize("strategy", ["refine", "hybrid"])
def test_a_run_finds_the_repaired_prompt_and_a_killed_one_the_same_front(tmp_path: Path, strategy: str) -> None:
    plan = build.plan(load(config(tmp_path, strategy)))
    whole = build.run(plan, tmp_path / "whole")
    assert whole.recommended is not None
    assert whole.recommended["genes"]["rubric"] == "A name of the list, blue or not."
    spent = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert spent["calls"] <= 260
    lines = [json.loads(row["spend"]) for row in _rows(tmp_path / "whole") if row["spend"]]
    assert any(line["purpose"] == "reflect" for one in lines for line in one)
    notes = [json.loads(row["notes"]) for row in _rows(tmp_path / "whole") if row["notes"]]
    assert "named the list" in [note.get("change") for note in notes]

    seen: list[int] = []

    def killed() -> bool:
        return len(seen) >= 2

    build.run(plan, tmp_path / "cut", show=lambda now: seen.append(now["commits"]), interrupted=killed)
    if json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "finished":
        _rewind(tmp_path / "cut", 12)
    resumed: Result = build.resume(tmp_path / "cut")
    assert resumed.run["status"] == "finished"
    assert front(tmp_path / "cut") == front(tmp_path / "whole")


def _rows(run: Path) -> list[dict[str, Any]]:
    from evocluster.store.table import scan

    return [row for chunk in scan(run / "trials") for row in chunk]


def _rewind(run: Path, keep: int) -> None:
    """As a kill leaves a folder: the first trials alone, and no front."""
    from evocluster.engine.folder import COLUMNS
    from evocluster.store.table import Table

    rows = [row for row in _rows(run) if row["proposal"] < keep]
    for path in (run / "trials").iterdir():
        path.unlink()
    (run / "trials").rmdir()
    table = Table.create(run / "trials", COLUMNS)
    for number in dict.fromkeys(row["proposal"] for row in rows):
        table.append([row for row in rows if row["proposal"] == number])
    table.close()
    (run / "front.json").unlink()
    edited(run, status="running")
