"""Findings: what is planted in traffic is found, with its evidence, and healthy traffic says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import HOUR, NOW, row, said

from evocluster.errors import Overloaded
from evocluster.llm.prices import Price
from evocluster.online.analysis import analyse
from evocluster.online.failures import repeated
from evocluster.online.finding import Finding, as_json, rate, severity, table, totals, wilson
from evocluster.online.gaps import gaps
from evocluster.online.slowness import slow, trend
from evocluster.online.thrift import cheaper, paired
from evocluster.online.weakness import weaknesses
from evocluster.records import Example
from evocluster.release.snapshot import Note

TOPICS = {
    "parcel": "parcel tracking courier delivery doorstep late van driver",
    "money": "refund invoice charge card payment bank statement double",
    "login": "password reset account locked email code browser screen",
    "warranty": "warranty broken hinge repair replacement serial receipt workshop",
}
FILLER = "please today again really hello kindly urgent just maybe still".split()  # noqa: SIM905


def question(topic: str, rng: np.random.Generator) -> str:
    words = [*rng.permutation(TOPICS[topic].split())[:4], *rng.permutation(FILLER)[:2]]
    return " ".join(map(str, rng.permutation(words)))


def traffic(count: int, seed: int, fails: dict[str, float], **more: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        topic = str(rng.choice(list(TOPICS)))
        wrong = rng.random() < fails.get(topic, fails.get("", 0.0))
        feedback = said("correct", not wrong)
        rows.append(row(number, question(topic, rng), "yes", feedback, intent="help", **more))
    return rows


# ---------------------------------------------------------------- intervals


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_narrows(of: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, of))
    low, high = wilson(hits, of)
    assert 0 <= low <= hits / of <= high <= 1
    wide = wilson(hits, of, 0.99)
    assert wide[0] <= low
    assert high <= wide[1]


def test_requests_of_one_episode_are_one_observation() -> None:
    apart = [row(n) for n in range(40)]
    together = [row(n, episode_id="e") for n in range(40)]
    hit = [n < 10 for n in range(40)]
    assert rate(apart, hit).low == pytest.approx(wilson(10, 40)[0])
    assert rate(together, hit).low == pytest.approx(wilson(0.25, 1)[0])
    assert severity(0.06) == "high"
    assert [severity(0.02), severity(0.001)] == ["medium", "low"]


def test_totals_are_those_of_the_rows() -> None:
    rows = traffic(50, 1, {"": 0.5}, cost_usd=0.5, latency_ms=100.0)
    (told,) = totals(rows)
    assert told["requests"] == told["judged"] == 50
    assert told["failed"] == sum(not each["feedback"][0]["value"] for each in rows)
    assert told["cost_usd"] == 25
    assert told["p95_ms"] == 100
    assert [each["intent"] for each in totals([*rows, row(99)])] == ["", "help"]


# ---------------------------------------------------------------- failures


def test_a_planted_cluster_is_found_and_named() -> None:
    rows = traffic(400, 3, {"warranty": 0.7, "": 0.05})
    found = repeated(rows)
    clusters = [each for each in found if each.key != "stream"]
    assert clusters
    planted = set(TOPICS["warranty"].split())
    for each in clusters:
        assert planted & set(each.evidence["terms"])
        assert each.evidence["rate"]["interval"][0] > each.evidence["rest"]["interval"][1]
        assert each.severity == "high"
        assert (each.intent, each.model) == ("help", "large")
        by_id = {one["request_id"]: one for one in rows}
        assert all(planted & set(by_id[id]["input"].split()) for id in each.evidence["requests"])
    assert repeated(rows) == found


def test_failures_that_fall_anywhere_are_no_cluster() -> None:
    found = [repeated(traffic(400, seed, {"": 0.12})) for seed in range(8)]
    assert sum(map(len, found)) <= 1


def test_a_failing_stream_is_found_and_few_observations_are_not() -> None:
    (stream,) = [each for each in repeated(traffic(200, 4, {"": 0.5})) if each.key == "stream"]
    assert stream.evidence["rate"]["of"] == 200
    assert repeated(traffic(19, 4, {"": 1.0})) == []
    one_episode = [{**each, "episode_id": "e"} for each in traffic(200, 4, {"": 0.5})]
    assert repeated(one_episode) == []


# ---------------------------------------------------------------- prompt


def test_weaknesses_are_told_by_prompt_version() -> None:
    rows = [row(n, snapshot_id="new" if n % 2 else "old", intent="help") for n in range(200)]
    for n, each in enumerate(rows):
        if each["snapshot_id"] == "new":
            each["schema_ok"] = n % 4 != 1
            each["repairs"] = int(n % 3 == 0)
            each["confidence"] = 0.2 if n % 5 == 0 else 1.0
            each["error_class"] = "refusal" if n % 7 == 0 else ""
    found = weaknesses(rows, {"new": "p2", "old": "p1"})
    assert {each.kind for each in found} == {"format", "repairs", "unsure", "refusals"}
    assert {each.key for each in found} == {"p2"}
    form = next(each for each in found if each.kind == "format")
    assert (form.evidence["rate"]["hits"], form.evidence["rate"]["of"]) == (50, 100)
    assert weaknesses([each for each in rows if each["snapshot_id"] == "old"]) == []


def test_confused_labels_are_told_with_both_names() -> None:
    rows = [row(n, None, "billing" if n < 12 else "refund", said("correction", "Refund")) for n in range(60)]
    (found,) = weaknesses(rows)
    assert (found.kind, found.evidence["right"], found.evidence["given"]) == ("confusion", "refund", "billing")
    assert found.evidence["rate"]["hits"] == 12
    assert weaknesses(rows[10:]) == []


# ---------------------------------------------------------------- cost

PRICES = {
    "large": Price(prompt_usd_per_mtok=10, completion_usd_per_mtok=10),
    "small": Price(prompt_usd_per_mtok=1, completion_usd_per_mtok=1),
    "near": Price(prompt_usd_per_mtok=9, completion_usd_per_mtok=9),
}


def costly(count: int = 60) -> list[dict[str, Any]]:
    return [row(n, intent="help", prompt_tokens=100, completion_tokens=0, cost_usd=0.001) for n in range(count)]


EXAMPLES = [Example(id=f"x{n}", input=f"q {n}", expected="yes", meta={"intent": "help"}) for n in range(100)]


class Replayed:
    """Qualities of answers by model; remembers who was asked."""

    def __init__(self, **wrong: int) -> None:
        self.wrong = wrong
        self.asked: list[str] = []

    async def __call__(self, examples: Sequence[Example], model: str) -> list[float | None]:
        self.asked.append(model)
        if self.wrong.get(model, 0) < 0:
            raise Overloaded("busy")
        return [0.0 if number < self.wrong.get(model, 0) else 1.0 for number in range(len(examples))]


async def test_a_cheaper_model_is_found_by_replay_only() -> None:
    replay = Replayed()
    (found,) = await cheaper(costly(), EXAMPLES, replay, PRICES)
    assert replay.asked == ["large", "small"]
    assert found.evidence["model"] == "small"
    assert found.evidence["usd"] == (0.06, 0.006)
    assert found.evidence["interval"][0] > -0.05
    assert found.severity == "high"


@pytest.mark.parametrize("wrong", [{"small": 10}, {"small": -1}])
async def test_a_worse_or_silent_model_is_not_found(wrong: dict[str, int]) -> None:
    assert await cheaper(costly(), EXAMPLES, Replayed(**wrong), PRICES) == []


async def test_too_few_examples_or_too_little_saved_are_not_tried() -> None:
    replay = Replayed()
    assert await cheaper(costly(), EXAMPLES[:39], replay, PRICES) == []
    assert await cheaper(costly(), EXAMPLES, replay, {"near": PRICES["near"]}) == []
    assert replay.asked == []


def test_equal_answers_to_few_examples_are_no_proof() -> None:
    assert paired([0.0] * 10, 0.9)[0] < -0.05
    assert paired([0.0] * 60, 0.9)[0] > -0.05
    assert paired([], 0.9) == (-1.0, 1.0)


# ---------------------------------------------------------------- latency


def timed(hours: int, seed: int, growth: float = 0.0, daily: float = 0.0, per_hour: int = 12) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for hour in range(hours):
        scale = (1 + growth * hour / hours) * (1 + daily * np.sin(2 * np.pi * hour / 24))
        for each in range(per_hour):
            latency = float(300 * scale * np.exp(rng.normal(0, 0.3)))
            at = NOW - NOW % (24 * HOUR) + hour * HOUR + each
            rows.append(row(hour * per_hour + each, at=at, latency_ms=latency, intent="help"))
    return rows


def test_a_stream_that_gets_slower_is_found() -> None:
    (found,) = [each for each in slow(timed(24, 1, growth=1.0)) if each.kind == "slower"]
    assert found.evidence["p_value"] < 0.01
    assert 5 < found.evidence["slope_ms_per_hour"] < 60
    assert len(found.evidence["p95_ms"]) == 24


def test_steady_and_daily_latency_is_no_trend() -> None:
    steady = [slow(timed(24, seed)) for seed in range(10)]
    assert sum(map(len, steady)) <= 1
    # Ends at another hour of the day than it began, so that without seasons the day itself looks like a trend.
    daily = [slow(timed(24 * 4 + 9, seed, daily=0.5)) for seed in range(4)]
    assert [each for found in daily for each in found if each.kind == "slower"] == []


def test_outliers_are_found_with_their_bound() -> None:
    rows = timed(24, 2)
    for each in rows[::25]:
        each["latency_ms"] = 30_000.0
    (found,) = [each for each in slow(rows) if each.kind == "outliers"]
    assert 300 < found.evidence["bound_ms"] < 30_000
    assert found.evidence["rate"]["hits"] == len(rows[::25])


def test_trend_of_too_little_is_none() -> None:
    assert trend({}).p == 1
    assert trend({1: 2.0}).p == 1
    assert trend({hour: float(hour) for hour in range(20)}).p < 1e-6


# ---------------------------------------------------------------- memory


def test_failures_without_a_fitting_note_are_a_gap() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for n in range(120):
        topic = "warranty" if n % 2 else "parcel"
        feedback = said("correction", f"ask the workshop {n}") if n % 2 and n % 3 else said("correct", True)
        rows.append(row(n, question(topic, rng), "yes", feedback, intent="help", notes=("p",)))
    notes = (Note(id="p", text=TOPICS["parcel"]), Note(id="w", text=TOPICS["warranty"]))
    (found,) = [each for each in gaps(rows, notes) if each.kind == "memory"]
    assert found.layer == "memory"
    assert found.evidence["rate"]["hits"] == found.evidence["corrected"] == 40
    for each in rows:
        each["notes"] = ["p", "w"]
    assert [each for each in gaps(rows, notes) if each.kind == "memory"] == []


def test_corrections_that_share_a_fact_are_found_where_several_say_it() -> None:
    rng = np.random.default_rng(2)
    rows = traffic(40, 5, {"": 0.0})
    rows += [
        row(100 + n, question("warranty", rng), "no", said("correction", "two years"), intent="help", user=f"u{n % 2}")
        for n in range(5)
    ]
    (found,) = [each for each in gaps(rows) if each.kind == "fact"]
    assert (found.evidence["corrections"], found.evidence["voices"]) == (5, 2)
    assert "two years" in found.title
    alone = [{**each, "user": "u0"} for each in rows]
    assert [each for each in gaps(alone) if each.kind == "fact"] == []


# ---------------------------------------------------------------- all together


async def test_the_analysis_ranks_and_renders() -> None:
    rows = traffic(400, 3, {"warranty": 0.7, "": 0.05}, cost_usd=0.001, prompt_tokens=100)
    warning = {"intent": "help", "model": "large", "state": "alarm", "accuracy": 0.6}
    found = await analyse(rows, drift=[warning], examples=EXAMPLES, replay=Replayed(), prices=PRICES)
    assert {each.kind for each in found} >= {"failures", "drift", "cost"}
    order = ["high", "medium", "low"]
    assert [order.index(each.severity) for each in found] == sorted(order.index(each.severity) for each in found)
    heads, lines = table(found)
    assert all(len(line) == len(heads) for line in lines)
    assert [Finding.model_validate(each) for each in as_json(found)] == list(found)
    stored = [each.row("desk", NOW) for each in found]
    assert len({each["id"] for each in stored}) == len(found)
    assert stored[0] == found[0].row("desk", NOW) | {"id": found[0].row("desk", NOW + 1)["id"]}
    assert found[0].row("desk", NOW + 86_400)["id"] != stored[0]["id"]


async def test_shadows_deleted_users_and_silence_say_nothing() -> None:
    rows = traffic(400, 3, {"warranty": 0.7, "": 0.05})
    assert await analyse([{**each, "is_shadow": True} for each in rows]) == ()
    assert await analyse([{**each, "user": "u"} for each in rows], tombstoned=["u"]) == ()
    assert await analyse([{**each, "feedback": []} for each in rows]) == ()
    assert await analyse([]) == ()
