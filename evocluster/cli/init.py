"""`evocluster init`: a small project that runs at once, or one made of a promptfoo config.

Call order: what to write (the files of a starter, or an import) -> `write`, all of it or nothing -> the tree and the
next commands. The starters are real files under `starters/KIND/`; nothing in them is filled in.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from evocluster.cli import screen
from evocluster.cli.schema import FILE as SCHEMA
from evocluster.cli.schema import text as schema_text
from evocluster.errors import ConfigError

CONFIG = "config.yaml"


class Kind(StrEnum):
    """What a starting project is about."""

    classification = "classification"
    extraction = "extraction"
    judge = "judge"
    rag = "rag"
    custom = "custom"


MEANS: Mapping[Kind, str] = {
    Kind.classification: "sort texts under labels",
    Kind.extraction: "read fields out of texts, as JSON",
    Kind.judge: "write texts that a judge model grades",
    Kind.rag: "answer questions from your documents",
    Kind.custom: "a pipeline of your own, in Python",
}


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; it may exist, its files stay.")] = Path(),
    kind: Annotated[
        Kind | None, typer.Option("--kind", "-k", metavar="KIND", help=f"What it is about: {', '.join(Kind)}.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A promptfoo config to import instead.")
    ] = None,
) -> None:
    """Start a project: a config that runs at once without any key, examples, and what belongs to them.

    No file that exists is ever overwritten: then nothing is written at all.

    Examples:

      evocluster init shop --kind classification

      evocluster init shop --from ../promptfooconfig.yaml
    """
    if source is not None:
        if kind is not None:
            raise ConfigError(f"--kind {kind.value} and --from {str(source)!r} contradict each other; keep one")
        from evocluster.cli.promptfoo import convert

        project = convert(source)
        written = write(folder, {**project.files, SCHEMA: schema_text()})
        _print_tree(folder, written)
        project.report.show(screen.console())
    else:
        written = write(folder, {**starter(kind or _asked()), SCHEMA: schema_text()})
        _print_tree(folder, written)
    _print_next(folder)


def starter(kind: Kind) -> dict[str, str]:
    """Path below the project's folder -> text, for every file of a kind."""
    root = files("evocluster.cli") / "starters" / kind.value
    return {path: each.read_text(encoding="utf-8") for path, each in sorted(_below(root))}


def write(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """All of the files, or none: what was written, sorted.

    Raises: ConfigError when one is there already or cannot be written.
    """
    there = [path for path in sorted(texts) if (folder / path).exists() or (folder / path).is_symlink()]
    if there:
        listed = ", ".join(there)
        raise ConfigError(
            f"{str(folder)!r} already holds {listed}; nothing was written; name another folder, or move them away"
        )
    made: list[Path] = []
    contents = {path: text.encode() for path, text in sorted(texts.items())}
    try:
        for path, content in contents.items():
            _make(folder / path, content, made)
    except OSError as error:
        for each in reversed(made):
            if each.is_dir():
                each.rmdir()
            else:
                each.unlink()
        where = error.filename or folder
        raise ConfigError(f"{str(where)!r} cannot be written: {error.strerror}; nothing was left behind") from error
    return sorted(texts)


def _make(path: Path, content: bytes, made: list[Path]) -> None:
    """One file and the folders above it; what came into being is noted in `made`."""
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir()
            made.append(above)
    with path.open("xb") as file:
        made.append(path)
        file.write(content)


def _below(folder: Traversable, path: str = "") -> Iterator[tuple[str, Traversable]]:
    for each in folder.iterdir():
        if each.name.startswith((".", "__")):
            continue
        if each.is_dir():
            yield from _below(each, f"{path}{each.name}/")
        else:
            yield f"{path}{each.name}", each


def _asked() -> Kind:
    """The kind as the user chooses it. Raises: ConfigError where nobody can be asked."""
    lines = [f"  {kind.value:<15} {MEANS[kind]}" for kind in Kind]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("\n".join(["--kind is missing; allowed:", *lines, "or --from promptfooconfig.yaml"]))
    typer.echo("\n".join(["What is the project about?", *lines]))
    answer = ""
    names = [kind.value for kind in Kind]
    while answer not in names:
        given = typer.prompt("Kind", default=names[0]).strip().lower()
        fits = [name for name in names if given and name.startswith(given)]
        answer = fits[0] if len(fits) == 1 else given
        if answer not in names:
            typer.echo(f"{given!r} is none of them; allowed: {', '.join(names)}")
    return Kind(answer)


def _print_tree(folder: Path, written: list[str]) -> None:
    from rich.tree import Tree

    tree = Tree(screen.plain(f"{folder}/", "bold"))
    nodes = {"": tree}
    for path in written:
        above, _, name = path.rpartition("/")
        if above not in nodes:
            nodes[above] = tree.add(screen.plain(f"{above}/"))
        nodes[above].add(screen.plain(name))
    screen.console().print(tree)


def _print_next(folder: Path) -> None:
    path = shlex.quote(str(folder / CONFIG))
    typer.echo(f"Next: evocluster check {path}\n      evocluster run {path}")
