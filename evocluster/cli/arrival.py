"""A submitted run where it arrives, on the cluster: the command of its job (`python -m evocluster.cli.arrival`).

    run, resume    check what must be there, then the ordinary verb, with progress as JSON lines
    send           a run folder as an archive in base64 lines, for `evocluster job fetch`

Only the standard library is imported before it is clear that the rest is installed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

PART_BYTES = 12_000
"""Of an archive on one line: with 16,000 characters, Ray passes it on in one piece."""
MOST_BYTES = 500 * 2**20


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of what was asked for."""
    asked = _parser().parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    out = os.path.expanduser(asked.out) if asked.out.startswith("~") else asked.out  # noqa: PTH111 - may be s3://
    if asked.verb == "send":
        return send(Path(out), tell)
    for complaint in (lacking(), unset(asked.needs)):
        if complaint:
            print(f"error: {complaint}", flush=True)
            return 2
    tell("arrived", folder=out, pid=os.getpid())
    return _verb(asked, out)


def tell(kind: str, **what: object) -> None:
    """A line that `evocluster job` and `submit --follow` read."""
    sys.stdout.write(json.dumps({"evocluster": kind, **what}) + "\n")  # one write: the log has other writers
    sys.stdout.flush()


def lacking() -> str:
    """What of evocluster's requirements is not installed here; '' when all is."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return "this cluster's Python has no package 'packaging', which Ray itself brings; install ray[default] here"
    wrong = []
    for text in metadata.requires("evocluster") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} does not fit {wanted.specifier}")
    if not wrong:
        return ""
    return (
        f"evocluster {metadata.version('evocluster')} cannot run with the Python of this cluster ({sys.executable}): "
        f"{'; '.join(wrong)}. Install what requirements.lock lists on every node (setup_commands of cluster.yaml, or "
        "the image of configs/docker)"
    )


def unset(needs: Sequence[str]) -> str:
    """Which variables of these are not set here; '' when all are."""
    missing = [name for name in needs if not os.environ.get(name, "").strip()]
    if not missing:
        return ""
    return (
        f"not set on this cluster: {', '.join(missing)}, which the config takes keys from. Secrets do not travel with "
        "a job; set each on every node before Ray starts there: a file of exports (chmod 600) that the "
        "ray start commands of cluster.yaml source, or a Kubernetes secret (secretKeyRef) of the pods' containers"
    )


def send(folder: Path, tell: Callable[..., None]) -> int:
    """Print a run folder as an archive; 4 where there is none."""
    if not (folder / "run.json").exists():
        print(f"error: {folder} on the cluster's head holds no run (no run.json in it)", flush=True)
        return 4
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        print(
            f"error: {folder} has {size >> 20} MiB, too much for a job's log; copy it with rsync, or --out s3://...",
            flush=True,
        )
        return 6
    lines = _Lines(tell)
    with tarfile.open(fileobj=lines, mode="w|gz", bufsize=PART_BYTES) as archive:  # type: ignore[call-overload]
        for file in files:
            archive.add(file, arcname=file.relative_to(folder).as_posix(), recursive=False)
    tell("sent", parts=lines.parts, sha256=lines.summed.hexdigest())
    return 0


class _Lines:
    """A file to write to that prints what it gets, a numbered line a part."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self.parts = 0
        self.summed = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.summed.update(content)
        self._tell("part", number=self.parts, content=base64.b64encode(content).decode())
        self.parts += 1
        return len(content)


def _verb(asked: argparse.Namespace, out: str) -> int:
    """The ordinary verb of the command line."""
    from evocluster.cli.main import main as evocluster

    words = ["run", asked.config] if asked.verb == "run" else ["resume", out, "--files", asked.files]
    words += ["--out", out] if asked.verb == "run" else [f"--set={text}" for text in asked.set]
    # Who sent the package stands for it: its code was looked at, and its hosts, where it was sent from.
    words += ["--allow-code"]
    sys.argv = ["evocluster", *words, "--progress", "json"]
    evocluster()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evocluster.cli.arrival", description="The command of a submitted job.")
    parser.add_argument("verb", choices=("run", "resume", "send"))
    parser.add_argument("--out", required=True)
    parser.add_argument("--config", default="")
    parser.add_argument("--files", default="")
    parser.add_argument("--needs", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    return parser


if __name__ == "__main__":
    sys.exit(main())
