"""Recorded traffic at rest: one Parquet folder a deployment and day (UTC), written once the day has gone by.

    traffic/deployment=NAME/day=2026-11-21/part-0123456789abcdef.parquet

A row is an exchange with its body; `output` is null where there is none (any more). A row is written here before it
leaves the ledger, so that a process killed in between leaves it in both: `seal` finds those first, and readers count
them once. Only one process at a time changes the folder of a deployment. `folder` is the one called `traffic` above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evocluster.errors import StoreError
from evocluster.store.files import lock, replacing, sync_folder, unwritable
from evocluster.store.ledger import UNLINKED, Ledger
from evocluster.store.ledger_tables import COLUMNS

DAY_S = 86_400
ROWS = 20_000
"""Of one part, at most."""
_ASKED = 5_000
_EXCHANGE = tuple(COLUMNS["exchanges"])
_BODY = tuple(COLUMNS["bodies"])
_SAID = ("input", "output")
"""What a body adds to its exchange."""
_UNLINKED: dict[str, Any] = {**UNLINKED, "signals": {}}
_ARROW = {"whole": "int64", "flag": "bool_", "yes": "bool_"}
_FLOATS = ("at", "real", "amount", "share")


def schema() -> Any:
    """The columns of a part; JSON as its text."""
    import pyarrow as pa

    def kind(name: str) -> Any:
        said = COLUMNS["exchanges"][name].kind
        return pa.float64() if said in _FLOATS else getattr(pa, _ARROW.get(said, "string"))()

    return pa.schema([*((name, kind(name)) for name in _EXCHANGE), *((name, pa.string()) for name in _SAID)])


def deployment_folder(folder: Path, deployment: str) -> Path:
    """Where its days are."""
    return folder / f"deployment={quote(deployment, safe='')}"


def parts(folder: Path, deployment: str, since: float | None = None, until: float | None = None) -> list[Path]:
    """The files of a deployment that may hold rows of since <= at < until, by day."""
    first = "" if since is None else _day(since)
    last = "9" if until is None else _day(until)
    found = deployment_folder(folder, deployment).glob("day=*/part-*.parquet")
    return sorted(path for path in found if first <= path.parent.name.removeprefix("day=") <= last)


def seal(ledger: Ledger, folder: Path, deployment: str, before: float) -> int:
    """Move exchanges older than `before` (seconds since 1970), with their bodies, from the ledger to their days' files.

    Returns how many were moved. Done again, or after being killed at any point, no row is lost or doubled.
    Raises: StoreError; RunHeld: another process does so now.
    """
    with _changing(folder, deployment):
        moved = 0
        old = {"deployment": deployment, "at": ("<", before)}
        checked: set[str] = set()
        while (oldest := ledger.first("exchanges", old, order="at")) is not None:
            day = _day(oldest["at"])
            if day not in checked:
                checked.add(day)
                moved += _finish(ledger, folder, deployment, day)
                continue
            end = min(before, _start(day) + DAY_S)
            where = {"deployment": deployment, "at": ("<", end)}
            rows = ledger.lines("exchanges", where, order="at", limit=ROWS)
            if _late(ledger, deployment, rows):
                continue
            bodies = _bodies(ledger, [row[0] for row in rows])
            _write(folder, deployment, day, [(*row, *bodies.get(row[0], (None, None))) for row in rows])
            _forget(ledger, [row[0] for row in rows], list(bodies))
            moved += len(rows)
        return moved


def expire(
    ledger: Ledger,
    folder: Path,
    deployment: str,
    now: float,
    *,
    bodies_days: float = 30,
    exchanges_days: float = 400,
) -> dict[str, int]:
    """Delete bodies and exchanges that are too old, in the ledger and in sealed files; says how many of each went.

    Raises: StoreError; RunHeld: another process changes the folder now.
    """
    bodies, exchanges = now - bodies_days * DAY_S, now - exchanges_days * DAY_S
    with _changing(folder, deployment):
        gone = {
            "bodies": ledger.delete("bodies", {"deployment": deployment, "at": ("<", bodies)}),
            "exchanges": ledger.delete("exchanges", {"deployment": deployment, "at": ("<", exchanges)}),
        }
        for path in parts(folder, deployment, until=max(bodies, exchanges)):
            there = _counts(path)
            if there["first"] < exchanges or (there["first"] < bodies and there["bodies"]):
                _rewrite(path, lambda table: _expired(table, bodies, exchanges))
                left = _counts(path) if path.exists() else {"rows": 0, "bodies": 0}
                gone["exchanges"] += there["rows"] - left["rows"]
                gone["bodies"] += there["bodies"] - left["bodies"]
        return gone


def requests_of(ledger: Ledger, folder: Path, deployment: str, user: str) -> list[str]:
    """The requests of a user's hash, in the ledger and in sealed files, shadows of them included, sorted.

    Raises: StoreError.
    """
    import pyarrow.compute as pc

    if not user:
        raise StoreError("no user: give the keyed hash that the exchanges carry; '' is of those who said no user")
    mine = {"deployment": deployment, "user": user}
    live = ledger.find("exchanges", mine)
    found = {row["request_id"] for row in live} | {row["request_id"] for row in ledger.find("bodies", mine)}
    pairs = {row["pair_id"] for row in live}
    files = parts(folder, deployment)
    for path in files:
        table = _read(path, ["request_id", "pair_id", "user"])
        table = table.filter(pc.equal(table["user"], user))
        found.update(table["request_id"].to_pylist())
        pairs.update(table["pair_id"].to_pylist())
    pairs.discard("")
    if pairs:
        for chunk in _chunks(sorted(pairs)):
            twins = ledger.find("exchanges", {"deployment": deployment, "pair_id": ("in", chunk)})
            found.update(row["request_id"] for row in twins)
        for path in files:
            table = _read(path, ["request_id", "pair_id"])
            found.update(table.filter(_among(table["pair_id"], pairs))["request_id"].to_pylist())
    return sorted(found)


def erase(ledger: Ledger, folder: Path, deployment: str, user: str, now: float) -> list[str]:
    """Delete what a user's hash said and was told, and return the requests, sorted, for what was made of them.

    Bodies, pairs, feedback and sealed rows of the requests go; exchanges in the ledger stay without what tells of the
    user. A tombstone keeps later ones of this user out. Done again after being killed it deletes the rest, but names
    only that: who cascades asks `requests_of` first.
    Raises: StoreError; RunHeld: another process changes the folder now.
    """
    with _changing(folder, deployment):
        found = requests_of(ledger, folder, deployment, user)
        ledger.put("tombstones", {"deployment": deployment, "user": user, "at": now})
        # Once more: what came until the tombstone stood.
        found = sorted({*found, *requests_of(ledger, folder, deployment, user)})
        gone = set(found)
        for path in parts(folder, deployment):
            if gone.intersection(_read(path, ["request_id"])["request_id"].to_pylist()):
                _rewrite(path, lambda table: _without(table, gone))
        for chunk in _chunks(found):
            for name in ("primary_id", "shadow_id"):
                ledger.delete("pairs", {"deployment": deployment, name: ("in", chunk)})
            ledger.delete("feedback", {"deployment": deployment, "request_id": ("in", chunk)})
            ledger.delete("bodies", {"request_id": ("in", chunk)})
        ledger.delete("bodies", {"deployment": deployment, "user": user})
        for chunk in _chunks(found):
            ledger.change("exchanges", {"request_id": ("in", chunk)}, **_UNLINKED)
        return found


def _changing(folder: Path, deployment: str) -> Any:
    own = deployment_folder(folder, deployment)
    try:
        for made in (folder, own):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(own, error) from error
    return lock(own)


def _finish(ledger: Ledger, folder: Path, deployment: str, day: str) -> int:
    """Take out of the ledger what a killed `seal` had written already."""
    there = deployment_folder(folder, deployment) / f"day={day}"
    moved = 0
    for path in sorted(there.glob("part-*.parquet")):
        for chunk in _chunks(_read(path, ["request_id"])["request_id"].to_pylist()):
            where = {"deployment": deployment, "request_id": ("in", chunk)}
            ledger.delete("bodies", where)
            moved += ledger.delete("exchanges", where)
    for temp in there.glob(".*.tmp"):
        temp.unlink(missing_ok=True)
    return moved


def _late(ledger: Ledger, deployment: str, rows: Sequence[Sequence[Any]]) -> bool:
    """Some were of erased users, having arrived just when they were erased; they are not any more."""
    place = _EXCHANGE.index("user")
    found = False
    for chunk in _chunks(sorted({row[place] for row in rows if row[place]})):
        stones = ledger.find("tombstones", {"deployment": deployment, "user": ("in", chunk)})
        if stones:
            where = {"deployment": deployment, "user": ("in", [stone["user"] for stone in stones])}
            ledger.delete("bodies", where)
            found = ledger.change("exchanges", where, **_UNLINKED) > 0 or found
    return found


def _bodies(ledger: Ledger, ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    where = [_BODY.index(name) for name in _SAID]
    for chunk in _chunks(ids):
        for row in ledger.lines("bodies", {"request_id": ("in", chunk)}):
            found[row[0]] = tuple(row[place] for place in where)
    return found


def _forget(ledger: Ledger, ids: Sequence[str], bodies: Sequence[str]) -> None:
    # Only bodies that were read: one that came since stays, and is found beside the sealed exchange.
    for chunk in _chunks(bodies):
        ledger.delete("bodies", {"request_id": ("in", chunk)})
    for chunk in _chunks(ids):
        ledger.delete("exchanges", {"request_id": ("in", chunk)})


def _write(folder: Path, deployment: str, day: str, rows: Sequence[Sequence[Any]]) -> None:
    import pyarrow as pa

    columns = schema()
    table = pa.table(
        [pa.array(values, field.type) for field, values in zip(columns, zip(*rows, strict=True), strict=True)],
        schema=columns,
    )
    named = hashlib.sha256("\n".join(row[0] for row in rows).encode()).hexdigest()[:16]
    target = deployment_folder(folder, deployment) / f"day={day}"
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        for parent in (target.parent, folder):
            sync_folder(parent)
    except OSError as error:
        raise unwritable(target, error) from error
    _store(target / f"part-{named}.parquet", table)


def _store(path: Path, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(path) as temp, pa.OSFile(str(temp), "wb") as sink:
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """The file with other rows; without any it goes."""
    table = change(_read(path, None))
    if table.num_rows:
        _store(path, table)
        return
    try:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
            sync_folder(path.parent.parent)
        else:
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _expired(table: Any, bodies: float, exchanges: float) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.filter(pc.greater_equal(table["at"], exchanges))
    old = pc.less(table["at"], bodies)
    for name in _SAID:
        cleared = pc.if_else(old, pa.scalar(None, pa.string()), table[name])
        table = table.set_column(table.schema.get_field_index(name), name, cleared)
    return table


def _without(table: Any, ids: set[str]) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.invert(_among(table["request_id"], ids)))


def _among(column: Any, values: set[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))


def _counts(path: Path) -> dict[str, Any]:
    """From the file's footer: how many rows and bodies, and the earliest `at`."""
    import pyarrow.parquet as pq

    with _reading(path) as source:
        told = pq.ParquetFile(source).metadata
        places = {told.schema.column(place).name: place for place in range(told.num_columns)}
        groups = [told.row_group(group) for group in range(told.num_row_groups)]
        missing = sum(group.column(places["output"]).statistics.null_count for group in groups)
        first = min((group.column(places["at"]).statistics.min for group in groups), default=float("inf"))
        return {"rows": told.num_rows, "bodies": told.num_rows - missing, "first": first}


def _read(path: Path, columns: list[str] | None) -> Any:
    import pyarrow.parquet as pq

    with _reading(path) as source:
        return pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns)


class _reading:
    """The file, open; what cannot be read of it is a StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        import pyarrow as pa

        try:
            self._source = pa.OSFile(str(self._path), "rb")
        except OSError as error:
            raise self._broken(error) from error
        return self._source

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow as pa

        self._source.close()
        if isinstance(error, pa.ArrowException | OSError):
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> StoreError:
        return StoreError(
            f"sealed traffic {str(self._path)!r} cannot be read: {error}; restore the file from a copy, or move it "
            "away: its rows are then gone"
        )


def _chunks(values: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _ASKED):
        yield list(values[start : start + _ASKED])


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _start(day: str) -> float:
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
