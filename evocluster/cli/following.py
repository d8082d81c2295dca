"""A run on a cluster as it is watched from here: the view of a run on this machine, fed by the log of its job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from evocluster.cli import progress, screen
from evocluster.cli.show import print_result
from evocluster.errors import JobError
from evocluster.report.found import Found

if TYPE_CHECKING:
    from evocluster.cluster.jobs import Job, Jobs

T = TypeVar("T")
INTERRUPTED = 130
Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="http(s)://host:port of the cluster's dashboard, where Ray takes jobs.",
    ),
]
DEFAULT = "http://127.0.0.1:8265"


class Away(Found):
    """A run folder on a cluster, as its job tells of it."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.path, self.address = Path(told["folder"]), str(told["folder"])
        self.run = told["run"]
        self.front = told["front"]


def served(address: str, work: Callable[[Jobs], Coroutine[Any, Any, T]]) -> T:
    """Some work with the job server at this address."""
    from evocluster import submission

    def warn(text: str) -> None:
        screen.console(stderr=True).print(screen.plain(f"warning: {text}", "yellow"), soft_wrap=True)

    return asyncio.run(submission.served(address, work, warn))


def follow(name: str, id: str | None, address: str, as_json: bool) -> int:
    """Show a run until its job is over; the exit code of the run. Raises: errors.JobError."""
    with progress.Display() as display:
        watched = Watched(display)

        async def watch(jobs: Jobs) -> Job:
            from evocluster import submission

            return await watched.until_over(jobs, id or (await submission.latest(jobs, name)).id)

        try:
            job = served(address, watch)
        except KeyboardInterrupt:
            display.warn(
                f"left; run {name!r} goes on. Watch it again: evocluster job attach {name}{_at(address)}; "
                f"end it, with everything finished kept: evocluster job stop {name}{_at(address)}"
            )
            return INTERRUPTED
    return _conclude(name, job, watched, address, as_json)


class Watched:
    """What the log of a job has told so far, shown as it comes."""

    def __init__(self, display: progress.Display) -> None:
        self.display = display
        self.result: dict[str, Any] | None = None
        self.folder: str | None = None
        """Where the run is, once it has arrived."""
        self.before: list[str] = []
        """Lines before the run arrived: Ray's own, or why it could not."""

    async def until_over(self, jobs: Jobs, id: str) -> Job:
        """Follow a job to its end."""
        from evocluster import submission

        return await submission.followed(jobs, id, self.take, self.display.warn)

    def take(self, line: str) -> None:
        """Show one line."""
        from evocluster.submission import told

        said = told(line)
        if said is None:
            if self.folder is not None and line != f"run folder: {self.folder}":
                self.display.warn(line)
            elif self.folder is None and line.strip():
                self.before.append(line)
        elif said["evocluster"] == "arrived":
            self.folder = str(said["folder"])
            self.display.say(f"run folder on the cluster: {self.folder}")
        elif said["evocluster"] == "progress":
            self.display(said["progress"])
        elif said["evocluster"] == "result":
            self.result = said["result"]


def _conclude(name: str, job: Job, watched: Watched, address: str, as_json: bool) -> int:
    """Print what became of a job; the exit code."""
    if watched.folder is None and job.status != "STOPPED":
        for line in watched.before:
            watched.display.warn(line)
        if job.exit_code is None:
            raise JobError(f"run {name!r} did not start on the cluster: {job.message or job.status}")
    if watched.result is not None:
        at = _at(address)
        following = [f"evocluster job fetch {name}{at}"]
        if watched.result["run"].get("status") != "finished":
            following = [f"evocluster submit CONFIG --resume {name}{at}"]
        if as_json:
            typer.echo(json.dumps(watched.result))
        else:
            print_result(Away(watched.result), False, following=following)
    elif job.status == "STOPPED":
        watched.display.warn(
            f"run {name!r} was stopped; what was finished is kept, go on with: "
            f"evocluster submit CONFIG --resume {name}{_at(address)}"
        )
    if job.status == "STOPPED":
        return INTERRUPTED
    if job.exit_code is None and job.status == "FAILED":
        raise JobError(
            f"run {name!r} broke off on the cluster: {job.message}; what was finished is kept, go on with: "
            f"evocluster submit CONFIG --resume {name}{_at(address)}"
        )
    return job.exit_code or 0


def _at(address: str) -> str:
    """The option that names the cluster, where it is not the usual one."""
    return "" if address == DEFAULT else f" --address {address}"
