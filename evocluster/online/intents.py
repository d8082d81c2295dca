"""The intent of a question: said by the caller, else found by a rule, else by a small classifier, else unknown ('').

The classifier is logistic regression over TF-IDF of words, pairs of words and pieces of words of two to four
characters; its confidences are scaled by one temperature fitted on held-out folds (Guo et al. 2017, arXiv 1706.04599,
section 4.2). scikit-learn is needed to train it only: it answers with a look-up and a sum, and is kept as plain arrays.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from evocluster.errors import ConfigError, StoreError
from evocluster.records import Json
from evocluster.release.settings import Intent
from evocluster.tasks.patterns import checked_pattern, search
from evocluster.tasks.words import plain
from evocluster.telemetry import log

FORMAT = 1
TEXT = 500
"""Characters of a question that are looked at."""
FOLDS = 5
STRENGTH = 10.0
"""scikit-learn's C."""
_WORD = re.compile(r"\w+|[^\w\s]")
_TEMPERATURES = np.geomspace(0.05, 5.0, 80)


class Guess(NamedTuple):
    """What a classifier says of a question."""

    intent: str
    confidence: float
    """Calibrated: of guesses with 0.8, about 80 % are right."""


class Intents:
    """Names the intent of questions, as the settings say."""

    def __init__(self, settings: Intent, classifier: Classifier | None = None) -> None:
        """Raises: ConfigError: a rule's pattern is no regular expression."""
        self.settings, self.classifier = settings, classifier
        for rule in settings.rules:
            try:
                checked_pattern(rule.pattern)
            except ValueError as error:
                raise ConfigError(f"intent.rules, {rule.intent!r}: {error}") from error

    def of(self, input: Json, said: str = "") -> str:
        """The intent of a question; `said`: by the caller. A rule that takes too long is passed over."""
        if said:
            return said
        text = plain(input)
        for rule in self.settings.rules:
            try:
                if search(rule.pattern, text) is not None:
                    return rule.intent
            except TimeoutError as error:
                log.warning("the rule for intent %r was passed over: %s", rule.intent, error)
        if not self.settings.classifier or self.classifier is None:
            return ""
        guess = self.classifier.predict(text)
        return guess.intent if guess.confidence >= self.settings.confidence else ""


class Classifier:
    """Terms -> weights of each intent; frozen."""

    def __init__(
        self, intents: Sequence[str], terms: Sequence[str], idf: Any, weights: Any, bias: Any, temperature: float
    ) -> None:
        """`idf`: a number a term; `weights`: terms x intents; `bias`: a number an intent. Raises: ValueError."""
        self.intents, self.terms, self.temperature = tuple(intents), tuple(terms), float(temperature)
        self.idf, self.bias = np.asarray(idf, np.float64), np.asarray(bias, np.float64)
        self.weights = np.ascontiguousarray(weights, np.float64)
        shapes = self.idf.shape, self.weights.shape, self.bias.shape
        wanted = (len(terms),), (len(terms), len(intents)), (len(intents),)
        sound = all(np.isfinite(one).all() for one in (self.idf, self.weights, self.bias))
        if shapes != wanted or not sound or not 0 < self.temperature < math.inf:
            raise ValueError(f"arrays of shapes {shapes!r}: finite ones of {wanted!r} are wanted")
        self._places = {term: place for place, term in enumerate(self.terms)}

    def predict(self, text: str) -> Guess:
        """The likeliest intent; '' with 0 where nothing of the question is known."""
        counted = Counter(self._places[term] for term in terms(text) if term in self._places)
        if not counted:
            return Guess("", 0.0)
        places = np.fromiter(counted, np.intp, len(counted))
        values = (1.0 + np.log(np.fromiter(counted.values(), np.float64, len(counted)))) * self.idf[places]
        logits = (values / np.linalg.norm(values)) @ self.weights[places] + self.bias
        shares = _softmax(logits[None, :] / self.temperature)[0]
        best = int(shares.argmax())
        return Guess(self.intents[best], float(shares[best]))

    def dump(self) -> bytes:
        """Its saved form: a zip of arrays and JSON, nothing that runs when it is read."""
        head = {"format": FORMAT, "intents": self.intents, "terms": self.terms, "temperature": self.temperature}
        written = io.BytesIO()
        np.savez_compressed(
            written,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            idf=self.idf,
            weights=self.weights,
            bias=self.bias,
        )
        return written.getvalue()

    @classmethod
    def load(cls, saved: bytes) -> Classifier:
        """What `dump` gave. Raises: StoreError."""
        try:
            with np.load(io.BytesIO(saved), allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                if head["format"] != FORMAT:
                    raise ValueError(f"format {head['format']!r}, {FORMAT} is known")
                return cls(
                    head["intents"],
                    head["terms"],
                    arrays["idf"],
                    arrays["weights"],
                    arrays["bias"],
                    head["temperature"],
                )
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(f"a classifier of intents cannot be read ({error}); train it again") from error


def train(labelled: Sequence[tuple[str, str]], settings: Intent) -> Classifier:
    """A classifier from (question, intent); equal questions in any order make the same one.

    Raises: ConfigError: there are too few questions, or intents.
    """
    known = sorted({(text, intent) for text, intent in labelled if intent and text.strip()})
    counted = Counter(intent for _, intent in known)
    known = [(text, intent) for text, intent in known if counted[intent] >= 2]
    intents = sorted({intent for _, intent in known})
    if len(known) < settings.least or len(intents) < 2:
        raise ConfigError(
            f"{len(known)} different questions of {len(intents)} intents with two or more of them: a classifier takes "
            f"intent.least = {settings.least} of 2 intents or more; send metadata.intent with more requests, or write "
            "intent.rules"
        )
    texts, labels = [text for text, _ in known], np.array([intents.index(intent) for _, intent in known])
    vectorizer, model = _fitted(texts, labels)
    held = _held_out(texts, labels, len(intents))
    weights, bias = model.coef_.T, model.intercept_
    if len(intents) == 2:
        weights, bias = np.hstack([-weights / 2, weights / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return Classifier(
        intents, list(vectorizer.get_feature_names_out()), vectorizer.idf_, weights, bias, _temperature(held, labels)
    )


def _fitted(texts: Sequence[str], labels: Any) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    vectorizer = TfidfVectorizer(analyzer=_listed, sublinear_tf=True)
    rows = vectorizer.fit_transform(texts)
    return vectorizer, LogisticRegression(C=STRENGTH, max_iter=2000).fit(rows, labels)


def _held_out(texts: Sequence[str], labels: Any, intents: int) -> Any:
    """Logits of each question by a model that has not seen it."""
    from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]

    folds = StratifiedKFold(min(FOLDS, int(np.bincount(labels).min())))
    logits = np.zeros((len(texts), intents))
    for seen, unseen in folds.split(np.zeros(len(texts)), labels):
        vectorizer, model = _fitted([texts[place] for place in seen], labels[seen])
        found = model.decision_function(vectorizer.transform([texts[place] for place in unseen]))
        logits[unseen] = found if found.ndim == 2 else np.stack([-found / 2, found / 2], axis=1)
    return logits


def _temperature(logits: Any, labels: Any) -> float:
    """What the logits are divided by so that the held-out questions are likeliest."""
    rows = np.arange(len(labels))
    losses = [-np.log(_softmax(logits / one)[rows, labels] + 1e-12).mean() for one in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _listed(text: str) -> list[str]:
    return list(terms(text))


def terms(text: str) -> Iterator[str]:
    """Words, pairs of words, and pieces of two to four characters of each word with its edges."""
    words = _WORD.findall(text[:TEXT].casefold())
    for word in words:
        yield f"w {word}"
        edged = f" {word} "
        for size in (2, 3, 4):
            for start in range(len(edged) - size + 1):
                yield edged[start : start + size]
    for one, other in pairwise(words):
        yield f"p {one} {other}"
