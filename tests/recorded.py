"""Rows of recorded traffic for tests, as the ledger's tables joined give them."""

from __future__ import annotations

from typing import Any

from evocluster.release.exchange import Exchange

NOW = 1_800_000_000.0
HOUR = 3600.0


def said(metric: str, value: Any, source: str = "user", at: float = NOW, **more: Any) -> dict[str, Any]:
    """A row of feedback."""
    return {"feedback_id": f"{metric}-{value}-{source}-{at}", "metric": metric, "value": value, "source": source} | {
        "observed_at": at,
        "received_at": at,
        "supersedes": None,
        "state": "accepted",
        **more,
    }


def row(
    number: int, input: Any = None, output: str | None = "yes", *feedback: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """A row of traffic: an hour apart from the next one unless `at` says otherwise."""
    exchange = Exchange(
        request_id=f"r{number:04}",
        episode_id=more.pop("episode_id", f"e{number:04}"),
        deployment="desk",
        at=more.pop("at", NOW - HOUR + number),
        model=more.pop("model", "large"),
        **more,
    )
    return {
        **exchange.model_dump(mode="json"),
        "input": f"question number {number}" if input is None else input,
        "output": output,
        "feedback": list(feedback),
    }
