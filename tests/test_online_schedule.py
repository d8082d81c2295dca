"""Schedules: due times in UTC, caught up once, each worked off by one daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from fake_ledger import FakeLedger
from hypothesis import example, given
from hypothesis import strategies as st

from evocluster.errors import ConfigError, LedgerConflict
from evocluster.online.schedule import Schedule, checked, latest, upcoming
from evocluster.release import settings

NIGHTLY = "0 3 * * *"
DAY = 86400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("expression", "now", "before", "after"),
    [
        (NIGHTLY, "2026-11-23T03:00:00", "2026-11-23T03:00:00", "2026-11-24T03:00:00"),
        (NIGHTLY, "2026-11-23T02:59:59.900", "2026-11-22T03:00:00", "2026-11-23T03:00:00"),
        (NIGHTLY, "2026-03-29T12:00:00", "2026-03-29T03:00:00", "2026-03-30T03:00:00"),
        ("*/5 * * * *", "2026-11-23T10:07:30", "2026-11-23T10:05:00", "2026-11-23T10:10:00"),
        ("0 4 */3 * *", "2026-11-30T00:00:00", "2026-11-28T04:00:00", "2026-12-01T04:00:00"),
    ],
)
def test_due_times_are_utc(expression: str, now: str, before: str, after: str) -> None:
    assert latest(expression, at(now)) == at(before)
    assert upcoming(expression, at(now)) == at(after)


@example("*/5 * * * *", 1893455999.9999998)
@given(
    st.sampled_from([NIGHTLY, "*/5 * * * *", "0 4 */3 * *", "30 0 * * 1", "15 14 1 * *"]),
    st.floats(at("2025-01-01T00:00"), at("2030-01-01T00:00")),
)
def test_latest_and_upcoming_enclose_now(expression: str, now: float) -> None:
    before, after = latest(expression, now), upcoming(expression, now)
    assert before <= now < after
    assert latest(expression, before) == before
    assert latest(expression, after - 1) == before


@pytest.mark.parametrize("wrong", ["", "daily", "61 * * * *", "* * * *", "* * * * * *", "@daily"])
def test_what_is_no_expression_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="cron expression"):
        checked(wrong)


def test_every_default_is_an_expression() -> None:
    for expression in settings.Schedule().model_dump().values():
        assert checked(expression) == expression


def test_missed_times_are_caught_up_once() -> None:
    schedule = Schedule(FakeLedger(), "one")
    now = at("2026-11-23T10:00")
    since = now - 30 * DAY
    assert schedule.claim("d", "analyze", NIGHTLY, since, now) == at("2026-11-23T03:00")
    schedule.finish("d", "analyze", at("2026-11-23T03:00"))
    assert schedule.claim("d", "analyze", NIGHTLY, since, now + 60) is None
    assert schedule.claim("d", "analyze", NIGHTLY, since, now + DAY) == at("2026-11-24T03:00")


def test_what_was_due_before_a_deployment_came_is_none_of_its() -> None:
    schedule = Schedule(FakeLedger(), "one")
    now = at("2026-11-23T10:00")
    assert schedule.claim("d", "analyze", NIGHTLY, now - 60, now) is None
    assert schedule.claim("d", "analyze", NIGHTLY, now - 60, now + DAY) is not None


def test_of_many_daemons_one_has_a_due_time() -> None:
    ledger, now = FakeLedger(), at("2026-11-23T10:00")
    daemons = [Schedule(ledger, f"daemon {number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda one: one.claim("d", "analyze", NIGHTLY, 0.0, now), daemons))
    assert len([claim for claim in claims if claim is not None]) == 1


def test_a_holder_that_died_is_followed_when_its_lease_ran_out() -> None:
    ledger, now = FakeLedger(), at("2026-11-23T10:00")
    one, two = Schedule(ledger, "one", 120), Schedule(ledger, "two", 120)
    due = one.claim("d", "analyze", NIGHTLY, 0.0, now)
    assert due is not None
    assert two.claim("d", "analyze", NIGHTLY, 0.0, now + 119) is None
    assert two.claim("d", "analyze", NIGHTLY, 0.0, now + 121) == due
    assert not one.renew("d", "analyze", due, now + 122)
    with pytest.raises(LedgerConflict):
        one.finish("d", "analyze", due)
    two.finish("d", "analyze", due)
    assert one.claim("d", "analyze", NIGHTLY, 0.0, now + 1000) is None


def test_a_lease_that_is_renewed_holds_and_a_job_is_never_done_twice_at_once() -> None:
    ledger, now = FakeLedger(), at("2026-11-23T10:05")
    one, two = Schedule(ledger, "one", 120), Schedule(ledger, "two", 120)
    due = one.claim("d", "promote", "*/5 * * * *", 0.0, now)
    assert due is not None
    assert one.renew("d", "promote", due, now + 250)
    assert two.claim("d", "promote", "*/5 * * * *", 0.0, now + 300) is None  # the next one, while this one runs
    assert two.claim("d", "analyze", NIGHTLY, 0.0, now + 300) is not None
    assert two.claim("e", "promote", "*/5 * * * *", 0.0, now + 300) is not None
    one.finish("d", "promote", due)
    assert not one.renew("d", "promote", due, now + 301)
    assert two.claim("d", "promote", "*/5 * * * *", 0.0, now + 301) == now + 300
