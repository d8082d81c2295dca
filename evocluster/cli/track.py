"""`evocluster track`: a run into MLflow."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evocluster.cli import screen
from evocluster.cli.reading import found
from evocluster.cli.screen import plain


def track(
    folder: Annotated[str, typer.Argument(help="A run folder, or its s3://...")],
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri", help="Tracking URI: sqlite:///mlflow.db, http://HOST:PORT, ... (default: MLFLOW_TRACKING_URI)."
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", help="MLflow experiment (default: MLFLOW_EXPERIMENT_NAME, else evocluster)."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the MLflow run (default: the run's).")] = None,
    members: Annotated[
        bool, typer.Option("--members/--no-members", help="A nested run for the start and each member of the front.")
    ] = True,
    with_trials: Annotated[
        bool, typer.Option("--with-trials", help="Add the trials table, with every output, to the artefacts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print where it went as one JSON object.")] = False,
) -> None:
    """Export a run to MLflow: params, metrics with intervals, curves, and the files of the run folder.

    Exporting again updates what is there. It needs `pip install evocluster\\[mlflow]`.

    Example: evocluster track runs/quickstart --uri sqlite:///mlflow.db --experiment triage
    """
    from evocluster.report.tracking import to_mlflow

    done = to_mlflow(found(folder), uri, experiment, name, members, with_trials)
    if as_json:
        typer.echo(json.dumps(done._asdict()))
        return
    console = screen.console()
    verb = "made" if done.created else "was there already, updated"
    console.print(plain(f"MLflow run {done.run_id}: {verb}"), soft_wrap=True)
    where = f"experiment {done.experiment!r}, {len(done.members)} nested runs, at {done.uri}"
    console.print(plain(where), soft_wrap=True)
    if done.uri.startswith("http"):
        look = f"{done.uri.rstrip('/')}/#/experiments/{done.experiment_id}/runs/{done.run_id}"
    else:
        look = f"mlflow ui --backend-store-uri {done.uri}   (the command is in the full `mlflow` package)"
    console.print(plain(f"Look: {look}"), soft_wrap=True)
