"""Rubrics: how a judge is to grade, as a file with a version, so that a score can be traced to what it meant.

    ---
    version: 2                  any text; raise it when the wording changes
    scale: 1-5                  0-1 | 1-5 | 0-10 | pass-fail
    needs_expected: true        show the expected answer where the example has one
    ---
    5: solves what was asked ...

The header is lines of `name: value`; the body is the grading itself and is shown to the judge as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from evocluster.errors import ConfigError
from evocluster.records import Record, digest
from evocluster.tasks.words import nearest

FENCE = "---"
KEYS = ("version", "scale", "needs_expected")
MAX_BYTES = 100_000
"""A rubric is paid with every call."""
EXAMPLE = "---\nversion: 1\nscale: 1-5\n---\n"


class Scale(Record):
    """The numbers that a judge may answer, from the lowest to the highest."""

    name: str
    low: int
    high: int
    whole: bool = True
    """The judge is asked for whole numbers; a half that comes all the same counts as one."""
    words: tuple[str, ...] = ()
    """What stands for the numbers from `low` on, where the scale has words."""

    def share(self, number: float) -> float:
        """The number as a score from 0 to 1."""
        return (number - self.low) / (self.high - self.low)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every whole answer, lowest first."""
        return self.words or tuple(str(number) for number in range(self.low, self.high + 1))


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(name="0-1", low=0, high=1, whole=False),
        Scale(name="1-5", low=1, high=5),
        Scale(name="0-10", low=0, high=10),
        Scale(name="pass-fail", low=0, high=1, words=("fail", "pass")),
    )
}


class Rubric(Record):
    """A rubric file as it was read."""

    path: str
    version: str
    digest: str
    """16 hex digits of the sha256 of header and body: two rubrics of one version still differ here."""
    scale: Scale = SCALES["1-5"]
    needs_expected: bool = True
    body: str


def read_rubric(path: Path) -> Rubric:
    """The rubric of a file; one that has not changed is read once per process.

    Raises: ConfigError that names file and line.
    """
    try:
        stat = path.stat()
    except OSError as error:
        beside = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
        there = f"; the folder holds: {', '.join(beside[:8]) or 'nothing'}" if path.parent.is_dir() else ""
        reason = f"the rubric cannot be read: {error.strerror}{there}{nearest(path.name, beside)}"
        raise ConfigError(f"{path}:1: {reason}") from error
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, changed_ns: int, size: int) -> Rubric:
    lines = _text(path, size).splitlines()
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if not lines or lines[start].strip() != FENCE:
        _fail(path, start + 1, f"no header; a rubric begins with one, e.g. {EXAMPLE!r}")
    end = next((number for number in range(start + 1, len(lines)) if lines[number].strip() == FENCE), None)
    if end is None:
        _fail(path, start + 1, f"the header is not closed; put a line {FENCE!r} before the grading itself")
    header = _header(path, lines, start + 1, end)
    body = "\n".join(line.rstrip() for line in lines[end + 1 :]).strip("\n")
    if not body.strip():
        _fail(path, end + 2, "the body is empty; write how to grade below the header")
    version, scale, needs_expected = _settings(path, start, header)
    return Rubric(
        path=str(path),
        version=version,
        digest=digest([version, scale.name, needs_expected, body])[:16],
        scale=scale,
        needs_expected=needs_expected,
        body=body,
    )


def _text(path: Path, size: int) -> str:
    if size > MAX_BYTES:
        _fail(path, 1, f"has {size} bytes; allowed: {MAX_BYTES}, because a judge is shown all of it every time")
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        _fail(path, 1, f"the rubric cannot be read: {error.strerror}; name a Markdown or text file")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        _fail(path, line, f"not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8")


def _header(path: Path, lines: list[str], start: int, end: int) -> dict[str, tuple[int, str]]:
    """Name -> (line, value)."""
    header: dict[str, tuple[int, str]] = {}
    for number in range(start, end):
        text = lines[number].strip()
        if not text or text.startswith("#"):
            continue
        name, colon, value = (part.strip() for part in text.partition(":"))
        if not colon:
            _fail(path, number + 1, f"{text!r} is not `name: value`; allowed names: {', '.join(KEYS)}")
        if name not in KEYS:
            _fail(path, number + 1, f"unknown setting {name!r}; allowed: {', '.join(KEYS)}{nearest(name, KEYS)}")
        if name in header:
            _fail(path, number + 1, f"{name!r} is written twice, first in line {header[name][0]}; remove one")
        header[name] = (number + 1, _unquoted(value))
    return header


def _settings(path: Path, start: int, header: Mapping[str, tuple[int, str]]) -> tuple[str, Scale, bool]:
    line, version = header.get("version", (start + 1, ""))
    if not version:
        _fail(path, line, "no version; write one into the header, e.g. `version: 1`, and raise it with the wording")
    line, scale = header.get("scale", (start + 1, "1-5"))
    if scale not in SCALES:
        _fail(path, line, f"unknown scale {scale!r}; allowed: {', '.join(SCALES)}{nearest(scale, SCALES)}")
    line, needed = header.get("needs_expected", (start + 1, "true"))
    if needed.lower() not in ("true", "false"):
        _fail(path, line, f"needs_expected {needed!r}; allowed: true, false")
    return version, SCALES[scale], needed.lower() == "true"


def _unquoted(value: str) -> str:
    return value[1:-1].strip() if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise ConfigError(f"{path}:{line}: {message}")
