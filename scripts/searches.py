"""The small searches that the simulator carries out, and the model that answers them: a pure function of the request.

Whole products of `build`: the true space, operators, program, scorers and optimizer; only small, so that a seed takes
some hundredths of a second.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from evocluster import build
from evocluster.errors import ModelError
from evocluster.llm.client import LLM, Message, Request, usage
from evocluster.llm.scripted import Scripted, last_text
from evocluster.records import Evaluation, Example, Genome, Item, Json, Score, Split, Usage

LABELS = ("red", "green", "blue")
SPLITS = {"train": 4, "validation": 1, "test": 1}
SPACE: dict[str, Any] = {
    "rubric": ["Which colour?", "Name the colour out of {labels}."],
    "max_tokens": [1, 8],
    "model": ["fake"],
    "demos": {"max": 2},
    "cot": [False, True],
}
RACE = {"population": 3, "block": 2, "finalists": 1, "screen": 1}
STEADY = {**RACE, "selection": "steady"}
SMALL: dict[str, Any] = {"population": 2}
NARROW: dict[str, Any] = {"lookahead": 3}
"""With few trials out at once even a short search hears of most before it asks the next."""
SHORT: tuple[dict[str, Any], ...] = (
    {"search": {**RACE, **NARROW}, "budget": {"calls": 18, "generations": 20}, "seed": 21},
    {"search": {**STEADY, **NARROW}, "budget": {"usd": 0.00004, "generations": 20}, "seed": 24},
    {"search": {**RACE, **SMALL, **NARROW}, "budget": {"calls": 16, "generations": 20}, "seed": 25},
    {"search": {**STEADY, **SMALL, **NARROW}, "budget": {"calls": 16, "generations": 20}, "seed": 26},
    {"search": {**RACE, **SMALL, **NARROW}, "budget": {"usd": 0.00004, "generations": 20}, "seed": 27},
    {"search": {**STEADY, **SMALL, **NARROW}, "budget": {"usd": 0.00004, "generations": 20}, "seed": 28},
)
"""What differs from search to search; these are over after seven trials or so."""
SEARCHES: tuple[dict[str, Any], ...] = (
    *SHORT,
    {"search": RACE, "budget": {"generations": 1}},
    {"search": RACE, "budget": {"calls": 48, "generations": 20}, "seed": 11},
    {"search": STEADY, "budget": {"generations": 1}},
    {"search": STEADY, "budget": {"usd": 0.00025, "generations": 20}, "seed": 12},
)
LONG = len(SEARCHES)
"""One more, with calls enough to bear a storm of a minute."""
_ALL = (*SEARCHES, {"search": {**RACE, "population": 6, "block": 10}, "budget": {"generations": 3}, "seed": 13})


def settings(index: int) -> dict[str, Any]:
    """The config of a search, as YAML data."""
    return {
        "name": f"search-{index}",
        "seed": 5,
        "task": {
            "kind": "classification",
            "data": {split: f"{split}.jsonl" for split in SPLITS},
            "labels": list(LABELS),
        },
        "models": {"fake": {"kind": "scripted"}},
        "space": SPACE,
        "start": [{"rubric": "Which colour?", "demos": [], "max_tokens": 8}],
        "objectives": ["quality", "cost_usd"],
        "engine": {"runner": "local", "in_flight": 8},
        **_ALL[index],
    }


@cache
def planned(index: int) -> build.Plan:
    """A search with its data, loaded and checked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, count in (SPLITS if index < LONG else {**SPLITS, "train": 20}).items():
            lines = [
                {"id": f"{split}-{n}", "input": f"the {split} thing {n} looks {(label := LABELS[n % 3])}"}
                | {"expected": label}
                for n in range(count)
            ]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        path = folder / "search.yaml"
        # JSON is YAML.
        path.write_text(json.dumps(settings(index)))
        made = build.plan(path)
        light: Any = Light(made.evaluator)
        return replace(made, evaluator=light)


def share(*parts: object) -> float:
    """A number in [0, 1) made of these parts alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big") / 2**48


def answer(request: Request) -> str:
    """Right more often where the prompt says more; for an operator that asks, a rubric with a word more."""
    text = last_text(request)
    if request.purpose == "reflect":
        old = text.split("<<<OLD\n")[-1].split("\nOLD>>>")[0]
        return f"Change: a word more\n<<<NEW\n{old} Answer {request.seed % 97}.\nNEW>>>"
    if request.purpose == "rewrite":
        asked = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(("Instruction:", "First:"))]
        return f"{asked[0] if asked else 'Which colour?'} Answer {request.seed % 97}."
    return "right" if share(text) < 0.3 + min(0.5, len(text) / 300) else "wrong"


class Light:
    """An evaluator (engine.worker.Evaluate) that asks once, or twice with `cot`, and costs next to nothing itself."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._evaluator, name)

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """See tasks.evaluate.Evaluator."""
        return 1 + any(possible["cot"])

    def example(self, split: Split, id: str, twin: int = 0) -> Example:
        """See engine.worker.Knows."""
        found: Example = self._evaluator.example(split, id, twin)
        return found

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation:
        """The record of this genome on this item."""
        genes, used = genome.genes, Usage()
        text = f"{genes['rubric']} {genes['max_tokens']} {' '.join(genes['demos'])} {item.split} {item.example}"
        said = ""
        try:
            for step in range(1 + genes["cot"]):
                content = f"{text} step {step} {said}"
                request = Request(model=genes["model"], messages=(Message(role="user", content=content),))
                reply = await llm(request)
                said, used = reply.text, used + usage(reply)
        except ModelError as failure:
            return Evaluation(
                item=item, usage=used + (failure.used or Usage()), error=f"model: {type(failure).__name__}: {failure}"
            )
        quality = float(said == "right")
        scores = {"label": Score(value=quality)}
        return Evaluation(item=item, output=said, scores=scores, quality=quality, validator=quality, usage=used)


def scripted() -> Scripted:
    """What a request's reply is: text, tokens, price and seconds, the same whoever asks and whenever."""
    return Scripted.using(answer, latency_s=0.5, sigma=0.5)
