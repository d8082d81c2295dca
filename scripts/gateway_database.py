"""The database goes away under a serving process and comes back: nobody notices, and nothing is lost."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from gateway_crash import journals, missing
from gateway_load import Aim, Told, beside
from gateway_site import ROOT, Place, listening, made, start
from gateway_verdict import Fault, Terms

from evocluster.cluster.loopback import Latency, running

RATE = 50.0
HANGS_S = 2.0
"""An answer that takes longer waited for the database: the model takes a millisecond."""
_LOCKS = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
database.execute("ROLLBACK")
"""


@contextmanager
def _lock(path: Path, seconds: float) -> Iterator[None]:
    """Another process holds the database while the block lasts, and so long at least."""
    process = subprocess.Popen([sys.executable, "-c", _LOCKS, str(path), str(seconds)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"locked\n":
            raise RuntimeError("the database was not locked")
        yield
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def locked(terms: Terms) -> Fault:
    """A writer of another program holds the file for seconds; in the middle of the last time the process is killed."""
    fault = Fault("the SQLite file is locked by another process")
    most = 0
    with running(Latency.parse("fixed:0.05")) as url:
        place = made(terms.folder, url)
        path, log = place.folder / "ledger.db", terms.folder / "serve.log"
        site = listening(start(place, "named", log))
        answers: list[Told] = []
        with beside(Aim(site.url, "named", RATE, 600.0)) as heard:
            time.sleep(1.0)
            for seconds in terms_of(terms):
                with _lock(path, seconds):
                    time.sleep(seconds * 0.8)
                    most = max(most, journals(place.folder))
                fault.times += 1
                time.sleep(2.0)
            answers = list(heard)
        _served(fault, answers)
        absent = missing(place, answers)
        fault.must(not absent, f"{len(absent)} of {len(answers)} answers have no record after the lock")
        with beside(Aim(site.url, "named", RATE, 60.0, seed=1)) as heard, _lock(path, 3.0):
            time.sleep(2.0)
            at = time.time()
            site.kill()
        fault.times += 1
        left = journals(place.folder)
        after = listening(start(place, "named", log))
        old = [one for one in heard if one.status == 200 and one.at < at - 0.1]
        absent = missing(place, old)
        fault.must(not absent, f"{len(absent)} of {len(old)} records were lost with the process killed meanwhile")
        fault.must(left > 0, "the killed process left no journal, so nothing was shown")
        after.end()
    fault.must(journals(place.folder) == 0, f"{journals(place.folder)} journals were not read back")
    fault.seen |= {"journals while it was locked": most, "journals of the killed process": left}
    return fault


def terms_of(terms: Terms) -> Sequence[float]:
    """Seconds of each lock; the ledger's own patience is 30 s."""
    return (3.0,) if terms.short else (3.0, 8.0, 40.0)


def _served(fault: Fault, answers: Sequence[Told]) -> None:
    """Everybody was answered, and nobody waited."""
    bad = [one for one in answers if one.status != 200]
    fault.must(bool(answers), "nobody was answered")
    fault.must(not bad, f"{len(bad)} of {len(answers)} requests failed, the first with status {bad and bad[0].status}")
    gaps = [later.at - sooner.at for sooner, later in pairwise(answers)]
    longest = max(gaps, default=0.0)
    fault.must(longest < HANGS_S, f"for {longest:.1f} s nobody was answered")
    fault.seen |= {"answered": len(answers), "longest time between two answers": f"{longest * 1000:.0f} ms"}


def _postgres() -> tuple[Any, str] | str:
    """(server, URL of a new database), or why there is none. The machinery is that of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres
    import pytest

    try:
        running = postgres.server()
    except pytest.skip.Exception as why:
        return str(why)
    running.run("CREATE DATABASE gateway_faults")
    return running, running.url("gateway_faults")


class _Server:
    """The server of the tests, which can be stopped and started here, and keeps what it has committed."""

    def __init__(self, server: Any) -> None:
        self.run = server.run
        (self._folder,) = server.run("SHOW data_directory")[0]
        folder = Path(self._folder)
        owner = folder.stat()
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._who = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        words = shlex.split((folder / "postmaster.opts").read_text())
        # The tests' one forgets its last commits when it is stopped at once.
        self._words = ["synchronous_commit=on" if word == "synchronous_commit=off" else word for word in words]
        self._running: subprocess.Popen[bytes] | None = None
        self.stop("fast")
        self.start()

    def stop(self, mode: str) -> None:
        """fast: in order; immediate: as if it had crashed."""
        control = str(Path(self._words[0]).with_name("pg_ctl"))
        words = [control, "stop", "-D", str(self._folder), "-m", mode]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, **self._who)
        if self._running is not None:
            self._running.wait(30)
            self._running = None

    def start(self) -> None:
        """It answers when this returns. Raises: the driver's error after half a minute."""
        quiet = subprocess.DEVNULL
        self._running = subprocess.Popen(
            self._words, stdout=quiet, stderr=quiet, cwd=self._folder, start_new_session=True, **self._who
        )
        last = time.monotonic() + 30
        while True:
            try:
                self.run("SELECT 1")
                return
            except Exception:
                if time.monotonic() > last:
                    raise
                time.sleep(0.05)

    def cut(self) -> int:
        """End every connection that is evocluster's; how many."""
        text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'evocluster'"
        return len(self.run(text))


def away(terms: Terms) -> Fault:
    """PostgreSQL: connections are cut, then the server crashes and is started again seconds later."""
    fault = Fault("PostgreSQL: connections cut, server stopped and started")
    found = _postgres()
    if isinstance(found, str):
        fault.not_run = found
        return fault
    server, ledger = _Server(found[0]), found[1]
    try:
        with running(Latency.parse("fixed:0.05")) as url:
            place = made(terms.folder, url, ledger)
            site = listening(start(place, "named", terms.folder / "serve.log"))
            with beside(Aim(site.url, "named", RATE, 600.0)) as heard:
                time.sleep(1.0)
                cut = 0
                for _ in range(terms.count(10, 3)):
                    cut += server.cut()
                    fault.times += 1
                    time.sleep(0.7)
                server.stop("immediate")
                time.sleep(terms.count(10, 4))
                most = journals(place.folder)
                server.start()
                fault.times += 1
                time.sleep(6.0)
                answers = list(heard)
            _served(fault, answers)
            absent = missing(place, answers)
            fault.must(not absent, f"{len(absent)} of {len(answers)} answers have no record")
            _ends(fault, site.end(), place)
            fault.seen |= {"connections cut": cut, "journals while it was stopped": most}
    finally:
        server.stop("fast")
    return fault


def _ends(fault: Fault, code: int, place: Place) -> None:
    fault.must(code == 0, f"it ended with {code}")
    fault.must(journals(place.folder) == 0, f"{journals(place.folder)} journals were not read back")
