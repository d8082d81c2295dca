"""A model by name alone: the cheap client where its endpoint is OpenAI-compatible, else litellm."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from evocluster.llm import wire
from evocluster.llm.direct import Direct
from evocluster.llm.hosts import Reach
from evocluster.llm.limits import Paced
from evocluster.llm.prices import Price, list_price
from evocluster.llm.remote import COMPATIBLE, Remote
from evocluster.records import FrozenDict, FrozenMap

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
Url = Annotated[str, AfterValidator(wire.checked_url)]


class Endpoint(Paced):
    """Settings that become a Direct or a Remote. Call order: `resolve`, then the model it returns.

    A `base_url`: Direct, `model` sent as it is written. 'openai/...' without one: Direct to OpenAI itself,
    with the key in OPENAI_API_KEY unless `key_env` names another. 'openai/...' or 'hosted_vllm/...' with an
    `api_base`: Direct to that. Anything else: Remote.
    """

    kind: Literal["auto"] = "auto"
    model: Annotated[str, Field(min_length=1)]
    """Provider and name as litellm writes them, 'openai/gpt-5-mini'; with a `base_url` the endpoint's own name."""
    base_url: Url | None = None
    """Of an OpenAI-compatible endpoint, up to and including the version, e.g. http://127.0.0.1:8000/v1."""
    api_base: Url | None = None
    """litellm's name for another host of the provider (azure, for one)."""
    key_env: str | None = None
    """Name of the environment variable that holds the key."""
    no_key: bool = False
    """The endpoint wants no key: none is sent, or a dummy where litellm insists on one."""
    price: Price | None = None
    """What tokens cost you; None: the list price, where one applies."""
    completion: bool = False
    """The endpoint has /completions (plain text without a chat template)."""
    choices: wire.Choices = "none"
    """How the endpoint limits output to given strings."""
    json_schema: bool = False
    """The endpoint takes response_format json_schema."""
    extra: FrozenMap = FrozenDict()
    """More body fields, laid over ours; null takes a field out."""

    @model_validator(mode="after")
    def _stands(self) -> Self:
        if self.base_url and self.api_base:
            raise ValueError(
                f"base_url {self.base_url!r} and api_base {self.api_base!r} both say where to call; "
                "keep base_url for an OpenAI-compatible endpoint, api_base for a provider that litellm knows"
            )
        if self.key_env and self.no_key:
            raise ValueError(f"key_env {self.key_env!r} and no_key: true contradict each other; keep one")
        if self.choices not in ("none", "json_schema") and not self._direct:
            raise ValueError(
                f"choices: {self.choices} needs an OpenAI-compatible endpoint, and {self.model!r} goes "
                "through litellm; allowed there: none, json_schema"
            )
        if not self._direct:
            self._remote()
        return self

    @property
    def _direct(self) -> bool:
        provider = self.model.split("/", 1)[0]
        own_host = provider in COMPATIBLE[:2] and self.api_base is not None
        return self.base_url is not None or own_host or (provider == "openai" and "/" in self.model)

    @property
    def reach(self) -> Reach:
        """Where its calls go."""
        url = self.base_url or self.api_base
        provider = self.model.split("/", 1)[0]
        if url is None and self._direct:
            return Reach(None if self.no_key else self.key_env or OPENAI_KEY, None, provider, "key_env")
        return Reach(self.key_env, url, provider, "base_url" if self.base_url else "api_base" if url else "key_env")

    def resolve(self) -> Direct | Remote:
        """The model itself, not yet open; its price is the declared one, or the list price if one applies."""
        if not self._direct:
            return self._remote()
        if self.base_url is not None:
            return self._at(self.base_url, self.model)
        name = self.model.split("/", 1)[1]
        if self.api_base is not None:
            return self._at(self.api_base, name)
        return self._at(
            OPENAI_URL,
            name,
            key_env=None if self.no_key else self.key_env or OPENAI_KEY,
            price=self.price or list_price(self.model),
            max_tokens_field="max_completion_tokens",
        )

    def _at(self, url: str, name: str, **settings: Any) -> Direct:
        return Direct(**{**self._shared(), "choices": self.choices, "base_url": url, "model": name, **settings})

    def _remote(self) -> Remote:
        shared = {**self._shared(), "choices": self.choices}
        return Remote(**shared, model=self.model, api_base=self.api_base, no_key=self.no_key)

    def _shared(self) -> dict[str, Any]:
        names = (*Paced.model_fields, "key_env", "price", "completion", "json_schema", "extra")
        return {name: getattr(self, name) for name in names}
