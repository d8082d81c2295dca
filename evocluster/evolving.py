"""A candidate from recorded traffic: the offline engine, on what a deployment was really asked.

    evolved(deployment, current, dealt, layer, folder) -> Candidate

The config of the deployment is taken as it is; its data are the drawn examples and its start is what serves. Of the
layer `prompt` every strategic gene is frozen at what serves; the layer `strategy` is a space of its own, answered by
what serves (online/strategy.py). So what the search finds differs in this layer alone. Part of the wiring.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evocluster import build
from evocluster import config as configs
from evocluster.config import Config
from evocluster.deploying import Deployed
from evocluster.errors import ConfigError
from evocluster.online import strategy, traffic
from evocluster.online.erasure import CACHE, EXAMPLES
from evocluster.online.traffic import Dealt
from evocluster.records import Example, Genome, Json
from evocluster.release.snapshot import STRATEGIC, Layer, Snapshot
from evocluster.report.result import Result
from evocluster.tasks.program import Program
from evocluster.tasks.task import Task

NOTHING = "nothing better than what serves was found"
FINALISTS = 3
"""Members that are checked, besides what serves, at most."""
CHECKED = 0.4
"""Share of the budget that checking them on validation and test may take; the examples are as many as fit."""


@dataclass(frozen=True)
class Candidate:
    """What an evolution brought."""

    snapshot: Snapshot | None
    """None: nothing that is better."""
    reason: str
    run: str
    """The run folder."""
    gain: float | None = None
    """Quality above what serves, on the most honest split there was."""
    front: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the table `variants`, without deployment and time."""


def evolved(
    deployment: Deployed,
    current: Snapshot,
    dealt: Dealt,
    layer: Layer,
    folder: Path,
    *,
    allow_code: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Candidate:
    """Search this layer on these examples; `folder`: of the run, gone on with where it is there.

    Raises: errors.ConfigError, errors.ModelError; errors.BudgetSpent where the budget was too small for a front.
    """
    beside = folder.parent / f"{folder.name}{EXAMPLES}"
    if layer == "prompt":
        dealt = _with_shown(dealt, current)
    data: dict[str, Any] = copy.deepcopy(configs.resolved(deployment.config))
    data["search"]["finalists"] = min(FINALISTS, data["search"]["finalists"])
    dealt = _fitting(dealt, deployment, data["search"]["finalists"], _calls(deployment.task, data["space"], layer))
    data["task"]["data"] = {split: str(path) for split, path in traffic.write(beside, dealt).items()}
    data["task"]["data"]["allow_overlap"] = True
    data["name"] = folder.name
    data["warm_start"] = None
    # Replies may quote what callers said: they stand beside the run, and go with it when it is erased.
    data["cache"] = {**data["cache"], "path": str(folder.parent / f"{folder.name}{CACHE}")}
    rules = deployment.settings.evolution
    data["budget"] = {"calls": rules.calls, "usd": rules.usd}
    genes = _strategic(deployment, current, dealt, beside) if layer == "strategy" else _told(data, current)
    data |= {"space": genes[0], "start": [genes[1]]}
    if layer == "strategy":
        calls = strategy.most_calls(deployment.task, genes[0])
        data["task"]["executor"] = {"function": strategy.EXECUTOR, "calls": calls}
    config = configs.parse(data, deployment.config.root, f"evolution of {deployment.name}")
    # The pipeline of the strategy layer is ours; the deployment's own code was admitted when it was loaded.
    trusted = allow_code or layer == "strategy"
    result = _carried_out(config, folder, trusted, interrupted)
    return _read(result, current, dealt, layer)


def _carried_out(config: Config, folder: Path, trusted: bool, interrupted: Callable[[], bool]) -> Result:
    if (folder / "config.yaml").exists():
        return build.resume(folder, allow_code=trusted, interrupted=interrupted)
    return build.run(build.plan(config, allow_code=trusted), folder, interrupted=interrupted)


def _with_shown(dealt: Dealt, current: Snapshot) -> Dealt:
    """What serves shows its own examples, which therefore are among train."""
    known = {example.id for split in ("train", "validation", "test") for example in dealt.of(split)}
    shown = tuple(example for example in current.prompt.examples if example.id not in known)
    return dealt._replace(train=(*dealt.train, *shown))


def _calls(task: Task, space: Mapping[str, Json], layer: Layer) -> int:
    """The most model calls of one example."""
    if layer == "strategy" or task.executor is not None:
        return strategy.most_calls(task, space) if layer == "strategy" else task.executor.calls if task.executor else 1
    asked = {gene: space.get(gene, default) for gene, default in (("cot", False), ("constrain", False))}
    asked["use_consensus"] = space.get("use_consensus", 1)
    return Program(task, {}).calls_per_item({k: v if isinstance(v, list) else [v] for k, v in asked.items()})


def _fitting(dealt: Dealt, deployment: Deployed, finalists: int, calls: int) -> Dealt:
    """As many examples of validation and test as the budget can check the finalists on, spread over what there is."""
    twins = deployment.task.twins
    each = calls * (1 + (twins.share * twins.count if twins else 0))
    most = max(1, int(CHECKED * deployment.settings.evolution.calls / (each * (finalists + 3))))
    return dealt._replace(validation=_spread(dealt.validation, most), test=_spread(dealt.test, most))


def _spread(examples: tuple[Example, ...], most: int) -> tuple[Example, ...]:
    step = max(1.0, len(examples) / most)
    return tuple(examples[int(at * step)] for at in range(min(most, len(examples))))


def _told(data: Mapping[str, Any], current: Snapshot) -> tuple[dict[str, Json], dict[str, Json]]:
    """Space and start of the prompt layer: the deployment's space, what is strategic frozen at what serves."""
    genes: dict[str, Json] = json.loads(current.genome().model_dump_json())["genes"]
    frozen = {gene: value for gene, value in genes.items() if gene in STRATEGIC}
    # A list stands in a list, since alone it would be a choice.
    told = {gene: [value] if isinstance(value, list) else value for gene, value in frozen.items()}
    known = {gene: value for gene, value in data["space"].items() if gene in genes or gene not in STRATEGIC}
    return {**known, **told}, genes


def _strategic(
    deployment: Deployed, current: Snapshot, dealt: Dealt, folder: Path
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Space and start of the strategy layer."""
    shape = deployment.facts.get("shape") or {}
    work = strategy.Work.of(deployment.task, current, tuple(shape.get("fields") or ()))
    path = str(strategy.write_work(folder / "work.json", work))
    intents = sorted({str(one.meta.get("intent") or "") for one in dealt.train} - {""})
    models = list(deployment.config.models)
    serving = current.strategy
    space = strategy.genes_of(serving, models, intents)
    if all(not isinstance(values, list) or len(values) < 2 for values in space.values()):
        raise ConfigError(f"deployment {deployment.name!r} has one strategy only: one model, nothing to choose")
    return {**space, strategy.WORK: path}, {**strategy.start_of(serving, models, intents), strategy.WORK: path}


def _read(result: Result, current: Snapshot, dealt: Dealt, layer: Layer) -> Candidate:
    """The recommended configuration as a snapshot, if it is another one than what serves."""
    recommended, address = result.recommended, str(result.address)
    front = [
        {
            "genome": member["genome"],
            "generation": member.get("generation", 0),
            "parent": next(iter(member.get("parents") or ()), ""),
            "operator": member.get("operator", ""),
            "fitness": {split: member[split] for split in ("train", "validation", "test") if member.get(split)},
            "run": address,
        }
        for member in result.members
    ]
    if recommended is None:
        return Candidate(None, f"the run ended with status {result.status!r} and no front", address, None, front)
    if result.start is not None and recommended["genome"] == result.start["genome"]:
        return Candidate(None, NOTHING, address, None, front)
    if layer == "strategy":
        made = current.changed(strategy=strategy.strategy_of(recommended["genes"], current.strategy))
    else:
        pool = {example.id: example for example in (*dealt.train, *current.prompt.examples)}
        told = Snapshot.of(Genome(genes=recommended["genes"]), pool).prompt
        made = current.changed(prompt=told)
    if made.id == current.id:
        return Candidate(None, NOTHING, address, None, front)
    return Candidate(made, f"recommended by {address}", address, _gain(result), front)


def _gain(result: Result) -> float | None:
    """Quality of the recommended above the start's, on the most honest split there is."""
    for split in ("test", "validation", "train"):
        told = [(one or {}).get(split) for one in (result.recommended, result.start)]
        if all(one and "quality" in one for one in told):
            best, start = (_mean((one or {})["quality"]) for one in told)
            return best - start
    return None


def _mean(value: Any) -> float:
    return float(value["value"] if isinstance(value, Mapping) else value)
