"""Searching: by words, by vectors, by both; deterministic, silent, picklable."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.errors import ConfigError
from evocluster.records import Usage
from evocluster.tasks.dataset import Columns, load
from evocluster.tasks.documents import Passage, Retrieval, read_documents
from evocluster.tasks.recall import Recall
from evocluster.tasks.retrieval import Index
from evocluster.tasks.words import normalise

RAG = Path(__file__).parents[1] / "configs" / "rag"
WORDS = ("plan", "price", "refund", "card", "the", "what", "key", "invoices")


def index(*texts: str, **changes: Any) -> Index:
    return Index(Retrieval(documents="x", **changes), [Passage(id=str(at), text=text) for at, text in enumerate(texts)])


async def found(searched: Index, query: str, k: int) -> list[str]:
    return [passage.id for passage in (await searched.search(query, k)).passages]


async def test_the_passage_with_the_rare_words_comes_first() -> None:
    searched = index("the plan and its price", "a plan for teams", "how refunds work", "a plan, a key")
    assert await found(searched, "What is the price of a plan?", 2) == ["0", "1"]
    assert await found(searched, "REFUND", 3) == ["2"]


async def test_titles_are_searched_too() -> None:
    passages = [Passage(id="a", title="Plans > Team", text="Ten people."), Passage(id="b", text="Ten plates.")]
    assert await found(Index(Retrieval(documents="x"), passages), "team plan", 5) == ["a"]


async def test_as_many_as_there_are_and_none_for_none() -> None:
    searched = index("plan one", "plan two", "plan three")
    assert await found(searched, "plan", 99) == ["0", "1", "2"]
    assert await found(searched, "plan", 0) == []
    assert (await searched.search("plan", 2)).usage == Usage()
    assert await found(index("plan"), "plan", 1) == ["0"]
    assert await found(index(), "plan", 1) == []
    with pytest.raises(ValueError, match="k -1 must be 0 or more"):
        await searched.search("plan", -1)


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
async def test_only_passages_that_share_a_word_are_found(variant: str) -> None:
    searched = index("plan one", "plan two", "card", "?!", "the what", variant=variant)
    for nothing in ("", "  ?", "unknown words", "what is the", "\x00"):
        assert await found(searched, nothing, 5) == []
    assert await found(searched, "plan", 5) == ["0", "1"]
    assert await found(searched, "unknown card", 5) == ["2"]


async def test_documents_of_function_words_only() -> None:
    assert await found(index("the", "what is"), "the what", 2) == []
    assert await found(index("the", "what is", language="none"), "what the", 2) == ["0", "1"]


async def test_english_plurals_and_contractions_are_one_word() -> None:
    searched = index("Policies for invoices", "the team's keys", "class buses bus", "api_key ERR-402")
    assert await found(searched, "policy", 4) == ["0"]
    assert await found(searched, "invoice", 4) == ["0"]
    assert await found(searched, "teams don’t", 4) == ["1"]
    assert await found(searched, "key", 4) == ["1", "3"]
    assert await found(searched, "err_402", 4) == ["3"]
    exact = index("invoices", "invoice", language="none")
    assert await found(exact, "Invoice", 4) == ["1"]


async def test_scripts_without_spaces_are_searched_by_character() -> None:
    assert await found(index("返金は三日", "料金の支払い"), "返金", 2) == ["0", "1"]
    assert await found(index("料金の支払い", "ключ ключа"), "ключ", 2) == ["1"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), min_size=1, max_size=12),
    st.lists(st.sampled_from((*WORDS, "unknown")), max_size=4).map(" ".join),
    st.integers(0, 14),
    st.sampled_from(["lucene", "robertson", "atire", "bm25l", "bm25+"]),
)
def test_fewer_are_a_prefix_of_more_and_ties_keep_the_order(texts: list[str], query: str, k: int, variant: str) -> None:
    async def law() -> None:
        searched, again = index(*texts, variant=variant), index(*texts, variant=variant)
        every = await found(searched, query, len(texts))
        assert await found(searched, query, k) == every[:k]
        assert await found(pickle.loads(pickle.dumps(again)), query, k) == every[:k]
        for first, second in pairwise(every):
            assert texts[int(first)] != texts[int(second)] or int(first) < int(second)

    asyncio.run(law())


async def test_a_thousand_searches_at_once_build_the_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from evocluster.tasks import retrieval

    built = []
    real = retrieval._Keywords

    class Counted(real):  # type: ignore[misc,valid-type]
        def __init__(self, *given: Any) -> None:
            built.append(1)
            super().__init__(*given)

    monkeypatch.setattr(retrieval, "_Keywords", Counted)
    searched = index(*(f"plan {number}" for number in range(50)))
    first = asyncio.ensure_future(searched.search("plan", 1))
    await asyncio.sleep(0)
    first.cancel()
    together = await asyncio.gather(*(found(searched, f"{number % 50}", 1) for number in range(1000)))
    assert together == [[str(number % 50)] for number in range(1000)]
    assert len(built) == 1


async def test_what_is_pickled_is_passages_and_settings_only() -> None:
    searched = index(*(f"plan {number}" for number in range(200)))
    fresh = pickle.dumps(searched)
    await found(searched, "plan", 1)
    assert pickle.dumps(searched) == fresh


def test_the_library_is_silent_and_starts_no_threads_and_is_loaded_late(tmp_path: Path) -> None:
    script = """
        import asyncio, logging, os, sys, threading
        logging.basicConfig(level=logging.DEBUG)
        logging.getLogger("asyncio").setLevel(logging.WARNING)
        from evocluster.tasks.documents import Passage
        from evocluster.tasks.retrieval import Index, Retrieval
        assert "bm25s" not in sys.modules
        index = Index(Retrieval(documents="x"), [Passage(id=str(n), text=f"plan {n}") for n in range(300)])
        found = asyncio.run(index.search("plan 7", 1)).passages
        assert [each.id for each in found] == ["7"], found
        assert "DISABLE_TQDM" not in os.environ
        for thread in threading.enumerate():
            thread.name == "bm25" and thread.join()
        assert threading.active_count() == 1, threading.enumerate()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def embedding(folder: Path, body: str, name: str = "embed.py") -> str:
    (folder / name).write_text(textwrap.dedent(body))
    return f"{folder / name}:embed"


LETTERS = """
    calls = []
    def embed(texts):
        calls.append(len(texts))
        return [[text.count(letter) for letter in "abc"] for text in texts]
"""


async def test_vectors_find_what_shares_no_word(tmp_path: Path) -> None:
    spec = embedding(tmp_path, LETTERS)
    searched = index("bb", "aaa", "cc", "aab", embed=spec, usd_per_query=0.25, fuse="embed_only")
    with pytest.raises(RuntimeError, match=r"await index\.prepare"):
        await searched.search("a", 1)
    await searched.prepare()
    sent = pickle.loads(pickle.dumps(searched))
    brought = await sent.search("a", 2)
    assert [each.id for each in brought.passages] == ["1", "3"]
    assert brought.usage.usd == brought.usage.paid_usd == 0.25
    assert brought.usage.seconds > 0
    assert (brought.usage.calls, brought.usage.prompt_tokens) == (0, 0)
    assert await found(sent, "a", 9) == ["1", "3", "0", "2"]
    assert (await sent.search("a", 0)).usage == (await sent.search(" ?", 3)).usage == Usage()


async def test_both_rankings_are_fused_by_their_ranks(tmp_path: Path) -> None:
    spec = embedding(tmp_path, LETTERS)
    searched = index("xx", "b", "abacus", "a a", embed=spec, usd_per_query=0)
    await searched.prepare()
    # Words: 1. Vectors: 2, 1, 3, 0.
    assert await found(searched, "b a", 4) == ["1", "2", "3", "0"]
    assert await found(searched, "abacus", 2) == ["2", "3"]


async def test_passages_are_embedded_once_and_in_batches(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = embedding(
        tmp_path,
        f"""
        async def embed(texts):
            with open({str(log)!r}, "a") as file:
                print(len(texts), file=file)
            return [[len(text), 1.0] for text in texts]
        """,
    )
    searched = index(*("x" * number for number in range(1, 151)), embed=spec, usd_per_query=0, fuse="embed_only")
    await searched.prepare()
    await searched.prepare()
    await found(pickle.loads(pickle.dumps(searched)), "xxx", 2)
    assert log.read_text().split() == ["64", "64", "22", "1"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [[1.0]] * (len(texts) - 1)", "gave 2 vectors for 3 texts"),
        ("return [[1.0], [1.0, 2.0], [1.0]]", "vectors of lengths [1, 2]"),
        ("return [[]] * len(texts)", "vectors of lengths [0]"),
        ("return None", "gave NoneType; a list of 3 vectors is needed"),
        ("return [1.0] * len(texts)", "gave list; a list of 3 vectors is needed"),
        ("return ['ab'] * len(texts)", "vectors that are not numbers"),
        ("return [[float('nan')]] * len(texts)", "shape (3, 1) or with NaN"),
        ("return [[[1.0]]] * len(texts)", "shape (3, 1, 1)"),
        ("raise KeyError('no key')", "KeyError: 'no key'"),
    ],
)
async def test_functions_that_give_no_vectors_stop_before_anything_is_spent(
    tmp_path: Path, body: str, said: str
) -> None:
    spec = embedding(tmp_path, f"def embed(texts):\n    {body}\n")
    with pytest.raises(ConfigError, match=r"retrieval\.embed on passages 1 to 3 of 3") as raised:
        await index("a", "b", "c", embed=spec, usd_per_query=0).prepare()
    assert said in str(raised.value)


async def test_a_question_that_cannot_be_embedded_is_the_failure_of_its_example(tmp_path: Path) -> None:
    spec = embedding(
        tmp_path,
        """
        def embed(texts):
            if texts == ["bad"]:
                raise OSError("no connection")
            return [[1.0] * (2 if texts == ["long"] else 3) for _ in texts]
        """,
    )
    searched = index("a", "b", embed=spec, usd_per_query=0)
    await searched.prepare()
    with pytest.raises(OSError, match="no connection"):
        await searched.search("bad", 1)
    with pytest.raises(ValueError, match="vectors of length 2, and 3 before"):
        await searched.search("long", 1)
    assert len(await found(searched, "good", 1)) == 1


def test_the_question_is_the_input_or_a_field_of_it() -> None:
    whole, field = Retrieval(documents="x"), Retrieval(documents="x", query="question")
    assert whole.question("Why?") == "Why?"
    assert whole.question({"question": "Why?", "seats": [3, None, {"day": "Monday"}]}) == "Why?\n3\nMonday"
    assert field.question({"question": "Why?", "seats": 3}) == "Why?"
    with pytest.raises(ValueError, match=r"no field 'question'; fields: questions; did you mean 'questions'\?"):
        field.question({"questions": "Why?"})
    with pytest.raises(ValueError, match="no object with a field 'question'"):
        field.question("Why?")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"documents": " "}, "is empty"),
        ({"files": []}, "must name at least one pattern"),
        ({"chunk_words": 50, "overlap_words": 26}, "overlap_words 26 must be at most half of chunk_words 50"),
        ({"chunk_words": 0, "overlap_words": 5}, "overlap_words 5 must be 0 for whole documents"),
        ({"embed": "embed.py"}, "must name a function as 'file.py:function'"),
        ({"embed": "e.py:f"}, "usd_per_query is missing"),
        ({"usd_per_query": 0.1}, "set embed"),
        ({"fuse": "embed_only"}, "fuse 'embed_only' needs embed"),
        ({"method": "tfidf"}, "'bm25'"),
        ({"b": 1.5}, "less than or equal to 1"),
        ({"chunk_wrods": 5}, "chunk_wrods"),
        ({"columns": {"txt": "body"}}, "txt"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Retrieval.model_validate({"documents": "x", **changes})
    assert said in str(raised.value)


def test_settings_survive_being_written() -> None:
    for changes in ({}, {"embed": "e.py:f", "usd_per_query": 0.0, "fuse": "embed_only"}, {"chunk_words": 0}):
        made = Retrieval.model_validate({"documents": "x", **changes})
        assert Retrieval.model_validate(json.loads(made.model_dump_json())) == made


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RAG / name).read_text(encoding="utf-8").splitlines()]


def test_the_example_questions_are_answered_by_the_pages_they_name() -> None:
    passages = {
        each.id: each.text for each in read_documents(Retrieval(documents=str(RAG / "documents"), chunk_words=0))
    }
    splits = [rows("train.jsonl"), rows("validation.jsonl"), rows("test.jsonl"), rows("paraphrased.jsonl")]
    assert [len(split) for split in splits] == [24, 16, 24, 24]
    assert len(passages) == 12
    questions = [row for split in splits for row in split]
    assert len({normalise(row["input"]) for row in questions}) == len(questions)
    for row in questions:
        assert all(row["expected"] in passages[id] for id in row["meta"]["documents"]), row
    known = {row["id"]: row["expected"] for row in splits[2]}
    assert {row["id"].replace("paraphrased", "test"): row["expected"] for row in splits[3]} == known


@pytest.mark.parametrize(("name", "least"), [("train", 0.9), ("validation", 0.9), ("test", 0.9), ("paraphrased", 0.3)])
async def test_recall_on_the_example_questions(name: str, least: float) -> None:
    chosen = Retrieval(documents=str(RAG / "documents"))
    searched, examples = Index(chosen, read_documents(chosen)), load(RAG / f"{name}.jsonl", Columns())
    Recall().fits(examples, [passage.id for passage in searched.passages])
    hits = [
        any(id.startswith(f"{example.meta['documents'][0]}#") for id in await found(searched, example.input, 3))
        for example in examples
    ]
    assert sum(hits) / len(hits) >= least
