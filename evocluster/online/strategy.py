"""The strategy layer as genes, and a pipeline that answers under them, so that the engine which evolves prompts
evolves routing, escalation, timeouts and concurrency too.

    write_work(path, Work(task, snapshot))          what answers, in one file
    space = {**genes_of(...), "work": str(path)}    the config's `space:`
    start = [start_of(...) | {"work": str(path)}]   its `start:`: the strategy that serves
    task.executor = {"function": EXECUTOR, "calls": most_calls(task, space)}
    the engine runs; strategy_of(winner.genes, base) is the candidate's strategy

Examples are recorded requests (`meta.intent`, `meta.in_flight`), so quality, latency and cost are those of a replay.
An answer is made by the `Answerer` that serves, and is late where its calls and its wait take longer than `timeout_s`.
The wait is that of a queue: with more requests under way than places, each waits for those before it to end. What fewer
places spare the endpoint cannot be seen in a replay, so concurrency is only kept from being too small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from evocluster.errors import ConfigError
from evocluster.llm.client import LLM, Reply, Request
from evocluster.online.answer import Answerer
from evocluster.records import Example, FrozenDict, FrozenMap, Genome, Json, Record, Usage, canonical, digest
from evocluster.release.snapshot import STRATEGIC, Escalation, Snapshot, Strategy
from evocluster.tasks.calls import Calls
from evocluster.tasks.documents import read_documents
from evocluster.tasks.execution import Execution
from evocluster.tasks.program import Program
from evocluster.tasks.retrieval import Index
from evocluster.tasks.task import Task

EXECUTOR = "evocluster.online.strategy:answer"
WORK = "work"
"""Gene: path of the file with what answers; frozen."""
PROGRAM: Mapping[str, Json] = {"temperature": 0.0, "max_tokens": 64}
"""What the program takes where a strategy does not say."""
NONE = ""
"""Value of a gene that names no model: an intent goes where all others go, nothing is escalated."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BELOW = (0.2, 0.4, 0.6, 0.8, 1.0)
TIMEOUTS_S = (5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
PLACES = (8, 16, 32, 64, 128, 256)
NOTES = (0, 1, 2, 3, 5, 8)
UNBOUND_S, UNBOUND = 86_400.0, 4096
"""Timeout and places of the answerer itself: both are reckoned from recorded times here, whatever runs beside it."""
ANSWERERS = 64


class Work(Record):
    """What answers, and what its strategy is a change of."""

    task: FrozenMap
    """The settled task's settings."""
    snapshot: FrozenMap
    """The content of its layers."""
    fields: tuple[str, ...] = ()
    """Names of the inputs' fields that rubrics may speak of."""
    replicas: int = 1
    """That share the requests under way."""

    @classmethod
    def of(cls, task: Task, snapshot: Snapshot, fields: Iterable[str] = (), replicas: int = 1) -> Work:
        """From the objects."""
        return cls(
            task=FrozenDict(task.model_dump(mode="json")),
            snapshot=FrozenDict(snapshot.model_dump(mode="json")),
            fields=tuple(fields),
            replicas=replicas,
        )


def write_work(path: Path, work: Work) -> Path:
    """The file that the gene `work` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(work.model_dump_json(), encoding="utf-8")
    return path


# ---------------------------------------------------------------- genes


def genes_of(strategy: Strategy, models: Sequence[str], intents: Iterable[str] = ()) -> dict[str, Json]:
    """Gene -> the values it may take, as a config's `space:` has it; today's values are among them.

    Genes: `model`, the other genes that the strategy has, `intent.<name>.model`, `share.<model>`, `escalate.model`,
    `escalate.below`, `timeout_s`, `concurrency`, `notes`.
    """
    now = start_of(strategy, models, intents)
    named = list(dict.fromkeys([*models, *(now[gene] for gene in now if gene.endswith("model") and now[gene] != NONE)]))
    listed: dict[str, Sequence[Json]] = {
        "model": named,
        "max_tokens": sorted({max(1, size) for size in _around(now.get("max_tokens"))}),
        "use_consensus": (1, 3),
        "retriever_topk": (1, 3, 5),
        "escalate.model": (NONE, *named) if len(named) > 1 else (NONE,),  # nobody escalates to himself
        "escalate.below": BELOW,
        "timeout_s": TIMEOUTS_S,
        "concurrency": PLACES,
        "notes": NOTES,
    }
    space: dict[str, Json] = {}
    for gene, value in now.items():
        if gene == "temperature":
            space[gene] = {"low": 0.0, "high": max(1.0, float(value))}
        elif gene.startswith("intent."):
            space[gene] = _with(value, (NONE, *named))
        elif gene.startswith("share."):
            space[gene] = _with(value, SHARES)
        else:
            space[gene] = _with(value, listed[gene])
    return space


def start_of(strategy: Strategy, models: Sequence[str], intents: Iterable[str] = ()) -> dict[str, Json]:
    """The genes of this strategy."""
    escalate = strategy.escalate
    genes = {name: _plain(value) for name, value in strategy.genes.items() if name in STRATEGIC}
    shares = {**dict.fromkeys(models, 0.0), **strategy.shares} if len(models) > 1 or strategy.shares else {}
    return {
        **PROGRAM,
        "model": models[0],
        **genes,
        **{f"intent.{name}.model": (strategy.intents.get(name) or {}).get("model", NONE) for name in intents if name},
        **{f"share.{name}": float(share) for name, share in shares.items()},
        "escalate.model": escalate.model if escalate else NONE,
        "escalate.below": escalate.below if escalate else 0.6,
        "timeout_s": strategy.timeout_s,
        "concurrency": strategy.concurrency,
        "notes": strategy.notes,
    }


def strategy_of(genes: Mapping[str, Json], base: Strategy) -> Strategy:
    """The strategy that these genes say; what they do not speak of is as in `base`."""
    said: dict[str, Any] = {
        "genes": {**base.genes, **{name: genes[name] for name in STRATEGIC if name in genes}},
        "intents": _intents(genes, base),
        "shares": _shares(genes, base),
    }
    if "escalate.model" in genes:
        model = genes["escalate.model"]
        below = genes.get("escalate.below", base.escalate.below if base.escalate else 0.6)
        said["escalate"] = None if model == NONE else Escalation(model=model, below=below)
    said |= {name: genes[name] for name in ("timeout_s", "concurrency", "notes") if name in genes}
    return Strategy.model_validate({**base.__dict__, **said})


def _intents(genes: Mapping[str, Json], base: Strategy) -> dict[str, Json]:
    intents = {name: dict(own) for name, own in base.intents.items()}
    for gene, model in genes.items():
        if gene.startswith("intent.") and gene.endswith(".model"):
            own = intents.setdefault(gene.removeprefix("intent.").removesuffix(".model"), {})
            own.pop("model", None)
            own |= {"model": model} if model != NONE else {}
    return {name: own for name, own in intents.items() if own}


def _shares(genes: Mapping[str, Json], base: Strategy) -> dict[str, Json]:
    said = {gene.removeprefix("share."): float(share) for gene, share in genes.items() if gene.startswith("share.")}
    if not said:
        return dict(base.shares)
    total = sum(said.values())
    whole = abs(total - 1) < 1e-9
    return {name: share if whole else share / total for name, share in said.items() if share > 0}


def _around(value: Json) -> tuple[int, ...]:
    return (value // 2, value, 2 * value) if isinstance(value, int) else ()


def _with(value: Json, values: Iterable[Json]) -> list[Json]:
    """The values and this one, numbers in their order, each once."""
    found = {canonical(each): each for each in (*values, value)}
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in found.values())
    return sorted(found.values()) if numbers else list(found.values())


def _plain(value: Json) -> Json:
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------- answering

_LLM: ContextVar[LLM] = ContextVar("evocluster_strategy_llm")


async def _present(request: Request) -> Reply:
    """The models as the example that is answered now has them."""
    return await _LLM.get()(request)


async def answer(example: Example, genome: Genome, llm: Calls) -> Execution:
    """One example under the strategy of a genome: the pipeline of `task.executor`.

    Its usage is what did not go through `llm`: time spent waiting for a place, and what retrieval cost.
    """
    work, answerer, strategy = await _ready(str(genome.genes.get(WORK, "")), genome)
    token = _LLM.set(llm)
    try:
        answered = await answerer.answer(example, str(example.meta.get("intent") or ""), example.id)
    finally:
        _LLM.reset(token)
    made, called = answered.execution, llm.usage
    waited = wait_s(float(example.meta.get("in_flight") or 0) / work.replicas, strategy.concurrency, called.seconds)
    beside = Usage(
        usd=max(0.0, made.usage.usd - called.usd),
        paid_usd=max(0.0, made.usage.paid_usd - called.paid_usd),
        seconds=waited,
    )
    late = called.seconds + waited > strategy.timeout_s
    if late and made.error is None:
        text = f"timeout: {called.seconds + waited:.3g} s, more than the strategy's timeout_s={strategy.timeout_s:g}"
        return Execution(schema_ok=False, usage=beside, error=text)
    return made.model_copy(update={"usage": beside, "trace": ()})


def wait_s(others: float, places: int, seconds: float) -> float:
    """How long a request waits for a place when so many others are under way, each taking as long as it."""
    return max(0.0, (others + 1 - places) / places) * seconds


def most_calls(task: Task, space: Mapping[str, Json]) -> int:
    """The most model calls of one example: `task.executor.calls`. `task`: as it serves, settled."""
    if task.executor is not None:
        return 2 * task.executor.calls
    votes = space.get("use_consensus", (1,))
    each = Program(task, {}).calls_per_item(
        {"use_consensus": votes if isinstance(votes, list | tuple) else (votes,), "cot": (True,), "constrain": (True,)}
    )
    return 2 * each


class _Kept:
    """A work file as this process reads it, and answerers of its latest strategies."""

    def __init__(self, path: str) -> None:
        try:
            self.work = Work.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"gene {WORK!r} is {path!r}, which is no file that write_work wrote: {error}") from error
        self.task = Task.model_validate(dict(self.work.task))
        self.snapshot = Snapshot.read(self.work.snapshot)
        retrieval = self.task.retrieval
        self.index = Index(retrieval, read_documents(retrieval)) if retrieval else None
        self.answerers: dict[str, Answerer] = {}

    async def answerer(self, strategy: Strategy) -> Answerer:
        """Ready for this strategy."""
        name = digest(strategy.model_dump(mode="json"))
        if name not in self.answerers:
            if self.index is not None:
                await self.index.prepare()
            free = strategy.model_copy(update={"timeout_s": UNBOUND_S, "concurrency": UNBOUND})
            snapshot = Snapshot(prompt=self.snapshot.prompt, memory=self.snapshot.memory, strategy=free)
            made = Answerer(self.task, snapshot, _present, index=self.index, fields=self.work.fields)
            await made.prepare()
            while len(self.answerers) >= ANSWERERS:
                del self.answerers[next(iter(self.answerers))]
            self.answerers[name] = made
        return self.answerers[name]


_kept = lru_cache(maxsize=8)(_Kept)


async def _ready(path: str, genome: Genome) -> tuple[Work, Answerer, Strategy]:
    kept = _kept(path)
    strategy = strategy_of(genome.genes, kept.snapshot.strategy)
    return kept.work, await kept.answerer(strategy), strategy
