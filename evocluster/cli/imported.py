"""What an import found, and what became of it: values with their places, files that stay inside one folder, a report.

A `Cursor` is a value of the file with the place it stands in, so that whatever cannot be taken is named by its line.
Nothing here runs anything; files are only read, and only below the folder of the file that is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding

from evocluster.cli.screen import inert, plain
from evocluster.complaints import SECRET, Keys, dotted, secrets
from evocluster.errors import ConfigError
from evocluster.records import Json

_MAGIC = re.compile(r"[*?\[]")
"""What makes a name a pattern."""
MAX_FILE = 1_000_000
"""Bytes of one file that is read."""
DATA = (".yaml", ".yml", ".json", ".jsonl", ".ndjson")
HIDDEN = "(hidden)"
SHOWN = 12
"""Entries of a kind that the terminal shows; IMPORT.md holds all."""


class NotTaken(Exception):
    """Something of the file has no counterpart here: why, and what to do about it."""

    def __init__(self, why: str, do: str) -> None:
        super().__init__(why)
        self.why, self.do = why, do


class Entry(NamedTuple):
    """One thing that was not simply taken over."""

    what: str
    why: str
    do: str

    @property
    def told(self) -> str:
        """Why, and what to do, as one sentence."""
        return "; ".join(filter(None, (_line(self.why), _line(self.do)))) + "."


@dataclass
class Report:
    """What became of a file that was imported."""

    name: str
    took: list[str] = field(default_factory=list)
    """Lines such as '3 prompts -> 3 rubrics'."""
    left: dict[Entry, list[str]] = field(default_factory=dict)
    """What could not be taken, and its places."""
    changed: dict[Entry, list[str]] = field(default_factory=dict)
    """What means something a little different here."""
    needed: dict[Entry, list[str]] = field(default_factory=dict)
    """What is to be filled in or decided."""

    def leave(self, where: str, what: str, why: str, do: str) -> None:
        """Note what could not be taken."""
        _note(self.left, Entry(what, why, do), where)

    def change(self, where: str, what: str, why: str, do: str = "") -> None:
        """Note what is not quite what it was."""
        _note(self.changed, Entry(what, why, do), where)

    def need(self, what: str, why: str, do: str, where: str = "") -> None:
        """Note what is to be done before a run means anything."""
        _note(self.needed, Entry(what, why, do), where)

    @property
    def sections(self) -> list[tuple[str, Mapping[Entry, list[str]]]]:
        """Title -> entries, the empty ones left out."""
        titled = [("Left out", self.left), ("Taken, but different", self.changed), ("To fill in", self.needed)]
        return [(title, entries) for title, entries in titled if entries]

    def markdown(self) -> str:
        """The whole report."""
        lines = [f"# What became of {_code(self.name)}", "", *(f"- {line}" for line in self.took), ""]
        for title, entries in self.sections:
            lines += [f"## {title} ({len(entries)})", ""]
            for entry, places in entries.items():
                lines.append(f"- **{_line(entry.what)}**: {entry.told}")
                lines += [f"  - {_code(place)}" for place in places]
            lines.append("")
        if not self.left:
            lines += ["Nothing was left out.", ""]
        return "\n".join(lines)

    def show(self, console: Console) -> None:
        """The report in short, for a terminal."""
        for line in self.took:
            console.print(plain(line), soft_wrap=True)
        for title, entries in self.sections:
            console.print(plain(f"\n{title} ({len(entries)})", "bold"))
            for entry, places in list(entries.items())[:SHOWN]:
                more = f" and {len(places) - 2} more" if len(places) > 2 else ""
                at = f" ({'; '.join(places[:2])}{more})" if places else ""
                console.print(Padding(plain(f"{_line(entry.what)}{at}: {entry.told}"), (0, 0, 0, 2)))
            if len(entries) > SHOWN:
                console.print(plain(f"  ... and {len(entries) - SHOWN} more in IMPORT.md"))
        console.print(plain("\nAll of this stands in IMPORT.md."))


def _note(entries: dict[Entry, list[str]], entry: Entry, where: str) -> None:
    places = entries.setdefault(entry, [])
    if where and where not in places:
        places.append(where)


class File(NamedTuple):
    """One file as data."""

    name: str
    """Relative to the folder of the import."""
    root: Json
    lines: Mapping[Keys, int]


@dataclass(frozen=True)
class Cursor:
    """A value with its place."""

    value: Json
    file: File
    keys: Keys = ()

    @property
    def where(self) -> str:
        """'tests.yaml:12 tests.3.assert.0'."""
        line = next((self.file.lines[up] for up in _upward(self.keys) if up in self.file.lines), 0)
        at = f"{self.file.name}:{line}" if line else self.file.name
        return f"{at} {dotted(self.keys)}" if self.keys else at

    def get(self, key: str | int, default: Json = None) -> Cursor:
        """What stands under a key; the default, at the same place, where nothing does."""
        known = isinstance(self.value, Mapping) and key in self.value
        known = known or (isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value))
        inner = self.value[key] if known else default
        return Cursor(inner, self.file, (*self.keys, key) if known else self.keys).followed()

    def __iter__(self) -> Iterator[Cursor]:
        """The items of a list; a lone value is a list of one, null is none."""
        if self.value is None:
            return iter(())
        if not isinstance(self.value, list):
            return iter((self,))
        return iter([self.get(index) for index in range(len(self.value))])

    def items(self) -> list[tuple[str, Cursor]]:
        """The entries of a mapping."""
        return [(key, self.get(key)) for key in self.value] if isinstance(self.value, Mapping) else []

    def followed(self) -> Cursor:
        """What `{$ref: '#/a/b'}` points to, within the same file; anything else is itself."""
        at = self
        for _ in range(8):
            pointer = at.value.get("$ref") if isinstance(at.value, Mapping) else None
            if not isinstance(pointer, str) or not pointer.startswith("#/"):
                return at
            value: Json = self.file.root
            for part in pointer[2:].split("/"):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is None:
                return at
            at = Cursor(value, self.file, tuple(pointer[2:].split("/")))
        return at


def _upward(keys: Keys) -> Iterator[Keys]:
    return (keys[:end] for end in range(len(keys), -1, -1))


class Folder:
    """The files of an import: only what lies in the folder of the first one, with secrets taken out."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root = root.resolve()
        self._report = report

    def paths(self, reference: str) -> list[Path]:
        """The files that a `file://` reference (globs allowed) names. Raises: NotTaken."""
        name = reference.removeprefix("file://").strip()
        if "{{" in name:
            raise NotTaken("its path is put together from variables", "write the path out and import again")
        try:
            inside = self._inside(name)
            there = all(each.exists() for each in inside)
        except (OSError, ValueError) as error:
            raise NotTaken(f"{name!r} is no path: {error}", "correct it and import again") from error
        if not inside or not there:
            raise NotTaken(f"there is no file {name!r}", "correct the path and import again")
        return inside

    def _inside(self, name: str) -> list[Path]:
        path = self.root / name
        pattern = _MAGIC.search(name) and not Path(name).is_absolute()
        wanted = list(self.root.glob(name.removeprefix("./"))) if pattern else [path]
        inside = [each for each in sorted(wanted) if each.resolve().is_relative_to(self.root)]
        if len(inside) < len(wanted) or not path.parent.resolve().is_relative_to(self.root):
            raise NotTaken(
                f"{name!r} lies outside the folder of the imported file, and nothing outside is read",
                "copy it into that folder and import again",
            )
        return inside

    def one(self, reference: str) -> Path:
        """The one file that a reference names. Raises: NotTaken."""
        found = self.paths(reference)
        if len(found) > 1 or not found[0].is_file():
            raise NotTaken(f"{reference!r} is not one file", "name one file and import again")
        return found[0]

    def name(self, path: Path) -> str:
        """The path as reports call it."""
        resolved = path.resolve()
        return str(resolved.relative_to(self.root)) if resolved.is_relative_to(self.root) else path.name

    def text(self, path: Path) -> str:
        """What a file holds, secrets hidden. Raises: NotTaken."""
        try:
            raw = path.read_bytes()
            text = raw.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise NotTaken(f"{self.name(path)!r} cannot be read as UTF-8 text: {error}", "save it as UTF-8") from error
        if len(raw) > MAX_FILE:
            raise NotTaken(f"{self.name(path)!r} has {len(raw)} bytes; allowed: {MAX_FILE}", "make it smaller")
        if SECRET.search(text):
            self._hidden(self.name(path))
        return SECRET.sub(HIDDEN, text)

    def load(self, path: Path) -> Cursor:
        """A YAML, JSON or JSONL file as data, secrets hidden. Raises: NotTaken."""
        from evocluster.document import read_yaml

        name = self.name(path)
        if path.suffix.lower() not in DATA:
            raise NotTaken(f"{name!r} is no file of data, and an import runs no program", f"use {', '.join(DATA)}")
        try:
            if path.suffix.lower() in (".jsonl", ".ndjson"):
                rows = [(number, row) for number, row in enumerate(self.text(path).split("\n"), 1) if row.strip()]
                value: Json = [json.loads(row) for _, row in rows]
                return self._clean(File(name, value, {(index,): line for index, (line, _) in enumerate(rows)}))
            value, places = read_yaml(path)
        except (ConfigError, ValueError, RecursionError) as error:
            told = str(error).replace(str(path), name)
            raise NotTaken(f"{name!r} cannot be read: {told}", "correct the file and import again") from error
        return self._clean(File(name, value, {keys: line for keys, (line, _) in places.items()}))

    def _clean(self, file: File) -> Cursor:
        hidden = set(secrets(file.root))
        for keys in hidden:
            self._hidden(Cursor(file.root, file, keys).where)
        clean = file._replace(root=_without(file.root, hidden))
        return Cursor(clean.root, clean)

    def _hidden(self, where: str) -> None:
        self._report.leave(
            where,
            "a secret",
            "it looks like a key or a token, and those are never copied",
            "keep it in an environment variable and name that as `key_env` of a model",
        )


def _without(value: Json, hidden: set[Keys], keys: Keys = ()) -> Json:
    """The value without secrets, and with what JSON and UTF-8 cannot hold as text."""
    if keys in hidden:
        return HIDDEN
    if isinstance(value, Mapping):
        return {encodable(key): _without(item, hidden, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, hidden, (*keys, index)) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return encodable(value) if isinstance(value, str) else value


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be written."""
    return text.encode("utf-8", "replace").decode()


def _line(text: str) -> str:
    return " ".join(inert(text).split())


def _code(text: str) -> str:
    return f"`{_line(text).replace('`', chr(39))}`"
