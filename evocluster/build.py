"""Where the rooms meet: a config becomes objects, and objects a run. A function per product.

plan(config) -> Plan            everything loaded and checked, nothing spent
run(plan, out) -> Result        a new run folder
resume(folder) -> Result        go on with one
optimize(config) -> Result      the Python API
"""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evocluster import config as configs
from evocluster.config import Config
from evocluster.engine.engine import Engine, carry
from evocluster.engine.folder import Folder
from evocluster.engine.runner import LocalRunner, Runner
from evocluster.engine.worker import Worker
from evocluster.errors import BudgetSpent, ConfigError, MissingModel
from evocluster.llm.cached import LocalCache
from evocluster.llm.stack import Stack
from evocluster.records import Example, Genome, Item, Split, canonical, digest
from evocluster.report.result import Result
from evocluster.search.demos import Demos
from evocluster.search.operators import portfolio
from evocluster.search.optimizer import Optimizer
from evocluster.search.space import Space
from evocluster.tasks.dataset import Splits, load_splits, order
from evocluster.tasks.evaluate import Evaluator

Show = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CHANGEABLE = ("budget.", "engine.runner", "engine.workers", "engine.address", "cache.")
"""What a resumed run may change: nothing that would change what has been decided."""
CALLS = ("cot", "constrain")
"""Genes that change how many calls an answer takes."""


@dataclass(frozen=True)
class Plan:
    """A config with its data loaded and checked: all that a run needs, picklable."""

    config: Config
    splits: Splits
    space: Space
    evaluator: Evaluator
    stack: Stack
    start: tuple[Genome, ...]
    warm: tuple[Genome, ...]
    scored: frozenset[str]
    """Ids of train that configurations are scored on; the others are there to become demos."""

    def worker(self) -> Worker:
        """The hands, for this many evaluations at once."""
        operators = portfolio(self.config.search, self.space)
        return Worker(self.space, operators, self.evaluator, self.stack, self.config.engine.in_flight)

    def items(self, split: Split) -> tuple[Item, ...]:
        """What is evaluated of a split, in order."""
        items = self.evaluator.items(split, self.config.seed)
        return tuple(item for item in items if split != "train" or item.example in self.scored)

    def optimizer(self) -> Optimizer:
        """The brain, at its first question."""
        config = self.config
        return Optimizer(
            space=self.space,
            settings=config.search,
            objectives=config.objectives,
            composite=config.composite,
            recommend=config.recommend,
            budget=config.budget,
            items={split: self.items(split) for split in SPLITS},
            start=self.start,
            seed=config.seed,
            in_flight=config.engine.in_flight,
            calls_per_item=self.evaluator.calls_per_item(
                {name: (*self.space.settings.values(name), *(genome[name] for genome in self.start)) for name in CALLS}
            ),
            warm=self.warm,
        )

    def facts(self) -> dict[str, Any]:
        """What run.json says of where the run came from."""
        libraries = ("ray", "litellm", "pymoo", "pydantic", "pyarrow", "numpy", "xllamacpp")
        return {
            "name": self.config.name,
            "seed": self.config.seed,
            "versions": {
                "evocluster": version("evocluster"),
                "python": platform.python_version(),
                **{name: version(name) for name in libraries},
            },
            "models": {name: model.identity for name, model in self.stack.models.items()},
            "examples": {split: len(self.splits.of(split)) for split in SPLITS},
            "data": {split: _fingerprint(self.splits, split) for split in SPLITS},
        }


def _fingerprint(splits: Splits, split: Split) -> str:
    return digest([example.model_dump(mode="json") for example in splits.of(split)])[:16]


def plan(source: Config | str | Path, sets: Sequence[str] = ()) -> Plan:
    """Load and check everything a run needs; nothing is started, nothing spent. Raises: errors.ConfigError."""
    config = source if isinstance(source, Config) else configs.load(Path(source), sets)
    from evocluster.store.arrow import read_parquet

    splits = load_splits(config.task.data, config.root, read_parquet)
    evaluator = Evaluator(config.task, splits, config.root)
    stack = Stack(config.resolved_models(), config.seed)
    labelled = config.task.kind == "classification"
    pool, scored = _dealt(config, splits)
    space = Space(
        config.space,
        pool=[(example.id, canonical(example.expected) if labelled else "") for example in pool],
        models=stack.abilities(),
        label_names=evaluator.label_names(),
        constrain_by="choices" if labelled else "json_schema",
    )
    start = tuple(space.complete(genes) for genes in config.start)
    return Plan(config, splits, space, evaluator, stack, start, _warm(config, space), scored)


def _dealt(config: Config, splits: Splits) -> tuple[tuple[Example, ...], frozenset[str]]:
    """Train dealt into examples that may become demos and ids that configurations are scored on.

    By the data alone, not by the seed, so that demos of an earlier run's front stay demos.
    """
    demos, every = config.space.parts["demos"], frozenset(splits.by_id("train"))
    if not isinstance(demos, Demos) or demos.max == 0 or demos.share == 1:
        return splits.train, every
    ids = order(splits.train, 0)
    count = min(max(1, round(demos.share * len(ids))), len(ids) - 1)
    return tuple(splits.get("train", id) for id in ids[:count]), every - frozenset(ids[:count])


def _warm(config: Config, space: Space) -> tuple[Genome, ...]:
    """The front of an earlier run, brought into this space."""
    if config.warm_start is None:
        return ()
    earlier = Result(config.root / config.warm_start)
    if not earlier.members:
        raise ConfigError(f"warm_start {str(config.warm_start)!r} has no front; name the folder of a finished run")
    return tuple(space.fix(member["genes"]) for member in earlier.members)


def engine(plan: Plan, path: Path, fresh: bool, runner: Runner) -> Engine:
    """The engine of a run folder. Raises: errors.RunExists, errors.RunDamaged, errors.StoreError."""
    optimizer, facts = plan.optimizer(), plan.facts()
    folder = Folder.create(path, configs.dump(plan.config)) if fresh else Folder.open(path)
    if not fresh and (path / "run.json").exists():
        facts["started_at"] = folder.read("run.json").get("started_at")
    facts.setdefault("started_at", datetime.now(UTC).isoformat(timespec="seconds"))
    return Engine(optimizer, runner, folder, minutes=plan.config.budget.minutes, facts=facts)


def run(
    plan: Plan,
    out: Path | None = None,
    *,
    show: Show | None = None,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """A new run, to its end. `out` is the run folder (default: `runs`/`name` of the config).

    Raises: errors.RunExists; whatever ends the run.
    """
    path = (out or Path(plan.config.runs) / plan.config.name).absolute()
    Folder.check_new(path)
    plan.stack.check()
    plan.optimizer()
    say(f"run folder: {path}")
    return _carry_out(plan, path, True, show, interrupted)


def resume(
    path: str | Path,
    runner: str | None = None,
    *,
    sets: Sequence[str] = (),
    show: Show | None = None,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Go on with a run folder; a finished one is returned as it is.

    `sets` may raise the budget while the search is not over, which is kept in the folder, and say where this
    sitting runs (`CHANGEABLE`). Raises: errors.RunDamaged; errors.ConfigError; whatever ends the run.
    """
    path = Path(path).absolute()
    Folder.check_old(path)
    found = plan(path / "config.yaml", [*sets, *([f"engine.runner={runner}"] if runner else [])])
    if sets:
        _change(path, found.config)
    if (path / "run.json").exists() and Result(path).status == "finished":
        say(f"{path} is finished; nothing to do")
        return Result(path)
    return _carry_out(found, path, False, show, interrupted)


def _change(path: Path, config: Config) -> None:
    """Take a raised budget into a run folder. Raises: errors.ConfigError for what would make it another run."""
    old = configs.load(path / "config.yaml")
    before, after = (_flat(one.model_dump(mode="json")) for one in (old, config))
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        if not name.startswith(CHANGEABLE):
            raise ConfigError(
                f"--set {name}={after.get(name)!r}: resume can change only {', '.join(CHANGEABLE)}; "
                "for anything else start a new run (`warm_start:` begins it with this one's front)"
            )
    budget = [name for name in changed if name.startswith("budget.")]
    for name in budget:
        was, now = before.get(name), after.get(name)
        raised = isinstance(was, int | float) and (now is None or now > was)
        if not raised:
            raise ConfigError(f"--set {name}={now!r}: a resumed run's budget can only be raised; it was {was!r}")
    if not budget:
        return
    folder = Folder.open(path)
    try:
        if folder.checked or ((path / "run.json").exists() and folder.read("run.json").get("stops")):
            raise ConfigError(
                f"{str(path)!r}: its search is over, so {budget[0]!r} can no longer be "
                "raised; resume without it, or start a new run with `warm_start:`"
            )
        folder.reconfigure(configs.dump(old.model_copy(update={"budget": config.budget})))
    finally:
        folder.close()


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    """Every value of nested mappings by its dotted name."""
    if not isinstance(data, dict):
        return {name: data}
    return {
        key: value
        for part, inner in data.items()
        for key, value in _flat(inner, f"{name}.{part}" if name else part).items()
    }


def optimize(
    config: Config | str | Path,
    *,
    out: str | Path | None = None,
    runner: str | None = None,
    sets: Sequence[str] = (),
    show: Show | None = None,
) -> Result:
    """Run a config (a path, or what `load_config` returned) to its end; also from a notebook.

    An existing run folder is refused: see errors.RunExists. Raises: errors.EvoclusterError.
    """
    if isinstance(config, Config):
        extra = {"engine": config.engine.model_copy(update={"runner": runner})} if runner else {}
        prepared = plan(config.model_copy(update=extra))
    else:
        prepared = plan(config, [*sets, *([f"engine.runner={runner}"] if runner else [])])
    return run(prepared, Path(out) if out else None, show=show)


def _carry_out(plan: Plan, path: Path, fresh: bool, show: Show | None, interrupted: Callable[[], bool]) -> Result:
    settings = plan.config.engine
    if settings.runner == "local":
        stop = threading.Event()
        asked = partial(_either, interrupted, stop)
        status = _threaded(partial(_run_local, plan, path, fresh, show, asked), stop)
    else:
        status = _run_ray(plan, path, fresh, show, interrupted)
    result = Result(path)
    if status == "finished" and not result.members:
        raise BudgetSpent(
            f"the run ended by {result.run.get('stop_reason')!r} before it had a front; raise `budget:` "
            f"(see calls in {path / 'run.json'})"
        )
    return result


def _run_ray(plan: Plan, path: Path, fresh: bool, show: Show | None, interrupted: Callable[[], bool]) -> str:
    from evocluster.cluster.population import drive
    from evocluster.cluster.runner import Layout

    settings = plan.config.engine
    return drive(
        partial(engine, plan, path, fresh),
        plan.worker(),
        plan.stack,
        plan.config.cache.folder(),
        Layout(settings.in_flight, settings.workers),
        address=settings.address,
        show=show,
        interrupted=interrupted,
        caching=plan.config.cache.enabled,
    )


def _run_local(plan: Plan, path: Path, fresh: bool, show: Show | None, interrupted: Callable[[], bool]) -> str:
    return asyncio.run(_local(plan, path, fresh, show, interrupted))


async def _local(plan: Plan, path: Path, fresh: bool, show: Show | None, interrupted: Callable[[], bool]) -> str:
    from evocluster.store.cache import DiskCache

    settings = plan.config.engine
    count = min(settings.workers or 1, settings.in_flight)
    with ExitStack() as held:
        cache = None
        if plan.config.cache.enabled:
            folder = plan.config.cache.folder()
            disk = DiskCache(folder) if folder else None
            if disk is not None:
                held.callback(disk.close)
            cache = LocalCache(disk)
        shares = [settings.in_flight // count + (index < settings.in_flight % count) for index in range(count)]
        servers: list[Any] = []
        try:
            urls = await _serving(plan.stack, servers)
            workers = [plan.worker().sized(share, plan.stack.attached(urls, count)) for share in shares]
            runner = LocalRunner(workers, cache)
            return await carry(engine(plan, path, fresh, runner), show=show, interrupted=interrupted)
        finally:
            for server in servers:
                await server.stop()


async def _serving(stack: Stack, started: list[Any]) -> dict[str, tuple[str, ...]]:
    """Start the servers of the embedded models here: name -> addresses; `started` gets what has to be stopped."""
    urls: dict[str, tuple[str, ...]] = {}
    for name, model in stack.hosted().items():
        started.append(model)
        urls[name] = await model.start()
    return urls


def _either(interrupted: Callable[[], bool], stop: threading.Event) -> bool:
    return interrupted() or stop.is_set()


def _threaded(work: Callable[[], str], stop: threading.Event) -> str:
    """Run in this thread, or in another one where an event loop is running already (a notebook).

    Interrupted while it waits, it sets `stop` and lets the run save itself before it raises.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    outcome: list[str | BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as failure:  # raised in the caller's thread below
            outcome.append(failure)

    thread = threading.Thread(target=body, name="evocluster-run")
    thread.start()
    try:
        thread.join()
    except BaseException:
        stop.set()
        thread.join()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def embedded_models() -> list[tuple[str, str, Path | None]]:
    """(name, licence, file or None where it is not installed) of every embedded model."""
    from evocluster.llm import weights

    found: list[tuple[str, str, Path | None]] = []
    for name, entry in sorted(weights.KNOWN.items()):
        try:
            found.append((name, entry.licence, weights.find(name)))
        except MissingModel:
            found.append((name, entry.licence, None))
    return found


def install_model(name: str, accept_licence: bool = False, say: Say = print) -> Path:
    """Install the weights of an embedded model; their file. Raises: errors.MissingModel, errors.StoreError."""
    from evocluster.llm import weights

    return weights.install(name, accept_licence=accept_licence, say=say)
