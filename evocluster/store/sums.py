"""Digests of what stands on disk: SHA256SUMS for files written once, a key `sha256` inside JSON written often.

`sha256sum -c SHA256SUMS` of coreutils checks a folder without evocluster. The list is written ahead: it names the
new digest beside the old one before the file takes its place, so a crash in between is no damage. Its last line is
the digest of the lines above, so that the list itself cannot change unseen.

JSON texts that are replaced or appended often carry their digest: sha256 of the text with the digest's own 64 digits
set to zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged
from evocluster.store.files import read_text, write_atomic

SUMS = "SHA256SUMS"
"""Name of the list; a folder without it is of an earlier version."""
KEY = "sha256"
_ZEROS = "0" * 64
_HEAD = "# evocluster 1; check: sha256sum -c SHA256SUMS\n"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def digest_of(path: Path) -> str:
    """sha256 of a file as 64 hex digits. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(path: Path, why: str) -> RunDamaged:
    """The error to raise when a file is not what was written."""
    return RunDamaged(
        f"{str(path)!r} is not as it was written: {why}; restore the file from a copy, or start a new run in another "
        "folder"
    )


class Sums:
    """The SHA256SUMS of one folder.

    Call order: `read` or construct, `verify`, any number of `write` (or `expect` and `settle`), `finish`.
    """

    def __init__(self, folder: Path) -> None:
        """An empty list; nothing is written yet."""
        self._folder = folder
        self._digests: dict[str, tuple[str, ...]] = {}

    @classmethod
    def read(cls, folder: Path) -> Sums | None:
        """The list of `folder`; None where there is none. Raises: RunDamaged when a byte of it changed."""
        path = folder / SUMS
        if not path.exists():
            return None
        text = read_text(path)
        found = cls(folder)
        for line in text.splitlines():
            if match := _LINE.fullmatch(line):
                found._digests[match[2]] = (*found._digests.get(match[2], ()), match[1])
        if found._text() != text:
            raise changed(path, "its last line is the digest of the others, and does not fit them")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._digests

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._digests))

    def check(self, name: str) -> None:
        """Raises: RunDamaged when the file is missing, not listed, or not what was written."""
        path = self._folder / name
        if name not in self._digests:
            raise changed(path, f"{SUMS} does not list it")
        try:
            found = digest_of(path)
        except OSError as error:
            raise changed(path, f"{SUMS} lists it, and it cannot be read ({error.strerror or error})") from error
        if found not in self._digests[name]:
            wanted = " or ".join(digest[:12] for digest in self._digests[name])
            raise changed(path, f"its sha256 is {found[:12]}..., {SUMS} says {wanted}...")

    def verify(self, names: Iterable[str]) -> None:
        """Check several. Raises: RunDamaged."""
        for name in names:
            self.check(name)

    def write(self, name: str, text: str) -> None:
        """Write a listed UTF-8 file in one step. Raises: StoreError."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.expect(name, digest)
        write_atomic(self._folder / name, text)
        self.settle(name, digest)

    def expect(self, name: str, digest: str) -> None:
        """Write down what `name` will be, before it takes its place; what it was stays right. Raises: StoreError."""
        before = self._digests.get(name, ())
        self._digests[name] = (*(old for old in before[-1:] if old != digest), digest)
        try:
            self._write()
        except BaseException:
            self._digests[name] = before
            if not before:
                del self._digests[name]
            raise

    def settle(self, name: str, digest: str) -> None:
        """`name` is in its place: only this is right from the next write of the list on."""
        self._digests[name] = (digest,)

    def forget(self, names: Iterable[str]) -> None:
        """Take files off the list that are about to change. Raises: StoreError."""
        listed = [name for name in names if self._digests.pop(name, None)]
        if listed:
            self._write()

    def finish(self, names: Iterable[str]) -> None:
        """List these as they stand now, and everything else with one digest. Raises: RunDamaged, StoreError."""
        for name, digests in self._digests.items():
            if len(digests) > 1:
                self.settle(name, digest_of(self._folder / name))
        for name in names:
            if (self._folder / name).exists():
                self._digests[name] = (digest_of(self._folder / name),)
        self._write()

    def _write(self) -> None:
        write_atomic(self._folder / SUMS, self._text())

    def _text(self) -> str:
        lines = [f"{digest}  {name}\n" for name in sorted(self._digests) for digest in self._digests[name]]
        text = _HEAD + "".join(lines)
        return f"{text}# {hashlib.sha256(text.encode()).hexdigest()}\n"


def sealed(value: dict[str, Any], **how: Any) -> str:
    """The JSON text of `value` with its digest under `sha256`; `how` goes to json.dumps."""
    text = json.dumps({**value, KEY: _ZEROS}, allow_nan=False, **how)
    return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest())


def unsealed(text: str, *, required: bool) -> dict[str, Any]:
    """The value of a sealed JSON text. Raises: ValueError when it is not what was written.

    `required`: refuse a text without a digest, which an earlier version wrote.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a JSON object")
    said = value.pop(KEY, None)
    if said is None and not required:
        return value
    if not isinstance(said, str) or hashlib.sha256(text.replace(said, _ZEROS).encode()).hexdigest() != said:
        raise ValueError(f"its digest under {KEY!r} does not fit: a byte of it changed")
    return value


def read_sealed(path: Path) -> dict[str, Any]:
    """The value in a sealed JSON file; of an earlier version where the folder has no SHA256SUMS. Raises: RunDamaged."""
    text, required = read_text(path), (path.parent / SUMS).exists()
    try:
        if required and not text.endswith("\n"):
            raise ValueError("it is cut: no line feed ends it")
        return unsealed(text.removesuffix("\n"), required=required)
    except ValueError as error:
        raise changed(path, str(error)) from error
