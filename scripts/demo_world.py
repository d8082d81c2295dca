"""The loop's world: a home of deployments, the gateway in a process of its own, users who ask and say what was wrong.

async with World(folder, name) as world:
    world.evocluster("run", "weak.yaml")            the command line, in a process
    await world.serve()
    sent = await world.ask(messages)                the `openai` client; every answer gets its feedback
    await world.turn()                              what the daemon does every five minutes
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import openai
from demo_case import Message

from evocluster.deploying import Home
from evocluster.improving import Carrying, working
from evocluster.serving import Place

COMMAND = (sys.executable, "-m", "evocluster.cli.main")
ROOT = Path(__file__).resolve().parents[1]
STARTS_S = 120.0
"""Seconds that the gateway may take to come up."""
USERS = 2
"""Who ask at once."""
_SERVING = re.compile(r"at (http://\S+/v1)")


class Sent(NamedTuple):
    """One message, and what became of it."""

    at: float
    message: Message
    said: str
    """Empty: no usable answer."""
    snapshot: str
    """That answered."""
    arm: str

    @property
    def right(self) -> bool:
        """As the user would have it."""
        return self.said == self.message.label


class World:
    """One deployment, its gateway, its users and its daemon's jobs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.home = folder / "deployments"
        self.asked: list[Sent] = []
        self._held = AsyncExitStack()
        self._client: openai.AsyncOpenAI | None = None
        self._cycle: Carrying | None = None
        self._told = 0

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._held.aclose()

    def evocluster(self, *words: str | Path, fails: bool = False) -> str:
        """What the command prints; `fails`: it must, and what it then says. Raises: RuntimeError."""
        done = subprocess.run(
            [*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=self.folder, env=_environment()
        )
        if fails != bool(done.returncode):
            raise RuntimeError(f"evocluster {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return (done.stderr if fails else done.stdout).strip()

    def ledger(self) -> Home:
        """To read in: `with world.ledger() as home`."""
        return Home.open(self.home)

    async def serve(self) -> str:
        """`evocluster serve` in its own process until the world ends; its URL. Raises: RuntimeError."""
        log = self.folder / "gateway.log"
        words = [*COMMAND, "serve", self.name, "--port", "0", "--home", str(self.home)]
        process = await asyncio.to_thread(_begun, words, log)
        self._held.callback(_end, process)
        url = await asyncio.to_thread(_url, process, log)
        self._client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        self._held.push_async_callback(self._client.close)
        return url

    # ------------------------------------------------------------ users

    async def ask(self, messages: Sequence[Message]) -> list[Sent]:
        """Ask these, a few at once, and send feedback on each answer."""
        waiting, sent = list(reversed(messages)), []

        async def user() -> None:
            while waiting:
                sent.append(await self._one(waiting.pop()))

        await asyncio.gather(*(user() for _ in range(USERS)))
        self.asked += sent
        return sent

    async def _one(self, message: Message) -> Sent:
        assert self._client is not None, "serve first"
        at = time.time()
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self.name, messages=[{"role": "user", "content": message.text}]
            )
            headers, said = raw.headers, raw.parse().choices[0].message.content or ""
        except openai.APIStatusError as failure:  # an answer that could not be used: the user says so too
            headers, said = failure.response.headers, ""
        sent = Sent(at, message, said, headers["x-evocluster-snapshot"], headers["x-evocluster-arm"])
        target = headers["x-evocluster-request-id"]
        await self._feedback(target, "correct", sent.right)
        if not sent.right:
            await self._feedback(target, "correction", message.label)
        return sent

    async def _feedback(self, target: str, metric: str, value: bool | str) -> None:
        assert self._client is not None
        self._told += 1
        body = {"feedback_id": f"demo-{self._told}", "target": target, "metric": metric, "value": value}
        await self._client.post("/feedback", body=body, cast_to=object)

    # ------------------------------------------------------------ the daemon's jobs

    async def cycle(self) -> Carrying:
        """What the daemon works with, opened at the first call."""
        if self._cycle is None:
            _, cycle = await self._held.enter_async_context(working(Place(str(self.home))))
            self._cycle = cycle
            return cycle
        return self._cycle

    async def turn(self) -> int:
        """`promote`, as the daemon does it every five minutes; how many steps were taken."""
        return await (await self.cycle()).promote(self.name, time.time())

    def rows(self, table: str, order: str = "", **where: Any) -> list[dict[str, Any]]:
        """Rows of this deployment in the ledger."""
        with self.ledger() as home:
            return home.ledger.find(table, {"deployment": self.name, **where}, order=order)

    def experiment(self) -> dict[str, Any]:
        """The newest."""
        rows = self.rows("experiments", "-started_at")
        return rows[0] if rows else {"stage": "", "outcome": "", "id": "", "candidate": "", "baseline": ""}


def _begun(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("w", encoding="utf-8") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, cwd=log.parent, env=_environment())


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and process.poll() is None:
        found = _SERVING.search(log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the gateway did not come up:\n{log.read_text(encoding='utf-8')}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """This process's, with this tree's package, and lines wide enough for a log."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}


def share(sent: Iterable[Sent]) -> tuple[int, int]:
    """(right, of)."""
    rows = list(sent)
    return sum(one.right for one in rows), len(rows)
