"""Cutting texts: no word is lost, moved or cut; headings become titles."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from evocluster.tasks.chunks import Chunk, count_words, cut, headings_of, page

PIECES = st.sampled_from(
    [
        "word",
        "Refunds.",
        "take",
        "e.g.",
        "Why?",
        "\n",
        "\n\n",
        "\n \n",
        "# Plans\n",
        "## Team\n\n",
        "- item",
        "返金。",
        "は",
        "```code ",
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map(
    lambda pieces: " ".join(re.sub(r"[a-zは金]+", rf"\g<0>{at}", piece) for at, piece in enumerate(pieces))
)
"""Words are numbered, so that every one can be found again."""


def chunks(text: str, words: int, overlap: int = 0, suffix: str = ".md") -> list[Chunk]:
    return list(cut(text, headings_of(text, suffix), words, overlap))


@given(TEXTS, st.integers(1, 12))
def test_chunks_together_hold_every_word_in_order(text: str, words: int) -> None:
    found = chunks(text, words)
    assert "".join("".join(chunk.text for chunk in found).split()) == "".join(text.split())
    assert all(0 < count_words(chunk.text) <= words for chunk in found)


@given(TEXTS, st.integers(2, 12), st.data())
@example("one two three. Four five six. Seven", 4, None)
def test_chunks_with_an_overlap_are_slices_without_gaps(text: str, words: int, data: st.DataObject | None) -> None:
    overlap = data.draw(st.integers(1, words // 2)) if data else 2
    reached = start = 0
    for chunk in chunks(text, words, overlap):
        assert count_words(chunk.text) <= words
        after = len(text) - len(text[reached:].lstrip())
        earliest = max(start, reached - len(chunk.text) + 1)
        places = [at for at in {*range(earliest, reached), after} if text.startswith(chunk.text, at)]
        assert places, f"{chunk.text!r} leaves a gap after {text[:reached]!r}"
        start = max(places)
        reached = start + len(chunk.text)
    assert not text[reached:].strip()


def test_no_word_is_cut_however_long() -> None:
    assert [chunk.text for chunk in chunks("a" * 5000 + " b c", 2)] == ["a" * 5000 + " b", "c"]


def test_whole_documents_are_one_chunk() -> None:
    assert chunks("# Plans\n\n## Team\n\nTen people.", 0) == [Chunk(("Plans",), 1, "# Plans\n\n## Team\n\nTen people.")]


def test_paragraphs_are_kept_whole_where_they_fit_and_sentences_where_they_do_not() -> None:
    text = "One two three four.\n\nFive six seven. Eight nine ten. Eleven twelve."
    assert [chunk.text for chunk in chunks(text, 6)] == [
        "One two three four.",
        "Five six seven. Eight nine ten.",
        "Eleven twelve.",
    ]
    assert [chunk.text for chunk in chunks(text, 8)] == [
        "One two three four.",
        "Five six seven. Eight nine ten. Eleven twelve.",
    ]


def test_a_list_without_full_stops_is_cut_between_its_items() -> None:
    assert [chunk.text for chunk in chunks("- one two\n- three four\n- five six", 6)] == [
        "- one two\n- three four",
        "- five six",
    ]


def test_an_overlap_repeats_whole_sentences_or_else_the_last_words() -> None:
    text = "One two. Three four. Five six seven eight. Nine ten."
    assert [chunk.text for chunk in chunks(text, 6, 2)] == [
        "One two. Three four.",
        "Three four. Five six seven eight.",
        "seven eight. Nine ten.",
    ]


def test_a_section_begins_a_chunk_and_stands_under_its_headings() -> None:
    text = "# Plans\n\nThere are four.\n\n## Team\n\nTen people.\n\n### Price\n\n12 euros.\n\n## Solo\n\nOne person."
    found = chunks(text, 6)
    assert [(" > ".join(chunk.titles), chunk.text.split("\n")[0]) for chunk in found] == [
        ("Plans", "# Plans"),
        ("Plans > Team", "## Team"),
        ("Plans > Team > Price", "### Price"),
        ("Plans > Solo", "## Solo"),
    ]
    assert [len(chunks(text, words)) for words in (100, 0)] == [1, 1]


def test_a_heading_never_ends_a_chunk() -> None:
    text = "One two three four five.\n\n## Team\n\nTen people work."
    assert [chunk.text for chunk in chunks(text, 8)] == ["One two three four five.", "## Team\n\nTen people work."]


def test_what_only_looks_like_a_heading_is_none() -> None:
    text = "---\ntitle: x\n---\n\n```\n# a comment\n\nA\n---\n```\n\n#hashtag\n\nline one\nline two\n---\n"
    assert headings_of(text, ".md") == []
    assert headings_of("# Plans", ".txt") == []


def test_hashes_may_close_a_heading() -> None:
    names = [each.name for each in headings_of("# Plans ##  \n## C#\n### A # b\n", ".md")]
    assert names == ["Plans", "C#", "A # b"]


def test_underlined_headings() -> None:
    names = [(each.level, each.name) for each in headings_of("Plans\n=====\n\nTeam\n----\n\nTen.\n", ".md")]
    assert names == [(1, "Plans"), (2, "Team")]
    rst = "=====\nPlans\n=====\n\nTeam\n~~~~\n\nTen.\n\nSolo\n~~~~\n\n====  ====\nA     B\n====  ====\n"
    assert [(each.level, each.name) for each in headings_of(rst, ".rst")] == [(1, "Plans"), (2, "Team"), (2, "Solo")]


def test_a_page_is_read_as_a_person_reads_it() -> None:
    html = (
        "<html><head><title>Help &amp; plans</title><style>p {color: red}</style></head><body><h1>Plans\n now</h1>"
        "<p>Four <b>plans</b>,\n  3&nbsp;&euro;.</p><script>var x = '<p>no</p>';</script><ul><li>Seed<li>Grove</ul>"
        "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table><pre>x\n  y</pre><h2></h2>end"
    )
    text, headings, title = page(html)
    assert title == "Help & plans"
    assert text.split("\n\n") == [
        "Plans now",
        "Four plans, 3\xa0€.".replace("\xa0", " "),
        "Seed\nGrove",
        "a b\nc",
        "x\n  y",
        "end",
    ]
    assert [(each.level, each.name) for each in headings] == [(1, "Plans now")]
    assert [chunk.titles for chunk in cut(text, headings, 50)] == [("Plans now",)]


@given(st.text(alphabet="<>/abh1 &;\n!-\"'=", max_size=80))
def test_any_html_gives_text(html: str) -> None:
    text, headings, _ = page(html)
    assert all(text[each.start : each.end].split() == each.name.split() for each in headings)
