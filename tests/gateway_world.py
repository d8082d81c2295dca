"""A small world around the gateway: a ledger in memory, snapshots that answer with their name, a notebook of calls."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fake_ledger import FakeLedger

from evocluster.llm.client import LLM, Request
from evocluster.llm.scripted import Scripted
from evocluster.llm.stack import Stack
from evocluster.online.actuator import rows_of
from evocluster.online.answer import Answered, Answerer
from evocluster.online.gateway import Gateway, Site
from evocluster.online.server import Web, address, bind, serve
from evocluster.online.state import Follower
from evocluster.records import Example, Json
from evocluster.release.exchange import Exchange
from evocluster.release.snapshot import Note, Prompt, Snapshot, Strategy
from evocluster.tasks.task import Task

TEXT = Task.model_validate({"kind": "text", "data": {"train": "t"}})
SECRET = "a secret of the deployment"


def rubric(request: Request) -> str:
    """The model that says what it was told: a snapshot answers with its own instruction."""
    return request.messages[0].content


def snapshot(name: str, memory: tuple[Note, ...] = (), model: str = "fake", **strategy: Any) -> Snapshot:
    genes = {"rubric": name, "max_tokens": 64}
    return Snapshot(prompt=Prompt(genes=genes), memory=memory, strategy=Strategy(genes={"model": model}, **strategy))


class Ledger(FakeLedger):
    """One in memory, that deployments are put into without a word of how they came about."""

    def keep(self, *snapshots: Snapshot) -> None:
        for each in snapshots:
            for table, row in rows_of(self, each, "", {}, 0.0):
                self.put(table, row)

    def serve(self, name: str, first: Snapshot, **state: Any) -> None:
        self.keep(first)
        row = {"name": name, "snapshot": first.id, "epoch": 1, "state": state, "secret": SECRET}
        self.put("deployments", row)

    def point(self, name: str, epoch: int, to: str | None = None, **state: Any) -> int:
        """The pointer, compared and swapped."""
        return self.move(name, epoch, audit={"at": 0.0, "action": "point"}, snapshot=to, state=state)


class Pick(NamedTuple):
    arm: str
    propensity: float


def assign(weights: Mapping[str, float], secret: str, experiment: str, episode: str) -> Pick:
    """As the bandit's: a pure function, each arm its share of the episodes."""
    total = sum(weights.values())
    number = hashlib.sha256(f"{secret}/{experiment}/{episode}".encode()).digest()
    point, arm = int.from_bytes(number[:7], "big") / 2**56 * total, ""
    for arm in sorted(weights):
        point -= weights[arm]
        if point < 0:
            break
    return Pick(arm, weights[arm] / total)


@dataclass
class Notebook:
    """Recorder, breaker and shadow at once: writes down who was told what, in order."""

    told: list[tuple[str, Any]] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)

    @property
    def exchanges(self) -> list[Exchange]:
        return [one[0] for name, one in self.told if name == "record"]

    def record(self, exchange: Exchange, input: Json, output: str, error: str = "", user: str = "") -> None:
        self.told.append(("record", (exchange, input, output, error, user)))

    def allows(self, snapshot: str) -> bool:
        return snapshot not in self.stopped

    def observe(self, snapshot: str, error_class: str, latency_ms: float, at: float) -> None:
        self.told.append(("observe", (snapshot, error_class, latency_ms, at)))

    def offer(self, exchange: Exchange, example: Example, answered: Answered) -> str:
        self.told.append(("offer", (exchange, example, answered)))
        return ""


@asynccontextmanager
async def opened(models: Mapping[str, Any], slots: int = 64) -> AsyncIterator[LLM]:
    stack = Stack(models)
    llm = await stack.open(None, slots)
    try:
        yield llm
    finally:
        await stack.close()


@dataclass
class World:
    """A gateway of one deployment, `support`, and what it stands on."""

    ledger: Ledger
    follower: Follower
    gateway: Gateway
    notes: Notebook
    model: Scripted
    web: Web
    url: str = ""


@asynccontextmanager
async def world(
    *snapshots: Snapshot,
    model: Scripted | None = None,
    task: Task = TEXT,
    arms: Mapping[str, float] | None = None,
    site: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    web: Mapping[str, Any] | None = None,
    poll_s: float = 0.02,
) -> AsyncIterator[World]:
    """The first snapshot is the incumbent."""
    model = model or Scripted.using(rubric)
    kept = snapshots or (snapshot("first"),)
    ledger, notes = Ledger(), Notebook()
    ledger.keep(*kept)
    state = {"arms": dict(arms), "experiment": "e1", "stage": "live"} if arms else {}
    ledger.serve("support", kept[0], stable=kept[-1].id, **state)
    async with opened({"fake": model}) as llm:

        def build(found: Snapshot) -> Answerer:
            return Answerer(task, found, llm)

        async with Follower("support", ledger, build, replica="r1", poll_s=poll_s) as follower:
            given = {"breaker": notes, "shadow": notes, "assign": assign, **(site or {})}
            made = Gateway({"support": Site(follower, notes, **given)}, **(gateway or {}))
            yield World(ledger, follower, made, notes, model, Web(made, **(web or {})))


@asynccontextmanager
async def served(*snapshots: Snapshot, **settings: Any) -> AsyncIterator[World]:
    """The same, listening on this machine."""
    async with world(*snapshots, **settings) as made:
        sock = bind(made.web)
        made.url = address(sock)
        task = asyncio.create_task(serve(made.web, sock=sock, drain_s=5))
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def asking(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "support", "messages": [{"role": "user", "content": text}], **more}
