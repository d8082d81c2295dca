"""Carries one proposal out: the operator makes the genome, the evaluator answers and scores the items.

Nothing here decides anything; a proposal run twice gives the same trial. Call order: construct (picklable), `open`,
any number of concurrent `run`, `close`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evocluster import telemetry
from evocluster.errors import FATAL, EvoclusterError, ModelError
from evocluster.llm.client import LLM, Cache, Reply, Request, usage
from evocluster.records import LOST, Evaluation, Example, Genome, Item, Json, Lost, Proposal, Spend, Split, Trial, Usage
from evocluster.redaction import redacted
from evocluster.search.operators import Child, Operator
from evocluster.search.space import Space
from evocluster.tasks.calls import together

LOOKED_UP: Mapping[str, tuple[str, ...]] = {
    "cases": ("input", "expected"),
    "preserve": ("input", "expected"),
    "held": ("expected",),
}
"""Hints that name train examples -> what is put in of each; the held ones are only compared and counted."""


class Evaluate(Protocol):
    """Judges one genome on one item; failures of the example are in the record."""

    async def evaluate(self, item: Item, genome: Genome, llm: LLM) -> Evaluation: ...


@runtime_checkable
class Knows(Protocol):
    """Something that has the texts of the examples."""

    def example(self, split: Split, id: str, twin: int = 0) -> Example: ...


class Stack(Protocol):
    """The configured models with limits and cache around them, as one LLM."""

    async def open(self, cache: Cache | None, slots: int) -> LLM: ...

    def resize(self, slots: int) -> None: ...

    @property
    def aside(self) -> int:
        """Calls that wait for their endpoint without a slot that calls of others could use."""
        ...

    async def close(self) -> None: ...


class Meter:
    """An LLM that adds up what passes through it."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.usage = Usage()

    async def __call__(self, request: Request) -> Reply:
        try:
            reply = await self._llm(request)
        except ModelError as failure:
            self.usage = self.usage + (failure.used or Usage())
            raise
        self.usage = self.usage + usage(reply)
        return reply


class Accounts:
    """An LLM that adds up what passes through it by model and purpose."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._used: dict[tuple[str, str], list[Usage]] = {}
        self._lost: list[Lost] = []

    async def __call__(self, request: Request) -> Reply:
        try:
            reply = await self._llm(request)
        except ModelError as failure:
            used = failure.used or Usage()
            self._add((request.model, request.purpose), used)
            self._lose(max(0, failure.billed - used.calls), used.paid_usd - used.usd)
            raise
        self._add((reply.answered_by or request.model, request.purpose), usage(reply))
        self._lose(reply.lost_calls, reply.lost_usd)
        return reply

    def _lose(self, calls: int, usd: float) -> None:
        if calls:
            self._lost.append(Lost(calls, max(0.0, usd)))

    def noted(self, notes: Mapping[str, Json]) -> dict[str, Json]:
        """These notes of a trial, and what was lost."""
        if not self._lost:
            return dict(notes)
        lost = {"calls": sum(one.calls for one in self._lost), "usd": fsum(one.usd for one in self._lost)}
        return {**notes, LOST: lost}

    def _add(self, key: tuple[str, str], used: Usage) -> None:
        self._used.setdefault(key, []).append(used)

    def lines(self) -> tuple[Spend, ...]:
        """What each model was asked for, sorted; the same to the last bit in whatever order the answers came."""
        return tuple(
            Spend(model=model, purpose=purpose, usage=_together(used))
            for (model, purpose), used in sorted(self._used.items(), key=lambda one: one[0])
        )


def _together(used: Sequence[Usage]) -> Usage:
    return Usage(
        calls=sum(one.calls for one in used),
        cached=sum(one.cached for one in used),
        prompt_tokens=sum(one.prompt_tokens for one in used),
        completion_tokens=sum(one.completion_tokens for one in used),
        usd=fsum(one.usd for one in used),
        paid_usd=fsum(one.paid_usd for one in used),
        seconds=fsum(one.seconds for one in used),
    )


class Worker:
    """One process's hands: at most `slots` calls to models at once, shared by all proposals under way."""

    def __init__(
        self,
        space: Space,
        operators: Mapping[str, Operator],
        evaluator: Evaluate,
        stack: Stack,
        slots: int,
        told: telemetry.Run = telemetry.Run(),  # noqa: B008 - frozen
    ) -> None:
        self._space = space
        self._operators = dict(operators)
        self._evaluator = evaluator
        self._stack = stack
        self._slots = slots
        self._whose = told
        self._llm: LLM | None = None

    @property
    def slots(self) -> int:
        """Calls to models at once."""
        return self._slots

    @property
    def aside(self) -> int:
        """Calls that wait for their endpoint and leave their slots to calls of other endpoints."""
        return self._stack.aside

    @property
    def told(self) -> telemetry.Run:
        """What it knows of the run."""
        return self._whose

    @property
    def stack(self) -> Stack:
        """The models this worker calls."""
        return self._stack

    def sized(self, slots: int, stack: Stack | None = None) -> Worker:
        """A worker like this one, not yet open, with other slots or other models."""
        return Worker(self._space, self._operators, self._evaluator, stack or self._stack, slots, self._whose)

    def resize(self, slots: int) -> None:
        """Another number of calls at once from now on."""
        self._slots = slots
        self._stack.resize(slots)

    async def open(self, cache: Cache | None) -> None:
        """Connect the models. Raises: errors.ConfigError, errors.ModelError."""
        telemetry.tell(self._whose)
        telemetry.listen()
        self._llm = await self._stack.open(cache, self._slots)

    async def close(self) -> None:
        """Disconnect the models."""
        await self._stack.close()
        if telemetry.hears():
            await asyncio.to_thread(telemetry.flush)

    async def run(self, proposal: Proposal, freed: Callable[[], None] = lambda: None) -> Trial:
        """The trial of this proposal; `freed` is called as each of its items is done with.

        Raises: FATAL errors only; everything else is in the trial.
        """
        if self._llm is None:
            raise RuntimeError("open() comes before run()")
        with telemetry.proposal(self._whose.id, proposal.number, _attributes(proposal)) as span:
            trial = await self._carry_out(proposal, self._llm, freed)
            if span is not None:
                span.set_attributes(_outcome(trial))
            return trial

    async def _carry_out(self, proposal: Proposal, llm: LLM, freed: Callable[[], None]) -> Trial:
        accounts = Accounts(llm)
        meter = Meter(accounts)
        try:
            child = await self._make(proposal, meter)
        except FATAL:
            raise
        except (EvoclusterError, ValueError, ArithmeticError, LookupError, TypeError) as failure:
            kind = "model" if isinstance(failure, ModelError) else f"operator {proposal.operator}"
            error = redacted(f"{kind}: {type(failure).__name__}: {failure}")
            return Trial(
                proposal=proposal, usage=meter.usage, error=error, spend=accounts.lines(), notes=accounts.noted({})
            )
        evaluations = await self._evaluate(proposal.items, child.genome, accounts, freed)
        return Trial(
            proposal=proposal,
            genome=child.genome,
            evaluations=tuple(evaluations),
            usage=meter.usage,
            spend=accounts.lines(),
            notes=accounts.noted(child.notes),
        )

    async def _make(self, proposal: Proposal, llm: LLM) -> Child:
        if proposal.operator == "evaluate":
            return Child(proposal.parents[0])
        if "genome" in proposal.hints:
            return Child(Genome(genes=proposal.hints["genome"]))
        operator = self._operators[proposal.operator]
        rng = np.random.default_rng(proposal.seed)
        return await operator.vary(self._space, proposal.parents, self._told(proposal.hints), llm, rng)

    def _told(self, hints: Mapping[str, Json]) -> Mapping[str, Json]:
        """The hints, with the texts of the train examples they name put in: the search knows only ids.

        Only what `LOOKED_UP` names, and only in train, so that no text of validation or test gets into a prompt.
        """
        known = self._evaluator
        if not isinstance(known, Knows):
            return hints
        found = {
            name: [self._case(known, case, fields) for case in hints[name]]
            for name, fields in LOOKED_UP.items()
            if hints.get(name)
        }
        return {**hints, **found} if found else hints

    @staticmethod
    def _case(known: Knows, case: Mapping[str, Json], fields: Sequence[str]) -> Mapping[str, Json]:
        example = known.example("train", case["example"], case.get("twin", 0))
        return {**case, **{field: getattr(example, field) for field in fields}}

    async def _evaluate(
        self, items: Sequence[Item], genome: Genome, llm: LLM, freed: Callable[[], None]
    ) -> list[Evaluation]:
        async def one(item: Item) -> Evaluation:
            try:
                done = await self._evaluator.evaluate(item, genome, llm)
                return done.model_copy(update={"error": redacted(done.error)}) if done.error else done
            finally:
                freed()

        return await together(one(item) for item in items)


def _attributes(proposal: Proposal) -> dict[str, Any]:
    """What the span of a proposal says at its beginning."""
    return {
        "evocluster.operator": proposal.operator,
        "evocluster.purpose": proposal.purpose,
        "evocluster.generation": proposal.generation,
        "evocluster.items": len(proposal.items),
    }


def _outcome(trial: Trial) -> dict[str, Any]:
    """What it says at its end."""
    failed = sum(evaluation.error is not None for evaluation in trial.evaluations)
    return {
        "evocluster.failed_items": failed,
        **({"evocluster.genome": trial.genome.id} if trial.genome is not None else {}),
        **({"error.type": "trial"} if trial.error else {}),
    }
