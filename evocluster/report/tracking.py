"""A run into MLflow: what was found as params, metrics, tags and artefacts, a nested run for each member of the front.

    to_mlflow(result, uri) -> Exported

The folder is only read, and exporting again updates the MLflow run of before: it is found by its tag `evocluster.run`.
A param cannot be changed once it is logged, so the genes become params when the run is finished; until then they are
in front.json. Nothing is lost for a limit of MLflow: a long value stands whole in an artefact that its param names,
and what is not finite is listed in a tag. MLflow's usage telemetry is off during an export, unless the user decided
on it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evocluster.errors import ConfigError, StoreError
from evocluster.records import digest
from evocluster.report.entries import OURS, RUN, Entry, Point, member_entries, run_entry
from evocluster.report.found import Found

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "evocluster"
MEMBER = "evocluster.member_of"
ON_FRONT = "evocluster.on_front"
ROLE = "evocluster.role"
NOTE = "mlflow.note.content"
FILES = ("config.yaml", "run.json", "front.json", "genomes.jsonl", "report.html")
BATCH = 100
"""Params or tags MLflow takes in one request."""
METRICS = 1000
"""Metrics it takes in one request."""
STATUS: Mapping[str, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
SQLITE = b"SQLite format 3\x00"
"""How a SQLite file begins."""
QUIET: Mapping[str, str] = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Of MLflow's own settings, where the user has not set them: a server that is not there is said so in seconds."""


class Exported(NamedTuple):
    """Where a run went."""

    uri: str
    """The tracking URI, without a password."""
    experiment: str
    experiment_id: str
    run_id: str
    created: bool
    """False: the MLflow run was there already, and was updated."""
    members: tuple[str, ...]
    """Ids of the nested runs."""


def to_mlflow(
    result: Found,
    uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    nested: bool = True,
    with_trials: bool = False,
) -> Exported:
    """Export a run. `uri`: of the tracking server or database, e.g. 'sqlite:///mlflow.db' or 'http://host:5000'; None:
    what MLflow itself is set to. `experiment`: None for MLFLOW_EXPERIMENT_NAME, else 'evocluster'. `nested`: a run for
    the start and for each member; `with_trials`: the trials table as an artefact.

    Raises: ConfigError (mlflow is not installed, a wrong URI, a param that was logged otherwise); StoreError when the
    store or the server fails.
    """
    with _settings():
        try:
            import mlflow
            from mlflow.exceptions import MlflowException
        except ImportError as missing:
            raise ConfigError(
                f"the MLflow export needs {missing.name!r}, which is not installed: pip install evocluster[mlflow]"
            ) from missing
        with _hushed():
            target = _checked(uri or mlflow.get_tracking_uri())
            try:
                client = _opened(target)
                name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
                place = _experiment(client, target, name)
                export = _Export(client, place, result)
                run, created = export.parent(run_name)
                export.files(run.info.run_id, with_trials)
                members = tuple(export.members(run.info.run_id)) if nested else ()
                export.end(run.info.run_id)
            except MlflowException as failure:
                raise _failed(target, failure) from failure
    return Exported(without_password(target), name, place, run.info.run_id, created, members)


@contextmanager
def _settings() -> Iterator[None]:
    """MLflow's environment for the time of an export; what the user has set stays."""
    wanted = {name: value for name, value in QUIET.items() if name not in os.environ}
    if "MLFLOW_DISABLE_TELEMETRY" not in os.environ and "DO_NOT_TRACK" not in os.environ:
        wanted["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)


@contextmanager
def _hushed() -> Iterator[None]:
    """MLflow tells of every database table it makes; warnings still come through."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def without_password(uri: str) -> str:
    """A URI that can be shown."""
    return re.sub(r"://[^/@]*@", "://***@", uri)


def _failed(uri: str, failure: Exception) -> StoreError:
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    return StoreError(
        f"MLflow at {without_password(uri)!r} refused or failed: {without_password(reason)}; what was exported before "
        "is kept: mend it, then export again"
    )


def _opened(uri: str) -> MlflowClient:
    """A client of the store. Raises: StoreError, whatever the driver of the database raises."""
    from mlflow import MlflowClient

    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as failure:
        raise _failed(uri, failure) from failure


def _checked(uri: str) -> str:
    """The URI, if it can be one. Raises: ConfigError; MLflow itself would try for half a minute."""
    forms = "allowed: sqlite:///FILE, http(s)://HOST:PORT, or another database that MLflow takes"
    if uri.startswith("sqlite:///"):
        file = _database(uri)
        if not file.parent.is_dir():
            raise ConfigError(
                f"got {uri!r}: the folder {str(file.parent)!r} is not there; make it, or name another file"
            )
        if file.exists() and not _is_database(file):
            raise ConfigError(f"got {uri!r}: {str(file)!r} is there and is no SQLite database; name another file")
    elif "://" not in uri and not uri.startswith(("file:", "databricks", "uc:")):
        raise ConfigError(f"got tracking URI {uri!r}; {forms}; did you mean 'sqlite:///{uri}'?")
    if uri.startswith("file:") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise ConfigError(
            f"got {uri!r}: MLflow has put its file store aside and refuses it unless MLFLOW_ALLOW_FILE_STORE=true is "
            f"set; {forms}"
        )
    return uri


def _is_database(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(SQLITE)) in (b"", SQLITE)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made if it is not there.

    Artefacts of a SQLite file lie beside it: left to itself MLflow puts them into `mlruns` wherever it is called.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        beside = _database(uri).parent / "mlartifacts" / digest(name)[:8] if uri.startswith("sqlite:///") else None
        return str(client.create_experiment(name, artifact_location=beside.as_uri() if beside else None))
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the MLflow experiment {name!r} is deleted; name another with --experiment, or restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


class _Export:
    """One export under way. Call order: parent, files, members, end."""

    def __init__(self, client: MlflowClient, experiment_id: str, result: Found) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._result = result
        self._entry = run_entry(result)
        self._ended = self._entry.started_ms + round(1000 * float(result.run.get("elapsed_s") or 0.0))

    def parent(self, name: str | None) -> tuple[Run, bool]:
        """The MLflow run of this run, found or made, and whether it was made now; `name`: what it shall be called."""
        found = self._find(f"tags.`{RUN}` = '{self._entry.tags[RUN]}'")
        run = found[0] if found else self._make(name or self._entry.name, self._entry)
        self._write(run, self._entry)
        if name and run.info.run_name != name:
            self._client.update_run(run.info.run_id, name=name)
        return run, not found

    def files(self, run_id: str, with_trials: bool) -> None:
        """What the run folder holds, as artefacts."""
        for name in FILES:
            if (self._result.path / name).exists():
                self._client.log_artifact(run_id, str(self._result.path / name))
        trials = self._result.path / "trials"
        if with_trials and trials.exists():
            self._client.log_artifacts(run_id, str(trials), "trials")

    def members(self, parent: str) -> Iterator[str]:
        """A nested run for the start and each member of the front; those that left the front are marked."""
        there = {run.data.tags.get("evocluster.genome"): run for run in self._find(f"tags.`{MEMBER}` = '{parent}'")}
        for entry in member_entries(self._result):
            entry.tags |= {MEMBER: parent, "mlflow.parentRunId": parent}
            run = there.pop(entry.tags["evocluster.genome"], None) or self._make(entry.name, entry)
            self._write(run, entry)
            if run.data.tags.get(ROLE, entry.tags.get(ROLE)) != entry.tags.get(ROLE):
                self._client.update_run(run.info.run_id, name=entry.name)
            self.end(run.info.run_id)
            yield run.info.run_id
        for run in there.values():
            self._client.set_tag(run.info.run_id, ON_FRONT, "false")

    def end(self, run_id: str) -> None:
        """Status and time of the end."""
        status = STATUS.get(self._result.status)
        if status is None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, status, self._ended)

    def _find(self, condition: str) -> list[Run]:
        """Every run that is not deleted and meets the condition, the oldest first."""
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], condition, order_by=["attributes.start_time ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _make(self, name: str, entry: Entry) -> Run:
        tags = {key: value for key, value in entry.tags.items() if key in (RUN, MEMBER, "mlflow.parentRunId")}
        return self._client.create_run(self._experiment_id, self._entry.started_ms, tags, name)

    def _write(self, run: Run, entry: Entry) -> None:
        """What the MLflow run does not hold yet. Raises: ConfigError when a param was logged with another value."""
        from mlflow.entities import Metric, Param, RunTag

        run_id, held = run.info.run_id, run.data
        for name, value in entry.params.items():
            if held.params.get(name, value) != value:
                raise ConfigError(
                    f"MLflow run {run_id!r} holds param {name}={held.params[name]!r}, which is {value!r} now, and a "
                    "param cannot be changed; delete that MLflow run, or export into another experiment"
                )
        params = [Param(name, value) for name, value in entry.params.items() if name not in held.params]
        theirs = not held.tags.get(NOTE, OURS).startswith(OURS)
        tags = [
            RunTag(name, value)
            for name, value in entry.tags.items()
            if held.tags.get(name) != value and not (theirs and name == NOTE)
        ]
        metrics = [
            Metric(name, value, stamp, step)
            for name, points in entry.metrics.items()
            for step, value, stamp in self._new(run, name, points)
        ]
        for batch in _batches(params, BATCH):
            self._client.log_batch(run_id, params=batch)
        for batch in _batches(tags, BATCH):
            self._client.log_batch(run_id, tags=batch)
        for batch in _batches(metrics, METRICS):
            self._client.log_batch(run_id, metrics=batch)
        for name in held.tags:
            if name.startswith("evocluster.") and name not in entry.tags:
                self._client.delete_tag(run_id, name)
        for path, text in entry.texts.items():
            self._client.log_text(run_id, text, path)

    def _new(self, run: Run, name: str, points: Sequence[Point]) -> Iterator[tuple[int, float, int]]:
        """(step, value, milliseconds) of the points whose step does not end with this value yet."""
        latest = run.data.metrics.get(name)
        if len(points) == 1 and latest == points[0].value:
            return
        history = [] if latest is None else self._client.get_metric_history(run.info.run_id, name)
        last: dict[int, Any] = {}
        for metric in sorted(history, key=lambda metric: metric.timestamp):
            last[metric.step] = metric
        for point in points:
            before = last.get(point.step)
            if before is None:
                yield point.step, point.value, self._entry.started_ms + point.step
            elif before.value != point.value:
                yield point.step, point.value, before.timestamp + 1


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
