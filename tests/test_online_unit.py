"""One deployment in a process: what is on trial, and what feedback tells the breaker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_ledger import FakeLedger

from evocluster.online.feedback import Feedback, sign
from evocluster.online.guard import Trial
from evocluster.online.scrub import Scrubber
from evocluster.online.state import ServingState
from evocluster.online.unit import Heard, on_trial
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Online

SECRET, NOW = b"k" * 32, 1_800_000_000.0


def state(**said: Any) -> ServingState:
    known: dict[str, Any] = {
        "deployment": "d",
        "epoch": 1,
        "incumbent": "old",
        "arms": {},
        "eligible": (),
        "experiment": "",
        "stage": "",
        "holdout": "",
        "stable": "old",
        "secret": "",
        "answerers": {},
        "push": "",
    }
    return ServingState(**{**known, **said})


@pytest.mark.parametrize(
    ("said", "trial"),
    [
        ({}, Trial("", "old")),
        ({"stage": "live", "arms": {"old": 0.8, "new": 0.2}}, Trial("new", "old")),
        ({"stage": "live", "arms": {}}, Trial("", "old")),
        (
            {"stage": "watch", "incumbent": "new", "arms": {"new": 0.95, "old": 0.05}, "holdout": "old"},
            Trial("new", "old"),
        ),
        ({"stage": "watch", "incumbent": "new", "stable": "old"}, Trial("new", "old")),
        ({"stage": "watch", "incumbent": "new", "stable": "new"}, Trial("", "new")),
    ],
)
def test_what_is_on_trial(said: dict[str, Any], trial: Trial) -> None:
    assert on_trial(state(**said)) == trial


class Listening:
    """A guard that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def judged(self, snapshot: str, failed: bool, at: float) -> None:
        self.heard.append((snapshot, failed))


async def told(metric: str, value: Any, **record: Any) -> list[tuple[str, bool]]:
    ledger, guard = FakeLedger(), Listening()
    made = Exchange(request_id="r", episode_id="e", deployment="d", at=NOW, snapshot_id="s", **record)
    ledger.put("exchanges", made.model_dump(mode="json"))
    feedback = Feedback(ledger, Online(), "d", SECRET, Scrubber(SECRET))
    heard = Heard(feedback, ledger, Online(), guard, asyncio.get_running_loop())  # type: ignore[arg-type]
    body = {"feedback_id": "f", "target": sign("r", SECRET), "metric": metric, "value": value, "source": "user"}
    for _ in range(2):  # a duplicate is no second verdict
        await asyncio.to_thread(heard.accept, body, NOW)
    await asyncio.sleep(0)
    return guard.heard


@pytest.mark.parametrize(
    ("metric", "value", "heard"),
    [
        ("correct", True, [("s", False)]),
        ("correct", False, [("s", True)]),
        ("quality", 0.59, [("s", True)]),
        ("quality", 0.61, [("s", False)]),
        ("accepted", False, []),
        ("correction", "blue", []),
    ],
)
async def test_the_breaker_hears_what_the_bandit_is_rewarded_by(
    metric: str, value: Any, heard: list[tuple[str, bool]]
) -> None:
    assert await told(metric, value) == heard


async def test_verdicts_on_shadows_are_none_on_what_serves() -> None:
    assert await told("correct", False, is_shadow=True) == []


@pytest.mark.parametrize(
    ("verdicts", "heard"),
    [
        ([("correct", False), ("quality", 0.1)], [("s", True)]),
        ([("correct", True), ("quality", 0.9)], [("s", False)]),
        ([("correct", True), ("accepted", False), ("quality", 0.1)], [("s", False), ("s", True)]),
        ([("quality", 0.1), ("correct", True), ("correct", True)], [("s", True)]),
    ],
)
async def test_metrics_that_say_the_same_of_one_answer_are_one_piece_of_evidence(
    verdicts: list[tuple[str, Any]], heard: list[tuple[str, bool]]
) -> None:
    ledger, guard = FakeLedger(), Listening()
    feedback = Feedback(ledger, Online(), "d", SECRET, Scrubber(SECRET))
    listening = Heard(feedback, ledger, Online(), guard, asyncio.get_running_loop())  # type: ignore[arg-type]
    for id in ("r", "other"):
        made = Exchange(request_id=id, episode_id=f"e-{id}", deployment="d", at=NOW, snapshot_id="s")
        ledger.put("exchanges", made.model_dump(mode="json"))
        for number, (metric, value) in enumerate(verdicts):
            body = {"feedback_id": f"{id}{number}", "target": sign(id, SECRET), "metric": metric, "value": value}
            assert listening.accept(body, NOW + number).status_code == 202
    await asyncio.sleep(0)
    assert guard.heard == heard * 2
