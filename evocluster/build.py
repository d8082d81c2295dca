"""Where the rooms meet: a config becomes objects, and objects a run. A function per product.

plan(config) -> Plan            everything loaded and checked, nothing spent
run(plan, out) -> Result        a new run folder
resume(folder) -> Result        go on with one
optimize(config) -> Result      the Python API
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from evocluster import config as configs
from evocluster.address import at_hand, begun, found, placed, whose, within
from evocluster.config import Config
from evocluster.engine.aside import aside
from evocluster.engine.engine import Engine
from evocluster.engine.folder import Folder
from evocluster.engine.forecast import forecast
from evocluster.engine.runner import Runner
from evocluster.engine.shipped import check_new, create_folder, open_folder
from evocluster.engine.worker import Meter, Worker
from evocluster.errors import BudgetSpent, ConfigError, MissingModel, ModelError
from evocluster.llm.client import LLM
from evocluster.llm.portable import Portable, call
from evocluster.llm.prices import Price
from evocluster.llm.stack import Stack
from evocluster.records import Evaluation, Genome, Item, Split, canonical, digest
from evocluster.report.chosen import chosen, repairs, unchanged
from evocluster.report.result import Result
from evocluster.running import asked, carry_out
from evocluster.search.across import Tasks
from evocluster.search.demos import Demos
from evocluster.search.optimizer import Optimizer
from evocluster.search.portfolio import portfolio
from evocluster.search.space import Space
from evocluster.store.place import is_uri
from evocluster.store.sums import read_sealed
from evocluster.tasks.code import extend_path
from evocluster.tasks.dataset import Splits, load_splits
from evocluster.tasks.evaluate import Evaluator
from evocluster.tasks.execution import Execution
from evocluster.tasks.grading import Grader
from evocluster.tasks.handover import handed_over
from evocluster.tasks.similar import deal, near
from evocluster.tasks.suite import Suite, marked, one_of, task_of
from evocluster.telemetry import Run as Told
from evocluster.telemetry import tell, telling
from evocluster.trust import admit, files, specs

Show = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CALLS = ("cot", "constrain", "use_consensus")
"""Genes that change how many calls an answer takes."""
BOUND_BY: Mapping[str, Literal["choices", "json_schema"]] = {"classification": "choices", "extraction": "json_schema"}
"""What a model must be able to do where the gene `constrain` bounds its output."""


@dataclass(frozen=True)
class Plan:
    """A config with its data loaded and checked: all that a run needs, picklable."""

    config: Config
    splits: Splits
    space: Space
    evaluator: Evaluator | Suite
    stack: Stack
    start: tuple[Genome, ...]
    warm: tuple[Genome, ...]
    scored: frozenset[str]
    """Ids of train that configurations are scored on; the others are there to become demos."""
    allowed: bool = False
    """Its code or calls were trusted because `allow_code` said so."""

    def worker(self, told: Told = Told()) -> Worker:  # noqa: B008 - frozen
        """The hands, for this many evaluations at once; `told`: what they know of the run."""
        operators = portfolio(self.config.search, self.space)
        return Worker(self.space, operators, self.evaluator, self.stack, self.config.engine.in_flight, told)

    def at_once(self) -> int:
        """How many evaluations can be under way, as far as the config tells."""
        names = self.space.settings.values("model") or tuple(self.stack.models)
        most = sum(self.stack.at_once(name) or self.config.engine.in_flight for name in names)
        return max(1, min(self.config.engine.in_flight, most))

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
                {
                    name: (*self.space.settings.ends(name), *(g[name] for g in self.start if name in g.genes))
                    for name in CALLS
                }
            ),
            warm=self.warm,
            tasks=partial(Tasks.among, task_of=task_of, how=config.across) if config.tasks else None,
            constraints=config.constraints,
            twice=max(model.hedge for model in self.stack.models.values()),
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
            **{
                kind: {configs.unmoved(source): found for source, found in named.items()}
                for kind, named in self.evaluator.sources().items()
            },
            **({"code_files": found, "allow_code": self.allowed} if (found := files(self.config)) else {}),
        }


def _fingerprint(splits: Splits, split: Split) -> str:
    return digest([example.model_dump(mode="json") for example in splits.of(split)])[:16]


def plan(source: Config | str | Path, sets: Sequence[str] = (), *, allow_code: bool = False, **trust: bool) -> Plan:
    """Load and check everything a run needs; nothing is started, nothing spent. Raises: errors.ConfigError.

    `allow_code` and `trust`: see trust.admit.
    """
    config = source if isinstance(source, Config) else configs.load(Path(source), sets)
    allowed = admit(config, allow_code=allow_code, **trust)
    from evocluster.store.arrow import read_parquet

    loaded = {name: load_splits(task.data, config.root, read_parquet) for name, task in config.every.items()}
    evaluator = _evaluator(config, loaded)
    splits = evaluator.splits
    stack = Stack(config.resolved_models(), config.seed)
    share = _share(config)
    dealt = [deal(marked(name, part) if name else part, share) for name, part in loaded.items()]
    pool = [
        (example.id, name + canonical(example.expected) if task.kind == "classification" else name)
        for (name, task), part in zip(config.every.items(), dealt, strict=True)
        for example in part.pool
    ]
    kinds = {task.kind for task in config.every.values()}
    space = Space(
        config.space,
        pool=pool,
        models=stack.abilities(),
        label_names=evaluator.label_names(),
        constrain_by=tuple(BOUND_BY[kind] for kind in sorted(kinds) if kind in BOUND_BY),
        near=near(dealt) if share is not None and config.search.selection != "steady" else {},
    )
    for task in config.every.values():
        for part in (*task.scorers, *task.safety):
            if isinstance(part, Grader):
                part.check(stack.abilities()[part.model])
    start = tuple(space.complete(genes) for genes in config.start)
    scored = frozenset(example.id for part in dealt for example in part.scored)
    return Plan(config, splits, space, evaluator, stack, start, _warm(config, space), scored, allowed)


def _evaluator(config: Config, loaded: Mapping[str, Splits]) -> Evaluator | Suite:
    """What evaluates: one task, or several as one. Raises: errors.ConfigError."""
    path = config.python_path if specs(config) else ()
    if config.task is not None:
        return Evaluator(config.task, loaded[""], config.root, path)
    return Suite(
        {
            name: Evaluator(task.sharing(name), marked(name, loaded[name]), config.root, path)
            for name, task in config.tasks.items()
        }
    )


def _share(config: Config) -> float | None:
    """Of train that goes into the demo pool; None where demos are not free."""
    demos = config.space.parts["demos"]
    return demos.share if isinstance(demos, Demos) and demos.max else None


def _warm(config: Config, space: Space) -> tuple[Genome, ...]:
    """The front of an earlier run, brought into this space."""
    if config.warm_start is None:
        return ()
    earlier = found(config.warm_start if is_uri(config.warm_start) else config.root / config.warm_start)
    if not earlier.members:
        raise ConfigError(f"warm_start {config.warm_start!r} has no front; name the folder of a finished run")
    return tuple(space.fix(member["genes"]) for member in earlier.members)


def engine(
    plan: Plan,
    where: Path | str,
    fresh: bool,
    runner: Runner,
    told: Told = Told(),  # noqa: B008 - frozen
) -> Engine:
    """The engine of a run. Raises: errors.RunExists, errors.RunDamaged, errors.RunHeld, errors.StoreError."""
    optimizer, facts = plan.optimizer(), {**plan.facts(), "run_id": told.id}
    folder = create_folder(where, configs.dump(plan.config)) if fresh else open_folder(where)
    try:
        earlier = folder.unchanged(facts) if not fresh and (folder.path / "run.json").exists() else {}
        facts["started_at"] = earlier.get("started_at")
        now = {name: price.model_dump() for name, price in plan.stack.prices().items()}
        facts["prices"] = earlier.get("prices") or now
        folder.keep_examples({split: plan.splits.of(split) for split in SPLITS})
    except BaseException:
        folder.close()
        raise
    tell(told)
    facts["started_at"] = facts["started_at"] or datetime.now(UTC).isoformat(timespec="seconds")
    return Engine(optimizer, runner, folder, minutes=plan.config.budget.minutes, facts=facts)


def engine_again(
    plan: Plan,
    where: Path | str,
    runner: Runner,
    told: Told = Told(),  # noqa: B008 - frozen
) -> Engine:
    """The engine of a run whose first writer died, perhaps before there was a run. Raises: as `engine`."""
    return engine(plan, where, not begun(where), runner, told)


def run(
    plan: Plan,
    out: Path | str | None = None,
    *,
    show: Show | None = None,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """A new run, to its end. `out`: the run folder, or a URI of object storage (default: `runs`/`name` of the config).

    Raises: errors.RunExists; whatever ends the run.
    """
    where = placed(out) if out else within(plan.config.runs, plan.config.name)
    check_new(where)
    plan.stack.check()
    plan.optimizer()
    say(f"run folder: {where}")
    return _carry_out(plan, where, True, show, interrupted)


def resume(
    path: str | Path,
    runner: str | None = None,
    *,
    sets: Sequence[str] = (),
    allow_code: bool = False,
    files: Path | None = None,
    show: Show | None = None,
    say: Say = lambda text: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Go on with a run folder; a finished one is returned as it is.

    `sets` may raise the budget while the search is not over, and change how hard models are pushed, both of which are
    kept in the folder, and say where this sitting runs (`config.CHANGEABLE`, `PACING`). `files`: where the package of
    a submitted run is unpacked now.
    Raises: errors.RunDamaged; errors.ConfigError; whatever ends the run.
    """
    where = placed(path)
    with at_hand(where) as here:
        Folder.check_old(here)
        changes = [*sets, *([f"engine.runner={runner}"] if runner else [])]
        config = configs.load(here / "config.yaml", changes)
        there = configs.moved(config, files.absolute()) if files is not None else config
        planned = plan(there, allow_code=allow_code, stranger=True)
        if sets:
            _change(where, configs.load(here / "config.yaml"), config)
        if (here / "run.json").exists() and Result(here).status == "finished":
            Folder.check(here)
            say(f"{where} is finished; nothing to do")
            return found(where)
        planned = _at_its_prices(planned, here)
    return _carry_out(planned, where, False, show, interrupted)


def _at_its_prices(plan: Plan, path: Path) -> Plan:
    """The plan at the prices that its run began with: a list that changed since changes nothing in it."""
    if not (path / "run.json").exists():
        return plan
    told = read_sealed(path / "run.json").get("prices") or {}
    prices = {name: Price(**price) for name, price in told.items()}
    return replace(plan, stack=plan.stack.priced(prices))


def _change(where: Path | str, old: Config, config: Config) -> None:
    """Take a raised budget and other limits of models into a run.

    Raises: errors.ConfigError for what would make it another run.
    """
    budget = configs.raised(old, config)
    if not budget and old.models == config.models:
        return
    folder = open_folder(where)
    path = folder.path
    try:
        run = folder.read("run.json") if (path / "run.json").exists() else {}
        over = "its search is over" if folder.checked or run.get("stops") else ""
        if budget and (over or run.get("exploring") is False):
            raise ConfigError(
                f"{folder.address!r}: {over or 'half of its budget ended exploring'}, so {budget[0]!r} can no longer "
                "be raised; resume without it, or start a new run with `warm_start:`"
            )
        if run.get("status") != "finished":
            folder.reconfigure(configs.dump(old.model_copy(update={"budget": config.budget, "models": config.models})))
    finally:
        folder.close()


def optimize(
    config: Config | str | Path,
    *,
    out: str | Path | None = None,
    runner: str | None = None,
    sets: Sequence[str] = (),
    allow_code: bool = False,
    show: Show | None = None,
) -> Result:
    """Run a config (a path, or what `load_config` returned) to its end; also from a notebook.

    `allow_code`: also Python from outside the config's folder.
    An existing run folder is refused: see errors.RunExists. Raises: errors.EvoclusterError.
    """
    if isinstance(config, Config):
        extra = {"engine": config.engine.model_copy(update={"runner": runner})} if runner else {}
        prepared = plan(config.model_copy(update=extra), allow_code=allow_code)
    else:
        changes = [*sets, *([f"engine.runner={runner}"] if runner else [])]
        prepared = plan(config, changes, allow_code=allow_code)
    return run(prepared, out, show=show)


def _carry_out(
    plan: Plan, where: Path | str, fresh: bool, show: Show | None, interrupted: Callable[[], bool]
) -> Result:
    aside(lambda: asyncio.run(plan.evaluator.prepare()))
    told = whose(where)
    make = partial(engine, plan, where, fresh, told=told)
    again = partial(engine_again, plan, where, told=told)
    worker, stack, config = plan.worker(told), plan.stack, plan.config
    with telling(told):
        status = carry_out(make, worker, stack, config, again=again, show=show, interrupted=interrupted)
    result = found(where)
    if status == "finished" and not result.members:
        raise BudgetSpent(result.frontless)
    return result


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


def judge_check(
    source: Config | str | Path,
    labels: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    allow_code: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """How far a judge agrees with labelled answers, as JSON data: tasks.audit.Audit and its `spend`.

    `how`: scorer, limit, repeats, pass_at, see tasks.audit.Check. Raises: errors.ConfigError, errors.ModelError.
    """
    from evocluster.store.arrow import read_parquet
    from evocluster.tasks.audit import Check

    config = source if isinstance(source, Config) else configs.load(Path(source), sets)
    admit(config, allow_code=allow_code)
    extend_path(config.python_path)
    check = Check(list(config.every.values()), labels=Path(labels) if labels is not None else None, **how)
    models = config.resolved_models()
    check.prepare(Stack(models).abilities(), read_parquet)
    stack = Stack({check.judge.model: models[check.judge.model]}, config.seed)

    async def ask(llm: LLM) -> dict[str, Any]:
        meter = Meter(llm)
        found = await check.run(meter, config.seed)
        return {**found.model_dump(mode="json"), "spend": meter.usage.model_dump()}

    return asked(config, stack, ask)


def check(plan: Plan) -> dict[str, Any]:
    """One example through the starting configuration, and what the run would take, as JSON data.

    Raises: errors.ConfigError for what is missing or too small, errors.ModelError when a model cannot be used.
    """
    plan.stack.check()
    optimizer, genome, item = plan.optimizer(), plan.start[0], plan.items("train")[0]

    async def one(llm: LLM) -> tuple[Evaluation, Execution]:
        await plan.evaluator.prepare()
        return await plan.evaluator.attempt(item, genome, llm)

    evaluation, execution = asked(plan.config, plan.stack, one)
    if evaluation.error and evaluation.error.startswith("model"):
        raise ModelError(f"the starting configuration on {item.example!r}: {evaluation.error}")
    took = evaluation.usage + evaluation.judging
    found = forecast(optimizer, plan.space.sample, took, plan.at_once(), plan.config.budget.minutes)
    return {
        "example": plan.evaluator.example(item.split, item.example).model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "steps": [step.model_dump() for step in execution.trace],
        "forecast": found._asdict(),
        "at_once": plan.at_once(),
        "examples": {split: len(plan.splits.of(split)) for split in SPLITS},
        "free": {name: list(plan.space.settings.values(name)) for name in plan.space.free},
        "budget": plan.config.budget.model_dump(exclude_none=True),
    }


def exported(
    folder: str | Path,
    genome: str = "recommended",
    task: str | None = None,
    *,
    tests: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """A configuration of a run as it leaves evocluster, as JSON data (see tasks.export, tasks.handover).

    `tests`: with what retrieval shows for the test examples. Raises: errors.ConfigError, errors.RunDamaged.
    """
    result = found(folder)
    member = chosen(result, genome, task)
    planned = plan(result.path / "config.yaml", allow_code=allow_code, stranger=True, calls=False)
    facts = planned.facts()
    unchanged(result, facts)
    models = {name: Portable(name, model) for name, model in planned.config.resolved_models().items()}
    of, wire = one_of(planned.evaluator, task), partial(call, models)
    made = aside(lambda: asyncio.run(handed_over(of, Genome(genes=member["genes"]), wire, tests)))
    asked = (made["winner"] or {}).get("calls") or {}
    return {
        "format": "evocluster-export-1",
        "run": {
            "name": planned.config.name,
            "task": task,
            **{key: facts[key] for key in ("versions", "models", "data")},
        },
        **member,
        **made,
        "endpoints": {name: models[name].endpoint for name in asked},
        "used": repairs(result, member["genome"]),
    }
