"""How a candidate stands: pairs, live traffic and rewards, as the tests of a release take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evocluster.online.outcomes import Outcome
from evocluster.online.standing import harmless, paired, weighed
from evocluster.release.settings import Bandit, Promotion

NOW = 1_800_000_000.0
HOUR = 3600.0


def side(**more: Any) -> dict[str, Any]:
    return {"cost_usd": 0.01, "latency_ms": 100.0, "error_class": "", "schema_ok": True, "score": None, **more}


def pair(number: int, ours: float, theirs: float, difference: float | None = None, **more: Any) -> dict[str, Any]:
    gap = ours - theirs if difference is None else difference
    return {
        "pair_id": f"p{number:03}",
        "at": NOW + number,
        "intent": "",
        "state": "judged",
        "judge": "j1",
        "baseline": side(score=theirs),
        "candidate": side(score=ours, difference=gap, judged_at=NOW),
        **more,
    }


def test_pairs_are_judged_by_one_judge_and_others_are_missing() -> None:
    rows = [pair(n, 0.9, 0.5) for n in range(10)]
    rows += [pair(10 + n, 0.1, 0.9, judge="j0") for n in range(10)]
    rows += [pair(20, 0.0, 0.0, state="missing"), pair(21, 0.0, 0.0, state="skipped")]
    found = paired(rows, "j1", Promotion(), hours=30.0, candidates=2)
    assert (found.comparison.n, found.hours, found.candidates) == (10, 30.0, 2)
    assert found.comparison.scores / found.comparison.n == pytest.approx(0.9)
    assert len(found.pairs) == 21  # the skipped one was never asked
    assert [one.candidate.score for one in found.pairs[10:]] == [None] * 11


def test_a_judge_that_prefers_the_other_order_makes_them_equal() -> None:
    """The veto of a model judge is in the difference: grades 0.9 and 0.5, and no preference, are a tie."""
    vetoed = paired([pair(n, 0.9, 0.5, 0.0) for n in range(60)], "j1", Promotion(), hours=30.0)
    plain = paired([pair(n, 0.9, 0.5) for n in range(60)], "j1", Promotion(), hours=30.0)
    assert vetoed.comparison.n == plain.comparison.n == 60
    assert vetoed.comparison.scores == plain.comparison.scores
    assert (vetoed.comparison.lift, vetoed.comparison.better.log_wealth) == (0.0, 0.0)
    assert plain.comparison.better.log_wealth > np.log(20)


def test_the_order_in_which_rows_come_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    rows = [pair(n, float(rng.random()), float(rng.random())) for n in range(40)]
    mixed = [rows[at] for at in rng.permutation(40)]
    assert (
        paired(mixed, "j1", Promotion(), hours=1.0).comparison == paired(rows, "j1", Promotion(), hours=1.0).comparison
    )


def test_hard_failures_and_formats_are_of_their_side() -> None:
    row = pair(1, 0.0, 1.0)
    row["candidate"] |= {"error_class": "timeout"}
    row["baseline"] |= {"schema_ok": False}
    [one] = paired([row], "j1", Promotion(), hours=1.0).pairs
    assert (one.candidate.failed, one.candidate.malformed) == (True, False)
    assert (one.baseline.failed, one.baseline.malformed) == (False, True)


def live(arm: str, count: int, start: int = 0, propensity: float = 0.5, **more: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(start)
    return [
        {
            "request_id": f"{arm}{start + n}",
            "episode_id": f"{arm}{start + n}",
            "at": NOW + n,
            "arm": arm,
            "snapshot_id": arm,
            "propensity": propensity,
            "is_shadow": False,
            "error_class": "",
            "schema_ok": True,
            "latency_ms": float(np.exp(rng.normal(5, 0.1))),
            "cost_usd": 0.01,
            **more,
        }
        for n in range(count)
    ]


SETTINGS = Promotion(failure_margin=0.05, format_margin=0.05)


def test_no_harm_is_no_objection() -> None:
    rows = live("new", 900) + live("old", 900)
    said = harmless(rows, "new", "old", SETTINGS)
    assert (said.move, said.judged) == ("promote", 900)
    assert set(said.told["guards"]) == {"failure", "format", "latency", "cost"}


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"error_class": "provider"}, "failure"),
        ({"schema_ok": False}, "format"),
        ({"cost_usd": 0.05}, "cost"),
        ({"latency_ms": 900.0}, "latency"),
    ],
)
def test_sure_harm_is_refused_and_named(worse: dict[str, Any], name: str) -> None:
    rows = live("new", 500) + live("new", 400, 500, **worse) + live("old", 900)
    said = harmless(rows, "new", "old", SETTINGS)
    assert said.move == "reject"
    assert name in said.reason


def test_too_few_wait_whatever_they_say() -> None:
    rows = live("new", 20, error_class="provider") + live("old", 900)
    said = harmless(rows, "new", "old", SETTINGS)
    assert said.move == "wait"
    assert "20 of 50 requests of each arm" in said.reason
    assert harmless([], "new", "old", SETTINGS).move == "wait"


def test_an_uneven_split_waits() -> None:
    rows = live("new", 600) + live("old", 900)
    said = harmless(rows, "new", "old", SETTINGS)
    assert said.move == "wait"
    assert "not split as planned" in said.reason
    as_planned = live("new", 300, propensity=0.2) + live("old", 1200, propensity=0.8)
    assert harmless(as_planned, "new", "old", SETTINGS).told["split_p"] > 0.01


def test_one_long_episode_is_one_of_the_split() -> None:
    many = live("new", 400, episode_id="one") + live("new", 300) + live("old", 300)
    assert harmless(many, "new", "old", SETTINGS).told["split_p"] > 0.01


def test_shadows_clients_and_judges_are_not_counted() -> None:
    rows = live("new", 900) + live("old", 900)
    noise = live("new", 300, 2000, is_shadow=True) + live("new", 300, 3000, error_class="client")
    noise += live("new", 300, 4000, error_class="judge")
    assert harmless([*rows, *noise], "new", "old", SETTINGS) == harmless(rows, "new", "old", SETTINGS)


def outcome(number: int, arm: str, reward: float | None) -> Outcome:
    return Outcome(f"e{number}", "x", arm, NOW + number, 1, 0.5, "", "m", 1, reward, "correct")


def test_a_missing_reward_is_no_failure() -> None:
    known = [outcome(n, "new" if n % 2 else "old", 1.0) for n in range(40)]
    missing = [outcome(100 + n, "new", None) for n in range(200)]
    one, arms = weighed(known, "new", "old", Bandit(), live_s=HOUR)
    two, same = weighed([*known, *missing], "new", "old", Bandit(), live_s=HOUR)
    assert (one, arms) == (two, same)
    assert one.rewards == 40


def test_a_newcomer_stays_at_the_start_until_it_is_known() -> None:
    good = [outcome(n, "new", 1.0) for n in range(300)] + [outcome(400 + n, "old", 0.0) for n in range(300)]
    early, _ = weighed(good, "new", "old", Bandit(), live_s=2 * HOUR)
    assert early.weights["new"] == pytest.approx(0.2)
    few, _ = weighed(good[:50] + good[300:], "new", "old", Bandit(), live_s=48 * HOUR)
    assert few.weights["new"] == pytest.approx(0.2)
    later, _ = weighed(good, "new", "old", Bandit(), live_s=24 * HOUR)
    assert later.weights["new"] == pytest.approx(0.35)
    known, _ = weighed(good, "new", "old", Bandit(), live_s=48 * HOUR)
    assert known.weights["new"] > 0.9
    assert known.weights["old"] >= 0.02 - 1e-9
    assert sum(known.weights.values()) == pytest.approx(1.0)


def test_the_order_of_outcomes_does_not_matter_and_strangers_are_left_out() -> None:
    rng = np.random.default_rng(5)
    told = [outcome(n, "new" if n % 3 else "old", float(rng.random())) for n in range(80)]
    mixed = [told[at] for at in rng.permutation(80)]
    strangers = [outcome(500 + n, "third", 1.0) for n in range(50)]
    assert weighed([*mixed, *strangers], "new", "old", Bandit(), live_s=HOUR) == weighed(
        told, "new", "old", Bandit(), live_s=HOUR
    )


def test_the_shadow_says_where_a_newcomer_starts() -> None:
    _, arms = weighed([], "new", "old", Bandit(), live_s=0.0, priors={"new": (0.9, 500), "old": (0.3, 500)})
    means = {arm: one.prior_alpha / (one.prior_alpha + one.prior_beta) for arm, one in arms.items()}
    assert means == pytest.approx({"new": 0.9, "old": 0.3})
