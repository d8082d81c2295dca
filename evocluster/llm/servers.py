"""Server processes on this machine: started together, and dead when their owner is.

    pool = Servers(commands, env)         # each command prints one line, its address, and then serves
    urls = pool.start(timeout_s)          # blocking; returns when all of them answer
    pool.stop()

Each child watches its standard input, a pipe whose other end only the owner holds, and leaves when it closes:
that works for SIGKILL of the owner too, whichever of its threads started the child (`follow_owner` is the
child's side). PR_SET_PDEATHSIG would not do: it fires when the starting *thread* ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from evocluster.errors import ModelError
from evocluster.telemetry import log

GRACE_S = 3.0
"""How long a child may take to leave by itself."""


class Servers:
    """One child a command. Not picklable, and not for two threads at once."""

    def __init__(self, commands: Sequence[Sequence[str]], env: Mapping[str, str]) -> None:
        self._commands = [list(command) for command in commands]
        self._env = dict(env)
        self._children: list[_Child] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the children that run."""
        return tuple(child.process.pid for child in self._children if child.process.poll() is None)

    def start(self, timeout_s: float) -> tuple[str, ...]:
        """The addresses, one a child. Raises: ModelError, with the last lines the failing child wrote."""
        ends = time.monotonic() + timeout_s
        try:
            for command in self._commands:
                self._children.append(_Child(command, self._env))
            return tuple(child.address(ends) for child in self._children)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the children; may be called twice, and before start."""
        children, self._children = self._children, []
        for child in children:
            child.ask_to_leave()
        ends = time.monotonic() + GRACE_S
        for child in children:
            child.end(ends)


class _Child:
    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._noise: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=dict(env),
            # Ctrl-C in a terminal reaches the whole group; the owner still has calls to finish.
            start_new_session=True,
        )

    def address(self, ends: float) -> str:
        """The line the child says when it serves."""
        assert self.process.stdout is not None
        said = b""
        while not said.endswith(b"\n"):
            left = ends - time.monotonic()
            if left <= 0:
                raise self._failed("was not ready in time")
            if select.select([self.process.stdout], [], [], left)[0]:
                piece = os.read(self.process.stdout.fileno(), 4096)
                if not piece:
                    self.process.wait(GRACE_S)
                    raise self._failed(f"ended with code {self.process.returncode}")
                said += piece
        return said.decode().strip()

    def _failed(self, what: str) -> ModelError:
        size = self._noise.seek(0, os.SEEK_END)
        self._noise.seek(max(0, size - 4000))
        lines = self._noise.read().decode("utf-8", "replace").strip().splitlines()[-12:]
        return ModelError(f"a model server {what}; its last lines:\n" + "\n".join(lines or ["(none)"]))

    def ask_to_leave(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self, ends: float) -> None:
        try:
            self.process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("model server %d did not leave in %.0f s: killed", self.process.pid, GRACE_S)
            self.process.kill()
            self.process.wait()
        self._noise.close()


def follow_owner() -> None:
    """In the child, first of all: leave as soon as the owner has closed its end of standard input or is gone."""
    owner = os.getppid()

    def watch() -> None:
        while os.getppid() == owner:
            if select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="follow-owner").start()
