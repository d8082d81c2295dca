"""A model that answers by rules: deterministic, free of any network, shipped for trials, tests and examples.

Everything about an answer (text, tokens, simulated latency, failure) follows from the request and the
settings, so two runs are the same run. Learned from Inspect AI's `mockllm` and httpx's `MockTransport`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from evocluster.errors import DeadlinePassed, Overloaded
from evocluster.llm.client import Abilities, Reply, Request
from evocluster.llm.limits import Paced
from evocluster.llm.prices import Price
from evocluster.parts import Part
from evocluster.records import canonical, digest

_GROUP = re.compile(r"\\g<(\w+)>")
"""Where a rule's text says what a group of its pattern found."""


class Rule(Part):
    """If the last user text (or the prompt) matches `contains` or `pattern`, the answer is `text`."""

    contains: str | None = None
    """A text that is in it."""
    pattern: str | None = None
    """A regular expression, searched anywhere."""
    text: str
    """The answer; `\\g<name>` in it is what the pattern's group of that name found."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.contains is None) == (self.pattern is None):
            raise ValueError("a rule has either `contains` or `pattern`: write exactly one of them")
        groups = list(re.compile(self.pattern).groupindex) if self.pattern is not None else []
        for name in _GROUP.findall(self.text):
            if name not in groups:
                raise ValueError(
                    f"text speaks of group {name!r}; groups of the pattern: {', '.join(groups) or 'none'}; "
                    f"write (?P<{name}>...) into `pattern`"
                )
        return self

    def answer(self, asked: str) -> str | None:
        """What this rule answers to that text, or None."""
        if self.contains is not None:
            return self.text if self.contains in asked else None
        found = re.search(self.pattern or "", asked)
        return _GROUP.sub(lambda group: found[group[1]] or "", self.text) if found else None


class Scripted(Paced):
    """The fake: the first rule that matches answers, else `default`."""

    kind: Literal["scripted"] = "scripted"
    rules: tuple[Rule, ...] = ()
    """The first that matches what was asked last answers."""
    default: str = "ok"
    """The answer where no rule matches."""
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    """Median of the simulated latency, seconds."""
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.4
    """Spread of the simulated latency (log-normal)."""
    time_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How much of the simulated latency is really waited: 0 none, 1 all of it."""
    fail: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of attempts that fail with Overloaded; which ones follows from request and attempt."""
    price: Price = Price(prompt_usd_per_mtok=0.15, completion_usd_per_mtok=0.60)

    _answer: Callable[[Request], str] | None = PrivateAttr(default=None)
    _identity: str = PrivateAttr(default="")
    """What was named when it was opened."""
    _calls: int = PrivateAttr(default=0)
    _tries: dict[str, int] = PrivateAttr(default_factory=dict)

    @classmethod
    def using(cls, answer: Callable[[Request], str], **settings: Any) -> Self:
        """One that answers with a function of the request (a module-level one where it has to pickle)."""
        model = cls(**settings)
        model._answer = answer
        return model

    @property
    def abilities(self) -> Abilities:
        """All of them."""
        return Abilities(chat=True, completion=True, choices=True, json_schema=True)

    @property
    def identity(self) -> str:
        """'scripted:' and a digest of what decides the answers."""
        decides = self.model_dump(mode="json", include={"rules", "default", "latency_s", "sigma"})
        if self._answer is not None:
            decides["answer"] = f"{self._answer.__module__}.{self._answer.__qualname__}"
        return f"scripted:{digest(decides)[:16]}"

    @property
    def calls(self) -> int:
        """How often it was asked since it was made, failures included."""
        return self._calls

    async def open(self) -> None:
        """Nothing to connect."""
        self._identity = self.identity

    async def close(self) -> None:
        """Nothing to close."""

    async def __call__(self, request: Request) -> Reply:
        """Raises: errors.Overloaded (see `fail`), errors.DeadlinePassed (waiting longer than timeout_s)."""
        self._calls += 1
        key = request.key(self._identity or self.identity)
        seconds = self.latency_s * math.exp(self.sigma * NormalDist().inv_cdf(_share(key, "latency")))
        await self._wait(seconds * self.time_scale)
        self._maybe_fail(key)
        text, finish = _cut(self._text(request, key), request)
        completion = min(tokens(text), request.max_tokens)
        prompt = request.prompt if request.prompt is not None else " ".join(m.content for m in request.messages)
        asked = max(1, tokens(prompt))
        return Reply(
            text=text,
            prompt_tokens=asked,
            completion_tokens=completion,
            usd=self.price.cost(asked, completion),
            seconds=seconds,
            finish_reason=finish,
        )

    async def _wait(self, seconds: float) -> None:
        if seconds > self.timeout_s:
            await asyncio.sleep(self.timeout_s)
            raise DeadlinePassed(
                f"the scripted model takes {seconds:.3g} s, more than timeout_s={self.timeout_s:g}; "
                "lower latency_s or time_scale, or raise timeout_s"
            )
        await asyncio.sleep(seconds)

    def _maybe_fail(self, key: str) -> None:
        if not self.fail:
            return
        attempt = self._tries.get(key, 0)
        self._tries[key] = attempt + 1
        if _share(key, f"attempt {attempt}") < self.fail:
            raise Overloaded(f"the scripted model fails as told: fail={self.fail:g}, attempt {attempt}")

    def _text(self, request: Request, key: str) -> str:
        if self._answer is not None:
            text = self._answer(request)
        else:
            asked = last_text(request)
            answers = (rule.answer(asked) for rule in self.rules)
            text = next((answer for answer in answers if answer is not None), self.default)
        if request.choices:
            return text if text in request.choices else request.choices[_pick(key, "choice", len(request.choices))]
        if request.json_schema is not None and not _is_json(text):
            return canonical(_instance(request.json_schema, key))
        return text


def last_text(request: Request) -> str:
    """What was asked last: the prompt, or the last user message ('' when there is none)."""
    if request.prompt is not None:
        return request.prompt
    return next((m.content for m in reversed(request.messages) if m.role == "user"), "")


def tokens(text: str) -> int:
    """A deterministic estimate: four tokens for three words, rounded up."""
    return -(-4 * len(text.split()) // 3)


def _cut(text: str, request: Request) -> tuple[str, str]:
    """The text up to the first stop string and within max_tokens, and why it ended."""
    for stop in request.stop:
        if stop:
            text = text.split(stop, 1)[0]
    if tokens(text) <= request.max_tokens:
        return text, "stop"
    words = list(re.finditer(r"\S+", text))
    return text[: words[max(1, 3 * request.max_tokens // 4) - 1].end()], "length"


def _pick(key: str, salt: str, count: int) -> int:
    """One of 0 to count - 1, decided by the request alone."""
    return int.from_bytes(hashlib.sha256(f"{key} {salt}".encode()).digest()[:8], "big") % count


def _share(key: str, salt: str) -> float:
    """A number strictly between 0 and 1, decided by the request alone."""
    return (_pick(key, salt, 2**52) + 0.5) / 2**52


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_EMPTY: Mapping[str, Any] = {
    "string": "ok",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "null": None,
}


def _instance(schema: Any, key: str) -> Any:
    """A small value of the shape a JSON schema asks for (type, enum, const, properties, items, minItems)."""
    if not isinstance(schema, Mapping):
        return "ok"
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][_pick(key, "enum", len(schema["enum"]))]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list | tuple):
        kind = kind[0]
    if kind == "object":
        return {name: _instance(inner, key) for name, inner in schema.get("properties", {}).items()}
    if kind == "array" and schema.get("minItems"):
        return [_instance(schema.get("items"), key)] * int(schema["minItems"])
    return _EMPTY.get(str(kind), "ok")
