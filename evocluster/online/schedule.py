"""When the daemon works: cron expressions in UTC, each due time claimed by one daemon, missed ones caught up once.

A due time is a row of the ledger with a lease. Whoever inserts it does the work; a holder that died is followed when
its lease runs out. After downtime the latest due time alone is claimed: five missed nights are one night's work.
"""

from __future__ import annotations

from datetime import UTC, datetime

from croniter import croniter  # type: ignore[import-untyped]

from evocluster.errors import ConfigError
from evocluster.online.ledger import Ledger

DONE = "done"
"""State of a due time that was worked off."""
LEASE_S = 120.0
"""Seconds that a claim holds without being renewed."""


def checked(expression: str) -> str:
    """The expression. Raises: ConfigError."""
    if len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ConfigError(
            f"{expression!r} is no cron expression; allowed: minute hour day month weekday, in UTC, e.g. '0 3 * * *'"
        )
    return expression


def latest(expression: str, now: float) -> float:
    """The last time at or before `now` that it names, seconds since 1970. Raises: ConfigError."""
    at = datetime.fromtimestamp(int(now) + 1, UTC)  # the time itself counts, and expressions know no fractions
    return _time(croniter(checked(expression), at).get_prev(datetime))


def upcoming(expression: str, now: float) -> float:
    """The first time after `now` that it names. Raises: ConfigError."""
    return _time(croniter(checked(expression), datetime.fromtimestamp(int(now), UTC)).get_next(datetime))


def _time(at: datetime) -> float:
    return at.timestamp()


class Schedule:
    """Claims due times for one daemon."""

    def __init__(self, ledger: Ledger, owner: str, lease_s: float = LEASE_S) -> None:
        """`owner`: a name that no other daemon has."""
        self._ledger = ledger
        self.owner = owner
        self.lease_s = lease_s

    def claim(self, deployment: str, job: str, expression: str, since: float, now: float) -> float | None:
        """The due time that is ours to work off now, or None.

        `since`: when the deployment came; what was due before is none of its. Raises: StoreError.
        """
        due = latest(expression, now)
        return due if due > since and self.take(deployment, job, due, now) else None

    def take(self, deployment: str, job: str, due: float, now: float) -> bool:
        """Claim exactly that time; False while this job of the deployment is held by anybody, or where it is done."""
        held = self._ledger.find("schedules", {"deployment": deployment, "job": job, "lease_until": (">=", now)})
        if any(row["state"] != DONE and row["lease_until"] > now for row in held):
            return False
        return self._ledger.claim(deployment, job, due, self.owner, self.lease_s, now)

    def renew(self, deployment: str, job: str, due: float, now: float) -> bool:
        """Hold on to a claim; False where somebody else has it by now."""
        key = {"deployment": deployment, "job": job, "scheduled_for": due}
        row = self._ledger.first("schedules", key)
        if row is None or row["owner"] != self.owner or row["state"] == DONE:
            return False
        return self._ledger.patch("schedules", key, lease_until=now + self.lease_s)

    def finish(self, deployment: str, job: str, due: float, note: str = "") -> None:
        """Its work is done, well or not. Raises: LedgerConflict: the lease ran out, and somebody else does it again."""
        self._ledger.finish(deployment, job, due, self.owner, note)
