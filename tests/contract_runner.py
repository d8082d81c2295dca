"""What every runner keeps: subclass it and say how a scenario meets the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from small import settings, small_config

from evocluster import build
from evocluster.engine.runner import Runner
from evocluster.engine.worker import Worker
from evocluster.errors import ConfigError
from evocluster.records import Proposal, Trial

Scenario = Callable[[Runner, list[Proposal]], Awaitable[Any]]
IN_FLIGHT = 6


def plan(folder: Path, **fake: Any) -> build.Plan:
    """A small world without a cache; `fake` are settings of its model."""
    models = {"fake": {**settings()["models"]["fake"], **fake}}
    return build.plan(small_config(folder, models=models, engine={"in_flight": IN_FLIGHT}, cache={"enabled": False}))


def questions(of: build.Plan, count: int) -> list[Proposal]:
    """The first proposals of its search."""
    optimizer = of.optimizer()
    found = [optimizer.ask() for _ in range(count)]
    return [proposal for proposal in found if proposal is not None]


async def all_of_them(runner: Runner, proposals: list[Proposal]) -> list[Trial]:
    """Submit all, await as many."""
    for proposal in proposals:
        runner.submit(proposal)
    return [await runner.next() for _ in proposals]


async def one_after_the_other(runner: Runner, proposals: list[Proposal]) -> list[Trial]:
    """Wait for work that comes late, as the engine does between two asks."""
    trials = []
    for proposal in proposals:
        waiting = asyncio.ensure_future(runner.next())
        await asyncio.sleep(0.05)
        runner.submit(proposal)
        trials.append(await waiting)
    return trials


async def twice(runner: Runner, proposals: list[Proposal]) -> list[Trial]:
    """The same again once it has come back."""
    return [*await all_of_them(runner, proposals), *await all_of_them(runner, proposals)]


async def at_once(runner: Runner, proposals: list[Proposal]) -> tuple[list[int], list[Trial]]:
    """Submit all, wait a while, and take what is there; the numbers, and what is there after that."""
    before = runner.ready()
    assert before == []
    for proposal in proposals:
        runner.submit(proposal)
    found = [await runner.next()]
    while len(found) < len(proposals):
        await asyncio.sleep(0.05)
        found += runner.ready()
    return [trial.proposal.number for trial in found], runner.ready()


async def something_more(runner: Runner, proposals: list[Proposal]) -> bool:
    """Whether a trial is still to come when all have come."""
    await all_of_them(runner, proposals)
    return await _comes(runner)


async def left_alone(runner: Runner, proposals: list[Proposal]) -> bool:
    """Submit, and leave before anything can have come back; whether something has."""
    for proposal in proposals:
        runner.submit(proposal)
    return await _comes(runner)


async def _comes(runner: Runner) -> bool:
    try:
        await asyncio.wait_for(runner.next(), 0.5)
    except TimeoutError:
        return False
    return True


class RunnerContract:
    """Run over every runner."""

    async def meet(self, of: build.Plan, scenario: Scenario, proposals: list[Proposal]) -> Any:
        """What the scenario returns, given a runner that is opened before and closed after it."""
        raise AssertionError("a subclass says where the runner lives")

    async def test_each_proposal_comes_back_once_as_its_worker_makes_it(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        proposals = questions(world, 7)
        assert len({proposal.operator for proposal in proposals}) > 1
        trials = await self.meet(world, all_of_them, proposals)
        worker: Worker = world.worker()
        await worker.open(None)
        try:
            alone = [await worker.run(proposal) for proposal in proposals]
        finally:
            await worker.close()
        assert sorted(trials, key=lambda trial: trial.proposal.number) == alone
        assert not await self.meet(world, something_more, proposals)

    async def test_work_may_come_late(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        proposals = questions(world, 3)
        trials = await self.meet(world, one_after_the_other, proposals)
        assert [trial.proposal for trial in trials] == proposals

    async def test_a_proposal_that_came_back_may_be_submitted_again(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        proposals = questions(world, 3)
        trials = await self.meet(world, twice, proposals)
        assert sorted(trial.proposal.number for trial in trials) == sorted(2 * [one.number for one in proposals])

    async def test_what_fails_in_a_trial_is_in_the_trial(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        first = questions(world, 1)[0]
        broken = first.model_copy(update={"number": 1, "operator": "rewrite", "hints": {}, "parents": ()})
        trials = await self.meet(world, all_of_them, [first, broken])
        errors = {trial.proposal.number: trial.error for trial in trials}
        assert errors[0] is None
        assert errors[1] is not None
        assert errors[1].startswith("operator rewrite: ")

    async def test_what_ends_a_run_is_raised_as_itself(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        proposals = questions(world, 2)
        unknown = proposals[0].parents[0].replace(model="gone")
        with pytest.raises(ConfigError, match="'gone' is not configured"):
            await self.meet(world, all_of_them, [proposals[0].model_copy(update={"parents": (unknown,)})])

    async def test_closing_does_not_wait_for_what_is_under_way(self, tmp_path: Path) -> None:
        hour = 3600.0
        world = plan(tmp_path, latency_s=hour, sigma=0.0, time_scale=1.0)
        came = await asyncio.wait_for(self.meet(world, left_alone, questions(world, 4)), hour / 60)
        assert not came

    async def test_what_came_back_already_is_taken_without_waiting(self, tmp_path: Path) -> None:
        world = plan(tmp_path)
        proposals = questions(world, 5)
        taken, after = await self.meet(world, at_once, proposals)
        assert sorted(taken) == sorted(proposal.number for proposal in proposals)
        assert after == []
