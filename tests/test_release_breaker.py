"""The breaker's laws: what it counts, when it opens, when it must not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.release.breaker import Bucket, Channel, Counts, Window, judge, surpasses
from evocluster.release.settings import Breaker

SETTINGS = Breaker()
HISTORY = Counts(total=5000, hard=250, slow=100, judged=1000, failed=80)
CONTROL = Counts(total=400, hard=20, slow=8, judged=100, failed=8)
NOON = 1_700_000_040.0


def counts(channel: Channel, n: int, failures: int) -> Counts:
    if channel == "judged":
        return Counts(judged=n, failed=failures)
    return Counts(total=n, hard=failures) if channel == "hard" else Counts(total=n, slow=failures)


CHANNELS = st.sampled_from(("hard", "slow", "judged"))


@given(CHANNELS, st.integers(0, 300), st.integers(0, 300))
def test_more_failures_never_close_it(channel: Channel, n: int, failures: int) -> None:
    failures = min(n, failures)
    opened = judge(counts(channel, n, failures), CONTROL, HISTORY, SETTINGS).open
    if opened and failures < n:
        assert judge(counts(channel, n, failures + 1), CONTROL, HISTORY, SETTINGS).open


@given(st.integers(5, 100), st.integers(0, 200), st.floats(0.5, 50), st.floats(1, 3000))
def test_probability_grows_with_failures_and_is_one(failures: int, rest: int, a: float, b: float) -> None:
    n = failures + rest
    fewer, more = (surpasses(n, each, a, b, 2.0, 0.005) for each in (failures - 1, failures))
    assert -1e-9 <= fewer <= more + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize(
    ("n", "failures", "a", "b"), [(20, 5, 100.5, 1900.5), (500, 40, 40.5, 2300.5), (30, 5, 1.5, 30.5)]
)
def test_probability_is_that_of_draws(n: int, failures: int, a: float, b: float) -> None:
    rng = np.random.default_rng(1)
    mean = a / (a + b)
    p = rng.beta(mean + failures, 1 - mean + n - failures, 400_000)
    q = np.maximum(rng.beta(a, b, 400_000), 0.005)
    assert surpasses(n, failures, a, b, 2.0, 0.005) == pytest.approx(float((p > 2 * q).mean()), abs=0.004)


@given(CHANNELS, st.integers(0, 19), st.integers(0, 19))
def test_fewer_than_twenty_never_open(channel: Channel, n: int, failures: int) -> None:
    assert not judge(counts(channel, n, min(n, failures)), CONTROL, HISTORY, SETTINGS).open


@given(CHANNELS, st.integers(20, 2000), st.integers(0, 4))
def test_fewer_than_five_failures_never_open(channel: Channel, n: int, failures: int) -> None:
    nothing = Counts(total=5000, judged=5000)
    assert not judge(counts(channel, n, failures), Counts(), nothing, SETTINGS).open


@given(CHANNELS, st.integers(0, 500), st.integers(0, 500))
def test_without_a_baseline_nothing_opens(channel: Channel, n: int, failures: int) -> None:
    assert not judge(counts(channel, n, min(n, failures)), Counts(), Counts(), SETTINGS).open


def test_missing_data_open_nothing() -> None:
    assert not judge(Counts(), CONTROL, HISTORY, SETTINGS).open
    unjudged = Counts(total=300, hard=15, slow=6)
    assert not judge(unjudged, CONTROL, HISTORY, SETTINGS).open


@pytest.mark.parametrize("channel", ["hard", "slow", "judged"])
def test_far_above_the_baseline_opens_with_evidence(channel: Channel) -> None:
    verdict = judge(counts(channel, 60, 30), CONTROL, HISTORY, SETTINGS)
    assert verdict.open
    assert (verdict.kind, verdict.channel) == ("rollback", channel)
    assert json.loads(verdict.model_dump_json())["evidence"]["candidate"] == [60, 30]
    assert verdict.evidence["probability"] >= 0.99


def test_twice_by_chance_does_not_open() -> None:
    assert not judge(Counts(total=50, hard=6), CONTROL, HISTORY, SETTINGS).open


def test_floor_of_the_baseline() -> None:
    clean = Counts(total=5000)
    assert not judge(Counts(total=600, hard=6), clean, clean, SETTINGS).open
    assert judge(Counts(total=600, hard=20), clean, clean, SETTINGS).open


def test_history_counts_for_at_most_its_mass() -> None:
    long = Counts(total=10**6, hard=10**4)
    short = Counts(total=2000, hard=20)
    candidate = Counts(total=100, hard=9)
    assert judge(candidate, CONTROL, long, SETTINGS).evidence.get("probability") == judge(
        candidate, CONTROL, short, SETTINGS
    ).evidence.get("probability")


def test_provider_that_fails_is_no_rollback() -> None:
    verdict = judge(Counts(total=60, hard=40), Counts(total=240, hard=150), HISTORY, SETTINGS)
    assert not verdict.open
    assert verdict.kind == "provider"


def test_fast_path() -> None:
    fast = Counts(total=12, hard=10, recent=12, recent_hard=10)
    assert judge(fast, Counts(), Counts(), SETTINGS).open
    assert not judge(fast._replace(recent_hard=9), CONTROL, HISTORY, SETTINGS).open
    assert not judge(fast._replace(recent=10), CONTROL, HISTORY, SETTINGS).open
    beside = judge(fast, CONTROL._replace(recent=3, recent_hard=3), HISTORY, SETTINGS)
    assert (beside.open, beside.kind) == (False, "provider")
    assert judge(fast, CONTROL._replace(recent=3, recent_hard=2), HISTORY, SETTINGS).open


def test_window_slides_by_the_minute() -> None:
    window = Window("a", SETTINGS)
    for minute in range(120):
        window.add(NOON + 60 * minute, hard=minute < 60)
    seen = window.counts(window.span(NOON + 60 * 119))
    assert (seen.total, seen.hard) == (60, 0)
    assert (seen.recent, seen.recent_hard) == (12, 0)


def test_window_goes_back_to_twenty_requests_but_a_day_at_most() -> None:
    window = Window("a", SETTINGS)
    for minute in range(0, 1400, 20):
        window.add(NOON + 60 * minute)
    assert window.counts(window.span(NOON + 60 * 1400)).total == 20
    rare = Window("a", SETTINGS)
    for hour in range(48):
        rare.add(NOON + 3600 * 3 * hour, hard=True)
    assert rare.counts(rare.span(NOON + 3600 * 3 * 47)).total == 8


def test_channels_widen_by_themselves() -> None:
    window = Window("a", SETTINGS)
    for minute in range(300):
        window.add(NOON + 60 * minute)
        if minute % 10 == 0:
            window.judge(NOON + 60 * minute, failed=True)
    seen = window.counts(window.span(NOON + 60 * 299))
    assert (seen.total, seen.judged, seen.failed) == (60, 20, 20)


@given(st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.integers(0, 2)), max_size=80))
def test_replicas_together_are_one_window(events: list[tuple[int, bool, int]]) -> None:
    events = sorted(events)
    alone = Window("all", SETTINGS)
    replicas = [Window(name, SETTINGS) for name in "abc"]
    for minute, hard, replica in events:
        alone.add(NOON + 60 * minute, hard=hard)
        replicas[replica].add(NOON + 60 * minute, hard=hard)
    for _ in range(2):
        for other in replicas[1:]:
            replicas[0].merge(other.buckets(0))
    now = NOON + 60 * 90
    assert replicas[0].counts(replicas[0].span(now))[:5] == alone.counts(alone.span(now))[:5]


def test_own_minutes_are_not_overwritten() -> None:
    window = Window("a", SETTINGS)
    window.add(NOON)
    window.merge([Bucket("a", int(NOON // 60), total=99)])
    assert window.counts(window.span(NOON)).total == 1
