"""The population actor: owns the search state, the engine's loop and the run folder; and the driver that watches it.

The engine inside is the same object that runs in-process; only its Runner differs. The actor sits on the driver's node,
where the run folder is, and dies with the driver: what was kept is kept, `resume` goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evocluster.cluster import cache as caches
from evocluster.cluster.metrics import Gauges, beating, state
from evocluster.cluster.runner import Layout, RayRunner
from evocluster.cluster.session import session, settle
from evocluster.engine.engine import Engine
from evocluster.engine.runner import Runner
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.stack import Stack
from evocluster.records import Proposal, Trial

POLL_S = 0.5


class Population:
    """A plain class made an actor by `drive`. Call order: construct, `run`; workers pull and finish meanwhile."""

    def __init__(self, make: Callable[[Runner], Engine], runner: RayRunner) -> None:
        self._make = make
        self._runner = runner
        self._engine: Engine | None = None
        self._interrupted = False

    async def run(self) -> str:
        """Replay what is kept, then carry on to the end; 'finished' or 'interrupted'."""
        self._engine = self._make(self._runner)
        if self._interrupted:
            self._engine.interrupt()
        self._engine.replay()
        settle()
        beat = beating(Gauges(self._engine.run_id, lambda: state(self.told(), self._runner.dispatch.queued)))
        try:
            return await self._engine.run()
        finally:
            beat.cancel()

    async def pull(self, worker: str, room: int, ahead: int) -> list[Proposal] | None:
        """See cluster.puller.Source."""
        return await self._runner.dispatch.pull(worker, room, ahead)

    async def finish(self, worker: str, trials: list[Trial]) -> None:
        """See cluster.puller.Source."""
        self._runner.dispatch.finish(worker, trials)

    async def fail(self, failure: Exception) -> None:
        """See cluster.puller.Source."""
        self._runner.dispatch.fail(failure)

    async def interrupt(self) -> None:
        """Nothing new; finish what is in flight."""
        self._interrupted = True
        if self._engine is not None:
            self._engine.interrupt()

    async def progress(self) -> dict[str, Any]:
        """See engine.Engine.progress; empty before the engine stands."""
        return self.told()

    def told(self) -> dict[str, Any]:
        """The same, in the actor."""
        return self._engine.progress() if self._engine is not None else {}


def drive(
    make: Callable[[Runner], Engine],
    worker: Worker,
    stack: Stack,
    cache: Path | None,
    layout: Layout,
    *,
    address: str | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    caching: bool = True,
) -> str:
    """Run to the end on Ray; returns 'finished' or 'interrupted'.

    `show` gets the progress twice a second; `interrupted` is asked as often. `caching` with `cache` None keeps
    completions in the actor's memory. Raises: whatever ends the run, as itself.
    """
    with session(address):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        try:
            keeper = caches.start(cache, here) if caching else None
            runner = RayRunner(worker, stack, keeper, layout)
            place = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
            actor_class = ray.remote(Population).options(
                num_cpus=0,
                max_concurrency=10_000,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=place,
            )
            population: Any = actor_class.remote(make, runner)
            try:
                return _watch(population, show, interrupted)
            finally:
                # In a session that was there before, nothing else would end them.
                ray.kill(population)
                if keeper is not None:
                    keeper.stop()
        except ray.exceptions.RayTaskError as failure:
            raise failure.cause from None
        except ray.exceptions.RayActorError as death:
            raise EvoclusterError(
                f"the process that carried the run died: {death}; what was kept is safe, go on with: evocluster resume"
            ) from death


def _watch(population: Any, show: Callable[[dict[str, Any]], None] | None, interrupted: Callable[[], bool]) -> str:
    import ray

    running = population.run.remote()
    asked = False
    while True:
        ready, _ = ray.wait([running], timeout=POLL_S)
        if ready:
            status: str = ray.get(running)
            if show is not None:
                show(ray.get(population.progress.remote()))
            return status
        if interrupted() and not asked:
            asked = True
            ray.get(population.interrupt.remote())
        if show is not None:
            show(ray.get(population.progress.remote()))
