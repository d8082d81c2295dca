"""The simulator can fail: a product broken on purpose is caught by some seed of a few."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
import soak
from faults import DEAD, Plan, plan, storm
from searches import LONG, SEARCHES
from simulated import Keeper, Outcome, quiet, simulate

from evocluster.cluster.cache import CacheKeeper
from evocluster.cluster.dispatch import Dispatch, Report
from evocluster.cluster.puller import Puller
from evocluster.engine.engine import Engine
from evocluster.engine.worker import Worker
from evocluster.llm.cached import LocalCache
from evocluster.llm.client import LLM
from evocluster.llm.health import Health
from evocluster.llm.leases import Lease
from evocluster.llm.limits import Limited
from evocluster.llm.quota import Endpoint
from evocluster.records import Proposal, Trial, Usage
from evocluster.search.budget import Ledger
from evocluster.search.operators import Child
from evocluster.search.optimizer import Optimizer
from evocluster.store.table import Table

MOST = 30
"""Seeds that a mutation may live through."""


@pytest.fixture(scope="module", autouse=True)
def references() -> None:
    """The fault-free runs of the product as it is."""
    for search in range(len(SEARCHES)):
        for dead in (0.0, DEAD):
            quiet(Plan(0, search, 1, 1, 8, 0, dead=dead).quiet)


def caught(kind: str, *others: str) -> Outcome:
    """The first seed with these faults that something is wrong with."""
    plans = (plan(seed) for seed in range(5000))
    for one in islice((one for one in plans if {kind, *others} <= set(one.kinds)), MOST):
        outcome = simulate(one)
        if outcome.violations:
            return outcome
    raise AssertionError(f"{MOST} seeds with {kind!r} went well")


def test_a_dispatcher_that_forgets_what_a_dead_worker_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Dispatch, worker: str, preempted: bool = False) -> int:
        self._gone.add(worker)
        one = self._workers.pop(worker, None)
        return len(one.leases) if one is not None else 0

    monkeypatch.setattr(Dispatch, "lost", lost)
    assert caught("worker crash").violations[0].startswith("progress: not over after")


def test_a_dispatcher_that_counts_a_result_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(self: Dispatch, worker: str, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if worker in self._workers:
                self._workers[worker].leases.pop(trial.proposal.number, None)
            self._done.put_nowait(trial)

    monkeypatch.setattr(Dispatch, "finish", finish)
    assert "is kept a second time" in caught("doubled messages").violations[0]


def test_the_soak_names_a_seed_that_fails_and_that_seed_alone_fails_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = Dispatch.finish

    def dropping(self: Dispatch, worker: str, trials: Sequence[Trial]) -> None:
        finish(self, worker, [trial for trial in trials if trial.proposal.number != 4])

    seeds = 6
    for one in {plan(seed).quiet for seed in range(seeds)}:
        quiet(one)
    monkeypatch.setattr(Dispatch, "finish", dropping)
    monkeypatch.setattr(soak, "_settle", lambda: None)
    found = soak.soak(0, seeds, 2)
    said = capsys.readouterr().out
    assert len(found["failed"]) > 1
    for seed in found["failed"][:2]:
        monkeypatch.setattr(sys, "argv", ["soak.py", "--seed", str(seed)])
        assert soak.main() == 1
        alone = capsys.readouterr().out.splitlines()
        wrong = alone[1 : next(at for at, line in enumerate(alone) if line.startswith("  plan: "))]
        assert wrong
        assert f"seed={seed}\n" + "\n".join(wrong) + "\n  plan: " in said
        assert f"again: python scripts/soak.py --seed {seed}\n" in said
        assert alone[-3] in said, "the last event is the same"


def test_an_engine_that_tells_before_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    async def commit(self: Engine, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._optimizer.tell(trial)
        self._folder.append_many(trials)

    monkeypatch.setattr(Engine, "_commit", commit)
    assert "told before it is on disk" in caught("driver crash").violations[0]


def test_a_call_that_is_repeated_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Limited.__init__

    def init(self: Limited, *args: Any, **named: Any) -> None:
        made(self, *args, **{**named, "retries": 1000})

    monkeypatch.setattr(Limited, "__init__", init)
    failing = Plan(1, LONG, 1, 2, 12, 0, ("endless failures",), overloaded=0.6, unbounded=True)
    assert any(wrong.startswith("retries: a call was sent again after") for wrong in simulate(failing).violations)


def test_a_call_that_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Limited.__init__

    def init(self: Limited, *args: Any, **named: Any) -> None:
        made(self, *args, **{**named, "retries": 0})

    monkeypatch.setattr(Limited, "__init__", init)
    assert caught("5xx").violations


def test_a_model_that_is_called_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "_slots", lambda *_: None)
    plans = (plan(seed) for seed in range(5000))
    tight = islice((one for one in plans if one.max_concurrency == 4 < one.in_flight), MOST)
    assert any("calls at once" in violation for one in tight for violation in simulate(one).violations)


def test_a_worker_that_does_not_wait_for_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_back_off", lambda *_: None)
    found = [wrong for seed in range(MOST) for wrong in simulate(storm(seed, LONG)).violations]
    assert any(wrong.startswith("retry-after: ") for wrong in found)


def test_limits_that_go_on_asking_in_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Health, "_complain", lambda *_: None)
    monkeypatch.setattr(Lease, "_back_off", lambda *_: None)
    silent = replace(storm(0, LONG), storms=((5.0, 60.0, 0.0),))
    assert any("HTTP calls for" in wrong for wrong in simulate(silent).violations)


def test_a_failed_call_that_may_be_charged_for_and_is_booked_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evocluster.llm.limits.charge", lambda *_: Usage(calls=1))
    assert any(wrong.startswith("accounts: ") for wrong in caught("cut streams").violations)


def test_a_cache_that_says_kept_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def put_many(self: LocalCache, items: Mapping[str, str]) -> None:
        for key, value in items.items():
            self._release(key, value)

    monkeypatch.setattr(LocalCache, "put_many", put_many)
    assert caught("driver crash").violations


def test_a_cache_that_keeps_the_claims_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forsake(self: CacheKeeper, owner: str) -> None:
        """Nothing."""

    monkeypatch.setattr(Keeper, "forsake", forsake)
    assert caught("worker crash").violations[0].startswith("progress: not over after")


def test_a_cache_that_lets_everybody_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalCache, "_expire", lambda self: self._leases.clear())
    assert caught("worker crash").violations


def test_a_budget_that_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(self: Ledger, calls: int, usd: float, over: int | None = None) -> str | None:
        return "calls" if self.spent.calls > 45 else None

    monkeypatch.setattr(Ledger, "lacks", lacks)
    limited = next(index for index, search in enumerate(SEARCHES) if "calls" in search["budget"])
    wrong = simulate(Plan(1, limited, 1, 2, 8, 0, overloaded=0.1)).violations
    assert any("calls, the cap is" in violation for violation in wrong)


def test_a_worker_whose_chance_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    make, order = Worker._make, count()

    async def by_order(self: Worker, proposal: Proposal, llm: LLM) -> Child:
        return await make(self, proposal.model_copy(update={"seed": next(order)}), llm)

    monkeypatch.setattr(Worker, "_make", by_order)
    assert "is not that of the fault-free run" in caught("slow answers").violations[0]


def test_a_search_that_hears_of_trials_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(self: Optimizer, trial: Trial) -> None:
        place = min(self._out, default=0)
        if trial.proposal.number >= self._committed:
            self._arrived.setdefault(place, trial)
            self._arrived.setdefault(trial.proposal.number, trial)

    monkeypatch.setattr(Optimizer, "tell", tell)
    assert caught("slow answers").violations


def test_a_table_that_leaves_a_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "_recover", lambda self: None)
    assert caught("driver crash at the disk").violations


def test_a_write_that_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "_take_back", lambda *_: None)
    assert caught("disk full").violations


def test_a_folder_that_lets_two_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evocluster.engine.folder.lock", lambda _: nullcontext())
    assert "intruder: a second driver could open the run folder" in caught("second driver").violations


def test_a_worker_that_drops_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Puller._said

    def first(self: Puller) -> Report:
        report = said(self)
        return replace(report, trials=report.trials[:1])

    monkeypatch.setattr(Puller, "_said", first)
    assert caught("late messages").violations
