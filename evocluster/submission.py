"""Runs on a cluster over Ray Jobs: submit, find, stop, fetch. Part of the wiring; the verbs call it.

A run NAME is the job NAME, then NAME~2, NAME~3 ... for each time it is gone on with: names cannot hold '~', and Ray
gives out an id once. What a job was for stands in its metadata. Its log is the one way back: `cli.arrival` prints
there what is read here, a JSON object a line that begins with MARK.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import shlex
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryDirectory
from typing import Any, TypeVar

from evocluster import __version__, build, shipping
from evocluster import config as configs
from evocluster.cluster.follow import Followed
from evocluster.cluster.jobs import PACKAGE_BYTES, Job, Jobs, exposed, token
from evocluster.config import SHIPPED
from evocluster.errors import JobError, RunDamaged, RunExists
from evocluster.report.found import Found
from evocluster.shipping import Shipment

RUNS = "~/evocluster-runs"
"""Where run folders are made on the head of a cluster."""
STOP_S = 120
"""What is in flight may take so long to end when a job is stopped."""
MARK = '{"evocluster":'
RUN, OUT, VERSION = "evocluster_run", "evocluster_out", "evocluster_version"
"""Keys of a job's metadata."""
MOST_BYTES = PACKAGE_BYTES
"""Of a package, compressed."""
IN_MEMORY = 64 * 2**20
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """How a shipment is to be run."""

    out: str | None = None
    """The run folder there; None: RUNS/NAME, or where it was when it is gone on with."""
    resume: bool = False
    sets: tuple[str, ...] = ()
    """With `resume`: what this sitting changes, see config.CHANGEABLE and PACING."""
    stop_s: int = STOP_S


async def served(address: str, work: Callable[[Jobs], Awaitable[T]], warn: Say) -> T:
    """Some work with the job server at this address; `warn` is told where what goes there can be read on its way.

    Raises: errors.JobError; what the work raises.
    """
    if warning := exposed(address):
        warn(warning)
    async with Jobs(address, token()) as jobs:
        return await work(jobs)


async def followed(jobs: Jobs, id: str, take: Say, warn: Say) -> Job:
    """A job at its end, every line of its log taken before. Raises: errors.JobError."""
    log = Followed(jobs, id, warn)
    async for line in log.lines():
        take(line)
    assert log.job is not None
    return log.job


def prepare(config: str | Path, sets: Sequence[str] = (), *, allow_code: bool = False) -> Shipment:
    """A config checked as far as it can be here, and what of it travels. Raises: errors.ConfigError."""
    plan = build.plan(config, sets, allow_code=allow_code)
    plan.stack.check(here=False)
    plan.optimizer()
    return shipping.collect(plan.config)


async def submit(jobs: Jobs, shipment: Shipment, request: Request) -> str:
    """Start a run, or go on with it; the id of its job.

    Raises: errors.RunExists for a name that is taken, or a run that is under way; errors.JobError; errors.ConfigError.
    """
    package, code = shipment.packed(MOST_BYTES), shipping.own_code()
    await jobs.version()
    earlier = await attempts(jobs, shipment.name)
    _refuse(shipment.name, earlier, request)
    out = request.out or (earlier[-1].metadata[OUT] if earlier else f"{RUNS}/{shipment.name}")
    id = f"{shipment.name}~{len(earlier) + 1}" if earlier else shipment.name
    environment = {
        "working_dir": await jobs.upload(_package_name(package), package),
        "py_modules": [await jobs.upload(_package_name(code), code)],
        # Read by Ray's supervisor of the job: how long it waits between SIGTERM and SIGKILL.
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(request.stop_s)},
    }
    words = ["resume" if request.resume else "run", "--out", out, "--config", shipment.config, "--files", SHIPPED]
    words += [f"--needs={name}" for name in shipment.needs] + [f"--set={text}" for text in request.sets]
    metadata = {RUN: shipment.name, OUT: out, VERSION: __version__}
    await jobs.submit(id, _command(words), environment, metadata)
    return id


def _refuse(name: str, earlier: Sequence[Job], request: Request) -> None:
    if not earlier:
        return
    last = earlier[-1]
    if not last.over:
        raise RunExists(
            f"run {name!r} is on the cluster and {last.status}; look at it: evocluster job attach {name}; "
            "or submit another: --name NAME"
        )
    if not request.resume:
        raise RunExists(
            f"run {name!r} was on the cluster already ({last.status}); go on with it: "
            f"evocluster submit CONFIG --resume {name}; or submit another: --name NAME"
        )


async def attempts(jobs: Jobs, name: str) -> list[Job]:
    """The jobs of a run, oldest first."""
    return [job for job in await jobs.jobs() if job.metadata.get(RUN) == name]


async def latest(jobs: Jobs, name: str) -> Job:
    """The job that carried a run last. Raises: errors.JobError where there is none."""
    every = await jobs.jobs()
    found = [job for job in every if job.metadata.get(RUN) == name]
    if not found:
        names = sorted({job.metadata[RUN] for job in every if RUN in job.metadata})
        there = f"there are: {', '.join(names)}" if names else "it has none of evocluster's"
        raise JobError(f"the cluster at {jobs.address} has no run {name!r}; {there}")
    return found[-1]


def told(line: str) -> dict[str, Any] | None:
    """What a line of a job's log tells this program; None for a line that is for people."""
    if not line.startswith(MARK):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


async def state(jobs: Jobs, job: Job) -> dict[str, Any]:
    """The last that a job has told of each kind: arrived, progress, result."""
    said = [found for line in (await jobs.log(job.id)).splitlines() if (found := told(line))]
    return {str(each["evocluster"]): each for each in said}


async def stop(jobs: Jobs, name: str, wait_s: float, say: Say = lambda text: None) -> Job:
    """Ask a run to finish what is in flight and end; waits for it. Raises: errors.JobError."""
    job = await latest(jobs, name)
    if job.over:
        return job
    await jobs.stop(job.id)
    say(f"asked {job.id!r} to finish what is in flight, to save it and to end")
    ends = asyncio.get_running_loop().time() + wait_s
    while asyncio.get_running_loop().time() < ends:
        await asyncio.sleep(0.5)
        found = await jobs.find(job.id)
        if found is None or found.over:
            return found or job
    raise JobError(f"job {job.id!r} has not ended within {wait_s:.0f} s; ask again: evocluster job status {name}")


def check_absent(out: Path) -> None:
    """Raises: errors.RunExists where a run cannot be fetched to."""
    if out.exists():
        raise RunExists(f"{str(out)!r} is there already; choose another: --out FOLDER")


async def fetch(jobs: Jobs, name: str, out: Path, source: Path | None = None, say: Say = lambda text: None) -> Found:
    """Bring the folder of a run here, as it stands; it is whole or absent.

    `source`: the config it was submitted with, so that the fetched config.yaml names its files here.
    Raises: errors.JobError, errors.RunDamaged.
    """
    job = await latest(jobs, name)
    folder = job.metadata.get(OUT, "")
    if "://" in folder:
        raise JobError(f"the folder of run {name!r} is {folder}; read it from there")
    home = prepare(source).home if source is not None else None
    code = shipping.own_code()
    environment = {"py_modules": [await jobs.upload(_package_name(code), code)]}
    id = f"{name}~fetch-{secrets.token_hex(4)}"
    await jobs.submit(id, _command(["send", "--out", folder]), environment, {"evocluster_fetch": name})
    out.parent.mkdir(parents=True, exist_ok=True)
    followed = Followed(jobs, id, say)
    with (
        TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside,
        SpooledTemporaryFile(IN_MEMORY) as archive,
    ):
        await _received(followed, archive, folder)
        archive.seek(0)
        target = Path(beside) / "run"
        with tarfile.open(fileobj=archive, mode="r:gz") as packed:
            packed.extractall(target, filter="data")
        if home is not None:
            found = configs.moved(configs.load(target / "config.yaml"), home)
            (target / "config.yaml").write_text(configs.dump(found), encoding="utf-8")
        target.rename(out)
    return Found(out)


async def _received(followed: Followed, archive: Any, folder: str) -> None:
    """The archive that a job prints. Raises: errors.JobError where it does not come to its end."""
    summed = hashlib.sha256()
    spoken: list[str] = []
    parts = 0
    async for line in followed.lines():
        said = told(line)
        if said is None:
            spoken.append(line)
        elif said["evocluster"] == "part":
            if said["number"] != parts:
                raise RunDamaged(f"part {parts} of {folder!r} did not arrive; fetch it again")
            content = base64.b64decode(said["content"])
            summed.update(content)
            archive.write(content)
            parts += 1
        elif said["evocluster"] == "sent":
            if (said["parts"], said["sha256"]) != (parts, summed.hexdigest()):
                raise RunDamaged(f"{folder!r} did not arrive as it was sent; fetch it again")
            return
    tail = [line for line in spoken if line.strip()][-3:]
    status = followed.job.status if followed.job is not None else "?"
    raise JobError(f"the cluster could not send {folder!r} ({status}): {' '.join(tail) or 'its job said nothing'}")


def _command(words: Sequence[str]) -> str:
    """`exec`, so that a signal reaches the run itself and not a shell before it."""
    return "exec python -m evocluster.cli.arrival " + shlex.join(words)


def _package_name(content: bytes) -> str:
    """A name by content, in the form that Ray's clients use."""
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip"


def metadata_out(job: Job) -> str:
    """The run folder of a job, as it was asked for."""
    return str(job.metadata.get(OUT, "?"))


def started(job: Job) -> Mapping[str, Any]:
    """A job as JSON data."""
    return {
        "id": job.id,
        "run": job.metadata.get(RUN),
        "status": job.status,
        "exit_code": job.exit_code,
        "folder": metadata_out(job),
        "start_ms": job.start_ms,
        "end_ms": job.end_ms,
    }
