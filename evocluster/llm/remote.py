"""Whatever litellm reaches, through litellm, with its surprises taken out.

litellm retries by itself, has a timeout but no deadline, reads `.env`, fetches a price list, turns missing
usage into zeros, follows redirects, and sends OPENAI_API_KEY to any `api_base` that comes without a key: all
of it is switched off or checked here. It takes seconds and 165 MB to import, so only `open` imports it, and
costs about ten times the CPU of the direct client, the one to use for OpenAI-compatible endpoints.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from evocluster.errors import (
    BadReply,
    ConfigError,
    DeadlinePassed,
    MissingModel,
    ModelError,
    Overloaded,
    Refused,
    Unreachable,
)
from evocluster.llm import wire
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.llm.hosts import Reach
from evocluster.llm.limits import Paced
from evocluster.llm.prices import Price, list_price, required
from evocluster.records import FrozenDict, FrozenMap, digest

if TYPE_CHECKING:
    import aiohttp

COMPATIBLE = ("openai", "hosted_vllm", "text-completion-openai")
"""Providers that mean "an OpenAI-compatible endpoint" once an `api_base` is given."""
_OURS = frozenset(
    {"model", "messages", "prompt", "stream", "n", "timeout", "num_retries", "max_retries", "drop_params"}
    | {"api_key", "api_base", "base_url", "client", "shared_session", "headers", "extra_headers"}
    | {"fallbacks", "mock_response", "callbacks", "custom_llm_provider", "model_list", "aws_bedrock_runtime_endpoint"}
)


class Remote(Paced):
    """One model by its litellm name: slower than Direct, but providers with other protocols are reached."""

    kind: Literal["remote"] = "remote"
    model: Annotated[str, Field(pattern=r"^[\w.-]+/.+")]
    """litellm's name, provider first: 'anthropic/claude-haiku-4-5', 'bedrock/...', 'openai/my-model'."""
    api_base: Annotated[str, AfterValidator(wire.checked_url)] | None = None
    """Another host than the provider's own; then `key_env` or `no_key` says what it may see."""
    key_env: str | None = None
    """Name of the variable that holds the key. None without api_base: the provider's own credentials."""
    no_key: bool = False
    """The endpoint wants no key: a dummy is sent, so that no other key can be."""
    price: Price | None = None
    """None: litellm's list price. Required for an OpenAI-compatible `api_base`, which nobody lists."""
    completion: bool = False
    """Plain text completions (OpenAI-compatible providers only)."""
    choices: Literal["none", "json_schema"] = "none"
    json_schema: bool = False
    extra: FrozenMap = FrozenDict()
    """More arguments of litellm's call, laid over ours; null takes one out."""

    _litellm: Any = PrivateAttr(default=None)
    _session: aiohttp.ClientSession | None = PrivateAttr(default=None)
    _sdk: Any = PrivateAttr(default=None)
    _key: str | None = PrivateAttr(default=None)
    _priced: Price | None = PrivateAttr(default=None)
    _seeded: bool = PrivateAttr(default=False)
    _unheard: Any = PrivateAttr(default=None)

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_OURS & extra.keys())
        if taken:
            raise ValueError(f"extra may not set {taken!r}: they are settings of their own, or kept off on purpose")
        return extra

    @model_validator(mode="after")
    def _bound_key(self) -> Self:
        if self.api_base and not self.key_env and not self.no_key:
            raise ValueError(
                f"api_base {self.api_base!r} comes without a key, and litellm would send it OPENAI_API_KEY; "
                "write key_env: NAME_OF_ITS_VARIABLE, or no_key: true"
            )
        if self.key_env and self.no_key:
            raise ValueError(f"key_env {self.key_env!r} and no_key: true contradict each other; keep one")
        if self.completion and self._provider not in COMPATIBLE:
            raise ValueError(
                f"completion: true is for OpenAI-compatible endpoints ({', '.join(COMPATIBLE)}); litellm "
                f"turns prompts for {self._provider!r} into chats"
            )
        return self

    @property
    def compatible(self) -> bool:
        """Its endpoint is OpenAI itself, or one that speaks like it."""
        return self._provider in COMPATIBLE and (self.api_base is not None or self._provider != "hosted_vllm")

    @property
    def _provider(self) -> str:
        return self.model.split("/", 1)[0]

    @property
    def abilities(self) -> Abilities:
        """What the settings say."""
        return Abilities(
            chat=self._provider != "text-completion-openai",
            completion=self.completion,
            choices=self.choices != "none",
            json_schema=self.json_schema,
        )

    @property
    def rate(self) -> Price | None:
        """What tokens cost: as declared, or litellm's list price where one applies. Raises: errors.MissingModel."""
        private = self.api_base is not None and self._provider in COMPATIBLE
        return self.price or (None if private else list_price(self.model))

    @property
    def reach(self) -> Reach:
        """Where its calls go."""
        return Reach(self.key_env, self.api_base, self._provider, "api_base" if self.api_base else "key_env")

    @property
    def identity(self) -> str:
        """'remote:model', with '@host' for a host of its own and a digest of settings that change answers."""
        changed = self.model_dump(mode="json", include={"choices", "extra"}, exclude_defaults=True)
        where = f"@{self.api_base}" if self.api_base else ""
        return f"remote:{self.model}{where}" + (f"#{digest(changed)[:12]}" if changed else "")

    async def open(self) -> None:
        """Raises: errors.PriceError, errors.MissingModel (keys), errors.ConfigError. Nothing is sent yet."""
        await self.close()
        self._priced = required(self.rate, self.model)
        key = wire.secret(self.key_env, self.model)
        self._key = "no-key" if key is None and self.api_base else key
        litellm = await asyncio.to_thread(_load)
        try:
            name, provider, *_ = litellm.get_llm_provider(self._route(chat=True))
        except litellm.BadRequestError:
            raise ConfigError(
                f"litellm knows no provider {self._provider!r} (model {self.model!r}); write provider/model as "
                "in its list of providers, or use kind: direct with a base_url"
            ) from None
        if self._key is None:
            _credentials(litellm, self.model)
        self._seeded = "seed" in (litellm.get_supported_openai_params(name, provider) or ())
        self._session = _session()
        if self.completion:
            self._sdk = _sdk(self._session, self._key, self.api_base)
        self._litellm = litellm
        self._unheard = _unheard()
        _teach(litellm, self._route(chat=True), self._priced)

    async def close(self) -> None:
        """May be called twice, and before open."""
        session, self._session = self._session, None
        if session is None:
            return
        self._sdk = None
        # litellm keeps its clients by provider, with the session they were made with.
        self._litellm.in_memory_llm_clients_cache.flush_cache()
        await session.close()

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.ModelError."""
        wire.admit(request, self.abilities, self.model)
        if self._session is None:
            raise ModelError(f"model {self.model!r} is not open; await open() before the first call")
        chat = request.prompt is None
        call = self._litellm.acompletion if chat else self._litellm.atext_completion
        arguments = self._arguments(request)
        started = time.perf_counter()
        unheard = self._unheard.set(True)
        failure: ModelError | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                response = await call(**arguments)
        except Exception as error:
            failure = self._meaning(error)
        finally:
            self._unheard.reset(unheard)
        if failure is not None:
            # Raised out here and not chained: what litellm raises may quote the key.
            raise failure
        seconds = time.perf_counter() - started
        text, finish = self._said(response, chat)
        if self._key is not None and self.key_env and self._key in text:
            raise Refused(
                f"model {self.model!r} repeats the key in its answer, which would be kept; correct the endpoint"
            )
        counts = wire.counted(_usage(response), text, self.model)
        if request.choices:
            text = wire.unwrapped(text, finish, self.model)
        return Reply(
            text=text,
            prompt_tokens=counts[0],
            completion_tokens=counts[1],
            usd=required(self._priced, self.model).cost(*counts),
            seconds=seconds,
            finish_reason=finish,
        )

    def parameters(self, request: Request) -> dict[str, Any]:
        """What of litellm's arguments a request decides: no key, nothing of this client."""
        chat = request.prompt is None
        found: dict[str, Any] = {
            "model": self._route(chat),
            "temperature": request.temperature,
            "max_tokens": request.max_tokens + (wire.WRAPPER_TOKENS if request.choices else 0),
            **wire.constraint(request, self.choices),
        }
        if chat:
            found["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        else:
            found["prompt"] = request.prompt
        if request.stop:
            found["stop"] = list(request.stop)
        if self._seeded:
            found["seed"] = wire.sample_seed(request)
        if self.api_base:
            found["api_base"] = self.api_base
        if self.extra:
            found |= self.extra
            found = {name: value for name, value in found.items() if value is not None}
        return found

    def _route(self, chat: bool) -> str:
        """The name given to litellm; its hosted_vllm route leaves out the OpenAI SDK at half the CPU."""
        if self._provider not in COMPATIBLE or not (self.api_base or not chat):
            return self.model
        return ("hosted_vllm/" if chat else "text-completion-openai/") + self.model.split("/", 1)[1]

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments = {
            **self.parameters(request),
            "timeout": self.timeout_s,
            "max_retries": 0,
            "num_retries": 0,
            "drop_params": False,
        }
        if request.prompt is None:
            arguments["shared_session"] = self._session
        else:
            arguments["client"] = self._sdk
        if self._key is not None:
            arguments["api_key"] = self._key
        return arguments

    def _said(self, response: Any, chat: bool) -> tuple[str, str]:
        if not getattr(response, "choices", None):
            raise BadReply(f"model {self.model!r} answered without a choice (`choices` is empty or missing)")
        first = response.choices[0]
        text = first.message.content if chat else first.text
        if not isinstance(text, str):
            raise BadReply(f"model {self.model!r} answered without text (content is {type(text).__name__})")
        return text, str(first.finish_reason or "stop")

    def _meaning(self, error: Exception) -> ModelError:
        """Our error for one of litellm's, whose classes alone do not tell (no connection is a 500 there)."""
        import aiohttp

        chain = _chain(error)
        said = wire.redacted(str(error), self._key)
        if any(isinstance(link, _Redirected) for link in chain):
            return Refused(f"model {self.model!r} answered with a redirect, which is not followed; correct api_base")
        if any(isinstance(link, TimeoutError | self._litellm.Timeout) for link in chain):
            return DeadlinePassed(
                f"model {self.model!r} gave no complete answer within timeout_s={self.timeout_s:g}; "
                "raise it, or ask for fewer tokens"
            )
        names = {type(link).__name__ for link in chain}
        if any(isinstance(link, aiohttp.ClientError | OSError) for link in chain) or "TransportError" in names:
            lost = Unreachable(f"no connection to model {self.model!r}: {said}")
            # Broken off after it was made: the request may have been answered.
            lost.billable = not any(isinstance(link, aiohttp.ClientConnectorError) for link in chain)
            return lost
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or status == 200:
            return BadReply(f"model {self.model!r} gave an answer that cannot be read: {said}")
        headers = getattr(error, "litellm_response_headers", None) or {}
        meant = wire.refusal(status, headers.get("retry-after"), str(error).encode(), self.model, self._key)
        answered = bool(headers) or "HTTPStatusError" in names
        if isinstance(meant, Overloaded) and not answered and type(error).__name__ == "InternalServerError":
            return BadReply(f"model {self.model!r} gave an answer that cannot be read: {said}")
        return meant


def _load() -> Any:
    """litellm, imported without network or `.env`, silent, nobody listening to what passes through."""
    first = "litellm" not in sys.modules
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    for what in (
        "MODEL_COST_MAP",
        "ANTHROPIC_BETA_HEADERS",
        "BLOG_POSTS",
        "POLICY_TEMPLATES",
        "AUTOROUTER_PRESETS",
    ):
        os.environ[f"LITELLM_LOCAL_{what}"] = "True"
    os.environ.setdefault("AIOHTTP_CONNECTOR_LIMIT", "0")
    os.environ.setdefault("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", "0")
    import litellm

    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.telemetry = False
    litellm.drop_params = False
    for listeners in ("callbacks", "input_callback", "success_callback", "failure_callback"):
        setattr(litellm, listeners, [])
    litellm._async_success_callback = []
    litellm._async_failure_callback = []
    # It logs request bodies; what went wrong is in the errors raised here.
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    # A call cancelled while litellm prepares it in a thread leaves the coroutine it had made; nothing was sent.
    warnings.filterwarnings("ignore", r"coroutine '.*completion.*' was never awaited", RuntimeWarning)
    if first:
        gc.collect()
        gc.freeze()
    return litellm


def _unheard() -> ContextVar[bool]:
    """litellm's mark of a call that nobody's logger hears of: without it every call is copied, priced and redacted
    for loggers that are not there, a fifth of its CPU.
    """
    from litellm._internal_context import is_internal_call

    mark: ContextVar[bool] = is_internal_call
    return mark


def _teach(litellm: Any, route: str, price: Price) -> None:
    """Tell litellm the price of a model it does not list: it looks it up three times a call, a fifth of its CPU."""
    if route in litellm.model_cost:
        return
    rates = {
        "input_cost_per_token": price.prompt_usd_per_mtok / 1e6,
        "output_cost_per_token": price.completion_usd_per_mtok / 1e6,
    }
    litellm.register_model({route: {"litellm_provider": route.split("/", 1)[0], "mode": "chat", **rates}})


def _credentials(litellm: Any, model: str) -> None:
    """Raises: errors.MissingModel: the provider's key is not in the environment."""
    missing = litellm.validate_environment(model)["missing_keys"]
    # Only keys: cloud credentials may also come from profiles and instance roles.
    if missing and all(name.endswith("_API_KEY") for name in missing):
        raise MissingModel(
            f"model {model!r} needs {' and '.join(missing)} in the environment of every machine that calls it; "
            "set it, or name another variable in key_env"
        )


class _Redirected(Exception):
    """An endpoint tried to send us, and what we carry, elsewhere."""


async def _stay(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise _Redirected(f"{response.status}")
    return response


def _session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, resolver=wire.resolver()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(_stay,),
        trust_env=False,
    )


def _sdk(session: aiohttp.ClientSession, key: str | None, api_base: str | None) -> Any:
    """One OpenAI client over our session; for text completions litellm would make, and leak, one a call."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
    from openai import AsyncOpenAI

    http = AsyncHTTPHandler(shared_session=session).client
    return AsyncOpenAI(api_key=key, base_url=api_base, max_retries=0, http_client=http)


def _usage(response: Any) -> dict[str, Any]:
    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": getattr(usage, "prompt_tokens", None),
        "completion_tokens": getattr(usage, "completion_tokens", None),
        "prompt_tokens_details": {"cached_tokens": getattr(details, "cached_tokens", None)},
    }


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from or during, at most ten."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain and len(chain) < 10:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
