"""The audit of locked packages: what is a hole, what is excused, and what could not be asked."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import audit
import pytest
from audit import Excuse, judged

TODAY = date(2026, 11, 22)
HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
BAD = {"name": "bad", "version": "1.0", "vulns": [HOLE]}
GOOD = {"name": "good", "version": "1.0", "vulns": []}
EXCUSE = Excuse("CVE-1", "bad", "we never call it", date(2027, 1, 1))


def test_a_hole_fails_and_says_where_it_is_fixed() -> None:
    found = judged([GOOD, BAD], [], TODAY, strict=False)
    assert found.failed
    assert "bad 1.0: PYSEC-1, fixed in 2.0; raise it in the lock" in found.lines


def test_an_excuse_covers_its_hole_of_its_package_until_its_review() -> None:
    assert not judged([GOOD, BAD], [EXCUSE], TODAY, strict=True).failed
    assert judged([{**BAD, "name": "other"}], [EXCUSE], TODAY, strict=False).failed
    assert judged([{**BAD, "vulns": [HOLE, {"id": "CVE-2"}]}], [EXCUSE], TODAY, strict=False).failed
    due = judged([BAD], [EXCUSE], EXCUSE.review, strict=False)
    assert due.failed
    assert "was to be reviewed on 2027-01-01: we never call it" in due.lines[0]


def test_an_excuse_for_nothing_is_told() -> None:
    found = judged([{**BAD, "vulns": []}], [EXCUSE], TODAY, strict=False)
    assert not found.failed
    assert "bad: CVE-1 is excused for nothing now; remove it" in found.lines


@pytest.mark.parametrize("strict", [False, True])
def test_who_could_not_be_asked_about_is_counted(strict: bool) -> None:
    found = judged([GOOD, {"name": "x", "skip_reason": "not found"}], [], TODAY, strict)
    assert found.failed is strict
    assert "could not ask about 1 of 2 packages: no service answered from this machine" in found.lines


@pytest.mark.parametrize("said", ["", "Traceback (most recent call last): ...", "{}"])
def test_a_service_that_does_not_answer_is_no_answer(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def run(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.ask(Path("requirements.lock"), "pypi") is None


@pytest.mark.parametrize("left_out", ["why", "package", "review", "id"])
def test_an_excuse_without_its_reason_is_none(left_out: str) -> None:
    lines = {"id": '"CVE-1"', "package": '"bad"', "why": '"x"', "review": "2027-01-01"}
    text = "\n".join(f"{name} = {value}" for name, value in lines.items() if name != left_out)
    with pytest.raises(ValueError, match="are all needed"):
        audit.excuses(f"[[tool.audit.excused]]\n{text}\n")


def test_what_is_excused_is_locked_and_every_locked_package_is_seen() -> None:
    lock = (audit.ROOT / "requirements.lock").read_text()
    names = [one["name"] for one in audit.locked(lock)]
    excused = audit.excuses((audit.ROOT / "pyproject.toml").read_text())
    assert {one.package for one in excused} <= set(names)
    assert (
        len(set(names))
        == len(names)
        == sum(line.startswith("    --hash") is False and "==" in line for line in lock.splitlines())
    )
