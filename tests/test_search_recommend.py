"""The recommended member: the small grammar and the choice."""

from __future__ import annotations

import pytest

from evocluster.search.objectives import FOUR
from evocluster.search.recommend import choose, parse


def member(quality: float, cost: float, latency: float = 100.0, composite: float = 0.0) -> dict[str, float]:
    return {
        "quality": quality, "cost_usd": cost, "latency_ms": latency, "composite": composite, "robustness": quality,
    }  # fmt: skip


MEMBERS = [
    member(0.95, 0.010, 300, 0.40),
    member(0.85, 0.002, 200, 0.60),
    member(0.82, 0.001, 250, 0.55),
    member(0.40, 0.0001, 50, 0.30),
]


@pytest.mark.parametrize(
    ("rule", "index"),
    [
        ("composite", 1),
        ("knee", 1),
        ("cheapest where quality >= 0.8", 2),
        ("cheapest where quality>=0.84", 1),
        ("cheapest", 3),
        ("fastest where quality > 0.82 and cost < 0.005", 1),
        ("best quality where cost_usd <= 0.001", 2),
        ("best quality", 0),
    ],
)
def test_rules(rule: str, index: int) -> None:
    at, why = choose(MEMBERS, parse(rule), FOUR)
    assert at == index
    assert why


def test_a_bound_nobody_meets_chooses_the_nearest_and_says_so() -> None:
    at, why = choose(MEMBERS, parse("cheapest where quality >= 0.99"), FOUR)
    assert at == 0
    assert "no member meets quality >= 0.99 (it has 0.95)" in why


def test_ties_go_to_quality_then_cost() -> None:
    tied = [member(0.5, 0.01), member(0.7, 0.02), member(0.7, 0.01)]
    assert choose(tied, parse("composite"), FOUR)[0] == 2


def test_the_order_of_members_does_not_matter() -> None:
    for rule in ("composite", "knee", "cheapest where quality >= 0.8"):
        at, _ = choose(MEMBERS, parse(rule), FOUR)
        back, _ = choose(MEMBERS[::-1], parse(rule), FOUR)
        assert MEMBERS[at] == MEMBERS[::-1][back]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("", ["empty", "composite"]),
        ("cheapst where quality >= 0.8", ["'cheapst'", "did you mean 'cheapest'"]),
        ("cheapest where qualty >= 0.8", ["'qualty'", "did you mean 'quality'"]),
        ("cheapest where quality == 0.8", ["'=='", ">=", "did you mean '>=' (at least)?"]),
        ("cheapest where quality=0.8", ["'cheapest where quality=0.8'", "'=' is no comparison", "'>=' (at least)?"]),
        ("cheapest where quality => 0.8", ["'cheapest where quality => 0.8'", "'=>' is", "did you mean '>='?"]),
        ("best quality where cost=<1", ["'best quality where cost=<1'", "'=<' is", ">=, <=, >, <", "mean '<='?"]),
        ("cheapest where quality >= 0.8 and latency = 9", ["'=' is no comparison", "did you mean '<=' (at most)?"]),
        ("cheapest where quality >= high", ["'high'", "0.8"]),
        ("cheapest with quality >= 0.8", ["where OBJECTIVE >= NUMBER", "'with quality >= 0.8'"]),
        ("cheapest where quality >= 0.8 and", ["and OBJECTIVE"]),
        ("best", ["best"]),
        ("composite please", ["composite please"]),
    ],
)
def test_errors_name_the_word_and_what_is_allowed(rule: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        parse(rule)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_own_objectives_are_named_like_any_other() -> None:
    rule = parse("best wit where cost >= 2 and latency <= 5", ("wit", "cost"))
    assert rule.names == ("wit", "cost", "latency_ms")
    with pytest.raises(ValueError, match=r"'wits' is no objective; allowed: wit, quality.*did you mean 'wit'"):
        parse("best wits", ("wit",))
    assert parse("best anything", None).best == "anything"


def test_nobody_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no member"):
        choose([], parse("composite"))
