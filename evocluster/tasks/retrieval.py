"""Retrieval over the user's documents: the k passages that fit a question best, for the gene `retriever_topk`.

Call order: `Retrieval` (settings) -> `read_documents` -> `Index` -> `prepare` (in the driver, before it is pickled)
-> `search`. Words are matched by BM25 (Robertson and Zaragoza 2009; variants as in Kamphuis et al. 2020); with
`embed`, a function of the user's adds the similarity of vectors, and the two rankings are fused by reciprocal ranks
(Cormack, Clarke and Buettcher 2009).
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from asyncio import shield, wrap_future
from collections.abc import Sequence
from concurrent.futures import Future
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evocluster.errors import ConfigError, EvoclusterError
from evocluster.records import Record, Usage
from evocluster.tasks.chunks import CJK
from evocluster.tasks.documents import Passage, Retrieval

EMBEDDED_AT_ONCE = 64
"""Passages in one call of the user's embedding function."""
RANK_OFFSET = 60
"""k of reciprocal rank fusion, as in its paper: 1 / (60 + rank)."""
_TERM = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
_CONTRACTED = re.compile(r"(?<=\w)['’](?:s|t|d|m|ll|re|ve)\b")
Order = NDArray[np.intp]
"""Numbers of passages, the best first."""


class Found(Record):
    """What a search brought."""

    passages: tuple[Passage, ...] = ()
    """The best first."""
    usage: Usage = Usage()
    """Of the embedded question; nothing for BM25, which is not a call."""


class Index:
    """Passages, findable. Picklable: what is rebuilt from the words is rebuilt once in every process."""

    def __init__(self, settings: Retrieval, passages: Sequence[Passage]) -> None:
        self.settings = settings
        self.passages = tuple(passages)
        self._vectors: NDArray[np.float32] | None = None
        self._start_afresh()

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "passages": self.passages, "_vectors": self._vectors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_afresh()

    async def prepare(self) -> None:
        """Embeds the passages, once; what is pickled afterwards carries the vectors. Without `embed`, nothing.

        Raises: ConfigError when the user's function fails or gives no vectors.
        """
        spec = self.settings.embed
        if spec is None or self._vectors is not None or not self.passages:
            return
        texts = [_whole(passage) for passage in self.passages]
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(texts), EMBEDDED_AT_ONCE):
            batch = texts[start : start + EMBEDDED_AT_ONCE]
            try:
                parts.append(await self._embedded(spec, batch, parts[0].shape[1] if parts else None))
            except EvoclusterError:
                raise
            except Exception as error:
                which = f"passages {start + 1} to {start + len(batch)} of {len(texts)}"
                raise ConfigError(f"retrieval.embed on {which}: {type(error).__name__}: {error}") from error
        self._vectors = np.concatenate(parts)

    async def search(self, query: str, k: int) -> Found:
        """The `k` best passages, or all when there are fewer; equally good ones in the order of the documents.

        By words alone, only passages that share a word with the query are found: a query without a known word
        finds nothing. The first search in a process builds the matrix, in a thread.
        Raises: ValueError for k < 0 and for unfit vectors, RuntimeError before `prepare`, and what `embed` raises.
        """
        if k < 0:
            raise ValueError(f"k {k!r} must be 0 or more")
        if k == 0 or not self.passages or not _TERM.search(query):
            return Found()
        spec, usage = self.settings.embed, Usage()
        if spec is None:
            best = (await self._keywords()).best(query, k)
        else:
            if self._vectors is None:
                raise RuntimeError("the passages are not embedded; await index.prepare() before searching")
            began = time.perf_counter()
            vector = await self._embedded(spec, [query], self._vectors.shape[1])
            usd = self.settings.usd_per_query or 0.0
            usage = Usage(usd=usd, paid_usd=usd, seconds=time.perf_counter() - began)
            best = np.argsort(-(self._vectors @ vector[0]), kind="stable")
            if self.settings.fuse == "reciprocal-rank":
                keywords = await self._keywords()
                best = _fused((keywords.best(query, len(self.passages)), best), len(self.passages))
        return Found(passages=tuple(self.passages[number] for number in best[:k]), usage=usage)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._built: Future[_Keywords] | None = None

    async def _keywords(self) -> _Keywords:
        with self._lock:
            first = self._built is None
            built = self._built = self._built or Future()
        if first:
            built.set_running_or_notify_cancel()
            threading.Thread(target=self._build, args=(built,), name="bm25", daemon=True).start()
        # A search that is given up must not take the matrix away from the others.
        return built.result() if built.done() else await shield(wrap_future(built))

    def _build(self, built: Future[_Keywords]) -> None:
        try:
            built.set_result(_Keywords(self.settings, [_whole(passage) for passage in self.passages]))
        except BaseException as error:
            built.set_exception(error)

    async def _embedded(self, spec: str, texts: list[str], length: int | None) -> NDArray[np.float32]:
        from evocluster.tasks.code import call, load

        vectors = await call(load(spec), texts, timeout_s=self.settings.timeout_s)
        return _unit(spec, vectors, len(texts), length)


def matched(texts: Sequence[str], queries: Sequence[str], k: int) -> list[list[int]]:
    """For each query the numbers of at most `k` texts that share a word with it, the best by BM25 first.

    Every word counts as it is: what retrieval leaves out, such as "who" and "where", may be what a task is about.
    """
    if not any(_TERM.search(text) for text in texts):
        return [[] for _ in queries]
    found = _Keywords(Retrieval(documents="texts", language="none"), texts)
    return [found.best(query, k).tolist() for query in queries]


class _Keywords:
    """BM25 scores of every passage for every term."""

    def __init__(self, settings: Retrieval, texts: Sequence[str]) -> None:
        bm25s = _library()
        self._terms = _Terms(bm25s.stopwords.STOPWORDS_EN_PLUS if settings.language == "english" else None)
        numbers = [self._terms.of(text) for text in texts]
        self._bm25 = bm25s.BM25(k1=settings.k1, b=settings.b, method=settings.variant)
        self._terms.close()
        if self._terms.numbers:
            # The library would add an empty word that its own scoring then refuses.
            self._bm25.index((numbers, self._terms.numbers), create_empty_token=False, show_progress=False)

    def best(self, query: str, k: int) -> Order:
        """At most `k` passages that share a term with the query."""
        terms = self._terms.of(query)
        if not terms:
            return np.empty(0, dtype=np.intp)
        # Its own top-k orders ties by chance and fills up with passages that share no term.
        scores = self._bm25.get_scores_from_ids(terms)
        stored = self._bm25.scores
        matched = np.zeros(len(scores), dtype=bool)
        for term in set(terms):
            matched[stored["indices"][stored["indptr"][term] : stored["indptr"][term + 1]]] = True
        numbers = np.flatnonzero(matched)
        if k < len(numbers):
            least = np.partition(scores[numbers], -k)[-k]
            numbers = numbers[scores[numbers] >= least]
        return numbers[np.argsort(-scores[numbers], kind="stable")][:k]


class _Terms(dict[str, int]):
    """Word -> number of its term, or -1 where it has none. Words are looked up, as texts repeat them a lot."""

    def __init__(self, idle: Sequence[str] | None) -> None:
        """`idle` are the function words of English; None: every word is a term as it is."""
        super().__init__(dict.fromkeys(idle or (), -1))
        self.numbers: dict[str, int] = {}
        self._english = idle is not None
        self._closed = False

    def of(self, text: str) -> list[int]:
        """The terms of a text, in its order."""
        folded = text.casefold()
        words = _TERM.findall(_CONTRACTED.sub(" ", folded) if self._english else folded)
        return [number for number in map(self.__getitem__, words) if number >= 0]

    def close(self) -> None:
        """From here on terms that are not known have no number."""
        self._closed = True

    def __missing__(self, word: str) -> int:
        term = _singular(word) if self._english else word
        if self._closed:
            return self.numbers.get(term, -1)
        number = self[word] = self.numbers.setdefault(term, len(self.numbers))
        return number


def _library() -> Any:
    """bm25s without what it does at import: progress bars, which start a thread each process, and debug logs."""
    said = os.environ.get("DISABLE_TQDM")
    os.environ["DISABLE_TQDM"] = "1"
    try:
        found = import_module("bm25s")
    finally:
        if said is None:
            del os.environ["DISABLE_TQDM"]
        else:
            os.environ["DISABLE_TQDM"] = said
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return found


def _singular(word: str) -> str:
    """A plural without its ending, by the three rules of the S-stemmer (Harman 1991, section 3)."""
    if len(word) < 4:
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else f"{word[:-3]}y"
    if word.endswith("es"):
        return word if word.endswith(("aes", "ees", "oes")) else word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("us", "ss")) else word


def _fused(orders: Sequence[Order], count: int) -> Order:
    """The passages of all rankings by the sum of their reciprocal ranks."""
    scores = np.zeros(count)
    for order in orders:
        scores[order] += 1 / (RANK_OFFSET + np.arange(1, len(order) + 1))
    return np.argsort(-scores, kind="stable")


def _unit(spec: str, vectors: Any, count: int, length: int | None) -> NDArray[np.float32]:
    """The user's vectors as rows of length 1. Raises: ValueError."""
    try:
        lengths = sorted({len(vector) for vector in vectors})
        got = len(vectors)
    except TypeError:
        raise ValueError(f"{spec!r} gave {type(vectors).__name__}; a list of {count} vectors is needed") from None
    if got != count:
        raise ValueError(f"{spec!r} gave {got} vectors for {count} texts; one for each is needed")
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f"{spec!r} gave vectors of lengths {lengths!r}; one length above 0 is needed")
    if length is not None and lengths[0] != length:
        raise ValueError(f"{spec!r} gave vectors of length {lengths[0]}, and {length} before; one length is needed")
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec!r} gave vectors that are not numbers: {error}") from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"{spec!r} gave an array of shape {rows.shape} or with NaN; finite numbers are needed")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def _whole(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text
