"""The simulator: its clock, processes and cluster; that a seed replays; and that no seed breaks an invariant."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from faults import KINDS, STORMY, Plan, plan, storm
from pretended import Cluster, RayActorError, RayTaskError, pretending
from searches import LONG, SEARCHES, SHORT, planned, scripted
from simulated import quiet, simulate
from soak import digest, told
from virtual import Deadlock, Overtime, Process, VirtualLoop

from evocluster.engine.engine import Engine
from evocluster.engine.folder import Folder
from evocluster.engine.runner import LocalRunner
from evocluster.engine.worker import Worker
from evocluster.llm.cached import LocalCache
from evocluster.llm.stack import Stack

ROOT = Path(__file__).resolve().parents[1]


def on(loop: VirtualLoop, coro: Any) -> Any:
    """What the coroutine returns, in this loop."""
    try:
        return loop.run_until_complete(coro)
    finally:
        loop._ready.clear()
        loop._scheduled.clear()
        loop.close()


def test_the_clock_jumps_to_the_next_timer_and_keeps_the_order() -> None:
    loop, seen = VirtualLoop(1e6), []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def all_of_it() -> None:
        await asyncio.gather(*(sleeper(seconds) for seconds in (5000, 1, 70, 1)))

    on(loop, all_of_it())
    assert seen == [(1, 1.0), (1, 1.0), (70, 70.0), (5000, 5000.0)]


def test_what_waits_for_nothing_is_a_deadlock_that_names_it() -> None:
    async def waits_in_vain() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="waits_in_vain"):
        on(VirtualLoop(10), waits_in_vain())


def test_time_has_an_end_and_threads_are_refused() -> None:
    with pytest.raises(Overtime, match="not over after 10 s"):
        on(VirtualLoop(10), asyncio.sleep(11))

    async def beside() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="one thread"):
        on(VirtualLoop(10), beside())


def test_a_killed_process_does_nothing_more_and_nobody_hears_its_last_words() -> None:
    loop = VirtualLoop(100)
    seen: list[tuple[str, float | str]] = []
    victim, heir = Process("victim", "n"), Process("heir", "n")

    async def work(process: Process) -> None:
        try:
            for _ in range(4):
                await asyncio.sleep(1)
                seen.append((process.name, loop.time()))
        finally:
            await asyncio.ensure_future(asyncio.sleep(0))
            seen.append((process.name, "end"))

    async def world() -> None:
        tasks = [loop.spawn(work(process), process) for process in (victim, heir)]
        await asyncio.sleep(2.5)
        loop.kill(victim)
        await asyncio.sleep(10)
        assert not tasks[0].done()
        assert tasks[1].done()

    on(loop, world())
    assert [one for one in seen if one[0] == "victim"] == [("victim", 1.0), ("victim", 2.0)]
    assert seen[-1] == ("heir", "end")
    assert loop.mishaps == []


class Still:
    """A network that only takes time."""

    def delay_s(self, method: str) -> float:
        """A second each way."""
        return 1.0

    def again(self, method: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]] | None:
        """What is handed in."""
        return (method, args) if method == "finish" else None

    def died(self, process: Process) -> None:
        """Nobody asks."""


class Counter:
    """An actor."""

    def __init__(self) -> None:
        self.count = 0

    async def finish(self, fail: bool = False) -> int:
        """Counts, slowly."""
        self.count += 1
        await asyncio.sleep(5)
        if fail:
            raise ValueError("told to")
        return self.count


def test_a_call_answers_fails_or_tells_of_a_death_as_rays_do() -> None:
    loop = VirtualLoop(1000)
    cluster = Cluster(loop, {"here": 2, "there": 2}, Still(), Random(1))

    async def world() -> list[Any]:
        ray: Any = sys.modules["ray"]

        def actor() -> Any:
            return ray.remote(Counter).options(scheduling_strategy=None).remote()

        first, second = actor(), actor()
        found: list[Any] = [await first.finish.remote(), loop.time()]
        found.append(await asyncio.gather(first.finish.remote(True), return_exceptions=True))
        waiting = second.finish.remote()
        loop.later(3, cluster.kill, second)
        found.append(await asyncio.gather(waiting, second.finish.remote(), return_exceptions=True))
        found.append([node["Alive"] for node in ray.nodes()])
        cluster.lose("there")
        found.append([node["Alive"] for node in ray.nodes()])
        return found

    with pretending(cluster):
        answer, when, failed, dead, before, after = on(loop, world())
    assert answer == 2, "finish was to arrive twice"
    assert when == 7.0
    assert isinstance(failed[0], RayTaskError)
    assert isinstance(failed[0].cause, ValueError)
    assert [type(one) for one in dead] == [RayActorError, RayActorError]
    assert (before, after) == ([True, True], [True, False])


def test_what_the_dead_sent_to_the_dead_reaches_nobody_and_the_living_ask_again_once() -> None:
    class Slow(Still):
        def delay_s(self, method: str) -> float:
            """Longer than it takes to live again."""
            return 10.0

    loop = VirtualLoop(1000)
    cluster = Cluster(loop, {"here": 2}, Slow(), Random(1))
    heard: list[tuple[str, float]] = []

    class Listener:
        async def hear(self, who: str) -> str:
            """Notes who speaks, and when."""
            heard.append((who, loop.time()))
            return who

    async def world() -> str:
        listener = cluster.start(Listener, "here", lasting=True)
        dying, living = Process("dying", "here"), Process("living", "here")

        async def ask(who: str) -> str:
            return str(await listener.hear.remote(who))

        loop.spawn(ask("dying"), dying)
        asked = loop.spawn(ask("living"), living)
        await asyncio.sleep(0.1)
        loop.kill(dying)
        # Both messages are on their way.
        loop.kill(listener.process)
        await asyncio.sleep(100)
        return str(asked.result())

    assert on(loop, world()) == "living"
    assert [who for who, _ in heard] == ["living"]


@pytest.mark.parametrize("search", range(len(SEARCHES)))
def test_without_faults_it_is_the_run_of_an_ordinary_event_loop(search: int, tmp_path: Path) -> None:
    product = planned(search)
    plain = product.worker()
    stack = Stack({"fake": scripted()}, product.config.seed)
    worker = Worker(plain._space, plain._operators, product.evaluator, stack, 8)

    async def run() -> str:
        engine = Engine(product.optimizer(), LocalRunner([worker], LocalCache()), Folder.create(tmp_path / "run", ""))
        return await engine.run()

    assert asyncio.run(run()) == "finished"
    simulated = quiet(Plan(0, search, 1, 2, 8, 0))
    assert json.loads((tmp_path / "run" / "front.json").read_text()) == simulated.front
    assert len(simulated.trials) >= (5 if search < len(SHORT) else 17)


@pytest.mark.parametrize("seed", range(8))
def test_a_seed_breaks_nothing_and_replays_to_the_same_events(seed: int) -> None:
    first, second = (simulate(plan(seed)) for _ in range(2))
    assert first.violations == []
    assert first.trace == second.trace
    assert first.trace[-1].endswith("finished")


@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_a_minute_costs_few_calls_and_no_candidate(seed: int) -> None:
    outcome = simulate(storm(seed, LONG))
    assert outcome.violations == []
    assert outcome.injected["429 storm"] > 0
    assert outcome.seconds > 60


@pytest.mark.parametrize("seed", [8, 9])
def test_who_has_closed_the_folder_does_not_hold_it_while_word_of_that_is_on_its_way(seed: int) -> None:
    full = Plan(seed, 6, 1, 2, 8, 0, disk_full=((16, 1),), late=0.15, late_s=5.0)
    outcome = simulate(replace(full, intruders=tuple(0.5 + 0.25 * n for n in range(100))))
    assert outcome.violations == []
    assert outcome.injected["disk full"] == 1
    assert outcome.injected["second driver"] > 0
    assert outcome.sittings == 2


def test_every_so_many_seeds_one_is_a_storm() -> None:
    plans = [plan(seed) for seed in range(2 * STORMY)]
    assert [one.seed for one in plans if one.stormy and one.search == LONG] == [STORMY - 1, 2 * STORMY - 1]


def test_a_seed_replays_by_the_command_whatever_the_hashes_of_texts_are() -> None:
    seed = next(seed for seed in range(100) if len(plan(seed).kinds) > 4)
    here = digest(simulate(plan(seed)))
    for hashing in ("0", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--seed", str(seed)]
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        assert f"seed={seed}\n" in said
        assert said.endswith(f"  events: {here}, violations: 0\n")


def test_a_seed_that_fails_tells_what_why_and_how_to_see_it_again() -> None:
    outcome = simulate(plan(0))
    outcome.violations.append("lost: trial 3")
    text = told(outcome)
    assert text.startswith("seed=0\n  lost: trial 3\n  plan: {")
    assert text.endswith("again: python scripts/soak.py --seed 0")
    assert outcome.trace[-1] in text


@pytest.mark.slow
def test_two_hundred_seeds_break_nothing_and_see_every_fault() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--seeds", "200", "--json"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["violations"] == 0
    assert found["seeds"] == 200
    assert set(found["injected"]) == set(KINDS)
    assert min(found["injected"].values()) > 0
