"""The keeper of what endpoints bear, shared by many holders: calls at once, requests and tokens a minute.

    holder (one a process)  --renew: what it was told, what it needs-->  Keeper  --a lease: what it may do-->  holder

A holder asks a few times a second, for all its models in one call, and spends its lease without asking again. What is
granted over all holders never passes the limits: concurrency at any moment, requests and tokens in any minute however
cut. What one holder does not need another gets; who is not heard of for LEASE_S is counted no longer.

Pure: the clock is an argument, nothing is awaited. Shares are max-min fair ("Data Networks", Bertsekas and Gallager
1992, section 6.5.2); rates are token buckets whose burst is inside the minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

from evocluster.llm.health import Health, Seen
from evocluster.telemetry import log

LEASE_S = 3.0
"""How long a lease is good for; a holder that is not heard of for so long has lost what it had."""
CREDIT_S = 0.5
"""How long a holder may keep requests and tokens that it has not used."""
BURST_S = 0.5
"""What a bucket holds besides one request: this many seconds of its rate."""
TURN_S = 2.0
"""How long the odd slot stays with one holder where there are fewer slots than holders."""


@dataclass(frozen=True)
class Terms:
    """What is allowed at one endpoint; 0 is no limit."""

    max_concurrency: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    adaptive: bool = True
    retry_share: float = 0.5

    def strictest(self, other: Terms) -> Terms:
        """What satisfies both."""
        return Terms(
            max_concurrency=_least(self.max_concurrency, other.max_concurrency),
            requests_per_minute=_least(self.requests_per_minute, other.requests_per_minute),
            tokens_per_minute=_least(self.tokens_per_minute, other.tokens_per_minute),
            adaptive=self.adaptive or other.adaptive,
            retry_share=min(self.retry_share, other.retry_share),
        )


@dataclass(frozen=True)
class Ask:
    """What a holder says of one endpoint when it renews."""

    terms: Terms = field(default_factory=Terms)
    offer: int = 0
    """Calls in flight that it will not pass until it is answered; at most its last lease, or what is in flight."""
    in_flight: int = 0
    need: int = 0
    """Calls in flight and waiting."""
    requests: int = 0
    """Requests that it would like to make before it asks again."""
    tokens: int = 0
    """The same in tokens."""
    piece: int = 1
    """Tokens of the request that waits in front."""
    retries: int = 0
    """Retries that wait."""
    unused: int = 0
    """Requests of its last lease that it hands back."""
    unspent: int = 0
    """Tokens that it hands back; what answers took beyond their reservation counts against it."""
    seen: Seen = field(default_factory=Seen)
    proven: bool = False
    """The endpoint has answered it before: a keeper may be new."""


@dataclass(frozen=True)
class Grant:
    """What a holder may do at one endpoint until it renews, at most for LEASE_S."""

    slots: int | None = None
    """Calls in flight; None: any number."""
    requests: int | None = None
    tokens: int | None = None
    retries: int = 0
    probes: int = 0
    """Calls that may be made although the circuit is open."""
    open: bool = False
    """The circuit is open: nothing but probes."""
    shut_s: float = 0.0
    """Nothing at all before so many seconds have passed, unless it is a probe."""


class Bucket:
    """A token bucket that is dealt: never more than `per_minute` in any minute, given that it is used within CREDIT_S.

    What flows in is shared out equally among those who want some, so that nobody gains by asking at the right moment;
    where no share is a whole piece yet, who has the largest may take one ahead. A piece larger than the burst widens
    the bucket, and slows it so that the minute still holds.
    """

    def __init__(self, per_minute: int, now: float, whole: bool = True) -> None:
        """`whole`: pieces of one, counted; a minute then ends just before the piece that would begin the next."""
        self._per_minute = per_minute
        self._extra = 1 if whole else 0
        self._filled_at = now
        self._shares: dict[str, float] = {}
        self._size(1)
        self._level = self._capacity

    def deal(self, name: str, wants: Mapping[str, tuple[int, int]], now: float) -> int:
        """What `name` gets. `wants`: everybody's (amount, smallest piece that is of use)."""
        wanting = {one: piece for one, (want, piece) in wants.items() if want}
        self._fill(now, wanting)
        if name not in wanting or self._level < 1:
            return 0
        (want, piece), share = wants[name], self._shares[name]
        common = max(0.0, self._level - sum(self._shares.values()))
        granted = min(want, int(min(self._level, share + common / len(wanting))))
        if granted < piece:
            first = self._level >= piece and share >= max(self._shares.values())
            granted = piece if first else 0
        self._level -= granted
        self._shares[name] = share - max(0.0, granted - min(common, max(0.0, granted - max(0.0, share))))
        return granted

    def back(self, amount: float) -> None:
        """Take back what was not used; a negative amount is a debt."""
        self._level = min(self._most, self._level + amount)

    def _fill(self, now: float, wanting: Mapping[str, int]) -> None:
        gained = max(0.0, min(self._capacity - self._level, self._rate * max(0.0, now - self._filled_at)))
        self._filled_at = now
        self._level += gained
        each = gained / max(1, len(wanting))
        self._shares = {name: self._shares.get(name, 0.0) + each for name in wanting}
        largest = max(wanting.values(), default=1)
        if largest > self._piece:
            self._size(largest)

    def _size(self, piece: int) -> None:
        self._piece = piece
        self._capacity = piece + BURST_S * self._per_minute / 60
        # What comes back is reserved too much, mostly, by calls of the last moments: room for it beside the burst.
        self._most = self._capacity if self._extra else 2 * self._capacity
        # A piece that hardly fits into a minute goes out all the same: it could never be asked otherwise.
        least = 1.0 if self._extra else self._per_minute * 0.5
        self._rate = max(least, self._per_minute + self._extra - self._most) / (60 + CREDIT_S)


@dataclass
class _Holder:
    heard_at: float
    ask: Ask
    bound: int = 0
    """Calls it may have in flight: those it was granted, or those that are there all the same."""
    probes: int = 0
    """Probes it was granted when it last renewed: perhaps in flight by now."""


class Endpoint:
    """What is allowed at one endpoint, dealt among its holders."""

    def __init__(self, name: str, terms: Terms, now: float) -> None:
        self._name = name
        self._holders: dict[str, _Holder] = {}
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.health = Health(terms.adaptive, terms.retry_share, now)
        self.terms = Terms()
        self._take(terms, now)

    def renew(self, holder: str, ask: Ask, now: float) -> Grant:
        """The next lease of a holder."""
        for name in [one for one, it in self._holders.items() if now - it.heard_at > LEASE_S]:
            del self._holders[name]
        me = self._holders.setdefault(holder, _Holder(now, ask))
        me.heard_at, me.ask, me.probes = now, ask, 0
        self._agree(now)
        self.health.proven = self.health.proven or ask.proven
        everybody = self._holders.values()
        wanted, in_flight = sum(one.ask.need for one in everybody), sum(one.ask.in_flight for one in everybody)
        self.health.hear(ask.seen, in_flight, wanted, now)
        slots = self._slots(holder, me, now)
        # A probe needs no slot of its holder, but a place among all.
        taken = in_flight + sum(one.probes for one in everybody)
        room = not self.terms.max_concurrency or taken < self.terms.max_concurrency
        me.probes = probes = int(room and ask.need > ask.in_flight and self.health.probe(now))
        asking = not self.health.open or bool(probes)
        return Grant(
            slots=slots,
            requests=self._deal("requests", holder, now, asking),
            tokens=self._deal("tokens", holder, now, asking),
            retries=self.health.retries(ask.retries, now),
            probes=probes,
            open=self.health.open,
            shut_s=0.0 if probes else max(0.0, self.health.shut_until - now),
        )

    def leave(self, holder: str) -> None:
        """A holder is done."""
        self._holders.pop(holder, None)

    def _agree(self, now: float) -> None:
        """Bring the limits of all holders together."""
        said = {one.ask.terms for one in self._holders.values()}
        terms = reduce(Terms.strictest, said)
        if terms == self.terms:
            return
        if len(said) > 1:
            log.warning("%s: runs differ in its limits; the stricter ones hold: %r", self._name, terms)
        self._take(terms, now)

    def _take(self, terms: Terms, now: float) -> None:
        was, self.terms = self.terms, terms
        if terms.requests_per_minute != was.requests_per_minute:
            self._requests = Bucket(terms.requests_per_minute, now) if terms.requests_per_minute else None
        if terms.tokens_per_minute != was.tokens_per_minute:
            self._tokens = Bucket(terms.tokens_per_minute, now, whole=False) if terms.tokens_per_minute else None
        self.health.adaptive, self.health.retry_share = terms.adaptive, terms.retry_share

    def _slots(self, holder: str, me: _Holder, now: float) -> int | None:
        total = self.health.slots(self.terms.max_concurrency)
        if total is None:
            me.bound = max(me.ask.offer, me.ask.in_flight)
            return None
        names = sorted(self._holders)
        turn = int(now / TURN_S) % len(names)
        order = names[turn:] + names[:turn]
        dealt = portions(total, {name: self._holders[name].ask.need for name in order})
        spare = (total - sum(dealt.values())) // len(names)
        others = sum(one.bound for name, one in self._holders.items() if name != holder)
        granted = max(0, min(dealt[holder] + spare, total - others))
        me.bound = max(granted, me.ask.offer, me.ask.in_flight)
        return granted

    def _deal(self, what: Literal["requests", "tokens"], holder: str, now: float, asking: bool) -> int | None:
        """What a holder gets out of a bucket."""
        bucket = self._requests if what == "requests" else self._tokens
        if bucket is None:
            return None
        ask = self._holders[holder].ask
        bucket.back(ask.unused if what == "requests" else ask.unspent)
        if not asking:
            return 0
        return bucket.deal(holder, {name: _wants(one.ask, what) for name, one in self._holders.items()}, now)


class Keeper:
    """The endpoints by name. Call order: `renew` by any number of holders, `leave` when one is done."""

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}

    def renew(self, holder: str, asks: Mapping[str, Ask], now: float) -> dict[str, Grant]:
        """Endpoint -> the holder's next lease. `now`: seconds on one clock that never goes back."""
        grants = {}
        for name, ask in asks.items():
            if name not in self.endpoints:
                self.endpoints[name] = Endpoint(name, ask.terms, now)
            grants[name] = self.endpoints[name].renew(holder, ask, now)
        return grants

    def leave(self, holder: str) -> None:
        """A holder is done: what it had is free."""
        for endpoint in self.endpoints.values():
            endpoint.leave(holder)


def portions(total: int, wants: Mapping[str, int]) -> dict[str, int]:
    """`total` dealt max-min fairly: nobody gets more than it wants, what is odd goes to the first in order."""
    dealt: dict[str, int] = {}
    left = total
    for index, (name, want) in enumerate(sorted(wants.items(), key=lambda one: one[1])):
        dealt[name] = min(want, left // (len(wants) - index))
        left -= dealt[name]
    for name, want in wants.items():
        if left and dealt[name] < want:
            dealt[name] += 1
            left -= 1
    return dealt


def _wants(ask: Ask, what: Literal["requests", "tokens"]) -> tuple[int, int]:
    """How much a holder wants, and the smallest piece that is of use to it."""
    return (ask.requests, 1) if what == "requests" else (ask.tokens, min(ask.tokens, ask.piece))


def _least(one: int, other: int) -> int:
    """The smaller limit, where 0 is none."""
    return min(one, other) if one and other else max(one, other)
