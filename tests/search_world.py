"""A synthetic world for the search: a genome has a true quality, latency and cost, and every example its own noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evocluster.errors import OperatorFailed
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.records import Evaluation, Genome, Item, Proposal, Score, Split, Trial, Usage
from evocluster.search.budget import Budget
from evocluster.search.objectives import FOUR, Composite, Objective
from evocluster.search.operators import EVALUATE, Child
from evocluster.search.optimizer import Optimizer
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search
from evocluster.search.space import Pool, Space

LABELS = 4
POOL = Pool.of((f"t{i:03}", f"label {i % LABELS}") for i in range(40))
ABLE = {"able": Abilities(completion=True, choices=True), "chatty": Abilities()}
GENES: dict[str, Any] = {
    "rubric": ["Sort this.", "Name the queue: {labels}.", "Which queue is it?"],
    "temperature": [0, 0.3],
    "max_tokens": [4, 8, 16],
    "model": ["able", "chatty"],
    "demos": {"max": 12},
    "demo_style": ["chat", "inline", "completion"],
    "constrain": [False, True],
    "label_names": ["as_is", "spaced", "letters"],
}
START = {"rubric": "Sort this.", "max_tokens": 16, "model": "able", "demos": [], "label_names": "as_is"}


def space(**changes: Any) -> Space:
    """The world's space; `changes` replace genes."""
    return Space({**GENES, **changes}, pool=POOL, models=ABLE, label_names=("as_is", "spaced", "letters"))


def items(counts: Mapping[Split, int], twins_every: int = 4) -> dict[Split, tuple[Item, ...]]:
    """Items of each split: every fourth example has a twin right after it."""
    made: dict[Split, tuple[Item, ...]] = {}
    for split, count in counts.items():
        row: list[Item] = []
        for i in range(count):
            example = f"t{i:03}" if split == "train" else f"{split}{i}"
            row.append(Item(split=split, example=example))
            if i % twins_every == 0:
                row.append(Item(split=split, example=example, twin=1))
        made[split] = tuple(row)
    return made


ITEMS = items({"train": 40, "validation": 24, "test": 30})


def hashed(*parts: object) -> float:
    """A number in [0, 1) made of these parts alone."""
    text = "|".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48


def truth(genome: Genome) -> float:
    """The chance that this genome answers an example rightly, 0.12 to 0.95."""
    genes = genome.genes
    demos = genes["demos"]
    groups = [int(id[1:]) % LABELS for id in demos]
    balance = min(groups.count(label) for label in range(LABELS)) if demos else 0
    value = 0.12 + 0.13 * min(balance, 2) + 0.02 * min(len(demos), 4)
    value += 0.12 * hashed("which", *sorted(demos)) if demos else 0.0
    value += {"chat": 0.04, "inline": 0.0, "completion": 0.12}[genes["demo_style"]]
    value += 0.2 if genes["constrain"] else 0.0
    value += {"as_is": 0.05, "spaced": 0.1, "letters": 0.0}[genes["label_names"]]
    value -= 0.1 if genes["temperature"] else 0.0
    value -= 0.1 if genes["max_tokens"] == 4 else 0.0
    return min(0.95, max(0.02, value))


def evaluate(genome: Genome, item: Item) -> Evaluation:
    """The same every time for the same genome and item."""
    right = hashed("luck", item.split, item.example, item.twin, genome.id) * 0.7 + 0.3 * hashed("hard", item.example)
    quality = float(right < truth(genome))
    seconds = 0.03 + 0.004 * genome["max_tokens"] + 0.004 * len(genome["demos"])
    seconds *= 0.9 + 0.2 * hashed("speed", item.example, genome.id)
    tokens = 30 + 15 * len(genome["demos"])
    return Evaluation(
        item=item,
        quality=quality,
        validator=quality,
        scores={"label": Score(value=quality)},
        usage=Usage(calls=1, prompt_tokens=tokens, completion_tokens=4, usd=tokens * 1e-7, seconds=seconds),
    )


async def echo(request: Request) -> Reply:
    """A model that rewrites by adding words, the placeholders it was told to keep among them."""
    text = request.messages[-1].content if request.messages else request.prompt or ""
    if request.purpose == "reflect":
        old = text.split("<<<OLD\n")[1].split("\nOLD>>>")[0]
        answer = f"Change: added {request.seed % 97}\n<<<NEW\n{old} Answer {request.seed % 97}.\nNEW>>>"
        return Reply(text=answer, prompt_tokens=9, completion_tokens=9, usd=1e-6, seconds=0.1)
    asked = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(("Instruction:", "First:"))]
    labels = " {labels}" if "{labels}" in text and "{labels}" not in asked[0] else ""
    return Reply(
        text=f"{asked[0]}{labels} Answer {request.seed % 97}.",
        prompt_tokens=9,
        completion_tokens=9,
        usd=1e-6,
        seconds=0.1,
    )


class World:
    """Carries proposals out. `broken`: operators that always fail."""

    def __init__(self, where: Space, settings: Search, broken: Sequence[str] = ()) -> None:
        self.space = where
        self.operators = portfolio(settings, where)
        self.broken = broken

    def make(self, proposal: Proposal) -> Child:
        """The genome of a proposal, by its operator; LLM operators get `echo`."""
        if proposal.operator == EVALUATE:
            return Child(proposal.parents[0])
        if "genome" in proposal.hints:
            return Child(Genome(genes=proposal.hints["genome"]))
        if proposal.operator in self.broken:
            raise OperatorFailed("broken on purpose")
        operator = self.operators[proposal.operator]
        rng = np.random.default_rng(proposal.seed)
        steps = operator.vary(self.space, proposal.parents, proposal.hints, echo, rng)
        try:
            steps.send(None)
        except StopIteration as end:
            made: Child = end.value
            return made
        raise AssertionError("an operator waited for something that is not there")

    def run(self, proposal: Proposal) -> Trial:
        """The trial of a proposal, the same every time."""
        try:
            genome, notes = self.make(proposal)
        except OperatorFailed as error:
            return Trial(proposal=proposal, error=str(error))
        calls = 1 if proposal.operator in ("rewrite", "merge", "reflect") else 0
        return Trial(
            proposal=proposal,
            genome=genome,
            evaluations=tuple(evaluate(genome, item) for item in proposal.items),
            usage=Usage(calls=calls, usd=calls * 1e-6),
            notes=dict(notes),
        )


def search(
    settings: Search | None = None,
    budget: Budget | None = None,
    where: Space | None = None,
    seed: int = 7,
    **rest: Any,
) -> tuple[Optimizer, World]:
    """An optimizer at its first question and the world it asks about."""
    settings = settings or Search(population=8, block=8, finalists=3)
    where = where or space()
    given: dict[str, Any] = {
        "objectives": FOUR,
        "composite": Composite(),
        "recommend": "best quality",
        "items": ITEMS,
        "start": (where.complete(START),),
        "in_flight": 16,
        **rest,
    }
    optimizer = Optimizer(space=where, settings=settings, budget=budget or Budget(calls=2000), seed=seed, **given)
    return optimizer, World(where, settings, ())


def drive(
    optimizer: Optimizer,
    run: Callable[[Proposal], Trial],
    order: np.random.Generator | None = None,
    workers: int = 1,
) -> list[Trial]:
    """Ask and tell to the end with so many proposals under way at most; trials arrive in random order."""
    flying: list[Proposal] = []
    told: list[Trial] = []
    while not optimizer.done:
        while len(flying) < workers and (proposal := optimizer.ask()) is not None:
            flying.append(proposal)
        if not flying:
            assert optimizer.done, "nothing is under way and nothing is asked"
            break
        at = int(order.integers(len(flying))) if order is not None else 0
        trial = run(flying.pop(at))
        optimizer.tell(trial)
        told.append(trial)
    return told


ONE = (Objective.model_validate("quality"),)
