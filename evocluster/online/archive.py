"""All recorded traffic of a deployment, in the ledger and sealed, as rows.

What is older than a day is in Parquet (store/sealed.py); whoever looks at a week, or at an experiment that is live for
days, reads here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.online.ledger import Row
from evocluster.online.outcome import joined
from evocluster.store import query
from evocluster.store.ledger import Ledger

JSON_COLUMNS = ("eligible_arms", "flags", "notes", "signals")
_JUDGED = 'request_id, episode_id, exchanges."at", intent, model, error_class, is_shadow, exchanges."user", signals'


class Archive:
    """Rows of the ledger, recorded traffic also where it is sealed."""

    def __init__(self, ledger: Ledger, folder: Path, deployment: str) -> None:
        """`folder`: of sealed traffic."""
        self._ledger, self._folder, self._name = ledger, folder, deployment

    def find(
        self,
        table: str,
        where: Mapping[str, Any] | None = None,
        *,
        order: str = "",
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]:
        """As the ledger's; of exchanges `at` >= is asked, besides what they are equal to, and they come by time."""
        if table != "exchanges":
            return self._ledger.find(table, where, order=order, limit=limit, offset=offset)
        conditions = dict(where or {})
        _, since = conditions.pop("at")
        found = [row for row in self.exchanges(since) if all(row[name] == said for name, said in conditions.items())]
        return found[offset : None if limit is None else offset + limit]

    def exchanges(self, since: float) -> list[Row]:
        """Shadows among them, by time."""
        sql = 'SELECT * FROM exchanges ORDER BY exchanges."at", request_id'
        return [_plain(row) for row in self._rows(sql, since)]

    def bodies(self, since: float) -> list[Row]:
        """Inputs and outputs."""
        found = self._rows("SELECT request_id, input, output FROM bodies", since)
        return [{**row, "input": _read(row["input"])} for row in found]

    def whole(self, since: float) -> list[Row]:
        """Requests with bodies and feedback, no shadows."""
        exchanges = [row for row in self.exchanges(since) if not row["is_shadow"]]
        return joined(exchanges, self.bodies(since), self._feedback(since))

    def judged(self, since: float) -> list[Row]:
        """What verdicts are taken from and no more, by time: requests with feedback, no shadows.

        No input, and an output only where a correction speaks of it: a week of a busy deployment is read often.
        """
        exchanges = self._rows(f"SELECT {_JUDGED} FROM exchanges WHERE NOT is_shadow ORDER BY 3, request_id", since)
        feedback = self._feedback(since)
        said = [row for row in feedback if row["metric"] == "correction"]
        requests, episodes = ({row[name] for row in said} - {""} for name in ("request_id", "episode_id"))
        about = {row["request_id"] for row in exchanges if row["episode_id"] in episodes} | requests
        sql = "SELECT request_id, output FROM bodies WHERE request_id IN (SELECT unnest(?))"
        bodies = self._rows(sql, since, [sorted(about)]) if about else []
        return joined([{**row, "signals": _read(row["signals"])} for row in exchanges], bodies, feedback)

    def _feedback(self, since: float) -> list[Row]:
        """On requests since then: it comes after them."""
        where = {"deployment": self._name, "state": "accepted", "received_at": (">=", since)}
        return self._ledger.find("feedback", where, order="observed_at,feedback_id")

    def _rows(self, sql: str, since: float, parameters: Sequence[Any] = ()) -> list[Row]:
        return query.rows(sql, parameters, folder=self._folder, deployment=self._name, ledger=self._ledger, since=since)

    def tombstoned(self) -> frozenset[str]:
        """Users whose data were deleted."""
        return frozenset(row["user"] for row in self._ledger.find("tombstones", {"deployment": self._name}))


def _read(text: Any) -> Any:
    return json.loads(text) if isinstance(text, str) else text


def _plain(row: Row) -> Row:
    return row | {name: _read(row[name]) for name in JSON_COLUMNS}
