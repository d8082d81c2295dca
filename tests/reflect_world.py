"""A small task whose prompt can be repaired: what is wrong shows in the failures, and a scripted model reads it there.

Evaluations run through the real worker and program; only the models are scripted, and every request is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from search_world import drive, hashed
from small import LABELS, settings

from evocluster import build
from evocluster.build import Plan
from evocluster.config import load
from evocluster.engine.worker import Worker
from evocluster.llm.client import LLM, Cache, Reply, Request
from evocluster.records import Proposal, Trial
from evocluster.search.optimizer import Optimizer

FIXES = {
    "not one of the allowed answers": "Use a name of the list.",
    "'black' where 'blue' is right": "Blue is never black.",
    "empty answer": "Always answer.",
}
"""What a failure looks like in the feedback -> the sentence that repairs it."""
COUNTS = {"train": 16, "validation": 8, "test": 8}
Says = Callable[[Request], str]


def secret(split: str, index: int) -> str:
    """Words that stand in one example and nowhere else, long enough to be a copy."""
    return " ".join(f"{split}{index}w{int(hashed(split, index, part) * 1e9):x}" for part in range(4))


def asked(request: Request) -> str:
    """What was asked last."""
    return request.messages[-1].content if request.messages else request.prompt or ""


def colours(request: Request) -> str:
    """Answers an example as well as the prompt allows."""
    text = asked(request)
    label = text.rpartition(" looks ")[2].split()[0]
    trouble = {"green": ("not one of the allowed answers", "zut"), "blue": ("'black' where 'blue' is right", "black")}
    trouble["black"] = ("empty answer", "")
    if label in trouble and FIXES[trouble[label][0]] not in text:
        return trouble[label][1]
    return label


def old_rubric(request: Request) -> str:
    """The instruction that a reflecting model is asked to improve."""
    return asked(request).split("<<<OLD\n")[1].split("\nOLD>>>")[0]


def proposed(rubric: str, change: str = "one more rule") -> str:
    """An answer in the form that is asked for."""
    return f"Change: {change}\nTargets: x\n<<<NEW\n{rubric}\nNEW>>>"


def repairing(request: Request) -> str:
    """Answers examples; asked for a better prompt, it repairs the failure it finds, every fourth time nothing."""
    if request.purpose != "reflect":
        return colours(request)
    old, text = old_rubric(request), asked(request).split("OLD>>>")[1]
    for failure, sentence in FIXES.items():
        if failure in text and sentence not in old and request.seed % 4:
            return proposed(f"{old} {sentence}", f"added a rule against: {failure}")
    return proposed(f"{old} Be good, {request.seed}.", "asked it to be good")


class Scribe:
    """A stack of one scripted model that keeps what it is asked."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.requests: list[Request] = []

    async def open(self, cache: Cache | None, slots: int) -> LLM:
        async def llm(request: Request) -> Reply:
            self.requests.append(request)
            return Reply(
                text=self.says(request),
                prompt_tokens=len(asked(request)) // 4,
                completion_tokens=2,
                usd=1e-6,
                seconds=0.1,
            )

        return llm

    aside = 0

    def resize(self, slots: int) -> None:
        """It answers at once."""

    async def close(self) -> None:
        """Nothing to close."""

    def of(self, *purposes: str) -> list[Request]:
        """What was asked for these purposes."""
        return [request for request in self.requests if request.purpose in purposes]


def write(folder: Path, search: Mapping[str, Any], budget: Mapping[str, Any], **changes: Any) -> Path:
    """Data and config in a folder; the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        rows = [
            {"id": f"{split}-{i}", "input": f"{secret(split, i)} looks {LABELS[i % 4]}", "expected": LABELS[i % 4]}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    sections = {
        "space": {"rubric": ["Which colour?"], "model": ["fake"], "demo_style": "inline", "max_tokens": 8},
        "start": [{"rubric": "Which colour?"}],
        "search": {"population": 4, "block": 4, "finalists": 3, **search},
        "budget": dict(budget),
    }
    given = settings(**{**sections, **changes})
    given["task"].pop("twins", None)
    path = folder / "world.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


class World:
    """A plan with its worker, its models a `Scribe`."""

    def __init__(self, folder: Path, says: Says = repairing, **given: Any) -> None:
        search = {"strategy": "refine", **given.pop("search", {})}
        self.plan: Plan = build.plan(load(write(folder, search, given.pop("budget", {"generations": 6}), **given)))
        self.scribe = Scribe(says)
        self._worker: Worker = self.plan.worker().sized(8, self.scribe)

    def run(self, proposal: Proposal) -> Trial:
        """The trial of a proposal."""

        async def once() -> Trial:
            await self._worker.open(None)
            return await self._worker.run(proposal)

        return asyncio.run(once())

    def searched(self, order: np.random.Generator | None = None, workers: int = 1) -> tuple[Optimizer, list[Trial]]:
        """A whole search, and its trials in the order of their proposals."""
        optimizer = self.plan.optimizer()
        trials = drive(optimizer, self.run, order, workers)
        return optimizer, sorted(trials, key=lambda trial: trial.proposal.number)


def rubrics(trials: Sequence[Trial]) -> list[str]:
    """Of every genome that was tried, once each."""
    return list(dict.fromkeys(str(trial.genome["rubric"]) for trial in trials if trial.genome is not None))
