"""`evocluster export`: the winner of a run as something that works without evocluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from evocluster.cli import formats, screen
from evocluster.cli.leaving import Export, origin
from evocluster.cli.promptfoo_export import promptfoo
from evocluster.cli.screen import plain
from evocluster.cli.standalone import standalone
from evocluster.errors import RunExists, StoreError

Format = Literal["openai", "messages", "json", "litellm", "promptfoo"]
WRITERS: Mapping[str, Callable[[Export], str]] = {
    "openai": standalone,
    "messages": formats.messages,
    "json": formats.whole,
    "litellm": formats.litellm,
    "promptfoo": promptfoo,
}


def export(
    folder: Annotated[str, typer.Argument(help="A run folder, or its s3://...")],
    form: Annotated[
        Format,
        typer.Option(
            "--as",
            help="openai: one Python file, needs only the openai package, holds every configuration. messages: chat "
            "messages and parameters as JSON. json: everything. litellm: YAML for its proxy and its calls. "
            "promptfoo: promptfooconfig.yaml with the test examples.",
        ),
    ],
    genome: Annotated[
        str, typer.Option("--genome", help="recommended, start, or an id (its first digits do).")
    ] = "recommended",
    out: Annotated[str, typer.Option("--out", help="The file to write; '-' is standard output.")] = "-",
    task: Annotated[str | None, typer.Option("--task", help="Which task, where the run has several.")] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Trust a run folder that was not made here: the Python it names, and where it sends keys.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a configuration of a run as something that works, and scores the same, without evocluster.

    Prompts hold places for the input: {{input}}, {{field}} for a field of it, {{context}} for retrieved passages.
    Keys are never written, only the names of the variables that hold them. What a format cannot hold is refused.

    Examples:

    evocluster export runs/quickstart --as openai --out triage.py; echo "Where is my parcel?" | python triage.py

    evocluster export runs/quickstart --genome start --as promptfoo --out promptfooconfig.yaml
    """
    from evocluster import build

    target = None if out == "-" else Path(out)
    if target is not None and target.exists() and not force:
        raise RunExists(f"{out!r} is already there; choose another file, or replace it with --force")
    found = build.exported(folder, genome, task, tests=form == "promptfoo", allow_code=allow_code)
    text = WRITERS[form](found)
    if target is None:
        encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "")
        typer.echo(text if encoding == "utf8" else text.encode(), nl=False)  # a file stays UTF-8 in any terminal
        return
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {out!r}: {error.strerror}; name a file in a folder that is there") from error
    console = screen.console(stderr=True)
    console.print(plain(f"{out}: {origin(found)[0]}"), soft_wrap=True)
    for line in origin(found)[1:]:
        console.print(plain(line, "dim"), soft_wrap=True)
