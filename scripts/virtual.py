"""An event loop whose time is virtual, and processes that die in it: the ground the simulator stands on.

One thread, no sleeping, no sockets: when nothing is ready the clock jumps to the next timer, and when there is none
the loop says so (`Deadlock`). A `Process` is whatever runs in its context; `kill` ends it between two steps as SIGKILL
does: nothing that it had scheduled happens any more, and nothing that it still does reaches anybody.

The idea is FoundationDB's (Zhou et al. 2021, "FoundationDB: A Distributed Unbundled Transactional Key Value Store",
section 4). looptime and aiotools' VirtualClock, which exist, poll a real selector and know no processes.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

THROWS = 100
"""How often a killed coroutine may wait again in its own clearing up before it is left as it is."""


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
        self.deaths: list[Callable[[], None]] = []
        """Called when it dies, before its code ends."""
        self.context = copy_context()
        self.context.run(PROCESS.set, self)


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""Whose code runs; None is the world itself."""


class _Task(asyncio.Task[Any]):
    """A task that hashes by its birth: an order of a set of tasks must not depend on addresses."""

    def __init__(self, coro: Any, born: int, loop: asyncio.AbstractEventLoop, context: Context | None) -> None:
        self._born = born
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._born


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs everything of one simulated world. Call order: construct, `run_until_complete`, `close`."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[tuple[float, int, asyncio.TimerHandle]]
    """By time and then by birth: comparing handles takes ten times as long."""

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
        self.set_task_factory(self._made)
        self.set_exception_handler(self._mishap)

    def time(self) -> float:
        """Seconds since the world began."""
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers += 1
        heapq.heappush(self._scheduled, (when, self._timers, timer))
        return timer

    def later(self, delay_s: float, what: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Something that the world does, whoever lives by then."""
        return self.call_later(delay_s, what, *args, context=self.world.copy())

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

    def _made(self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        self._born += 1
        task = _Task(coro, self._born, loop, context)
        if process is None:
            return task
        if not process.alive:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro.close()
            return task
        process.tasks[task] = None
        task.add_done_callback(lambda done: process.tasks.pop(done, None), context=self.world)
        return task

    def _mishap(self, _: object, told: dict[str, Any]) -> None:
        error = told.get("exception")
        if not isinstance(error, Killed):
            self.mishaps.append(f"{told.get('message')}: {error!r}")

    def _process_events(self, event_list: Any) -> None:
        """There is no input or output."""

    def _run_once(self) -> None:
        """All that is ready; else what comes next in time."""
        while self._scheduled and self._scheduled[0][2]._cancelled:
            heapq.heappop(self._scheduled)
        if not self._ready:
            self._jump()
        while self._scheduled and self._scheduled[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._scheduled)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            owner = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if handle._cancelled or (owner is not None and not owner.alive):
                continue
            self.steps += 1
            if self.steps in self.at_step:
                self.at_step.pop(self.steps)()
                if owner is not None and not owner.alive:
                    continue
            handle._run()

    def _jump(self) -> None:
        if not self._scheduled:
            waiting = [str(task.get_coro()) for task in asyncio.all_tasks(self)]
            raise Deadlock(f"nothing is ready and no timer is set at {self._now:.3f} s; waiting: {sorted(waiting)}")
        self._now = max(self._now, self._scheduled[0][0])
        if self._now > self._end_s:
            raise Overtime(f"not over after {self._end_s:g} s of virtual time")
