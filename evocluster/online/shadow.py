"""The shadow: a candidate answers what production just answered, for comparison only.

    pair_id = shadow.offer(exchange, example, primary)      after the caller has the answer; returns at once

Which requests: systematic sampling in every (intent, model), at the rate that the budget carries, so that rare intents
get their pairs as well. A request that production failed is offered too, else the candidate alone would ever fail. Its
own purse (a share of what production spends), its own places, and the first to be shed when the gateway is busy.
Nothing that goes wrong in here reaches the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from evocluster.online.effects import Recording, replaying
from evocluster.online.ledger import Ledger
from evocluster.records import Example, digest
from evocluster.release.exchange import HARD, ErrorClass, Exchange
from evocluster.release.lifecycle import PAIRING
from evocluster.release.settings import Shadow as Settings
from evocluster.tasks.execution import Execution
from evocluster.telemetry import log

SHED_ABOVE = 0.5
"""Share of the gateway's places in use above which nothing is paired."""
TIMEOUT_S = 120.0
"""Of one shadow answer, whatever the candidate's own strategy allows."""
MOST_STRATA = 1000
"""Pairs of (intent, model) that are told apart; further ones are sampled together."""
PURSE = 20.0
"""Answers that can be saved up for: a burst after a quiet hour is no longer than that."""
ID = 32
"""Hex digits of the names of pairs and of their shadows' requests; they follow from what is paired."""
RECENT = 0.1
"""Weight of the newest answer in what one is expected to cost."""


class Candidate(NamedTuple):
    """What is shadowed, and what it is compared with."""

    experiment: str
    snapshot: str
    baseline: str


class Answered(Protocol):
    """An answer and how it came about."""

    @property
    def execution(self) -> Execution: ...

    @property
    def model(self) -> str:
        """That answered."""
        ...

    @property
    def escalated(self) -> bool: ...

    @property
    def latency_ms(self) -> float:
        """As production's is taken: without loading the snapshot, or waiting for the ledger."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Ids of the memory's notes that it was asked with."""
        ...


class Answers(Protocol):
    """Answers as a snapshot does."""

    def __call__(self, snapshot: str, example: Example, exchange: Exchange, /) -> Awaitable[Answered]:
        """`exchange`: of production, for its intent. Raises: anything."""
        ...


class Records(Protocol):
    """The recorder: redacts, queues, never blocks."""

    def __call__(self, exchange: Exchange, example: Example, execution: Execution, /) -> None: ...


class Purse:
    """A share of what production spends, in US dollars; in requests for as long as nothing has had a price."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._priced = False
        self._balance = 0.0
        self._production = 0.0
        self._own = 0.0
        """What an answer costs, of either side, lately."""

    def earn(self, usd: float) -> None:
        """Production answered one."""
        if usd > 0 and not self._priced:
            self._priced, self._balance = True, 0.0
        self._production = _lately(self._production, usd)
        self._balance = min(self._balance + self.share * (usd if self._priced else 1.0), PURSE * self.price)

    @property
    def price(self) -> float:
        """What the next one is expected to cost."""
        return (self._own or self._production) if self._priced else 1.0

    @property
    def rate(self) -> float:
        """Share of production's requests that it carries."""
        if not self._priced:
            return self.share
        return self.share * self._production / self.price if self.price else 0.0

    def take(self) -> float | None:
        """The price of one, put aside; None: there is not so much."""
        price = self.price
        if self._balance < price:
            return None
        self._balance -= price
        return price

    def settle(self, aside: float, usd: float) -> None:
        """It cost so much: what is left goes back; what was missing is owed."""
        if usd > 0 and not self._priced:
            self._priced, self._balance, aside = True, 0.0, 0.0
        spent = usd if self._priced else 1.0
        self._own = _lately(self._own, usd)
        self._balance += aside - spent


class Shadow:
    """Pairs production's requests with a candidate's answers. One a deployment and replica; lives on the event loop."""

    def __init__(
        self,
        settings: Settings,
        candidate: Callable[[], Candidate | None],
        answers: Answers,
        record: Records,
        ledger: Ledger,
        rng: np.random.Generator,
        *,
        busy: Callable[[], float] = lambda: 0.0,
        acts: bool = False,
        clock: Callable[[], float] = time.time,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`candidate`: what is in the shadow now, held by whoever polls the ledger (see `shadowed`).

        `busy`: the share of the gateway's places in use. `acts`: the task's executor has side effects that it does not
        make through `effects.effect`, so nothing can be paired.
        """
        self._settings = settings
        self._candidate = candidate
        self._answers = answers
        self._record = record
        self._ledger = ledger
        self._rng = rng
        self._busy = busy
        self._acts = acts
        self._clock = clock
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[tuple[str, str], float] = {}
        self.purse = Purse(settings.budget)
        self.counts: Counter[str] = Counter()
        """offered, paired, failed, and why the others were not: unsampled, shed, full, budget, effects, unwritten."""

    def offer(self, exchange: Exchange, example: Example, primary: Answered) -> str:
        """The id of the pair that it becomes, or '' where it becomes none. Never raises, never waits."""
        try:
            return self._offer(exchange, example, primary)
        except Exception:
            self.counts["failed"] += 1
            log.exception("a request could not be offered to the shadow of %s", exchange.deployment)
            return ""

    def _offer(self, exchange: Exchange, example: Example, primary: Answered) -> str:
        candidate = self._candidate()
        if exchange.is_shadow or (exchange.error_class and exchange.error_class not in HARD):
            return ""
        self.purse.earn(exchange.cost_usd)
        if candidate is None or exchange.snapshot_id != candidate.baseline:
            return ""
        self.counts["offered"] += 1
        why, aside = self._refused(exchange)
        if why:
            self.counts[why] += 1
            return ""
        pair_id = digest([candidate.experiment, exchange.request_id])[:ID]
        self.counts["paired"] += 1
        paired = exchange.model_copy(update={"pair_id": pair_id})
        work = self._pair(candidate, paired, example, Recording(primary.execution.trace), aside)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)
        return pair_id

    def _refused(self, exchange: Exchange) -> tuple[str, float]:
        """Why it is not paired, and what was put aside where it is."""
        stratum = (exchange.intent, exchange.model)
        if stratum not in self._due and len(self._due) >= MOST_STRATA:
            stratum = ("", "")
        due = self._due.get(stratum)
        due = float(self._rng.random()) if due is None else due
        due += min(self._settings.rate, self.purse.rate)
        self._due[stratum] = min(due, 2.0)  # one that could not be had is made up for, not a whole hour of them
        if due < 1:
            return "unsampled", 0.0
        if self._acts:
            return "effects", 0.0
        if self._busy() > SHED_ABOVE:
            return "shed", 0.0
        if len(self._tasks) >= self._settings.concurrency:
            return "full", 0.0
        aside = self.purse.take()
        if aside is None:
            return "budget", 0.0
        self._due[stratum] -= 1
        return "", aside

    async def _pair(
        self, candidate: Candidate, exchange: Exchange, example: Example, recording: Recording, aside: float
    ) -> None:
        """One answer, recorded, and its pair."""
        request_id, spent = digest([exchange.pair_id, "shadow"])[:ID], 0.0
        at, started = self._clock(), time.perf_counter()
        try:
            answered, execution = await self._answered(candidate, exchange, example, recording)
            spent = execution.usage.usd
            elapsed_ms = 1000 * (time.perf_counter() - started)
            shadow = _shadow(candidate, exchange, request_id, at, answered, execution, elapsed_ms)
            why = (
                f"side effects that production did not make: {', '.join(recording.missed)}" if recording.missed else ""
            )
            self.counts["effects" if why else "answered"] += 1
            self._record(shadow, example, execution)
            row = _row(candidate, exchange, shadow, why)
            await asyncio.to_thread(self._ledger.put, "pairs", row)
        except Exception as error:
            self.counts["unwritten"] += 1
            log.error("a pair of experiment %s was lost: %s: %s", candidate.experiment, type(error).__name__, error)
        finally:
            self.purse.settle(aside, spent)

    async def _answered(
        self, candidate: Candidate, exchange: Exchange, example: Example, recording: Recording
    ) -> tuple[Answered | None, Execution]:
        """What the candidate makes of it; whatever it raises is its failure, and evidence."""
        try:
            async with asyncio.timeout(self._timeout_s):
                with replaying(recording):
                    answered = await self._answers(candidate.snapshot, example, exchange)
            return answered, answered.execution
        except TimeoutError:
            return None, Execution(error=f"model: DeadlinePassed: no answer within {self._timeout_s:g} s")
        except Exception as error:
            self.counts["failed"] += 1
            return None, Execution(error=f"model: {type(error).__name__}: {error}")

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._tasks)

    async def drain(self) -> None:
        """Wait for what is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Call off what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await self.drain()


def shadowed(ledger: Ledger, deployment: str) -> Candidate | None:
    """What of this deployment is to be paired now; the oldest, should there be two."""
    where = {"deployment": deployment, "stage": ("in", list(PAIRING))}
    row = ledger.first("experiments", where, order="started_at,id")
    return Candidate(row["id"], row["candidate"], row["baseline"]) if row else None


def fault(execution: Execution) -> ErrorClass:
    """The class of what went wrong in an execution."""
    if execution.error is None:
        return "format" if execution.schema_ok is False else ""
    timed = "DeadlinePassed" in execution.error or "TimeoutError" in execution.error
    return "timeout" if timed else "provider"


def _shadow(
    candidate: Candidate,
    exchange: Exchange,
    request_id: str,
    at: float,
    answered: Answered | None,
    execution: Execution,
    elapsed_ms: float,
) -> Exchange:
    """The shadow's exchange: the same question, its own facts."""
    used = execution.usage
    return Exchange(
        request_id=request_id,
        episode_id=exchange.episode_id,
        deployment=exchange.deployment,
        at=at,
        tenant=exchange.tenant,
        intent=exchange.intent,
        model=answered.model if answered else "",
        arm=candidate.snapshot,
        snapshot_id=candidate.snapshot,
        epoch=exchange.epoch,
        experiment=candidate.experiment,
        is_shadow=True,
        pair_id=exchange.pair_id,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        calls=used.calls,
        cost_usd=used.usd,
        latency_ms=answered.latency_ms if answered else elapsed_ms,
        error_class=fault(execution),
        error=execution.error or "",
        confidence=execution.confidence,
        escalated=answered.escalated if answered else False,
        repairs=execution.repairs,
        schema_ok=bool(execution.schema_ok),
        flags=execution.flags,
        notes=answered.notes if answered else (),
        user=exchange.user,
    )


def _row(candidate: Candidate, exchange: Exchange, shadow: Exchange, why: str) -> dict[str, Any]:
    """The row of `pairs`."""
    return {
        "pair_id": exchange.pair_id,
        "deployment": exchange.deployment,
        "experiment": candidate.experiment,
        "at": exchange.at,
        "primary_id": exchange.request_id,
        "shadow_id": shadow.request_id,
        "intent": exchange.intent,
        "model": exchange.model,
        "baseline": _facts(exchange),
        "candidate": _facts(shadow),
        "judge": "",
        "state": "skipped" if why else "open",
        "why": why,
    }


def _facts(exchange: Exchange) -> dict[str, Any]:
    """What a comparison needs to know of one side besides its answer."""
    return {
        "cost_usd": exchange.cost_usd,
        "latency_ms": exchange.latency_ms,
        "error_class": exchange.error_class,
        "schema_ok": exchange.schema_ok,
        "score": None,
    }


def _lately(mean: float, newest: float) -> float:
    return mean + RECENT * (newest - mean) if mean else newest
