"""`evocluster daemon`, and its jobs one by one for cron: `analyze`, `evolve`, `promote`."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from evocluster.cli import homes, screen
from evocluster.cli.homes import DEFAULT, AllowCode, AsJson, Folder, Name, Url
from evocluster.cli.screen import plain
from evocluster.errors import ConfigError

if TYPE_CHECKING:
    from evocluster.improving import Carrying
    from evocluster.online.daemon import Daemon

T = TypeVar("T")
LAYERS = ("prompt", "memory", "strategy")


def daemon(
    home: Folder = DEFAULT,
    ledger: Url = None,
    allow_code: AllowCode = False,
) -> None:
    """Look after all deployments: analyze, evolve, shadow, judge, promote, roll back, by their schedules.

    Several daemons may share a ledger: each due job is done once. Ctrl-C or SIGTERM ends it.

    What was begun is gone on with by the next one.

    Example: evocluster daemon --home deployments
    """

    async def until_stopped(daemon: Daemon, cycle: Carrying) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _say("the daemon runs; Ctrl-C ends it")
        await daemon.run(stop)

    _with(home, ledger, allow_code, until_stopped)


def analyze(
    name: Name, home: Folder = DEFAULT, ledger: Url = None, allow_code: AllowCode = False, as_json: AsJson = False
) -> None:
    """Look through recorded traffic now, and print what was found. It changes nothing that serves.

    Example: evocluster analyze triage
    """

    async def look(daemon: Daemon, cycle: Carrying) -> list[dict[str, Any]]:
        await cycle.analyze(name, time.time())
        return cycle.findings(name)

    found = _with(home, ledger, allow_code, look)
    if as_json:
        typer.echo(json.dumps({"deployment": name, "findings": found}))
        return
    columns = ("severity", "kind", "layer", "intent", "model", "title", "recommendation")
    homes.print_rows(f"Findings on {name}", columns, found)
    if not found:
        _say(f"nothing found on {name}")


def evolve(
    name: Name,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="prompt, memory or strategy; again for another. Default: all.")
    ] = None,
    home: Folder = DEFAULT,
    ledger: Url = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Queue the evolution of a deployment's layers on recorded traffic; `promote` or the daemon carries it out.

    Example: evocluster evolve triage --layer prompt
    """
    odd = [layer for layer in layers or () if layer not in LAYERS]
    if odd:
        raise ConfigError(f"--layer {odd[0]!r} is no layer; allowed: {', '.join(LAYERS)}")

    async def queue(daemon: Daemon, cycle: Carrying) -> dict[str, str]:
        return await cycle.by_hand(name, layers or ())

    told = _with(home, ledger, allow_code, queue)
    if as_json:
        typer.echo(json.dumps({"deployment": name, "layers": told}))
        return
    for layer, said in told.items():
        _say(f"{layer}: {said if said.startswith('withheld') else f'experiment {said}'}")


def promote(
    name: Name, home: Folder = DEFAULT, ledger: Url = None, allow_code: AllowCode = False, as_json: AsJson = False
) -> None:
    """Carry the experiments of a deployment as far as evidence and time allow: evolve, gates, shadow, judge, live.

    Example: evocluster promote triage
    """

    async def carry(daemon: Daemon, cycle: Carrying) -> int:
        return await cycle.promote(name, time.time())

    steps = _with(home, ledger, allow_code, carry)
    if as_json:
        typer.echo(json.dumps({"deployment": name, "steps": steps}))
        return
    _say(f"{steps} steps; evocluster status {name} tells where it stands")


def _with(home: str, ledger: str | None, allow_code: bool, work: Callable[[Daemon, Carrying], Awaitable[T]]) -> T:
    from evocluster import improving, serving

    async def go() -> T:
        async with improving.working(serving.Place(home, ledger), allow_code=allow_code) as (daemon, cycle):
            return await work(daemon, cycle)

    return asyncio.run(go())


def _say(text: str) -> None:
    screen.console().print(plain(text), soft_wrap=True)
