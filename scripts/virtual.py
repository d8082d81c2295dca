"""An event loop whose time is virtual, and processes that die in it: the ground the simulator stands on.

One thread, no sleeping, no sockets: when nothing is ready the clock jumps to the next timer, and when there is none
the loop says so (`Deadlock`). A `Process` is whatever runs in its context; `kill` ends it between two steps as SIGKILL
does: nothing that it had scheduled happens any more, and nothing that it still does reaches anybody.

The idea is FoundationDB's (Zhou et al. 2021, "FoundationDB: A Distributed Unbundled Transactional Key Value Store",
section 4). looptime and aiotools' VirtualClock, which exist, poll a real selector and know no processes.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any

THROWS = 100
"""How often a killed coroutine may wait again in its own clearing up before it is left as it is."""


MANY = 64
"""Tasks of a process before it is looked which of them are done."""


@contextmanager
def swapped(values: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts, these names (`module.name`) stand for these values; mock.patch does it in ten times the time."""
    before = []
    try:
        for path, value in values.items():
            module, name = path.rsplit(".", 1)
            before.append((sys.modules[module], name, getattr(sys.modules[module], name)))
            setattr(sys.modules[module], name, value)
        yield
    finally:
        for room, name, value in reversed(before):
            setattr(room, name, value)


class Deadlock(Exception):
    """Nothing is ready and no timer is set: what waits would wait for ever."""


class Overtime(Exception):
    """The clock passed the end that was set for it."""


class Killed(BaseException):
    """What ends the code of a process that was killed; its `finally` blocks reach nothing outside."""


class Process:
    """One simulated process: its tasks, and what the world does when it dies."""

    def __init__(self, name: str, node: str) -> None:
        self.name = name
        self.node = node
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Those that may not be done."""
        self._many = MANY
        self.deaths: list[Callable[[], None]] = []
        """Called when it dies, before its code ends."""
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def holds(self, task: asyncio.Task[Any]) -> None:
        """A task is its own; what is done is let go of now and then."""
        self.tasks[task] = None
        if len(self.tasks) > self._many:
            self.tasks = {one: None for one in self.tasks if not one.done()}
            self._many = MANY + 2 * len(self.tasks)


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""Whose code runs; None is the world itself."""


class _Task(asyncio.Task[Any]):
    """A task that hashes by its birth: an order of a set of tasks must not depend on addresses."""

    def __init__(self, coro: Any, born: int, loop: asyncio.AbstractEventLoop, context: Context | None) -> None:
        self._born = born
        super().__init__(coro, loop=loop, name="", context=context)

    def __hash__(self) -> int:
        return self._born


class _Step:
    """What asyncio calls a handle, without what asyncio keeps for debugging: half of all time was spent on that."""

    __slots__ = ("_when", "args", "callback", "context", "dropped")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, when: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.dropped = False
        self._when = when

    def cancel(self) -> None:
        """See asyncio.Handle."""
        self.dropped = True

    def cancelled(self) -> bool:
        """See asyncio.Handle."""
        return self.dropped

    def when(self) -> float:
        """See asyncio.TimerHandle."""
        return self._when


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs everything of one simulated world. Call order: construct, `run_until_complete`, `close`."""

    _ready: deque[_Step]
    _scheduled: list[tuple[float, int, _Step]]
    """By time and then by birth: comparing handles takes ten times as long."""
    _stopping: bool

    def __init__(self, end_s: float) -> None:
        super().__init__()
        self._now = 0.0
        self._end_s = end_s
        self._born = 0
        self._timers = 0
        self.steps = 0
        """Callbacks run so far."""
        self.at_step: dict[int, Callable[[], None]] = {}
        """What the world does right before a step."""
        self.mishaps: list[str] = []
        """Exceptions that nobody took, of living processes."""
        self.world = copy_context()
        self.set_exception_handler(self._mishap)

    def time(self) -> float:
        """Seconds since the world began."""
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Step:
        """See asyncio."""
        step = _Step(callback, args, copy_context() if context is None else context, self._now)
        self._ready.append(step)
        return step

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Step:
        """See asyncio."""
        timer = _Step(callback, args, copy_context() if context is None else context, when)
        self._timers += 1
        heappush(self._scheduled, (when, self._timers, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Step:
        """See asyncio."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def later(self, delay_s: float, what: Callable[..., object], *args: Any) -> _Step:
        """Something that the world does, whoever lives by then."""
        return self.call_at(self._now + delay_s, what, *args, context=self.world)

    def spawn(self, coro: Coroutine[Any, Any, Any], process: Process) -> asyncio.Task[Any]:
        """A task of this process."""
        return self.create_task(coro, context=process.context.copy())

    def run_in_executor(self, *_: object) -> Any:
        """Refused: there is one thread. Raises: RuntimeError."""
        raise RuntimeError("the simulated world has one thread: nothing can run beside it; make it a coroutine")

    def kill(self, process: Process) -> None:
        """End a process as SIGKILL does. Raises: Killed, where its own code asks for it."""
        if not process.alive:
            return
        process.alive = False
        for each in process.deaths:
            each()
        own = asyncio.current_task(self) if events._get_running_loop() is self else None
        for task in list(process.tasks):
            if task.done():
                continue
            if task is own:
                self.later(0, self._abandon, task, process)
            else:
                self._abandon(task, process)
        if own in process.tasks:
            raise Killed

    def _abandon(self, task: asyncio.Task[Any], process: Process) -> None:
        """Unwind a coroutine of a dead process; nobody hears of it."""
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coro: Any = task.get_coro()
        for _ in range(THROWS):
            try:
                process.context.copy().run(coro.throw, Killed())
            except BaseException:
                return

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> asyncio.Task[Any]:
        """See asyncio; one of a dead process never begins."""
        process = PROCESS.get() if context is None else context.get(PROCESS)
        self._born += 1
        task = _Task(coro, self._born, self, context)
        if process is None:
            return task
        if not process.alive:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro.close()
            return task
        process.holds(task)
        return task

    def _mishap(self, _: object, told: dict[str, Any]) -> None:
        error = told.get("exception")
        if not isinstance(error, Killed):
            self.mishaps.append(f"{told.get('message')}: {error!r}")

    def _process_events(self, event_list: Any) -> None:
        """There is no input or output."""

    def _run_once(self) -> None:
        """Step by step until it is told to stop: all that is ready, then what comes next in time."""
        ready = self._ready
        while not self._stopping:
            self._pass()
            for _ in range(len(ready)):
                step = ready.popleft()
                owner = step.context.get(PROCESS)
                if step.dropped or (owner is not None and not owner.alive):
                    continue
                self.steps += 1
                if self.steps in self.at_step:
                    self.at_step.pop(self.steps)()
                    if owner is not None and not owner.alive:
                        continue
                self._run(step)

    def _run(self, step: _Step) -> None:
        try:
            step.context.run(step.callback, *step.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._mishap(self, {"message": f"Exception in callback {step.callback!r}", "exception": error})

    def _pass(self) -> None:
        """Let time pass where nothing is ready, and make ready what is due."""
        scheduled = self._scheduled
        while scheduled and scheduled[0][2].dropped:
            heappop(scheduled)
        if not self._ready:
            self._jump()
        while scheduled and scheduled[0][0] <= self._now:
            self._ready.append(heappop(scheduled)[2])

    def _jump(self) -> None:
        if not self._scheduled:
            waiting = [str(task.get_coro()) for task in asyncio.all_tasks(self)]
            raise Deadlock(f"nothing is ready and no timer is set at {self._now:.3f} s; waiting: {sorted(waiting)}")
        self._now = max(self._now, self._scheduled[0][0])
        if self._now > self._end_s:
            raise Overtime(f"not over after {self._end_s:g} s of virtual time")
