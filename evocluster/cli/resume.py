"""`evocluster resume`: go on with a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evocluster.cli import progress
from evocluster.cli.show import print_result


def resume(
    folder: Annotated[str, typer.Argument(help="The run folder that `evocluster run` made, or its s3://...")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Raise a budget, or change a model's limits: --set budget.usd=5."),
    ] = None,
    runner: Annotated[str | None, typer.Option("--runner", help="ray or local (default: as before).")] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Trust a run folder that was not made here: the Python it names, and where it sends keys.",
        ),
    ] = False,
    files: Annotated[
        Path | None, typer.Option("--files", hidden=True, help="Where the package of a submitted run is unpacked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    form: Annotated[
        progress.Form, typer.Option("--progress", help="json: progress as JSON objects, a line each, for programs.")
    ] = "auto",
) -> None:
    """Go on with a run that was interrupted, killed or failed; nothing finished is paid again.

    Examples:

      evocluster resume runs/quickstart

      evocluster resume runs/quickstart --set budget.minutes=10 --runner local

      evocluster resume runs/quickstart --set models.NAME.requests_per_minute=60
    """
    from evocluster import build

    with progress.Display(quiet=as_json, form=form) as display, progress.interruptible(display.warn) as interrupted:
        result = build.resume(
            folder,
            runner,
            sets=sets or (),
            allow_code=allow_code,
            files=files,
            show=display,
            say=display.say,
            interrupted=interrupted,
        )
    if form == "json":
        progress.tell_result(result)
    else:
        print_result(result, as_json)
    progress.leave(result)
