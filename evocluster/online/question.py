"""What a chat request asks of a task: its last user message, as text or as the JSON object the task's inputs are.

A task has one instruction, which is evolved, so system messages and earlier turns of a client are no part of a
question; nor are its sampling settings, its `api_base` and its `api_key`. All of them are accepted and left aside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from evocluster.errors import EvoclusterError
from evocluster.records import Example, Json
from evocluster.tasks.answers import encodable

SIGNALS = ("accepted", "retried", "corrected", "tool_success")
"""What a client may say with a request of how earlier answers fared."""
_SAID: Mapping[object, bool] = {True: True, False: False, "true": True, "false": False}
_LONGEST = 256
"""Characters of an episode's id, an intent, a user's name."""


class Rejected(EvoclusterError):
    """A request that cannot be served: an HTTP status, a code for programs, a text for people."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(status, code, message, retry_after_s)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class Shape(NamedTuple):
    """What the inputs of a task look like."""

    fields: tuple[str, ...] = ()
    """Of object inputs, by name; empty: inputs are text."""
    required: tuple[str, ...] = ()
    """Those that every object has."""
    text: bool = True
    """Inputs may be text."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Shape:
        """As these examples have it."""
        objects, text = [], False
        for example in examples:
            if isinstance(example.input, Mapping):
                objects.append(frozenset(example.input))
            else:
                text = True
        if not objects:
            return cls()
        return cls(tuple(sorted(frozenset.union(*objects))), tuple(sorted(frozenset.intersection(*objects))), text)

    def read(self, said: str) -> Json:
        """The question in a message. Raises: Rejected."""
        if not self.fields:
            return said
        try:
            found = parsed(said)
        except ValueError:
            found = None
        if isinstance(found, dict) and (not self.text or found.keys() & set(self.fields)):
            if missing := [name for name in self.required if name not in found]:
                raise bad(f"the question lacks the field {missing[0]!r}; fields: {', '.join(self.fields)}")
            return found
        if self.text:
            return said
        raise bad(
            "the last user message is no JSON object, and this deployment answers objects; send its content as JSON "
            f"with the fields {', '.join(self.fields)}"
        )


class Asked(NamedTuple):
    """A chat request, checked."""

    model: str
    said: str
    """Text of the last user message."""
    episode_id: str
    """Empty: the request is an episode of its own."""
    intent: str | None
    """None: the caller did not say."""
    signals: dict[str, bool]
    user: str
    stream: bool
    include_usage: bool
    """With `stream`: a last chunk tells the tokens."""


def parsed(text: str | bytes) -> Any:
    """Strict JSON. Raises: ValueError, also for NaN, which is none, and for what is nested too deep."""
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def read(body: Any) -> Asked:
    """The request that a body is. Raises: Rejected."""
    if not isinstance(body, Mapping):
        raise bad(f"the body is {type(body).__name__}, not a JSON object with `model` and `messages`")
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise bad(f"`metadata` is {metadata!r:.100}; allowed: an object with episode_id, intent, {', '.join(SIGNALS)}")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad(f"`model` is {model!r:.100}; name a deployment: GET /v1/models lists them")
    options = body.get("stream_options") or {}
    intent = _name("metadata.intent", metadata.get("intent"))
    return Asked(
        model=model,
        said=_said(body.get("messages")),
        episode_id=_name("metadata.episode_id", metadata.get("episode_id")) or "",
        intent=intent,
        signals=_signals(metadata),
        user=_name("user", body.get("user")) or "",
        stream=_flag("stream", body.get("stream")),
        include_usage=isinstance(options, Mapping) and _flag("include_usage", options.get("include_usage")),
    )


def _said(messages: Any) -> str:
    """The text of the last user message. Raises: Rejected."""
    if not isinstance(messages, list) or not messages:
        raise bad("`messages` is missing or empty; send at least one message of role 'user'")
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return _text(message.get("content"))
    raise bad("no message of role 'user' is among `messages`; the last one of that role is the question")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return encodable(content)
    if not isinstance(content, list) or not content:
        raise bad(f"the user message's content is {content!r:.100}; allowed: text, or a list of parts of type 'text'")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad(f"a part of the user message is of type {kind!r}; allowed: 'text', with the text in `text`")
        texts.append(part["text"])
    return encodable("\n".join(texts))


def _signals(metadata: Mapping[str, Any]) -> dict[str, bool]:
    """What the caller says of earlier answers; OpenAI's clients send texts as values of metadata."""
    found = {}
    for name in SIGNALS:
        value = metadata.get(name)
        if value is not None:
            if not isinstance(value, bool | str) or value not in _SAID:
                raise bad(f"metadata.{name} is {value!r:.100}; allowed: true or false")
            found[name] = _SAID[value]
    return found


def _name(where: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()):
        return value
    raise bad(f"`{where}` is {value!r:.100}; allowed: a text of at most {_LONGEST} printable characters")


def _flag(where: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise bad(f"`{where}` is {value!r:.100}; allowed: true or false")


def bad(message: str) -> Rejected:
    """The client's mistake."""
    return Rejected(400, "invalid_request", message)
