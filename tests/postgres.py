"""A real PostgreSQL server of our own on a loopback port, for the tests that a ledger on one needs."""

from __future__ import annotations

import atexit
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

USER = "evocluster"
_DEBIAN = Path("/usr/lib/postgresql")


class Server(NamedTuple):
    """One that runs."""

    port: int
    password: str

    def url(self, database: str) -> str:
        """What a ledger is opened with."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run one statement as the superuser."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def _programs() -> Path | None:
    """The folder with initdb and postgres: on PATH, or the newest of Debian's."""
    debian = sorted(_DEBIAN.glob("*/bin"), key=lambda folder: [int(part) for part in folder.parent.name.split(".")])
    folders = [Path(folder) for folder in os.get_exec_path()] + debian[::-1]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and neither user 'postgres' nor 'nobody' is here")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def server() -> Server:
    """The one of this test run; the test is skipped where there are no programs for it."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    who = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="evocluster-pg-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    found = Server(_free_port(), secrets.token_urlsafe(12))
    (home / "password").write_text(found.password)
    if who:
        for path in (home, home / "password"):
            os.chown(path, who["user"], who["group"])
    subprocess.run(
        [
            *(programs / "initdb", "--pgdata", home / "cluster", "--username", USER, "--encoding=UTF8", "--no-sync"),
            *("--locale=C.UTF-8", "--auth=scram-sha-256", "--pwfile", home / "password"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=home,
        **who,
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(home),
        **dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "off"),
    }
    with (home / "log").open("wb") as log:
        running = subprocess.Popen(
            [
                *(programs / "postgres", "-D", home / "cluster", "-p", str(found.port)),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            stdout=log,
            stderr=log,
            cwd=home,
            start_new_session=True,  # Ctrl-C is for the tests
            **who,
        )
    atexit.register(_stop, running)
    _await(found, running, home / "log")
    return found


def _stop(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    try:
        running.wait(10)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def _await(found: Server, running: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    last = time.monotonic() + 60
    while True:
        try:
            found.run("SELECT 1")
            return
        except psycopg.OperationalError:
            if running.poll() is not None or time.monotonic() > last:
                raise AssertionError(f"PostgreSQL does not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A new database on the server."""
    running = server()
    name = f"ledger_{secrets.token_hex(6)}"
    running.run(f"CREATE DATABASE {name}")
    yield running.url(name)
    running.run(f"DROP DATABASE {name} WITH (FORCE)")
