"""Your own loop: the optimizer says what to try, you evaluate it however you like, and tell what came of it.

    python scripts/ask_tell.py

Nothing here calls a model: `Pipeline` stands for whatever you have. The optimizer neither waits nor does I/O.
"""

from __future__ import annotations

import asyncio

from evocluster import Optimizer
from evocluster.engine.worker import Worker
from evocluster.llm.client import LLM
from evocluster.llm.stack import Stack
from evocluster.records import Evaluation, Genome, Item, Usage
from evocluster.search.budget import Budget
from evocluster.search.members import Member
from evocluster.search.objectives import FOUR, Composite
from evocluster.search.portfolio import portfolio
from evocluster.search.settings import Search
from evocluster.search.space import Space

SPACE = {
    "rubric": {"texts": ["Answer.", "Answer in one word."], "fixed": True},
    "temperature": {"low": 0.0, "high": 1.0},
    "max_tokens": {"low": 4, "high": 64, "log": True},
    "chunk": [128, 256, 512],
    "model": "mine",
}
"""`chunk` is a gene of our own."""


class Pipeline:
    """Answers get better with bigger chunks and more tokens, and then cost more."""

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation:
        """One genome on one item, measured."""
        difficulty = int(item.example.removeprefix("question-")) % 10 / 10
        skill = 0.3 + genome["chunk"] / 1024 + genome["max_tokens"] / 200 - 0.2 * genome["temperature"]
        quality = float(skill > difficulty)
        seconds = 0.1 + 0.002 * genome["max_tokens"] + genome["chunk"] / 5000
        usage = Usage(calls=1, prompt_tokens=genome["chunk"], usd=genome["chunk"] * 1e-6, seconds=seconds)
        return Evaluation(item=item, output="...", quality=quality, validator=quality, usage=usage)


def items(split: str, count: int) -> tuple[Item, ...]:
    """Names of examples; what they are is the pipeline's business."""
    return tuple(Item.model_validate({"split": split, "example": f"question-{number}"}) for number in range(count))


async def search() -> list[Member]:
    """The front, found by asking and telling."""
    space, settings = Space(SPACE), Search(population=12, block=10, finalists=4)
    optimizer = Optimizer(
        space=space,
        settings=settings,
        objectives=FOUR,
        composite=Composite(),
        recommend="cheapest where quality >= 0.7",
        budget=Budget(generations=5),
        # On 100 examples 0.8 is surely more than the 0.7 that the rule asks for; on 30 it is not.
        items={"train": items("train", 30), "validation": items("validation", 100), "test": items("test", 30)},
        start=[space.complete({"chunk": 128, "max_tokens": 4})],
        seed=1,
        in_flight=4,
    )
    worker = Worker(space, portfolio(settings, space), Pipeline(), Stack({}), slots=4)
    await worker.open(cache=None)
    out = []
    while not optimizer.done:
        while (proposal := optimizer.ask()) is not None:
            out.append(proposal)
        if out:
            optimizer.tell(await worker.run(out.pop()))
    await worker.close()
    return optimizer.front()


def main() -> None:
    """Print the front."""
    for member in asyncio.run(search()):
        quality, cost = member.test["quality"], member.test["cost_usd"]
        mark = "*" if member.recommended else " "
        genes = {name: member.genome[name] for name in ("chunk", "max_tokens", "temperature")}
        print(f"{mark} quality {quality.value:.2f} [{quality.low:.2f}-{quality.high:.2f}]  ${cost.value:.6f}  {genes}")


if __name__ == "__main__":
    main()
