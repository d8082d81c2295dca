"""The population actor: owns the search state, the engine's loop and the run folder; and the driver that watches it.

The engine inside is the same object that runs in-process; only its Runner differs. The actor sits on the driver's node,
where the run folder is, and dies with the driver: what was kept is kept, `resume` goes on. When the actor alone dies,
its workers die with it (Ray ends what a dead process owns), and the driver starts another on the same folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evocluster.cluster import cache as caches
from evocluster.cluster.cache import RemoteCache
from evocluster.cluster.demand import ask_ray
from evocluster.cluster.dispatch import Orders, Report
from evocluster.cluster.metrics import Gauges, beating, state
from evocluster.cluster.nodes import placed
from evocluster.cluster.runner import RayRunner
from evocluster.cluster.seats import Layout
from evocluster.cluster.session import session
from evocluster.engine.engine import Engine
from evocluster.engine.garbage import settle
from evocluster.engine.runner import Runner
from evocluster.engine.worker import Worker
from evocluster.errors import EvoclusterError
from evocluster.llm.stack import Stack
from evocluster.telemetry import log

POLL_S = 0.5
LIVES = 5
"""Population actors in a row that may die without a trial kept by them before the run ends."""

Make = Callable[[Runner], Engine]
Show = Callable[[dict[str, Any]], None]


class Population:
    """A plain class made an actor by `drive`. Call order: construct, `run`; workers pull and finish meanwhile."""

    def __init__(self, make: Make, runner: RayRunner) -> None:
        self._make = make
        self._runner = runner
        self._engine: Engine | None = None
        self._interrupted = False

    async def run(self) -> str:
        """Replay what is kept, then carry on to the end; 'finished' or 'interrupted'."""
        self._engine = self._make(self._runner)
        if self._interrupted:
            self._engine.interrupt()
        self._engine.replay(self._runner.dispatch.recall)
        settle()
        beat = beating(Gauges(self._engine.run_id, lambda: state(self.told(), self._runner.dispatch.queued)))
        try:
            return await self._engine.run()
        finally:
            beat.cancel()

    async def exchange(self, worker: str, report: Report) -> Orders | None:
        """See cluster.puller.Source."""
        return await self._runner.dispatch.exchange(worker, report)

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

    async def finished(self) -> int:
        """Trials that this actor's workers handed in."""
        return self._runner.dispatch.finished


def drive(
    make: Make,
    worker: Worker,
    stack: Stack,
    cache: Path | None,
    layout: Layout,
    *,
    again: Make | None = None,
    address: str | None = None,
    show: Show | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    caching: bool = True,
) -> str:
    """Run to the end on Ray; returns 'finished' or 'interrupted'.

    `again` makes the engine anew on what `make` left when the population actor died (default: `make`). `show` gets the
    progress twice a second; `interrupted` is asked as often. `caching` with `cache` None keeps completions in the
    actor's memory. Raises: whatever ends the run, as itself.
    """
    with session(address):
        import ray

        here = ray.get_runtime_context().get_node_id()
        keeper: RemoteCache | None = None
        try:
            keeper = caches.start(cache, here) if caching else None
            lives = _Lives(worker, stack, keeper, layout, here)
            return lives.live(make, again or make, _Watch(show, interrupted))
        except ray.exceptions.RayTaskError as failure:
            raise failure.cause from None
        finally:
            if keeper is not None:
                keeper.stop()


class _Watch:
    """The driver's eye on one population actor after the other."""

    def __init__(self, show: Show | None, interrupted: Callable[[], bool]) -> None:
        self._show = show
        self._interrupted = interrupted
        self.finished = 0
        """Trials that the actor watched now had handed in when it was last asked."""

    def over(self, population: Any) -> str:
        """Run it to its end. Raises: RayActorError when it dies; what ends the run."""
        import ray

        self.finished = 0
        asked = False
        running = population.run.remote()
        while True:
            ready, _ = ray.wait([running], timeout=POLL_S)
            if self._interrupted() and not asked and not ready:
                asked = True
                ray.get(population.interrupt.remote())
            if ready:
                status: str = ray.get(running)
            if self._show is not None:
                self._show(ray.get(population.progress.remote()))
            if ready:
                return status
            self.finished = ray.get(population.finished.remote())


class _Lives:
    """Population actors, one after the other, on one run folder."""

    def __init__(self, worker: Worker, stack: Stack, cache: RemoteCache | None, layout: Layout, node: str) -> None:
        self._of = (worker, stack, cache, layout)
        self._node = node

    def live(self, make: Make, again: Make, watch: _Watch) -> str:
        """To the end of the run. Raises: EvoclusterError when they die and nothing comes of it."""
        import ray

        epoch = barren = 1
        while True:
            runner = RayRunner(*self._of, epoch=epoch)
            actor = placed(Population, self._node, max_concurrency=10_000)
            population: Any = actor.remote(make if epoch == 1 else again, runner)
            try:
                return watch.over(population)
            except ray.exceptions.RayActorError as death:
                barren = 1 if watch.finished else barren + 1
                if barren > LIVES:
                    raise EvoclusterError(
                        f"{LIVES} processes that carried the run died one after the other, the last: {death}; what was "
                        "kept is safe, go on with: evocluster resume"
                    ) from death
                log.warning("the process that carried the run died (%s); another goes on", str(death).splitlines()[0])
                epoch += 1
            finally:
                # In a session that was there before, nothing else would end it.
                ray.kill(population)
                ask_ray(0)
