"""The embedded model: llama.cpp on the cores of this node, no key and no bill.

    owner of a node:   urls = await model.start() ... await model.stop()
    any process there: model.attach(urls), then open, calls, close     (`open` alone starts servers of its own)

The servers speak the OpenAI-compatible dialect, so each is called through `direct.Direct`; what is added here is
the weights, the processes, and who is served where and when (`lanes`).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from evocluster.errors import MissingModel, ModelError, Refused, Unreachable
from evocluster.llm import weights, wire
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.llm.direct import Direct
from evocluster.llm.lanes import Lanes
from evocluster.llm.limits import Paced
from evocluster.llm.prices import Price, required
from evocluster.llm.servers import Servers, follow_owner

START_S = 120.0
"""Seconds until all servers of a node must be ready: reading weights from a cold disk takes most of it."""
MAX_PROCESSES = 4


class Local(Paced):
    """One embedded model: a few llama.cpp servers and their client."""

    kind: Literal["local"] = "local"
    name: str
    """smollm2-135m-instruct or gemma3-270m-base (see weights)."""
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    """Server processes on a node; 0: one a core, at most 4."""
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Prompts that one server process computes together. On a CPU more than one brought no throughput, and their
    `seconds` hold each other's work: two processes of 1 and 2 slots cost 296 and 357 ms CPU a call with 4 batches
    under way, 306 and 291 with 8, but 0.26 and 0.75 s (median, 8 batches). Single runs on two busy cores."""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads of one server process; more than one slows down when other work uses the cores."""
    n_ctx: Annotated[int, Field(ge=256, le=131072)] = 4096
    """Tokens that one prompt and its answer may have together."""
    host_cache_mib: Annotated[int, Field(ge=0, le=65536)] = 512
    """Memory in which a server process keeps prompts that lost their slot; 0: none. One client hardly needs it (its
    lanes keep batches apart); two clients of the same servers cost 1498 ms CPU a call without it, 341 with it."""
    port: Annotated[int, Field(ge=0, le=65000)] = 0
    """Of the first server on the loopback interface, the others follow; 0: any free ones."""
    price: Price | None = None
    """What you say a token costs; must be given."""
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 1

    _urls: tuple[str, ...] = PrivateAttr(default=())
    _pool: Servers | None = PrivateAttr(default=None)
    _owns: bool = PrivateAttr(default=False)
    _clients: tuple[Direct, ...] = PrivateAttr(default=())
    _lanes: Lanes | None = PrivateAttr(default=None)

    @field_validator("requests_per_minute", "tokens_per_minute", "hedge")
    @classmethod
    def _unpaced(cls, value: float) -> float:
        if value:
            raise ValueError(f"{value!r}: the embedded model has no provider whose patience could end; leave it out")
        return value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return weights.known(name).name
        except MissingModel as error:
            raise ValueError(str(error)) from error

    def __getstate__(self) -> dict[Any, Any]:
        """Settings and attached addresses travel; servers, sessions and lanes stay."""
        bare = type(self).model_construct(_fields_set=self.model_fields_set, **dict(self))
        bare._urls = self._urls
        return super(Local, bare).__getstate__()

    @property
    def abilities(self) -> Abilities:
        """Chat only where the model was trained on it; the rest is llama.cpp's."""
        return Abilities(chat=weights.known(self.name).chat, completion=True, choices=True, json_schema=True)

    @property
    def identity(self) -> str:
        """Name, digest of the weights and version of the runtime: all that decides the answers."""
        runtime = importlib.metadata.version("xllamacpp")
        return f"local:{self.name}:{weights.known(self.name).sha256[:16]}:xllamacpp-{runtime}"

    @property
    def lanes(self) -> int:
        """How many calls its servers on one node carry out side by side."""
        return self._count() * self.slots

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the server processes that this object started and that run."""
        return self._pool.pids if self._pool is not None else ()

    async def start(self) -> tuple[str, ...]:
        """Start the servers of this node; their base URLs. Done at once when they run.

        Raises: errors.PriceError, errors.MissingModel, errors.ModelError (with the server's last lines).
        """
        if self._pool is not None:
            return self._urls
        required(self.price, self.name)
        path = await asyncio.to_thread(weights.verify, self.name)
        pool = Servers([self._command(path, number) for number in range(self._count())], _environment())
        starting = asyncio.get_running_loop().run_in_executor(None, pool.start, START_S)
        try:
            addresses = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda _: pool.stop())
            raise
        self._pool, self._urls = pool, tuple(f"{address}/v1" for address in addresses)
        return self._urls

    async def stop(self) -> None:
        """End the servers that `start` started; may be called twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._urls = ()
            await asyncio.to_thread(pool.stop)

    def attach(self, urls: Sequence[str]) -> Local:
        """The same model as a client of servers that run already on this node."""
        if not urls:
            raise ModelError(f"no address of a server of {self.name!r} to attach to; start() returns them")
        client = type(self).model_validate(self.model_dump())
        client._urls = tuple(urls)
        return client

    async def open(self) -> None:
        """Connect to the attached servers, or start some. Raises: as `start`."""
        await self.close()
        required(self.price, self.name)
        if not self._urls:
            await self.start()
            self._owns = True
        self._clients = tuple(self.spoken(url) for url in self._urls)
        for client in self._clients:
            await client.open()
        self._lanes = Lanes(len(self._clients), self.slots)

    async def close(self) -> None:
        """Disconnect, and stop the servers that `open` started; may be called twice, and before open."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.stop()
        clients, self._clients = self._clients, ()
        for client in clients:
            await client.close()
        if self._owns:
            self._owns = False
            await self.stop()

    async def __call__(self, request: Request) -> Reply:
        """`seconds` of the reply is compute time, without any waiting. Raises: errors.ModelError."""
        lanes, clients = self._lanes, self._clients
        if lanes is None:
            raise ModelError(f"model {self.name!r} is not open; await open() before the first call")
        wire.admit(request, self.abilities, self.name)
        if request.prompt is None and not self.abilities.chat:
            raise Refused(f"model {self.name!r} has no chat template; ask with `prompt` (demo_style: completion)")
        lane = await lanes.take(_text(request))
        answered = True
        try:
            return await clients[lanes.server(lane)](request)
        except Unreachable:
            answered = False
            raise
        finally:
            lanes.give(lane, answered)

    def spoken(self, url: str) -> Direct:
        """The client of one such server."""
        return Direct(
            base_url=url,
            model=self.name,
            price=self.price,
            completion=True,
            choices="grammar",
            json_schema=True,
            timeout_s=self.timeout_s,
            extra={"cache_prompt": True},
        )

    def _count(self) -> int:
        # A container may be lent fewer cores than the machine has; macOS cannot tell.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.processes or min(cores, MAX_PROCESSES)

    def _command(self, path: Path, number: int) -> list[str]:
        settings = {
            "path": str(path),
            "slots": self.slots,
            "threads": self.threads,
            "n_ctx": self.n_ctx,
            "host_cache_mib": self.host_cache_mib,
            "port": self.port + number if self.port else 0,
            "swa_full": weights.known(self.name).swa_full,
        }
        return [sys.executable, "-m", "evocluster.llm.local", json.dumps(settings)]


def _text(request: Request) -> str:
    """The request as one text, for comparing beginnings."""
    if request.prompt is not None:
        return request.prompt
    return "".join(f"{message.role}\0{message.content}\0" for message in request.messages)


def _environment() -> dict[str, str]:
    """Ours, and the children find this very package whatever their folder."""
    root = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + others if others else "")}


def serve(settings: dict[str, Any]) -> None:
    """The child: one llama.cpp server, which says its address and serves until its owner goes."""
    # Whatever the runtime prints must not be taken for the address.
    told = os.dup(1)
    os.dup2(2, 1)
    follow_owner()
    import threading

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["n_ctx"] * settings["slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = settings["host_cache_mib"]
    params.swa_full = settings["swa_full"]
    # Measured on AVX2: 30 new tokens after 575 cached ones take 340 ms without and 400 ms with flash attention.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.endpoint_slots = False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    os.write(told, f"{server.listening_address}\n".encode())
    os.close(told)
    threading.Event().wait()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
