"""The log of a job as whole lines to its end, across lost connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from evocluster.cluster.jobs import Job, Jobs
from evocluster.errors import JobError, JobServerAway

PATIENCE_S = 1800.0
FIRST_S, LONGEST_S = 1.0, 30.0
"""Pauses between attempts to connect again; each is twice the one before."""


class Followed:
    """One job. Call order: iterate over `lines`, then `job` is what came of it."""

    def __init__(
        self,
        jobs: Jobs,
        id: str,
        say: Callable[[str], None] = lambda text: None,
        *,
        patience_s: float = PATIENCE_S,
        first_s: float = FIRST_S,
    ) -> None:
        """`say` is told of lost connections; after `patience_s` without one, it is given up."""
        self._jobs = jobs
        self._id = id
        self._say = say
        self._patience_s = patience_s
        self._first_s = first_s
        self._seen = 0
        """Characters of the log that were taken."""
        self._rest = ""
        self.job: Job | None = None

    async def lines(self) -> AsyncIterator[str]:
        """Every line once, however often the connection is lost. Raises: errors.JobError."""
        lost_at: float | None = None
        pause_s = self._first_s
        while True:
            try:
                skip = self._seen
                async for text in self._jobs.tail(self._id):
                    if lost_at is not None:
                        self._say("connected again")
                        lost_at, pause_s = None, self._first_s
                    for line in self._taken(text[skip:]):
                        yield line
                    skip = max(0, skip - len(text))
                job = await self._jobs.find(self._id)
                last = await self._last() if job is not None and job.over else []
            except JobServerAway as error:
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                if now - lost_at > self._patience_s:
                    raise
                why = str(error).split("; is the cluster up")[0]
                self._say(f"connection lost ({why}); the job goes on, trying again in {pause_s:.3g} s")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_S)
                continue
            if job is None:
                raise JobError(
                    f"the cluster at {self._jobs.address} knows no job {self._id!r} any more (was it started anew?); "
                    "what the run kept is in its folder: evocluster submit CONFIG --resume NAME"
                )
            self.job = job
            for line in last:
                yield line
            if job.over:
                return
            await asyncio.sleep(self._first_s)

    def _taken(self, fresh: str) -> list[str]:
        """The lines that this brings to their end."""
        self._seen += len(fresh)
        *whole, self._rest = (self._rest + fresh).split("\n")
        return whole

    async def _last(self) -> list[str]:
        """What stands in the log and was not taken: its last words, and all of it where no tail was to be had."""
        log = await self._jobs.log(self._id)
        lines = self._taken(log[self._seen :])
        return [*lines, *([self._rest] if self._rest else [])]
