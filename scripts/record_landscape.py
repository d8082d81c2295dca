"""Records a landscape: a full grid of configurations, every one on every example, by the embedded model.

An hour or more a task and name of labels. Resumable: one line of JSON a configuration, {"config", "genes", "rows"};
rows are [split, example, twin, quality, validator, schema_ok, failed, milliseconds, prompt and completion tokens].
`convert` makes the Parquet of landscape.py out of such lines, whole or not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import landscape
import numpy as np

from evocluster import build
from evocluster.build import Plan
from evocluster.errors import ConfigError, RunDamaged
from evocluster.llm.client import LLM
from evocluster.records import Evaluation, Genome, Item, canonical
from evocluster.store.files import write_atomic
from evocluster.tasks.dataset import order

ROUNDS = (("r1a", 1), ("r1b", 1), ("r1c", 1), ("r2a", 2), ("r2b", 2), ("r3a", 3))
"""Named sets of demos: so many of every group."""
FEW = 4
"""Demos of the set that is no whole round, whatever their groups."""
TESTED = 100
"""Examples of test."""
IN_FLIGHT = 2


def groups(plan: Plan) -> dict[str, int]:
    """Example -> number of the group of those with the same expected answer, over all splits."""
    every = [example for split in landscape.SPLITS for example in plan.splits.of(split)]
    names = sorted({canonical(example.expected) for example in every})
    return {example.id: names.index(canonical(example.expected)) for example in every}


def shots(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The named sets of demos, drawn from what a run may show; the same every time."""
    pool = [id for id in order(plan.splits.train, 0) if id not in plan.scored]
    of = groups(plan)
    members = [[id for id in pool if of[id] == group] for group in sorted({of[id] for id in pool})]
    most = min(plan.space.settings.parts["demos"].max // len(members), max(map(len, members)))  # type: ignore[union-attr]
    rng = np.random.default_rng(11)
    named: dict[str, tuple[str, ...]] = {"none": ()}
    for name, rounds in ROUNDS:
        named[name] = _rounds(members, min(rounds, most), rng)
    named[f"any{FEW}"] = tuple(pool[int(i)] for i in rng.permutation(len(pool))[:FEW])
    return named


def _rounds(members: Sequence[Sequence[str]], rounds: int, rng: np.random.Generator) -> tuple[str, ...]:
    columns = [[ids[int(i)] for i in rng.permutation(len(ids))[:rounds]] for ids in members]
    chosen: list[str] = []
    for turn in range(rounds):
        for column in (columns[int(i)] for i in rng.permutation(len(columns))):
            chosen += column[turn : turn + 1]
    return tuple(chosen)


def grid(plan: Plan, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], Genome]]:
    """Every configuration: what names it, and its genome. `names`: ways of showing labels."""
    rubrics = plan.space.settings.values("rubric")
    base = dict(plan.start[0].genes)
    cells = product(names, enumerate(rubrics), shots(plan).items(), ("chat", "completion"), (False, True))
    for label, (number, rubric), (name, demos), style, constrain in cells:
        config = {
            "rubric": number,
            "shots": name,
            "demo_style": style,
            "constrain": constrain,
            "label_names": label,
        }
        changed = {**config, "rubric": rubric, "demos": demos}
        del changed["shots"]
        yield config, Genome(genes={**base, **changed})


def items(plan: Plan) -> list[Item]:
    """What every configuration is evaluated on."""
    tested = [item for item in plan.items("test") if item.twin == 0][:TESTED]
    return [*plan.items("train"), *plan.items("validation"), *tested]


def lines(path: Path) -> list[dict[str, Any]]:
    """What was recorded so far; a last line that was cut short, or is being written, does not count."""
    return [json.loads(text) for text in _whole(path).splitlines()]


def _whole(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def record(config: Path, path: Path, names: Sequence[str], sets: Sequence[str] = ()) -> None:
    """Record what of the grid is missing in `path`. Raises: RunDamaged where a line is of another grid."""
    plan = build.plan(config, [*sets, "cache.enabled=false", f"engine.in_flight={IN_FLIGHT}"])
    known = {canonical(line["config"]): canonical(line["genes"]) for line in lines(path)}
    missing = []
    for named, genome in grid(plan, names):
        found = known.get(canonical(named))
        if found is None:
            missing.append((named, genome))
        elif found != canonical(genome.genes):
            raise RunDamaged(f"{str(path)!r} holds {named!r} with other genes than now; record into another file")
    write_atomic(path, _whole(path))
    shuffled = np.random.default_rng(3).permutation(len(missing))
    asyncio.run(_record(plan, path, [missing[int(i)] for i in shuffled]))


async def _record(plan: Plan, path: Path, missing: Sequence[tuple[Mapping[str, Any], Genome]]) -> None:
    wanted = items(plan)
    llm = await plan.stack.open(None, IN_FLIGHT)
    try:
        for number, (named, genome) in enumerate(missing, 1):
            rows = [_row(done) for done in await _evaluated(plan, genome, wanted, llm)]
            line = {"config": named, "genes": json.loads(canonical(genome.genes)), "rows": rows}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{number}/{len(missing)} {named} {np.mean([row[3] for row in rows]):.3f}", flush=True)
    finally:
        await plan.stack.close()


async def _evaluated(plan: Plan, genome: Genome, wanted: Sequence[Item], llm: LLM) -> list[Evaluation]:
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def one(item: Item) -> Evaluation:
        async with turn:
            return await plan.evaluator.evaluate(item, genome, llm)

    return list(await asyncio.gather(*(one(item) for item in wanted)))


def _row(done: Evaluation) -> list[Any]:
    item, usage = done.item, done.usage
    scores = (done.quality, done.validator, int(done.schema_ok), int(done.error is not None))
    took = (round(usage.seconds * 1000, 3), usage.prompt_tokens, usage.completion_tokens)
    return [item.split, item.example, item.twin, *scores, *took]


def convert(config: Path, source: Path, target: Path, sets: Sequence[str] = ()) -> int:
    """Lines of a recording as a landscape file; returns how many configurations it holds. Raises: ConfigError."""
    plan, found = build.plan(config, sets), lines(source)
    if not found:
        raise ConfigError(f"{str(source)!r} holds no recorded configuration; allowed: lines that `--record TASK` wrote")
    seen = {row[1] for line in found for row in line["rows"]}
    of = {id: group for id, group in groups(plan).items() if id in seen}
    price = next(iter(plan.config.models.values())).price
    assert price is not None
    landscape.write(target, plan.config.name, found, of, price.model_dump())
    return len(found)
