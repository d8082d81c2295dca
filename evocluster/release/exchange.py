"""One live request as it is recorded: facts only, nothing of whom it was asked by but what was kept after redaction."""

from __future__ import annotations

from typing import Literal

from evocluster.records import FrozenDict, FrozenMap, Record

ErrorClass = Literal["", "provider", "client", "timeout", "format", "refusal", "judge"]
"""Empty: there was no error. provider: the endpoint failed; client: the request was wrong, or its caller went away;
timeout: no answer in time; format: the answer did not parse; refusal: the model would not; judge: judging failed."""
HARD = ("provider", "timeout", "format")
"""Errors that count against an arm: the caller got no answer to use."""


class Exchange(Record):
    """One request and what became of it. Bodies are kept apart: they go sooner."""

    request_id: str
    episode_id: str
    deployment: str
    at: float
    """When it came: seconds since 1970."""
    tenant: str = ""
    intent: str = ""
    model: str = ""
    """That answered."""
    arm: str = ""
    """Snapshot that the episode was given to."""
    snapshot_id: str = ""
    """Snapshot that answered; another one than `arm` where that was rolled back meanwhile."""
    epoch: int = 0
    experiment: str = ""
    propensity: float = 1.0
    """Probability with which this arm was picked."""
    eligible_arms: tuple[str, ...] = ()
    is_shadow: bool = False
    pair_id: str = ""
    """The same for a request and its shadow; empty: it has none."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    cost_usd: float = 0.0
    latency_ms: float = 0.0
    ttft_ms: float = 0.0
    """Until the first byte of the answer was sent."""
    finish_reason: str = ""
    error_class: ErrorClass = ""
    error: str = ""
    """Redacted."""
    confidence: float | None = None
    escalated: bool = False
    repairs: int = 0
    schema_ok: bool = True
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Ids of the memory's notes that the question was asked with."""
    signals: FrozenMap = FrozenDict()
    """What the caller said with the request: accepted, retried, corrected, tool_success."""
    redaction_version: str = ""
    user: str = ""
    """Keyed hash of the caller's `user`, by which everything of theirs can be deleted; empty: none was said."""
