"""The verbs of deployments on a terminal: exit codes, one JSON object, errors that say what to do, inert texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Outcome, call
from deployed_world import NAME, NOW, deployed, made

from evocluster.deploying import Home

HOSTILE = "\x1b[31mred\x1b[0m [bold]x[/bold] \x1b]0;title\x07"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    with deployed(tmp_path) as home:
        return home.folder


def told(done: Outcome) -> dict[str, Any]:
    """What --json printed: one object, and nothing else."""
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def at(where: Path, *words: object) -> Outcome:
    return call(*words, "--home", where, columns=200)


def test_from_a_run_to_a_version(tmp_path: Path) -> None:
    where = tmp_path / "deployments"
    done = at(where, "deploy", made(), "--as", NAME, "--genome", "start")
    assert done.code == 0
    assert f"{NAME} v1.0 (snapshot " in done.out
    assert "evocluster serve" in done.out
    second = told(at(where, "deploy", made(6), "--as", NAME, "--json"))
    assert (second["version"], second["stage"]) == ("v2.0", "candidate")
    shown = at(where, "history", NAME)
    assert "100% (incumbent)" in shown.out
    versions = told(at(where, "history", NAME, "--json"))
    assert [row["version"] for row in versions["versions"]] == ["v2.0", "v1.0"]
    status = at(where, "status", NAME)
    assert f"{NAME}: v1.0" in status.out
    assert second["experiment"] in status.out
    assert told(at(where, "status", NAME, "--json"))["version"] == "v1.0"


def test_a_candidate_that_is_live_and_back(where: Path) -> None:
    live = at(where, "deploy", made(6), "--as", NAME, "--live")
    assert "takes its share of the traffic" in live.out
    assert "traffic: v1.0 80%, v2.0 20%" in at(where, "status", NAME).out
    back = at(where, "rollback", NAME, "--why", "too early", "--wait", "0")
    assert back.code == 0
    assert f"{NAME} serves v1.0" in back.out
    again = told(at(where, "rollback", NAME, "v2.0", "--json", "--wait", "0"))
    assert (again["version"], again["late"]) == ("v2.0", [])


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["history", "nobody"], ["'nobody'", NAME, "evocluster deploy RUN --as nobody"]),
        (["status", "nobody"], ["'nobody'", NAME]),
        (["rollback", "nobody"], ["'nobody'", NAME]),
        (["rollback", NAME, "v7.0"], ["'v7.0'", "v1.0"]),
        (["rollback", NAME], ["served nothing before", "evocluster history"]),
        (["rollback", NAME, "v1.0", "--layer", "tone"], ["'tone'", "prompt, memory, strategy"]),
        (["erase", "nobody", "--user", "jane"], ["'nobody'", NAME]),
        (["erase", NAME, "--user", ""], ["--user"]),
        (["analyze", "nobody"], ["'nobody'", NAME]),
        (["promote", "nobody"], ["'nobody'", NAME]),
        (["evolve", "nobody"], ["'nobody'", NAME]),
        (["evolve", NAME, "--layer", "tone"], ["'tone'", "prompt, memory, strategy"]),
        (["serve", "nobody"], ["'nobody'", NAME]),
        (["serve", NAME, "--host", "0.0.0.0", "--port", "0"], ["'0.0.0.0'", "evocluster keys add"]),
        (["deploy", "runs/none", "--as", "a/b"], ["'a/b'"]),
        (["keys", "add", "a/b"], ["'a/b'", "letters"]),
        (["keys", "revoke", "nobody"], ["'nobody'", "evocluster keys list"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(where: Path, words: list[str], texts: list[str]) -> None:
    done = at(where, *words)
    assert (done.code, done.out) == (2, "")
    for text in ["error: ", *texts]:
        assert text in done.err


def test_a_run_that_is_none(where: Path) -> None:
    done = at(where, "deploy", "runs/none", "--as", NAME)
    assert done.code == 4
    assert "runs/none" in done.err


def test_a_ledger_that_is_none_is_told_without_its_password(where: Path) -> None:
    done = call("status", NAME, "--home", where, "--ledger", "postgresql://me:hunter22@127.0.0.1:1/x", columns=200)
    assert done.code == 6
    assert "hunter22" not in done.err
    assert "127.0.0.1" in done.err


def test_keys_are_shown_once(where: Path) -> None:
    key = at(where, "keys", "add", "frontend", "--tenant", "web").out.strip()
    assert key.startswith("evo-")
    assert told(at(where, "keys", "list", "--json"))["keys"][0]["tenant"] == "web"
    listed = at(where, "keys", "list")
    assert "frontend" in listed.out
    assert key not in listed.out
    assert at(where, "keys", "revoke", "frontend").code == 0
    assert at(where, "keys", "revoke", "frontend").code == 2


def test_erase(where: Path) -> None:
    done = at(where, "erase", NAME, "--user", "jane")
    assert done.code == 0
    assert f"{NAME}: 0 requests of the user were erased" in done.out
    found = told(at(where, "erase", NAME, "--user", "jane", "--json"))
    assert (found["requests"], found["version"], found["moved"]) == (0, "v1.0", [])


def test_the_daemons_jobs_one_by_one(where: Path) -> None:
    assert f"nothing found on {NAME}" in at(where, "analyze", NAME).out
    assert told(at(where, "analyze", NAME, "--json")) == {"deployment": NAME, "findings": []}
    queued = told(at(where, "evolve", NAME, "--layer", "memory", "--json"))
    assert list(queued["layers"]) == ["memory"]
    assert queued["layers"]["memory"] in at(where, "status", NAME).out
    done = at(where, "promote", NAME, "--json")
    assert "rejected" in done.err  # what people should hear of is told on the side
    promoted = json.loads(done.out)
    assert (promoted["deployment"], promoted["steps"] > 0) == (NAME, True)
    assert "rejected" in at(where, "status", NAME).out  # traffic teaches nothing
    assert "steps" in at(where, "promote", NAME).out


def test_what_people_wrote_is_inert_on_the_terminal(where: Path) -> None:
    with Home.open(where) as home:
        row = {"id": "f", "deployment": NAME, "at": NOW, "kind": "failures", "severity": "high", "layer": "prompt"}
        home.ledger.put("findings", {**row, "intent": HOSTILE, "title": HOSTILE, "recommendation": HOSTILE})
        incident = {"id": "i", "deployment": NAME, "at": NOW, "kind": "breaker", "evidence": {"why": HOSTILE}}
        home.ledger.put("incidents", incident)
        home.ledger.put(
            "experiments", {"id": "x", "deployment": NAME, "stage_at": NOW, "started_at": NOW, "why": HOSTILE}
        )
        home.ledger.change("versions", {"deployment": NAME}, why=HOSTILE)
        home.ledger.put("replicas", {"id": HOSTILE, "deployment": NAME, "seen_at": NOW, "url": HOSTILE})
    for words in (["status", NAME], ["history", NAME]):
        done = call(*words, "--home", where, columns=400)
        assert done.code == 0
        assert not {"\x1b", "\x07"} & set(done.out + done.err)
        assert "[bold]x[/bold]" in done.out
    assert told(at(where, "status", NAME, "--json"))["findings"][0]["title"] == HOSTILE


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("sqlalchemy", ["history", NAME]),
        ("sqlalchemy", ["deploy", "run", "--as", NAME]),
        ("uvicorn", ["serve"]),
        ("croniter", ["daemon"]),
        ("sqlalchemy", ["keys", "list"]),
        ("sqlalchemy", ["erase", NAME, "--user", "x"]),
    ],
)
def test_a_missing_extra_is_one_line(tmp_path: Path, library: str, words: list[str]) -> None:
    said = [*words, "--home", str(tmp_path)]
    code = (
        f"import sys\nsys.modules[{library!r}] = None\nsys.argv = ['evocluster', *{said!r}]\n"
        "from evocluster.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert 'pip install "evocluster[online]"' in " ".join(done.stderr.split())
