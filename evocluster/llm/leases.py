"""What one process may ask of its endpoints: leases of their quota, spent without asking, renewed four times a second.

    Leases (one a process, one keeper)  ->  Lease (one endpoint)  ->  take() ... give()

The keeper is in this process (`OwnKeeper`) or an actor of the cluster; when it does not answer, calls go on with the
last lease until it runs out. Belongs to one event loop, and takes its time from it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from evocluster.errors import EvoclusterError, ModelError, Overloaded, RateLimited
from evocluster.llm.health import CUT, STREAK, Seen
from evocluster.llm.quota import CREDIT_S, LEASE_S, Ask, Grant, Keeper, Terms
from evocluster.telemetry import log

Renew = Callable[[], Awaitable[None]]
RENEW_S = 0.25
HURRY_S = 0.02
"""At least so long between two renewals, however urgent."""
AHEAD = 1.5
"""What was sent since the last renewal, times this, is asked for the next."""


class Renewing(Protocol):
    """A keeper of quota, wherever it is."""

    async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        """Raises: errors.EvoclusterError when it cannot be reached."""
        ...

    async def leave(self, holder: str) -> None: ...


class OwnKeeper:
    """The keeper of this process, on the clock of its event loop."""

    def __init__(self) -> None:
        self._keeper = Keeper()

    async def renew(self, holder: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        """See Renewing."""
        return self._keeper.renew(holder, asks, asyncio.get_running_loop().time())

    async def leave(self, holder: str) -> None:
        """See Renewing."""
        self._keeper.leave(holder)


@dataclass
class Counts:
    """What a lease saw since it was made."""

    sent: int = 0
    """Requests sent, hedges among them."""
    retries: int = 0
    """Of them, those that repeated one that had failed in passing."""
    limited: int = 0
    """429."""
    overloaded: int = 0
    """5xx."""
    failed: int = 0
    """No connection, no answer in time."""
    waits: int = 0
    """Requests that had to wait for the endpoint."""
    waited_s: float = 0.0
    openings: int = 0
    """How often nobody was allowed to ask any more."""
    hedges: int = 0
    """Second requests for an answer that was late."""


@dataclass(frozen=True)
class Permit:
    """Leave to send one request; given back when it is over."""

    tokens: int
    """Reserved."""
    probe: bool = False


@dataclass(eq=False)
class _Wait:
    turn: asyncio.Future[Permit]
    tokens: int
    patience_s: float
    leave: Callable[[], bool]
    since: float


@dataclass
class _Purse:
    """What is left of the last grant."""

    slots: int | None = 0
    requests: int | None = 0
    tokens: int | None = 0
    retries: int = 0
    probes: int = 0
    open: bool = False
    shut_until: float = -math.inf
    credits_until: float = -math.inf
    until: float = -math.inf
    """When the lease runs out."""


class Lease:
    """One endpoint as one process may use it. Call order: `take`, the request, `give`; first come first served."""

    def __init__(self, name: str, terms: Terms, hurry: Callable[[], None], renew: Renew) -> None:
        """`hurry` has the leases renewed soon, `renew` at once."""
        self.name = name
        self.terms = terms
        self.counts = Counts()
        self.in_flight = 0
        self.hedging = False
        """Retries are kept at hand although nothing has failed."""
        self._hurry = hurry
        self.renew = renew
        self._purse = _Purse()
        self._fresh: deque[_Wait] = deque()
        self._again: deque[_Wait] = deque()
        self._pausing = 0
        self._seen = Seen()
        self._unspent = 0
        self._sent = self._reserved = 0
        self._asked_at = -math.inf
        self._proven = False
        self._shut_since: float | None = None
        self._cut_at = self._bidden_until = -math.inf
        self._broken: Exception | None = None

    @property
    def open(self) -> bool:
        """The circuit is open: the endpoint answers nobody."""
        return self._purse.open

    @property
    def doubtful(self) -> bool:
        """It may have ceased to answer: nobody here was answered for a while, though somebody was before."""
        return self.open or (self._proven and self._seen.streak >= STREAK)

    async def take(
        self, tokens: int, again: bool = False, patience_s: float = math.inf, leave: Callable[[], bool] = lambda: False
    ) -> Permit:
        """Leave to send a request of so many tokens; `again`: it failed before. Waits for it.

        Raises: errors.Overloaded: the endpoint has answered nobody for `patience_s`, or it is shut and `leave` says
        that another one will do. errors.RateLimited: it asks for more patience than that.
        """
        if self._broken is not None:
            raise self._broken
        wait = _Wait(asyncio.get_running_loop().create_future(), tokens, patience_s, leave, _now())
        queue = self._again if again else self._fresh
        queue.append(wait)
        self._admit()
        if not wait.turn.done():
            self._despair()
        if wait.turn.done():
            return wait.turn.result()
        self.counts.waits += 1
        if len(queue) == 1:
            self._hurry()
        try:
            return await wait.turn
        except asyncio.CancelledError:
            if wait in queue:
                queue.remove(wait)
            elif wait.turn.done() and not wait.turn.cancelled() and wait.turn.exception() is None:
                self.give(wait.turn.result(), None)
            raise
        finally:
            self.counts.waited_s += _now() - wait.since

    def at_once(self, tokens: int) -> Permit | None:
        """Leave to send a request, where nobody has to wait for it."""
        if self._fresh or self._again or self._broken is not None or not self._room(tokens):
            return None
        probe = self._purse.open
        self._purse.probes -= probe
        return self._spend(tokens, probe)

    def spare(self, tokens: int) -> Permit | None:
        """Leave for a second request, where there is room that nobody waits for; it counts as a retry."""
        purse = self._purse
        if self._fresh or self._again or purse.open or purse.retries < 1 or not self._room(tokens):
            return None
        purse.retries -= 1
        self.counts.hedges += 1
        return self._spend(tokens, probe=False)

    def give(self, permit: Permit, outcome: ModelError | int | None) -> None:
        """A request is over: the tokens it took, the error it met, or None when it was called off."""
        self.in_flight -= 1
        if isinstance(outcome, ModelError):
            self._failed(outcome, permit.probe)
        elif outcome is not None:
            self._unspent += permit.tokens - outcome
            self._seen.successes += 1
            self._seen.probed += permit.probe
            self._seen.streak = 0
            self._proven = True
            if permit.probe:
                self._hurry()
        self._admit()

    def pausing(self, more: int) -> None:
        """So many calls more (or fewer) will come back for a retry soon."""
        self._pausing += more

    def ask(self) -> Ask:
        """What this lease needs; what it holds back until the answer is noted here."""
        purse, waiting = self._purse, len(self._fresh) + len(self._again)
        self._lapse()
        offer = self.in_flight
        if purse.slots is not None:
            offer = purse.slots = max(self.in_flight, min(purse.slots, self.in_flight + waiting))
        ahead = AHEAD * RENEW_S / max(HURRY_S, _now() - self._asked_at)
        reserved = sum(wait.tokens for queue in (self._again, self._fresh) for wait in queue)
        front = self._again or self._fresh
        seen, self._seen = self._seen, Seen(streak=self._seen.streak)
        seen.retry_after_s = max(0.0, seen.retry_after_s - _now()) if seen.retry_after_s else 0.0
        ask = Ask(
            terms=self.terms,
            offer=offer,
            in_flight=self.in_flight,
            need=self.in_flight + waiting,
            requests=waiting + math.ceil(ahead * self._sent),
            tokens=reserved + math.ceil(ahead * self._reserved),
            piece=front[0].tokens if front else 1,
            retries=max(0, len(self._again) + self._pausing + self.hedging - purse.retries),
            unused=purse.requests or 0,
            unspent=(purse.tokens or 0) + self._unspent,
            seen=seen,
            proven=self._proven,
        )
        purse.requests = None if purse.requests is None else 0
        purse.tokens = None if purse.tokens is None else 0
        self._unspent = self._sent = self._reserved = 0
        self._asked_at = _now()
        return ask

    def fail(self, failure: Exception) -> None:
        """It will never be renewed again: nobody may wait for that."""
        self._broken = failure
        for wait in (*self._again, *self._fresh):
            if not wait.turn.done():
                wait.turn.set_exception(failure)

    def take_back(self, ask: Ask) -> None:
        """An ask that nobody heard: what it said is said again."""
        seen, was = self._seen, ask.seen
        for name in ("successes", "limited", "overloaded", "failed", "probed", "missed"):
            setattr(seen, name, getattr(seen, name) + getattr(was, name))
        self._unspent += ask.unspent

    def granted(self, grant: Grant) -> None:
        """Go on with the next lease."""
        now, purse = _now(), self._purse
        if grant.open and not purse.open:
            self.counts.openings += 1
            log.warning("%s answers nobody; it is asked again now and then, %d calls wait", self.name, self._waiting)
        shut = grant.open or grant.shut_s > 0
        self._shut_since = (now if self._shut_since is None else self._shut_since) if shut else None
        self._purse = _Purse(
            slots=grant.slots,
            requests=grant.requests,
            tokens=grant.tokens,
            retries=grant.retries + purse.retries,
            probes=grant.probes,
            open=grant.open,
            # What came in meanwhile is not in the answer yet, and a new keeper does not know what was heard before.
            shut_until=max(now if grant.probes else now + grant.shut_s, self._bidden_until),
            credits_until=now + CREDIT_S,
            until=now + LEASE_S,
        )
        self._admit()
        self._despair()

    @property
    def _waiting(self) -> int:
        return len(self._fresh) + len(self._again)

    def _failed(self, error: ModelError, probe: bool) -> None:
        seen = self._seen
        if not error.retryable:
            return
        kind = (
            "limited" if isinstance(error, RateLimited) else "overloaded" if isinstance(error, Overloaded) else "failed"
        )
        setattr(seen, kind, getattr(seen, kind) + 1)
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        seen.streak += 1
        seen.missed += probe
        if isinstance(error, RateLimited):
            self._proven = True
            self._back_off(error.retry_after_s)
        if isinstance(error, RateLimited) or probe or seen.streak >= STREAK:
            self._hurry()

    def _back_off(self, retry_after_s: float | None) -> None:
        """What cannot wait for the keeper: nothing before Retry-After has passed, and fewer calls at once."""
        now = _now()
        if retry_after_s:
            self._seen.retry_after_s = max(self._seen.retry_after_s, now + retry_after_s)
            self._bidden_until = max(self._bidden_until, now + retry_after_s)
            self._purse.shut_until = max(self._purse.shut_until, self._bidden_until)
        if self.terms.adaptive and now - self._cut_at >= RENEW_S:
            self._cut_at = now
            fewer = max(1, int(CUT * (self.in_flight + 1)))
            self._purse.slots = fewer if self._purse.slots is None else min(self._purse.slots, fewer)

    def _admit(self) -> None:
        while self._again and self._purse.retries > 0 and self._next(self._again):
            self._purse.retries -= 1
            self.counts.retries += 1
        while self._fresh and self._next(self._fresh):
            pass
        # A probe needs no leave to retry.
        if self._again and self._purse.open and self._next(self._again):
            self.counts.retries += 1

    def _next(self, queue: deque[_Wait]) -> bool:
        """Let the first of a queue go, if it may."""
        while queue and queue[0].turn.done():
            queue.popleft()
        if not queue or not self._room(queue[0].tokens):
            return False
        wait = queue.popleft()
        probe = self._purse.open
        self._purse.probes -= probe
        wait.turn.set_result(self._spend(wait.tokens, probe))
        return True

    def _room(self, tokens: int) -> bool:
        self._lapse()
        purse, now = self._purse, _now()
        if now >= purse.until or now < purse.shut_until or (purse.open and purse.probes < 1):
            return False
        if purse.slots is not None and self.in_flight >= purse.slots and not purse.open:
            return False
        return (purse.requests is None or purse.requests >= 1) and (purse.tokens is None or purse.tokens >= tokens)

    def _spend(self, tokens: int, probe: bool) -> Permit:
        purse = self._purse
        if purse.requests is not None:
            purse.requests -= 1
        if purse.tokens is not None:
            purse.tokens -= tokens
        self.in_flight += 1
        self.counts.sent += 1
        self._sent += 1
        self._reserved += tokens
        return Permit(tokens, probe)

    def _lapse(self) -> None:
        """Credits are good for a moment only; what was not used goes back with the next ask."""
        purse = self._purse
        if _now() < purse.credits_until or not (purse.requests or purse.tokens):
            return
        self._unspent += purse.tokens or 0
        purse.requests = None if purse.requests is None else 0
        purse.tokens = None if purse.tokens is None else 0

    def _despair(self) -> None:
        """Let those go that waited long enough, or that will be served elsewhere."""
        now, since = _now(), self._shut_since
        if since is None and now >= self._purse.shut_until:
            return
        since = now if since is None else since
        for queue in (self._again, self._fresh):
            for wait in [one for one in queue if not one.turn.done()]:
                error = self._hopeless(wait, now, since)
                if error is not None:
                    queue.remove(wait)
                    wait.turn.set_exception(error)

    def _hopeless(self, wait: _Wait, now: float, since: float) -> ModelError | None:
        asked = self._purse.shut_until - now
        if asked > wait.patience_s:
            return RateLimited(
                f"{self.name} asks for {asked:.0f} s of patience, patience_s={wait.patience_s:g}; raise it or lower "
                "what is asked of the endpoint",
                asked,
            )
        if now - since >= wait.patience_s:
            return Overloaded(f"{self.name} has answered nobody for patience_s={wait.patience_s:g}; is it still there?")
        if self._purse.open and wait.leave():
            return Overloaded(f"{self.name} answers nobody at present")
        return None


@dataclass
class Leases:
    """All leases of one process, renewed together. Call order: `of` for every model, `open`, calls, `close`."""

    keeper: Renewing
    holder: str
    """Its name at the keeper: no two alike."""
    leases: dict[str, Lease] = field(default_factory=dict)
    _urgent: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _renewing: asyncio.Task[None] | None = None
    _silent: bool = False

    def of(self, name: str, terms: Terms) -> Lease:
        """The lease of an endpoint; the same one for everybody in this process who asks for it."""
        if name in self.leases:
            lease = self.leases[name]
            lease.terms = lease.terms.strictest(terms)
        else:
            lease = self.leases[name] = Lease(name, terms, self._urgent.set, self.renew)
        return lease

    async def open(self) -> None:
        """Get the first leases, and keep them fresh from now on."""
        await self.renew()
        self._renewing = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Give everything back. May be called twice, and before open."""
        task, self._renewing = self._renewing, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        try:
            await self.keeper.leave(self.holder)
        except EvoclusterError as error:  # it forgets us by itself
            log.debug("the keeper of limits was not told that %s leaves: %s", self.holder, error)

    async def renew(self) -> None:
        """Report, ask, and go on with what is granted."""
        async with self._turn:
            await self._renew()

    async def _renew(self) -> None:
        asks = {name: lease.ask() for name, lease in self.leases.items()}
        try:
            grants = await self.keeper.renew(self.holder, asks)
        except BaseException as error:
            for name, ask in asks.items():
                self.leases[name].take_back(ask)
            if not isinstance(error, EvoclusterError):
                raise
            if not self._silent:
                log.warning("the keeper of limits does not answer (%s); going on with what was granted", error)
            self._silent = True
            return
        self._silent = False
        for name, grant in grants.items():
            self.leases[name].granted(grant)

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):  # nothing urgent came up: the regular renewal
                async with asyncio.timeout(RENEW_S):
                    await self._urgent.wait()
                await asyncio.sleep(HURRY_S)
            self._urgent.clear()
            try:
                await self.renew()
            except Exception as failure:  # handed to the calls, which would wait without end
                for lease in self.leases.values():
                    lease.fail(failure)
                return


def _now() -> float:
    return asyncio.get_running_loop().time()
