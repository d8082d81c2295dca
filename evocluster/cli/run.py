"""`evocluster run`: a config file to a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evocluster.cli import progress
from evocluster.cli.show import print_result


def run(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes task, models, space and budget.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one value, e.g. --set budget.calls=500."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Run folder, or s3://... (default: runs/NAME).")
    ] = None,
    runner: Annotated[
        str | None, typer.Option("--runner", help="ray (default) or local: in this process, no cluster.")
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Also run Python that the config names outside its own folder: you have looked at it."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    form: Annotated[
        progress.Form, typer.Option("--progress", help="json: progress as JSON objects, a line each, for programs.")
    ] = "auto",
) -> None:
    """Evolve a configuration: evaluates, selects, and writes the run folder.

    Ctrl-C once: what is in flight is finished and saved, and `evocluster resume` goes on from there.

    Examples:

      evocluster run configs/quickstart.yaml

      evocluster run my.yaml --set budget.usd=2 --set seed=3 --out runs/second --runner local
    """
    from evocluster import build
    from evocluster.report.caveats import scarce

    plan = build.plan(config, [*(sets or []), *([f"engine.runner={runner}"] if runner else [])], allow_code=allow_code)
    with progress.Display(quiet=as_json, form=form) as display, progress.interruptible(display.warn) as interrupted:
        if few := scarce(len(plan.splits.validation)):
            display.say(f"warning: {few}")
        result = build.run(plan, out, show=display, say=display.say, interrupted=interrupted)
    if form == "json":
        progress.tell_result(result)
    else:
        print_result(result, as_json)
    progress.leave(result)
