"""A thin client for OpenAI-compatible endpoints over one aiohttp session: the cheap way to a model.

0.31 ms of CPU a call, 0.18 of it aiohttp's own, against 3.5 through litellm (scripts/bench_engine.py on two cores).
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator

from evocluster.errors import BadReply, DeadlinePassed, ModelError, Refused, Unreachable
from evocluster.llm import wire
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.llm.hosts import Reach
from evocluster.llm.limits import Paced
from evocluster.llm.prices import Price, required
from evocluster.records import FrozenDict, FrozenMap, digest

if TYPE_CHECKING:
    import aiohttp

BODY_LIMIT = 16 * 2**20
"""Bytes; no answer to a request of ours is longer."""
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}


@dataclass(frozen=True)
class _Opened:
    """What a call needs, in one place: pydantic takes 2 us to find a private attribute."""

    session: aiohttp.ClientSession
    key: str | None
    price: Price


class Direct(Paced):
    """One model at one OpenAI-compatible base URL: the key goes to that host only, no redirects."""

    kind: Literal["direct"] = "direct"
    base_url: Annotated[str, AfterValidator(wire.checked_url)]
    """Up to and including the version, e.g. http://127.0.0.1:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The name the endpoint knows it by."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; None: no key is sent, whatever is in there."""
    price: Price | None = None
    """What tokens cost you; needed before the first call, zeros where it is free."""
    completion: bool = False
    """The endpoint has /completions (plain text without a chat template)."""
    choices: wire.Choices = "none"
    """How the endpoint limits output to given strings."""
    json_schema: bool = False
    """The endpoint takes response_format json_schema."""
    send_seed: bool = True
    """Send a sampling seed with every request; false for endpoints that refuse the field."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit (OpenAI's reasoning models: max_completion_tokens)."""
    headers: FrozenMap = FrozenDict()
    """More headers; never secrets."""
    extra: FrozenMap = FrozenDict()
    """More body fields, laid over ours; null takes a field out."""

    _opened: _Opened | None = PrivateAttr(default=None)

    @field_validator("headers")
    @classmethod
    def _plain_headers(cls, headers: dict[str, Any]) -> dict[str, Any]:
        for name, value in headers.items():
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"header {name!r} holds a secret; name the variable that holds it in key_env instead")
            if not isinstance(value, str):
                raise ValueError(f"header {name!r} is {value!r}; write its value as text in quotes")
        return headers

    @cached_property
    def abilities(self) -> Abilities:
        """What the settings say the endpoint can do."""
        return Abilities(completion=self.completion, choices=self.choices != "none", json_schema=self.json_schema)

    @property
    def identity(self) -> str:
        """'direct:URL:model', and a digest of the settings that change answers where there are any."""
        changed = self.model_dump(
            mode="json", include={"choices", "extra", "send_seed", "max_tokens_field"}, exclude_defaults=True
        )
        return f"direct:{self.base_url}:{self.model}" + (f"#{digest(changed)[:12]}" if changed else "")

    @property
    def reach(self) -> Reach:
        """Where its calls go."""
        return Reach(self.key_env, self.base_url, "")

    async def open(self) -> None:
        """Raises: errors.PriceError, errors.MissingModel (the key). Nothing is sent yet."""
        import aiohttp

        await self.close()
        price = required(self.price, self.model)
        key = wire.secret(self.key_env, self.model)
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self.headers}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, resolver=wire.resolver()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            trust_env=False,
        )
        self._opened = _Opened(session, key, price)

    async def close(self) -> None:
        """May be called twice, and before open."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.session.close()

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.ModelError."""
        opened = self._opened
        if opened is None:
            raise ModelError(f"model {self.model!r} is not open; await open() before the first call")
        wire.admit(request, self.abilities, self.model)
        chat = request.prompt is None
        body = json.dumps(self.body(request)).encode()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                status, retry_after, raw = await self._post(
                    opened.session, "/chat/completions" if chat else "/completions", body
                )
        except TimeoutError as error:
            raise DeadlinePassed(
                f"model {self.model!r} gave no complete answer within timeout_s={self.timeout_s:g}; "
                "raise it, or ask for fewer tokens"
            ) from error
        seconds = time.perf_counter() - started
        if status != 200:
            raise wire.refusal(status, retry_after, raw, self.model, opened.key)
        if opened.key is not None and opened.key.encode() in raw:
            raise Refused(
                f"model {self.model!r} repeats the key in its answer, which would be kept; correct the endpoint"
            )
        answer = wire.read(raw, chat, self.model)
        text = answer.text
        if request.choices and self.choices == "json_schema":
            text = wire.unwrapped(text, answer.finish_reason, self.model)
        return Reply(
            text=text,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            usd=opened.price.cost(*answer[1:4]),
            seconds=seconds if answer.seconds is None else answer.seconds,
            finish_reason=answer.finish_reason,
        )

    def body(self, request: Request) -> dict[str, Any]:
        """What is posted for a request, as JSON data. Raises: errors.Refused."""
        body: dict[str, Any] = {"model": self.model, "temperature": request.temperature}
        if request.prompt is None:
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        else:
            body["prompt"] = request.prompt
        wrapped = bool(request.choices) and self.choices == "json_schema"
        limit = self.max_tokens_field if request.prompt is None else "max_tokens"
        body[limit] = request.max_tokens + (wire.WRAPPER_TOKENS if wrapped else 0)
        if request.stop:
            body["stop"] = list(request.stop)
        if self.send_seed:
            body["seed"] = wire.sample_seed(request)
        body.update(wire.constraint(request, self.choices))
        if self.extra:
            body.update(self.extra)
            body = {name: value for name, value in body.items() if value is not None}
        return body

    async def _post(self, session: aiohttp.ClientSession, path: str, body: bytes) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and body of the answer. Raises: errors.Unreachable, Refused, BadReply."""
        import aiohttp

        try:
            async with session.post(self.base_url + path, data=body, allow_redirects=False) as response:
                raw = b""
                while chunk := await response.content.readany():
                    raw += chunk
                    if len(raw) > BODY_LIMIT:
                        response.close()
                        raise BadReply(f"model {self.model!r} sent more than {BODY_LIMIT} bytes; it was cut off")
                return response.status, response.headers.get("Retry-After"), raw
        except aiohttp.ClientSSLError as error:
            raise Refused(f"the certificate of {self.base_url!r} is not trusted: {type(error).__name__}") from error
        except aiohttp.ClientResponseError as error:
            kind = type(error).__name__  # and nothing else of it: it holds the headers that were sent
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            lost = Unreachable(
                f"no connection to {self.base_url!r} ({type(error).__name__}); is the endpoint running there?"
            )
            # Broken off after it was made: the request may have been answered.
            lost.billable = not isinstance(error, aiohttp.ClientConnectorError)
            raise lost from error
        raise BadReply(f"{self.base_url!r} does not speak HTTP: {kind}")
