"""Where a run is carried out: in this process, or over a Ray cluster. The same engine, another Runner.

Part of the wiring: `build` makes what is needed and calls `carry_out`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, TypeVar, cast

from evocluster.config import Config
from evocluster.engine.aside import aside
from evocluster.engine.engine import Engine, carry
from evocluster.engine.garbage import settled
from evocluster.engine.runner import LocalRunner, Runner
from evocluster.engine.worker import Worker
from evocluster.llm.cached import LocalCache
from evocluster.llm.client import LLM
from evocluster.llm.stack import Stack

T = TypeVar("T")
Make = Callable[[Runner], Engine]
Show = Callable[[dict[str, Any]], None]


def carry_out(
    make: Make,
    worker: Worker,
    stack: Stack,
    config: Config,
    *,
    again: Make | None = None,
    show: Show | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> str:
    """Carry the engine that `make` gives to its end; 'finished' or 'interrupted'.

    `again` makes it anew on what `make` left, should its process die on a cluster. Raises: whatever ends the run.
    """
    if config.engine.runner == "local":
        stop = threading.Event()
        asked = partial(_either, interrupted, stop)
        return aside(partial(_run_local, make, worker, stack, config, show, asked), stop)
    return _run_ray(make, again or make, worker, stack, config, show, interrupted)


def _run_ray(
    make: Make,
    again: Make,
    worker: Worker,
    stack: Stack,
    config: Config,
    show: Show | None,
    interrupted: Callable[[], bool],
) -> str:
    from evocluster.cluster.population import drive
    from evocluster.cluster.seats import Layout

    settings = config.engine
    return drive(
        make,
        worker,
        stack,
        config.cache.folder(),
        Layout(settings.in_flight, settings.workers),
        again=again,
        address=settings.address,
        show=show,
        interrupted=interrupted,
        caching=config.cache.enabled,
    )


def _run_local(
    make: Make, worker: Worker, stack: Stack, config: Config, show: Show | None, interrupted: Callable[[], bool]
) -> str:
    with settled(), asyncio.Runner(loop_factory=_loops()) as runner:
        return runner.run(_local(make, worker, stack, config, show, interrupted))


def _loops() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes uvloop's event loop where it is installed, which takes a third of the time of asyncio's own.

    Not beside a loop of somebody else, whose sockets and signals are theirs.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return None
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


async def _local(
    make: Make, worker: Worker, stack: Stack, config: Config, show: Show | None, interrupted: Callable[[], bool]
) -> str:
    from evocluster.store.cache import DiskCache

    settings = config.engine
    count = min(settings.workers or 1, settings.in_flight)
    with ExitStack() as held:
        cache = None
        if config.cache.enabled:
            folder = config.cache.folder()
            disk = DiskCache(folder) if folder else None
            if disk is not None:
                held.callback(disk.close)
            cache = LocalCache(disk)
        shares = [settings.in_flight // count + (index < settings.in_flight % count) for index in range(count)]
        servers: list[Any] = []
        try:
            urls = await _serving(stack, servers)
            workers = [worker.sized(share, stack.attached(urls, count)) for share in shares]
            return await carry(make(LocalRunner(workers, cache)), show=show, interrupted=interrupted)
        finally:
            for server in servers:
                await server.stop()


async def _serving(stack: Stack, started: list[Any]) -> dict[str, tuple[str, ...]]:
    """Start the servers of the embedded models here: name -> addresses; `started` gets what has to be stopped."""
    urls: dict[str, tuple[str, ...]] = {}
    for name, model in stack.hosted().items():
        started.append(model)
        urls[name] = await model.start()
    return urls


def _either(interrupted: Callable[[], bool], stop: threading.Event) -> bool:
    return interrupted() or stop.is_set()


def asked(config: Config, stack: Stack, work: Callable[[LLM], Awaitable[T]]) -> T:
    """Some work with these models, cached as in a run. Raises: errors.ConfigError, errors.ModelError."""
    from evocluster.store.cache import DiskCache

    stack.check()
    folder = config.cache.folder()

    async def ask() -> T:
        with ExitStack() as held:
            disk = held.enter_context(closing(DiskCache(folder))) if config.cache.enabled and folder else None
            try:
                cache = LocalCache(disk) if config.cache.enabled else None
                return await work(await stack.open(cache, config.engine.in_flight))
            finally:
                await stack.close()

    return aside(lambda: asyncio.run(ask()))
