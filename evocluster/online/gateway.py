"""The gateway without its web server: a chat request in, an answer out, and everybody told who has to know.

    pin the state -> intent -> arm -> answer -> (sent) -> recorder -> breaker -> shadow

Nothing here waits for a ledger or a disk. What it needs from others is injected: how an episode gets its arm, who
records, who may stop an arm, who asks the candidate beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import quote

from evocluster.errors import EvoclusterError
from evocluster.llm.gate import Slots
from evocluster.online import reply
from evocluster.online.answer import Answered
from evocluster.online.question import Asked, Rejected, Shape, read
from evocluster.online.state import ServingState
from evocluster.records import Example, FrozenDict, Json, born
from evocluster.redaction import redacted
from evocluster.release.exchange import ErrorClass, Exchange
from evocluster.tasks.execution import Execution
from evocluster.telemetry import log

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
RETRY_AFTER_S = 1.0
"""What a client is asked to wait while every place is taken."""
STATUSES: Mapping[ErrorClass, tuple[int, str]] = {
    "timeout": (504, "deadline_passed"),
    "provider": (502, "provider_error"),
    "format": (502, "unusable_answer"),
}
LEFT = Execution(schema_ok=False, error="client: the caller went away")
FINISHES = ("stop", "length", "content_filter", "tool_calls", "function_call")
"""What OpenAI's clients take for the end of an answer."""


Sign = Callable[[str, Literal["request", "episode"]], str]
"""(id, whose it is) -> what a client shows who says what the answer was worth."""


class Picked(Protocol):
    """The arm of an episode."""

    @property
    def arm(self) -> str: ...

    @property
    def propensity(self) -> float: ...


Assign = Callable[[Mapping[str, float], str, str, str], Picked]
"""(weights, secret, experiment, episode) -> arm and propensity; pure."""


class Follows(Protocol):
    """Where the state of a deployment is read."""

    @property
    def state(self) -> ServingState: ...

    def nudge(self) -> None: ...

    def health(self) -> dict[str, Any]: ...


class Recorder(Protocol):
    """Keeps exchanges; never blocks, never raises."""

    def record(self, exchange: Exchange, input: Json, output: str, error: str = "", user: str = "") -> object:
        """`error` and `user` as they came; what of them is kept is the recorder's to say."""
        ...


class Breaker(Protocol):
    """Stops arms; never blocks, never raises."""

    def allows(self, snapshot: str, /) -> bool: ...

    def observe(self, snapshot: str, error_class: str, latency_ms: float, at: float, /) -> object:
        """One answer, or failure, of the snapshot that answered."""
        ...


class Shadow(Protocol):
    """Asks the candidate what production was asked; never blocks, never raises."""

    def offer(self, exchange: Exchange, example: Example, primary: Answered, /) -> object: ...


class _Sole(NamedTuple):
    """The arm where there is no choice."""

    arm: str
    propensity: float = 1.0


@dataclass(frozen=True)
class Site:
    """One deployment behind the gateway."""

    follower: Follows
    recorder: Recorder
    assign: Assign
    shape: Shape = Shape()  # noqa: RUF009 - frozen
    intent: Callable[[Json], str] | None = None
    """Names the intent of a question where the caller does not."""
    breaker: Breaker | None = None
    shadow: Shadow | None = None
    made_at: float = 0.0
    """When the deployment was made: seconds since 1970."""
    sign: Sign | None = None
    """Makes of an id what feedback takes as a target; None: the id itself."""


@dataclass(slots=True)
class Answer:
    """What goes back to the client. Send it, then call `sent`, once, whether all of it arrived or not."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunks: Iterator[bytes] | None = None
    """In place of `body`: server-sent events."""
    told: Callable[[float], None] | None = field(default=None, repr=False)

    def sent(self, first_at: float) -> None:
        """`first_at`: when its first byte went out, by time.perf_counter()."""
        told, self.told = self.told, None
        if told is not None:
            told(first_at)


@dataclass(slots=True)
class _Turn:
    """One request on its way."""

    id: str
    at: float
    began: float
    asked: Asked
    site: Site
    state: ServingState
    tenant: str
    example: Example
    episode: str
    intent: str = ""
    arm: str = ""
    propensity: float = 1.0
    served: str = ""
    """Snapshot that answers."""


class Gateway:
    """All deployments of this process behind one interface."""

    def __init__(
        self,
        sites: Mapping[str, Site],
        *,
        concurrency: int = 256,
        queue: int = 512,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`concurrency`: answers under way at once; `queue`: requests that wait for a place, more are refused."""
        self.sites = dict(sites)
        self._slots = Slots(concurrency)
        self._concurrency = concurrency
        self._most = concurrency + queue
        self._within = 0
        self._clock = clock
        self.refused = 0
        """Requests that found no place."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return max(0, self._within - self._concurrency)

    @property
    def busy(self) -> float:
        """Share of the places that are in use."""
        return min(1.0, self._within / self._concurrency)

    @property
    def under_way(self) -> int:
        """Requests that are being answered or wait for it."""
        return self._within

    async def complete(self, body: Any, who: str = "") -> Answer:
        """The answer to a chat request; `who`: tenant of the key that it came with.

        Raises: asyncio.CancelledError only, once that is recorded.
        """
        began, at = time.perf_counter(), self._clock()
        id = reply.uuid7(at)
        try:
            asked = read(body)
            site = self.site(asked.model)
            input = site.shape.read(asked.said)
            await self._enter()
            try:
                return await self._turn(id, at, began, asked, site, input, who)
            finally:
                self._within -= 1
                self._slots.leave()
        except Rejected as error:
            return failed(error, id)
        except Exception as error:
            log.exception("request %s failed within", id)
            kind = str(error) if isinstance(error, EvoclusterError) else type(error).__name__
            return failed(Rejected(500, "internal_error", f"the gateway failed: {kind}; its log says more"), id)

    def site(self, name: str) -> Site:
        """The deployment of that name. Raises: Rejected."""
        found = self.sites.get(name)
        if found is None:
            there = ", ".join(sorted(self.sites)) or "none"
            raise Rejected(404, "model_not_found", f"no deployment {name!r:.200}; there are: {there}")
        return found

    def models(self) -> bytes:
        """The deployments, as OpenAI lists models."""
        return reply.listed((name, site.made_at) for name, site in self.sites.items())

    def model(self, name: str) -> bytes:
        """One of them. Raises: Rejected."""
        return reply.one_model(name, self.site(name).made_at)

    def health(self) -> dict[str, Any]:
        """What an operator asks: how busy, and how each deployment stands."""
        deployments = [site.follower.health() for site in self.sites.values()]
        return {
            "under_way": self._within,
            "waiting": self.waiting,
            "refused": self.refused,
            "ledger": all(one.get("ledger", False) for one in deployments),
            "deployments": deployments,
        }

    async def _enter(self) -> None:
        """Wait for a place. Raises: Rejected: too many wait."""
        if self._within >= self._most:
            self.refused += 1
            text = f"{self._within} requests are under way or wait; ask again in a moment"
            raise Rejected(429, "too_many_requests", text, RETRY_AFTER_S)
        self._within += 1
        try:
            await self._slots.enter()
        except BaseException:
            self._within -= 1
            raise

    async def _turn(self, id: str, at: float, began: float, asked: Asked, site: Site, input: Json, who: str) -> Answer:
        state = site.follower.state  # read once: everything of this request is of this one epoch
        example = born(Example, {"id": id, "input": _frozen(input), "expected": None, "meta": FrozenDict()})
        turn = _Turn(id, at, began, asked, site, state, who, example, asked.episode_id or id)
        turn.intent = _intent(asked, site, input)
        self._route(turn)
        try:
            answered = await state.answerers[turn.served].answer(example, turn.intent, turn.episode)
        except asyncio.CancelledError:
            gone = Answered(LEFT, "", latency_ms=(time.perf_counter() - began) * 1000, error_class="client")
            self._told(turn, gone, "the caller went away", 0.0)
            raise
        return self._answer(turn, answered)

    def _route(self, turn: _Turn) -> None:
        """Give the request its arm, and the snapshot that answers: another one where the arm was stopped meanwhile."""
        state, site = turn.state, turn.site
        pick: Picked = _Sole(state.incumbent)
        if state.arms:
            pick = site.assign(state.arms, state.secret, state.experiment, turn.episode)
        turn.arm, turn.propensity, turn.served = pick.arm, pick.propensity, pick.arm
        if site.breaker is None or site.breaker.allows(pick.arm):
            return
        other = state.incumbent if pick.arm != state.incumbent else state.stable
        if other in state.answerers:
            turn.served = other

    def _answer(self, turn: _Turn, answered: Answered) -> Answer:
        execution, asked = answered.execution, turn.asked
        sign = turn.site.sign
        target, episode = (sign(turn.id, "request"), sign(turn.episode, "episode")) if sign else (turn.id, turn.episode)
        headers = {
            "x-evocluster-request-id": target,
            "x-evocluster-episode-target": episode if episode.isascii() else quote(episode),
            "x-evocluster-arm": turn.arm,
            "x-evocluster-snapshot": turn.served,
        }
        if answered.error_class in STATUSES:
            rejected = _rejected(answered)
            answer = failed(rejected, target, headers)
            if answered.error_class == "format":  # it was asked for again already; OpenAI's clients would do so twice
                answer.headers["x-should-retry"] = "false"
            answer.told = lambda first: self._told(turn, answered, execution.error or rejected.message, first)
            return answer
        finish = answered.finish_reason if answered.finish_reason in FINISHES else "stop"
        said = (target, asked.model, turn.at, turn.served, execution.output, finish)
        answer = Answer(200, headers, told=lambda first: self._told(turn, answered, "", first))
        if asked.stream:
            headers["content-type"] = EVENTS
            headers["cache-control"] = "no-cache"
            answer.chunks = reply.chunks(*said, execution.usage if asked.include_usage else None)
        else:
            headers["content-type"] = JSON
            answer.body = reply.completion(*said, execution.usage)
        return answer

    def _told(self, turn: _Turn, answered: Answered, error: str, first: float) -> None:
        """Everybody who has to know, once the client has its answer. Raises: nothing."""
        execution, site = answered.execution, turn.site
        exchange = _exchange(turn, answered, redacted(error) if error else "", first)
        try:
            site.recorder.record(exchange, turn.example.input, execution.output, exchange.error, turn.asked.user)
            if site.breaker is not None:
                site.breaker.observe(turn.served, answered.error_class, answered.latency_ms, turn.at)
            if site.shadow is not None and exchange.error_class != "client":
                site.shadow.offer(exchange, turn.example, answered)
        except Exception:
            log.exception("request %s was answered and not recorded whole", turn.id)


def _intent(asked: Asked, site: Site, input: Json) -> str:
    """As the caller says, else as it is found; unknown: ''."""
    if asked.intent is not None or site.intent is None:
        return asked.intent or ""
    try:
        return site.intent(input)
    except Exception:
        log.exception("the intent of a question to %s was not found", asked.model)
        return ""


def failed(error: Rejected, id: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as an answer."""
    told = {"x-evocluster-request-id": id, **(headers or {}), "content-type": JSON}
    if error.retry_after_s is not None:
        told["retry-after"] = f"{error.retry_after_s:.0f}"
    return Answer(error.status, told, reply.failure(error))


def _rejected(answered: Answered) -> Rejected:
    """What a client is told of a failed answer."""
    error = answered.execution.error or ""
    if error.startswith("model: RateLimited"):
        return Rejected(429, "provider_rate_limited", f"the model's provider turned us away: {error}", RETRY_AFTER_S)
    status, code = STATUSES[answered.error_class]
    if answered.error_class == "format":
        error = "the model's answer is none that this deployment may give, also after asking again"
    return Rejected(status, code, error)


def _exchange(turn: _Turn, answered: Answered, error: str, first: float) -> Exchange:
    """The record of a request: all fields, in their order, of values that are known to be right."""
    execution, used = answered.execution, answered.execution.usage
    state = turn.state
    return born(
        Exchange,
        {
            "request_id": turn.id,
            "episode_id": turn.episode,
            "deployment": state.deployment,
            "at": turn.at,
            "tenant": turn.tenant,
            "intent": turn.intent,
            "model": answered.model,
            "arm": turn.arm,
            "snapshot_id": turn.served,
            "epoch": state.epoch,
            "experiment": state.experiment,
            "propensity": turn.propensity,
            "eligible_arms": state.eligible,
            "is_shadow": False,
            "pair_id": "",
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "calls": used.calls,
            "cost_usd": used.usd,
            "latency_ms": answered.latency_ms,
            "ttft_ms": (first - turn.began) * 1000 if first else 0.0,
            "finish_reason": answered.finish_reason,
            "error_class": answered.error_class,
            "error": error,
            "confidence": execution.confidence,
            "escalated": answered.escalated,
            "repairs": execution.repairs,
            "schema_ok": bool(execution.schema_ok),
            "flags": execution.flags,
            "notes": answered.notes,
            "signals": FrozenDict(turn.asked.signals),
            "redaction_version": "",
            "user": turn.asked.user,
        },
    )


def _frozen(input: Json) -> Json:
    """The input as a record holds it."""
    return input if isinstance(input, str) else Example(id="", input=input).input
