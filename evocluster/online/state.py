"""What a replica serves at this moment: one frozen reference, built from the ledger's pointer, swapped whole.

    poll, or nudge() -> read the pointer -> load what it names -> swap one reference -> acknowledge its epoch

A request reads the reference once and keeps it, so no request ever mixes two snapshots, and a roll-back is one
assignment. While the ledger is away the last state goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from evocluster.errors import EvoclusterError, StoreError
from evocluster.online.answer import Answered, Answerer
from evocluster.online.ledger import Ledger, Row, load
from evocluster.records import Example, canonical
from evocluster.release.exchange import Exchange
from evocluster.release.snapshot import Snapshot
from evocluster.telemetry import log

BEAT_S = 2.0
"""How often a replica says that it is there while nothing changes."""
HANGS_S = 5.0
"""A ledger that takes longer to be read is away."""
PATH = "/internal/epoch"
"""Where others tell a replica that the pointer moved."""


@dataclass(frozen=True, slots=True)
class ServingState:
    """One epoch of a deployment, ready to answer."""

    deployment: str
    epoch: int
    incumbent: str
    arms: Mapping[str, float]
    """Snapshot -> weight; empty: every episode is the incumbent's."""
    eligible: tuple[str, ...]
    experiment: str
    stage: str
    holdout: str
    stable: str
    """Snapshot to fall back to."""
    secret: str
    answerers: Mapping[str, Answerer]
    """By snapshot: the incumbent and the arms always, others as they are at hand."""
    push: str
    """What somebody who pushes an epoch has to show."""


class Follower:
    """Keeps the state of one deployment as the ledger has it. `async with` it; `state` is there from then on."""

    def __init__(
        self,
        deployment: str,
        ledger: Ledger,
        build: Callable[[Snapshot], Answerer],
        *,
        replica: str,
        url: str = "",
        poll_s: float = 1.0,
        preload: int = 5,
        moved: Callable[[ServingState], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`build` makes the answerer of a snapshot; `replica`: a name that no other process has; `url`: its root, for
        those who push; `preload`: so many snapshots besides those that serve are kept ready; `moved` is told of every
        new state, just before requests see it.
        """
        self.deployment = deployment
        self._ledger = ledger
        self._build = build
        self._id = f"{replica}/{deployment}"
        self._url = url
        self._poll_s = poll_s
        self._preload = preload
        self._moved = moved
        self._clock = clock
        self._state: ServingState | None = None
        self._ready: dict[str, Answerer] = {}
        """Latest used last."""
        self._nudged = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._acknowledged: tuple[int, float] = (0, float("-inf"))
        self._read_at = float("-inf")
        self._away = False
        self._error = ""

    @property
    def state(self) -> ServingState:
        """The reference. Read it once a request."""
        assert self._state is not None, "the follower is not open; use `async with`"
        return self._state

    async def __aenter__(self) -> Self:
        """Raises: errors.StoreError, errors.ConfigError: there is nothing that could serve."""
        await self._step()
        await self._prepare_more()
        self._task = asyncio.create_task(self._follow(), name=f"follow {self.deployment}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            await asyncio.to_thread(self._ledger.delete, "replicas", {"id": self._id})
        except Exception as error:
            log.warning("replica %s is not signed off: %s", self._id, error)

    def nudge(self) -> None:
        """The pointer may have moved: read it now."""
        self._nudged.set()

    def health(self) -> dict[str, Any]:
        """What an operator asks of it."""
        state = self._state
        return {
            "deployment": self.deployment,
            "epoch": state.epoch if state else 0,
            "snapshot": state.incumbent if state else "",
            "experiment": state.experiment if state else "",
            "stage": state.stage if state else "",
            "ready": sorted(self._ready),
            "ledger": not self._away and time.monotonic() - self._read_at <= self._poll_s + HANGS_S,
            "read_s_ago": round(time.monotonic() - self._read_at, 3) if state else None,
            "error": self._error,
        }

    async def answerer(self, snapshot: str) -> Answerer:
        """One that answers as this snapshot, whether it serves or not. Raises: StoreError, ConfigError."""
        if (kept := self._ready.pop(snapshot, None)) is None:
            loaded = await asyncio.to_thread(load, self._ledger, snapshot)
            kept = self._build(loaded)
            await kept.prepare()
        self._ready[snapshot] = kept
        return kept

    async def answer(self, snapshot: str, example: Example, exchange: Exchange) -> Answered:
        """What that snapshot answers to what production was asked. Raises: StoreError, ConfigError."""
        return await (await self.answerer(snapshot)).answer(example, exchange.intent, exchange.episode_id)

    async def _follow(self) -> None:
        """Until cancelled. Whatever goes wrong, the state there is goes on serving."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._nudged.wait()
            self._nudged.clear()
            try:
                moved = await self._step()
                self._fine()
                if moved:
                    await self._prepare_more()
            except Exception as error:
                self._wrong(error)

    def _fine(self) -> None:
        if self._error:
            log.info("%s: the ledger is read again", self.deployment)
        self._error = ""

    def _wrong(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        if said != self._error:
            epoch = self._state.epoch if self._state else 0
            log.error("%s goes on serving epoch %d: %s", self.deployment, epoch, said)
        self._error = said

    async def _step(self) -> bool:
        """Read, and where the pointer moved, swap; acknowledge. Returns whether it moved."""
        try:
            row = await asyncio.to_thread(self._ledger.first, "deployments", {"name": self.deployment})
        except Exception:
            self._away = True
            raise
        self._away, self._read_at = False, time.monotonic()
        if row is None:
            raise StoreError(f"deployment {self.deployment!r} is not in the ledger; make it with `evocluster deploy`")
        epoch = self._state.epoch if self._state else 0
        if row["epoch"] < epoch:
            raise StoreError(
                f"the ledger is at epoch {row['epoch']!r} of {self.deployment!r}, and {epoch!r} was served already: it "
                "was replaced by an older copy; restart the gateway to serve that"
            )
        moved = bool(row["epoch"] > epoch)
        try:
            if moved:
                state = await self._next(row)
                if self._moved is not None:
                    self._moved(state)
                self._state = state
        finally:
            # Of a new epoch that cannot be loaded too: the old one is served, and that is what it says.
            if self._state is not None:
                await self._acknowledge(self._state.epoch)
        return moved

    async def _next(self, row: Row) -> ServingState:
        """The state that a pointer row names, complete."""
        told = row["state"] or {}
        arms = {id: float(weight) for id, weight in (told.get("arms") or {}).items() if weight > 0}
        for id in {row["snapshot"]: None} | dict.fromkeys(arms):
            await self.answerer(id)
        return ServingState(
            deployment=self.deployment,
            epoch=row["epoch"],
            incumbent=row["snapshot"],
            arms=MappingProxyType(arms),
            eligible=tuple(told.get("eligible") or arms),
            experiment=told.get("experiment") or "",
            stage=told.get("stage") or "",
            holdout=told.get("holdout") or "",
            stable=told.get("stable") or "",
            secret=row["secret"] or "",
            answerers=MappingProxyType(dict(self._ready)),
            push=push_token(row["secret"] or "", self.deployment),
        )

    async def _acknowledge(self, epoch: int) -> None:
        """Tell the ledger which epoch is served here."""
        at = time.monotonic()
        if self._acknowledged[0] == epoch and at - self._acknowledged[1] < BEAT_S:
            return
        row = {
            "id": self._id,
            "deployment": self.deployment,
            "epoch": epoch,
            "seen_at": self._clock(),
            "url": self._url,
        }
        await asyncio.to_thread(self._ledger.put, "replicas", row)
        self._acknowledged = (epoch, at)

    async def _prepare_more(self) -> None:
        """What may be pointed at next, ready before it is; what is left over goes."""
        state = self.state
        recent = await asyncio.to_thread(
            self._ledger.find, "versions", {"deployment": self.deployment}, order="-at", limit=self._preload
        )
        wanted = [*(row["snapshot"] for row in recent), *state.eligible, state.holdout, state.stable]
        for id in dict.fromkeys(filter(None, wanted)):
            try:
                await self.answerer(id)
            except EvoclusterError as error:
                log.warning("%s: snapshot %s cannot be kept ready: %s", self.deployment, id, error)
        serving = {state.incumbent, *state.arms, *filter(None, (state.holdout, state.stable))}
        spare = [id for id in self._ready if id not in serving]
        for id in spare[: max(0, len(spare) - self._preload)]:
            del self._ready[id]
        # The same routing: what it may fall back to is at hand as well.
        self._state = replace(state, answerers=MappingProxyType(dict(self._ready)))


def push_token(secret: str, deployment: str) -> str:
    """What somebody who knows the deployment's secret shows to push an epoch."""
    return hmac.digest(secret.encode(), canonical(["push", deployment]).encode(), "sha256").hex()


def push(urls: Iterable[str], deployment: str, secret: str, timeout_s: float = 1.0) -> list[str]:
    """Tell replicas at these roots that the pointer moved; returns those that could not be told: they will poll."""
    body = canonical({"deployment": deployment}).encode()
    headers = {"Authorization": f"Bearer {push_token(secret, deployment)}", "Content-Type": "application/json"}
    missed = []
    for url in urls:
        request = urllib.request.Request(f"{url.rstrip('/')}{PATH}", body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                pass
        except OSError as error:
            log.info("replica at %s was not told of the new epoch: %s", url, error)
            missed.append(url)
    return missed
