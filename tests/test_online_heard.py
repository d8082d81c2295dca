"""What a process of the gateway does beside requests: feedback is heard by the breaker, whenever its record comes."""

from __future__ import annotations

import asyncio
from typing import Any

from fake_ledger import FakeLedger

from evocluster.online.feedback import Feedback, sign
from evocluster.online.guard import Guard
from evocluster.online.scrub import Scrubber
from evocluster.online.unit import Heard
from evocluster.release.settings import Online

NOW = 1_800_000_000.0
SECRET = b"a secret of sixteen bytes and more"


class Listening(Guard):
    """A breaker that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def judged(self, snapshot: str, failed: bool, at: float) -> None:
        self.heard.append((snapshot, failed))


def record(ledger: FakeLedger, id: str, **known: Any) -> None:
    said = {"request_id": id, "episode_id": id, "deployment": "d", "at": NOW, "snapshot_id": "s", "is_shadow": False}
    ledger.put("exchanges", {**said, "user": "", **known})


def said(id: str, right: bool) -> dict[str, Any]:
    return {"feedback_id": f"f-{id}", "target": sign(id, SECRET), "metric": "correct", "value": right}


async def test_feedback_that_comes_before_its_record_is_heard_once_that_is_there() -> None:
    ledger, guard, settings = FakeLedger(), Listening(), Online()
    feedback = Feedback(ledger, settings, "d", SECRET, Scrubber(SECRET))
    heard = Heard(feedback, ledger, settings, guard, asyncio.get_running_loop())
    record(ledger, "early")
    assert heard.accept(said("early", False), NOW).payload["status"] == "accepted"
    assert heard.accept(said("late", False), NOW).payload["status"] == "pending"
    assert heard.accept(said("never", False), NOW).payload["status"] == "pending"
    await asyncio.sleep(0)
    assert guard.heard == [("s", True)]
    record(ledger, "late", snapshot_id="t")
    for moment in (1, 2):  # and once only
        await asyncio.to_thread(heard.settle, NOW + moment)
        await asyncio.sleep(0)
    assert guard.heard == [("s", True), ("t", True)]
