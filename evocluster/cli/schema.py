"""`evocluster schema`: the JSON schema of a config file, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from evocluster.errors import ConfigError

FILE = "config.schema.json"
"""What the file is called beside a config, whose first line then is `MODELINE`."""
MODELINE = f"# yaml-language-server: $schema=./{FILE}"


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write it to this file; an older schema there is replaced.")
    ] = None,
) -> None:
    """Print the JSON schema of a config file: editors then complete settings and mark mistakes.

    A config whose first line is `# yaml-language-server: $schema=./config.schema.json` is checked by it in
    editors with YAML support.

    Examples:

      evocluster schema --out config.schema.json

      evocluster schema | jq .properties.task
    """
    if out is None:
        typer.echo(text(), nl=False)
        return
    _refuse_other(out)
    try:
        out.write_text(text(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(out)!r} cannot be written: {error.strerror}; choose another --out") from error
    typer.echo(f"{out} is written; the first line of a config beside it: # yaml-language-server: $schema=./{out.name}")


def text() -> str:
    """The schema as it stands in a file."""
    from evocluster import config

    # All ASCII: whatever reads it, and by whatever encoding, reads the same.
    return json.dumps(config.schema(), indent=2) + "\n"


def _refuse_other(path: Path) -> None:
    """Raises: ConfigError when the file is there and is no schema of ours."""
    if not path.exists():
        return
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("title") != "evocluster config":
        raise ConfigError(f"{str(path)!r} is there and no schema of evocluster; choose another --out, or move it away")
