"""`evocluster erase`: what a user said and was told goes, and what was made of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evocluster.cli import homes, screen
from evocluster.cli.homes import DEFAULT, AsJson, Folder, Name, Url
from evocluster.cli.screen import plain


def erase(
    name: Name,
    user: Annotated[str, typer.Option("--user", help="The user, as callers give it: `user` of their requests.")],
    home: Folder = DEFAULT,
    ledger: Url = None,
    as_json: AsJson = False,
) -> None:
    """Delete a user: requests, answers, feedback, and the notes, examples and runs that were made of them.

    What serves and holds something of the user is replaced by the same without it, and cannot be rolled back to.

    Later requests of the user are recorded without their texts. Where it was stopped on the way, say it again.

    Example: evocluster erase triage --user jane@example.com
    """
    from evocluster import deploying

    with homes.opened(home, ledger) as where:
        told = deploying.erase(where, name, user)
    if as_json:
        typer.echo(json.dumps(told))
        return
    made = [("snapshot", told["snapshots"]), ("experiment", told["experiments"]), ("evolution", told["evolutions"])]
    gone = ", ".join(f"{len(ids)} {what}{'' if len(ids) == 1 else 's'}" for what, ids in made)
    lines = [f"{name}: {told['requests']} requests of the user were erased, and with them {gone}"]
    if told["moved"]:
        lines.append(f"{', '.join(told['moved'])} now serve without them; {name} serves {told['version']}")
    if told["journals"]:
        lines.append(f"a gateway has {told['journals']} files of records in hand, and drops the user's from them")
    for line in lines:
        screen.console().print(plain(line), soft_wrap=True)
