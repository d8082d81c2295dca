"""Recorded traffic wherever it is: in the ledger, sealed, or in both for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evocluster.online.archive import Archive
from evocluster.online.outcome import verdict
from evocluster.online.outcomes import outcomes
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Online
from evocluster.store import sealed
from evocluster.store.ledger import Ledger

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield made
    made.close()


def write(ledger: Ledger, id: str, days_ago: float, deployment: str = "d", **more: Any) -> None:
    said = {"arm": "a", "eligible_arms": ("a",), "notes": ("n",), "signals": {"accepted": True}, **more}
    made = Exchange(request_id=id, episode_id=f"e-{id}", deployment=deployment, at=NOW - days_ago * DAY, **said)
    ledger.add("exchanges", [made.model_dump(mode="json")])
    body = {"request_id": id, "deployment": deployment, "user": "", "input": {"q": id}, "output": f"of {id}"}
    ledger.add("bodies", [{**body, "at": made.at}])


def filled(ledger: Ledger, folder: Path) -> Archive:
    for number in range(6):
        write(ledger, f"r{number}", 6 - number + 0.1)
    write(ledger, "s", 3.0, is_shadow=True)
    write(ledger, "z", 3.0, "other")
    sealed.seal(ledger, folder, "d", NOW - 2 * DAY)
    return Archive(ledger, folder, "d")


def test_sealed_and_recent_rows_are_one_history(ledger: Ledger, tmp_path: Path) -> None:
    archive = filled(ledger, tmp_path / "traffic")
    assert 0 < ledger.count("exchanges", {"deployment": "d"}) < 6
    rows = archive.exchanges(NOW - 30 * DAY)
    assert [row["request_id"] for row in rows] == ["r0", "r1", "r2", "r3", "s", "r4", "r5"]
    for row in rows:
        assert (row["eligible_arms"], row["notes"], row["signals"]) == (["a"], ["n"], {"accepted": True})
        assert isinstance(row["is_shadow"], bool)
    assert [row["request_id"] for row in archive.exchanges(NOW - 3.5 * DAY)] == ["r3", "s", "r4", "r5"]
    assert {row["request_id"]: row["input"] for row in archive.bodies(NOW - 30 * DAY)}["r0"] == {"q": "r0"}


def test_a_row_that_is_in_both_counts_once(ledger: Ledger, tmp_path: Path) -> None:
    archive = filled(ledger, tmp_path / "traffic")
    before = archive.exchanges(0.0)
    write(ledger, "r0", 6.1)  # as a sealing that was killed leaves it
    assert archive.exchanges(0.0) == before
    assert len(archive.bodies(0.0)) == 7


def test_whole_rows_have_bodies_and_feedback_and_no_shadows(ledger: Ledger, tmp_path: Path) -> None:
    archive = filled(ledger, tmp_path / "traffic")
    row = {"deployment": "d", "metric": "correct", "value": True, "source": "user", "observed_at": NOW}
    for id, request, state in (("f0", "r0", "accepted"), ("f1", "r5", "accepted"), ("f2", "r5", "pending")):
        ledger.put("feedback", {**row, "feedback_id": id, "request_id": request, "received_at": NOW, "state": state})
    rows = {one["request_id"]: one for one in archive.whole(0.0)}
    assert sorted(rows) == [f"r{number}" for number in range(6)]
    assert (rows["r0"]["output"], rows["r0"]["input"]) == ("of r0", {"q": "r0"})
    assert [len(rows[f"r{number}"]["feedback"]) for number in range(6)] == [1, 0, 0, 0, 0, 1]


def test_judged_rows_give_the_verdicts_of_whole_ones(ledger: Ledger, tmp_path: Path) -> None:
    archive = filled(ledger, tmp_path / "traffic")
    for number, (metric, value, of) in enumerate(
        [
            ("correction", "of r0", {"request_id": "r0"}),
            ("correction", "not of r4", {"request_id": "r4"}),
            ("correction", "of r2", {"episode_id": "e-r2"}),
            ("correct", False, {"request_id": "r5"}),
            ("correct", True, {"request_id": "s"}),
        ]
    ):
        row = {"deployment": "d", "metric": metric, "value": value, "source": "user", "state": "accepted"}
        ledger.put("feedback", {**row, "feedback_id": f"f{number}", "observed_at": NOW, "received_at": NOW, **of})
    for since in (0.0, NOW - 3.5 * DAY):
        whole, judged = archive.whole(since), archive.judged(since)
        assert [row["request_id"] for row in judged] == [row["request_id"] for row in whole]
        assert [verdict(row) for row in judged] == [verdict(row) for row in whole]
    rows = {one["request_id"]: one for one in archive.judged(0.0)}
    assert [verdict(rows[f"r{number}"]).quality for number in range(6)] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert {id for id, one in rows.items() if one["output"] is not None} == {"r0", "r2", "r4"}


def test_outcomes_are_of_sealed_requests_too(ledger: Ledger, tmp_path: Path) -> None:
    archive: Any = filled(ledger, tmp_path / "traffic")
    row = {"deployment": "d", "metric": "correct", "value": True, "source": "user", "state": "accepted"}
    at = NOW - 6.1 * DAY + 60
    ledger.put("feedback", {**row, "feedback_id": "f", "request_id": "r0", "observed_at": at, "received_at": at})
    found = {one.episode_id: one.reward for one in outcomes(archive, "d", NOW - 30 * DAY, NOW, Online())}
    assert found == {f"e-r{number}": 1.0 if number == 0 else None for number in range(6)}


def test_other_tables_are_the_ledgers(ledger: Ledger, tmp_path: Path) -> None:
    archive = filled(ledger, tmp_path / "traffic")
    ledger.put("tombstones", {"deployment": "d", "user": "u", "at": NOW})
    ledger.put("tombstones", {"deployment": "other", "user": "v", "at": NOW})
    assert archive.tombstoned() == {"u"}
    assert archive.find("tombstones", {"user": "v"})[0]["deployment"] == "other"
    where = {"at": (">=", 0.0), "is_shadow": False, "deployment": "d"}
    assert [row["request_id"] for row in archive.find("exchanges", where, limit=2, offset=1)] == ["r1", "r2"]
