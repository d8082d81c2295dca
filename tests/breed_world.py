"""A world for breeding: a prompt is as good as the useful words in it, and a scripted model adds words as advised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from search_world import ITEMS, ONE, hashed

from evocluster.errors import OperatorFailed
from evocluster.llm.client import LLM, Abilities, Reply, Request
from evocluster.records import Evaluation, Genome, Item, Proposal, Score, Trial, Usage
from evocluster.search.budget import Budget
from evocluster.search.objectives import Composite
from evocluster.search.operators import EVALUATE
from evocluster.search.optimizer import Optimizer
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search
from evocluster.search.space import Space

USEFUL = ("brief", "exact", "careful", "plain", "checked", "sorted", "whole", "first", "only", "label")
IDLE = ("maybe", "somehow", "thing", "stuff", "very", "quite", "rather", "perhaps", "nice", "big", "odd", "soft")
ABLE = {"able": Abilities()}
GENES: dict[str, Any] = {"rubric": ["Do the task."], "model": ["able"], "temperature": 0}
BREED = Search(strategy="breed", population=6, block=8, finalists=3, lookahead=6)


def fields(request: Request) -> dict[str, str]:
    """What stands after 'Name: ' in a request, by name."""
    lines = [line.split(": ", 1) for line in request.messages[-1].content.splitlines() if ": " in line]
    return {line[0]: line[1] for line in lines}


async def writer(request: Request) -> Reply:
    """Adds a word to the instruction, or to the last entry of the list; makes advice when asked for advice."""
    asked = request.messages[-1].content
    seed = request.seed or 0
    word = (*USEFUL, *IDLE)[seed % (len(USEFUL) + len(IDLE))]
    listed = [line.split(". ", 1)[1] for line in asked.splitlines() if line[:1].isdigit() and ". " in line]
    if asked.endswith("dvice:"):
        text = f"Advice {seed % 9973}."
    elif listed:
        text = f"{listed[-1]} {word}"
    else:
        text = f"{fields(request).get('Instruction', 'Do the task.')} {word}"
    return Reply(text=text, prompt_tokens=9, completion_tokens=9, usd=1e-6, seconds=0.1)


def worth(genome: Genome) -> float:
    """The chance that its prompt leads to a right answer."""
    words = set(genome["rubric"].split())
    return 0.1 + 0.85 * len(words & set(USEFUL)) / len(USEFUL) - 0.02 * len(words & set(IDLE))


def evaluate(genome: Genome, item: Item) -> Evaluation:
    """The same every time."""
    right = float(hashed("luck", item.example, item.twin, genome.id) * 0.3 + 0.7 * hashed(item.example) < worth(genome))
    usage = Usage(calls=1, prompt_tokens=20, completion_tokens=2, usd=2e-6, seconds=0.1)
    scores = {"label": Score(value=right)}
    return Evaluation(item=item, output="yes", quality=right, validator=right, scores=scores, usage=usage)


class BreedWorld:
    """Carries proposals out, and counts the calls of the operators."""

    def __init__(self, where: Space, settings: Search, llm: LLM = writer) -> None:
        self.space = where
        self.operators = portfolio(settings, where)
        self.llm = llm

    def run(self, proposal: Proposal) -> Trial:
        """The trial of a proposal, the same every time."""
        calls = 0

        async def metered(request: Request) -> Reply:
            nonlocal calls
            calls += 1
            return await self.llm(request)

        notes: Mapping[str, Any] = {}
        try:
            if proposal.operator == EVALUATE:
                genome = proposal.parents[0]
            else:
                rng = np.random.default_rng(proposal.seed)
                operator = self.operators[proposal.operator]
                steps = operator.vary(self.space, proposal.parents, self._told(proposal), metered, rng)
                try:
                    steps.send(None)
                except StopIteration as end:
                    genome, notes = end.value
        except OperatorFailed as error:
            return Trial(proposal=proposal, error=str(error), usage=Usage(calls=calls))
        evaluations = tuple(evaluate(genome, item) for item in proposal.items)
        usage = Usage(calls=calls, usd=calls * 1e-6)
        return Trial(proposal=proposal, genome=genome, evaluations=evaluations, usage=usage, notes=dict(notes))

    @staticmethod
    def _told(proposal: Proposal) -> Mapping[str, Any]:
        cases = [{**case, "input": f"text of {case['example']}"} for case in proposal.hints.get("cases", ())]
        return {**proposal.hints, "cases": cases}


def breeding(
    settings: Search = BREED, budget: Budget | None = None, seed: int = 7, llm: LLM = writer, **rest: Any
) -> tuple[Optimizer, BreedWorld]:
    """An optimizer at its first question and the world it asks about."""
    where = Space({**GENES, **rest.pop("genes", {})}, models=ABLE, pool=rest.pop("pool", ()))
    given: dict[str, Any] = {
        "objectives": ONE,
        "composite": Composite(),
        "recommend": "best quality",
        "items": ITEMS,
        "start": (where.complete({"rubric": "Do the task."}),),
        "in_flight": 16,
        **rest,
    }
    optimizer = Optimizer(space=where, settings=settings, budget=budget or Budget(calls=1500), seed=seed, **given)
    return optimizer, BreedWorld(where, settings, llm)
