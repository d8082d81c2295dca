"""`evocluster bench`: how the engine does on this machine, or on your cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evocluster.cli import screen
from evocluster.errors import ConfigError

if TYPE_CHECKING:
    from evocluster.report.scaling import Table as Figures

WIDTH = 160
"""Columns that the tables need."""

app = typer.Typer(help="Measure the engine itself, against an endpoint on this machine that only waits. Costs nothing.")


@app.callback()
def _bench() -> None:
    """Measure the engine itself, against an endpoint on this machine that only waits. Costs nothing."""


@app.command("scaling")
def scaling(
    parts: Annotated[
        str | None, typer.Option("--parts", help="Of strong,weak,in-flight,history,steady (default: all).")
    ] = None,
    nodes: Annotated[str | None, typer.Option("--nodes", help="Numbers of nodes (default: 1,2,4,8,16).")] = None,
    in_flight: Annotated[
        str | None, typer.Option("--in-flight", help="Calls at once (default: 50,200,500,1000,2000).")
    ] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option("--latency", help="fixed:S or lognormal:MEDIAN:P99, in seconds; again for another."),
    ] = None,
    calls: Annotated[
        int | None, typer.Option("--calls", help="Of one search of strong scaling (default: 2560).")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option("--repeat", help="Times each search is carried out (default: 3).")
    ] = None,
    client: Annotated[str, typer.Option("--client", help="direct or litellm.")] = "direct",
    history: Annotated[
        str | None, typer.Option("--history", help="Evaluations to grow to (default: 1000,10000,100000,1000000).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Your Ray cluster; run this on its head node. Default: simulated nodes."),
    ] = None,
    short: Annotated[bool, typer.Option("--short", help="About two minutes: 1 and 2 nodes, few calls, once.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for scaling.json and scaling.html.")] = Path(
        "runs/scaling"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
) -> None:
    """Measure how the engine scales: nodes, calls in flight, history, and steady state against generational.

    All of it takes about two hours; --short about two minutes. No model is asked.

    Examples:

      evocluster bench scaling --short

      evocluster bench scaling --address auto --nodes 1,2,4 --parts strong,weak --latency lognormal:1:10
    """
    from evocluster.report.scaling import findings, tables
    from evocluster.report.scaling_page import write
    from evocluster.scaling import measured

    given: dict[str, Any] = {
        "parts": tuple(parts.split(",")) if parts is not None else None,
        "nodes": _numbers("--nodes", nodes),
        "in_flight": _numbers("--in-flight", in_flight),
        "latencies": tuple(latency) if latency else None,
        "calls": calls,
        "repeat": repeat,
        "history": _numbers("--history", history),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    console = screen.console(stderr=as_json)
    console.width = max(console.width, WIDTH)  # the tables are wide; narrower ones could not be read across
    found = measured(
        short, {**chosen, "client": client, "address": address}, lambda text: console.print(screen.plain(text))
    )
    found["findings"] = findings(found)
    write(found, out)
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    for each in tables(found):
        _show(console, each)
    for line in found["findings"]:
        console.print(screen.plain(line), soft_wrap=True)
    console.print(screen.plain(f"Written: {out / 'scaling.json'}, {out / 'scaling.html'}"), soft_wrap=True)


def _show(console: Console, each: Figures) -> None:
    """A table, its note below."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, head in enumerate(each.heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in each.rows:
        table.add_row(*row)
    console.print(screen.plain(each.title, "bold"))
    console.print(table)
    console.print(screen.plain(each.note, "dim"))
    console.print()


def _numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers between commas. Raises: ConfigError."""
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{name} {text!r}: allowed are whole numbers from 1 with commas between, e.g. 1,2,4"
        ) from error
