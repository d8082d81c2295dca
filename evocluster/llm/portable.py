"""A configured model as others call it: its endpoint and the parameters of each request, as JSON data without secrets.

For configurations that leave: what is told of a request is what `direct` posts, or what `remote` hands to litellm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evocluster.llm import wire
from evocluster.llm.client import Request
from evocluster.llm.direct import Direct
from evocluster.llm.endpoints import OPENAI_KEY, OPENAI_URL
from evocluster.llm.local import Local
from evocluster.llm.remote import Remote
from evocluster.llm.scripted import Scripted

LOOPBACK_URL = "http://127.0.0.1:8080/v1"
"""Where llama.cpp's own server listens: for models that have no address of their own."""
_NAMED = frozenset(
    {"model", "temperature", "stop", "seed", "max_tokens", "top_p", "presence_penalty", "frequency_penalty"}
    | {"logit_bias", "logprobs", "n", "user"}
)
"""Fields that clients of OpenAI's API take by name; all others go into their `extra_body`."""
_CHAT = frozenset({"max_completion_tokens", "response_format", "reasoning_effort"})
"""More of them in a chat."""


class Portable:
    """One configured model, seen from outside."""

    def __init__(self, name: str, model: Scripted | Direct | Remote | Local) -> None:
        """`name`: as the config calls it."""
        self.name = name
        self.model = model
        self.direct = _direct(model)
        """The client that asks the same of an OpenAI-compatible endpoint; None where it speaks another protocol."""

    @property
    def endpoint(self) -> dict[str, Any]:
        """Where it is and which variables hold what, as JSON data; empty where only litellm reaches it."""
        if self.direct is None:
            return {}
        return {
            "base_url": self.direct.base_url,
            "url_env": re.sub(r"\W", "_", self.name).upper() + "_BASE_URL",
            "key_env": self.direct.key_env,
            "headers": dict(self.direct.headers),
            "timeout_s": self.direct.timeout_s,
            "retries": self.direct.retries,
            "note": self._note(),
        }

    def call(self, request: Request) -> dict[str, Any]:
        """The parameters of a request beside its messages or prompt. Raises: errors.Refused.

        `parameters`: arguments of the openai package, null where only litellm reaches the model; `wrapped`: the reply
        is {"answer": choice}; `seeded`: a seed is sent; `limited`: only a choice, or JSON of the schema, comes;
        `litellm`: arguments of litellm.
        """
        wire.admit(request, self.model.abilities, self.name)
        told: dict[str, Any] = {"parameters": None, "wrapped": False, "seeded": False}
        told["limited"] = bool(request.choices) or request.json_schema is not None
        if self.direct is not None:
            body, other = (self.direct.body(request.model_copy(update={"seed": seed})) for seed in (1, 2))
            told["seeded"] = body.get("seed") != other.get("seed")
            told["wrapped"] = bool(request.choices) and self.direct.choices == "json_schema"
            told["parameters"] = _named(body, {"messages", "prompt", *(["seed"] if told["seeded"] else [])})
        elif isinstance(self.model, Remote):
            told["wrapped"] = bool(request.choices)
        return {**told, "litellm": self._litellm(request, told["parameters"])}

    def _litellm(self, request: Request, parameters: dict[str, Any] | None) -> dict[str, Any]:
        if self.direct is None or parameters is None:
            assert isinstance(self.model, Remote)
            found = self.model.parameters(request)
            key = {"api_key": f"os.environ/{self.model.key_env}"} if self.model.key_env else {}
            key = {"api_key": "none"} if self.model.no_key else key
            return {name: value for name, value in found.items() if name not in ("messages", "prompt")} | key
        own = self.direct.base_url == OPENAI_URL
        route = "text-completion-openai" if request.prompt is not None else "openai" if own else "hosted_vllm"
        return {
            **parameters,
            "model": f"{route}/{parameters['model']}",
            "api_base": self.direct.base_url,
            "api_key": f"os.environ/{self.direct.key_env}" if self.direct.key_env else "none",
            **({"extra_headers": dict(self.direct.headers)} if self.direct.headers else {}),
        }

    def _note(self) -> str:
        """What whoever calls it has to know."""
        if isinstance(self.model, Scripted):
            return "the run's model was the scripted stand-in: put your own in its place"
        if isinstance(self.model, Local):
            return f"the run served {self.model.name} itself, on llama.cpp: serve the same weights at this address"
        return ""


def call(models: Mapping[str, Portable], name: str, request: Request) -> dict[str, Any]:
    """The parameters of a request to one of several models. Raises: errors.Refused."""
    return models[name].call(request)


def _direct(model: Scripted | Direct | Remote | Local) -> Direct | None:
    if isinstance(model, Direct):
        return model
    if isinstance(model, Local):
        return model.spoken(LOOPBACK_URL)
    paced = {"timeout_s": model.timeout_s, "retries": model.retries}
    if isinstance(model, Scripted):
        can = {"completion": True, "choices": "grammar", "json_schema": True}
        return Direct(base_url=LOOPBACK_URL, model="scripted", **can, **paced)
    if not model.compatible:
        return None
    own = model.api_base is None
    return Direct(
        base_url=model.api_base or OPENAI_URL,
        model=model.model.split("/", 1)[1],
        key_env=None if model.no_key else model.key_env or (OPENAI_KEY if own else None),
        completion=model.completion,
        choices=model.choices,
        json_schema=model.json_schema,
        max_tokens_field="max_completion_tokens" if own else "max_tokens",
        extra=model.extra,
        **paced,
    )


def _named(body: dict[str, Any], without: set[str]) -> dict[str, Any]:
    """A body as arguments of a client: what it does not know by name under `extra_body`."""
    kept = {name: value for name, value in body.items() if name not in without}
    known = _NAMED | (_CHAT if "messages" in body else frozenset())
    more = {name: value for name, value in kept.items() if name not in known}
    named = {name: value for name, value in kept.items() if name in known}
    return {**named, **({"extra_body": more} if more else {})}
