"""Documents read as passages, and what is said of those that cannot be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from evocluster.errors import DataError
from evocluster.tasks.documents import Passage, Retrieval, read_documents


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(path: Path, **settings: Any) -> tuple[Passage, ...]:
    return read_documents(Retrieval(documents=str(path), **settings))


def complaint(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(path, **settings)
    return str(raised.value)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.txt": "Second.",
            "A.MD": "# Plans\r\n\r\n## Team\r\n\r\nTen people.",
            "sub/c.html": "<title>Third</title><p>Here.",
            "sub/deep/d.rst": "Fourth\n======\n\nHere.",
            "e.pdf": b"%PDF\xff",
            ".git/f.md": "Hidden.",
        },
    )
    assert [(each.id, each.title, each.text) for each in read(tmp_path)] == [
        ("A.MD#1", "Plans > Team", "# Plans\n\n## Team\n\nTen people."),
        ("b.txt#1", "b", "Second."),
        ("sub/c.html#1", "Third", "Here."),
        ("sub/deep/d.rst#1", "Fourth", "Fourth\n======\n\nHere."),
    ]
    assert [each.id for each in read(tmp_path, chunk_words=0)] == ["A.MD", "b.txt", "sub/c.html", "sub/deep/d.rst"]
    assert [each.id for each in read(tmp_path, files=["sub/*.html"])] == ["sub/c.html#1"]


def test_chunks_are_numbered_and_named_by_their_headings(tmp_path: Path) -> None:
    write(tmp_path, {"plans.md": "Four plans here.\n\n## Team\n\nTen people. One price. Two rooms."})
    assert [(each.id, each.title) for each in read(tmp_path, chunk_words=6)] == [
        ("plans.md#1", "plans"),
        ("plans.md#2", "plans > Team"),
        ("plans.md#3", "plans > Team"),
    ]


def test_one_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, {"manual.md": b"\xef\xbb\xbf# Manual\n\nPress it."})
    assert read(tmp_path / "manual.md")[0].title == "Manual"


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.csv"])
def test_rows_are_documents(tmp_path: Path, name: str) -> None:
    rows = [("a", "One,\ntwo.", "First"), ("7", "Three.", "")]
    text = "".join(json.dumps(dict(zip(("key", "body", "title"), row, strict=True))) + "\n" for row in rows)
    if name.endswith(".csv"):
        text = 'key,body,title\na,"One,\ntwo.",First\n7,Three.,\n'
    write(tmp_path, {name: text})
    found = read(tmp_path / name, columns={"id": "key", "text": "body"}, chunk_words=0)
    assert found == (Passage(id="a", title="First", text="One,\ntwo."), Passage(id="7", text="Three."))


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    write(tmp_path, {"docs.jsonl": '{"text": "One."}\n{"text": "Two."}\n'})
    assert [each.id for each in read(tmp_path / "docs.jsonl")] == ["d000001#1", "d000002#1"]


def test_a_csv_cell_may_be_a_long_document(tmp_path: Path) -> None:
    write(tmp_path, {"docs.csv": f"id,text\na,{'word ' * 40_000}\n"})
    assert len(read(tmp_path / "docs.csv")[0].text) <= 150 * 5
    assert len(read(tmp_path / "docs.csv")) == -(-40_000 // 150)


def test_documents_without_a_word_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"a.md": " \n", "b.md": "Text.", "c.html": "<p></p>", "d.txt": "--- ***"})
    with caplog.at_level(logging.WARNING, logger="evocluster"):
        assert [each.id for each in read(tmp_path)] == ["b.md#1"]
    assert caplog.messages == [
        f"3 documents without a word were left out: {tmp_path}/a.md:1, {tmp_path}/c.html:1, {tmp_path}/d.txt:1"
    ]
    (tmp_path / "b.md").write_text("")
    assert "no document holds a word (4 read:" in complaint(tmp_path)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, {"documents/a.md": "x"})
    said = complaint(tmp_path / "docments")
    assert said.startswith(f"{tmp_path}/docments:1: no such file or folder")
    assert "holds: documents; did you mean 'documents'?" in said
    assert "relative to the config file" in complaint(tmp_path / "nowhere" / "docs")


def test_a_folder_without_fitting_files(tmp_path: Path) -> None:
    write(tmp_path, {"a.pdf": "x", "sub/b.docx": "x"})
    said = complaint(tmp_path, files=["*.md", "*.rst"])
    assert "no file matches files ['*.md', '*.rst']; the folder holds: a.pdf, sub/b.docx; set `files`" in said
    assert "holds: nothing" in complaint(write(tmp_path / "empty", {".hidden.md": "x"}))


def test_files_that_are_not_text(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "Fine.\nNot f\xefne.".encode("latin-1"), "b.docx": "x"})
    assert complaint(tmp_path).startswith(f"{tmp_path}/a.md:2: not UTF-8 text (byte 0xef)")
    said = complaint(tmp_path / "b.docx")
    assert "unknown extension '.docx'; allowed: a folder, or a file with one of .jsonl" in said


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ('{"id": 1, "txt": "x"}', {}, ":1: no column 'text' for 'text'; columns here: id, txt; did you mean 'txt'?"),
        ('{"text": "x"}', {"columns": {"id": "key"}}, "no column 'key' for 'id'"),
        ('{"text": "x"}', {"columns": {"title": "name"}}, "no column 'name' for 'title'"),
        ('{"id": "a", "text": "x"}\n{"text": "y"}', {}, ":2: no column 'id'"),
        ('{"id": "a", "text": "x"}\n\n{"id": "a", "text": "y"}', {}, ":3: id 'a' is already used in"),
        ('{"id": true, "text": "x"}', {}, "id True must be non-empty text"),
        ('{"text": 5}', {}, "text 5 must be text"),
        ('{"text": "\\ud800"}', {}, "holds half a character"),
        ('["x"]', {}, 'is list, not an object like {"id": ..., "text": ...}'),
        ("", {}, "the file has no rows"),
        ('{"text": ""}', {}, "no document holds a word (1 read:"),
    ],
)
def test_rows_that_are_no_documents(tmp_path: Path, text: str, settings: dict[str, Any], said: str) -> None:
    write(tmp_path, {"docs.jsonl": text})
    found = complaint(tmp_path / "docs.jsonl", **settings)
    assert found.startswith(f"{tmp_path}/docs.jsonl:")
    assert said in found


def test_bounds_name_what_is_too_much(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": "One two three.\n\n" * 100, "b.md": "Four."})
    said = complaint(tmp_path, chunk_words=3, max_passages=20)
    assert "more than max_passages 20 passages" in said
    assert f"reached at {tmp_path}/a.md:1" in said
    assert "are more than max_megabytes 0.001 (the largest: a.md, 0.0 MB)" in complaint(tmp_path, max_megabytes=0.001)
    assert len(read(tmp_path, chunk_words=3, max_passages=101)) == 101


def test_ids_stay_what_they_are_when_other_documents_come(tmp_path: Path) -> None:
    write(tmp_path, {"b.md": "Text here. " * 50})
    before = {each.id: each for each in read(tmp_path, chunk_words=20)}
    write(tmp_path, {"a.md": "First.", "c.md": "Last."})
    after = {each.id: each for each in read(tmp_path, chunk_words=20)}
    assert before.items() <= after.items()
    assert len(before) > 2
