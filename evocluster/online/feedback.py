"""What callers say of answers: taken once, whatever order and however often it comes.

    received = Feedback(ledger, settings, deployment, secret, scrubber).accept(body, now)     POST /v1/feedback
    feedback.settle(now)                  joins what came before its request's record, and lets go of it after a day

A target is signed where it is given out (`sign`): nobody votes on answers that he was not given. Text is scrubbed.
What counts is read by `verdicts`: rows are only added, and of all that was said of one (target, metric, source) the
last that nothing supersedes counts, so the order in which they came does not matter.
"""

from __future__ import annotations

import hmac
import math
import threading
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

from evocluster.errors import StoreError
from evocluster.online.ledger import Ledger, Row
from evocluster.online.scrub import Scrubber
from evocluster.records import Json
from evocluster.release.settings import Metric, Online
from evocluster.telemetry import log

Source = Literal["user", "judge", "code", "human"]
SOURCES: tuple[str, ...] = get_args(Source)
PENDING_S = 86_400.0
"""Seconds that feedback on an unknown target is kept."""
HOUR_S = 3600.0
AHEAD_S = 300.0
"""Seconds that a caller's clock may be ahead."""
LONGEST = 128
"""Characters of an id."""
TEXT = 20_000
"""Characters of a text."""
SIGNATURE = 24
"""Hex digits."""
FIELDS = ("feedback_id", "target", "metric", "value", "source", "observed_at", "supersedes", "dryrun")
Kind = Literal["request", "episode"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Received(NamedTuple):
    """What is answered."""

    status_code: int
    payload: dict[str, Json]


class _Refused(Exception):
    """(status code, why)."""


def sign(id: str, secret: bytes, kind: Kind = "request") -> str:
    """The token of a request, or of an episode: `id.` and a signature; who has it may say what the answer was worth."""
    return f"{id}.{_signature(id, secret, kind)}"


def signed(token: str, secret: bytes) -> tuple[Kind, str] | None:
    """(kind, id) of a token that `sign` made with this secret, None for any other text."""
    id, _, said = token.rpartition(".")
    found = [
        kind
        for kind in KINDS
        if hmac.compare_digest(said.encode(errors="replace"), _signature(id, secret, kind).encode())
    ]
    return (found[0], id) if id and found else None


def _signature(id: str, secret: bytes, kind: str) -> str:
    # Not hmac.digest: it lets go of the interpreter's lock, and the request waits until a thread gives it back.
    return hmac.new(secret, f"feedback {kind}\0{id}".encode(errors="replace"), "sha256").hexdigest()[:SIGNATURE]


def reward(metric: str, value: Json, settings: Online) -> float | None:
    """What a value is worth, 0 to 1, by direction and range; None for texts and for what is no value of the metric."""
    known = settings.metrics.get(metric)
    if known is None or _unfit(known, value) is not None or known.type == "text":
        return None
    share = float(value) if known.type == "bool" else (value - known.low) / (known.high - known.low)
    return 1.0 - share if known.direction == "down" else share


def _unfit(metric: Metric, value: Json) -> str | None:
    """What a value of this metric must be, where it is not."""
    if metric.type == "bool":
        return None if isinstance(value, bool) else "true or false"
    if metric.type == "text":
        fits = isinstance(value, str) and 0 < len(value) <= TEXT
        return None if fits else f"a text of 1 to {TEXT} characters"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if number and metric.low <= value <= metric.high else f"a number from {metric.low:g} to {metric.high:g}"


class Feedback:
    """Takes feedback on one deployment; safe to be called by several threads, and to be one of several replicas."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Online,
        deployment: str,
        secret: bytes,
        scrubber: Scrubber,
        *,
        signing: bool = True,
        per_hour: int = 600,
    ) -> None:
        """`secret`: targets are signed with it; `signing`: refuse others; `per_hour`: of one user, in this process."""
        self.settings, self.deployment, self.signing, self.per_hour = settings, deployment, signing, per_hour
        self._ledger, self._secret, self._scrubber = ledger, secret, scrubber
        self._said: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def accept(self, body: Json, now: float, who: str = "") -> Received:
        """Take one: 202 accepted, duplicate, superseded, pending or dryrun; 403, 409, 422, 429, 503. Never raises.

        `who`: whose quota it counts against where the record of the target names no user, e.g. the tenant.
        """
        try:
            row, dryrun = self._checked(body, now)
            return self._taken(row, dryrun, now, who)
        except _Refused as refused:
            code, why = refused.args
            return Received(code, {"error": {"message": why, "type": "invalid_request_error", "code": code}})
        except StoreError as error:
            log.warning("feedback was not taken: %s", error)
            why = "the database is away; send it again with the same feedback_id"
            return Received(503, {"error": {"message": why, "type": "server_error", "code": 503}})

    def owns(self, body: Json) -> bool:
        """The target is signed with this deployment's secret: how a gateway of several tells whose feedback it is."""
        try:
            return isinstance(body, Mapping) and self._target(body.get("target"))[2]
        except _Refused:
            return False

    def settle(self, now: float) -> int:
        """Join what waited for its request's record, drop what has waited for a day; how many were joined.

        Raises: StoreError.
        """
        joined = 0
        for row in self._ledger.find("feedback", {"deployment": self.deployment, "state": "pending"}):
            key = {"feedback_id": row["feedback_id"]}
            if self._record(row) is not None:
                joined += self._ledger.patch("feedback", key, state="accepted")
            elif now - row["received_at"] > PENDING_S:
                self._ledger.patch("feedback", key, state="expired")
        return joined

    def _checked(self, body: Json, now: float) -> tuple[Row, bool]:
        """The row of a body, and whether it is only a try. Raises: _Refused."""
        if not isinstance(body, Mapping):
            raise _Refused(422, f"a JSON object of {', '.join(FIELDS)} is wanted")
        if unknown := sorted(set(map(str, body)) - set(FIELDS)):
            raise _Refused(422, f"field {unknown[0]!r} is not known; allowed: {', '.join(FIELDS)}")
        kind, id, sure = self._target(body.get("target"))
        if self.signing and not sure:
            raise _Refused(403, "the target is not signed, or not by us: send the token that came with the answer")
        value = self._value(body)
        source = body.get("source", "user")
        if source not in SOURCES:
            raise _Refused(422, f"source {source!r} is not known; allowed: {', '.join(SOURCES)}")
        dryrun = body.get("dryrun", False)
        if not isinstance(dryrun, bool):
            raise _Refused(422, f"dryrun {dryrun!r}: true or false")
        row = {
            "feedback_id": _id(body.get("feedback_id"), "feedback_id"),
            "deployment": self.deployment,
            "request_id": id if kind == "request" else "",
            "episode_id": id if kind == "episode" else "",
            "metric": body["metric"],
            "value": value,
            "source": source,
            "observed_at": _moment(body.get("observed_at"), now),
            "received_at": now,
            "supersedes": _id(body["supersedes"], "supersedes") if body.get("supersedes") else "",
            "state": "accepted",
        }
        return row, dryrun

    def _target(self, target: Json) -> tuple[Kind, str, bool]:
        """(kind, id, whether it is signed by us). Raises: _Refused."""
        told = {"token": target} if isinstance(target, str) else target
        if not isinstance(told, Mapping) or len(told) != 1 or not set(told) <= {"token", "request_id", "episode_id"}:
            raise _Refused(422, f"target {target!r}: one of {{token}}, {{request_id}}, {{episode_id}}, or a token")
        ((name, said),) = told.items()
        said = _id(said, f"target.{name}", LONGEST + 1 + SIGNATURE)
        known = signed(said, self._secret)
        if known is not None and name in ("token", f"{known[0]}_id"):
            return (*known, True)
        if name == "token":
            raise _Refused(403, "the target's token is not one of ours: send the one that came with the answer")
        return ("episode" if name == "episode_id" else "request"), _id(said, f"target.{name}"), False

    def _value(self, body: Mapping[str, Json]) -> Json:
        """The value, text of it scrubbed. Raises: _Refused."""
        name, value = body.get("metric"), body.get("value")
        metric = self.settings.metrics.get(name) if isinstance(name, str) else None
        if metric is None:
            raise _Refused(422, f"metric {name!r} is not known; allowed: {', '.join(self.settings.metrics)}")
        if (wanted := _unfit(metric, value)) is not None:
            said = f" {value!r}" if metric.type != "text" else ""
            raise _Refused(422, f"value{said} of metric {name!r}: {wanted}")
        if metric.type != "text":
            return value
        scrubbed = self._scrubber.scrub(None, str(value))
        if scrubbed.dropped:
            raise _Refused(422, f"the text of metric {name!r} could not be redacted and was not kept")
        return scrubbed.output

    def _taken(self, row: Row, dryrun: bool, now: float, who: str) -> Received:
        there = self._ledger.first("feedback", {"feedback_id": row["feedback_id"]})
        if there is not None:
            return self._again(there, row)
        record = self._record(row)
        row["state"] = "accepted" if record is not None else "pending"
        others = self._ledger.find("feedback", {**_slot(row), "deployment": self.deployment})
        before = self._ledger.first("feedback", {"feedback_id": row["supersedes"]}) if row["supersedes"] else None
        if before is not None and (_slot(before), before["deployment"]) != (_slot(row), self.deployment):
            raise _Refused(422, f"supersedes {row['supersedes']!r}: that is of another target, metric or source")
        if dryrun:
            return _answer(row, "dryrun")
        whose = (record or {}).get("user") or who or row["request_id"] or row["episode_id"]
        if not self._within(whose, now):
            raise _Refused(429, f"more than {self.per_hour} in an hour from one user; send it later")
        try:
            self._ledger.add("feedback", [row])
        except StoreError:
            there = self._ledger.first("feedback", {"feedback_id": row["feedback_id"]})
            with self._lock:
                self._said[whose].remove(now)
            if there is None:
                raise
            return self._again(there, row)  # somebody was faster
        standing = last([*others, row])
        late = row["state"] == "accepted" and standing["feedback_id"] != row["feedback_id"]
        return _answer(row, "superseded" if late else row["state"])

    def _again(self, there: Row, row: Row) -> Received:
        """The answer to an id that is there."""
        same = _slot(there) == _slot(row) and there["value"] == row["value"]
        if not same or there["deployment"] != self.deployment:
            raise _Refused(409, f"feedback_id {row['feedback_id']!r} was used for something else; choose a new one")
        return _answer(row, "duplicate")

    def _record(self, row: Row) -> Row | None:
        """The record of the target, one of an episode's."""
        column = "request_id" if row["request_id"] else "episode_id"
        return self._ledger.first("exchanges", {column: row[column], "deployment": self.deployment})

    def _within(self, who: str, now: float) -> bool:
        """One more is within this user's quota; it counts from now on."""
        with self._lock:
            if len(self._said) > 100_000:
                self._said = {one: times for one, times in self._said.items() if times and times[-1] > now - HOUR_S}
            times = self._said.setdefault(who, deque())
            while times and times[0] <= now - HOUR_S:
                times.popleft()
            if len(times) >= self.per_hour:
                return False
            times.append(now)
            return True


def _slot(row: Row) -> dict[str, Any]:
    """What is said: of which target, metric and source."""
    return {name: row[name] for name in ("request_id", "episode_id", "metric", "source")}


def last(rows: list[Row]) -> Row:
    """Of all that was said of one slot: the last that nothing supersedes, whatever order it came in."""
    gone = {row["supersedes"] for row in rows if row["supersedes"] != row["feedback_id"]}
    standing = [row for row in rows if row["feedback_id"] not in gone] or rows  # where they supersede in a circle
    return max(standing, key=lambda row: (row["observed_at"], row["feedback_id"]))


def _answer(row: Row, status: str) -> Received:
    return Received(202, {"feedback_id": row["feedback_id"], "status": status})


def _id(said: Json, name: str, longest: int = LONGEST) -> str:
    if not isinstance(said, str) or not 0 < len(said) <= longest or not said.isprintable():
        raise _Refused(422, f"{name} {said!r:.200}: a text of 1 to {longest} printable characters")
    return said


def _moment(said: Json, now: float) -> float:
    """Seconds since 1970; ISO 8601 with a time zone is understood too."""
    if said is None:
        return now
    try:
        if isinstance(said, str):
            parsed = datetime.fromisoformat(said)
            said = parsed.timestamp() if parsed.tzinfo else None
        fits = isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= now + AHEAD_S
    except (ValueError, OverflowError, OSError):
        fits = False
    if not fits:
        raise _Refused(422, "observed_at: seconds since 1970, or ISO 8601 with a time zone, and not in the future")
    return float(said)
