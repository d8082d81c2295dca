"""`evocluster judge`: whether a judge may be trusted, before anything is selected by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from evocluster.cli import screen
from evocluster.cli.screen import plain
from evocluster.errors import BelowBar

app = typer.Typer(
    help="Judges, which score answers by a rubric: check them against labelled answers.",
    epilog="Example: evocluster judge check my.yaml --labels labels.jsonl",
    no_args_is_help=True,
)
FIGURES = {
    "kappa": "kappa (quadratic)",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "error": "mean absolute error",
    "bias": "bias (judge - label)",
    "accuracy": "accuracy",
}
SHOWN = 200
"""Characters of an answer or a reason that are printed."""
FAILURES = 3


@app.callback()
def _root() -> None:
    """Keeps `check` a verb of its own while it is the only one."""


@app.command("check")
def check(
    config: Annotated[Path, typer.Argument(help="The YAML file whose task has the judge.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSONL, CSV or Parquet: input, output, score [, expected, id].")
    ] = None,
    scorer: Annotated[str | None, typer.Option("--scorer", help="Name of the judge, where there are several.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many labels.")] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Grade every answer so often: does the judge agree with itself?")
    ] = 1,
    pass_at: Annotated[
        float | None,
        typer.Option(
            "--pass-at", help="The score that passes (default: the task's accuracy_threshold, or the flag's own)."
        ),
    ] = None,
    min_kappa: Annotated[
        float | None, typer.Option("--min-kappa", help="Exit with 8 where kappa is below this or not defined.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value of the config.")
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Also run Python that the config names outside its own folder: you have looked at it."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, every grade too, as one JSON object.")
    ] = False,
) -> None:
    """Hold a judge against answers that people have graded: does it agree with them, and with itself?

    Labels have `score` from 0 to 1 (or true, false, pass, fail), or `rating` on the rubric's own scale. All figures
    are on 0 to 1. Poor agreement is a result, not an error: the exit code is 0 unless --min-kappa asks for more.

    Examples:

      evocluster judge check my.yaml --labels labels.jsonl --repeats 3

      evocluster judge check my.yaml --scorer helpful --min-kappa 0.6 --json
    """
    from evocluster import build

    how = {"limit": limit, "repeats": repeats, "pass_at": pass_at}
    found = build.judge_check(config, labels, sets=sets or (), allow_code=allow_code, scorer=scorer, **how)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(screen.console(), found)
    kappa = found["agreement"]["kappa"]
    if min_kappa is not None and (kappa["value"] is None or kappa["value"] < min_kappa):
        got = kappa["note"] if kappa["value"] is None else f"{kappa['value']:.3f}"
        raise BelowBar(f"judge {found['judge']!r}: kappa is {got}; --min-kappa asks for {min_kappa:g} or more")


def _print(console: Console, found: Mapping[str, Any]) -> None:
    rubric, agreement = found["rubric"], found["agreement"]
    console.print(plain(f"Judge {found['judge']}, model {found['model']}"), soft_wrap=True)
    version = f"version {rubric['version']}, {rubric['digest']}, scale {rubric['scale']}"
    console.print(plain(f"Rubric {rubric['path']} ({version})"), soft_wrap=True)
    console.print(plain(f"{found['labels']} labelled answers, {found['failed']} without a grade"))
    console.print()
    if agreement["pairs"]:
        console.print(_figures(agreement))
        console.print()
        console.print(plain(f"Pass is {agreement['bar']:g} or more:"))
        console.print(_confusion(agreement))
        console.print()
    if found["stability"]:
        console.print(plain(_steadiness(found["stability"])), soft_wrap=True)
    _print_cases(console, found)
    console.print(plain(f"Spent: {_spent(found['spend'])}"), soft_wrap=True)
    for at, sentence in enumerate(found["verdict"]):
        console.print(
            plain(f"{'Verdict:' if at == 0 else '        '} {sentence}", "bold" if at == 0 else ""), soft_wrap=True
        )


def _figures(agreement: Mapping[str, Any]) -> Table:
    table = _table("figure", "value", "95 % interval")
    for name, called in FIGURES.items():
        figure = agreement[name]
        if figure["value"] is None:
            table.add_row(called, "-", plain(figure["note"]))
        else:
            sign = "+" if name == "bias" else ""
            known = figure["low"] is not None
            between = f"{figure['low']:{sign}z.2f} to {figure['high']:{sign}z.2f}" if known else figure["note"]
            table.add_row(called, f"{figure['value']:{sign}z.2f}", plain(between))
    return table


def _confusion(agreement: Mapping[str, Any]) -> Table:
    table = _table("", "label passes", "label fails")
    table.add_row("judge passes", str(agreement["both"]), str(agreement["judge_only"]))
    table.add_row("judge fails", str(agreement["label_only"]), str(agreement["neither"]))
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name)
    return table


def _steadiness(stability: Mapping[str, Any]) -> str:
    kappa = "not defined" if stability["kappa"] is None else f"{stability['kappa']:.2f}"
    return (
        f"With itself, asked {stability['asked']} times ({stability['answers']} answers): "
        f"{stability['identical']:.0%} always the same grade, mean spread {stability['spread']:.2f}, kappa {kappa}\n"
    )


def _print_cases(console: Console, found: Mapping[str, Any]) -> None:
    if found["worst"]:
        console.print(plain("Furthest apart:", "bold"))
    for case in found["worst"]:
        console.print(plain(f"  {case['id']}: judge {case['judged']:.2f}, label {case['label']:.2f}"), soft_wrap=True)
        console.print(plain(f"    answer: {_short(case['output'])}"), soft_wrap=True)
        if case["reason"]:
            console.print(plain(f"    reason: {_short(case['reason'])}"), soft_wrap=True)
    failures = [case for case in found["cases"] if case["error"]]
    if failures:
        console.print(plain(f"Without a grade ({len(failures)}):", "bold"))
    for case in failures[:FAILURES]:
        console.print(plain(f"  {case['id']}: {_short(case['error'], 2 * SHOWN)}"), soft_wrap=True)
    if found["worst"] or failures:
        console.print()


def _spent(spend: Mapping[str, Any]) -> str:
    return (
        f"{spend['calls']} calls ({spend['cached']} from the cache), {spend['prompt_tokens']} + "
        f"{spend['completion_tokens']} tokens, ${spend['paid_usd']:.4f} (${spend['usd']:.4f} without the cache)"
    )


def _short(text: str, size: int = SHOWN) -> str:
    line = " ".join(text.split()) or "(empty)"
    return line if len(line) <= size else f"{line[: size - 1]}…"
