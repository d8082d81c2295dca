"""One deployment in one process of the gateway: what is done for it once a second, off the path of requests.

Counts are exchanged with other replicas, feedback finds the request that it is about, what is in the shadow is read
from the ledger, a new classifier of intents is taken. Feedback that is a verdict on an answer is heard by the breaker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evocluster.errors import EvoclusterError
from evocluster.online.feedback import Feedback, Received, reward
from evocluster.online.guard import Guard, Trial
from evocluster.online.intents import Classifier, Intents
from evocluster.online.ledger import Ledger, Row
from evocluster.online.outcomes import rewarding
from evocluster.online.recorder import Recorder
from evocluster.online.shadow import Candidate, Shadow, shadowed
from evocluster.online.state import Follower, ServingState
from evocluster.records import Json
from evocluster.release.settings import Online
from evocluster.telemetry import log


class Heard:
    """Feedback as the web server takes it: kept, and the breaker hears of it. `accept` is called in threads."""

    def __init__(
        self,
        feedback: Feedback,
        ledger: Ledger,
        settings: Online,
        guard: Guard,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.feedback = feedback
        self._ledger = ledger
        self._settings = settings
        self._guard = guard
        self._loop = loop

    def owns(self, body: Json) -> bool:
        """See Feedback.owns."""
        return self.feedback.owns(body)

    def accept(self, body: Json, now: float, who: str = "") -> Received:
        """See Feedback.accept."""
        received = self.feedback.accept(body, now, who)
        if received.payload.get("status") == "accepted":
            try:
                self._judge(str(received.payload["feedback_id"]), now)
            except EvoclusterError as failure:  # it is kept: the controller judges by it too
                log.warning("the breaker did not hear of feedback: %s", failure)
        return received

    def settle(self, now: float) -> None:
        """See Feedback.settle; what came before its request's record is heard of then. Raises: StoreError."""
        waited = self._ledger.find("feedback", {"deployment": self.feedback.deployment, "state": "pending"})
        if self.feedback.settle(now):
            for row in waited:
                self._judge(row["feedback_id"], now)

    def _judge(self, id: str, now: float) -> None:
        row = self._ledger.first("feedback", {"feedback_id": id})
        if row is None or row["state"] != "accepted" or not row["request_id"]:
            return
        if row["metric"] not in rewarding(self._settings):
            return
        worth = reward(row["metric"], row["value"], self._settings)
        record = self._ledger.first("exchanges", {"request_id": row["request_id"]})
        if worth is None or record is None or record["is_shadow"]:
            return
        failed = worth < self._settings.judge.passes
        if self._known(row, failed):
            return
        self._loop.call_soon_threadsafe(lambda: self._guard.judged(record["snapshot_id"], failed, now))

    def _known(self, row: Row, failed: bool) -> bool:
        """The request was judged so before: several metrics that say the same of one answer are one piece of evidence.

        An answer that was right by one metric and then wrong by another counts as both.
        """
        where = {"deployment": row["deployment"], "request_id": row["request_id"], "state": "accepted"}
        found = self._ledger.find("feedback", {**where, "metric": ("in", rewarding(self._settings))})
        before = [one for one in found if _order(one) < _order(row)]
        worths = [reward(one["metric"], one["value"], self._settings) for one in before]
        said = {worth < self._settings.judge.passes for worth in worths if worth is not None}
        return True in said or failed in said


def _order(row: Row) -> tuple[float, str]:
    return row["received_at"], row["feedback_id"]


@dataclass
class Unit:
    """One deployment in this process."""

    name: str
    settings: Online
    ledger: Ledger
    follower: Follower
    recorder: Recorder
    feedback: Heard
    guard: Guard
    shadow: Shadow
    intents: Intents
    trained: Path | None
    """File of the classifier of intents."""
    paired: Candidate | None = None
    """What is in the shadow now."""
    trained_at: float = 0.0
    busy: Callable[[], float] = lambda: 0.0
    """Share of the gateway's places in use."""

    async def tick(self, now: float) -> None:
        """What is done once a second. A ledger that is away is tried again at the next one."""
        await self.guard.sync()
        try:
            self._retrained()
        except (EvoclusterError, OSError) as failure:
            log.warning("%s: the classifier of intents stays as it is: %s", self.name, failure)
        try:
            self.paired = await asyncio.to_thread(shadowed, self.ledger, self.name)
            await asyncio.to_thread(self.feedback.settle, now)
        except EvoclusterError as failure:
            log.warning("%s: the ledger is away: %s", self.name, failure)

    def _retrained(self) -> None:
        """Take a new classifier of intents, where the daemon trained one."""
        try:
            at = self.trained.stat().st_mtime if self.trained is not None else 0.0
        except OSError:
            return
        if self.trained is not None and at > self.trained_at:
            self.trained_at = at  # one that cannot be read is told of once
            self.intents = Intents(self.settings.intent, Classifier.load(self.trained.read_bytes()))

    def health(self) -> dict[str, Any]:
        """What an operator asks of it, besides its state."""
        return {
            "deployment": self.name,
            "recorder": {"waiting": self.recorder.waiting, **self.recorder.counters},
            "shadow": dict(self.shadow.counts),
            "breaker": self.guard.provider.reason if self.guard.provider else "",
        }


def on_trial(state: ServingState) -> Trial:
    """What the breaker watches: the challenger of the incumbent, or a new incumbent against what served before."""
    if state.stage == "live":
        challengers = [arm for arm in state.arms if arm != state.incumbent]
        return Trial(challengers[0] if challengers else "", state.incumbent)
    before = state.holdout or state.stable
    if state.stage == "watch" and before != state.incumbent:  # watched for long enough, and nothing held out: it stays
        return Trial(state.incumbent, before)
    return Trial("", state.incumbent)
