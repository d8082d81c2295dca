"""The fault injector judges rightly: a planted loss, double row or second payment is seen, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import chaos
import chaos_budget
import chaos_calls
import chaos_judge as judge
import chaos_nodes
import chaos_soak
import pytest
from chaos_child import Fault, Nursery, Saboteur
from chaos_judge import Row, Verdict, complaint
from chaos_ledger import LABELS, MARK, answer, digest
from chaos_local import Terms
from chaos_world import World, stored
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def rows(count: int = 4) -> list[dict[str, Any]]:
    """A table of so many proposals with two evaluations each."""
    return [
        {
            "proposal": number,
            "kind": "evaluation",
            "split": "train",
            "example_id": f"train-{item}",
            "twin": 0,
            "replicate": 0,
            "quality": 1.0,
            "paid_usd": 0.1,
        }
        for number in range(count)
        for item in range(2)
    ]


def test_the_same_table_is_neither_lost_nor_double() -> None:
    assert judge.table(rows(), rows()) == Verdict()
    cached = [{**row, "paid_usd": 0.0} for row in rows()]
    assert judge.table(cached, rows()).passed, "who paid is no difference"


def test_a_planted_lost_trial_is_seen() -> None:
    lacking = [row for row in rows() if row["proposal"] != 2]
    verdict = judge.table(lacking, rows())
    assert verdict.lost[0] == "proposal 2"
    assert len(verdict.lost) == 3, "the number, and its two rows"
    assert judge.table(rows(3), rows()).lost, "the last ones too"


def test_a_planted_double_row_is_seen() -> None:
    verdict = judge.table([*rows(), rows()[3]], rows())
    assert len(verdict.double) == 1
    assert "2 times" in verdict.double[0]


def test_another_value_and_another_row_are_seen() -> None:
    changed = rows()
    changed[1] = {**changed[1], "quality": 0.0}
    assert "says something else" in judge.table(changed, rows()).wrong[0]
    assert "not in the undisturbed run" in judge.table(rows(5), rows()).wrong[0]


def test_another_front_is_seen() -> None:
    calm = {"members": [{"genome": "abc", "test": {"quality": 0.5}}]}
    assert judge.front(calm, calm) == Verdict()
    assert not judge.front({"members": [{"genome": "abc", "test": {"quality": 0.6}}]}, calm).passed


KILL = judge.Fault(struck_s=10.0, over_s=10.1, stored=frozenset({"kept"}), places=2)


@pytest.mark.parametrize(
    ("entries", "repaid", "reissued", "wrong"),
    [
        ([("kept", 1.0, 1.1)], 0, 0, ""),
        ([("kept", 1.0, 1.1), ("kept", 12.0, 12.1)], 1, 0, ""),
        ([("open", 9.9, 0.0), ("open", 12.0, 12.1)], 0, 1, ""),
        ([("fresh", 9.7, 9.9), ("fresh", 12.0, 12.1)], 0, 1, ""),
        ([(f"{n}", 9.7, 9.9) for n in range(5)] + [(f"{n}", 12.0, 12.1) for n in range(5)], 0, 5, "not stored"),
        ([("twice", 1.0, 1.1), ("twice", 2.0, 2.1)], 1, 0, ""),
        ([("late", 11.0, 11.1), ("late", 12.0, 12.1)], 1, 0, ""),
        ([(f"{n}", 9.9, 0.0) for n in range(3)] + [(f"{n}", 12.0, 12.1) for n in range(3)], 0, 3, "at most 2"),
    ],
)
def test_what_was_paid_again(entries: list[judge.Entry], repaid: int, reissued: int, wrong: str) -> None:
    verdict = judge.calls(entries, [KILL])
    assert (len(verdict.repaid), verdict.reissued) == (repaid, reissued)
    assert (wrong in verdict.wrong[0]) if wrong else not verdict.wrong


def test_a_request_is_held_against_the_first_fault_it_met() -> None:
    second = replace(KILL, struck_s=20.0, over_s=20.1)
    verdict = judge.calls([("open", 9.9, 0.0), ("open", 25.0, 25.1)], [second, KILL])
    assert verdict == Verdict(reissued=1)
    stored_later = replace(second, stored=frozenset({"open"}))
    assert judge.calls([("open", 9.9, 10.05), ("open", 25.0, 25.1)], [KILL, stored_later]).repaid == ("open",)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20), st.just(0.0)), max_size=12))
def test_every_repeat_is_paid_or_issued_again(entries: list[judge.Entry]) -> None:
    verdict = judge.calls(entries, [KILL])
    names = [name for name, _, _ in entries]
    repeated = {name for name in names if names.count(name) > 1}
    assert bool(verdict.repaid or verdict.reissued) == bool(repeated)
    assert set(verdict.repaid) <= repeated


def test_a_row_passes_only_when_it_was_run_and_nothing_is_wrong() -> None:
    assert Row("x", faults=3).passed
    assert not Row("x").passed, "without a fault nothing was shown"
    assert not Row("x", faults=3, not_run="no root").passed
    for verdict in (Verdict(lost=("1",)), Verdict(double=("1",)), Verdict(repaid=("1",)), complaint("bad")):
        assert not Row("x", faults=3, verdict=verdict).passed
    told = judge.total([Row("x", 3, Verdict(lost=("1",), reissued=2)), Row("y", 2, Verdict(repaid=("a", "b")))])
    assert {name: told[name] for name in ("lost", "double", "repaid", "faults")} == {
        "lost": 1,
        "double": 0,
        "repaid": 2,
        "faults": 5,
    }
    assert told["rows"][0]["seen"]["issued_again"] == 2


def test_an_answer_names_its_request_and_a_cool_one_is_mostly_right() -> None:
    bodies = [
        json.dumps({"messages": [{"content": f"message {n} of refund"}], "temperature": 0.1}).encode()
        for n in range(99)
    ]
    said = [answer(body) for body in bodies]
    assert [MARK.findall(text.encode()) for text in said] == [[digest(body).encode()] for body in bodies]
    assert 70 < sum(text.startswith("refund ") for text in said) < 99
    assert {text.split()[0] for text in said} <= set(LABELS)


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert stored(tmp_path) == frozenset()


def test_a_disk_that_is_full_stays_full_and_an_error_passes(tmp_path: Path) -> None:
    script = """
import errno, os, sys
from pathlib import Path
from chaos_child import Fault, Saboteur
Saboteur([sys.argv[1]], Fault(sys.argv[2], op=2, kind="text")).install()
came = []
for number in range(4):
    try:
        Path(sys.argv[1], f"{number}.txt").write_text("x")
        came.append("ok")
    except OSError as error:
        came.append(errno.errorcode[error.errno])
os.remove(Path(sys.argv[1], "0.txt"))
Path(sys.argv[3]).write_text("elsewhere")
print(*came)
"""
    for act, came in (("full", "ok ENOSPC ENOSPC ENOSPC"), ("io", "ok EIO ok ok")):
        folder = tmp_path / act
        folder.mkdir()
        words = [sys.executable, "-c", script, str(folder), act, str(tmp_path / "other")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "scripts"), str(ROOT)))}
        assert subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout.strip() == came


def test_a_moment_is_told_in_words() -> None:
    assert str(Fault("kill", 3, "write", "tail-*", side="half")) == "kill half write tail-* 3"
    assert str(Fault("kill", 2, call="m:Table.append", side="after")) == "kill after Table.append 2"
    assert Saboteur([], None).operations == []


def test_recovery_is_counted_from_the_loss_to_the_first_full_second() -> None:
    steady = [("x", n / 10, 0.0) for n in range(100)]
    assert chaos_nodes.recovery_s(steady, 5.0) == 0.0
    gap = [entry for entry in steady if not 5.0 <= entry[1] < 7.5]
    assert chaos_nodes.recovery_s(gap, 5.0) == pytest.approx(2.5, abs=0.3)
    over = [entry for entry in steady if entry[1] < 5.0] + [("x", 9.0, 0.0)]
    assert chaos_nodes.recovery_s(over, 5.0) == chaos_nodes.GIVEN_UP_S


def test_a_storm_is_measured_second_by_second() -> None:
    seconds = {n: [10, 10] for n in range(8)} | {n: [2, 0] for n in range(8, 68)} | {n: [10, 10] for n in range(70, 90)}
    told = chaos_calls.weathered(seconds, 8, 68)
    assert told["back_to_90_percent_after_s"] == 2
    assert told["calls_per_success"] == pytest.approx((80 + 120 + 200) / 280, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, ""),
        ({"replies": 1}, "taken for good"),
        ({"errors": {"Refused": 100}}, "became ['Refused']"),
        ({"stored": 3}, "in the cache"),
        ({"told_usd": 0.0}, "worked on"),
        ({"longest_s": 4.5}, "deadline"),
    ],
)
def test_broken_answers_must_be_classified_unstored_and_paid(changes: dict[str, Any], wrong: str) -> None:
    good: dict[str, Any] = {"longest_s": 1.0, "told_calls": 100, "told_usd": 0.1, "requests": 100}
    came = chaos_calls.Answered(**{**good, "errors": {"BadReply": 100}, **changes})
    verdict = chaos_calls.taken(chaos_calls.Mode("html", ("BadReply",)), came, 100)
    assert (wrong in " ".join(verdict.wrong)) if wrong else verdict.passed


def test_a_budget_may_be_passed_by_what_was_in_flight_alone() -> None:
    cap = chaos_budget.Cap(calls=100, usd=0.05, mode="ok", share=0.1, seed=0)
    most = chaos_budget.IN_FLIGHT + 50
    assert chaos_budget.kept(cap, most, {"status": "finished", "paid_usd": most * 0.001}) == (Verdict(), 16.0)
    assert "beyond the cap" in chaos_budget.kept(cap, most + 1, {})[0].wrong[0]
    assert "the run tells 0.04" in chaos_budget.kept(cap, 45, {"status": "finished", "paid_usd": 0.04})[0].wrong[0]


def test_growth_is_that_of_processes_which_lived_through_the_run() -> None:
    def samples(name: str, pid: int, mb: float, handles: int) -> list[chaos_soak.Sample]:
        return [
            chaos_soak.Sample(name, pid, n, 100 + mb * n / 1000, 20 + handles * (n > 900)) for n in range(0, 1001, 10)
        ]

    found = chaos_soak.growths([*samples("flat", 1, 0, 0), *samples("leak", 2, 200, 0), *samples("open", 3, 0, 30)])
    assert [(one.name, one.leaks) for one in found] == [("flat", False), ("leak", True), ("open", True)]
    assert chaos_soak.growths(samples("short", 1, 500, 0)[:30]) != found


def test_rows_are_known_by_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos.py", "--rows", "nothing"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit):
        chaos.main()
    assert "'nothing'" in capsys.readouterr().err


def test_an_injector_that_breaks_fails_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: object) -> Row:
        raise RuntimeError("no cluster")

    monkeypatch.setitem(chaos.ROWS, "soak", broken)
    row = chaos.inject("soak", Terms(tmp_path / "soak", 1, True))
    assert not row.passed
    assert "no cluster" in chaos.shown(row)


@pytest.mark.slow
def test_a_child_dies_where_it_is_told_to(tmp_path: Path) -> None:
    config = World(model={"kind": "scripted", "latency_s": 0.0}).write(tmp_path, "")
    with Nursery(tmp_path) as nursery:
        words = ["run", str(config), "--out", str(tmp_path / "out"), "--json"]
        killed = nursery.run(words, [tmp_path], Fault("kill", 2, "write", "tail-*", side="half"))
        assert killed.code == -signal.SIGKILL
        assert (tmp_path / "out" / "trials" / "tail-000001.arrows").exists()
        whole = nursery.run(["resume", str(tmp_path / "out"), "--json"], [tmp_path])
    assert whole.code == 0, whole.said
    assert ("rename", "front.json") in whole.operations


@pytest.mark.slow
def test_two_drivers_on_one_folder_for_real() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--short", "--rows", "twins", "--seed", "1", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert {name: told[name] for name in ("lost", "double", "repaid", "faults")} == {
        "lost": 0,
        "double": 0,
        "repaid": 0,
        "faults": 5,
    }
