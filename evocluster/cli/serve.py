"""`evocluster serve`: the gateway of deployments, for clients that speak OpenAI's protocol."""

from __future__ import annotations

from typing import Annotated

import typer

from evocluster.cli import screen
from evocluster.cli.homes import DEFAULT, AllowCode, Folder, Url
from evocluster.cli.screen import plain


def serve(
    names: Annotated[list[str] | None, typer.Argument(help="Deployments to serve; none: all there are.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free one.", min=0, max=65535)] = 8400,
    replicas: Annotated[
        int, typer.Option("--replicas", help="Processes, kept up by Ray Serve where there are several.", min=1)
    ] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster that is there, for --replicas; e.g. auto.")
    ] = None,
    bodies: Annotated[
        bool, typer.Option("--bodies/--no-bodies", help="Keep inputs and outputs, redacted; else only facts.")
    ] = True,
    home: Folder = DEFAULT,
    ledger: Url = None,
    allow_code: AllowCode = False,
) -> None:
    """Serve deployments to OpenAI clients: base URL http://HOST:PORT/v1, the deployment's name as the model.

    The last user message is the question. Deploy and rollback take effect within a second, without a restart.

    Feedback goes to POST /v1/feedback, with the x-evocluster-request-id of the answer as its target.

    Examples:

    evocluster serve triage

    evocluster serve --replicas 4 --host 0.0.0.0        after: evocluster keys add frontend
    """
    from evocluster import serving

    place = serving.Place(home, ledger)
    if replicas > 1 or address is not None:
        serving.replicated(place, names or (), replicas, host, port, address, allow_code, bodies, _say)
    else:
        serving.serve(place, names or (), host, port, allow_code=allow_code, recording=bodies, say=_say)


def _say(text: str) -> None:
    screen.console().print(plain(text), soft_wrap=True)
