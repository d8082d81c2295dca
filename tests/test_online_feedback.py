"""Feedback: whatever order and however often it comes, each counts once, for the arm on the record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
from fake_ledger import FakeLedger
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.errors import StoreError
from evocluster.online.feedback import PENDING_S, Feedback, Received, reward, sign, signed
from evocluster.online.ledger import Row
from evocluster.online.outcomes import Outcome, outcomes, said
from evocluster.online.scrub import Scrubber
from evocluster.records import Json
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Metric, Online

SECRET = b"s" * 32
SCRUBBER = Scrubber(b"k" * 32)
SETTINGS = Online(
    metrics={
        "correct": Metric(type="bool", reward=True),
        "stars": Metric(type="float", low=1, high=5),
        "waste": Metric(type="float", low=0, high=10, direction="down"),
        "annoyed": Metric(type="bool", direction="down"),
        "correction": Metric(type="text"),
    }
)
NOW = 1_000_000.0


def exchanged(ledger: FakeLedger, number: int, **more: Json) -> None:
    told = {"episode_id": f"e{number}", "arm": "a1", "snapshot_id": "a1", "experiment": "x", "at": NOW - 10, **more}
    row = Exchange(request_id=f"r{number}", deployment="d", **told)
    ledger.add("exchanges", [row.model_dump(mode="json")])


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    exchanged(ledger, 1)
    return ledger


def feedback(ledger: FakeLedger, **more: Json) -> Feedback:
    return Feedback(ledger, SETTINGS, "d", SECRET, SCRUBBER, **more)


def body(id: str = "f1", request: str = "r1", **more: Json) -> dict[str, Json]:
    told = {"feedback_id": id, "target": {"token": sign(request, SECRET)}, "metric": "correct", "value": True}
    return {**told, **more}


def status(received: Received) -> tuple[int, Json]:
    return received.status_code, received.payload.get("status")


def why(received: Received) -> str:
    return str(received.payload["error"]["message"])


def test_one_is_taken_and_said_again_is_the_same_one(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    assert taken.accept(body(), NOW) == Received(202, {"feedback_id": "f1", "status": "accepted"})
    assert {status(taken.accept(body(), NOW + n)) for n in range(1000)} == {(202, "duplicate")}
    (row,) = ledger.find("feedback")
    assert (row["request_id"], row["value"], row["source"], row["received_at"]) == ("r1", True, "user", NOW)


def test_a_thousand_at_once_are_one(ledger: FakeLedger) -> None:
    several = [feedback(ledger) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: status(several[n % 4].accept(body(), NOW)), range(1000)))
    assert sorted(set(told)) == [(202, "accepted"), (202, "duplicate")]
    assert told.count((202, "accepted")) == 1
    assert ledger.count("feedback") == 1


def test_an_id_is_not_used_for_something_else(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    taken.accept(body(), NOW)
    for other in (body(value=False), body(metric="stars", value=3), body(request="r2"), body(source="code")):
        received = taken.accept(other, NOW)
        assert received.status_code == 409
        assert "'f1' was used for something else" in why(received)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"metric": "nps"}, "metric 'nps' is not known; allowed: correct, stars, waste, annoyed, correction"),
        ({"metric": ["correct"]}, "is not known; allowed: correct"),
        ({"value": 1}, "value 1 of metric 'correct': true or false"),
        ({"value": None}, "true or false"),
        ({"metric": "stars", "value": True}, "a number from 1 to 5"),
        ({"metric": "stars", "value": 5.5}, "value 5.5 of metric 'stars': a number from 1 to 5"),
        ({"metric": "stars", "value": float("nan")}, "a number from 1 to 5"),
        ({"metric": "correction", "value": ""}, "a text of 1 to 20000 characters"),
        ({"metric": "correction", "value": 7}, "a text of 1 to 20000 characters"),
        ({"source": "robot"}, "source 'robot' is not known; allowed: user, judge, code, human"),
        ({"feedback_id": None}, "feedback_id None"),
        ({"feedback_id": "x" * 200}, "feedback_id"),
        ({"feedback_id": "a\nb"}, "printable"),
        ({"target": {}}, "target {}"),
        ({"target": 7}, "target 7"),
        ({"observed_at": NOW + 4000}, "not in the future"),
        ({"observed_at": "yesterday"}, "ISO 8601"),
        ({"observed_at": "2001-01-01T00:00:00"}, "with a time zone"),
        ({"dryrun": "yes"}, "dryrun 'yes'"),
        ({"supersedes": 7}, "supersedes 7"),
        ({"weight": 9}, "field 'weight' is not known; allowed: feedback_id, target"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(ledger: FakeLedger, more: dict[str, Json], text: str) -> None:
    received = feedback(ledger).accept(body(**more), NOW)
    assert received.status_code == 422
    assert text in why(received)
    assert ledger.count("feedback") == 0


@pytest.mark.parametrize("told", [None, [], "x", 7, {}])
def test_bodies_that_are_none_are_refused(ledger: FakeLedger, told: Json) -> None:
    assert feedback(ledger).accept(told, NOW).status_code == 422


def test_outsiders_do_not_vote(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    token = sign("r1", SECRET)
    wrong: list[Json] = ["r1", "r1.", sign("r1", b"o" * 32), token[:-1] + ("0" if token[-1] != "0" else "1")]
    wrong += [{"request_id": "r1"}, {"episode_id": "e1"}, {"request_id": sign("r1", b"o" * 32)}, {"episode_id": token}]
    assert [taken.accept(body(target=target), NOW).status_code for target in wrong] == [403] * len(wrong)
    assert ledger.count("feedback") == 0
    right: list[Json] = [token, {"token": token}, {"request_id": token}]
    assert [taken.accept(body(f"f{n}", target=one), NOW).status_code for n, one in enumerate(right)] == [202] * 3
    episode = sign("e1", SECRET, "episode")
    assert status(taken.accept(body("f9", target={"episode_id": episode}), NOW)) == (202, "accepted")
    assert [signed(one, SECRET) for one in (token, episode, "x")] == [("request", "r1"), ("episode", "e1"), None]
    assert (taken.owns(body()), taken.owns({"target": sign("r1", b"o" * 32)}), taken.owns(None)) == (True, False, False)
    assert status(feedback(ledger, signing=False).accept(body("g", target={"request_id": "r1"}), NOW))[1] == "accepted"


def test_feedback_that_comes_before_its_record_waits_for_it(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    assert status(taken.accept(body("f2", "r2"), NOW)) == (202, "pending")
    assert status(taken.accept(body("f2", "r2"), NOW)) == (202, "duplicate")
    assert status(taken.accept(body("f3", "r3"), NOW)) == (202, "pending")
    assert taken.settle(NOW + 5) == 0
    exchanged(ledger, 2)
    assert taken.settle(NOW + PENDING_S) == 1
    assert {row["feedback_id"]: row["state"] for row in ledger.find("feedback")} == {"f2": "accepted", "f3": "pending"}
    assert taken.settle(NOW + PENDING_S + 1) == 0
    exchanged(ledger, 3)
    assert taken.settle(NOW + PENDING_S + 2) == 0
    told = outcomes(ledger, "d", 0.0, NOW + 2 * PENDING_S, SETTINGS)
    assert {one.episode_id: one.reward for one in told} == {"e1": None, "e2": 1.0, "e3": None}


def test_the_last_word_counts_whatever_came_first(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    assert status(taken.accept(body("f2", value=False, supersedes="f1"), NOW)) == (202, "accepted")
    assert status(taken.accept(body("f1", observed_at=NOW + 1), NOW)) == (202, "superseded")
    assert status(taken.accept(body("f0", observed_at=NOW - 9), NOW)) == (202, "superseded")
    assert outcomes(ledger, "d", 0.0, NOW + 9999, SETTINGS)[0].reward == 0.0
    assert status(taken.accept(body("f3", supersedes="f2"), NOW)) == (202, "accepted")
    assert outcomes(ledger, "d", 0.0, NOW + 9999, SETTINGS)[0].reward == 1.0
    refused = taken.accept(body("f4", source="human", supersedes="f3"), NOW)
    assert (refused.status_code, "of another target, metric or source" in why(refused)) == (422, True)


def test_a_dry_run_leaves_nothing(ledger: FakeLedger) -> None:
    taken = feedback(ledger, per_hour=1)
    assert [status(taken.accept(body(dryrun=True), NOW)) for _ in range(3)] == [(202, "dryrun")] * 3
    assert ledger.count("feedback") == 0
    assert taken.accept(body(metric="x", dryrun=True), NOW).status_code == 422


def test_texts_are_kept_without_personal_data(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    taken.accept(body(metric="correction", value="ask jane@b.io", source="human"), NOW)
    assert "jane" not in json.dumps(ledger.find("feedback"))
    assert status(taken.accept(body(metric="correction", value="ask jane@b.io", source="human"), NOW))[1] == "duplicate"
    assert said(ledger, "d", 0.0)["r1"]["correction"].startswith("ask [email:")


def test_a_user_says_so_much_an_hour(ledger: FakeLedger) -> None:
    exchanged(ledger, 2, user="jane")
    exchanged(ledger, 3, user="jane")
    exchanged(ledger, 4, user="joe")
    taken = feedback(ledger, per_hour=2)
    codes = [taken.accept(body(f"f{n}", f"r{n}"), NOW + n).status_code for n in (2, 3)]
    late = taken.accept(body("f5", "r3", metric="annoyed"), NOW + 5)
    assert (codes, late.status_code) == ([202, 202], 429)
    assert "more than 2 in an hour" in why(late)
    assert taken.accept(body("f2", "r2"), NOW + 5).status_code == 202  # a duplicate is none
    assert taken.accept(body("f4", "r4"), NOW + 5).status_code == 202
    assert taken.accept(body("f5", "r3", metric="annoyed"), NOW + 3603).status_code == 202


def test_while_the_ledger_is_away_it_is_to_be_sent_again(ledger: FakeLedger) -> None:
    def away(method: str, table: str) -> None:
        raise StoreError("no connection")

    ledger.before = away
    received = feedback(ledger).accept(body(), NOW)
    assert (received.status_code, "send it again" in why(received)) == (503, True)


def test_times_are_understood(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    taken.accept(body("f1", observed_at="1970-01-02T00:00:00Z"), NOW)
    taken.accept(body("f2", observed_at=5), NOW)
    assert [row["observed_at"] for row in ledger.find("feedback", order="feedback_id")] == [86400.0, 5.0]


@pytest.mark.parametrize(
    ("metric", "value", "worth"),
    [
        ("correct", True, 1.0),
        ("correct", False, 0.0),
        ("correct", 1, None),
        ("annoyed", True, 0.0),
        ("annoyed", False, 1.0),
        ("stars", 1, 0.0),
        ("stars", 5, 1.0),
        ("stars", 4, 0.75),
        ("stars", 9, None),
        ("waste", 10, 0.0),
        ("waste", 2.5, 0.75),
        ("correction", "x", None),
        ("nps", 1, None),
    ],
)
def test_rewards_go_from_0_to_1(metric: str, value: Json, worth: float | None) -> None:
    assert reward(metric, value, SETTINGS) == worth


def test_outcomes_are_of_the_arm_on_the_record_and_of_its_episode() -> None:
    ledger = FakeLedger()
    for number, more in enumerate(
        [
            {"episode_id": "e", "arm": "a1", "snapshot_id": "a1", "epoch": 3, "propensity": 0.2, "at": NOW - 9000},
            {"episode_id": "e", "arm": "a1", "snapshot_id": "a1", "epoch": 4, "propensity": 0.5, "at": NOW - 8000},
            {"episode_id": "e", "arm": "a1", "snapshot_id": "a0", "at": NOW - 7000},
            {"episode_id": "young", "at": NOW - 3000},
            {"episode_id": "silent", "arm": "a2", "snapshot_id": "a2", "at": NOW - 5000},
            {"episode_id": "whole", "at": NOW - 5000},
            {"episode_id": "shadowed", "is_shadow": True, "at": NOW - 5000},
            {"episode_id": "late", "at": NOW - 6000},
        ]
    ):
        exchanged(ledger, number, **more)
    ledger.deploy({"name": "d", "snapshot": "a9", "state": {}, "config": "", "facts": {}, "secret": "", "at": 0}, {})
    taken = feedback(ledger)
    for number, value in ((0, True), (1, False), (2, True), (3, True), (5, False), (6, True)):
        taken.accept(body(f"f{number}", f"r{number}", value=value, observed_at=NOW - 5500), NOW)
    taken.accept(body("whole", target=sign("whole", SECRET, "episode"), observed_at=NOW - 4500), NOW)
    taken.accept(body("late", "r7", observed_at=NOW - 100), NOW)
    told = outcomes(ledger, "d", 0.0, NOW, SETTINGS)
    assert told == [
        Outcome("e", "x", "a1", NOW - 8000, 3, 0.2, "", "", 2, 0.5, "correct"),
        Outcome("late", "x", "a1", NOW - 6000, 0, 1.0, "", "", 1, None, ""),
        Outcome("silent", "x", "a2", NOW - 5000, 0, 1.0, "", "", 1, None, ""),
        Outcome("whole", "x", "a1", NOW - 5000, 0, 1.0, "", "", 1, 1.0, "correct"),
    ]
    assert said(ledger, "d", 0.0)["r7"] == {"correct": True}


def test_who_is_trusted_more_is_believed(ledger: FakeLedger) -> None:
    taken = feedback(ledger)
    for source, value, expected in (
        ("user", True, 1.0),
        ("judge", False, 0.0),
        ("code", True, 1.0),
        ("human", False, 0),
    ):
        taken.accept(body(source, source=source, value=value), NOW)
        assert outcomes(ledger, "d", 0.0, NOW + 9999, SETTINGS)[0].reward == expected


Event = tuple[int, int, bool, str, float, int]
"""number of the request, of the event, value, source, when it was observed, the event it supersedes or -1."""
RANK = {"human": 0, "code": 1, "judge": 2, "user": 3}


def expected(events: Iterable[Event]) -> dict[str, float | None]:
    """Rewards by episode from the sorted, deduplicated list; written anew, without the code that is tested."""
    rewards: dict[str, float | None] = {}
    unique = sorted(set(events))
    for request in range(6):
        best: tuple[int, bool] | None = None
        for source, rank in RANK.items():
            mine = [event for event in unique if event[0] == request and event[3] == source]
            beaten = {event[5] for event in mine}
            standing = [event for event in mine if event[1] not in beaten]
            if standing:
                value = max(standing, key=lambda event: (event[4], f"f{event[1]:05d}"))[2]
                best = min(best or (9, value), (rank, value), key=lambda one: one[0])
        rewards[f"e{request}"] = None if best is None else float(best[1])
    return rewards


def told_of(event: Event) -> dict[str, Json]:
    request, number, value, source, at, before = event
    more = {"supersedes": f"f{before:05d}"} if before >= 0 else {}
    return body(f"f{number:05d}", f"r{request}", value=value, source=source, observed_at=at, **more)


def made(draws: list[tuple[int, bool, str, int, bool]]) -> list[Event]:
    events: list[Event] = []
    for number, (request, value, source, at, again) in enumerate(draws):
        before = [one[1] for one in events if (one[0], one[3]) == (request, source)]
        events.append((request, number, value, source, NOW + at, before[-1] if again and before else -1))
    return events


def rewards(ledger: FakeLedger, taken: Feedback) -> dict[str, float | None]:
    taken.settle(NOW + 20)
    return {one.episode_id: one.reward for one in outcomes(ledger, "d", 0.0, NOW + 9999, SETTINGS)}


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(sorted(RANK)), st.integers(0, 9), st.booleans()),
        max_size=25,
    ),
    st.randoms(use_true_random=False),
    st.integers(0, 6),
)
def test_any_order_with_any_duplicates_is_the_sorted_list(
    draws: list[tuple[int, bool, str, int, bool]], random: Random, late: int
) -> None:
    events = made(draws)
    sent = [*events, *(random.choice(events) for _ in range(len(events)))]
    random.shuffle(sent)
    ledger = FakeLedger()
    taken = feedback(ledger)
    for number in range(late):
        exchanged(ledger, number)
    for event in sent:
        assert taken.accept(told_of(event), NOW + 10).status_code == 202
    for number in range(late, 6):  # the records of these come after their feedback
        exchanged(ledger, number)
    assert ledger.count("feedback") == len(events)
    assert rewards(ledger, taken) == expected(events)


class Indexed(FakeLedger):
    """Finds feedback by its target and by its id without looking at all of it, as a database does."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[str, list[Row]] = {}

    def add(self, table: str, rows: Iterable[Row]) -> None:  # type: ignore[override]
        rows = list(rows)
        super().add(table, rows)
        if table == "feedback":
            for row in rows:
                self.targets.setdefault(row["request_id"], []).append(row)

    def find(self, table: str, where: Row | None = None, **more: Json) -> list[Row]:  # type: ignore[override]
        if table == "feedback" and where and "feedback_id" in where:
            row = self.tables[table].get((where["feedback_id"],))
            return [dict(row)] if row else []
        if table == "feedback" and where and "request_id" in where:
            return [dict(row) for row in list(self.targets.get(where["request_id"], []))]
        return super().find(table, where, **more)


def test_ten_thousand_events_from_many_at_once_count_once() -> None:
    rng = np.random.default_rng(11)
    sources = sorted(RANK)
    draws = [
        (int(rng.integers(6)), bool(rng.integers(2)), sources[rng.integers(4)], int(rng.integers(9)), False)
        for _ in range(1200)
    ]
    events = made(draws)
    sent = [events[place] for place in np.concatenate([rng.permutation(1200), rng.integers(0, 1200, 8800)])]
    rng.shuffle(sent)
    ledger = Indexed()
    for number in range(3):
        exchanged(ledger, number)
    taken = feedback(ledger, per_hour=10_000)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda event: status(taken.accept(told_of(event), NOW + 10)), sent))
    for number in range(3, 6):
        exchanged(ledger, number)
    assert len(told) == 10_000
    assert {code for code, _ in told} == {202}
    assert sum(said != "duplicate" for _, said in told) == 1200 == ledger.count("feedback")
    assert rewards(ledger, taken) == expected(events)


def test_with_the_ledger_that_ships(tmp_path: object) -> None:
    shipped = pytest.importorskip("evocluster.store.ledger").Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    exchanged(shipped, 1)
    several = [feedback(shipped) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        told = [one for one in pool.map(lambda n: status(several[n % 2].accept(body(), NOW)), range(40))]
    assert told.count((202, "accepted")) == 1
    assert told.count((202, "duplicate")) == 39
    assert outcomes(shipped, "d", 0.0, NOW + 9999, SETTINGS)[0].reward == 1.0
    shipped.close()
