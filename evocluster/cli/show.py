"""`evocluster show`: what a run found, as a table or as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from evocluster.cli import screen
from evocluster.cli.reading import found
from evocluster.cli.screen import plain
from evocluster.report.figures import heading
from evocluster.report.found import Found
from evocluster.report.front import Row, front_rows, task_names, task_rows
from evocluster.report.honest import honest_line
from evocluster.report.limits import limits, said
from evocluster.report.wasted import wasted

STYLES = {"*": "bold green", "start*": "bold green", "start": "dim"}


def show(
    folder: Annotated[str, typer.Argument(help="A run folder, or its s3://...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json and front.json as one JSON object.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print the recommended configuration whole.")] = False,
) -> None:
    """Show the front of a run, its recommended configuration and what it cost.

    Example: evocluster show runs/quickstart --full
    """
    print_result(found(folder), as_json, full)


def print_result(result: Found, as_json: bool, full: bool = False, following: Sequence[str] | None = None) -> None:
    """Print a result for people or for programs; rubrics and outputs are plain text, never markup.

    `following`: the commands that come next where the folder is not on this machine.
    """
    if as_json:
        # All ASCII, so that no text in it can reach a terminal or a narrow encoding as anything but JSON.
        typer.echo(json.dumps({"folder": result.address, "run": result.run, "front": result.front}))
        return
    console = screen.console()
    rows = front_rows(result) if result.members else []
    if rows:
        _print_front(console, result, rows)
    recommended = result.recommended
    if recommended:
        console.print(
            plain(f"Recommended on validation: {recommended['genome']}, {recommended['why']}"), soft_wrap=True
        )
        if line := honest_line(result):
            console.print(plain(f"Honestly: {line}"), soft_wrap=True)
        if full:
            whole = json.dumps(recommended["genes"], indent=2, ensure_ascii=False)
            console.print(plain(whole), soft_wrap=True)
    _print_run(console, result, bool(rows))
    _print_next(console, result, following)


def _print_front(console: Console, result: Found, rows: Sequence[Row]) -> None:
    splits = list(dict.fromkeys(row.split for row in rows))
    if len(splits) == 1:
        count = (result.run.get("examples") or {}).get(splits[0])
        where = f"on {splits[0]}" + (f" ({count} examples)" if count else "")
    else:
        where = "each on the split it names"
    console.print(plain(f"Front {where}, 95 % intervals, cost at list price"))
    console.print()
    beside = _table(result, rows, len(splits) > 1, " ")
    fits = console.measure(beside).maximum <= console.width
    console.print(beside if fits else _table(result, rows, len(splits) > 1, "\n"))
    console.print()
    if task_names(result):
        console.print(_tasks(result))
        console.print()
    console.print(plain(_legend(result)))
    console.print()
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        style = STYLES.get(row.mark, "")
        grid.add_row(plain(row.mark, style), plain(row.genome, style), plain(row.configuration))
    grid.columns[0].no_wrap = grid.columns[1].no_wrap = True
    grid.columns[2].overflow = "fold"
    console.print(grid)
    console.print()


def _table(result: Found, rows: Sequence[Row], with_split: bool, between: str) -> Table:
    """The numbers; `between` stands between a value and its interval: a space, or a new line where it is narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("genome", no_wrap=True)
    if with_split:
        table.add_column("split", no_wrap=True)
    for name in result.objectives:
        table.add_column(plain(heading(name)), overflow="fold")
    table.add_column("gap", justify="right", no_wrap=True)
    for row in rows:
        head = [row.mark + "!" * (not row.feasible), row.genome, *([row.split] if with_split else [])]
        cells = [between.join(filter(None, pair)) for pair in row.cells]
        style = STYLES.get(row.mark, "")
        table.add_row(*(plain(text, style) for text in (*head, *cells, row.gap)))
    return table


def _tasks(result: Found) -> Table:
    """The first objective, task by task."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(plain(f"{heading(result.objectives[0])} by task"), no_wrap=True)
    table.add_column("genome", no_wrap=True)
    for name in task_names(result):
        table.add_column(plain(name), overflow="fold")
    for mark, genome, cells in task_rows(result):
        style = STYLES.get(mark, "")
        table.add_row(*(plain(text, style) for text in (mark, genome, *cells)))
    return table


def _legend(result: Found) -> str:
    parts = []
    if result.start:
        on = any(member["genome"] == result.start["genome"] for member in result.members)
        parts.append(f"start: where the search began, {'itself' if on else 'not'} on the front.")
    if result.recommended:
        parts.append("*: recommended.")
    if found := limits(result):
        names = ", ".join(map(said, found))
        kept = all(row.feasible for row in front_rows(result))
        parts.append(f"All keep the constraints ({names})." if kept else f"!: breaks a constraint ({names}).")
    parts.append("gap: validation quality minus test quality.")
    if result.start:
        parts.append("Below: the start's genes, then what the others change.")
    return " ".join(parts)


def _print_run(console: Console, result: Found, front: bool) -> None:
    from evocluster.report.caveats import stop_reason

    run = result.run
    spent = f"{run.get('evaluations', 0)} evaluations, {run.get('calls', 0)} calls "
    spent += f"({run.get('cached', 0)} from the cache), ${run.get('paid_usd', 0.0):.4f} spent "
    spent += f"(${run.get('usd', 0.0):.4f} without the cache), {run.get('elapsed_s', 0.0):.0f} s"
    lines = [f"Status: {result.status}" + ("" if front else ", no front yet")]
    lines.append(f"Spent: {spent}")
    restarts = f", after {count} restart{'s' * (count > 1)}" if (count := int(run.get("restarts") or 0)) else ""
    meant = f" ({stop_reason(result)})" if run.get("stop_reason") == "exhausted" else ""
    lines.append(f"The search ended by: {run.get('stop_reason') or 'nothing yet'}{meant}{restarts}")
    for text in lines:
        console.print(plain(text), soft_wrap=True)
    if front and (hint := result.barren):
        console.print(plain(hint, "red"), soft_wrap=True)
    for text in wasted(result) if front else ():
        console.print(plain(text), soft_wrap=True)
    if run.get("error"):
        console.print(plain(f"error: {run['error']}", "red"), soft_wrap=True)


def _print_next(console: Console, result: Found, following: Sequence[str] | None) -> None:
    folder = _path(result.path) if result.address == str(result.path) else shlex.quote(result.address)
    folder = folder if following is None else str(result.path)
    where = " on the cluster" if following is not None else ""
    console.print(
        plain(f"Run folder{where}: {folder} (front.json, run.json, genomes.jsonl, trials/*.parquet)"), soft_wrap=True
    )
    commands = [
        f"evocluster {verb}" for verb in (f"report {folder}", f"show {folder} --full", f"export {folder} --as openai")
    ]
    if result.status in ("interrupted", "failed", "running"):
        commands = [f"evocluster resume {folder}"]
    for label, command in zip(("Next:", "     "), following or commands, strict=False):
        console.print(plain(f"{label} {command}"), soft_wrap=True)


def _path(path: Path) -> str:
    """As a shell reads it, relative where it is below the working directory."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) and path != here else path))
