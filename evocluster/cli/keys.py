"""`evocluster keys`: the API keys that the gateway opens for."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from evocluster.cli import homes
from evocluster.cli.homes import DEFAULT, AsJson, Folder, Url
from evocluster.errors import ConfigError

app = typer.Typer(
    help="API keys of the gateway: add, list, revoke. Without any, only this machine is served.",
    epilog="Example: evocluster keys add frontend --tenant web",
    no_args_is_help=True,
)
Key = Annotated[str, typer.Argument(help="Name of the key.")]


@app.command("add")
def add(
    name: Key,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose requests those with this key are.")] = "",
    home: Folder = DEFAULT,
    ledger: Url = None,
) -> None:
    """Make a key. It is printed this once; only its digest is kept.

    Example: evocluster keys add frontend
    """
    from evocluster.online import keys

    with homes.opened(home, ledger) as where:
        typer.echo(keys.create(where.ledger, name, tenant or name, time.time()))


@app.command("list")
def list_keys(home: Folder = DEFAULT, ledger: Url = None, as_json: AsJson = False) -> None:
    """List the keys there are, without what opens anything.

    Example: evocluster keys list
    """
    from evocluster.online import keys

    with homes.opened(home, ledger) as where:
        rows = [key._asdict() for key in keys.listed(where.ledger)]
    if as_json:
        typer.echo(json.dumps({"keys": rows}))
        return
    shown = [
        {**row, "at": homes.moment(row.get("at")), "revoked_at": homes.moment(row.get("revoked_at"))} for row in rows
    ]
    homes.print_rows("Keys", ("name", "tenant", "at", "revoked_at"), shown)


@app.command("revoke")
def revoke(name: Key, home: Folder = DEFAULT, ledger: Url = None) -> None:
    """Make a key worth nothing, within a second.

    Example: evocluster keys revoke frontend
    """
    from evocluster.online import keys

    with homes.opened(home, ledger) as where:
        if not keys.revoke(where.ledger, name, time.time()):
            raise ConfigError(f"no key {name!r} that opens anything; `evocluster keys list` names those there are")
