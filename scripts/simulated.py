"""A whole run in one process, one thread and virtual time: the product's own code on a pretended cluster, with faults.

True: Engine, Folder, Table, Lease, Optimizer, Population, RayRunner, Dispatch, Puller, Worker, Stack, Limited, Leases,
LimitsKeeper, Cached, LocalCache, CacheKeeper. Pretended: the clock (virtual), Ray (pretended), the endpoint and the
cache's disk (provider), crashes at the disk (mortal), the driver's loop around its populations, and the user, who
resumes until the run is finished.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import invariants
from faults import Plan
from mortal import Disk, MortalFolder, standing_on
from pretended import Actor, Cluster, RayActorError, RayTaskError, pretending
from provider import ATTEMPT, Attempt, Books, Provider, Shelf, Simulated
from searches import planned
from virtual import PROCESS, Deadlock, Overtime, Process, VirtualLoop, swapped

from evocluster.build import Plan as Product
from evocluster.cluster.cache import LEASE_S, CacheKeeper, RemoteCache
from evocluster.cluster.population import LIVES, POLL_S, Population
from evocluster.cluster.runner import RayRunner
from evocluster.cluster.seats import Layout
from evocluster.engine.engine import Engine
from evocluster.engine.folder import Folder
from evocluster.engine.runner import Runner
from evocluster.engine.worker import Worker
from evocluster.errors import RunHeld
from evocluster.llm.cached import LocalCache
from evocluster.llm.client import LLM
from evocluster.llm.stack import Stack
from evocluster.records import Evaluation, Example, Genome, Item, Proposal, Split, Trial

END_S = 600.0
"""Virtual seconds within which every run must be finished."""
SITTINGS = 40
"""How often the user begins or resumes."""
HEAD = "node-0"


@dataclass
class Outcome:
    """What became of a seed."""

    plan: Plan
    violations: list[str]
    injected: dict[str, int]
    trace: list[str]
    seconds: float
    """Of virtual time."""
    sittings: int
    calls: int
    reissued: int
    given_up: list[int] = field(default_factory=list)
    """Trials whose workers died three times."""
    front: Any = None
    trials: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


class Keeper(CacheKeeper):
    """The cache actor on a shelf that outlives it."""

    def __init__(self, shelf: Shelf, lease_s: float, clock: Callable[[], float]) -> None:
        super().__init__(None, lease_s)
        self._opened = LocalCache(shelf, lease_s, clock)


class Hearing(Population):
    """The population actor, that may be told of results twice."""

    async def handed_in(self, worker: str, trials: Sequence[Trial]) -> None:
        """What came with an earlier message."""
        self._runner.dispatch.finish(worker, trials)


class Watched(Worker):
    """A worker that says for which proposal it calls."""

    books: Books

    def sized(self, slots: int, stack: Any = None) -> Watched:
        """See Worker."""
        return self.of(super().sized(slots, stack), self.books)

    @classmethod
    def of(cls, worker: Worker, books: Books) -> Watched:
        """This worker, watched."""
        made = cls.__new__(cls)
        made.__dict__.update(worker.__dict__)
        made.books = books
        return made

    async def run(self, proposal: Proposal, *rest: Any) -> Trial:
        """See Worker."""
        serial = len(self.books.attempts)
        self.books.attempts.append(Attempt(serial, proposal.number))
        ATTEMPT.set(self.books.attempts[-1])
        return await super().run(proposal, *rest)


class Deadly:
    """An evaluator that one genome kills the process of."""

    def __init__(self, evaluator: Any, genome: str, world: World) -> None:
        self._evaluator = evaluator
        self._genome = genome
        self._world = world

    def example(self, split: Split, id: str, twin: int = 0) -> Example:
        """See engine.worker.Knows."""
        found: Example = self._evaluator.example(split, id, twin)
        return found

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation:
        """See engine.worker.Evaluate."""
        process = PROCESS.get()
        if genome.id == self._genome and process is not None:
            self._world.books.fault("poison", process.name)
            self._world.loop.kill(process)
        record: Evaluation = await self._evaluator.evaluate(item, genome, llm)
        return record


class Durable:
    """An optimizer that hears of no trial that is not on disk."""

    def __init__(self, optimizer: Any, books: Books) -> None:
        self._optimizer = optimizer
        self._books = books

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def tell(self, trial: Trial) -> None:
        """See search.optimizer.Optimizer."""
        if trial.proposal.number not in self._books.kept:
            self._books.wrong(f"durable: trial {trial.proposal.number} is told before it is on disk")
        self._optimizer.tell(trial)


class _Progress:
    """What the driver sees of a population."""

    def __init__(self) -> None:
        self.finished = 0

    async def follow(self, population: Any) -> None:
        """Ask, again and again, until it answers no more."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self.finished = await population.finished.remote()
            except RayActorError:
                return


def _limit(plan: Plan) -> int | None:
    """Calls at once; None where faults excuse more: nobody counts what is under way of those not heard of."""
    if plan.limits_crashes or plan.late_s >= 1:
        return None
    if plan.max_concurrency:
        return plan.max_concurrency
    # Workers that leave or are left over finish what they began.
    moved = plan.node_crashes or plan.population_crashes or plan.cuts or plan.alone
    return None if moved else max(plan.in_flight, plan.workers)


class World:
    """One seed. Call order: construct, `run`."""

    def __init__(self, plan: Plan, folder: Path, engine: type[Engine] = Engine) -> None:
        self.plan = plan
        self.folder = folder / "run"
        self.loop = VirtualLoop(END_S)
        self.books = Books(self.loop)
        self._rng = Random(f"world {plan.seed}")
        self._network = Random(f"network {plan.seed}")
        nodes = {f"node-{index}": 2 for index in range(plan.nodes)}
        self.cluster = Cluster(self.loop, nodes, self, Random(f"cluster {plan.seed}"))
        self.provider = Provider(self.books, plan, _limit(plan), self.cluster.cut_off)
        self.disk = Disk(self.books, plan)
        self.shelf = Shelf(self.books, plan.cache_full)
        self.product: Product = planned(plan.search)
        self.poison = invariants.poisoned(self.reference(), plan) if plan.poison else None
        self._engine = engine
        self._driving = False
        """The driver lives."""
        self._opened: MortalFolder | None = None
        """The run folder, as it was opened last."""
        self.sittings = 0

    def reference(self) -> Outcome:
        """The same search without faults."""
        return quiet(self.plan.quiet)

    # The network, as pretended.Network.

    def delay_s(self, method: str) -> float:
        """How long a message travels."""
        late = self._network.random() < self.plan.late
        if late:
            self.books.injected["late messages"] += 1
        return self._network.uniform(0.0003, 0.002) + (self._network.expovariate(1 / self.plan.late_s) if late else 0)

    def again(self, method: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]] | None:
        """Results that are handed in may arrive twice."""
        if method != "exchange" or not args[1].trials or self._network.random() >= self.plan.doubled:
            return None
        self.books.injected["doubled messages"] += 1
        return "handed_in", (args[0], args[1].trials)

    def died(self, process: Process) -> None:
        """What it was making may have to be made again."""
        self.books.excuse(process)
        self.books.forgotten += process.name.startswith("Keeper.")
        if process.name.startswith("Puller."):
            self.books.dead[process] = None

    # The run.

    def run(self) -> Outcome:
        """Carry the seed out."""
        with pretending(self.cluster), standing_on(self.disk, self.loop.time), self._seldom():
            self._arrange()
            try:
                asyncio.set_event_loop(self.loop)
                self.loop.run_until_complete(self._user())
            except Deadlock as stuck:
                self.books.wrong(f"deadlock: {stuck}")
            except Overtime as late:
                self.books.wrong(f"progress: {late}")
            finally:
                self.cluster.end()
                asyncio.set_event_loop(None)
                self.loop._ready.clear()
                self.loop._scheduled.clear()
                self.loop.close()
        # Who still calls a dead driver is about to be killed with its session.
        mishaps = [text for text in self.loop.mishaps if "Hearing" not in text]
        self.books.violations += [f"mishap: {text}" for text in mishaps]
        outcome = self._outcome()
        if not outcome.violations:
            outcome.violations += invariants.check(self, outcome)
        return outcome

    def _seldom(self) -> AbstractContextManager[object]:
        """Leases are renewed four times less often, but where limits are what it is about."""
        exact = self.plan.stormy or self.plan.max_concurrency
        return swapped({} if exact else {"evocluster.llm.leases.RENEW_S": 1.0})

    def _outcome(self) -> Outcome:
        books = self.books
        made = Outcome(
            plan=self.plan,
            violations=list(books.violations),
            injected=dict(books.injected),
            trace=books.trace,
            seconds=self.loop.time(),
            sittings=self.sittings,
            calls=books.calls,
            reissued=books.reissued,
        )
        if not made.violations:
            made.front, made.run, made.trials = invariants.read(self.folder)
        return made

    async def _user(self) -> None:
        """Run, then resume until it is finished."""
        while self.sittings < SITTINGS:
            self.sittings += 1
            self.cluster.alive = dict.fromkeys(self.cluster.nodes)
            self.books.dead.clear()
            self.books.note(f"sitting {self.sittings}")
            status = await self._sit()
            self.books.note(f"sitting {self.sittings}: {status}")
            self.books.deadliest = max(self.books.deadliest, len(self.books.dead))
            self.cluster.end()
            if status == "finished":
                return
            await asyncio.sleep(1)
        self.books.wrong(f"progress: not finished after {SITTINGS} sittings")

    async def _sit(self) -> str:
        """One sitting, as cluster.population.drive and build.engine make it up."""
        keeper = self.cluster.start(Keeper, HEAD, self.shelf, LEASE_S, self.loop.time, lasting=True)
        models = {"fake": Simulated(self.provider, self.plan.max_concurrency)}
        stack = Stack(models, self.product.config.seed)
        evaluator: Any = self.product.evaluator
        if self.poison is not None:
            evaluator = Deadly(evaluator, self.poison, self)
        plain = self.product.worker()
        worker = Watched.of(Worker(plain._space, plain._operators, evaluator, stack, plain.slots), self.books)
        layout = Layout(self.plan.in_flight, self.plan.workers)
        self._driving, self.disk.killed = True, False
        barren, epoch = 1, 0
        while True:
            epoch += 1
            runner = RayRunner(worker, stack, RemoteCache(keeper), layout, epoch=epoch)
            population = self.cluster.start(Hearing, HEAD, self._make, runner)
            watched = _Progress()
            watching = asyncio.ensure_future(watched.follow(population))
            try:
                status: str = await population.run.remote()
            except RayTaskError as failure:
                return self._excused(failure.cause)
            except RayActorError:
                if not self._driving or (self.disk.killed and not self.plan.alone):
                    return "driver died"
                barren = 1 if watched.finished else barren + 1
                if barren > LIVES:
                    return "ended: populations die"
                self.books.note(f"population {epoch} died")
            else:
                return status
            finally:
                if not self.loop.is_closed():
                    watching.cancel()
                    self.cluster.kill(population)

    def _make(self, runner: Runner) -> Engine:
        fresh = not (self.folder / "config.yaml").exists()
        folder: Any = MortalFolder.create(self.folder, "") if fresh else MortalFolder.open(self.folder)
        folder.of(self.books, self.loop.time)
        optimizer: Any = Durable(self.product.optimizer(), self.books)
        engine = self._engine(optimizer, runner, folder, facts={"seed": self.plan.seed}, clock=self.loop.time)
        process = PROCESS.get()
        assert process is not None
        self._opened = folder
        # Nobody reads what the dead would still have written.
        process.deaths.append(lambda: engine.__dict__.update(_write_front=lambda: None, _write_status=lambda *_: None))
        return engine

    def _excused(self, failure: Exception) -> str:
        """A sitting that ended by an error the faults account for; any other is a violation."""
        name, text = type(failure).__name__, str(failure)
        injected = self.books.injected
        known = {
            "StoreError": injected["disk full"] or injected["cache full"],
            "RayActorError": injected["cache crash"],
            "ModelError": self.plan.lossy or self.plan.dead,
            "EvoclusterError": injected["cache crash"] or self.plan.lossy or self.plan.dead or "processes died" in text,
        }
        if not known.get(name):
            self.books.wrong(f"ended: {name}: {text.replace(str(self.folder), 'run')}")
        return f"ended by {name}: {text.replace(str(self.folder), 'run')[:200]}"

    # Faults by the clock.

    def _arrange(self) -> None:
        plan, later = self.plan, self.loop.later
        for kind, times, what in (
            ("worker crash", plan.worker_crashes, self._crash("Puller")),
            ("driver crash", plan.driver_crashes, self._crash_driver),
            ("population crash", plan.population_crashes, self._crash("Hearing")),
            ("cache crash", plan.cache_crashes, self._crash("Keeper")),
            ("limits crash", plan.limits_crashes, self._crash("LimitsKeeper")),
            ("node crash", plan.node_crashes, self._lose_node),
            ("interrupt", plan.interrupts, self._interrupt),
            ("second driver", plan.intruders, self._intrude),
        ):
            for at in times:
                later(at, what, kind)
        for at, seconds in plan.cuts:
            later(at, self._cut, seconds)
        for step in plan.driver_steps:
            die = self._crash("Hearing") if plan.alone else self._crash_driver
            self.loop.at_step[step] = partial(die, "driver crash at a step")

    def _pick(self, kind: str) -> Actor | None:
        living = [one for one in self.cluster.living(kind) if one.process not in self.cluster.cut_off]
        return self._rng.choice(living) if living else None

    def _crash(self, victim: str) -> Callable[[str], None]:
        def crash(kind: str) -> None:
            actor = self._pick(victim)
            if actor is not None:
                self.books.fault(kind, actor.process.name)
                self.loop.kill(actor.process)

        return crash

    def _crash_driver(self, kind: str) -> None:
        # Its population dies with it, and its session when it comes to light.
        self._driving = not self.cluster.living("Hearing")
        self._crash("Hearing")(kind)

    def _lose_node(self, kind: str) -> None:
        others = [name for name in self.cluster.alive if name != HEAD]
        if others:
            node = self._rng.choice(others)
            self.books.fault(kind, node)
            self.cluster.lose(node)

    def _interrupt(self, kind: str) -> None:
        actor = self._pick("Hearing")
        if actor is not None:
            self.books.fault(kind)
            actor.interrupt.remote()

    def _intrude(self, kind: str) -> None:
        if self._opened is None or not self._opened.is_held:
            return
        self.books.fault(kind)
        try:
            Folder.open(self.folder).close()
        except RunHeld:
            return
        self.books.wrong("intruder: a second driver could open the run folder")

    def _cut(self, seconds: float) -> None:
        actor = self._pick("Puller")
        if actor is not None:
            self.books.fault("cut off", f"{actor.process.name} for {seconds:g} s")
            self.cluster.cut(actor, seconds)


@cache
def quiet(plan: Plan) -> Outcome:
    """A run without faults, made once."""
    outcome = simulate(plan)
    if outcome.violations:
        raise AssertionError(f"the fault-free run of search {plan.search} fails: {outcome.violations}")
    outcome.trace.clear()
    return outcome


def simulate(plan: Plan, engine: type[Engine] = Engine) -> Outcome:
    """What becomes of this plan."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, ignore_cleanup_errors=True) as name:
        try:
            return World(plan, Path(name), engine).run()
        finally:
            shutil.rmtree(Path(name) / "run", ignore_errors=True)
