"""The gateway of some deployments in this process: everything opened, wired, and closed again. Part of the wiring.

    async with opened(Place("deployments"), ["triage"]) as web: await server.serve(web)

A request meets, in this order: its deployment's state (`Follower`), its arm, its snapshot's answer, the recorder, the
breaker (`Guard`), the shadow. Once a second, off its path, counts are exchanged with other replicas, feedback finds the
request it is about, and what is in the shadow is read from the ledger.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evocluster.deploying import HOME, Deployed, Home, deployed
from evocluster.errors import ConfigError, EvoclusterError
from evocluster.llm.client import LLM
from evocluster.llm.stack import Stack
from evocluster.online.actuator import open_breaker
from evocluster.online.answer import Answerer
from evocluster.online.door import Receive, Scope, Send, is_loopback
from evocluster.online.feedback import Feedback, Kind, sign
from evocluster.online.gateway import Gateway, Site
from evocluster.online.guard import Guard
from evocluster.online.intents import Intents
from evocluster.online.keys import Keys
from evocluster.online.question import Shape
from evocluster.online.recorder import Recorder
from evocluster.online.scrub import Scrubber
from evocluster.online.server import Web, address, alone, bound, run
from evocluster.online.server import serve as web_serve
from evocluster.online.shadow import Shadow
from evocluster.online.state import Follower
from evocluster.online.unit import Heard, Unit, on_trial
from evocluster.records import Example
from evocluster.release.bandit import assign
from evocluster.release.breaker import Verdict
from evocluster.release.content import contents
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Gateway as Limits
from evocluster.release.snapshot import Snapshot
from evocluster.store.ledger import Ledger
from evocluster.tasks.documents import read_documents
from evocluster.tasks.execution import Execution
from evocluster.tasks.retrieval import Index
from evocluster.telemetry import log

TICK_S = 1.0
"""Seconds between two looks at the ledger, off the path of requests."""


@dataclass(frozen=True)
class Place:
    """Where a process finds its deployments; picklable, so that replicas can be told."""

    folder: str = HOME
    ledger: str | None = None
    """URL of the database; None: a file in the folder."""

    def open(self) -> Home:
        """Raises: errors.StoreError."""
        return Home.open(self.folder, self.ledger)


@asynccontextmanager
async def models(deployment: Deployed, slots: int) -> AsyncIterator[LLM]:
    """The models of a deployment, with their limits and retries; answers to callers are never taken from a cache.

    Raises: errors.ConfigError, errors.ModelError.
    """
    stack = Stack(deployment.config.resolved_models(), deployment.config.seed)
    stack.check()
    started: list[Any] = []
    try:
        urls: dict[str, tuple[str, ...]] = {}
        for name, model in stack.hosted().items():
            started.append(model)
            urls[name] = await model.start()
        attached = stack.attached(urls)
        try:
            yield await attached.open(None, slots)
        finally:
            await attached.close()
    finally:
        for model in started:
            await model.stop()


async def documents(deployment: Deployed) -> Index | None:
    """What its task retrieves from, ready to be searched. Raises: errors.ConfigError."""
    settings = deployment.task.retrieval
    if settings is None:
        return None
    index = Index(settings, await asyncio.to_thread(read_documents, settings))
    await index.prepare()
    return index


def answerer(deployment: Deployed, llm: LLM, index: Index | None, snapshot: Snapshot) -> Answerer:
    """What answers as this snapshot. Raises: errors.ConfigError."""
    shape = deployment.facts.get("shape") or {}
    return Answerer(
        deployment.task,
        snapshot,
        llm,
        index=index,
        fields=tuple(shape.get("fields") or ()),
        models=tuple(deployment.config.models),
    )


def scrubber(deployment: Deployed) -> Scrubber:
    """What is kept of its callers' texts; the key follows from the deployment's secret, so placeholders join."""
    return Scrubber(deployment.secret)


@asynccontextmanager
async def opened(
    place: Place,
    names: Sequence[str] = (),
    *,
    url: str = "",
    allow_code: bool = False,
    recording: bool = True,
    poll_s: float | None = None,
    exposed: bool = False,
) -> AsyncIterator[Web]:
    """The web application of these deployments (none named: of all); `url`: its root, for those who push epochs;
    `exposed`: other machines reach it, so that there is no way in without a key.

    Raises: errors.ConfigError, errors.ModelError, errors.StoreError.
    """
    async with AsyncExitStack() as held:
        home = await asyncio.to_thread(place.open)
        held.callback(home.close)
        wanted = list(names) or sorted(row["name"] for row in home.ledger.find("deployments"))
        if not wanted:
            raise ConfigError(f"no deployments in {str(home.folder)!r}; make one: evocluster deploy RUN --as NAME")
        replica = f"{socket.gethostname()}:{secrets.token_hex(4)}"
        load = partial(deployed, home, allow_code=allow_code)
        loaded = [await asyncio.to_thread(load, name) for name in wanted]
        units = [await _unit(held, home, one, replica, url, recording=recording, poll_s=poll_s) for one in loaded]
        limits = widest([one.settings.gateway for one in loaded])
        sites = {deployment.name: _site(deployment, unit) for deployment, unit in zip(loaded, units, strict=True)}
        gateway = Gateway(sites, concurrency=limits.concurrency, queue=limits.queue)
        for unit in units:
            unit.busy = partial(getattr, gateway, "busy")
        keys = Keys(home.ledger)
        await asyncio.to_thread(keys.refresh)
        web = Web(
            gateway,
            keys=keys,
            feedback=[unit.feedback for unit in units],
            limits=limits,
            health=lambda: {"units": [unit.health() for unit in units]},
        )
        web.door.exposed = exposed
        beat = asyncio.create_task(_beat(units, keys))
        try:
            yield web
        finally:
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat
            for unit in units:
                await unit.guard.sync()


async def _unit(
    held: AsyncExitStack,
    home: Home,
    deployment: Deployed,
    replica: str,
    url: str,
    *,
    recording: bool,
    poll_s: float | None,
) -> Unit:
    """One deployment, open until `held` is closed."""
    name, settings, ledger = deployment.name, deployment.settings, home.ledger
    llm = await held.enter_async_context(models(deployment, settings.gateway.concurrency))
    index = await documents(deployment)
    clean = scrubber(deployment)
    kept = settings.recording if recording else settings.recording.model_copy(update={"bodies": False})
    recorder = Recorder(ledger, clean, kept, home.folder / "journal" / name)
    held.push_async_callback(asyncio.to_thread, recorder.close)
    guard = Guard(ledger, name, settings.breaker, replica, partial(_put_back, ledger, name))
    follower = Follower(
        name,
        ledger,
        partial(answerer, deployment, llm, index),
        replica=replica,
        url=url,
        poll_s=poll_s or settings.gateway.poll_s,
        preload=settings.gateway.preload,
        moved=lambda state: guard.watch(on_trial(state)),
    )
    await held.enter_async_context(follower)
    unit: Unit

    def written(exchange: Exchange, example: Example, execution: Execution) -> None:
        recorder.record(exchange, example.input, execution.output, exchange.error, exchange.user)

    shadow = Shadow(
        settings.shadow,
        lambda: unit.paired,
        follower.answer,
        written,
        ledger,
        np.random.default_rng(),
        busy=lambda: unit.busy(),
        acts=deployment.task.executor is not None and not settings.shadow.pipelines,
    )
    held.push_async_callback(shadow.close)
    feedback = Feedback(ledger, settings, name, deployment.secret, clean)
    heard = Heard(feedback, ledger, settings, guard, asyncio.get_running_loop())
    trained = classifier_file(home, name) if settings.intent.classifier else None
    intents = Intents(settings.intent)
    unit = Unit(name, settings, ledger, follower, recorder, heard, guard, shadow, intents, trained)
    return unit


def widest(told: Sequence[Limits]) -> Limits:
    """The limits of a process that serves several deployments: the largest of each, so that none is held back."""
    names = ("body_limit", "concurrency", "queue", "header_timeout_s")
    return told[0].model_copy(update={name: max(getattr(one, name) for one in told) for name in names})


def classifier_file(home: Home, name: str) -> Path:
    """Where the classifier of intents is kept."""
    return home.folder / "intents" / f"{name}.npz"


def _put_back(ledger: Ledger, name: str, snapshot: str, verdict: Verdict) -> None:
    evidence = {"channel": verdict.channel, **verdict.evidence}
    open_breaker(ledger, name, verdict.reason, evidence, time.time(), candidate=snapshot, contents=contents)


def _site(deployment: Deployed, unit: Unit) -> Site:
    def signed(id: str, kind: Kind = "request") -> str:
        return sign(id, deployment.secret, kind)

    return Site(
        follower=unit.follower,
        recorder=unit.recorder,
        assign=assign,
        shape=_shape(deployment),
        intent=lambda input: unit.intents.of(input),
        breaker=unit.guard,
        shadow=unit.shadow,
        made_at=deployment.made_at,
        sign=signed,
    )


def _shape(deployment: Deployed) -> Shape:
    told = deployment.facts.get("shape") or {}
    return Shape(tuple(told.get("fields") or ()), tuple(told.get("required") or ()), bool(told.get("text", True)))


async def _beat(units: Sequence[Unit], keys: Keys) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(TICK_S)
        for unit in units:
            try:
                await unit.tick(time.time())
            except Exception:  # the next tick tries again; requests go on meanwhile
                log.exception("%s: the second's work failed", unit.name)
        try:
            await asyncio.to_thread(keys.refresh)
        except EvoclusterError as failure:
            log.warning("API keys were not read again: %s", failure)


class Replica:
    """The web application as a server with a lifespan runs it: opened at its start, closed at its end."""

    def __init__(self, place: Place, names: Sequence[str], how: Mapping[str, Any]) -> None:
        self._place, self._names, self._how = place, tuple(names), dict(how)
        self._held = AsyncExitStack()
        self._web: Web | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._web is not None:
            await self._web(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._web = await self._held.enter_async_context(opened(self._place, self._names, **self._how))
            self._held.enter_context(alone())
        except Exception as failure:
            await send({"type": "lifespan.startup.failed", "message": f"{type(failure).__name__}: {failure}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._held.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def replica(place: Place, names: Sequence[str], **how: Any) -> Callable[[], Replica]:
    """What makes the application in another process; see `opened`."""
    return partial(Replica, place, tuple(names), how)


def serve(
    place: Place,
    names: Sequence[str],
    host: str,
    port: int,
    *,
    allow_code: bool = False,
    recording: bool = True,
    poll_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """The gateway in this process, until SIGTERM or Ctrl-C. Raises: errors.EvoclusterError."""

    async def work() -> None:
        with bound(host, port) as sock:
            how: dict[str, Any] = {"allow_code": allow_code, "recording": recording, "poll_s": poll_s}
            async with opened(place, names, url=address(sock), **how) as web:
                there = ", ".join(sorted(web.gateway.sites))
                with alone():
                    await web_serve(web, sock=sock, started=lambda root: say(f"serving {there} at {root}/v1"))

    run(work())


def replicated(
    place: Place,
    names: Sequence[str],
    replicas: int,
    host: str,
    port: int,
    cluster: str | None,
    allow_code: bool,
    recording: bool,
    say: Callable[[str], None],
) -> None:
    """The gateway in several processes under Ray Serve, until SIGTERM or Ctrl-C. Raises: errors.ConfigError."""
    from evocluster.cluster.replicas import replicated as running

    with place.open() as home:
        wanted = list(names) or sorted(row["name"] for row in home.ledger.find("deployments"))
        loaded = [deployed(home, name, allow_code=allow_code) for name in wanted]
        keyed = bool(home.ledger.find("keys", {"revoked_at": None}))
    if not loaded:
        raise ConfigError(f"no deployments in {place.folder!r}; make one: evocluster deploy RUN --as NAME")
    if not is_loopback(host) and not keyed:
        raise ConfigError(
            f"host {host!r} lets other machines ask, and there is no API key; make one with `evocluster keys add "
            "NAME`, or serve on 127.0.0.1"
        )
    absolute = Place(str(Path(place.folder).absolute()), place.ledger)
    limits = loaded[0].settings.gateway
    how = {"allow_code": allow_code, "recording": recording, "poll_s": min(0.5, limits.poll_s)}
    make = replica(absolute, wanted, **how, exposed=not is_loopback(host))
    at_once = limits.concurrency + limits.queue
    with running(make, replicas=replicas, host=host, port=port, at_once=at_once, address=cluster) as nodes:
        if len(nodes) > 1 and place.ledger is None:
            raise ConfigError(
                f"the cluster has {len(nodes)} nodes, and a SQLite ledger is of one machine; give --ledger "
                "postgresql://..., or run on one node"
            )
        say(f"serving {', '.join(wanted)} at http://{host}:{port}/v1, {replicas} replicas")
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
