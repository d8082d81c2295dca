"""The user's documents as passages: files of a folder, or rows of a JSONL or CSV file, cut into chunks.

Call order: `Retrieval` (settings) -> `read_documents(settings)` -> passages, in the order of paths or rows. Every
complaint is a `DataError` that begins `file:line:`.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, Self

from pydantic import Field, field_validator, model_validator

from evocluster.errors import DataError
from evocluster.parts import Part
from evocluster.records import Json, Record
from evocluster.tasks.chunks import Heading, cut, headings_of, page
from evocluster.tasks.dataset import rows, text_of
from evocluster.tasks.words import nearest, plain
from evocluster.telemetry import log

TABLES = (".jsonl", ".ndjson", ".csv")
"""Suffixes of files whose rows are documents."""
TEXTS = (".md", ".markdown", ".txt", ".rst", ".html", ".htm")
"""Suffixes of files that are one document each."""
SHAPE = '{"id": ..., "text": ...}'
_SHOWN = 8
"""Names that a message lists."""


class DocumentColumns(Part):
    """Which columns of a JSONL or CSV file hold what."""

    id: str = "id"
    """Where no row has the default column, documents are named by number: d000001, d000002..."""
    text: str = "text"
    title: str = "title"
    """The default column may be absent."""


class Retrieval(Part):
    """Where the documents are, how they are cut, and how they are searched."""

    documents: str
    """A folder; a .jsonl or .csv file with a document a row; or a single text, Markdown or HTML file."""
    files: tuple[str, ...] = ("*.md", "*.txt", "*.rst", "*.html", "*.htm")
    """Which files of a folder and its subfolders: names, or paths below the folder when there is a '/' in it."""
    columns: DocumentColumns = DocumentColumns()
    chunk_words: int = Field(default=150, ge=0)
    """The most words of a passage; 0: whole documents."""
    overlap_words: int = Field(default=0, ge=0)
    """How many of them are repeated from the passage before."""
    query: str | None = None
    """The field of an object input that is the question; None: everything in the input."""
    language: Literal["english", "none"] = "english"
    """english: function words are left out and plurals are cut; none: every word counts as it is."""
    method: Literal["bm25"] = "bm25"
    variant: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = "lucene"
    k1: float = Field(default=1.5, ge=0)
    """How much a repeated word counts."""
    b: float = Field(default=0.75, ge=0, le=1)
    """How much the length of a passage counts."""
    embed: str | None = None
    """`file.py:function`: list of texts -> list of vectors of equal length, sync or async."""
    fuse: Literal["reciprocal-rank", "embed_only"] = "reciprocal-rank"
    """With `embed`: both rankings, or only that of the vectors."""
    usd_per_query: float | None = Field(default=None, ge=0)
    """US dollars of embedding one question; 0 for a model of one's own."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Of one call of the embedding function."""
    max_passages: int = Field(default=100_000, ge=1)
    max_megabytes: float = Field(default=100.0, gt=0)
    """Of all documents together, as stored."""

    @field_validator("documents", "query")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty; name it, or leave the setting out")
        return text

    @field_validator("files")
    @classmethod
    def _globs(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files or not all(glob.strip() for glob in files):
            raise ValueError(f"files {list(files)!r} must name at least one pattern, e.g. ['*.md']")
        return files

    @field_validator("embed")
    @classmethod
    def _names_a_function(cls, embed: str | None) -> str | None:
        if embed is not None and not re.fullmatch(r".+:[^\W\d]\w*", embed):
            raise ValueError(f"embed {embed!r} must name a function as 'file.py:function' or 'module:function'")
        return embed

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.overlap_words * 2 > self.chunk_words:
            fix = f"at most half of chunk_words {self.chunk_words!r}" if self.chunk_words else "0 for whole documents"
            raise ValueError(f"overlap_words {self.overlap_words!r} must be {fix}")
        if self.embed is not None and self.usd_per_query is None:
            raise ValueError(
                "usd_per_query is missing: what embedding one question costs in USD (0 for your own model)"
            )
        if self.embed is None and self.usd_per_query:
            raise ValueError(f"usd_per_query {self.usd_per_query!r} is the price of an embedded question; set embed")
        if self.embed is None and self.fuse != "reciprocal-rank":
            raise ValueError(f"fuse {self.fuse!r} needs embed: 'file.py:function'")
        return self

    def question(self, input: Json) -> str:
        """What to search for, given an example's input. Raises: ValueError when it lacks the field."""
        if self.query is None:
            return "\n".join(_leaves(input))
        if not isinstance(input, Mapping):
            raise ValueError(f"the input is no object with a field {self.query!r}; leave `retrieval.query` out")
        if self.query not in input:
            there = ", ".join(map(str, input)) or "none"
            raise ValueError(f"the input has no field {self.query!r}; fields: {there}{nearest(self.query, input)}")
        return "\n".join(_leaves(input[self.query]))


class Passage(Record):
    """A piece of a document, as it is searched and shown to the model."""

    id: str
    """Path below the folder, or id of the row; with `#n` (from 1) when documents are cut into chunks."""
    title: str = ""
    """Title of the document and the headings the piece stands under: 'Plans > Team plan'."""
    text: str


class _Document(NamedTuple):
    place: str
    """file:line"""
    id: str
    title: str
    """Shown unless a first-level heading says it."""
    text: str
    headings: Sequence[Heading] = ()


def read_documents(settings: Retrieval) -> tuple[Passage, ...]:
    """All passages. Documents without a word are left out, and named in the log.

    Raises: DataError where nothing is found or readable, two documents share an id, or the bounds are passed.
    """
    path = Path(settings.documents)
    found = list(_folder(path, settings) if path.is_dir() else _file(path, settings))
    kept = [document for document in found if re.search(r"\w", document.text)]
    empty = [document.place for document in found if not re.search(r"\w", document.text)]
    if not kept:
        _fail(path, 1, f"no document holds a word ({len(found)} read: {_listed(empty)}); give it documents with text")
    if empty:
        log.warning("%d documents without a word were left out: %s", len(empty), _listed(empty))
    _refuse_twins(kept)
    passages: list[Passage] = []
    for document in kept:
        passages += _passages(document, settings)
        if len(passages) > settings.max_passages:
            _fail(
                path,
                1,
                f"more than max_passages {settings.max_passages!r} passages (reached at {document.place}); name fewer "
                "documents, use larger chunk_words, or raise max_passages",
            )
    return tuple(passages)


def _fail(path: Path, line: int, message: str) -> NoReturn:
    raise DataError(f"{path}:{line}: {message}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"


def _passages(document: _Document, settings: Retrieval) -> Iterator[Passage]:
    chunks = cut(document.text, document.headings, settings.chunk_words, settings.overlap_words)
    for number, chunk in enumerate(chunks, start=1):
        titles = chunk.titles if chunk.level == 1 else (document.title, *chunk.titles)
        id = f"{document.id}#{number}" if settings.chunk_words else document.id
        yield Passage(id=id, title=" > ".join(filter(None, titles)), text=chunk.text)


def _refuse_twins(documents: Sequence[_Document]) -> None:
    places: dict[str, str] = {}
    for document in documents:
        first = places.setdefault(document.id, document.place)
        if first != document.place:
            raise DataError(f"{document.place}: id {document.id!r} is already used in {first}; ids must be unique")


def _file(path: Path, settings: Retrieval) -> Iterator[_Document]:
    _exists(path)
    _bound([path], path, settings)
    if path.suffix.lower() in TABLES:
        return _table(path, settings)
    if path.suffix.lower() in TEXTS:
        return iter([_text(path, path.name)])
    allowed = ", ".join((*TABLES, *TEXTS))
    _fail(path, 1, f"unknown extension {path.suffix!r}; allowed: a folder, or a file with one of {allowed}")


def _exists(path: Path) -> None:
    if path.exists():
        return
    around = path.parent
    if not around.is_dir():
        _fail(path, 1, f"no such file or folder, nor the folder {str(around)!r}; paths are relative to the config file")
    there = sorted(each.name for each in around.iterdir() if not each.name.startswith("."))
    _fail(path, 1, f"no such file or folder; {str(around)!r} holds: {_listed(there)}{nearest(path.name, there)}")


def _folder(folder: Path, settings: Retrieval) -> Iterator[_Document]:
    """Files that match `files`, in the order of their paths; hidden files and folders are passed over."""
    there = sorted(_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    wanted = [path for path in there if _matches(path.relative_to(folder).as_posix(), settings.files)]
    if not wanted:
        holds = _listed([path.relative_to(folder).as_posix() for path in there])
        _fail(
            folder,
            1,
            f"no file matches files {list(settings.files)!r}; the folder holds: {holds}; set `files`, or save the "
            "documents as text, Markdown or HTML",
        )
    _bound(wanted, folder, settings)
    return (_text(path, path.relative_to(folder).as_posix()) for path in wanted)


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> NoReturn:
        _fail(Path(error.filename), 1, f"cannot be read: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _matches(path: str, globs: Sequence[str]) -> bool:
    """A glob with '/' is held against the whole path below the folder, one without against the file's name."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch((path if "/" in glob else name).lower(), glob.lower()) for glob in globs)


def _bound(files: Sequence[Path], path: Path, settings: Retrieval) -> None:
    sizes = {file: file.stat().st_size / 1e6 for file in files if file.exists()}
    if (total := sum(sizes.values())) > settings.max_megabytes:
        largest = max(sizes, key=lambda file: sizes[file])
        _fail(
            path,
            1,
            f"{total:.1f} MB of documents are more than max_megabytes {settings.max_megabytes!r} (the largest: "
            f"{largest.name}, {sizes[largest]:.1f} MB); name fewer in `files`, or raise max_megabytes",
        )


def _text(path: Path, name: str) -> _Document:
    text, title = text_of(path).replace("\r\n", "\n"), path.stem
    suffix = path.suffix.lower()
    if suffix in (".html", ".htm"):
        text, headings, said = page(text)
        title = said or title
    else:
        headings = headings_of(text, suffix)
    id = unicodedata.normalize("NFC", name)
    _encodable(path, 1, "the file name", id)
    return _Document(f"{path}:1", id, title, text, headings)


def _table(path: Path, settings: Retrieval) -> Iterator[_Document]:
    # Python reads CSV cells of at most 128 KiB unless told otherwise, and a document may be longer.
    csv.field_size_limit(2**31 - 1)
    read = list(rows(path, like=SHAPE))
    if not read:
        _fail(path, 1, f"the file has no rows; every row is a document like {SHAPE}")
    columns = settings.columns
    numbered = columns.id == "id" and not any("id" in row for _, row in read)
    for number, (line, row) in enumerate(read, start=1):
        id = f"d{number:06d}" if numbered else _id(path, line, _cell(path, line, row, "id", columns.id))
        text = _cell(path, line, row, "text", columns.text)
        untitled = columns.title == "title" and "title" not in row
        title = None if untitled else _cell(path, line, row, "title", columns.title)
        for name, value in (("text", text), ("title", title)):
            if value is not None and not isinstance(value, str):
                _fail(path, line, f"{name} {value!r:.80} must be text")
        yield _Document(f"{path}:{line}", id, title or "", (text or "").replace("\r\n", "\n"))


def _id(path: Path, line: int, id: Json) -> str:
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        _fail(path, line, f"id {id!r} must be non-empty text or a whole number")
    return str(id)


def _cell(path: Path, line: int, row: Mapping[str, Json], ours: str, column: str) -> Json:
    if column not in row:
        hint = f"; columns here: {', '.join(map(str, row)) or 'none'}{nearest(column, map(str, row))}"
        _fail(path, line, f"no column {column!r} for {ours!r}{hint} Set `columns: {{{ours}: ...}}`")
    _encodable(path, line, f"column {column!r}", row[column])
    return row[column]


def _encodable(path: Path, line: int, what: str, value: Json) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        _fail(path, line, f"{what} holds half a character ({error.object[error.start]!r}); save it as UTF-8")


def _leaves(value: Json) -> Iterator[str]:
    """The texts inside a JSON value, without the names of fields."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield plain(value)
