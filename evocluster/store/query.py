"""SQL over all recorded traffic of a deployment: sealed Parquet and what the ledger still holds, as one.

    exchanges    every column of release.exchange.Exchange; JSON as its text (signals ->> 'accepted')
    bodies       request_id, deployment, user, input (JSON text), output, at

DuckDB runs one SELECT in memory: it writes nothing, and reads no other file and no network. In its dialect the
columns "at" and "user" are quoted, or named after their table (exchanges.at).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evocluster.errors import StoreError
from evocluster.store import sealed
from evocluster.store.ledger import Ledger
from evocluster.store.ledger_tables import COLUMNS

VIEWS = ("exchanges", "bodies")
_FLOAT = ("at", "real", "amount", "share")
_TRIES = 3


def rows(
    sql: str,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    *,
    folder: Path,
    deployment: str,
    ledger: Ledger | None = None,
    since: float | None = None,
    until: float | None = None,
    memory_mb: int = 512,
    threads: int = 2,
) -> list[dict[str, Any]]:
    """What one SELECT over `exchanges` and `bodies` finds. Values go in as `parameters`: ? or $name.

    `folder`: of sealed traffic, which need not be there; `ledger` None: sealed rows only; since <= at < until, in
    seconds since 1970, spares reading other days.
    Raises: StoreError: the SQL is wrong, is no SELECT, or needs more memory.
    """
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _refused(sql, error) from error
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise StoreError(f"{sql!r} is not one SELECT: only reading is allowed, one statement at a time")
    for attempt in range(_TRIES):
        # The ledger first: a row that is sealed meanwhile is then seen twice, and counted once, never missed.
        recent = {name: _recent(name, ledger, deployment, since, until) for name in VIEWS if name in sql.lower()}
        files = sealed.parts(folder.absolute(), deployment, since, until)
        try:
            with _connected(files, memory_mb, threads) as connection:
                for name, table in recent.items():
                    connection.register(f"recent_{name}", table)
                    connection.execute(_view(name, files, since, until))
                connection.execute("SET lock_configuration = true")
                return _found(connection.execute(statements[0], parameters), sql)
        except duckdb.IOException as error:
            if attempt + 1 == _TRIES or all(path.exists() for path in files):  # else one was expired or erased
                raise _refused(sql, error) from error
        except duckdb.Error as error:
            raise _refused(sql, error) from error
    raise AssertionError("the last attempt returns or raises")


def _connected(files: Sequence[Path], memory_mb: int, threads: int) -> Any:
    import duckdb

    off = ("autoload_known_extensions", "autoinstall_known_extensions", "python_enable_replacements")
    config: dict[str, Any] = {name: "false" for name in off}
    config |= {"memory_limit": f"{memory_mb}MB", "threads": threads, "temp_directory": ""}
    connection = duckdb.connect(":memory:", config=config)
    connection.execute(f"SET allowed_paths = {_list(files)}")
    connection.execute("SET enable_external_access = false")
    return connection


def _found(result: Any, sql: str) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description]
    if len(set(names)) < len(names):
        raise StoreError(f"{sql!r} gives two columns the same name ({names}): name them with AS")
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _recent(name: str, ledger: Ledger | None, deployment: str, since: float | None, until: float | None) -> Any:
    import pyarrow as pa

    columns = _arrow(name)
    where: dict[str, Any] = {"deployment": deployment} | ({"at": (">=", since)} if since is not None else {})
    found = ledger.lines(name, where) if ledger is not None else []
    place = columns.get_field_index("at")
    found = [row for row in found if until is None or row[place] < until]
    values = zip(*found, strict=True) if found else ([] for _ in columns)
    return pa.table([pa.array(each, field.type) for field, each in zip(columns, values, strict=True)], schema=columns)


def _arrow(name: str) -> Any:
    import pyarrow as pa

    there = sealed.schema()
    return pa.schema([there.field(column) for column in COLUMNS[name]])


def _view(name: str, files: Sequence[Path], since: float | None, until: float | None) -> str:
    columns = ", ".join(f'"{column}"' for column in COLUMNS[name])
    recent = f"SELECT {columns} FROM recent_{name}"
    if not files:
        return f"CREATE TEMP VIEW {name} AS {recent}"
    conditions = [f"request_id NOT IN (SELECT request_id FROM recent_{name})"]
    conditions += ["output IS NOT NULL"] if name == "bodies" else []
    conditions += [f'"at" >= {since!r}'] if since is not None else []
    conditions += [f'"at" < {until!r}'] if until is not None else []
    found = f"read_parquet({_list(files)}, union_by_name = true, hive_partitioning = false)"
    return (
        f"CREATE TEMP VIEW {name} AS {recent} UNION ALL SELECT {columns} FROM {found} WHERE {' AND '.join(conditions)}"
    )


def _list(files: Sequence[Path]) -> str:
    """As DuckDB writes a list of texts."""
    said = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    return f"[{said}]"


def _refused(sql: str, error: BaseException) -> StoreError:
    why = str(error).strip().split("\n")[0]
    return StoreError(
        f'the query {sql!r} failed: {why}; it reads {" and ".join(VIEWS)} (quote "at" and "user"), and may need a '
        "narrower time or more memory"
    )
