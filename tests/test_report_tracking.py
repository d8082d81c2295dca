"""The export into MLflow, read back with MLflow's own client from a real store; nothing lost, nothing doubled."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import call
from small import edited
from two_runs import PLAIN, finished

from evocluster.errors import ConfigError, RunDamaged, StoreError
from evocluster.report.entries import STEPS, VALUE, Entry, identity, member_entries, run_entry, thinned
from evocluster.report.result import Result
from evocluster.report.tracking import Exported, to_mlflow, without_password

# MLflow declares its tables with a strategy that SQLAlchemy 2.1 deprecates; that is said once, at its import.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run with a front beside its start."""
    result = finished(tmp_path_factory.mktemp("run"), PLAIN, budget={"generations": 6})
    assert len(result.members) >= 2
    return result


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite store of this module."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def nested(uri: str, done: Exported) -> dict[str, Any]:
    """The nested runs by genome."""
    found = client(uri).search_runs([done.experiment_id], f"tags.`mlflow.parentRunId` = '{done.run_id}'")
    return {run.data.tags["evocluster.genome"]: run for run in found}


def artefacts(uri: str, run_id: str, path: str | None = None) -> dict[str, str]:
    """Path -> text of the files under a run."""
    there = client(uri)
    folder = Path(there.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    return {
        file.path: (folder / file.path).read_text() for file in there.list_artifacts(run_id, path) if not file.is_dir
    }


def changed(result: Result, folder: Path, **run: Any) -> Result:
    """A copy of a run folder with another run.json."""
    copy = Path(shutil.copytree(result.path, folder / "run"))
    edited(copy, **run)
    return Result(copy)


def with_genes(result: Result, folder: Path, genes: dict[str, Any], **run: Any) -> Result:
    """A copy whose recommended member has these genes beside its own."""
    copied = changed(result, folder, **run)
    front = dict(copied.front)
    for member in front["members"]:
        if member["recommended"]:
            member["genes"] = {**member["genes"], **genes}
    (copied.path / "front.json").write_text(json.dumps(front))
    return Result(copied.path)


def test_a_run_is_read_back_whole(run: Result, uri: str) -> None:
    done = to_mlflow(run, uri, "whole")
    found = client(uri).get_run(done.run_id)
    assert done.created
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "small"
    assert found.info.end_time - found.info.start_time == round(run.run["elapsed_s"] * 1000)
    best, start = run.recommended, run.start
    assert best is not None
    assert start is not None
    for name, value in best["genes"].items():
        assert found.data.params[name] == (value if isinstance(value, str) else json.dumps(value)), name
    assert found.data.params["run.seed"] == str(run.run["seed"])
    assert found.data.params["run.data.test"] == run.run["data"]["test"]
    for split in ("train", "validation", "test"):
        for name, interval in best[split].items():
            assert found.data.metrics[f"{split}/{name}"] == interval["value"]
            assert found.data.metrics[f"{split}/{name}_low"] == interval["low"]
            assert found.data.metrics[f"start/{split}/{name}_high"] == start[split][name]["high"]
    assert found.data.tags["evocluster.recommended"] == best["genome"]
    assert found.data.tags["evocluster.start"] == start["genome"]
    assert found.data.tags["evocluster.stop_reason"] == "generations"
    assert json.loads(found.data.tags["evocluster.versions"]) == run.run["versions"]
    assert "quality 0." in found.data.tags["mlflow.note.content"]
    files = artefacts(uri, done.run_id)
    assert set(files) == {"config.yaml", "run.json", "front.json", "genomes.jsonl"}
    assert files["front.json"] == (run.path / "front.json").read_text()


def test_curves_end_at_what_the_run_spent(run: Result, uri: str) -> None:
    done = to_mlflow(run, uri, "curves", nested=False)
    there = client(uri)
    for name in ("usd", "paid_usd", "calls", "evaluations"):
        curve = there.get_metric_history(done.run_id, f"spend/{name}")
        assert [point.step for point in curve] == list(range(1, run.run["commits"] + 1))
        assert curve[-1].value == pytest.approx(run.run[name])
        assert [point.value for point in curve] == sorted(point.value for point in curve)
    volume = there.get_metric_history(done.run_id, "hypervolume")
    assert [(point.step, point.value) for point in volume] == list(enumerate(run.run["hypervolume"]))
    assert done.members == ()


def test_every_member_is_a_nested_run(run: Result, uri: str) -> None:
    done = to_mlflow(run, uri, "nested")
    found = nested(uri, done)
    members = {one["genome"]: one for one in [*run.members, run.start or {}]}
    assert set(found) == set(members)
    assert {one.info.run_id for one in found.values()} == set(done.members)
    for genome, member in members.items():
        data = found[genome].data
        assert data.params["rubric"] == member["genes"]["rubric"]
        assert data.metrics["test/quality"] == member["test"]["quality"]["value"]
        assert data.metrics["gap/quality"] == member["gap"]["quality"]
        assert data.tags["mlflow.parentRunId"] == done.run_id
        assert data.tags["evocluster.operator"] == member["operator"]
    roles = sorted(one.data.tags["evocluster.role"] for one in found.values())
    assert "recommended" in " ".join(roles)
    assert "start" in " ".join(roles)


def test_exporting_again_changes_nothing(run: Result, uri: str) -> None:
    first = to_mlflow(run, uri, "again", with_trials=True)
    there = client(uri)
    before = there.get_run(first.run_id).data.to_dictionary()
    second = to_mlflow(Result(run.path), uri, "again", with_trials=True)
    assert (second.run_id, second.created, second.members) == (first.run_id, False, first.members)
    assert len(there.search_runs([first.experiment_id])) == 1 + len(first.members)
    assert there.get_run(first.run_id).data.to_dictionary() == before
    for name in before["metrics"]:
        steps = [point.step for point in there.get_metric_history(first.run_id, name)]
        assert len(steps) == len(set(steps)), name
    trials = there.list_artifacts(first.run_id, "trials")
    assert [file.path for file in trials] == ["trials/part-000001.parquet"]


def test_a_run_that_went_on_is_updated(run: Result, uri: str, tmp_path: Path) -> None:
    early = changed(run, tmp_path, status="interrupted", elapsed_s=0.1, hypervolume=run.run["hypervolume"][:2], calls=5)
    other = {**run.members[-1], "genome": "f" * 16, "recommended": False}
    (early.path / "front.json").write_text(json.dumps({**run.front, "members": [*run.members, other]}))
    early = Result(early.path)
    first = to_mlflow(early, uri, "went on")
    there = client(uri)
    assert there.get_run(first.run_id).info.status == "KILLED"
    assert "rubric" not in there.get_run(first.run_id).data.params, "the recommended one may change yet"
    there.set_tag(first.run_id, "mine", "kept")
    there.set_tag(first.run_id, "mlflow.note.content", "my own words")
    done = to_mlflow(run, uri, "went on", run_name="renamed")
    found = there.get_run(first.run_id)
    assert (done.run_id, done.created) == (first.run_id, False)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "renamed")
    assert found.data.params["rubric"] == (run.recommended or {})["genes"]["rubric"]
    assert found.data.tags["mine"] == "kept"
    assert found.data.tags["mlflow.note.content"] == "my own words"
    assert found.data.metrics["total/calls"] == run.run["calls"]
    assert [point.value for point in there.get_metric_history(first.run_id, "total/calls")] == [5, run.run["calls"]]
    assert len(there.get_metric_history(first.run_id, "hypervolume")) == len(run.run["hypervolume"])
    fronts = {genome: one.data.tags["evocluster.on_front"] for genome, one in nested(uri, done).items()}
    assert fronts.pop("f" * 16) == "false"
    assert all(fronts[one["genome"]] == "true" for one in run.members)


def test_a_run_without_a_front_is_exported(run: Result, uri: str, tmp_path: Path) -> None:
    going = changed(run, tmp_path, status="running", hypervolume=[])
    (going.path / "front.json").unlink()
    done = to_mlflow(Result(going.path), uri, "running")
    found = client(uri).get_run(done.run_id)
    assert found.info.status == "RUNNING"
    assert found.data.metrics["spend/calls"] == run.run["calls"]
    assert found.data.tags["mlflow.note.content"] == "evocluster run, running, no front yet"
    assert done.members == ()


WILD_NAMES = ("größe", "a/b", "a:b", "a_b", "ü" * 300, "é?", "é!", "../up", " ", "")


def test_limits_lose_nothing(run: Result, uri: str, tmp_path: Path) -> None:
    long = "Ein langer Text. " * 1000 + "\x00 \ud800 ende"
    genes: dict[str, Any] = {name: f"value of {name}" for name in WILD_NAMES}
    genes |= {f"gene {number}": number for number in range(230)}
    genes |= {"rubric": long, "exact": "x" * VALUE, "one more": "y" * (VALUE + 1), "empty": "", "list": ["ä", 1, None]}
    wild = with_genes(run, tmp_path, genes, name="wild", seed=99, hypervolume=[0.5] * 2500, error="e" * 9000)
    (wild.path / "report.html").write_text("<p>the report</p>")
    done = to_mlflow(wild, uri, "limits", with_trials=False)
    assert artefacts(uri, done.run_id)["report.html"] == "<p>the report</p>"
    found = client(uri).get_run(done.run_id)
    params, files = found.data.params, artefacts(uri, done.run_id, "values")
    assert params["exact"] == "x" * VALUE
    assert params["empty"] == '""'
    assert params["list"] == '["ä",1,null]'
    assert params["gene 229"] == "229"
    assert params["größe"] == "value of größe"
    renamed = json.loads(artefacts(uri, done.run_id)["names.json"])
    assert {renamed.get(name, name) for name in params} >= set(genes)
    for safe, name in renamed.items():
        assert params[safe] == f"value of {name}"
    for name, text in (("rubric", long), ("one more", "y" * (VALUE + 1))):
        assert len(params[name]) == VALUE
        path = params[name].split("whole in ")[1].rstrip("]")
        assert files[path] == text.replace("\x00", "\\x00").replace("\ud800", "\\ud800")
        assert params[name].startswith(text[:300])
    assert len(found.data.tags["evocluster.error"]) == VALUE
    assert len(client(uri).get_metric_history(done.run_id, "hypervolume")) == 2500


def test_what_is_not_finite_is_listed(run: Result, uri: str, tmp_path: Path) -> None:
    copied = changed(run, tmp_path, hypervolume=[0.1, float("nan"), float("inf")], seed=98)
    front = json.loads((copied.path / "front.json").read_text())
    member = next(one for one in front["members"] if one["recommended"])
    member["test"]["latency_ms"] = {"value": None, "low": 3.0, "high": None}
    (copied.path / "front.json").write_text(json.dumps(front))
    done = to_mlflow(Result(copied.path), uri, "finite", nested=False)
    data = client(uri).get_run(done.run_id).data
    said = data.tags["evocluster.not_finite"].split(", ")
    assert said == ["test/latency_ms", "test/latency_ms_high", "hypervolume at step 1", "hypervolume at step 2"]
    assert "test/latency_ms" not in data.metrics
    assert data.metrics["test/latency_ms_low"] == 3.0
    assert data.metrics["hypervolume"] == 0.1


def test_a_param_that_would_change_is_refused(run: Result, uri: str, tmp_path: Path) -> None:
    to_mlflow(run, uri, "conflict", nested=False)
    other = with_genes(run, tmp_path, {"rubric": "Quite another"})
    with pytest.raises(ConfigError, match=r"holds param rubric=.*, which is 'Quite another' now, and a param cannot"):
        to_mlflow(other, uri, "conflict", nested=False)


def test_a_deleted_experiment_is_said(run: Result, uri: str) -> None:
    there = client(uri)
    there.delete_experiment(there.create_experiment("gone"))
    with pytest.raises(ConfigError, match=r"experiment 'gone' is deleted; name another .* mlflow experiments restore"):
        to_mlflow(run, uri, "gone")


def test_a_deleted_run_is_made_anew(run: Result, uri: str) -> None:
    first = to_mlflow(run, uri, "deleted", nested=False)
    client(uri).delete_run(first.run_id)
    second = to_mlflow(run, uri, "deleted", nested=False)
    assert second.created
    assert second.run_id != first.run_id


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlflow.db", r"got tracking URI 'mlflow.db'; allowed: sqlite:///FILE, .*did you mean 'sqlite:///mlflow.db'\?"),
        ("sqlite:///no/where/mlflow.db", r"the folder '.*no/where' is not there; make it"),
        ("file:///tmp/mlruns", r"MLflow has put its file store aside and refuses it unless MLFLOW_ALLOW_FILE_STORE"),
    ],
)
def test_wrong_places_are_explained_at_once(run: Result, uri: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ConfigError, match=said):
        to_mlflow(run, uri)


def test_a_file_that_is_no_database_is_left_alone(run: Result, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("my notes")
    with pytest.raises(ConfigError, match=r"notes\.db' is there and is no SQLite database; name another file"):
        to_mlflow(run, f"sqlite:///{tmp_path}/notes.db")
    assert (tmp_path / "notes.db").read_text() == "my notes"


def test_a_driver_that_is_missing_is_an_error_of_the_store(run: Result) -> None:
    with pytest.raises(StoreError, match=r"MLflow at 'oracle://\*\*\*@host/db' refused or failed: "):
        to_mlflow(run, "oracle://me:pw@host/db")


def test_the_file_store_is_used_where_it_is_allowed(
    run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    first = to_mlflow(run, uri)
    assert first.experiment == "evocluster"
    second = to_mlflow(run, uri)
    assert (second.run_id, second.members) == (first.run_id, first.members)
    found = client(uri).get_run(first.run_id)
    assert found.data.metrics["test/quality"] == (run.recommended or {})["test"]["quality"]["value"]
    assert len(client(uri).get_metric_history(first.run_id, "spend/calls")) == run.run["commits"]


def test_a_server_that_is_not_there_is_an_error_with_its_password_hidden(
    run: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match=r"MLflow at 'http://\*\*\*@127\.0\.0\.1:9' refused or failed") as caught:
        to_mlflow(run, "http://user:secret@127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "the user's setting stays"
    assert "secret" not in str(caught.value)


def test_nothing_stays_changed(run: Result, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    logger = logging.getLogger("mlflow")
    before = (dict(os.environ), mlflow.get_tracking_uri(), logger.level)
    assert to_mlflow(run, uri, nested=False).experiment == "from the environment"
    assert (dict(os.environ), mlflow.get_tracking_uri(), logger.level) == before
    assert mlflow.active_run() is None


def test_without_mlflow_it_says_what_to_install(run: Result, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"needs 'mlflow', which is not installed: pip install evocluster\[mlflow\]"):
        to_mlflow(run, uri)


GUARD = """
import json, socket, sys, threading
tried = []
def outside(host):
    return str(host) not in ("127.0.0.1", "::1", "localhost") and not str(host).startswith("/")
def find(host, *more, **named):
    tried.append(str(host))
    raise OSError("no network in this test")
def connect(self, address):
    if isinstance(address, tuple) and outside(address[0]):
        tried.append(str(address[0]))
    raise OSError("no network in this test")
socket.getaddrinfo, socket.socket.connect = find, connect
from evocluster.report.result import Result
from evocluster.report.tracking import to_mlflow
to_mlflow(Result(sys.argv[1]), sys.argv[2], "guarded", nested=False)
import time
deadline = time.monotonic() + float(sys.argv[3])
while time.monotonic() < deadline and not any(map(outside, tried)):
    time.sleep(0.05)
print(json.dumps([host for host in tried if outside(host)]))
"""


def reached(run: Result, folder: Path, wait_s: float, **settings: str) -> list[str]:
    """Hosts beyond this machine that an export in a process of its own asks for; none is let through."""
    kept = ("PATH", "LANG", "TMPDIR", "VIRTUAL_ENV")  # MLflow sends nothing where it sees pytest or a CI
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), **settings}
    uri = f"sqlite:///{folder}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", GUARD, str(run.path), uri, str(wait_s)],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    hosts: list[str] = json.loads(done.stdout)
    return hosts


@pytest.mark.slow
def test_an_export_asks_nothing_of_the_network(run: Result, tmp_path: Path) -> None:
    assert reached(run, tmp_path, wait_s=1.5) == []
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts"}, "no mlruns where it was called"


@pytest.mark.slow
def test_who_wants_telemetry_keeps_it(run: Result, tmp_path: Path) -> None:
    """Also the proof that the guard above would see it."""
    assert reached(run, tmp_path, wait_s=60, MLFLOW_DISABLE_TELEMETRY="false")


def test_the_command(run: Result, uri: str, tmp_path: Path) -> None:
    done = call("track", run.path, "--uri", uri, "--experiment", "command", "--name", "mine", "--no-members")
    assert (done.code, done.err) == (0, "")
    assert ": made\n" in done.out
    assert f"experiment 'command', 0 nested runs, at {uri}" in done.out
    assert f"Look: mlflow ui --backend-store-uri {uri}" in done.out
    again = json.loads(call("track", run.path, "--uri", uri, "--experiment", "command", "--json").out)
    assert again["created"] is False
    assert len(again["members"]) >= 2
    assert client(uri).get_run(again["run_id"]).info.run_name == "mine"
    assert "pip install evocluster[mlflow]" in call("track", "--help", columns=200).out
    assert call("track", tmp_path, "--uri", uri).code == RunDamaged.exit_code
    assert call("track", run.path, "--uri", "nonsense").code == ConfigError.exit_code


def test_identity_follows_the_run_and_not_its_folder(run: Result, tmp_path: Path) -> None:
    moved = changed(run, tmp_path, status="interrupted", elapsed_s=1e6, calls=1)
    assert identity(moved) == identity(run)
    others: list[dict[str, Any]] = [{"seed": 77}, {"started_at": "2020-01-01T00:00:00+00:00"}, {"data": {}}]
    for number, other in enumerate(others):
        assert identity(changed(run, tmp_path / str(number), **other)) != identity(run)


def test_curves_are_thinned_evenly_and_keep_their_steps() -> None:
    assert list(thinned([7, 8])) == [(1, 7), (2, 8)]
    short, long = (dict(thinned(range(count))) for count in (3 * STEPS, 3 * STEPS + 1))
    assert len(short) <= STEPS + 1
    assert list(short)[-1] == 3 * STEPS
    assert set(long) - set(short) == {3 * STEPS + 1}, "one trial more is one point more"


def test_spend_by_model_counts_where_a_folder_tells_it(run: Result, tmp_path: Path) -> None:
    import pandas

    copied = changed(run, tmp_path)
    table = pandas.read_parquet(copied.path / "trials")
    table["judge_calls"], table["judge_usd"], table["judge_paid_usd"] = 1, 0.5, 0.25
    first = ~table["proposal"].duplicated()
    said = json.dumps([{"model": "m", "purpose": "judge", "calls": 3, "usd": 2.0, "paid_usd": 1.0}] * 2)
    table["spend"] = [said if one else None for one in first]
    for part in (copied.path / "trials").iterdir():
        part.unlink()
    table.to_parquet(copied.path / "trials" / "part-000001.parquet", index=False)
    commits = int(first.sum())
    spent = run_entry(copied).metrics
    assert spent["spend/usd"][-1].value == 4.0 * commits
    assert spent["spend/calls"][-1].value == 6 * commits
    table["spend"] = None
    table.to_parquet(copied.path / "trials" / "part-000001.parquet", index=False)
    spent = run_entry(copied).metrics
    assert spent["spend/usd"][-1].value == pytest.approx(table["cost_usd"].sum() + 0.5 * len(table))
    assert spent["spend/paid_usd"][-1].value == pytest.approx(table["paid_usd"].sum() + 0.25 * len(table))


def test_entries_know_no_library(run: Result) -> None:
    entry = Entry("x", 0)
    entry.tag("empty", None)
    entry.tag("none", "")
    assert entry.closed().tags == {}
    assert next(member_entries(run)).tags["evocluster.role"].startswith("start")
    assert without_password("postgresql://me:pw@host/db") == "postgresql://***@host/db"
    assert without_password("sqlite:///a@b.db") == "sqlite:///a@b.db"
