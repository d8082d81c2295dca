"""The keeper of limits: what it grants over all holders never passes them, and nobody who has work is left out."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.llm.health import PROBE_MAX_S, REACT_S, SPARE, Health, Seen
from evocluster.llm.quota import CREDIT_S, LEASE_S, Ask, Grant, Keeper, Terms, portions

STEP_S = 0.25


@dataclass
class Model:
    """A holder that keeps to the rules: it is granted leases and uses them as fast as it may."""

    name: str
    wants: int = 0
    slots: int | None = 0
    requests: int | None = 0
    tokens: int | None = 0
    heard_at: float = -math.inf
    ends: list[float] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self.ends)

    def ask(self, terms: Terms, size: int) -> Ask:
        """It offers what it will not pass until it is answered, and hands back what it has not used."""
        unused, unspent = self.requests or 0, self.tokens or 0
        self.requests = self.tokens = 0
        if self.slots is not None:
            self.slots = max(self.in_flight, min(self.slots, self.in_flight + self.wants))
        return Ask(
            terms=terms,
            offer=self.in_flight if self.slots is None else self.slots,
            in_flight=self.in_flight,
            need=self.in_flight + self.wants,
            requests=self.wants,
            tokens=self.wants * size,
            piece=size,
            unused=unused,
            unspent=unspent,
        )

    def hear(self, grant: Grant, now: float) -> None:
        self.heard_at = now
        self.slots, self.requests, self.tokens = grant.slots, grant.requests, grant.tokens

    def work(self, now: float, size: int, rng: np.random.Generator) -> int:
        """Start as many calls as it may; returns how many. Calls end with the lease at the latest: nobody could call
        back those of a holder that falls silent.
        """
        self.ends = [end for end in self.ends if end > now]
        left = self.heard_at + LEASE_S - now
        if left <= 0:
            return 0
        if now - self.heard_at > CREDIT_S:
            self.requests, self.tokens = (None if one is None else 0 for one in (self.requests, self.tokens))
        bounds = [self.wants]
        if self.slots is not None:
            bounds.append(max(0, self.slots - self.in_flight))
        if self.requests is not None:
            bounds.append(self.requests)
            self.requests -= min(bounds)
        if self.tokens is not None:
            bounds.append(self.tokens // size)
            self.tokens -= size * min(bounds)
        many = min(bounds)
        self.wants -= many
        self.ends += [now + float(rng.uniform(0.01, left)) for _ in range(many)]
        return many


@settings(deadline=None, max_examples=40)
@given(
    holders=st.integers(1, 6),
    concurrency=st.integers(0, 12),
    per_minute=st.sampled_from([0, 1, 7, 60, 240, 6000]),
    tokens=st.sampled_from([0, 6000, 120_000]),
    size=st.integers(1, 900),
    seed=st.integers(0, 9999),
)
def test_what_is_used_over_all_holders_never_passes_the_limits(
    holders: int, concurrency: int, per_minute: int, tokens: int, size: int, seed: int
) -> None:
    """Holders come, work, fall silent, die and jump in time; concurrency holds at every moment, rates in any minute."""
    rng = np.random.default_rng(seed)
    terms = Terms(concurrency, per_minute, tokens)
    keeper, now, serial = Keeper(), 100.0, holders
    models = [Model(f"h{number}") for number in range(holders)]
    sent: list[tuple[float, int]] = []
    for _ in range(300):
        now += float(rng.choice([0.01, STEP_S / holders, 0.7, 5.0], p=[0.3, 0.6, 0.09, 0.01]))
        index = int(rng.integers(holders))
        if rng.random() < 0.01:
            # Killed: its calls die with it, and another takes its place.
            models[index], serial = Model(f"h{serial}"), serial + 1
        model = models[index]
        if rng.random() < 0.5:
            model.wants = int(rng.integers(0, 30))
        if rng.random() < 0.9:
            ask = model.ask(terms, size)
            model.hear(keeper.renew(model.name, {"e": ask}, now)["e"], now)
        sent.append((now, sum(one.work(now, size, rng) for one in models)))
        if concurrency:
            assert sum(one.in_flight for one in models) <= concurrency
    for begin, (at, _) in enumerate(sent):
        many = sum(count for _, count in takewhile(lambda one, at=at: one[0] < at + 60, sent[begin:]))  # type: ignore[misc]
        if per_minute:
            assert many <= per_minute
        if tokens:
            assert many * size <= tokens


@pytest.mark.parametrize("holders", [1, 3])
@pytest.mark.parametrize("per_minute", [6, 60, 600, 6000])
def test_a_rate_is_used_nearly_whole_and_shared_fairly(holders: int, per_minute: int) -> None:
    keeper, terms, rng = Keeper(), Terms(requests_per_minute=per_minute), np.random.default_rng(1)
    models = [Model(f"h{number}") for number in range(holders)]
    did = [0] * holders
    # All ask at their own moment of the same quarter of a second, the last two nearly at once.
    phases = [0.0, 0.1, 0.11][:holders]
    for turn in range(2400):
        for index, model in enumerate(models):
            now = 10.0 + turn * STEP_S + phases[index]
            model.wants, model.ends = 5000, []
            model.hear(keeper.renew(model.name, {"e": model.ask(terms, 1)}, now)["e"], now)
            did[index] += model.work(now, 1, rng)
    assert 0.9 * 10 * per_minute <= sum(did) <= 10 * per_minute + per_minute / 60 + 1
    assert max(did) - min(did) <= 0.1 * max(did) + 1


def test_large_requests_get_their_tokens_beside_small_ones() -> None:
    keeper, terms, rng = Keeper(), Terms(tokens_per_minute=60_000), np.random.default_rng(1)
    large, small = Model("large"), Model("small")
    used = {"large": 0, "small": 0}
    for turn in range(1200):
        now = 10.0 + turn * STEP_S
        for model, size in ((small, 20), (large, 5000)):
            model.wants, model.ends = 1000 if model is small else 1, []
            model.hear(keeper.renew(model.name, {"e": model.ask(terms, size)}, now)["e"], now)
            used[model.name] += size * model.work(now, size, rng)
    assert used["large"] >= 0.3 * sum(used.values())
    assert used["small"] >= 0.3 * sum(used.values())
    assert 0.75 * 300_000 <= sum(used.values()) <= 305_000


def test_what_one_does_not_need_another_gets_and_fewer_slots_than_holders_go_round() -> None:
    keeper, terms = Keeper(), Terms(max_concurrency=10)

    def lease(name: str, need: int, in_flight: int, offer: int, now: float, of: Terms = terms) -> int:
        ask = Ask(terms=of, need=need, in_flight=in_flight, offer=offer)
        slots = keeper.renew(name, {"e": ask}, now)["e"].slots
        assert slots is not None
        return slots

    assert lease("a", 50, 0, 0, 0.0) == 10
    assert lease("b", 50, 0, 0, 0.1) == 0
    assert lease("a", 50, 10, 10, 0.2) == 5
    assert lease("b", 50, 0, 0, 0.3) == 0
    assert lease("a", 50, 5, 5, 0.4) == 5
    assert lease("b", 50, 0, 0, 0.5) == 5
    assert lease("b", 0, 0, 0, 0.6) <= 5
    assert lease("a", 50, 5, 5, 0.7) == 10
    # Not heard of any more: what it had is free, whatever it was doing.
    assert lease("b", 50, 0, 0, 0.7 + LEASE_S + 0.1) == 10

    one = Terms(max_concurrency=1)
    keeper = Keeper()
    turns = {"a": 0, "b": 0}
    for step in range(400):
        for name in turns:
            turns[name] += lease(name, 5, 0, 0, 100 + step * STEP_S, one)
    assert min(turns.values()) > 150


def test_the_stricter_of_two_runs_holds_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper()
    loose, strict = Terms(max_concurrency=100, tokens_per_minute=10), Terms(max_concurrency=4, requests_per_minute=60)
    with caplog.at_level(logging.WARNING, "evocluster"):
        assert keeper.renew("a", {"e": Ask(terms=loose, need=50)}, 0.0)["e"].slots == 100
        assert caplog.text == ""
        keeper.renew("b", {"e": Ask(terms=strict, need=50)}, 0.1)
        grant = keeper.renew("a", {"e": Ask(terms=loose, need=50, requests=5)}, 0.2)["e"]
    assert keeper.endpoints["e"].terms == Terms(4, 60, 10)
    assert grant.slots is not None
    assert grant.slots <= 4
    assert grant.requests is not None
    assert caplog.text.count("the stricter ones hold") == 1
    keeper.leave("b")
    assert keeper.renew("a", {"e": Ask(terms=loose, need=50)}, 0.3)["e"].slots == 100


@given(total=st.integers(0, 200), wants=st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_portions_are_max_min_fair(total: int, wants: list[int]) -> None:
    asked = {str(number): want for number, want in enumerate(wants)}
    dealt = portions(total, asked)
    assert sum(dealt.values()) == min(total, sum(wants))
    assert all(0 <= dealt[name] <= want for name, want in asked.items())
    # Who got less than it wants is at most the odd one behind anybody.
    short = [dealt[name] for name, want in asked.items() if dealt[name] < want]
    assert not short or max(dealt.values()) - min(short) <= 1


def test_one_cut_answers_for_all_complaints_of_a_moment_and_growth_is_a_step_a_round_trip() -> None:
    health = Health(True, 0.5, 0.0)
    health.hear(Seen(successes=50), 100, 200, 0.5)
    assert health.slots(0) is None
    for at in (1.0, 1.1, 1.5, 1.9):
        health.hear(Seen(successes=1, limited=2, streak=1), 98, 200, at)
    assert health.slots(0) == 70
    assert health.slots(50) == 50
    health.hear(Seen(successes=1, limited=1, streak=1), 70, 200, 1.0 + REACT_S)
    assert health.slots(0) in (48, 49)
    # A window of answers later it is a step wider, not more.
    health.hear(Seen(successes=49), 49, 200, 2.5)
    assert health.slots(0) in (50, 51, 52)
    health.hear(Seen(successes=52), 52, 10, 3.0)
    assert health.slots(0) in (50, 51, 52)
    assert Health(False, 0.5, 0.0).slots(0) is None


def test_the_circuit_lets_one_probe_out_at_a_time_and_closes_with_its_answer() -> None:
    health = Health(True, 0.5, 0.0)
    health.hear(Seen(successes=9), 40, 40, 1.0)
    assert not health.probe(1.0)
    health.hear(Seen(failed=40, streak=40), 0, 40, 2.0)
    assert health.open
    now, probes = 2.0, []
    while now < 62:
        now += 0.05
        if health.probe(now):
            probes.append(now)
            health.hear(Seen(failed=1, missed=1, streak=41), 0, 40, now + 0.01)
        assert health.retries(5, now) == 0
    assert 15 <= len(probes) <= 30
    assert max(later - at for at, later in pairwise(probes)) <= PROBE_MAX_S + 0.1
    # An answer to what was asked before the outage says nothing about now.
    health.hear(Seen(successes=1), 0, 40, now)
    assert health.open
    health.hear(Seen(successes=1, probed=1), 0, 40, now)
    assert not health.open
    assert health.slots(0) == 10
    assert health.retries(200, now) == 200


def test_failures_of_an_endpoint_that_never_answered_open_nothing() -> None:
    health = Health(True, 0.5, 0.0)
    health.hear(Seen(failed=500, streak=500), 0, 40, 9.0)
    assert not health.open
    assert health.retries(500, 9.0) == 500


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60), st.floats(0, 1))
def test_retries_are_at_most_their_share_of_the_answers_and_a_few(told: list[tuple[int, int]], share: float) -> None:
    health, now, given_out, answers, failed = Health(True, share, 0.0), 0.0, 0, 1, 0
    health.hear(Seen(successes=1), 5, 5, now)
    for good, bad in told:
        now += 0.25
        # Never so many in a row that the circuit opens; never so long without one that retries are free.
        health.hear(Seen(successes=good + 1, overloaded=bad + 1, streak=1), 5, 5, now)
        given_out += health.retries(bad + 1, now)
        answers += good + 1
        failed += bad + 1
    assert given_out <= min(failed, SPARE + 0.5 * now + share * answers)


def test_a_probe_is_let_out_only_where_the_endpoints_limit_has_a_place_for_it() -> None:
    keeper, terms = Keeper(), Terms(max_concurrency=2)

    def renew(in_flight: int, seen: Seen, now: float, name: str = "one") -> Grant:
        ask = Ask(terms=terms, offer=in_flight, in_flight=in_flight, need=4, seen=seen)
        return keeper.renew(name, {"endpoint": ask}, now)["endpoint"]

    renew(2, Seen(successes=1), 0.0)
    assert renew(2, Seen(failed=9, streak=9), 2.0).open
    assert not any(renew(2, Seen(), now).probes for now in (2.9, 3.1, 8.0))
    assert renew(1, Seen(), 9.0).probes == 1
    assert renew(0, Seen(), 11.5, "other").probes == 0, "the first has not said yet that its probe is over"
