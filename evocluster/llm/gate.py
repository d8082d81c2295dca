"""How many calls one process has in flight: slots, and a line before every model.

    Gate (one a model)  ->  Limited: a slot, and leave of the endpoint  ->  the request

A call holds a slot only while its request is under way. Who has to wait for its endpoint steps aside and lets calls of
other models in; once it has leave it comes before all who have none. No model has more calls at its endpoint's door
than there are slots, so what waits there asks for no more of the quota than could be used. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from evocluster.llm.client import LLM, Reply, Request


class Slots:
    """So many places, first come first served. Call order: `enter`, then `leave`."""

    def __init__(self, count: int | None = None) -> None:
        """None: there is always one."""
        self._count = count
        self._taken = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._front: deque[asyncio.Future[None]] = deque()
        self.aside = 0
        """Calls that wait for their endpoint and hold no slot meanwhile."""

    async def enter(self, front: bool = False) -> None:
        """Wait for a slot; `front`: before all who did not say so."""
        if not self._front and (front or not self._line) and self._free:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._front if front else self._line).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Give a slot back."""
        self._taken -= 1
        self._admit()

    @contextmanager
    def stepped_aside(self) -> Iterator[None]:
        """While this lasts a call waits for its endpoint, without a slot."""
        self.aside += 1
        try:
            yield
        finally:
            self.aside -= 1

    def resize(self, count: int) -> None:
        """Other slots from now on; with fewer, who holds those above them is waited for."""
        self._count = count
        self._admit()

    @property
    def _free(self) -> bool:
        return self._count is None or self._taken < self._count

    def _admit(self) -> None:
        while self._free and (line := self._front or self._line):
            turn = line.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)


class Gate:
    """An LLM with at most `slots` calls at once, first come first served."""

    def __init__(self, llm: LLM, slots: int) -> None:
        self._llm = llm
        self._slots = Slots(slots)

    async def __call__(self, request: Request) -> Reply:
        """Waits for a slot; then as the LLM behind."""
        await self._slots.enter()
        try:
            return await self._llm(request)
        finally:
            self._slots.leave()

    def resize(self, slots: int) -> None:
        """Other slots from now on; with fewer, what is in flight above them is waited for."""
        self._slots.resize(slots)
