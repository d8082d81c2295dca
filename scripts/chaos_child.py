"""The command line in a process that breaks on purpose: killed, or told that the disk is full, at a chosen moment.

A nursery imports evocluster once and forks a child a request, so a sweep over hundreds of moments takes a fraction
of a second each. The child is real: it kills itself by SIGKILL, inside the functions of the operating system's
module that evocluster calls; what it wrote before is on disk, what it had in hand is gone.

    with Nursery(folder) as nursery:
        left = nursery.run(["run", "x.yaml", "--out", "out"], [folder], Fault("kill", op=17, side="half"))

A moment is the n-th operation on disk below the given folders (writes, renames, removals, syncs, new files), the n-th
of one kind on one file, the n-th call of a named function, or a time after the start. `side`: before it, after it, or
`half` of it, where there is a half.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NoReturn

ROOT = Path(__file__).resolve().parents[1]
GROWING = ("write", "create", "text", "part", "put", "mkdir")
"""Operations that need room on the disk: they fail for good once it is full; others do not."""
LONGEST_S = 120


@dataclass(frozen=True)
class Fault:
    """What happens to a child, and when."""

    act: Literal["kill", "full", "io"]
    """SIGKILL; ENOSPC at this operation and all later ones that need room; EIO this once."""
    op: int = 0
    """The n-th operation on disk, from 1; of those that fit `kind` and `file` where they are given."""
    kind: str = "*"
    file: str = "*"
    """Pattern of the file's name."""
    call: str = ""
    """module:name of a function; `op` counts its calls then."""
    side: Literal["before", "half", "after"] = "before"
    after_s: float = 0.0
    """Kill from outside so long after the start, instead."""

    def __str__(self) -> str:
        if self.after_s:
            return f"{self.act} after {self.after_s:.2f} s"
        what = self.call.rsplit(":", 1)[-1] or f"{self.kind} {self.file}".replace("* *", "operation")
        return f"{self.act} {self.side} {what} {self.op}"


@dataclass(frozen=True)
class Left:
    """How a child left."""

    code: int
    """Exit code; minus the signal's number; -99: it had to be killed after LONGEST_S."""
    said: str
    """The end of what it printed."""
    operations: tuple[tuple[str, str], ...]
    """(kind, file name) of every operation on disk, unless it was killed."""
    seconds: float


class Saboteur:
    """Counts the operations of this process on disk, and strikes at the chosen one."""

    def __init__(self, roots: Sequence[str], fault: Fault | None) -> None:
        self._roots = tuple(roots)
        self._fault = fault
        self._count = 0
        self._full = False
        self.operations: list[tuple[str, str]] = []

    def install(self) -> None:
        """Stand before the functions of the operating system, and the named one."""
        from evocluster.store import arrow
        from evocluster.store.cache import DiskCache

        self._before(os, "write", "write", _of_handle, half=lambda do, handle, rest: do(handle, rest[: len(rest) // 2]))
        self._before(os, "fsync", "sync", _of_handle)
        self._before(os, "ftruncate", "truncate", _of_handle)
        self._before(os, "replace", "rename", lambda source, target, **_: target)
        self._before(os, "rename", "rename", lambda source, target, **_: target)
        self._before(os, "unlink", "remove", lambda path, **_: path)
        self._before(os, "mkdir", "mkdir", lambda path, *_, **__: path)
        self._before(os, "open", "create", _created)
        self._before(Path, "write_text", "text", lambda path, *_, **__: path, half=_half_text)
        self._before(arrow, "write_part", "part", lambda path, *_: path, half=_torn)
        self._before(DiskCache, "_insert", "put", lambda cache, _: cache._cache.directory, half=_half_rows)
        if self._fault is not None and self._fault.call:
            module, _, name = self._fault.call.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, last = name.split(".")
            for part in outer:
                owner = getattr(owner, part)
            self._before_call(owner, last)

    def _before(
        self,
        owner: Any,
        name: str,
        kind: str,
        path_of: Callable[..., Any],
        half: Callable[..., Any] = lambda *_, **__: None,
    ) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            path = path_of(*args, **more)
            place = str(Path(path).absolute()) if path is not None else ""
            if not place.startswith(self._roots):
                return original(*args, **more)
            side = self._due(kind, place)
            if side == "before":
                self._strike(kind, place)
            if side == "half":
                half(original, *args, **more)
                self._strike(kind, place)
            found = original(*args, **more)
            if side == "after":
                self._strike(kind, place)
            return found

        setattr(owner, name, call)

    def _before_call(self, owner: Any, name: str) -> None:
        original, fault = getattr(owner, name), self._fault
        assert fault is not None
        seen = 0

        def call(*args: Any, **more: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == fault.op and fault.side == "before":
                self._strike(name, name)
            found = original(*args, **more)
            if seen == fault.op and fault.side != "before":
                self._strike(name, name)
            return found

        # A class method was bound by getattr already.
        setattr(owner, name, staticmethod(call) if isinstance(getattr(original, "__self__", None), type) else call)

    def _due(self, kind: str, place: str) -> str | None:
        name = place.rsplit("/", 1)[-1]
        self.operations.append((kind, name))
        fault = self._fault
        if fault is None or fault.call or fault.after_s:
            return None
        if fnmatch(kind, fault.kind) and fnmatch(name, fault.file):
            self._count += 1
            if self._count == fault.op:
                self._full = fault.act == "full"
                return fault.side
        return "before" if self._full and kind in GROWING else None

    def _strike(self, kind: str, place: str) -> NoReturn:
        assert self._fault is not None
        if self._fault.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.EIO if self._fault.act == "io" else errno.ENOSPC
        if kind == "put":
            raise sqlite3.OperationalError("database or disk is full" if number == errno.ENOSPC else "disk I/O error")
        raise OSError(number, os.strerror(number), place)


def _of_handle(handle: int, *_: Any, **__: Any) -> Path | None:
    with suppress(OSError):  # not an open file: the call itself will say so
        return Path(f"/proc/self/fd/{handle}").readlink()
    return None


def _created(path: Any, flags: int, *_: Any, **__: Any) -> Any:
    return path if flags & os.O_CREAT and not Path(path).exists() else None


def _half_text(do: Callable[..., Any], path: Path, text: str, **how: Any) -> None:
    do(path, text[: len(text) // 2], **how)


def _half_rows(do: Callable[..., Any], cache: Any, rows: Sequence[Any]) -> None:
    do(cache, rows[: (len(rows) + 1) // 2])


def _torn(do: Callable[..., Any], path: Path, *rest: Any) -> None:
    do(path, *rest)
    os.truncate(path, path.stat().st_size // 2)


class Nursery:
    """The process that forks the children. Call order: `with`, any number of `run`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        from chaos_world import environment

        command = [sys.executable, __file__, str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def run(self, words: Sequence[str], roots: Sequence[Path], fault: Fault | None = None) -> Left:
        """`evocluster WORDS` in a child that meets the fault. Raises: RuntimeError when the nursery died."""
        assert self._process is not None
        asking, telling = self._process.stdin, self._process.stdout
        assert asking is not None
        assert telling is not None
        log = self._folder / "child.log"
        asked = {
            "words": list(words),
            "roots": [str(root.absolute()) for root in roots],
            "log": str(log),
            "fault": asdict(fault) if fault else None,
        }
        asking.write(json.dumps(asked) + "\n")
        asking.flush()
        line = telling.readline()
        if not line:
            raise RuntimeError("the nursery of broken children is gone: see its error above")
        told = json.loads(line)
        said = log.read_text(errors="replace")[-3000:]
        operations = tuple((kind, name) for kind, name in told["operations"])
        return Left(told["code"], said, operations, told["seconds"])


def _serve() -> None:
    """Import everything once, then a child a line."""
    for name in ("evocluster.build", "evocluster.cli.main", "evocluster.store.cache"):
        importlib.import_module(name)
    for line in sys.stdin:
        told = _one(json.loads(line))
        for name in told.pop("modules"):
            # What a child had to import, the next ones find here.
            if name not in sys.modules and name != "__main__":
                with suppress(ImportError):
                    importlib.import_module(name)
        print(json.dumps(told), flush=True)


def _one(asked: dict[str, Any]) -> dict[str, Any]:
    fault = Fault(**asked["fault"]) if asked["fault"] else None
    report = Path(asked["log"] + ".operations")
    report.unlink(missing_ok=True)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(asked, fault, report)
    ends = started + (fault.after_s if fault and fault.after_s else LONGEST_S)
    code: int | None = None
    while code is None:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= ends:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = -signal.SIGKILL if fault and fault.after_s else -99
        else:
            time.sleep(0.002)
    told = json.loads(report.read_text()) if report.exists() else {"operations": [], "modules": []}
    return {**told, "code": code, "seconds": time.monotonic() - started}


def _child(asked: dict[str, Any], fault: Fault | None, report: Path) -> NoReturn:
    """Run the command line here, then be gone without a word to the nursery."""
    code = 1
    try:
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for handle in (1, 2):
            os.dup2(log, handle)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(handle, "w"), write_through=True) for handle in (1, 2))
        sys.stdin = io.StringIO()
        saboteur = Saboteur(asked["roots"], fault)
        saboteur.install()
        from evocluster.cli.main import main

        sys.argv = ["evocluster", *asked["words"]]
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        with suppress(OSError):
            report.write_text(json.dumps({"operations": saboteur.operations, "modules": sorted(sys.modules)}))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
