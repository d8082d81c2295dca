"""What each layer between the search and the wire costs, one at a time: CPU milliseconds of this process.

The bare client is aiohttp on uvloop, the least a Python process can pay for a call; everything else is what
evocluster adds to it. Requests are recorded from the benchmark's own search space.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import numpy as np

from evocluster.cluster.loopback import Latency, running
from evocluster.cluster.world import PRICE, World, write

if TYPE_CHECKING:
    from evocluster.build import Plan
    from evocluster.llm.client import LLM, Reply, Request
    from evocluster.records import Genome, Proposal, Trial

T = TypeVar("T")


def cpu_ms(work: Callable[[], Coroutine[Any, Any, object]], count: int) -> float:
    """CPU milliseconds of this process a piece of work, of `count` that `work` does."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def timed() -> float:
            await work()
            started = time.process_time()
            await work()
            return time.process_time() - started

        return runner.run(timed()) / count * 1000


async def spread(work: Callable[[T], Awaitable[object]], jobs: Sequence[T], in_flight: int) -> None:
    """All jobs, at most `in_flight` of them at once."""
    waiting: Iterator[T] = iter(jobs)

    async def slot() -> None:
        for job in waiting:
            await work(job)

    await asyncio.gather(*(slot() for _ in range(in_flight)))


async def _instant(request: Request) -> Reply:
    from evocluster.llm.client import Reply

    return Reply(text="refund", prompt_tokens=200, completion_tokens=2, usd=1e-5, seconds=0.5)


@dataclass(frozen=True)
class Work:
    """What the layers are measured on."""

    plan: Plan
    genomes: tuple[Genome, ...]
    requests: tuple[Request, ...]


def prepare(folder: Path, model: dict[str, Any], count: int) -> Work:
    """`count` requests as the search would send them, 16 a genome."""
    from evocluster import build

    plan = build.plan(write(folder, World(model, calls=5000, in_flight=200)))
    rng = np.random.default_rng(1)
    genomes = tuple(plan.space.sample(rng) for _ in range(-(-count // 16)))
    items = plan.evaluator.items("train", 7)[:16]
    seen: list[Request] = []

    async def recorder(request: Request) -> Reply:
        seen.append(request)
        return await _instant(request)

    async def record() -> None:
        for genome in genomes:
            for item in items:
                await plan.evaluator.evaluate(item, genome, recorder)

    asyncio.run(record())
    return Work(plan, genomes, tuple(seen[:count]))


def bare(url: str, bodies: Sequence[bytes], in_flight: int) -> float:
    """aiohttp alone, the answer parsed."""

    async def work() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def call(body: bytes) -> None:
                async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                    json.loads(await response.read())

            await spread(call, bodies, in_flight)

    return cpu_ms(work, len(bodies))


def bodies(requests: Sequence[Request]) -> list[bytes]:
    """The requests as an OpenAI-compatible endpoint gets them."""
    return [
        json.dumps(
            {
                "model": "loopback",
                "messages": [{"role": one.role, "content": one.content} for one in request.messages],
                "temperature": request.temperature,
                "max_tokens": request.max_tokens,
                "seed": request.seed,
            }
        ).encode()
        for request in requests
    ]


def client(work: Work, in_flight: int) -> float:
    """The one configured model of the plan, without limits and cache around it."""
    (model,) = work.plan.stack.models.values()

    async def calls() -> None:
        await model.open()
        try:
            await spread(model, work.requests, in_flight)
        finally:
            await model.close()

    return cpu_ms(calls, len(work.requests))


def limits(work: Work, in_flight: int) -> float:
    """A lease with its renewals, deadline and retries around an instant model."""
    from evocluster.llm.leases import Leases, OwnKeeper
    from evocluster.llm.limits import Limited
    from evocluster.llm.quota import Terms

    async def calls() -> None:
        leases = Leases(OwnKeeper(), "bench")
        lease = leases.of("instant", Terms())
        await leases.open()
        try:
            await spread(Limited(_instant, lease, 60, 4, np.random.default_rng(0)), work.requests, in_flight)
        finally:
            await leases.close()

    return cpu_ms(calls, len(work.requests))


def cache(work: Work, folder: Path, in_flight: int) -> tuple[float, float]:
    """The disk cache before an instant model: (a miss that is kept, a hit)."""
    from evocluster.llm.cached import Cached, LocalCache
    from evocluster.store.cache import DiskCache

    names = dict.fromkeys(work.plan.stack.models, "instant")
    taken: list[float] = []

    async def calls(disk: DiskCache) -> None:
        llm: LLM = Cached(_instant, LocalCache(disk), names)
        for _ in range(2):
            started = time.process_time()
            await spread(llm, work.requests, in_flight)
            taken.append((time.process_time() - started) / len(work.requests) * 1000)

    disk = DiskCache(folder)
    try:
        asyncio.run(calls(disk))
    finally:
        disk.close()
    return taken[0], taken[1]


def scoring(work: Work) -> float:
    """Prompt, parsing, scoring and the record of an evaluation, on an instant model."""
    evaluator = work.plan.evaluator
    items = evaluator.items("train", 7)[:16]

    async def evaluations() -> None:
        for genome in work.genomes:
            for item in items:
                await evaluator.evaluate(item, genome, _instant)

    return cpu_ms(evaluations, len(work.genomes) * len(items))


def trial(proposal: Proposal, genome: Genome, rng: np.random.Generator) -> Trial:
    """A proposal as if it had been carried out, with random scores."""
    from evocluster.records import Evaluation, Score, Trial, Usage

    skill = rng.random()
    evaluations = []
    for item in proposal.items:
        value = float(rng.random() < skill)
        usage = Usage(
            calls=1,
            prompt_tokens=200,
            completion_tokens=2,
            usd=1e-5 * (1 + rng.random()),
            seconds=rng.random(),
        )
        scores = {"label": Score(value=value)}
        evaluations.append(
            Evaluation(item=item, output="refund", scores=scores, quality=value, validator=value, usage=usage)
        )
    return Trial(proposal=proposal, genome=genome, evaluations=tuple(evaluations))


def told(plan: Plan, count: int) -> Iterator[tuple[float, Trial]]:
    """(CPU ms of a tell and an ask, the trial), `count` times; the oldest question is answered first."""
    optimizer = plan.optimizer()
    rng = np.random.default_rng(2)
    out: list[Proposal] = []
    for _ in range(count):
        while (proposal := optimizer.ask()) is not None:
            out.append(proposal)
        if not out:
            return
        first = out.pop(0)
        genome = first.parents[0] if first.operator == "evaluate" else plan.space.sample(rng)
        done = trial(first, genome, rng)
        started = time.process_time()
        optimizer.tell(done)
        if (proposal := optimizer.ask()) is not None:
            out.append(proposal)
        yield (time.process_time() - started) * 1000, done


def commit(work: Work, trials: int) -> tuple[float, tuple[Trial, ...]]:
    """The optimizer's tell and ask an evaluation, at the benchmark's population; and the trials."""
    for _ in told(work.plan, 100):  # imports and first allocations are not a commit's
        pass
    measured = list(told(work.plan, trials))
    evaluations = sum(len(done.evaluations) for _, done in measured)
    return sum(ms for ms, _ in measured) / evaluations, tuple(done for _, done in measured)


def table(trials: Sequence[Trial], folder: Path) -> float:
    """Keeping a trial on disk, an evaluation."""
    from evocluster.engine.folder import Folder

    taken = 0.0
    for name, some in (("warm", trials[:20]), ("timed", trials)):
        kept = Folder.create(folder / name, "name: bench\n")
        started = time.process_time()
        for done in some:
            kept.append(done)
        kept.close()
        taken = time.process_time() - started
    return taken * 1000 / sum(len(done.evaluations) for done in trials)


def nsga2_commit_ms(folder: Path, commits: int, population: int = 1000) -> float:
    """Median CPU milliseconds of one tell and ask when the population is full."""
    from evocluster import build

    calls = (population + commits) * 16 * 4
    world = World({"kind": "scripted"}, calls=calls, in_flight=16, population=population)
    plan = build.plan(write(folder, world))
    measured = [ms for ms, _ in told(plan, population + 50 + commits)]
    return statistics.median(measured[population + 50 :])


def layers(folder: Path, calls: int, in_flight: int) -> dict[str, float]:
    """Name of the layer -> CPU milliseconds an evaluation; clients measured at 0.2 s a call."""
    with running(Latency.parse("fixed:0.2"), answers=("refund", "sales")) as url:
        model = {"kind": "direct", "base_url": f"{url}/v1", "model": "loopback"}
        work = prepare(folder / "layers", model, calls)
        alone = bare(url, bodies(work.requests), in_flight)
        through = client(work, in_flight)
    miss, hit = cache(work, folder / "layers-cache", in_flight)
    per_commit, trials = commit(work, calls // 16)
    return {
        "bare client (aiohttp, uvloop)": alone,
        "direct, beyond the bare client": through - alone,
        "limits and retries": limits(work, in_flight),
        "cache, a miss that is kept": miss,
        "cache, a hit": hit,
        "prompt, parsing, scoring": scoring(work),
        "table": table(trials, folder / "layers-run"),
        "optimizer, commit and next proposal": per_commit,
    }


def litellm_cpu_ms(folder: Path, calls: int, in_flight: int = 100) -> float:
    """CPU milliseconds of one call through litellm, warm, at 1 s a call."""
    with running(Latency.parse("fixed:1.0"), answers=("refund", "sales")) as url:
        work = prepare(folder / "litellm", remote(url), calls)
        return client(work, in_flight)


def remote(url: str) -> dict[str, Any]:
    """The model entry that reaches the endpoint through litellm."""
    return {
        "kind": "remote",
        "model": "openai/loopback",
        "api_base": f"{url}/v1",
        "no_key": True,
        "price": PRICE,
    }
