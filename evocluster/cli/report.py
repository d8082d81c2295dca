"""`evocluster report`: a run folder as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evocluster.cli import screen
from evocluster.cli.reading import found
from evocluster.errors import ConfigError


def report(
    folder: Annotated[str, typer.Argument(help="A run folder, finished or not, or its s3://...")],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write (default: FOLDER/report.html).")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write what a run found as one HTML file that needs nothing else: plots, lineage, examples, failures, spend.

    The file holds inputs and outputs of your examples: share it with whom you would share those.

    Examples:

      evocluster report runs/quickstart

      evocluster report runs/quickstart --out quickstart.html --open
    """
    from evocluster.report import page
    from evocluster.report.story import facts

    run = found(folder)
    if out is None and run.address != str(run.path):
        raise ConfigError(f"a report of {run.address!r} needs a file on this machine: give --out FILE.html")
    path = out or run.path / "report.html"
    size = page.write(facts(run.path), path)
    screen.console().print(screen.plain(f"Report: {path} ({size / 1e6:.1f} MB)"), soft_wrap=True)
    if open_:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
