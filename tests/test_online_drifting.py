"""Drift as recorded traffic shows it: by intent and model, in the order of the answers, the same for everybody."""

from __future__ import annotations

from typing import Any

import numpy as np

from evocluster.online.drifting import drifting
from evocluster.release.settings import Online

NOW = 1_800_000_000.0


def row(number: int, right: bool | None, intent: str = "colour", model: str = "m", **more: Any) -> dict[str, Any]:
    said = (
        [] if right is None else [{"feedback_id": f"f{number}", "metric": "correct", "value": right, "source": "user"}]
    )
    for one in said:
        one |= {"observed_at": NOW + number, "supersedes": "", "state": "accepted"}
    return {
        "request_id": f"{intent}-{model}-{number:04}",
        "episode_id": f"{intent}-{model}-{number:04}",
        "at": NOW + number,
        "intent": intent,
        "model": model,
        "is_shadow": False,
        "error_class": "",
        "user": "",
        "signals": {},
        "input": "q",
        "output": "a",
        "feedback": said,
        **more,
    }


def stream(rights: list[bool], **more: Any) -> list[dict[str, Any]]:
    return [row(number, right, **more) for number, right in enumerate(rights)]


def test_a_healthy_stream_says_nothing() -> None:
    rng = np.random.default_rng(1)
    assert drifting(stream(list(rng.random(300) < 0.95)), Online()) == []


def test_a_stream_that_breaks_alarms_once_and_is_named() -> None:
    good = stream([True] * 100, intent="size")
    [told] = drifting([*good, *stream([True] * 100 + [False] * 40)], Online())
    assert (told["intent"], told["model"], told["state"]) == ("colour", "m", "alarm")
    assert NOW + 100 <= told["at"] < NOW + 140
    assert told["request"] == f"colour-m-{int(told['at'] - NOW):04}"
    assert told["reason"]


def test_what_recovered_after_a_warning_is_over() -> None:
    rights = [True] * 30 + [False, True, False, True, False, True, False] + [True] * 60
    settings = Online()
    assert [one["state"] for one in drifting(stream(rights[:37]), settings)] in ([], ["warn"])
    assert drifting(stream(rights), settings) == []


def test_answers_without_a_verdict_and_shadows_are_not_counted() -> None:
    unknown = [row(number, None) for number in range(200)]
    shadows = [row(number + 500, False, is_shadow=True) for number in range(200)]
    assert drifting([*unknown, *shadows], Online()) == []


def test_the_order_in_which_rows_come_does_not_matter() -> None:
    rows = stream([True] * 60 + [False] * 30) + stream([False] * 25, intent="size")
    mixed = [rows[at] for at in np.random.default_rng(2).permutation(len(rows))]
    key = lambda one: one["intent"]  # noqa: E731
    assert sorted(drifting(mixed, Online()), key=key) == sorted(drifting(rows, Online()), key=key)
