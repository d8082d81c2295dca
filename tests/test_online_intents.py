"""Intents: from the caller, a rule, or the classifier, in this order; the classifier is the same however it is made."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest

from evocluster.errors import ConfigError, StoreError
from evocluster.online.intents import Classifier, Intents, train
from evocluster.release.settings import Intent, Rule

SETTINGS = Intent(classifier=True, least=20)
FORMS = {
    "weather": "will it {} in {} tomorrow",
    "music": "play some {} by {}",
    "table": "book a {} table at {}",
}
WORDS = ["rain", "snow", "jazz", "quiet", "rock", "big", "warm", "small", "loud", "new"]
PLACES = ["Paris", "Rome", "Queen", "Mario", "Oslo", "Abba", "Lima"]
LABELLED = [(form.format(a, b), name) for name, form in FORMS.items() for a in WORDS for b in PLACES[:5]]
UNSEEN = [(form.format(a, b), name) for name, form in FORMS.items() for a in WORDS for b in PLACES[5:]]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train(LABELLED, SETTINGS)


def test_the_caller_says_it_first_then_rules_then_the_classifier(classifier: Classifier) -> None:
    settings = Intent(
        classifier=True, rules=(Rule(intent="bill", pattern=r"(?i)\binvoice"), Rule(intent="any", pattern="zz+"))
    )
    intents = Intents(settings, classifier)
    assert intents.of("my Invoice", "own") == "own"
    assert intents.of("my Invoice zzz") == "bill"
    assert intents.of({"question": "zzz"}) == "any"
    assert intents.of("will it rain in Lima tomorrow") == "weather"
    assert intents.of("¿?") == ""
    assert Intents(settings, None).of("will it rain") == ""
    assert Intents(Intent(), classifier).of("will it rain") == ""


def test_below_the_confidence_it_is_unknown(classifier: Classifier) -> None:
    question = "will it play a table"
    confidence = classifier.predict(question).confidence
    assert 1 / 3 <= confidence < 1
    bold, shy = confidence - 0.01, min(confidence + 0.01, 1.0)
    told = [Intents(Intent(classifier=True, confidence=one), classifier).of(question) for one in (bold, shy)]
    assert told[0] in FORMS
    assert told[1] == ""


def test_a_rule_that_backtracks_without_end_is_passed_over() -> None:
    rules = (Rule(intent="slow", pattern="(a|aa)+$"), Rule(intent="fine", pattern="b"))
    assert Intents(Intent(rules=rules)).of("a" * 60 + "b!") == "fine"


def test_a_rule_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("intent.rules, 'x': pattern '(' is not a regular expression")):
        Intents(Intent(rules=(Rule(intent="x", pattern="("),)))


def test_questions_not_seen_are_known(classifier: Classifier) -> None:
    assert [classifier.predict(text).intent for text, _ in UNSEEN] == [intent for _, intent in UNSEEN]
    assert classifier.predict("数").confidence == 0.0


def test_training_is_deterministic_and_order_does_not_matter(classifier: Classifier) -> None:
    assert train([*reversed(LABELLED), *LABELLED[:9]], SETTINGS).dump() == classifier.dump()


def test_its_saved_form_predicts_the_same_and_holds_no_pickle(classifier: Classifier) -> None:
    again = Classifier.load(classifier.dump())
    questions = [text for text, _ in [*LABELLED, *UNSEEN]] + ["", "something else 12", "ÄÖ"]
    assert [again.predict(text) for text in questions] == [classifier.predict(text) for text in questions]
    with np.load(io.BytesIO(classifier.dump()), allow_pickle=False) as arrays:
        assert {arrays[name].dtype.kind for name in arrays.files} == {"f", "u"}


def test_two_intents_are_enough() -> None:
    two = train([one for one in LABELLED if one[1] != "table"], SETTINGS)
    assert [two.predict(text).intent for text, name in UNSEEN if name != "table"] == [
        name for _, name in UNSEEN if name != "table"
    ]


def test_labels_that_contradict_each_other_make_it_less_sure(classifier: Classifier) -> None:
    rng = np.random.default_rng(5)
    noisy = [
        (f"{FORMS[name].format(a, b)} number {place}", name if rng.random() < 0.7 else rng.choice(list(FORMS)))
        for place in range(2)
        for name in FORMS
        for a in WORDS
        for b in PLACES
    ]
    made = train([(text, str(name)) for text, name in noisy], SETTINGS)
    clean, unsure = ([one.predict(text).confidence for text, _ in UNSEEN] for one in (classifier, made))
    assert sum(clean) / len(UNSEEN) > 0.9
    assert sum(unsure) / len(UNSEEN) < 0.8


@pytest.mark.parametrize(
    ("labelled", "said"),
    [
        (LABELLED[:10], "10 different questions of 1 intents"),
        (LABELLED[:50], "of 1 intents"),
        ([("same", "a"), ("same", "a")] * 50, "0 different questions"),
        ([*LABELLED[:50], ("once", "rare")], "of 1 intents"),
        ([], "0 different questions"),
    ],
)
def test_too_few_questions_are_refused(labelled: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train(labelled, SETTINGS)
    assert "intent.least = 20" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10, -10])
def test_a_damaged_one_is_refused(classifier: Classifier, cut: int) -> None:
    with pytest.raises(StoreError, match="train it again"):
        Classifier.load(classifier.dump()[:cut])


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        Classifier(["a", "b"], ["x"], [1.0], [[1.0, math.nan]], [0.0, 0.0], 1.0)
