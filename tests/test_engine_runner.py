"""The runner of this process keeps the contract."""

from __future__ import annotations

from typing import Any

from contract_runner import RunnerContract, Scenario

from evocluster import build
from evocluster.engine.runner import LocalRunner
from evocluster.records import Proposal


async def _meet(of: build.Plan, count: int, scenario: Scenario, proposals: list[Proposal]) -> Any:
    runner = LocalRunner([of.worker() for _ in range(count)], None)
    await runner.open()
    try:
        return await scenario(runner, proposals)
    finally:
        await runner.close()


class TestOneWorker(RunnerContract):
    async def meet(self, of: build.Plan, scenario: Scenario, proposals: list[Proposal]) -> Any:
        return await _meet(of, 1, scenario, proposals)


class TestThreeWorkers(RunnerContract):
    async def meet(self, of: build.Plan, scenario: Scenario, proposals: list[Proposal]) -> Any:
        return await _meet(of, 3, scenario, proposals)
