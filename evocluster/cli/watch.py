"""`evocluster watch`: the report in the browser while the run goes on."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evocluster.cli import screen
from evocluster.errors import ConfigError

if TYPE_CHECKING:
    from evocluster.report.live import Live

LOOK_S = 1.0


def watch(
    folder: Annotated[str, typer.Argument(help="A run folder; the run may be going on.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the browser, only print the address.")
    ] = False,
) -> None:
    """Show the report of a run in the browser, renewed as the run goes on.

    Only this machine can see it (127.0.0.1). Ctrl-C ends the watching, not the run.

    Examples:

      evocluster watch runs/quickstart

      evocluster watch runs/quickstart --port 8080 --no-open
    """
    from evocluster.report.live import Live, Server

    console = screen.console()
    if "://" in folder:
        raise ConfigError(f"watch reads a local folder, not {folder!r}: evocluster report {folder} --out FILE.html")
    live = Live(Path(folder))
    server = Server(live, port)
    thread = threading.Thread(target=server.serve_forever, name="watch", daemon=True)
    thread.start()
    console.print(
        screen.plain(f"Watching {folder} at {server.address} (Ctrl-C ends the watching, not the run)"), soft_wrap=True
    )
    try:
        with suppress(KeyboardInterrupt):  # how watching ends
            if not no_open:
                import webbrowser

                webbrowser.open(server.address)
            _follow(live)
    finally:
        server.shutdown()
        server.server_close()


def _follow(live: Live) -> None:
    """Say when the status of the run changes, until Ctrl-C."""
    console, told = screen.console(), ""
    while True:
        news = live.news()
        said = f"cannot read the folder: {news['error']}" if news["error"] else f"the run is {news['status']}"
        if said != told:
            told = said
            console.print(screen.plain(said), soft_wrap=True)
        time.sleep(LOOK_S)
