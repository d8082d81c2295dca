"""`evocluster show`: what a run found, as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evocluster.report.result import Result, best_split, front_table


def show(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json and front.json as one JSON object.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print the recommended configuration whole.")] = False,
) -> None:
    """Show the front of a run, its recommended configuration and what it cost.

    Example: evocluster show runs/quickstart --full
    """
    print_result(Result(folder), as_json, full)


def print_result(result: Result, as_json: bool, full: bool = False) -> None:
    """Print a result for people or for programs; rubrics and outputs are plain text, never markup."""
    if as_json:
        typer.echo(
            json.dumps({"folder": str(result.path), "run": result.run, "front": result.front}, ensure_ascii=False)
        )
        return
    console = Console(highlight=False)
    if result.members:
        _print_front(console, result)
    recommended = result.recommended
    if recommended and full:
        console.print(Text(json.dumps(recommended["genes"], indent=2, ensure_ascii=False)))
    _print_run(console, result)


def _print_front(console: Console, result: Result) -> None:
    titles, rows = front_table(result)
    table = Table(show_edge=False, pad_edge=False)
    for title in titles[:-1]:
        table.add_column(Text(title), overflow="fold")
    table.add_column(Text(titles[-1]), overflow="fold", min_width=24)
    for row in rows:
        style = {"recommended": "bold green", "start": "dim"}.get(row[0], "")
        table.add_row(*(Text(text) for text in row), style=style)
    split = best_split(result.members[0])
    console.print(Text(f"Front on {split} ({'with 95 % intervals'}), cost at list price"))
    console.print(table)
    recommended = result.recommended
    if recommended:
        console.print(Text(f"Recommended: {recommended['genome']} ({recommended['why']})"))


def _print_run(console: Console, result: Result) -> None:
    run = result.run
    spent = f"{run.get('evaluations', 0)} evaluations, {run.get('calls', 0)} calls "
    spent += f"({run.get('cached', 0)} from the cache), "
    spent += f"${run.get('paid_usd', 0.0):.4f} spent, {run.get('elapsed_s', 0.0):.0f} s"
    console.print(Text(f"{result.status}: {spent}; the search ended by: {run.get('stop_reason') or 'not yet'}"))
    if run.get("error"):
        console.print(Text(f"error: {run['error']}", style="red"))
    if result.status in ("interrupted", "failed", "running"):
        console.print(Text(f"Go on with: evocluster resume {result.path}"))
    else:
        console.print(Text(f"Everything is in {result.path}: front.json, run.json, genomes.jsonl, trials/*.parquet"))
