"""Runs of the search benchmark on a model: one folder each, resumed where they stopped, tested from outside.

    out/TASK/STRATEGY-seed-CALLS/run             the run folder; its calls pay for train, validation and rewrites
    out/TASK/STRATEGY-seed-CALLS/measured.json   what the bench itself asked on test, outside the budget
    out/cache                                    completions; a cached call counts like any other

`carry_out(case)` does what is missing of a case, `read(case)` gives what is there. Both refuse a folder with a run of
other settings than the case's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from bench_figures import Incumbent, saved

from evocluster import build
from evocluster import config as configs
from evocluster.build import Plan
from evocluster.config import Config
from evocluster.engine.engine import carry
from evocluster.engine.runner import LocalRunner
from evocluster.errors import ConfigError
from evocluster.llm.cached import LocalCache
from evocluster.llm.client import LLM
from evocluster.records import Genome, Item, Split
from evocluster.store.cache import DiskCache
from evocluster.store.files import read_json, write_atomic
from evocluster.store.table import scan

STRATEGIES: Mapping[str, str] = {
    "random": "search.selection=random",
    "generational": "search.selection=generational",
    "steady": "search.selection=steady",
    "evolve": "search.selection=race",
    "no-rewrite": "search.operators=[mutate, model, calls, numbers, crossover, demos, similar, disputed]",
    "refine": "search.strategy=refine",
    "hybrid": "search.strategy=hybrid",
    "breed": "search.strategy=breed",
}
"""Name -> the one setting that makes it; `no-rewrite` is `evolve` without the operators that ask a model."""
REFLECTING: Mapping[str, str] = dict.fromkeys(("refine", "hybrid"), "search.reflect_tokens=400")
"""What they get besides: the embedded model, where it finds no end, repeats itself to the last token it may have."""
CHECKPOINTS = 10
"""Looks at the incumbent over a run, the end among them."""
LOOKED_AT = 60
"""Test examples that an incumbent is looked at with."""
RULE = "best quality"


class Untested(Plan):
    """A plan whose search knows no test set, so that its calls pay for deciding alone."""

    def items(self, split: Split) -> tuple[Item, ...]:
        """Nothing of test."""
        return () if split == "test" else super().items(split)


@dataclass(frozen=True)
class Case:
    """One run of the benchmark."""

    out: Path
    config: Path
    task: str
    strategy: str
    seed: int
    calls: int
    sets: tuple[str, ...] = ()
    """What else is laid over the config."""

    @property
    def home(self) -> Path:
        """Its folder."""
        return self.out / self.task / f"{self.strategy}-{self.seed}-{self.calls}"

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task}:{self.strategy}:{self.seed} ({self.calls} calls)"

    def settings(self) -> Config:
        """The config of the run. Raises: errors.ConfigError."""
        own = (
            STRATEGIES[self.strategy],
            *([REFLECTING[self.strategy]] if self.strategy in REFLECTING else []),
            f"seed={self.seed}",
            f"budget={{calls: {self.calls}}}",
            f"recommend={RULE}",
            "engine.runner=local",
            f"cache={{path: {self.out.absolute() / 'cache'}}}",
        )
        return configs.load(self.config, [*self.sets, *own])

    def plan(self) -> Untested:
        """All that the run needs. Raises: errors.ConfigError."""
        made = build.plan(self.settings())
        return Untested(**{one.name: getattr(made, one.name) for one in fields(made)})

    def begun(self) -> bool:
        """Whether there is a run. Raises: errors.ConfigError where it was made with other settings than these."""
        path = self.home / "run"
        if not (path / "config.yaml").exists():
            return False
        if names := different(configs.load(path / "config.yaml"), self.settings()):
            raise ConfigError(
                f"{str(path)!r} holds a run with other settings than these; give another folder with --out, "
                f"or the settings that it was made with (different: {', '.join(names)})"
            )
        return True

    @property
    def finished(self) -> bool:
        """The run is over, and what it recommends is measured."""
        return (self.home / "measured.json").exists()


def different(one: Config, other: Config) -> list[str]:
    """The sections that two configs differ in. Where the completions lie does not count, and of the folders that code
    is imported from only the names do: a run stays readable where its folder is moved, and from another checkout.
    """
    names = [name for name in Config.model_fields if name not in ("cache", "python_path")]
    apart = [name for name in names if getattr(one, name) != getattr(other, name)]
    folders = [[Path(path).name for path in config.python_path] for config in (one, other)]
    return apart if folders[0] == folders[1] else [*apart, "python_path"]


def carry_out(case: Case) -> None:
    """Run, or go on, and measure; nothing where all that is done.

    Raises: errors.ConfigError, also for a folder that holds a run with other settings; whatever ends a run.
    """
    old = case.begun()
    if old and case.finished:
        return
    plan, path = case.plan(), case.home / "run"
    plan.stack.check()
    done = (path / "run.json").exists() and read_json(path / "run.json").get("status") == "finished"
    if not done:
        asyncio.run(_run(plan, path, not old))
    found = asyncio.run(_measure(case, plan))
    write_atomic(case.home / "measured.json", json.dumps(found, indent=1) + "\n")


async def _run(plan: Untested, path: Path, fresh: bool) -> None:
    await plan.evaluator.prepare()
    with closing(_disk(plan)) as disk:
        runner = LocalRunner([plan.worker()], LocalCache(disk))
        await carry(build.engine(plan, path, fresh, runner))


def _disk(plan: Plan) -> DiskCache:
    folder = plan.config.cache.folder()
    assert folder is not None
    return DiskCache(folder)


async def _measure(case: Case, plan: Plan) -> dict[str, Any]:
    """What the start, the incumbents and the recommended member answer on test: genome -> example -> quality."""
    await plan.evaluator.prepare()
    story = Story.of(case.home / "run")
    items = [item for item in plan.evaluator.items("test", 0) if item.twin == 0]
    few = items[:LOOKED_AT]
    looks = story.looks(case.calls)
    wanted = {**dict.fromkeys((id for _, id in looks), few), story.start: items, story.recommended: items}
    with closing(_disk(plan)) as disk:
        llm = await plan.stack.open(LocalCache(disk), plan.config.engine.in_flight)
        try:
            tested = {id: await _tested(plan, story.genomes[id], asked, llm) for id, asked in wanted.items() if id}
        finally:
            await plan.stack.close()
    return {"looks": looks, "looked_at": [item.example for item in few], "tested": tested}


async def _tested(plan: Plan, genome: Genome, items: Sequence[Item], llm: LLM) -> dict[str, float]:
    evaluations = await asyncio.gather(*(plan.evaluator.evaluate(item, genome, llm) for item in items))
    return {one.item.example: one.quality for one in evaluations}


@dataclass
class Story:
    """A run folder told again: who was the incumbent after how many calls, and what it all took."""

    genomes: dict[str, Genome] = field(default_factory=dict)
    incumbents: list[tuple[int, str]] = field(default_factory=list)
    """(calls, genome id from then on), during the search."""
    calls: int = 0
    evaluated: int = 0
    """Train evaluations."""
    tried: int = 0
    """Genomes that were evaluated on train."""
    items: int = 0
    """Of train: the start is evaluated on all of them."""
    start: str = ""
    recommended: str = ""
    reported: float | None = None
    """Quality of the recommended member on validation, without the luck of having been chosen by it."""
    front: list[dict[str, float]] = field(default_factory=list)
    """Objective -> value on validation, of every member."""

    @classmethod
    def of(cls, path: Path) -> Story:
        """From a run folder. Raises: errors.RunDamaged."""
        story = cls()
        for line in (path / "genomes.jsonl").read_text().splitlines():
            genome = Genome(genes=json.loads(line)["genes"])
            story.genomes[genome.id] = genome
        rows = [row for chunk in scan(path / "trials") for row in chunk]
        story._follow(sorted(rows, key=lambda row: row["proposal"]))
        story._conclude(read_json(path / "front.json"))
        return story

    def _follow(self, rows: Sequence[Mapping[str, Any]]) -> None:
        watch, items = self._watch(rows), set()
        for _, batch in groupby(rows, key=lambda row: row["proposal"]):
            trial = list(batch)
            self.calls += sum(row["calls"] + (row["judge_calls"] or 0) for row in trial)
            answered = [row for row in trial if row["kind"] == "evaluation" and row["split"] == "train"]
            if not answered:
                continue
            self.evaluated += len(answered)
            items |= {(row["example_id"], row["twin"], row["replicate"]) for row in answered}
            outcomes = [
                (row["example_id"], 0.0 if row["error"] else row["quality"]) for row in answered if not row["twin"]
            ]
            watch.add(self.genomes[trial[0]["genome_id"]], outcomes)
            if watch.best and (not self.incumbents or self.incumbents[-1][1] != watch.best):
                self.incumbents.append((self.calls, watch.best))
        self.tried, self.items = watch.tried, len(items)

    def _watch(self, rows: Sequence[Mapping[str, Any]]) -> Incumbent:
        every = [one.genes for one in self.genomes.values()]
        names = sorted({name for genes in every for name in genes})
        free = [name for name in names if any(genes.get(name) != every[0].get(name) for genes in every)]
        return Incumbent(free, dict.fromkeys(row["example_id"] for row in rows if row["split"] == "train"))

    def _conclude(self, front: Mapping[str, Any]) -> None:
        self.start = (front["start"] or {}).get("genome", "")
        for member in front["members"]:
            measured = {name: one["value"] for name, one in member["validation"].items() if one["value"] is not None}
            self.front.append({name: measured[name] for name in front["objectives"] if name in measured})
            if member["recommended"]:
                self.recommended = member["genome"]
                self.reported = (member.get("honest") or {}).get("quality", {}).get("value", measured.get("quality"))

    def looks(self, calls: int) -> list[tuple[int, str]]:
        """(calls, incumbent) at equal distances up to so many; the last is who was recommended."""
        points = [round(calls * (n + 1) / CHECKPOINTS) for n in range(CHECKPOINTS)]
        found = []
        for point in points[:-1]:
            before = [id for made, id in self.incumbents if made <= point]
            found.append((point, before[-1] if before else self.start))
        return [*found, (points[-1], self.recommended)]


@dataclass(frozen=True)
class Run:
    """What a finished case came to."""

    task: str
    strategy: str
    seed: int
    calls: int
    tested: Mapping[str, float]
    """Example of test -> quality of the recommended member."""
    start: Mapping[str, float]
    """The same of the start."""
    curve: tuple[tuple[int, float], ...]
    """(calls, quality of the incumbent on the first test examples)."""
    reported: float | None
    saved: float | None
    front: tuple[Mapping[str, float], ...]

    @property
    def quality(self) -> float:
        """Mean on test."""
        return sum(self.tested.values()) / len(self.tested)

    @property
    def gap(self) -> float | None:
        """Reported on validation less test, in points."""
        return None if self.reported is None else 100 * (self.reported - self.quality)


def read(case: Case) -> Run | None:
    """What is there of a case; None until it is finished.

    Raises: errors.ConfigError for a folder that holds a run with other settings; errors.RunDamaged.
    """
    if not case.begun() or not case.finished:
        return None
    found, story = read_json(case.home / "measured.json"), Story.of(case.home / "run")
    tested: Mapping[str, Mapping[str, float]] = found["tested"]
    few = found["looked_at"]
    looks = [(0, story.start), *found["looks"]]
    curve = [(calls, sum(tested[id][one] for one in few) / len(few)) for calls, id in looks]
    return Run(
        task=case.task,
        strategy=case.strategy,
        seed=case.seed,
        calls=case.calls,
        tested=tested[story.recommended],
        start=tested[story.start],
        curve=tuple(curve),
        reported=story.reported,
        saved=saved(story.evaluated, story.tried, story.items),
        front=tuple(story.front),
    )
