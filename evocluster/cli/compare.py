"""`evocluster compare`: is one configuration better than another, and on which examples?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evocluster.cli import screen
from evocluster.cli.reading import found
from evocluster.cli.screen import inert, plain
from evocluster.errors import ConfigError
from evocluster.report.figures import heading

if TYPE_CHECKING:
    from evocluster.config import Config
    from evocluster.report.changes import GeneChange, Piece
    from evocluster.report.compare import Change, Comparison
    from evocluster.report.measure import Measure
    from evocluster.report.side import Side

STYLES = {"fixed": "green", "broken": "red", "changed": "yellow"}
TITLES = {
    "fixed": "better under B",
    "broken": "worse under B",
    "changed": "another output, as good as before",
}
EXCERPT = 300
"""Characters shown of an input or an output."""


def compare(
    run: Annotated[str, typer.Argument(help="A run folder, or its s3://...")],
    second: Annotated[
        str | None, typer.Argument(metavar="RUN|GENOME", help="Another run folder, or a genome of the first run.")
    ] = None,
    third: Annotated[str | None, typer.Argument(metavar="GENOME", help="After a genome: the one to compare.")] = None,
    a: Annotated[
        str | None,
        typer.Option("--a", metavar="GENOME", help="A: the first digits of an id, or start, or recommended."),
    ] = None,
    b: Annotated[str | None, typer.Option("--b", metavar="GENOME", help="B, likewise.")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="test, validation or train (default: the first that both were evaluated on)."),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="How many of the examples that changed are shown.")
    ] = 10,
    every: Annotated[bool, typer.Option("--all", help="Show every example that changed.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare although the runs' data differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
) -> None:
    """Compare two configurations on the examples both were evaluated on: genes, objectives, paired tests, changes.

    Two runs: the recommended configuration of each. One run: its start (A) with its recommended one (B).

    Examples:

      evocluster compare runs/first runs/second

      evocluster compare runs/first

      evocluster compare runs/first 3fa9 c01b --split validation --all

      evocluster compare runs/first s3://bucket/runs/second
    """
    from evocluster.report import compare as reports

    side_a, side_b = _sides(run, second, third, (a, b))
    measures, notes = _measures(side_a, side_b)
    told = reports.compare(side_a, side_b, split, measures, anyway)
    told.notes.extend(notes)
    if as_json:
        # All ASCII, so that no text in it can reach a terminal or a narrow encoding as anything but JSON.
        typer.echo(json.dumps(reports.as_json(told), allow_nan=False))
        return
    print_comparison(screen.console(), told, None if every else examples)


def _sides(run: str, second: str | None, third: str | None, words: tuple[str | None, str | None]) -> tuple[Side, Side]:
    """Who is A and who is B. Raises: ConfigError."""
    from evocluster.report.side import choose

    result = found(run)
    if second is not None and ("://" in second or (Path(second) / "run.json").exists()):
        if third is not None:
            raise ConfigError(
                f"got {third!r} after two run folders; name the genomes of two runs with --a GENOME and --b GENOME"
            )
        return choose(result, words[0] or "recommended"), choose(found(second), words[1] or "recommended")
    if second is not None and (Path(second).exists() or "/" in second):
        raise ConfigError(f"{second!r} is neither a run folder (no run.json in it) nor the id of a genome")
    if (third is not None and any(words)) or (second is not None and words[1] is not None):
        raise ConfigError("genomes are named twice; write them after the run folder, or with --a and --b")
    given = (words[0] or "start", second) if third is None else (second, third)
    return choose(result, given[0] or "start"), choose(result, given[1] or words[1] or "recommended")


def _measures(a: Side, b: Side) -> tuple[dict[str, Measure], list[str]]:
    """The objectives as run B's config defines them, and what the two configs do differently in scoring."""
    from evocluster import config as configs
    from evocluster.report.measure import measure

    loaded: list[Config] = []
    for side in (a, b):
        path = side.result.path / "config.yaml"
        try:
            loaded.append(configs.load(path))
        except (ConfigError, OSError) as failure:
            reason = str(failure).splitlines()[0]
            return {}, [f"Objectives are taken by their names: {str(path)!r} cannot be read as a config ({reason})."]
    notes = []
    if a.result.address != b.result.address and (other := _scored_otherwise(*loaded)):
        notes.append(f"The runs score differently (task: {', '.join(other)}), so their values are not of one scale.")
    config = loaded[1]
    found = {
        one.name: measure(
            one.name, one.source, one.direction, one.aggregate, one.threshold, partial(_composite, config)
        )
        for one in config.objectives
    }
    return {name: one for name, one in found.items() if one is not None}, notes


SCORING = ("kind", "scorers", "weights", "must_pass", "validator", "safety", "twins", "json_schema", "repairs")


def _scored_otherwise(a: Config, b: Config) -> list[str]:
    tasks = [config.model_dump(mode="json").get("task") or {} for config in (a, b)]
    return [name for name in SCORING if tasks[0].get(name) != tasks[1].get(name)]


def _composite(config: Config, row: Mapping[str, Any]) -> float:
    """The composite score of a row of trials, by the config's weights."""
    from evocluster.records import Evaluation, Item, Usage

    usage = Usage(
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        usd=row["cost_usd"],
        seconds=row["seconds"],
    )
    done = Evaluation(
        item=Item(split=row["split"], example=row["example_id"]),
        quality=row["quality"],
        validator=row["validator"],
        schema_ok=row["schema_ok"],
        usage=usage,
        repairs=row["repairs"],
        flags=tuple(row["flags"] or ()),
        error=row["error"],
    )
    return config.composite.score(done)


def print_comparison(console: Console, found: Comparison, most: int | None) -> None:
    """Print it for people; `most`: how many changed examples, None for all. Texts come out as plain text."""
    grid = Table.grid(padding=(0, 2))
    for name, side in (("A", found.a), ("B", found.b)):
        grid.add_row(name, side.genome[:8], plain(side.role), plain(side.result.address))
    grid.columns[3].overflow = "fold"
    console.print(grid)
    console.print()
    _print_genes(console, found.genes)
    evaluations = f", {found.evaluations} evaluations with twins" * (found.evaluations > found.examples)
    console.print(plain(f"On {found.split}, the {found.examples} examples both were evaluated on{evaluations}", "bold"))
    console.print()
    console.print(_table(found))
    console.print()
    _print_verdicts(console, found)
    _print_changes(console, found, most)


def _print_genes(console: Console, genes: list[GeneChange]) -> None:
    from evocluster.report.changes import brief

    if not genes:
        console.print(plain("Genes: the same", "bold"))
        console.print()
        return
    console.print(plain("Genes that differ", "bold"))
    grid = Table.grid(padding=(0, 2))
    for change in genes:
        if change.pieces:
            value = _marked(change.pieces)
        else:
            value = plain(f"{brief(change.name, change.a)} -> {brief(change.name, change.b)}")
        grid.add_row(plain(f"  {change.name}"), value)
    grid.columns[0].no_wrap = True
    grid.columns[1].overflow = "fold"
    console.print(grid)
    console.print()


def _marked(pieces: tuple[Piece, ...]) -> Text:
    """[-words of A-] and {+words of B+}, the rest is both's."""
    text = Text()
    for kind, words in pieces:
        words = inert(words)
        if kind == "same":
            text.append(words)
        else:
            text.append(f"[-{words}-]" if kind == "gone" else f"{{+{words}+}}", "red" if kind == "gone" else "green")
    return text


def _table(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("p", no_wrap=True)
    table.add_column("better", no_wrap=True)
    for line in found.lines:
        one, pair = line.measure, line.paired
        unit = " ms" * (one.name == "latency_ms")
        cells = [
            heading(one.name) + " p95" * (one.aggregate == "p95"),
            one.bare(pair.a) + unit,
            one.bare(pair.b) + unit,
            one.bare(pair.difference, sign=True) + unit,
            f"[{one.bare(pair.low, sign=True)}, {one.bare(pair.high, sign=True)}]",
            "< 0.001" if pair.p < 0.001 else f"{pair.p:.2g}",
            line.better or "-",
        ]
        style = {"A": "red", "B": "green"}.get(line.better, "")
        table.add_row(*(plain(cell, style) for cell in cells))
    return table


def _print_verdicts(console: Console, found: Comparison) -> None:
    from evocluster.report.compare import verdict

    grid = Table.grid(padding=(0, 2))
    for line in found.lines:
        name, _, text = verdict(line).partition(": ")
        grid.add_row(plain(name), plain(text))
    grid.columns[0].no_wrap = True
    console.print(grid)
    console.print()
    tests: dict[str, list[str]] = {}
    for line in found.lines:
        tests.setdefault(line.paired.test, []).append(line.measure.name)
    said = "; ".join(f"{test} ({', '.join(names)})" for test, names in tests.items())
    console.print(plain(f"p: {said}. The unit is the example; every objective is tested on its own.", "dim"))
    for note in found.notes:
        console.print(plain(f"Note: {note}", "yellow"))
    console.print()


def _print_changes(console: Console, found: Comparison, most: int | None) -> None:
    from evocluster.report.compare import KINDS, first

    same = found.examples - len(found.changes)
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in KINDS)
    console.print(plain(f"Examples: {counts}, {same} with the same output", "bold"))
    shown = found.changes if most is None else first(found.changes, most)
    for change in shown:
        console.print()
        _print_change(console, change)
    if rest := len(found.changes) - len(shown):
        console.print()
        console.print(plain(f"{rest} more changed: --all shows them, --json gives them whole", "dim"))


def _print_change(console: Console, change: Change) -> None:
    title = f"{change.kind:7}  {change.example}  {TITLES[change.kind]}"
    if change.kind != "changed":
        title += f": quality {change.quality_a:.3g} -> {change.quality_b:.3g}"
    console.print(plain(title, STYLES[change.kind]))
    grid = Table.grid(padding=(0, 2))
    if change.content:
        grid.add_row("  input", plain(_excerpt(change.content["input"])))
        grid.add_row("  expected", plain(_excerpt(change.content["expected"])))
    for name, row in (("A", change.a), ("B", change.b)):
        lines = [_excerpt(row["output"]), *_remarks(row)]
        grid.add_row(f"  {name}", plain("\n".join(lines)))
    grid.columns[0].no_wrap = True
    grid.columns[1].overflow = "fold"
    console.print(grid)


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _remarks(row: Mapping[str, Any]) -> list[str]:
    """What scorers and checks said of an output."""
    scores = json.loads(row["scores"] or "{}")
    said = [
        f"{name} {score['value']:.3g}" + (f": {_excerpt(score['reason'])}" if score["reason"] else "")
        for name, score in scores.items()
        if score["reason"] or len(scores) > 1
    ]
    if row["error"] is not None:
        said.append(f"failed: {_excerpt(row['error'])}")
    if row["flags"]:
        said.append(f"flagged: {', '.join(row['flags'])}")
    if row["repairs"]:
        said.append(f"repairs: {row['repairs']}")
    return [f"  ({text})" for text in said]
