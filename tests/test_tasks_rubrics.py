"""Rubric files: what is read, what is refused and where, and how a changed one is told from the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from evocluster.errors import ConfigError
from evocluster.tasks.rubrics import SCALES, Rubric, read_rubric

HEADER = "---\nversion: 2\nscale: 1-5\n---\n"


def rubric(folder: Path, content: str | bytes) -> Rubric:
    """The rubric of a file with this content."""
    path = folder / "rubric.md"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rubric(path)


def test_header_and_body(tmp_path: Path) -> None:
    header = "\ufeff---\n# for support\nversion: 'v3: final'\n\nscale: 0-10\nneeds_expected: False\n---\n"
    found = rubric(tmp_path, header + "\n10: right.\n---\n0: wrong. \n")
    assert (found.version, found.scale, found.needs_expected) == ("v3: final", SCALES["0-10"], False)
    assert found.body == "10: right.\n---\n0: wrong."
    assert found.path == str(tmp_path / "rubric.md")
    assert len(found.digest) == 16


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    found = rubric(tmp_path, "---\nversion: 1\n---\nBe strict: is it right?")
    assert (found.scale.name, found.needs_expected) == ("1-5", True)


REFUSED = (
    ("", 1, "no header"),
    ("\n\nHow good is it?\n", 3, "no header"),
    ("---\nversion: 1\nHow good is it?\n", 1, "the header is not closed"),
    ("---\nscale: 1-5\n---\nx", 1, "no version"),
    ("---\nscale: 1-5\nversion:\n---\nx", 3, "no version"),
    ("---\nverison: 1\n---\nx", 2, "unknown setting 'verison'; allowed: version, scale, needs_expected; did you mean"),
    ("---\nversion: 1\nversion: 2\n---\nx", 3, "'version' is written twice, first in line 2"),
    ("---\nversion: 1\nstrict\n---\nx", 3, "'strict' is not `name: value`"),
    ("---\nversion: 1\n\nscale: 1-6\n---\nx", 4, "unknown scale '1-6'; allowed: 0-1, 1-5, 0-10, pass-fail"),
    ("---\nversion: 1\nneeds_expected: maybe\n---\nx", 3, "needs_expected 'maybe'; allowed: true, false"),
    (HEADER + " \n\n", 5, "the body is empty"),
    (b"---\nversion: 1\n---\ngr\xfc\xdfe", 4, "not UTF-8 text (byte 0xfc)"),
    (HEADER + "x" * 100_001, 1, "allowed: 100000"),
)


@pytest.mark.parametrize(("content", "line", "said"), REFUSED, ids=[said[:20] for _, _, said in REFUSED])
def test_refused_with_file_and_line(tmp_path: Path, content: str | bytes, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rubric(tmp_path, content)
    assert str(refused.value).startswith(f"{tmp_path / 'rubric.md'}:{line}: ")
    assert said in str(refused.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "helpful.md").write_text(HEADER + "x")
    with pytest.raises(ConfigError, match=r"helpfull\.md:1: .*holds: helpful\.md; did you mean 'helpful\.md'"):
        read_rubric(tmp_path / "helpfull.md")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rubric(tmp_path)


def test_the_digest_is_of_what_counts(tmp_path: Path) -> None:
    first = rubric(tmp_path, HEADER + "5: right\n1: wrong\n")
    assert rubric(tmp_path, (HEADER + "5: right\n1: wrong\n").replace("\n", "\r\n")).digest == first.digest
    changed = [HEADER + "5: right\n1: false\n", HEADER.replace("2", "3") + "5: right\n1: wrong\n"]
    changed.append("---\nversion: 2\nscale: 0-10\n---\n5: right\n1: wrong\n")
    changed.append("---\nversion: 2\nneeds_expected: false\n---\n5: right\n1: wrong\n")
    digests = {first.digest, *(rubric(tmp_path, text).digest for text in changed)}
    assert len(digests) == 5


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    first = rubric(tmp_path, HEADER + "old")
    assert read_rubric(tmp_path / "rubric.md") is first
    assert rubric(tmp_path, HEADER + "newer").body == "newer"


@pytest.mark.parametrize(("name", "shares"), [("0-1", (0, 0.25, 1)), ("1-5", (1, 2, 5)), ("0-10", (0, 2.5, 10))])
def test_scores_run_from_0_to_1(name: str, shares: tuple[float, float, float]) -> None:
    assert [SCALES[name].share(number) for number in shares] == [0.0, 0.25, 1.0]


def test_answers_of_a_scale() -> None:
    assert SCALES["1-5"].answers == ("1", "2", "3", "4", "5")
    assert SCALES["pass-fail"].answers == ("fail", "pass")
    assert SCALES["0-10"].answers[-1] == "10"
