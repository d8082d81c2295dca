"""What differs between two configurations: genes that changed, and in texts the words that did."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

from evocluster.report.figures import describe

ALIKE = 0.25
"""Texts that have less than this share of words in common are shown one after the other."""
_ABSENT = object()

Kind = Literal["same", "gone", "new"]


class Piece(NamedTuple):
    """A stretch of a text: in both, only in the first, or only in the second."""

    kind: Kind
    text: str


class GeneChange(NamedTuple):
    """One gene with another value; None where a side does not have it."""

    name: str
    a: Any
    b: Any
    pieces: tuple[Piece, ...]
    """Of texts, word by word; empty for other values."""


def gene_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[GeneChange]:
    """The genes whose values differ, texts last since they are long."""
    names = [name for name in sorted({*a, *b}) if a.get(name, _ABSENT) != b.get(name, _ABSENT)]
    found = [_change(name, a.get(name), b.get(name)) for name in names]
    return sorted(found, key=lambda change: bool(change.pieces))


def _change(name: str, a: Any, b: Any) -> GeneChange:
    texts = isinstance(a, str) and isinstance(b, str) and any(sign.isspace() for sign in a + b)
    return GeneChange(name, a, b, tuple(word_diff(a, b)) if texts else ())


def brief(name: str, value: Any) -> str:
    """A gene's value in one line."""
    return "(none)" if value is None else describe({name: value}).removeprefix(f"{name}=")


def word_diff(a: str, b: str) -> list[Piece]:
    """Both texts as one, word by word; wholly 'gone' and then wholly 'new' where they have little in common."""
    left, right = (re.findall(r"\s+|[^\s\w]|\w+", text) for text in (a, b))
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    words = sum(not word.isspace() for word in (*left, *right))
    shared = sum(not word.isspace() for at, _, size in matcher.get_matching_blocks() for word in left[at : at + size])
    if 2 * shared < ALIKE * words:
        return [piece for piece in (Piece("gone", a), Piece("new", b)) if piece.text]
    return list(_merged(_pieces(matcher, left, right)))


def _pieces(matcher: SequenceMatcher[str], left: list[str], right: list[str]) -> Iterator[Piece]:
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            yield Piece("same", "".join(left[i:j]))
        else:
            yield Piece("gone", "".join(left[i:j]))
            yield Piece("new", "".join(right[k:m]))


def _merged(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbouring changes with nothing but white space between them become one, so that phrases stay whole."""
    gone, new, space = "", "", ""
    for kind, text in pieces:
        if kind == "same" and (gone or new) and text.isspace():
            space += text
        elif kind == "same":
            yield from _flushed(gone, new)
            yield Piece("same", space + text)
            gone = new = space = ""
        else:
            gone, new, space = gone + space + text * (kind == "gone"), new + space + text * (kind == "new"), ""
    yield from _flushed(gone, new)
    if space:
        yield Piece("same", space)


def _flushed(gone: str, new: str) -> Iterator[Piece]:
    if gone:
        yield Piece("gone", gone)
    if new:
        yield Piece("new", new)
