"""The budget and its ledger: nothing is handed out that is not covered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evocluster.errors import ConfigError
from evocluster.records import Lost, Usage
from evocluster.search.budget import GENERATIONS, Budget, Ledger


def test_a_budget_without_an_end_gets_one() -> None:
    assert Budget.model_validate({}).generations == GENERATIONS
    assert Budget.model_validate({"target": 0.9}).generations == GENERATIONS
    assert Budget().generations == GENERATIONS
    for end in ({"calls": 5}, {"usd": 0.1}, {"minutes": 2.0}):
        assert Budget.model_validate(end).generations is None
    for budget in (Budget(), Budget(calls=5), Budget(usd=1.0, stall=3)):
        assert Budget.model_validate(budget.model_dump()) == budget


@pytest.mark.parametrize("wrong", [{"calls": 0}, {"usd": 0}, {"minutes": -1}, {"generations": 0}, {"call": 5}])
def test_wrong_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(wrong)


asked = st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1), st.booleans()), max_size=40)


@settings(max_examples=80, deadline=None)
@given(asked, st.integers(1, 60))
def test_calls_never_pass_the_limit(proposals: list[tuple[int, float, bool]], limit: int) -> None:
    ledger, out = Ledger(Budget(calls=limit)), list[tuple[int, int]]()
    for number, (calls, share, settle_one) in enumerate(proposals):
        if ledger.lacks(calls, 0.0) is None:
            ledger.reserve(number, calls, 0.0)
            out.append((number, int(calls * share)))
        if settle_one and out:
            number, used = out.pop(0)
            ledger.settle(number, Usage(calls=used), used)
        assert ledger.spent.calls <= ledger.calls <= limit


def test_dollars_are_reckoned_and_end_at_the_limit() -> None:
    ledger = Ledger(Budget(usd=1.0))
    assert ledger.lacks(10**9, 0.9) is None
    ledger.reserve(0, 5, 0.9)
    assert ledger.lacks(1, 0.2) == "usd"
    ledger.settle(0, Usage(calls=5, usd=0.5), 5)
    assert ledger.lacks(1, 0.2) is None
    assert ledger.mean_usd == ledger.dearest_usd == pytest.approx(0.1)
    ledger.settle(1, Usage(usd=0.6), 2)
    assert ledger.lacks(1, 0.0) == "usd"


@settings(max_examples=80, deadline=None)
@given(asked, st.floats(0.01, 0.2))
def test_with_all_second_requests_the_dollars_are_within_the_limit(
    proposals: list[tuple[int, float, bool]], twice: float
) -> None:
    ledger = Ledger(Budget(usd=20.0), twice)
    for number, (usd, share, _) in enumerate(proposals):
        if ledger.lacks(0, float(usd)) is None:
            ledger.reserve(number, 0, float(usd))
            ledger.settle(number, Usage(usd=usd * share), 1)
        assert ledger.spent.usd * (1 + twice) <= 20.0 + 1e-9
    assert ledger.lacks(0, 20.0) == "usd", "not all of it is for the answers"


@settings(max_examples=150, deadline=None)
@given(st.integers(50, 300), st.floats(0, 0.5), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_what_failed_requests_were_charged_is_spent_too(limit: int, failing: float, in_flight: int, seed: int) -> None:
    """Calls of one answer each; some of their requests fail, are charged for, and sent again."""
    rng = np.random.default_rng(seed)
    ledger, out, billed, number = Ledger(Budget(calls=limit, usd=limit * 0.01)), list[int](), 0, 0
    while True:
        while len(out) < in_flight and ledger.lacks(1, 0.01) is None:
            ledger.reserve(number, 1, 0.01)
            out.append(number)
            number += 1
        if not out:
            break
        again = min(4, int(rng.geometric(1 - failing)) - 1)
        ledger.settle(out.pop(0), Usage(calls=1, usd=0.01), 1, Lost(again, again * 0.01))
        billed += 1 + again
    assert limit * 0.6 - in_flight <= billed <= limit + 4 * in_flight
    assert ledger.lacks(1, 0.01) in ("calls", "usd")


def test_as_much_is_kept_back_for_what_is_to_come_as_was_lost_so_far() -> None:
    ledger = Ledger(Budget(calls=100))
    ledger.reserve(0, 10, 0.0)
    ledger.settle(0, Usage(calls=30), 30, Lost(10, 0.0))
    assert ledger.lacks(44, 0.0) is None, "30 and 10 lost, 44 and 9 that may be, 7 by bad luck"
    assert ledger.lacks(45, 0.0) == ledger.lacks(61, 0.0, over=0) == ledger.lacks(66, 0.0, over=5) == "calls"
    assert ledger.lacks(60, 0.0, over=0) is ledger.lacks(65, 0.0, over=5) is None


def test_a_lost_request_is_reckoned_at_little_more_than_an_answer() -> None:
    ledger = Ledger(Budget(usd=1.0))
    ledger.settle(0, Usage(calls=80, usd=0.08), 80, Lost(20, 2.0))
    assert ledger.lacks(500, 0.6) is None
    assert ledger.lacks(500, 0.9) == "usd"


def test_too_small_a_budget_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"calls=10 is too small: at least 50 .* 40 of"):
        Ledger(Budget(calls=10)).refuse_if_too_small(50, 40)
    Ledger(Budget(usd=1.0)).refuse_if_too_small(50, 40)
