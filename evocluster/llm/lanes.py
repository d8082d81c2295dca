"""Who is served next by which model server, so that a prompt meets the cache that knows its beginning.

A lane is one slot of one server: it holds the prompt it computed last, and what the next prompt shares with that
one costs nothing. Evaluations come in batches that differ in their last words only, so a lane serves one batch
after another instead of a bit of each. In order of preference a lane gets

1. a prompt whose beginning it knows (the one it knows most of);
2. a prompt whose beginning no lane knows, once the lane has lingered a little for more of the same;
3. when its whole server would stand idle, a prompt that waits for a busy lane, once the waiting has cost a good
   part of what reading the beginning again would.

Nobody is passed over more than PATIENCE times.

    lane = await lanes.take(text) ... lanes.give(lane)

Belongs to one event loop. Several users of the same servers each have their own lanes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from evocluster.errors import ModelError

READ_S = 0.001
"""Seconds to read one character of prompt that is not cached (4.5 ms a token of about 4, one thread)."""
WARM = 0.5
"""Share of a prompt that a lane must know for the prompt to wait for that lane."""
LINGER = 0.03
"""A lane lingers for this share of what reading its beginning again would cost, at most LINGER_S."""
LINGER_S = 0.03
MOVE = 0.25
"""Prompts move to an idle server when together they have waited this share of the cost, at most MOVE_S."""
MOVE_S = 0.25
PATIENCE = 64
SEEN = 256
"""Waiting prompts that are compared."""
REST_S = 5.0
"""How long a server that gave no answer is left out while others answer."""


@dataclass
class _Lane:
    number: int
    server: int
    text: str = ""
    busy: bool = False
    free_at: float = 0.0
    """When it was given back, on the loop's clock."""


@dataclass(eq=False)
class _Wait:
    text: str
    turn: asyncio.Future[int]
    came_at: float
    passed: int = 0

    def known(self, lane: _Lane) -> int:
        """Characters of it that the lane knows; 0 when they are too few to matter."""
        common = shared(self.text, lane.text)
        return common if common >= WARM * len(self.text) else 0


def shared(one: str, other: str) -> int:
    """Length of the beginning that two texts have in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Lanes:
    """`slots` lanes for each of `servers` servers."""

    def __init__(self, servers: int, slots: int) -> None:
        numbers = range(servers * slots)
        self._lanes = [_Lane(number, number % servers) for number in numbers]
        self._waiting: list[_Wait] = []
        self._resting: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def server(self, lane: int) -> int:
        """Number of the server that a lane belongs to."""
        return self._lanes[lane].server

    async def take(self, text: str) -> int:
        """Wait for a lane; its number. Raises: ModelError after `stop`."""
        loop = asyncio.get_running_loop()
        wait = _Wait(text, loop.create_future(), loop.time())
        self._waiting.append(wait)
        self._match()
        try:
            return await wait.turn
        except asyncio.CancelledError:
            if wait in self._waiting:
                self._waiting.remove(wait)
            elif not wait.turn.cancelled() and wait.turn.exception() is None:
                self.give(wait.turn.result())
            raise

    def give(self, number: int, answered: bool = True) -> None:
        """Return a lane; `answered` False: its server gave no answer, so it rests for a while."""
        lane = self._lanes[number]
        lane.busy = False
        lane.free_at = asyncio.get_running_loop().time()
        if not answered:
            lane.text = ""
            self._resting[lane.server] = lane.free_at + REST_S
        self._match()

    def stop(self) -> None:
        """No more turns: whoever waits gets a ModelError."""
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, []
        for wait in waiting:
            if not wait.turn.done():
                wait.turn.set_exception(ModelError("the embedded model was closed while calls waited for it"))

    def _match(self) -> None:
        """Hand out turns while there is a lane for one; come back when the next one is due."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while option := self._option(loop.time()):
            due, wait, lane = option
            if due > loop.time():
                self._timer = loop.call_at(due, self._match)
                return
            self._turn(wait, lane)

    def _turn(self, wait: _Wait, lane: _Lane) -> None:
        place = self._waiting.index(wait)
        for earlier in self._waiting[:place]:
            earlier.passed += 1
        del self._waiting[place]
        if not wait.turn.done():
            lane.busy, lane.text = True, wait.text
            wait.turn.set_result(lane.number)

    def _option(self, now: float) -> tuple[float, _Wait, _Lane] | None:
        """The next turn: when it is due, whose it is, and where."""
        free = self._free(now)
        if not free or not self._waiting:
            return None
        seen = self._waiting[:SEEN]
        if seen[0].passed >= PATIENCE:
            return 0.0, seen[0], max(free, key=seen[0].known)
        best, wait, lane = max(
            ((wait.known(lane), wait, lane) for wait in seen for lane in free), key=lambda found: found[0]
        )
        if best:
            return 0.0, wait, lane
        lane = min(free, key=lambda lane: (self._load(lane.server), lane.free_at))
        linger = lane.free_at + min(LINGER * READ_S * len(lane.text), LINGER_S)
        for wait in seen:
            if not any(wait.known(lane) for lane in self._lanes):
                return linger, wait, lane
        if self._load(lane.server):
            return None
        first = seen[0]
        patience = min(MOVE * READ_S * len(first.text), MOVE_S) / len(seen)
        return max(linger, first.came_at + patience), first, lane

    def _load(self, server: int) -> int:
        return sum(lane.busy for lane in self._lanes if lane.server == server)

    def _free(self, now: float) -> list[_Lane]:
        self._resting = {server: until for server, until in self._resting.items() if until > now}
        everybody_rests = len(self._resting) == len({lane.server for lane in self._lanes})
        return [lane for lane in self._lanes if not lane.busy and (everybody_rests or lane.server not in self._resting)]
