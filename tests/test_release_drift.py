"""The drift rule's laws: warnings, alarms, direction, and a state that survives restarts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.release.drift import REMEMBERED, Reading, Stream, recent
from evocluster.release.settings import Drift

SETTINGS = Drift()


def levels(stream: Stream, answers: list[bool]) -> list[Reading]:
    return [stream.observe(answer, float(at)) for at, answer in enumerate(answers)]


def draws(seed: int, *parts: tuple[float, int]) -> list[bool]:
    rng = np.random.default_rng(seed)
    return [bool(each) for p, count in parts for each in rng.random(count) < p]


@given(st.integers(0, 1000), st.integers(0, 300), st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_state_goes_on_after_a_restart(seed: int, at: int, before: float, after: float) -> None:
    answers = draws(seed, (before, 150), (after, 150))
    through = Stream(SETTINGS)
    first = levels(through, answers[:at])
    again = Stream(SETTINGS, json.loads(json.dumps(through.state)))
    assert levels(again, answers[at:]) == levels(through, answers[at:])
    assert again.state == through.state
    assert len(first) == at


def test_state_stays_small_and_goes_on_across_its_trims() -> None:
    answers = draws(3, (0.95, 2 * REMEMBERED + 300))
    through = Stream(SETTINGS)
    levels(through, answers)
    assert len(json.dumps(through.state)) < 2 * REMEMBERED + 300
    again = Stream(SETTINGS, through.state)
    more = draws(4, (0.95, 200), (0.6, 100))
    assert levels(again, more) == levels(through, more)


def test_below_eighty_percent_over_twenty_only_warns() -> None:
    reading = recent("1" * 15 + "0" * 5, SETTINGS)
    assert (reading.level, reading.by) == ("warn", "recent")
    assert recent("1" * 16 + "0" * 4, SETTINGS).level == ""
    assert recent("0" * 19, SETTINGS).level == ""


@given(st.integers(0, 100))
def test_alarm_grows_with_wrong_answers(right: int) -> None:
    order = ("", "warn", "alarm")
    fewer, more = ("0" * (100 - each) + "1" * each for each in (right, min(100, right + 1)))
    assert order.index(recent(fewer, SETTINGS).level) >= order.index(recent(more, SETTINGS).level)


def test_sure_of_less_than_eighty_percent_alarms_with_evidence() -> None:
    reading = recent("01" * 10, SETTINGS)
    assert (reading.level, reading.by) == ("alarm", "posterior")
    assert reading.evidence["probability"] >= 0.999
    assert recent("1" * 11 + "0" * 9, SETTINGS).level == "warn"


@pytest.mark.parametrize("seed", range(5))
def test_fall_is_found_soon_and_an_alarm_is_not_repeated_at_once(seed: int) -> None:
    stream = Stream(SETTINGS)
    healthy = levels(stream, draws(seed, (0.92, 500)))
    assert [reading for reading in healthy if reading.level == "alarm"] == []
    fallen = [reading.level for reading in levels(stream, draws(seed + 100, (0.55, 120)))]
    assert "alarm" in fallen
    first = fallen.index("alarm")
    assert first < 100
    assert fallen[first + 1] != "alarm"


def test_rise_is_no_alarm_but_a_new_baseline() -> None:
    stream = Stream(SETTINGS)
    readings = levels(stream, draws(1, (0.85, 400), (1.0, 300)))
    assert [reading for reading in readings if reading.level == "alarm"] == []
    assert stream.state["baseline"] == pytest.approx(0.85, abs=0.05)
    assert len(stream.state["remembered"]) < 700


def test_fall_above_eighty_percent_is_seen_by_adwin_alone() -> None:
    stream = Stream(SETTINGS)
    readings = levels(stream, draws(2, (0.99, 600), (0.84, 400)))
    alarms = [reading for reading in readings if reading.level == "alarm"]
    assert alarms[0].by == "adwin"
    assert alarms[0].evidence["after"] < alarms[0].evidence["before"]


def test_many_streams_share_the_delta() -> None:
    def alarmed(streams: int) -> int:
        stream = Stream(SETTINGS)
        answers = draws(2, (0.99, 600), (0.84, 600))
        found = [stream.observe(each, 0.0, streams).level for each in answers]
        return found.index("alarm") if "alarm" in found else len(found)

    assert alarmed(1) < alarmed(10_000)
    with pytest.raises(ValueError, match="streams 0"):
        Stream(SETTINGS).observe(True, 0.0, 0)
