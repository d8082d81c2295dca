"""The simulation of the online rules: it ends in one line of JSON, and ours are wrong far less often than the naive."""

from __future__ import annotations

import json
import sys

import pytest
import sim_bandit
import sim_online

TINY = sim_online.Sizes(days=1, changes=2, candidates=4, streams=1, bandits=1)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    monkeypatch.setattr(sim_online, "SHORT", TINY)
    monkeypatch.setattr(sim_online, "RATES", (10.0, 50.0))
    monkeypatch.setattr(sim_bandit, "PER_HOUR", 20.0)
    monkeypatch.setattr(sys, "argv", ["sim_online.py", "--short", "--json", "--seed", "3", "--processes", "1"])
    assert sim_online.main() == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_last_line_tells_that_ours_are_wrong_less_often(figures: dict[str, object]) -> None:
    assert {
        "false_promotion",
        "false_trips_per_day",
        "pairs_to_promote_005",
        "requests_to_trip_5_to_20",
        "regret",
    } <= set(figures)
    trips, naive = figures["false_trips_per_day"], figures["false_trips_per_day_naive"]
    assert isinstance(trips, float)
    assert isinstance(naive, float)
    assert trips <= naive / 2
    assert figures["false_promotion"] == 0.0
    assert figures["false_drift_per_1000"] == 0.0
