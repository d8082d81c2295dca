"""The built-in program: a genome and an example become model calls, and the last completion an answer.

One `run` is: frame (fixed part of the genome's prompt) -> ask -> [reason -> conclude] -> read. What retrieves
joins the frame, what votes stands around ask, what repairs follows read; each is one step between these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evocluster.errors import FATAL, ConfigError, ModelError
from evocluster.llm.client import LLM, Request, usage
from evocluster.records import Example, Genome, Json, Usage
from evocluster.tasks.answers import Answer, Naming, Schema, after_marker, read_json, read_label, read_text
from evocluster.tasks.execution import Execution, Step
from evocluster.tasks.prompts import Frame, Genes, name_labels, read_genes, request_seed, show_request
from evocluster.tasks.task import Task
from evocluster.tasks.words import nearest

FRAMES_KEPT = 64
"""Frames of recent genomes kept ready; more would only help more than 64 genomes under way at once."""


class Program:
    """Answers examples of a settled task as a genome says. Picklable; one per process is enough."""

    def __init__(self, task: Task, train: Mapping[str, Example]) -> None:
        """`task` is settled; `train` holds every example that may be a demo, by id."""
        self.task = task
        self._train = dict(train)
        self._schema: Schema | None = None
        if isinstance(task.json_schema, str) or (task.kind == "classification" and not task.labels):
            raise ConfigError("the task is not settled; use task.settled(splits, root)")
        if task.json_schema is not None:
            self._schema = Schema(task.json_schema)
        self._namings: dict[str, Naming] = {}
        self._frames: dict[str, Frame] = {}

    @property
    def genes(self) -> frozenset[str]:
        """Names of the genes that change what is executed for this kind of task."""
        idle = {
            "classification": set[str](),
            "extraction": {"label_names"},
            "text": {"label_names", "constrain"},
        }
        return frozenset(Genes.model_fields) - idle[self.task.kind]

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """The most model calls of one example, given the values genes can take (left out: the default)."""
        reasons = any(possible.get("cot", (False,)))
        concludes = any(possible.get("constrain", (False,))) and self.task.kind != "text"
        return 2 if reasons and concludes else 1

    async def run(self, example: Example, genome: Genome, llm: LLM, replicate: int = 0, twin: int = 0) -> Execution:
        """One answer. A train example is never among its own demos.

        Raises: FATAL errors only (a genome that does not fit the task is a ConfigError); every other failure
        of a model is in the execution's `error`, with the usage up to there.
        """
        frame = self._frame(genome, example)
        request = frame.ask(example, request_seed(example.id, twin, replicate), replicate)
        calls = _Calls(llm)
        try:
            raw = await calls.make(request, "reason" if frame.concludes else "answer")
            if frame.concludes:
                raw = await calls.make(frame.conclude(request, raw), "conclude")
        except FATAL:
            raise
        except ModelError as failure:
            return Execution(
                raw=calls.trace[-1].reply if calls.trace else "",
                usage=calls.usage,
                trace=tuple(calls.trace),
                error=f"model: {type(failure).__name__}: {failure}",
            )
        answer = self._read(raw, frame)
        return Execution(
            output=answer.output,
            raw=raw,
            parsed=answer.parsed,
            schema_ok=answer.ok,
            usage=calls.usage,
            trace=tuple(calls.trace),
        )

    def _frame(self, genome: Genome, example: Example) -> Frame:
        genes = read_genes(genome)
        if example.id in genes.demos:
            return self._framed(genome, genes, tuple(id for id in genes.demos if id != example.id))
        if genome.id not in self._frames:
            while len(self._frames) >= FRAMES_KEPT:
                del self._frames[next(iter(self._frames))]
            self._frames[genome.id] = self._framed(genome, genes, genes.demos)
        return self._frames[genome.id]

    def _framed(self, genome: Genome, genes: Genes, demos: tuple[str, ...]) -> Frame:
        unknown = [id for id in demos if id not in self._train]
        if unknown:
            hint = nearest(unknown[0], self._train)
            among = f"is not among the {len(self._train)} train examples"
            raise ConfigError(f"genome {genome.id}: demo {unknown[0]!r} {among}{hint}")
        naming = self._naming(genes.label_names) if self.task.kind == "classification" else None
        return Frame(genes, self.task, naming, [self._train[id] for id in demos])

    def _naming(self, style: str) -> Naming:
        if style not in self._namings:
            self._namings[style] = name_labels(self.task.labels, style, self.task.label_names)
        return self._namings[style]

    def _read(self, raw: str, frame: Frame) -> Answer:
        text = raw
        if frame.genes.cot:
            text = after_marker(raw, ("Answer", self.task.words[1]))
        if frame.naming is not None:
            return read_label(text, frame.naming)
        return read_json(text, self._schema) if self.task.kind == "extraction" else read_text(text)


class _Calls:
    """The calls of one run, added up and written down."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.usage = Usage()
        self.trace: list[Step] = []

    async def make(self, request: Request, purpose: str) -> str:
        reply = await self._llm(request)
        self.usage = self.usage + usage(reply)
        self.trace.append(Step(purpose=purpose, prompt=show_request(request), reply=reply.text))
        return reply.text
