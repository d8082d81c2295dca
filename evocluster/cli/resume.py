"""`evocluster resume`: go on with a run folder."""

from __future__ import annotations

from typing import Annotated

import typer

from evocluster.cli import progress
from evocluster.cli.show import print_result


def resume(
    folder: Annotated[str, typer.Argument(help="The run folder that `evocluster run` made, or its s3://...")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Raise a budget before the search is over: --set budget.usd=5."),
    ] = None,
    runner: Annotated[str | None, typer.Option("--runner", help="ray or local (default: as before).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Go on with a run that was interrupted, killed or failed; nothing finished is paid again.

    Examples:

      evocluster resume runs/quickstart

      evocluster resume runs/quickstart --set budget.minutes=10 --runner local
    """
    from evocluster import build

    with progress.Display(quiet=as_json) as display, progress.interruptible(display.warn) as interrupted:
        result = build.resume(folder, runner, sets=sets or (), show=display, say=display.say, interrupted=interrupted)
    print_result(result, as_json)
    progress.leave(result)
