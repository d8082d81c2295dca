"""What the online half asks of a ledger (`store.ledger.Ledger`): rows of named tables, and one pointer a deployment.

All of it blocks: callers on an event loop go through `asyncio.to_thread`. Conditions of `find` are column -> value,
or (operator, value) with the operators `<`, `>=`, `in`; None asks for what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from evocluster.errors import ConfigError, StoreError
from evocluster.release.snapshot import LAYERS, Snapshot

Row = dict[str, Any]
Where = Mapping[str, Any]


class Ledger(Protocol):
    """Tables and pointers; every call is one transaction."""

    def add(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raises: StoreError where a key exists."""
        ...

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert, or replace by key."""
        ...

    def patch(self, table: str, key: Mapping[str, Any], /, **columns: Any) -> bool:
        """Change columns of one row; False where there is none."""
        ...

    def change(self, table: str, where: Where | None, /, **columns: Any) -> int:
        """Change columns of every row found, and say how many."""
        ...

    def find(
        self,
        table: str,
        where: Where | None = None,
        *,
        order: str = "",
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]: ...

    def first(self, table: str, where: Where | None = None, order: str = "") -> Row | None: ...

    def count(self, table: str, where: Where | None = None) -> int: ...

    def delete(self, table: str, where: Where) -> int:
        """How many rows went."""
        ...

    def move(
        self,
        deployment: str,
        epoch: int,
        *,
        audit: Mapping[str, Any],
        snapshot: str | None = None,
        state: Mapping[str, Any] | None = None,
        also: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> int:
        """Compare and swap the pointer, with its audit row and `also`. Raises: LedgerConflict."""
        ...

    def claim(
        self, deployment: str, job: str, scheduled_for: float, owner: str, lease_s: float, now: float
    ) -> bool: ...

    def finish(self, deployment: str, job: str, scheduled_for: float, owner: str, note: str) -> None:
        """Raises: LedgerConflict where the claim is somebody else's by now."""
        ...


class Pointer(NamedTuple):
    """What a deployment serves by, as it was read."""

    deployment: str
    snapshot: str
    epoch: int
    state: Row


def pointer(ledger: Ledger, deployment: str) -> Pointer:
    """The deployment's. Raises: ConfigError where there is none."""
    row = ledger.first("deployments", {"name": deployment})
    if row is None:
        known = ", ".join(sorted(one["name"] for one in ledger.find("deployments"))) or "none"
        raise ConfigError(f"deployment {deployment!r} is not in the ledger; there are: {known}; deploy it first")
    return Pointer(deployment, row["snapshot"], row["epoch"], dict(row["state"] or {}))


def load(ledger: Ledger, id: str) -> Snapshot:
    """The snapshot of that name, from its layers.

    Raises: ConfigError: it is not there, or a layer of it was erased; StoreError: it is not what its name says.
    """
    row = ledger.first("snapshots", {"id": id})
    if row is None:
        raise ConfigError(f"snapshot {id!r} is not in the ledger; `evocluster history NAME` lists those that are")
    names = [row[layer] for layer in LAYERS]
    held = {one["hash"]: one for one in ledger.find("layers", {"hash": ("in", names)})}
    gone = [layer for layer in LAYERS if row[layer] not in held or held[row[layer]]["erased"]]
    if gone:
        raise ConfigError(
            f"layer {gone[0]} of snapshot {id!r} was erased with the data of a user; roll back to a later version"
        )
    try:
        found = Snapshot.read({layer: held[row[layer]]["body"] for layer in LAYERS})
    except ValueError as error:
        raise StoreError(f"snapshot {id!r} cannot be read: {error}") from error
    if found.id != id:
        raise StoreError(f"snapshot {id!r}: its layers make {found.id!r}; the ledger was changed by hand")
    return found


def add_once(ledger: Ledger, table: str, key: str, new: Sequence[Mapping[str, Any]]) -> int:
    """Insert those whose key is not there yet; how many. Raises: StoreError."""
    if not new:
        return 0
    try:
        ledger.add(table, new)
    except StoreError:
        there = {row[key] for row in ledger.find(table, {key: ("in", [row[key] for row in new])})}
        missing = {row[key]: row for row in new if row[key] not in there}
        if len(missing) == len(new):  # it was not that
            raise
        if missing:
            ledger.add(table, list(missing.values()))
        return len(missing)
    return len(new)
