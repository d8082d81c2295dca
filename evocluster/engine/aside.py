"""Work done to its end where an event loop may be running already: in this thread, or in one beside it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def aside(work: Callable[[], T], stop: threading.Event | None = None) -> T:
    """What the work returns, done in this thread, or in another one where an event loop is running (a notebook).

    Interrupted while it waits, it sets `stop` and lets the work end by itself before it raises.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised in the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=body, name="evocluster-run")
    thread.start()
    try:
        thread.join()
    except BaseException:
        if stop is not None:
            stop.set()
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
