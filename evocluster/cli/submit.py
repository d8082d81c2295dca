"""`evocluster submit`: a run on a Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evocluster.cli import following, screen
from evocluster.cli.screen import plain
from evocluster.errors import ConfigError

if TYPE_CHECKING:
    from evocluster.shipping import Shipment

SHOWN = 12
"""Files that are listed."""


def submit(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes task, models, space and budget.")],
    address: following.Address = following.DEFAULT,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run (default: the config's).")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one value, e.g. --set budget.calls=500."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="NAME", help="Go on with the run of this name, from what it kept.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Run folder there (default: ~/evocluster-runs/NAME on the head).")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Watch it to its end.")] = True,
    grace: Annotated[
        int, typer.Option("--grace", min=1, metavar="SECONDS", help="When it is stopped: time to finish its calls.")
    ] = 120,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Also send Python that the config names outside its own folder: you have looked at it."
        ),
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only check, and list what would travel.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Run a config on a Ray cluster: checks it here, sends config, data and code, and shows the run as it goes.

    Keys do not travel: the variables that the config names must be set on the cluster. Ctrl-C leaves the run going.

    Examples:

      evocluster submit my.yaml --address http://127.0.0.1:8265

      evocluster submit my.yaml --name second --set budget.usd=2 --no-follow

      evocluster submit my.yaml --resume second
    """
    from evocluster import submission

    if name is not None and resume is not None and name != resume:
        raise ConfigError(f"--name {name!r} and --resume {resume!r} contradict each other; keep one")
    named = [*(sets or []), *(f"name={each}" for each in {name, resume} if each)]
    shipment = submission.prepare(config, named, allow_code=allow_code)
    _list(shipment, config)
    if dry:
        shipment.packed(submission.MOST_BYTES)
        if as_json:
            typer.echo(json.dumps({"run": shipment.name, "files": list(shipment.files), "needs": shipment.needs}))
        return
    request = submission.Request(
        out=out, resume=resume is not None, sets=tuple(sets or ()) if resume else (), stop_s=grace
    )
    id = following.served(address, lambda jobs: submission.submit(jobs, shipment, request))
    at = "" if address == following.DEFAULT else f" --address {address}"
    _say(f"submitted {id} to {address}; look after it: evocluster job status {shipment.name}{at}")
    if not follow:
        if as_json:
            typer.echo(json.dumps({"run": shipment.name, "id": id}))
        return
    raise typer.Exit(following.follow(shipment.name, id, address, as_json))


def _list(shipment: Shipment, config: Path) -> None:
    """What travels, on standard error."""
    from evocluster.shipping import megabytes

    _say(f"{config}: checked; {len(shipment.files) + 1} files travel, {megabytes(shipment.size)}")
    for place in list(shipment.files)[:SHOWN]:
        _say(f"  {place.partition('/')[2]}  {megabytes(shipment.files[place].stat().st_size)}")
    if len(shipment.files) > SHOWN:
        _say(f"  and {len(shipment.files) - SHOWN} more (--dry-run --json lists all)")
    if shipment.needs:
        _say(f"needed in the environment of the cluster (values do not travel): {', '.join(shipment.needs)}")
    for note in shipment.notes:
        _say(f"note: {note}")


def _say(text: str) -> None:
    screen.console(stderr=True).print(plain(text), soft_wrap=True)
