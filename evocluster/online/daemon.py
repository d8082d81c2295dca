"""The daemon: scheduled work of every deployment, each due time once, however many daemons there are.

    await daemon.run(stop)                  for people without cron: a loop until `stop` is set
    await daemon.turn("promote", now)       for cron: one job now, of every deployment, and back

A job that fails is logged, noted with its due time, and stops nothing else. Serving never waits for any of it: a daemon
that is gone leaves everything as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from evocluster.errors import ConfigError, EvoclusterError, LedgerConflict
from evocluster.online.cycle import Cycle
from evocluster.online.ledger import Ledger, Row
from evocluster.online.notify import Notice
from evocluster.online.schedule import Schedule
from evocluster.release import settings
from evocluster.telemetry import log

JOBS = ("promote", "probe", "analyze", "evolve", "seal")
POLL_S = 5.0
"""Seconds between two looks at what is due."""
GRACE_S = 10.0
"""Seconds that work under way is given when the daemon stops; what is not done then, another turn does again."""
Job = Callable[[str, float], Awaitable[object]]


class Daemon:
    """Works off what is due. One a process; several share a ledger."""

    def __init__(
        self,
        ledger: Ledger,
        cycle: Cycle,
        schedules: Callable[[str], settings.Schedule],
        owner: str,
        *,
        tell: Callable[[Notice], Awaitable[object]] | None = None,
        lease_s: float = 120.0,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`schedules`: of a deployment; `owner`: a name that no other daemon has."""
        self._ledger = ledger
        self._jobs: Mapping[str, Job] = {name: getattr(cycle, name) for name in JOBS}
        self._schedules = schedules
        self._schedule = Schedule(ledger, owner, lease_s)
        self._tell = tell
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._clock = clock
        self._tasks: dict[tuple[str, str], asyncio.Task[str]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        while not stop.is_set():
            try:
                await self.look(self._clock())
            except Exception as error:  # the ledger is away, a deployment's config cannot be read: the next look may
                log.error("the daemon could not see what is due: %s: %s", type(error).__name__, error)
            try:
                async with asyncio.timeout(self._poll_s):
                    await stop.wait()
            except TimeoutError:
                continue
        await self.close()

    async def look(self, now: float) -> int:
        """Begin all that is due and nobody does; how much that is."""
        begun = 0
        for row in await asyncio.to_thread(self._ledger.find, "deployments", order="name"):
            for job in JOBS:
                begun += await self._due(row, job, now)
        return begun

    async def _due(self, row: Row, job: str, now: float) -> bool:
        """Begin this job of a deployment, where it is its time."""
        name = row["name"]
        if (name, job) in self._tasks:
            return False
        expression = getattr(self._schedules(name), job)
        due = await asyncio.to_thread(self._schedule.claim, name, job, expression, row["at"], now)
        if due is None:
            return False
        task = asyncio.create_task(self._work(name, job, due, now))
        self._tasks[name, job] = task
        task.add_done_callback(lambda _: self._tasks.pop((name, job), None))
        return True

    async def turn(self, job: str, now: float, deployment: str | None = None) -> dict[str, str]:
        """One job now, of one deployment or of all, whatever its schedule says: deployment -> '' or what failed.

        Twice within a minute it is done once: the cron of two machines does no harm. What somebody else does already
        is left out. Raises: ConfigError: no such job or deployment; StoreError.
        """
        if job not in self._jobs:
            raise ConfigError(f"{job!r} is no job of the daemon; allowed: {', '.join(JOBS)}")
        rows = await asyncio.to_thread(self._ledger.find, "deployments", order="name")
        names = [row["name"] for row in rows]
        if deployment is not None and deployment not in names:
            raise ConfigError(
                f"deployment {deployment!r} is not in the ledger; there are: {', '.join(names) or 'none'}"
            )
        due, said = now - now % 60, {}
        for name in names if deployment is None else [deployment]:
            if await asyncio.to_thread(self._schedule.take, name, job, due, now):
                said[name] = await self._work(name, job, due, now)
        return said

    async def _work(self, deployment: str, job: str, due: float, now: float) -> str:
        """Do it while the claim is renewed; what failed, or ''."""
        renewing = asyncio.create_task(self._renew(deployment, job, due))
        note = ""
        try:
            await self._jobs[job](deployment, now)
        except Exception as error:  # of one job of one deployment: the others go on
            note = f"{type(error).__name__}: {error}"[:300]
            log.error("%s of deployment %s failed: %s", job, deployment, note)
            if self._tell is not None:
                text = f"{job} failed with {type(error).__name__}; the log says more"
                await self._tell(Notice(at=due, deployment=deployment, event="failed", text=text))
        finally:
            renewing.cancel()
        try:
            await asyncio.to_thread(self._schedule.finish, deployment, job, due, note)
        except LedgerConflict as conflict:
            log.warning("%s of deployment %s took longer than its lease: %s", job, deployment, conflict)
        except EvoclusterError as error:
            log.error("%s of deployment %s is done and could not be noted: %s", job, deployment, error)
        return note

    async def _renew(self, deployment: str, job: str, due: float) -> None:
        """Keep the claim for as long as the work takes."""
        while True:
            await asyncio.sleep(self._schedule.lease_s / 3)
            try:
                await asyncio.to_thread(self._schedule.renew, deployment, job, due, self._clock())
            except EvoclusterError as error:
                log.warning("the claim of %s of deployment %s was not renewed: %s", job, deployment, error)

    async def idle(self) -> None:
        """Wait for all that was begun."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Give what is under way its time, then call it off: its lease runs out, and another turn does it again."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=self._grace_s)
        for task in tuple(self._tasks.values()):
            task.cancel()
        await self.idle()
