"""`evocluster rollback`: what served before serves again."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evocluster.cli import homes, screen
from evocluster.cli.homes import DEFAULT, AsJson, Folder, Name, Url
from evocluster.cli.screen import plain


def rollback(
    name: Name,
    version: Annotated[
        str | None, typer.Argument(help="The version that is to serve again, e.g. v1.2; none: the one before.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", help="Only this layer of it: prompt, memory or strategy.")
    ] = None,
    why: Annotated[str, typer.Option("--why", help="A word for the audit trail.")] = "",
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the gateways; 0: none.", min=0)] = 10.0,
    home: Folder = DEFAULT,
    ledger: Url = None,
    as_json: AsJson = False,
) -> None:
    """Point a deployment back at an old version, or put back one layer of it; no gates, since it served before.

    Done when every live gateway serves by it. An experiment that is live ends with it.

    Examples:

    evocluster rollback triage v1.2

    evocluster rollback triage --layer prompt v1.1
    """
    from evocluster import deploying

    with homes.opened(home, ledger) as where:
        told = deploying.roll_back(where, name, version, layer=layer, why=why, wait_s=wait_s)
    if as_json:
        typer.echo(json.dumps(told))
        return
    late = f"; not yet served by {', '.join(told['late'])}" if told["late"] else ""
    text = f"{name} serves {told['version']} (snapshot {told['snapshot']}), epoch {told['epoch']}"
    screen.console().print(plain(f"{text}, after {told['seconds']:.2f} s{late}"), soft_wrap=True)
