"""`evocluster job`: look after runs that were submitted to a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evocluster.cli import following, progress, screen
from evocluster.cli.screen import inert, plain
from evocluster.cli.show import print_result

if TYPE_CHECKING:
    from evocluster.cluster.jobs import Job, Jobs

app = typer.Typer(
    help="Runs on a cluster: how far they are, their log, stop, fetch.",
    epilog="Example: evocluster job status my-run --address http://127.0.0.1:8265",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="Name of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")]
WAIT_S = 600.0


@app.command("list")
def list_runs(address: following.Address = following.DEFAULT, as_json: AsJson = False) -> None:
    """List the runs that were submitted to a cluster.

    Example: evocluster job list --address http://127.0.0.1:8265
    """
    from evocluster import submission

    async def every(jobs: Jobs) -> list[Job]:
        return [job for job in await jobs.jobs() if submission.RUN in job.metadata]

    found = following.served(address, every)
    if as_json:
        typer.echo(json.dumps([submission.started(job) for job in found]))
        return
    for job in found:
        _print(f"{job.id}: {job.status}{_since(job)}, {submission.metadata_out(job)}")
    if not found:
        _print("no runs; submit one: evocluster submit CONFIG")


@app.command("status")
def status(name: Name, address: following.Address = following.DEFAULT, as_json: AsJson = False) -> None:
    """Show how far a run is: what Ray says of its job, and the last that the run itself has told.

    Example: evocluster job status my-run
    """
    from evocluster import submission

    async def look(jobs: Jobs) -> tuple[Job, dict[str, Any]]:
        job = await submission.latest(jobs, name)
        return job, await submission.state(jobs, job)

    job, said = following.served(address, look)
    if as_json:
        typer.echo(json.dumps({**submission.started(job), **_last(said)}))
        return
    folder = (said.get("arrived") or {}).get("folder") or submission.metadata_out(job)
    _print(f"{job.id}: {job.status}{_since(job)}, run folder on the cluster: {folder}")
    if "progress" in said:
        _print(progress.line(said["progress"]["progress"], 0.0))
    if "result" in said:
        verb = "job fetch" if said["result"]["result"]["run"].get("status") == "finished" else "submit CONFIG --resume"
        print_result(following.Away(said["result"]["result"]), False, following=[f"evocluster {verb} {name}"])
    elif job.over and job.message:
        _print(job.message)


@app.command("logs")
def logs(name: Name, address: following.Address = following.DEFAULT) -> None:
    """Print what a run has printed so far.

    Example: evocluster job logs my-run
    """
    from evocluster import submission

    async def read(jobs: Jobs) -> str:
        return await jobs.log((await submission.latest(jobs, name)).id)

    for line in following.served(address, read).splitlines():
        said = submission.told(line)
        if said is None:
            typer.echo(inert(line))
        elif said["evocluster"] == "progress":
            typer.echo(inert(progress.line(said["progress"], 0.0)))


@app.command("attach")
def attach(name: Name, address: following.Address = following.DEFAULT, as_json: AsJson = False) -> None:
    """Watch a run to its end; the exit code is the run's. Ctrl-C leaves it going.

    Example: evocluster job attach my-run
    """
    raise typer.Exit(following.follow(name, None, address, as_json))


@app.command("stop")
def stop(
    name: Name,
    address: following.Address = following.DEFAULT,
    wait: Annotated[float, typer.Option("--wait", min=1, metavar="SECONDS", help="Wait so long for its end.")] = WAIT_S,
) -> None:
    """Stop a run: what is in flight is finished and kept, and `evocluster submit CONFIG --resume NAME` goes on.

    Example: evocluster job stop my-run
    """
    from evocluster import submission

    job = following.served(address, lambda jobs: submission.stop(jobs, name, wait, _print))
    _print(f"{job.id}: {job.status}")


@app.command("fetch")
def fetch(
    name: Name,
    address: following.Address = following.DEFAULT,
    out: Annotated[Path | None, typer.Option("--out", help="Folder here (default: runs/NAME).")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="What was submitted: the folder then names its files here, for export."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the run folder here, finished or not; `show`, `report` and `compare` then work on it.

    Examples:

      evocluster job fetch my-run

      evocluster job fetch my-run --config my.yaml --out runs/from-cluster
    """
    from evocluster import submission

    folder = out or Path("runs") / name
    submission.check_absent(folder)
    found = following.served(address, lambda jobs: submission.fetch(jobs, name, folder, config, _warn))
    print_result(found, as_json)


def _last(said: Mapping[str, Any]) -> dict[str, Any]:
    """The newest of each kind, without what only tells them apart."""
    return {kind: each[kind] for kind, each in said.items() if kind in each}


def _since(job: Job) -> str:
    if job.start_ms is None:
        return ""
    began = datetime.fromtimestamp(job.start_ms / 1000).astimezone()
    return f" since {began:%Y-%m-%d %H:%M:%S}"


def _print(text: str) -> None:
    screen.console().print(plain(text), soft_wrap=True)


def _warn(text: str) -> None:
    screen.console(stderr=True).print(plain(text), soft_wrap=True)
