"""What it is to be a language model here: a request in, a reply out.

Every implementation (scripted, direct, remote, local) and every wrapper (limits, cached) is an `LLM`, so they stack.
A call either returns a usable `Reply` with true usage and price, or raises an `errors.ModelError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Literal, Protocol

from evocluster.errors import ConfigError
from evocluster.records import FrozenJson, Record, Usage, born, digest

Role = Literal["system", "user", "assistant"]


class Message(Record):
    """One chat turn."""

    role: Role
    content: str


class Request(Record):
    """One question to one model: either `messages` (chat) or `prompt` (plain text completion)."""

    model: str
    """Name under `models:` in the config."""
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    """Set: plain text completion without a chat template; `messages` is empty then."""
    temperature: float = 0.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int = 0
    choices: tuple[str, ...] = ()
    """Output limited to exactly one of these, where the model can (see Abilities)."""
    json_schema: FrozenJson = None
    """Output limited to this JSON schema, where the model can."""
    replicate: int = 0
    """Distinguishes samples of the same request: 0, 1, 2..."""
    purpose: Literal["evaluate", "rewrite", "reflect", "judge"] = "evaluate"
    """For accounts only; not part of the key."""

    def key(self, identity: str) -> str:
        """The cache key (64 hex digits): all that can change the answer; `identity` is of the model behind the name."""
        asked = {**self.__dict__, "identity": identity}
        del asked["model"], asked["purpose"]
        asked["messages"] = [one.__dict__ for one in self.messages]
        return digest(asked)


class Reply(Record):
    """One usable answer. Tokens and price are what the endpoint said, never guessed zeros."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    """List price of this call in US dollars."""
    seconds: float
    """Latency of the call, without queueing at our side."""
    finish_reason: str = "stop"
    """'stop', 'length', or what the endpoint said."""
    cached: bool = False
    """True when replayed from the cache: nothing was paid."""
    extra_usd: float = 0.0
    """US dollars that other requests for this answer, lost or called off, may have cost: paid, but not its price."""
    lost_calls: int = 0
    """Requests for this answer that failed, and that the endpoint may have charged for."""
    lost_usd: float = 0.0
    """What they may have cost; part of `extra_usd`."""
    answered_by: str | None = None
    """Name of the model that answered in place of the one asked; never of an evaluation or a judgement."""


class Abilities(Record):
    """What an endpoint can do beyond chat; the search keeps genes inside it."""

    chat: bool = True
    completion: bool = False
    """Plain text completion without a chat template."""
    choices: bool = False
    """Output limited to given strings."""
    json_schema: bool = False
    """Output limited to a JSON schema."""


class LLM(Protocol):
    """A language model, or several behind one call."""

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.ModelError."""
        ...


class Model(LLM, Protocol):
    """One configured model (an entry under `models:`). Call order: open, any number of calls, close."""

    @property
    def abilities(self) -> Abilities: ...

    @property
    def identity(self) -> str:
        """What really answers, e.g. 'direct:http://host/v1:gpt-x': part of the cache key."""
        ...

    async def open(self) -> None:
        """Connect or start what is needed. Raises: errors.ConfigError, errors.ModelError."""
        ...

    async def close(self) -> None: ...


class Claim(Enum):
    """What a cache says of a key it has no value for."""

    MINE = "mine"
    """The caller asks the model, then must `put_many` or `drop_many` the key."""
    TAKEN = "taken"
    """Another caller is asking; `wait` for it."""


class Cache(Protocol):
    """Completions, shared and persistent, with in-flight calls joined. Values are JSON texts."""

    async def get_many(self, keys: Sequence[str]) -> list[str | Claim]:
        """For each key its value, or whose turn it is to make it."""
        ...

    async def wait(self, key: str) -> str | None:
        """The value once its claimant has put it; None when the claim was dropped or ran out (claim again)."""
        ...

    async def put_many(self, items: Mapping[str, str]) -> None:
        """Durable when it returns (against a kill of the process)."""
        ...

    async def drop_many(self, keys: Sequence[str]) -> None:
        """Give up claims: the calls failed. A failure is never stored."""
        ...


def unconfigured(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a model that there is no entry for."""
    return ConfigError(
        f"model {name!r} is not configured: there are {sorted(known)}; add it under `models:` or name one of these"
    )


class Router:
    """Several models behind one call, picked by `request.model`."""

    def __init__(self, models: Mapping[str, LLM]) -> None:
        self._models = dict(models)

    async def __call__(self, request: Request) -> Reply:
        """As the model named. Raises: ConfigError where there is none of that name."""
        model = self._models.get(request.model)
        if model is None:
            raise unconfigured(request.model, self._models)
        return await model(request)


def usage(reply: Reply) -> Usage:
    """What one reply adds to the accounts."""
    return born(
        Usage,
        {
            "calls": 1,
            "cached": int(reply.cached),
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "usd": reply.usd,
            "paid_usd": 0.0 if reply.cached else reply.usd + reply.extra_usd,
            "seconds": reply.seconds,
        },
    )
