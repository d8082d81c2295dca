"""The hand that takes back: it aborts an experiment or restores an old snapshot, and can do nothing else.

    opened = open_breaker(ledger, deployment, why, evidence, now)    pointer, incident, bar and outcome in one move
    restored = rollback(ledger, deployment, now, version="v1.2")     gates are skipped: it served before
    late = await wait_acknowledged(ledger, deployment, epoch)        done when every live replica serves by it

Whoever analyses never calls it with a snapshot of its own making. None of it needs a model or the network.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from evocluster.errors import ConfigError, LedgerConflict
from evocluster.online.ledger import Ledger, Pointer, Row, load, pointer
from evocluster.records import canonical, digest
from evocluster.release.lifecycle import SERVING, Outcome, restored
from evocluster.release.snapshot import HASH, LAYERS, Layer, Snapshot
from evocluster.telemetry import log

AGAIN = 20
"""How often a move is decided anew that somebody else's came before."""
ALIVE_S = 5.0
"""A replica that gave no sign for so long serves its last stable snapshot, and is not waited for."""
Contents = Callable[[Snapshot, Snapshot], Iterable[tuple[str, str]]]
"""(candidate, baseline) -> (hash, text) of all by which the same change is known again (`release.content.contents`)."""


class Restored(NamedTuple):
    """What serves after it was taken back."""

    snapshot: str
    epoch: int
    why: str
    incident: str = ""


def changed_layers(candidate: Snapshot, baseline: Snapshot) -> list[tuple[str, str]]:
    """Name and canonical JSON of every layer that differs."""
    layers = [layer for layer in LAYERS if candidate.layers[layer] != baseline.layers[layer]]
    return [(candidate.layers[layer], canonical(candidate.bodies[layer])) for layer in layers]


def open_breaker(
    ledger: Ledger,
    deployment: str,
    why: str,
    evidence: Mapping[str, Any],
    now: float,
    *,
    candidate: str = "",
    actor: str = "breaker",
    contents: Contents = changed_layers,
) -> Restored | None:
    """Take the live candidate back; None where none is live, so that a second one to open it changes nothing.

    `candidate`: only where that snapshot is the one. Raises: StoreError.
    """
    for _ in range(AGAIN):
        at = pointer(ledger, deployment)
        experiment = _serving(ledger, at)
        if experiment is None or (candidate and experiment["candidate"] != candidate):
            return None
        incident = digest([deployment, experiment["id"], "breaker"])[:HASH]
        row = {
            "id": incident,
            "deployment": deployment,
            "at": now,
            "kind": "breaker",
            "snapshot": experiment["candidate"],
            "experiment": experiment["id"],
            "evidence": {"why": why, **evidence},
        }
        also = [("incidents", row), ("experiments", over(experiment, "rolled_back", why, now))]
        also += _barred(ledger, experiment, incident, now, contents)
        try:
            epoch = _restore(ledger, at, experiment["baseline"], actor, "breaker", why, now, also)
        except LedgerConflict:
            continue
        return Restored(experiment["baseline"], epoch, why, incident)
    raise LedgerConflict(f"deployment {deployment!r} changed {AGAIN} times while its breaker opened; open it again")


def abort(ledger: Ledger, experiment: str, why: str, now: float, *, actor: str) -> Restored | None:
    """Call an experiment off, at whatever stage; None where it is over already. Raises: ConfigError, StoreError."""
    for _ in range(AGAIN):
        row = ledger.first("experiments", {"id": experiment})
        if row is None:
            raise ConfigError(f"experiment {experiment!r} is not in the ledger; `history` names those there are")
        if row["stage"] == "done":
            return None
        at = pointer(ledger, row["deployment"])
        serves = row["stage"] in SERVING
        also = [("experiments", over(row, "rolled_back" if serves else "rejected", why, now))]
        try:
            if serves:
                epoch = _restore(ledger, at, row["baseline"], actor, "abort", why, now, also)
            else:
                told = {"at": now, "actor": actor, "action": "abort", "why": {"text": why, "experiment": experiment}}
                epoch = ledger.move(at.deployment, at.epoch, audit=told, also=also)
        except LedgerConflict:
            continue
        return Restored(row["baseline"] if serves else at.snapshot, epoch, why)
    raise LedgerConflict(f"the deployment of {experiment!r} changed {AGAIN} times meanwhile; abort it again")


def rollback(
    ledger: Ledger,
    deployment: str,
    now: float,
    *,
    version: str,
    layer: Layer | None = None,
    actor: str = "hand",
    why: str = "",
) -> Restored:
    """Serve an old version again, or that layer of it beside today's others, from one move on.

    A layer back makes a snapshot that never served as a whole, so it gets a version of its own. What is live or under
    watch is called off by the same move. Raises: ConfigError: no such version or layer, or it was erased; StoreError.
    """
    if layer is not None and layer not in LAYERS:
        raise ConfigError(f"{layer!r} is no layer; allowed: {', '.join(LAYERS)}")
    for _ in range(AGAIN):
        at = pointer(ledger, deployment)
        old = _version(ledger, deployment, version)
        said = why or f"rollback to {version}{f', layer {layer}' if layer else ''}"
        also = [("experiments", over(row, "rolled_back", said, now)) for row in _live(ledger, deployment)]
        target = old
        if layer is None:
            load(ledger, old)  # an erased layer is noticed before it is to serve
        else:
            made = anew(load(ledger, at.snapshot).replaced(layer, load(ledger, old)))
            target = made.id
            also += rows_of(ledger, made, at.snapshot, {"rollback": version, "layer": layer}, now)
            also += labelled(ledger, deployment, made.id, layer, said, now)
        try:
            epoch = _restore(ledger, at, target, actor, "rollback", said, now, also)
        except LedgerConflict:
            continue
        return Restored(target, epoch, said)
    raise LedgerConflict(f"deployment {deployment!r} changed {AGAIN} times meanwhile; roll it back again")


async def wait_acknowledged(
    ledger: Ledger,
    deployment: str,
    epoch: int,
    *,
    clock: Callable[[], float] = time.time,
    alive_s: float = ALIVE_S,
    timeout_s: float = 10.0,
    poll_s: float = 0.05,
) -> tuple[str, ...]:
    """The live replicas that do not serve by that epoch (or a later one) in time; empty: all of them do.

    Raises: StoreError.
    """
    end = time.monotonic() + timeout_s
    while True:
        seen = {"deployment": deployment, "seen_at": (">=", clock() - alive_s)}
        alive = await asyncio.to_thread(ledger.find, "replicas", seen)
        late = tuple(sorted(row["id"] for row in alive if row["epoch"] < epoch))
        if not late or time.monotonic() >= end:
            return late
        await asyncio.sleep(poll_s)


def over(experiment: Row, outcome: Outcome, why: str, now: float) -> Row:
    """The row of an experiment that ends now."""
    live_at = (experiment["work"] or {}).get("live_at")
    return {
        **experiment,
        "stage": "done",
        "stage_at": now,
        "ended_at": now,
        "outcome": outcome,
        "why": why,
        "active_s": max(0.0, now - live_at) if live_at is not None else 0.0,
    }


def anew(snapshot: Snapshot) -> Snapshot:
    """The same content with its own names: a changed copy may carry those that its original had worked out."""
    return Snapshot.read(snapshot.model_dump(mode="json"))


def rows_of(
    ledger: Ledger, snapshot: Snapshot, parent: str, origin: Mapping[str, Any], now: float
) -> list[tuple[str, Row]]:
    """(table, row) of the snapshot and of those of its layers that are new."""
    rows: list[tuple[str, Row]] = []
    for layer, name in snapshot.layers.items():
        if ledger.first("layers", {"hash": name}) is None:
            body = snapshot.bodies[layer]
            rows.append(("layers", {"hash": name, "kind": layer, "body": body, "at": now, "erased": False}))
    if ledger.first("snapshots", {"id": snapshot.id}) is None:
        names = dict(snapshot.layers)
        rows.append(("snapshots", {"id": snapshot.id, **names, "parent": parent, "origin": dict(origin), "at": now}))
    return rows


def labelled(
    ledger: Ledger, deployment: str, snapshot: str, layer: str, why: str, now: float, *, major: bool = False
) -> list[tuple[str, Row]]:
    """The row of the next version of the newest major: v1.0, v1.1, v1.2...; none where the snapshot has a version.

    `major`: of the next one, as what a run brought has.
    """
    known = ledger.find("versions", {"deployment": deployment})
    if any(row["snapshot"] == snapshot for row in known):
        return []
    newest, minor = max((numbered(row["version"]) for row in known), default=(0 if major else 1, -1))
    version = f"v{newest + 1}.0" if major else f"v{newest}.{minor + 1}"
    row = {"deployment": deployment, "version": version, "snapshot": snapshot, "at": now, "layer": layer, "why": why}
    return [("versions", row)]


def numbered(version: str) -> tuple[int, int]:
    """(major, minor) of a version."""
    major, _, minor = version.removeprefix("v").partition(".")
    return int(major), int(minor)


def _version(ledger: Ledger, deployment: str, version: str) -> str:
    row = ledger.first("versions", {"deployment": deployment, "version": version})
    if row is None:
        rows = ledger.find("versions", {"deployment": deployment}, order="at")
        known = ", ".join(one["version"] for one in rows) or "none"
        raise ConfigError(f"version {version!r} of deployment {deployment!r} is not there; there are: {known}")
    return str(row["snapshot"])


def _live(ledger: Ledger, deployment: str) -> list[Row]:
    return ledger.find("experiments", {"deployment": deployment, "stage": ("in", list(SERVING))}, order="started_at,id")


def _serving(ledger: Ledger, at: Pointer) -> Row | None:
    """The experiment whose arms serve."""
    named = at.state.get("experiment") or ""
    row = ledger.first("experiments", {"id": named}) if named else None
    return row if row is not None and row["stage"] in SERVING else None


def _restore(
    ledger: Ledger,
    at: Pointer,
    snapshot: str,
    actor: str,
    action: str,
    why: str,
    now: float,
    also: list[tuple[str, Row]],
) -> int:
    """One move that leaves that snapshot serving, and nothing beside it."""
    audit = {"at": now, "actor": actor, "action": action, "why": {"text": why}}
    return ledger.move(
        at.deployment, at.epoch, audit=audit, snapshot=snapshot, state=restored(snapshot).state, also=also
    )


def _barred(ledger: Ledger, experiment: Row, incident: str, now: float, contents: Contents) -> list[tuple[str, Row]]:
    """What may not come back. Where a layer was erased meanwhile there is nothing left that could."""
    try:
        candidate = load(ledger, experiment["candidate"])
        found = list(contents(candidate, load(ledger, experiment["baseline"])))
    except ConfigError as error:
        log.warning("%s: what was taken back is not barred: %s", experiment["deployment"], error)
        return []
    row = {
        "deployment": experiment["deployment"],
        "snapshot": experiment["candidate"],
        "at": now,
        "incident": incident,
    }
    return [("barred", {**row, "hash": name, "text": text}) for name, text in found]
