"""Where deployments are kept, as the verbs of the online half are told; and how they print rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from evocluster.cli import screen
from evocluster.cli.screen import plain

if TYPE_CHECKING:
    from evocluster.deploying import Home

Folder = Annotated[str, typer.Option("--home", help="Folder of deployments: its ledger, recorded traffic, runs.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="EVOCLUSTER_LEDGER",
        help="URL of the ledger's database, where several machines share it: postgresql://USER@HOST/NAME. "
        "Without it: a SQLite file in --home.",
    ),
]
Name = Annotated[str, typer.Argument(help="Name of the deployment.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Trust the Python that the deployment names, and where it sends keys."),
]
DEFAULT = "deployments"


def opened(folder: str, ledger: str | None) -> Home:
    """The home. Raises: errors.StoreError."""
    from evocluster.deploying import Home

    return Home.open(folder, ledger)


def moment(at: float | None) -> str:
    """A time of the ledger, as people read it: UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) if at else ""


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of these columns; nothing where there are no rows."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(plain(_cell(row.get(column))) for column in columns))
    screen.console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
