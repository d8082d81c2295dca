"""`evocluster submit` and `evocluster job` against a stand-in for Ray's job server: exit codes, names, results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command import Outcome, call, environment
from job_server import TOKEN, JobServer, Played, line, serving
from small import settings, small_config, write_config

from evocluster import __version__, build
from evocluster import config as configs
from evocluster.cli import arrival

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
PROGRESS = {"phase": "search", "generation": 2, "evaluations": 40, "calls": 50, "elapsed_s": 3.0}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with serving(tmp_path / "server") as server:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.url)
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A config file."""
    return write_config(tmp_path / "project", cache={"path": None})


def ended(folder: str = "/far/small", status: str = "finished") -> str:
    """The log of a run that came to an end."""
    arrived = line("arrived", folder=folder) + line("progress", progress=PROGRESS)
    return arrived + line("result", result={"folder": folder, "run": {"status": status, "calls": 50}, "front": {}})


def playing(log: str, exit_code: int = 0) -> Any:
    """A server's answer to a submission: the job prints this and ends."""
    return lambda server, job: server.play(job, log, exit_code)


@pytest.mark.parametrize("code", [0, 1, 5, 7, 130])
def test_the_exit_code_is_that_of_the_run(code: int, server: JobServer, project: Path) -> None:
    server.on_submit = playing(ended(), code)
    outcome = call("submit", project)
    assert outcome.code == code
    assert "Run folder on the cluster: /far/small" in outcome.out
    assert "run folder on the cluster: /far/small" in outcome.err


def test_what_is_submitted_is_the_ordinary_verb_with_its_packages(server: JobServer, project: Path) -> None:
    outcome = call(
        "submit", project, "--no-follow", "--json", "--name", "first", "--out", "s3://bucket/first", "--grace", 7
    )
    assert json.loads(outcome.out) == {"run": "first", "id": "first"}
    body = server.jobs["first"].body
    assert body["entrypoint"].startswith("exec python -m evocluster.cli.arrival run --out s3://bucket/first --config")
    assert body["metadata"] == {
        "evocluster_run": "first",
        "evocluster_out": "s3://bucket/first",
        "evocluster_version": __version__,
    }
    assert body["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "7"}
    uris = [body["runtime_env"]["working_dir"], *body["runtime_env"]["py_modules"]]
    assert {uri.removeprefix("gcs://") for uri in uris} == set(server.packages)


def test_json_is_the_result_and_nothing_else(server: JobServer, project: Path) -> None:
    server.on_submit = playing(ended())
    outcome = call("submit", project, "--json")
    assert json.loads(outcome.out)["run"]["status"] == "finished"


def test_a_name_is_taken_once_and_gone_on_with_under_the_next_id(server: JobServer, project: Path) -> None:
    server.on_submit = playing(ended(status="interrupted"), 130)
    assert call("submit", project, "--out", "~/there").code == 130
    again = call("submit", project)
    assert again.code == 3
    assert "evocluster submit CONFIG --resume small" in again.err
    assert "--name NAME" in again.err
    server.on_submit = playing(ended())
    assert call("submit", project, "--resume", "small", "--set", "budget.generations=4").code == 0
    command = server.jobs["small~2"].body["entrypoint"]
    assert "arrival resume --out '~/there'" in command
    assert "--set=budget.generations=4" in command
    assert call("job", "status", "small").out.startswith("small~2: SUCCEEDED")


def test_a_run_that_is_under_way_is_not_started_twice(server: JobServer, project: Path) -> None:
    call("submit", project, "--no-follow")
    for words in ((), ("--resume", "small")):
        outcome = call("submit", project, *words)
        assert outcome.code == 3
        assert "evocluster job attach small" in outcome.err
    assert list(server.jobs) == ["small"]


def test_two_names_for_one_run_contradict_each_other(server: JobServer, project: Path) -> None:
    assert call("submit", project, "--name", "a", "--resume", "b").code == 2
    assert server.jobs == {}


def test_what_is_wrong_with_the_config_is_told_here_and_nothing_is_sent(server: JobServer, project: Path) -> None:
    (project.parent / "train.jsonl").unlink()
    assert call("submit", project).code == 2
    assert (server.jobs, server.packages) == ({}, {})


def test_a_dry_run_lists_what_would_travel_and_asks_nobody(project: Path) -> None:
    outcome = call("submit", project, "--dry-run", "--json", "--address", "http://127.0.0.1:9")
    assert outcome.code == 0
    assert [each.rpartition("/")[2] for each in json.loads(outcome.out)["files"]] == [
        *("test.jsonl", "train.jsonl", "validation.jsonl")
    ]
    assert "train.jsonl" in outcome.err


def test_a_wrong_token_and_no_cluster_leave_with_the_code_of_the_job_server(
    server: JobServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-0123456789")
    refused = call("submit", project)
    assert (refused.code, "does not take this token" in refused.err) == (10, True)
    assert "planted" not in refused.err
    assert call("job", "list", "--address", "http://127.0.0.1:9").code == 10


def test_another_host_over_plain_http_is_warned_of() -> None:
    outcome = call("job", "list", "--address", "http://192.0.2.1:9", columns=400)
    assert "not encrypted" in outcome.err


def test_a_job_that_cannot_start_says_why(server: JobServer, project: Path) -> None:
    server.on_submit = playing("error: not set on this cluster: SOME_KEY\n", 2)
    outcome = call("submit", project)
    assert (outcome.code, "not set on this cluster: SOME_KEY" in outcome.err) == (2, True)

    def fail(server: JobServer, job: Played) -> None:
        job.status, job.message = "FAILED", "runtime_env setup failed: no space"

    server.on_submit = fail
    outcome = call("submit", project, "--name", "other")
    assert (outcome.code, "runtime_env setup failed: no space" in outcome.err) == (10, True)


def test_stop_ends_a_run_and_attach_leaves_with_interrupted(server: JobServer, project: Path) -> None:
    call("submit", project, "--no-follow")
    server.jobs["small"].log = line("arrived", folder="/far/small") + line("progress", progress=PROGRESS)
    stopped = call("job", "stop", "small")
    assert (stopped.code, "small: STOPPED" in stopped.out) == (0, True)
    attached = call("job", "attach", "small")
    assert attached.code == 130
    assert "evocluster submit CONFIG --resume small" in attached.err
    assert call("job", "stop", "small").code == 0


def test_status_list_and_logs_tell_how_far_a_run_is(server: JobServer, project: Path) -> None:
    call("submit", project, "--no-follow")
    server.jobs["small"].log = (
        line("arrived", folder="/far/small") + "a word\x1b[2J\n" + line("progress", progress=PROGRESS)
    )
    status = call("job", "status", "small").out
    assert "small: RUNNING since" in status
    assert "run folder on the cluster: /far/small" in status
    assert "search | generation 2 | 40 evaluations" in status
    told = json.loads(call("job", "status", "small", "--json").out)
    assert (told["status"], told["progress"]["evaluations"]) == ("RUNNING", 40)
    assert call("job", "logs", "small").out.splitlines()[0] == "a word"
    assert [each["run"] for each in json.loads(call("job", "list", "--json").out)] == ["small"]
    unknown = call("job", "status", "other")
    assert (unknown.code, "there are: small" in unknown.err) == (10, True)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a shipped run leaves it."""
    folder = tmp_path_factory.mktemp("far") / configs.SHIPPED
    result = build.run(build.plan(small_config(folder, cache={"path": None})), folder / "out")
    return result.path


def fetched(server: JobServer, project: Path, far: Path, *words: object) -> Outcome:
    """`job fetch`, with the command of its job carried out for real."""
    call("submit", project, "--no-follow", "--out", far)
    server.on_submit = JobServer.carry_out
    return call("job", "fetch", "small", *words)


def test_fetch_brings_the_folder_whole(server: JobServer, project: Path, far: Path, tmp_path: Path) -> None:
    server.cuts = [1500, 40_000]
    outcome = fetched(server, project, far, "--out", tmp_path / "here", "--config", project, "--json")
    assert outcome.code == 0, outcome.err
    for file in ("front.json", "run.json", "genomes.jsonl", "trials/part-000001.parquet"):
        assert (tmp_path / "here" / file).read_bytes() == (far / file).read_bytes()
    here = configs.load(tmp_path / "here" / "config.yaml")
    assert here.task is not None
    assert here.task.data.train == str(project.parent / "train.jsonl")
    assert call("show", tmp_path / "here").code == 0
    assert call("job", "fetch", "small", "--out", tmp_path / "here").code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "project", "server"]


def test_what_did_not_arrive_whole_is_not_there(server: JobServer, project: Path, far: Path, tmp_path: Path) -> None:
    def lossy(server: JobServer, job: Played) -> None:
        server.carry_out(job)
        lines = [each for each in job.log.splitlines() if '"number": 0' not in each]
        job.log = "\n".join(lines) + "\n"

    call("submit", project, "--no-follow", "--out", far)
    server.on_submit = lossy
    outcome = call("job", "fetch", "small", "--out", tmp_path / "here")
    assert (outcome.code, "part 0" in outcome.err) == (4, True)
    assert not (tmp_path / "here").exists()


def test_a_folder_that_is_not_there_yet_cannot_be_fetched(server: JobServer, project: Path, tmp_path: Path) -> None:
    outcome = fetched(server, project, tmp_path / "nowhere", "--out", tmp_path / "here")
    assert (outcome.code, "holds no run" in outcome.err) == (10, True)


def test_the_job_names_every_variable_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SET_KEY", "x")
    words = ["run", "--out", "/x", "--needs=SET_KEY", "--needs=UNSET_KEY", "--needs=OTHER_UNSET_KEY"]
    monkeypatch.delenv("UNSET_KEY", raising=False)
    assert arrival.main(words) == 2
    said = capsys.readouterr().out
    assert "not set on this cluster: UNSET_KEY, OTHER_UNSET_KEY" in said
    assert "secretKeyRef" in said


def test_the_job_names_what_is_not_installed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["pymoo>=9999", "no-such-package-of-anybody>=1", "pydantic>=2", "uvloop; sys_platform == 'win32'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    said = arrival.lacking()
    assert "pymoo" in said
    assert ">=9999" in said
    assert "no-such-package-of-anybody is not installed" in said
    assert "pydantic" not in said
    assert "uvloop" not in said


def test_this_environment_lacks_nothing() -> None:
    assert arrival.lacking() == ""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_lets_a_run_save_what_is_in_flight(sent: signal.Signals, tmp_path: Path) -> None:
    fake = {**settings()["models"]["fake"], "latency_s": 0.1, "time_scale": 1.0, "sigma": 0.1}
    config = write_config(tmp_path, models={"fake": fake}, cache={"path": None})
    words = [sys.executable, "-m", "evocluster.cli.main", "run", str(config), "--out", str(tmp_path / "run")]
    run = subprocess.Popen([*words, "--progress", "json"], stdout=subprocess.PIPE, env=environment(), text=True)
    assert run.stdout is not None
    assert json.loads(run.stdout.readline())["evocluster"] == "progress"
    time.sleep(0.5)
    os.kill(run.pid, sent)
    told = [json.loads(each) for each in run.communicate(timeout=60)[0].splitlines()]
    assert run.returncode == 130
    assert told[-1]["result"]["run"]["status"] == "interrupted"
    assert call("resume", tmp_path / "run").code == 0
    calm = small_config(tmp_path / "calm", models={"fake": {**fake, "time_scale": 0}}, cache={"path": None})
    build.run(build.plan(calm), tmp_path / "whole")
    assert (tmp_path / "run" / "front.json").read_text() == (tmp_path / "whole" / "front.json").read_text()
