"""Records made without checking are the records that checking makes."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from evocluster.llm.client import Reply, usage
from evocluster.records import Evaluation, Item, Proposal, Trial, Usage, born

COUNTS, AMOUNTS = st.integers(0, 10**6), st.floats(0, 10**6)
USAGES = st.builds(
    Usage,
    calls=COUNTS,
    cached=COUNTS,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    usd=AMOUNTS,
    paid_usd=AMOUNTS,
    seconds=AMOUNTS,
)


@given(USAGES)
def test_it_equals_prints_copies_and_travels_like_one_that_was_checked(checked: Usage) -> None:
    made = born(Usage, dict(checked.__dict__))
    assert made == checked
    assert (repr(made), hash(made), made.model_dump_json()) == (repr(checked), hash(checked), checked.model_dump_json())
    assert pickle.loads(pickle.dumps(made)) == checked
    assert made.model_copy(update={"calls": 7}).calls == 7
    assert made == checked, "a copy shares nothing with it"


@given(USAGES, USAGES)
def test_a_sum_is_the_sum_of_every_field(one: Usage, other: Usage) -> None:
    fields = Usage.model_fields
    assert one + other == Usage(**{name: getattr(one, name) + getattr(other, name) for name in fields})


@given(USAGES, st.lists(st.tuples(USAGES, USAGES), max_size=4))
def test_the_calls_of_a_trial_are_those_of_all_that_it_took(own: Usage, others: list[tuple[Usage, Usage]]) -> None:
    item = Item(split="train", example="a")
    evaluations = tuple(Evaluation(item=item, usage=used, judging=judged) for used, judged in others)
    trial = Trial(proposal=Proposal(number=0, operator="evaluate"), evaluations=evaluations, usage=own)
    assert trial.calls == trial.total.calls == own.calls + sum(a.calls + b.calls for a, b in others)


def test_what_a_reply_adds_is_checked_or_not_the_same() -> None:
    reply = Reply(text="x", prompt_tokens=3, completion_tokens=2, usd=0.5, seconds=1.5)
    expected = Usage(calls=1, prompt_tokens=3, completion_tokens=2, usd=0.5, paid_usd=0.5, seconds=1.5)
    assert usage(reply) == expected
    assert usage(reply.model_copy(update={"cached": True})) == expected.model_copy(
        update={"cached": 1, "paid_usd": 0.0}
    )
