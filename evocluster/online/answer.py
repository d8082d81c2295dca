"""One question answered as a snapshot says: its model, its memory's notes, and a stronger model when in doubt.

    question -> route (intent, or router weights) -> notes -> the task's program -> unsure? ask the stronger model

The program is the one that evaluations run, so what serves is what was measured.
Cascade: Chen, Zaharia and Zou 2023, "FrugalGPT".
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from evocluster import errors
from evocluster.errors import FATAL, ConfigError
from evocluster.llm.client import LLM, Reply, Request, usage
from evocluster.records import Example, Genome, Usage
from evocluster.release.exchange import ErrorClass
from evocluster.release.snapshot import Note, Snapshot
from evocluster.tasks.documents import Passage, Retrieval
from evocluster.tasks.execution import Execution
from evocluster.tasks.executor import Pipeline
from evocluster.tasks.program import Program, Runs
from evocluster.tasks.prompts import CONTEXT, INPUT, read_genes
from evocluster.tasks.retrieval import Index
from evocluster.tasks.task import Task
from evocluster.telemetry import log

TAUGHT = "What earlier cases taught:"
"""The line over the memory's notes."""
GENOMES_KEPT = 256
"""Genomes of recent intents, models and notes kept ready."""
LATE = ("DeadlinePassed", "TimeoutError")
_BRACES = str.maketrans("{}", "()")
_RAISED = re.compile(r"(?:model|executor|retrieval|program): (\w+)")


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one question."""

    execution: Execution
    """Usage is that of all calls; `error` says why there is no answer."""
    model: str
    """That answered, as the config calls it."""
    escalated: bool = False
    """The stronger model was asked as well."""
    notes: tuple[str, ...] = ()
    """Ids of the notes that it was asked with."""
    latency_ms: float = 0.0
    """From asking for a place to the answer, all calls included."""
    error_class: ErrorClass = ""
    finish_reason: str = ""
    """Of the last reply: stop, length, or what the endpoint said."""


class Answerer:
    """A snapshot ready to answer. Call order: construct, `prepare`, then `answer` any number of times."""

    def __init__(
        self,
        task: Task,
        snapshot: Snapshot,
        llm: LLM,
        *,
        index: Index | None = None,
        fields: Collection[str] = (),
        models: Collection[str] = (),
    ) -> None:
        """`task` is settled; `llm`: what `Stack.open` returned; `index`: of the task's documents; `fields`: names of
        the inputs' fields, which rubrics may speak of; `models`: the configured ones (empty: not checked).

        Raises: ConfigError.
        """
        self.snapshot = snapshot
        self._llm = llm
        self._models = frozenset(models)
        self._fields = frozenset(fields)
        shown = {example.id: example for example in snapshot.prompt.examples}
        # The program learns the fields from its examples, and those of the prompt may be none.
        known = {"": Example(id="", input=dict.fromkeys(sorted(fields), "")), **shown} if fields else shown
        self._program: Runs = (
            Program(task, known, index) if task.executor is None else Pipeline(task, task.executor, known)
        )
        self._places = asyncio.Semaphore(snapshot.strategy.concurrency)
        self._genomes: dict[tuple[str, str | None, tuple[str, ...]], Genome] = {}
        self._memory = _Memory(snapshot.memory, snapshot.strategy.notes)
        self._shares = sorted((name, float(share)) for name, share in snapshot.strategy.shares.items() if share > 0)
        self._total = sum(share for _, share in self._shares)

    async def prepare(self) -> None:
        """Everything that the first question would wait for or fail of. Raises: ConfigError: it does not fit."""
        strategy = self.snapshot.strategy
        stronger = [strategy.escalate.model] if strategy.escalate else []
        for intent in ("", *strategy.intents):
            for model in (None, *(name for name, _ in self._shares), *stronger):
                self._check(self._genome(intent, model, ()))
        await self._memory.prepare()

    def _check(self, genome: Genome) -> None:
        """Raises: ConfigError."""
        genes = read_genes(genome)
        if isinstance(self._program, Program):
            self._program.framed(genome, genes, genes.demos)
        votes = genes.use_consensus if isinstance(genes.use_consensus, tuple) else ()
        unknown = [name for name in (genes.model, *votes) if self._models and name not in self._models]
        if unknown:
            raise ConfigError(
                f"snapshot {self.snapshot.id} answers with model {unknown[0]!r}, which is not configured: there are "
                f"{sorted(self._models)}; add it under `models:` of the deployment's config"
            )

    async def answer(self, example: Example, intent: str = "", episode: str = "") -> Answered:
        """The answer; a failed one says so in `error_class`. Raises: nothing but cancellation."""
        began = time.perf_counter()
        strategy = self.snapshot.strategy
        tries: list[_Heard] = []
        notes: tuple[str, ...] = ()
        model = ""
        deadline = asyncio.timeout(strategy.timeout_s)
        try:
            async with deadline, self._places:
                found = await self._memory.find(example, intent)
                notes = tuple(note.id for note in found)
                genome, model = self._way(intent, self._routed(intent, episode), found)
                execution = await self._run(example, genome, tries)
                if (stronger := self._stronger(model, execution)) is not None:
                    genome, _ = self._way(intent, stronger, found)
                    second = await self._run(example, genome, tries)
                    # An unsure answer is better than none.
                    if second.error is None or execution.error is not None:
                        execution, model = second, stronger
        except TimeoutError as late:
            text = f"no answer within the strategy's timeout_s={strategy.timeout_s:g}"
            execution = Execution(schema_ok=False, error=f"timeout: {text if deadline.expired() else late}")
        last = tries[-1] if tries else None
        finish = last.finish_reason if last else ""
        if len(tries) > 1 or execution.error is not None:
            execution = execution.model_copy(update={"usage": sum((one.usage for one in tries), Usage())})
        return Answered(
            execution=execution,
            model=model,
            escalated=len(tries) > 1,
            notes=notes,
            latency_ms=(time.perf_counter() - began) * 1000,
            error_class=classed(execution, finish),
            finish_reason=finish,
        )

    async def _run(self, example: Example, genome: Genome, tries: list[_Heard]) -> Execution:
        """One attempt; whatever goes wrong in it is in its `error`."""
        heard = _Heard(self._llm)
        tries.append(heard)
        try:
            execution = await self._program.run(example, genome, heard)
        except FATAL as failure:
            return Execution(schema_ok=False, error=f"model: {type(failure).__name__}: {failure}")
        except Exception as failure:
            log.exception("snapshot %s could not answer", self.snapshot.id)
            return Execution(schema_ok=False, error=f"program: {type(failure).__name__}: {failure}")
        heard.told = execution.usage
        return execution

    def _routed(self, intent: str, episode: str) -> str | None:
        """The model by the router's weights, the same for every request of an episode; None: as the genes say."""
        if not self._total or "model" in (self.snapshot.strategy.intents.get(intent) or {}):
            return None
        number = int.from_bytes(blake2b(episode.encode(), digest_size=8, person=b"model").digest(), "big")
        point, edge = number / 2**64 * self._total, 0.0
        for model, share in self._shares:
            edge += share
            if point < edge:
                return model
        return self._shares[-1][0]

    def _stronger(self, model: str, execution: Execution) -> str | None:
        """The model to ask again, where the answer is not good enough."""
        escalate = self.snapshot.strategy.escalate
        if escalate is None or escalate.model == model:
            return None
        sure = execution.confidence is None or execution.confidence >= escalate.below
        return escalate.model if execution.error is not None or not sure else None

    def _way(self, intent: str, model: str | None, notes: Sequence[Note]) -> tuple[Genome, str]:
        """What is asked, and the name of the model that is."""
        genome = self._genome(intent, model, notes)
        return genome, str(genome.genes.get("model", "default"))

    def _genome(self, intent: str, model: str | None, notes: Sequence[Note]) -> Genome:
        own = intent if intent in self.snapshot.strategy.intents else ""
        key = (own, model, tuple(note.id for note in notes))
        kept = self._genomes.get(key)
        if kept is None:
            kept = self.snapshot.genome(own, model)
            if notes:
                kept = kept.replace(rubric=self._taught(str(kept.genes.get("rubric", "")), notes))
            while len(self._genomes) >= GENOMES_KEPT:
                del self._genomes[next(iter(self._genomes))]
            self._genomes[key] = kept
        return kept

    def _taught(self, rubric: str, notes: Sequence[Note]) -> str:
        """The rubric with the notes after it; before it where it ends with the question."""
        told = "\n".join([TAUGHT, *(f"- {plainly(note.text)}" for note in notes)])
        template = any(f"{{{name}}}" in rubric for name in (INPUT, CONTEXT, *self._fields))
        parts = (told, rubric) if template else (rubric, told)
        return "\n\n".join(part for part in parts if part)


class _Heard:
    """The models as one attempt asks them: what replies say besides their text, also of an attempt that is given up."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._used: list[Usage] = []
        self._last: Reply | None = None
        self.told: Usage | None = None
        """What the program says it used, once it has ended."""

    @property
    def usage(self) -> Usage:
        """Of the attempt."""
        return sum(self._used, Usage()) if self.told is None else self.told

    @property
    def finish_reason(self) -> str:
        """Of the last reply."""
        return self._last.finish_reason if self._last else ""

    async def __call__(self, request: Request) -> Reply:
        """Raises: as the models."""
        try:
            reply = self._last = await self._llm(request)
        except errors.ModelError as failure:
            self._used.append(failure.used or Usage())
            raise
        self._used.append(usage(reply))
        return reply


class _Memory:
    """The active notes, found by their words (BM25), for each intent those of it and those of all."""

    def __init__(self, notes: Sequence[Note], most: int) -> None:
        active = [note for note in notes if note.state == "active"] if most else []
        self._most = most
        self._notes = {note.id: note for note in active}
        common = [note for note in active if not note.intent]
        by_intent = {note.intent: [one for one in active if one.intent in ("", note.intent)] for note in active}
        self._indexes = {intent: _index(fitting) for intent, fitting in ({"": common} | by_intent).items() if fitting}
        self._question = Retrieval(documents="memory").question

    async def prepare(self) -> None:
        """The first search builds what every search needs."""
        for index in self._indexes.values():
            await index.search("ready", 1)

    async def find(self, example: Example, intent: str) -> list[Note]:
        """Those that fit, the best first."""
        index = self._indexes.get(intent) or self._indexes.get("")
        if index is None:
            return []
        found = await index.search(self._question(example.input), self._most)
        return [self._notes[passage.id] for passage in found.passages]


def _index(notes: Sequence[Note]) -> Index:
    return Index(Retrieval(documents="memory"), [Passage(id=note.id, text=note.text) for note in notes])


def plainly(text: str) -> str:
    """A note as one line without places that a template would fill: notes come from traffic, which anybody writes."""
    return " ".join(text.translate(_BRACES).split())


def classed(execution: Execution, finish_reason: str = "") -> ErrorClass:
    """What kind of failure an execution is, if it is one."""
    if execution.error is not None:
        raised = _RAISED.match(execution.error)
        late = execution.error.startswith("timeout:") or (raised is not None and raised[1] in LATE)
        return "timeout" if late else "provider"
    if finish_reason == "content_filter":
        return "refusal"
    return "" if execution.schema_ok else "format"
