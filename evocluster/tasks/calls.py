"""The models as one run of a program sees them: every call counted, written down, and timed as if nothing was cached.

Latency is the critical path. A call begins where the calls before it in its own asyncio task ended, and where those
of the tasks ended that this task waited for; so samples asked for side by side take as long as the slowest, also
when all answers come from the cache at once. It is exact where tasks that make tasks have asked something before,
and else may come out too long, never too short. (Virtual time: Jefferson 1985, "Virtual Time", section 2.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from evocluster.errors import ModelError, TooManyCalls
from evocluster.llm.client import LLM, Message, Reply, Request, usage
from evocluster.records import Genome, Json, Usage, born
from evocluster.tasks.execution import Step

T = TypeVar("T")
NOTHING = Usage()
"""What is used before anything is."""
Prompt = str | Sequence[Message | Mapping[str, str]]


class _Clock:
    """Virtual time in one asyncio task, seconds since the run began."""

    def __init__(self, task: asyncio.Task[Any] | None, parent: _Clock | None = None) -> None:
        """`parent`: the clock of the task that made this one."""
        self.task = task
        self._parts: list[_Clock] = []
        self._at = parent.now() if parent else 0.0
        if parent:
            parent._parts.append(self)

    def now(self) -> float:
        """When everything has ended that this task did or waited for."""
        ended = [part.now() for part in self._parts if part.task is None or part.task.done()]
        return max(self._at, *ended) if ended else self._at

    def end(self) -> float:
        """When all of it has ended, tasks that nobody waited for included."""
        return max([self._at, *(part.end() for part in self._parts)])

    def spent(self, started: float, seconds: float) -> None:
        """A call that began at `started` took so long."""
        self._at = max(self._at, started + seconds)


_CLOCK: ContextVar[tuple[Calls, _Clock] | None] = ContextVar("evocluster_clock", default=None)


class Calls:
    """An `LLM` for one run: `await llm(Request(...))`, or `await llm.ask("...")` with the genome's settings.

    A request's `replicate` and `seed` are offsets to those of the run, so that replicates of an example differ.
    """

    def __init__(
        self,
        llm: LLM,
        genome: Genome | None = None,
        *,
        seed: int = 0,
        replicate: int = 0,
        limit: int | None = None,
        begun: Usage | None = None,
    ) -> None:
        """`limit`: the most calls; one more raises `TooManyCalls`. `begun`: what was used before the first call."""
        self._llm = llm
        self._genes: Mapping[str, Any] = genome.genes if genome else {}
        self._seed = seed
        self._replicate = replicate
        self._limit = limit
        self._made = 0
        self._usage = begun or NOTHING
        self._root = _Clock(_present_task())
        self._root.spent(0.0, self._usage.seconds)
        self.trace: list[Step] = []
        """The calls in the order they ended, and the notes."""

    @property
    def usage(self) -> Usage:
        """What has been used so far; `seconds` is the critical path."""
        seconds = self._root.end()
        return self._usage if seconds == self._usage.seconds else self._usage.model_copy(update={"seconds": seconds})

    async def __call__(self, request: Request, step: str = "answer") -> Reply:
        """Raises: errors.ModelError; errors.TooManyCalls."""
        if self._limit is not None and self._made >= self._limit:
            raise TooManyCalls(
                f"more than {self._limit} model calls for one example; raise `executor.calls`, by which budgets reckon"
            )
        self._made += 1
        if self._seed or self._replicate:
            offset = {
                "seed": (request.seed + self._seed) & 0x7FFFFFFF,
                "replicate": request.replicate + self._replicate,
            }
            request = request.model_copy(update=offset)
        clock = await self._clock()
        started = clock.now()
        try:
            reply = await self._llm(request)
        except ModelError as failure:
            self._usage = self._usage + (failure.used or Usage())
            raise
        clock.spent(started, reply.seconds)
        self._usage = usage(reply) if self._usage is NOTHING else self._usage + usage(reply)
        self.trace.append(born(Step, {"purpose": step, "prompt": show_request(request), "reply": reply.text}))
        return reply

    async def ask(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        json_schema: Json = None,
        replicate: int = 0,
        step: str = "answer",
    ) -> str:
        """The text of one reply to a user message or a list of messages; what is left out is as the genome says.

        `replicate` 1, 2... are further samples of the same question. Raises: errors.ModelError.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request = Request(
            model=model or self._genes.get("model", "default"),
            messages=tuple(Message.model_validate(message) for message in messages),
            temperature=self._gene("temperature", temperature, 0.0),
            max_tokens=self._gene("max_tokens", max_tokens, 64),
            stop=tuple(stop),
            choices=tuple(choices),
            json_schema=json_schema,
            seed=replicate,
            replicate=replicate,
        )
        return (await self(request, step)).text

    def note(self, purpose: str, prompt: str, reply: str) -> None:
        """Write down a step that is no model call, e.g. what was looked up and found."""
        self.trace.append(Step(purpose=purpose, prompt=prompt, reply=reply))

    def _gene(self, name: str, given: Any, default: Any) -> Any:
        return self._genes.get(name, default) if given is None else given

    async def _clock(self) -> _Clock:
        """The clock of the present task."""
        task = _present_task()
        held = _CLOCK.get()
        clock = held[1] if held and held[0] is self else self._root
        if clock.task is not task:
            clock = _Clock(task, clock)
            _CLOCK.set((self, clock))
            # Tasks that were made together begin together, also where the first would be answered at once.
            await asyncio.sleep(0)
        return clock


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All of it side by side, in its order; where one fails the others are cancelled before it is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _present_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def show_request(request: Request) -> str:
    """All of a request's text, for traces."""
    if request.prompt is not None:
        return request.prompt
    return "\n\n".join(f"{message.role}: {message.content}" for message in request.messages)
