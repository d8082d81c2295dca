"""The forecast: the real optimizer and budget, played through with made-up answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import settings, small_config

from evocluster import build
from evocluster.engine import forecast as forecasts
from evocluster.engine.forecast import Forecast, forecast
from evocluster.errors import BudgetSpent, ConfigError
from evocluster.records import Usage

EACH = Usage(calls=1, prompt_tokens=10, completion_tokens=2, usd=0.001, seconds=0.6)


def played(folder: Path, **changes: Any) -> Forecast:
    plan = build.plan(small_config(folder, **changes))
    return forecast(plan.optimizer(), plan.space.sample, EACH, plan.at_once(), plan.config.budget.minutes)


def test_calls_end_the_search_and_are_not_passed(tmp_path: Path) -> None:
    found = played(tmp_path, budget={"calls": 300})
    assert found.ends_by == "calls"
    assert 100 <= found.calls <= 300  # twice the calls are set aside for the check, as cot with constrain takes two
    assert found.usd == pytest.approx(0.001 * found.calls)
    assert found.evaluations <= found.calls
    assert found.whole


def test_generations_and_what_the_check_takes(tmp_path: Path) -> None:
    few = played(tmp_path / "a", budget={"generations": 1})
    more = played(tmp_path / "b", budget={"generations": 6})
    assert (few.ends_by, more.ends_by) == ("generations", "generations")
    assert few.evaluations < more.evaluations
    # Start and three finalists on ten items of validation and up to as many of them on fifteen of test.
    assert 20 <= few.checking <= 4 * 10 + 4 * 15


def test_time_follows_from_how_much_is_under_way(tmp_path: Path) -> None:
    slow = played(tmp_path / "a", budget={"calls": 400}, engine={"runner": "local", "in_flight": 4})
    fast = played(tmp_path / "b", budget={"calls": 400}, engine={"runner": "local", "in_flight": 40})
    assert slow.minutes == pytest.approx(slow.evaluations * 0.6 / 4 / 60, rel=0.2)
    assert fast.minutes < slow.minutes / 3


def test_minutes_end_the_search(tmp_path: Path) -> None:
    found = played(tmp_path, budget={"minutes": 0.1})
    assert found.ends_by == "minutes"
    assert 0.1 <= found.minutes < 0.4


def test_a_play_that_takes_too_long_is_a_lower_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "PATIENCE_S", 0.0)
    assert not played(tmp_path, budget={"calls": 300}).whole


def test_the_forecast_of_calls_is_near_what_the_run_makes(tmp_path: Path) -> None:
    plan = build.plan(small_config(tmp_path))
    ahead = build.check(plan)["forecast"]
    calls = build.run(plan, tmp_path / "run").run["calls"]
    assert 0.5 < ahead["calls"] / calls < 2


def test_votes_that_are_a_range_are_reckoned_at_their_most(tmp_path: Path) -> None:
    for votes in ([1, 16], {"low": 1, "high": 16}):
        space = {**settings()["space"], "use_consensus": votes}
        with pytest.raises(ConfigError, match=r"budget.calls=400 is too small: at least 3328 are needed"):
            played(tmp_path, space=space, budget={"calls": 400})


def test_dollars_wait_for_a_first_price_and_say_what_is_missing(tmp_path: Path) -> None:
    dear = {"kind": "scripted", "default": "red", "price": {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}}
    config = small_config(tmp_path, models={"fake": dear}, budget={"usd": 1e-7})
    with pytest.raises(
        BudgetSpent, match=r"'usd' before it had a front; .*budget.usd is 1e-07, of which .* were spent"
    ):
        build.run(build.plan(config), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["commits"] == 1, "nothing else went out before the first had its price"
    assert build.check(build.plan(config))["forecast"]["checking"] == 0
