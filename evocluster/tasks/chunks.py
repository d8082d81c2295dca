"""Text cut into passages at paragraph and sentence borders; headings stay with what follows and become titles.

Call order: `page` makes plain text of HTML and `headings_of` finds the headings of Markdown and reStructuredText ->
`cut` cuts. A chunk is a slice of the text, so nothing in it is reflowed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import NamedTuple

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of scripts written without spaces (Chinese, Japanese), as the inside of a regex class."""
_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_SENTENCES = re.compile(
    r"[.!?\u2026][\"'”’)\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n(?=[ \t]*(?:[-*+|]|\d+[.)])[ \t])",
)
_FENCE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_HASHES = re.compile(r"^ {0,3}(#{1,6})[ \t]+(\S.*)$\s*", re.MULTILINE)
_UNDERLINED = re.compile(r"^([^\s#>|\-*+].*\S|\w)[ \t]*\n([=\-~^\"'`+*:._#])\2{2,}[ \t]*$\s*", re.MULTILINE)


class Heading(NamedTuple):
    """A heading in a text."""

    start: int
    """Offset of its line."""
    end: int
    """Offset of what follows it."""
    level: int
    """1 is the outermost."""
    name: str


class Chunk(NamedTuple):
    """A piece of a text."""

    titles: tuple[str, ...]
    """The headings it stands under, outermost first."""
    level: int
    """Level of the first of them; 0 without any."""
    text: str


class _Unit(NamedTuple):
    """What is never cut: a paragraph, a sentence of one that is too long, or a part of a sentence that is."""

    start: int
    end: int
    words: int


def count_words(text: str) -> int:
    """Words between spaces; in scripts without spaces every character counts."""
    return sum(1 for _ in _WORD.finditer(text))


def cut(text: str, headings: Sequence[Heading], words: int, overlap: int = 0) -> Iterator[Chunk]:
    """Chunks of at most `words` words, `overlap` of them from the chunk before; 0: the whole text as one.

    A section begins a new chunk unless the one under way is shorter than a third. A single word is never cut.
    """
    if words == 0:
        first = [each for each in headings[:1] if each.level == 1]
        yield Chunk(tuple(each.name for each in first), len(first), text.strip())
        return
    begins, outline = {heading.start for heading in headings}, _Outline(headings)
    limit = words - overlap
    taken: list[_Unit] = []
    lead, size = 0, 0
    for unit in _units(text, headings, limit):
        section = unit.start in begins
        if taken and (size + unit.words > limit or (section and size * 3 >= limit)):
            yield outline.chunk(text, taken[0].start, taken[-1].end, lead)
            lead = 0 if section else unit.start - _tail(text, taken, overlap)
            taken, size = [], 0
        taken.append(unit)
        size += unit.words
    if taken:
        yield outline.chunk(text, taken[0].start, taken[-1].end, lead)


def headings_of(text: str, suffix: str) -> list[Heading]:
    """The headings of Markdown ('.md') or reStructuredText ('.rst'), in order; none for other suffixes."""
    if suffix == ".rst":
        order: dict[str, int] = {}
        return [
            Heading(found.start(), found.end(), order.setdefault(found[2], len(order) + 1), found[1].strip())
            for found in _UNDERLINED.finditer(text)
        ]
    if suffix not in (".md", ".markdown"):
        return []
    fences = [found.span() for found in _FENCE.finditer(text)]
    starts = [start for start, _ in fences]
    found = [Heading(each.start(), each.end(), len(each[1]), _named(each[2])) for each in _HASHES.finditer(text)]
    found += [
        Heading(each.start(), each.end(), "=-".index(each[2]) + 1, each[1].strip())
        for each in _UNDERLINED.finditer(text)
        if each[2] in "=-" and (each.start() == 0 or text.endswith("\n\n", 0, each.start()))
    ]
    around = {each: bisect_right(starts, each.start) - 1 for each in found}
    return sorted(each for each in found if around[each] < 0 or each.start >= fences[around[each]][1])


def page(html: str) -> tuple[str, list[Heading], str]:
    """The text of an HTML page, its headings, and what its <title> says ('' without one)."""
    parser = _Page()
    parser.feed(html)
    parser.close()
    text = "".join(parser.parts)
    headings = []
    for start, end, level in parser.headings:
        following = re.compile(r"\s*").match(text, end)
        name = " ".join(text[start:end].split())
        if name and following is not None:
            headings.append(Heading(start, following.end(), level, name))
    return text, headings, " ".join("".join(parser.title).split())


def _named(line: str) -> str:
    """What a heading says, without the hashes that may close it."""
    line = line.rstrip()
    bare = line.rstrip("#")
    return bare.rstrip() if bare.endswith((" ", "\t")) else line


class _Outline:
    """The headings of a text, findable by offset."""

    def __init__(self, headings: Sequence[Heading]) -> None:
        self._headings = headings
        self._starts = [heading.start for heading in headings]
        self._above: list[tuple[Heading, ...]] = []
        """Every heading with those it stands under, outermost first."""
        for heading in headings:
            before = self._above[-1] if self._above else ()
            self._above.append((*(each for each in before if each.level < heading.level), heading))

    def chunk(self, text: str, start: int, end: int, lead: int) -> Chunk:
        """The slice as a chunk; `lead` characters before it are repeated from the chunk before."""
        at = bisect_right(self._starts, start) - 1
        while 0 <= at < len(self._starts) - 1 and start <= self._starts[at] and self._follows(at + 1):
            at += 1
        above = self._above[at] if at >= 0 else ()
        level = above[0].level if above else 0
        return Chunk(tuple(each.name for each in above), level, text[start - lead : end].strip())

    def _follows(self, at: int) -> bool:
        """Nothing stands between this heading and the one before."""
        return self._starts[at] <= self._headings[at - 1].end


def _units(text: str, headings: Sequence[Heading], limit: int) -> Iterator[_Unit]:
    borders = {0, *(found.end() for found in _PARAGRAPHS.finditer(text)), *(each.start for each in headings)}
    # A heading and the blank lines in and after it belong to the paragraph that it heads.
    inside = {offset for each in headings for offset in range(each.start + 1, each.end + 1)}
    stops = sorted(borders - inside)
    for start, end in zip(stops, [*stops[1:], len(text)], strict=True):
        words = count_words(text[start:end])
        if words > limit:
            yield from _sentences(text, start, end, limit)
        elif words:
            yield _Unit(start, end, words)


def _sentences(text: str, start: int, end: int, limit: int) -> Iterator[_Unit]:
    stops = [start]
    stops += [
        found.end()
        for found in _SENTENCES.finditer(text, start, end)
        if not text[found.end() : found.end() + 1].islower()
    ]
    for begin, stop in zip(stops, [*stops[1:], end], strict=True):
        starts = [begin + word.start() for word in _WORD.finditer(text[begin:stop])]
        for at in range(0, len(starts), limit):
            following = starts[at + limit] if at + limit < len(starts) else stop
            yield _Unit(starts[at], following, min(limit, len(starts) - at))


def _tail(text: str, units: Sequence[_Unit], overlap: int) -> int:
    """Where the last whole units of at most `overlap` words begin, or else the last so many words."""
    words, start = 0, units[-1].end
    for unit in reversed(units):
        words += unit.words
        if words > overlap:
            break
        start = unit.start
    if overlap and start == units[-1].end:
        last = units[-1]
        starts = [word.start() for word in _WORD.finditer(text[last.start : last.end])]
        start = last.start + starts[-overlap]
    return start


class _Page(HTMLParser):
    """Collects what a reader of the page sees, blocks apart by blank lines."""

    BLOCKS = frozenset(
        (
            *("address", "article", "aside", "blockquote", "dd", "details", "div", "dl", "dt", "fieldset"),
            *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr"),
            *("main", "nav", "ol", "p", "pre", "section", "table", "ul"),
        )
    )
    LINES = frozenset(("br", "li", "tr", "option", "summary", "caption"))
    HIDDEN = frozenset(("script", "style"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.headings: list[tuple[int, int, int]] = []
        """(start, end, level)."""
        self.title: list[str] = []
        self._size = 0
        self._open: list[str] = []
        """Tags under way that change how text is read."""
        self._heading: int | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)
        if tag in ("td", "th") and self.parts and not self.parts[-1][-1].isspace():
            self._add(" ")
        if tag in ("title", "pre") or tag in self.HIDDEN:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self._heading = self._size

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open.remove(tag)
        if re.fullmatch("h[1-6]", tag) and self._heading is not None:
            self.headings.append((self._heading, self._size, int(tag[1])))
            self._heading = None
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if "title" in self._open:
            self.title.append(data)
        elif not self.HIDDEN & set(self._open):
            text = data if "pre" in self._open else re.sub(r"\s+", " ", data)
            self._add(text.lstrip() if not self.parts or self.parts[-1][-1].isspace() else text)

    def _break(self, tag: str) -> None:
        before = "".join(self.parts[-2:])
        if tag in self.BLOCKS and before and not before.endswith("\n\n"):
            self._add("\n" if before.endswith("\n") else "\n\n")
        elif tag in self.LINES and before and not before.endswith("\n"):
            self._add("\n")

    def _add(self, text: str) -> None:
        if text:
            self.parts.append(text)
            self._size += len(text)
