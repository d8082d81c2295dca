"""Lanes for code that may hang: daemon threads and event loops that are left behind when a deadline passes.

`in_thread` runs a plain function in a thread of its own. `on_lane` runs an async one on an event loop that all of
them share, so clients they keep in a module go on working; a loop that one of them blocks is replaced. Pure Python
that hangs is stopped by an exception thrown into its thread; what cannot be stopped (a system call) is abandoned,
and past `MAX_ABANDONED` of those further calls fail at once. Nothing here keeps the interpreter from exiting, which
the threads of concurrent.futures do.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

MAX_ABANDONED = 32
"""Threads that hang beyond their deadline, at most, in a process."""
PING_S = 0.5
"""How long an event loop may take to answer before it counts as blocked."""
RETRIES = 3
"""Loops that a call which never began is offered to."""

_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURS = str(Path(__file__).parents[1])


class Stopped(BaseException):
    """Thrown into a thread whose deadline passed; no `except Exception` of the user's keeps it."""


class Outcome:
    """What a call came to: a value or an exception."""

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error

    def get(self, name: str) -> Any:
        """The value. Raises: the exception; one that would end more than this call (SystemExit) as RuntimeError."""
        if self.error is None:
            return self.value
        if isinstance(self.error, Exception):
            raise self.error
        text = f"{name} raised {type(self.error).__name__}({self.error}); allowed: to return, or an ordinary exception"
        raise RuntimeError(text) from self.error


async def in_thread(function: Callable[[], Any], timeout_s: float, name: str, file: str = "") -> Any:
    """What the function returns, run in a daemon thread with this context's variables.

    Raises: what it raises; TimeoutError past the deadline; RuntimeError while too many calls hang.
    """
    _refuse_more()
    runner = _Runner(function, name)
    try:
        await asyncio.wait([runner.done], timeout=timeout_s)
        if not runner.done.done():
            raise late(name, timeout_s, spot(stack(runner.thread), file))
    finally:
        runner.abandon()
    outcome: Outcome = runner.done.result()
    return outcome.get(name)


async def on_lane(function: Callable[[], Awaitable[Any]], timeout_s: float, name: str, file: str = "") -> Any:
    """What the async function returns, run on the shared event loop apart; its deadline counts from its start.

    Raises: as in_thread.
    """
    lane, turn = await _begun(function, timeout_s, name)
    try:
        await asyncio.wait([turn.done], timeout=timeout_s)
        if not turn.done.done():
            where = await lane.unblock(file)
            raise late(name, timeout_s, f"{where}, which blocks the event loop" if where else "")
    finally:
        turn.cancel(lane.loop)
    outcome: Outcome = turn.done.result()
    return outcome.get(name)


def late(name: str, timeout_s: float, where: str = "") -> TimeoutError:
    """The error of a call that passed its deadline; `where` it stood then."""
    stood = f"; it stood at {where}" if where else ""
    return TimeoutError(f"{name} did not return within {timeout_s:g} s{stood}; make it faster or raise timeout_s")


def stack(thread: threading.Thread) -> list[FrameType]:
    """Where a thread stands now, outermost frame first."""
    frame = sys._current_frames().get(thread.ident or 0)
    return [each for each, _ in traceback.walk_stack(frame)][::-1] if frame else []


def spot(frames: Iterable[FrameType | TracebackType], file: str = "") -> str:
    """'evals.py:12 in polite': the innermost frame in `file`, else outside of libraries; '' where there is none."""
    places = [_place(frame) for frame in frames]
    for fits in (lambda path: path == file, lambda path: not path.startswith((*_LIBRARIES, _OURS, "<frozen"))):
        for path, line, name in reversed(places):
            if fits(path):
                return f"{Path(path).name}:{line}" + (f" in {name}" if name != "<module>" else "")
    return ""


def _place(at: FrameType | TracebackType) -> tuple[str, int, str]:
    frame, line = (at, at.f_lineno) if isinstance(at, FrameType) else (at.tb_frame, at.tb_lineno)
    return frame.f_code.co_filename, line, frame.f_code.co_name


_lock = threading.Lock()
_abandoned: dict[threading.Thread, str] = {}


def _abandon(thread: threading.Thread, name: str) -> None:
    with _lock:
        _abandoned[thread] = name


def _refuse_more() -> None:
    with _lock:
        for thread in [thread for thread in _abandoned if not thread.is_alive()]:
            del _abandoned[thread]
        names = sorted(set(_abandoned.values()))
        count = len(_abandoned)
    if count >= MAX_ABANDONED:
        hanging = ", ".join(names)
        raise RuntimeError(f"{count} calls hang and cannot be stopped ({hanging}); give what they wait for a timeout")


def _throw(thread: threading.Thread, kind: type[BaseException] | None) -> None:
    """Have the thread raise this exception as soon as it runs Python again; None takes back one not yet raised."""
    if thread.ident is not None:
        exception = ctypes.py_object(kind) if kind is not None else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), exception)


def _tell(future: asyncio.Future[Any], value: object) -> None:
    """Settle a future of another thread's loop, if anybody there still waits."""

    def settle() -> None:
        if not future.done():
            future.set_result(value)

    _post(future.get_loop(), settle)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Have another thread's loop call this; nothing where the loop is closed: nobody waits there."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


class _Runner:
    """One function in a thread of its own."""

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._name = name
        self._lock = threading.Lock()
        self._running = True
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=self._run, args=(context, function), name=f"user: {name}", daemon=True)
        self.thread.start()

    def abandon(self) -> None:
        """Stop it where that can be done; nothing where it has returned."""
        with self._lock:
            if self._running:
                _abandon(self.thread, self._name)
                _throw(self.thread, Stopped)

    def _run(self, context: contextvars.Context, function: Callable[[], Any]) -> None:
        try:
            try:
                outcome = Outcome(context.run(function))
            except BaseException as error:
                outcome = Outcome(error=error)
            with self._lock:
                self._running = False
            _throw(threading.current_thread(), None)
            _tell(self.done, outcome)
        except Stopped:  # thrown while it was returning: nobody waits
            return


class _Turn:
    """One async call: waiting for a loop, begun or withdrawn, done."""

    def __init__(self, function: Callable[[], Awaitable[Any]], timeout_s: float) -> None:
        home = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = home.create_future()
        self.done: asyncio.Future[Outcome] = home.create_future()
        self._function = function
        self._lock = threading.Lock()
        self._state = "waiting"
        self._task: asyncio.Task[Any] | None = None
        self._timeout_s = timeout_s
        self._deadline = float("inf")

    async def run(self) -> None:
        """On the lane: the call itself."""
        with self._lock:
            if self._state == "withdrawn":
                return
            self._state = "begun"
            self._task = asyncio.current_task()
            self._deadline = time.monotonic() + self._timeout_s
        _tell(self.started, None)
        try:
            outcome = Outcome(await self._function())
        except BaseException as error:
            outcome = Outcome(error=error)
        _tell(self.done, outcome)

    def withdraw(self) -> bool:
        """It will not begin; False where it has."""
        with self._lock:
            if self._state == "waiting":
                self._state = "withdrawn"
            return self._state == "withdrawn"

    def late(self) -> bool:
        """Its deadline has passed."""
        return time.monotonic() >= self._deadline

    def cancel(self, lane: asyncio.AbstractEventLoop) -> None:
        """Have the lane cancel it, unless it is done."""
        if not self.withdraw() and not self.done.done() and self._task is not None:
            _post(lane, self._task.cancel)


class Lane:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.retired = False
        self._turns: dict[asyncio.Task[Any], _Turn] = {}
        self._rescue = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="user: event loop", daemon=True)
        self.thread.start()

    def submit(self, turn: _Turn) -> None:
        """Begin the call as soon as the loop is free, with this context's variables."""
        _post(self.loop, self._begin, turn)

    async def unblock(self, file: str = "") -> str:
        """Where the loop is blocked, '' where it is not. What blocks it past its own deadline is stopped.

        A loop that stays blocked is retired: what began there goes on, what comes goes to a new one.
        """
        if await self._answers():
            return ""
        where = spot(stack(self.thread), file)
        if not self.retired and self._rescue.acquire(blocking=False):
            try:
                task = asyncio.current_task(self.loop)
                turn = self._turns.get(task) if task is not None else None
                if where and (turn is None or turn.late()):
                    _throw(self.thread, Stopped)
                if not await self._answers():
                    self.retired = True
                    _abandon(self.thread, where or "an async function")
            finally:
                self._rescue.release()
        return where

    async def _answers(self) -> bool:
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        _post(self.loop, _tell, pong, None)
        await asyncio.wait([pong], timeout=PING_S)
        return pong.done()

    def _begin(self, turn: _Turn) -> None:
        task = self.loop.create_task(turn.run())
        self._turns[task] = turn
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._turns[task]
        if self.retired and not self._turns:
            self.loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
                break
            except (Stopped, SystemExit, KeyboardInterrupt):  # of one task among many: the others go on
                continue
        self.loop.close()


_lane: Lane | None = None


def _current() -> Lane:
    """The lane in use; a new one where there is none, or the last one is lost."""
    global _lane
    _refuse_more()
    with _lock:
        if _lane is None or _lane.retired or not _lane.thread.is_alive():
            _lane = Lane()
        return _lane


async def _begun(function: Callable[[], Awaitable[Any]], timeout_s: float, name: str) -> tuple[Lane, _Turn]:
    """The call once it has begun, and where. A call that waits behind a blocked loop goes to the next one."""
    for _ in range(RETRIES):
        lane, turn = _current(), _Turn(function, timeout_s)
        lane.submit(turn)
        try:
            await asyncio.wait([turn.started], timeout=max(timeout_s, PING_S))
        except asyncio.CancelledError:
            turn.cancel(lane.loop)
            raise
        if turn.started.done() or not turn.withdraw():
            return lane, turn
        await lane.unblock()
    raise TimeoutError(f"{name} could not begin: other async functions block the event loop; await where they wait")
