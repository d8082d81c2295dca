"""An event loop whose clock jumps to the next timer instead of waiting for it: minutes in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Impatient(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See above; nothing in it may wait for the world outside."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        """Virtual seconds since it was made."""
        return self._impatient.now


def virtually(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, its waiting skipped."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
