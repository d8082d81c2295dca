"""Replies as OpenAI's clients read them: a completion, the same one as a stream of chunks, a list of models, an error.

An answer is parsed, and asked for again where it does not parse, before anything of it is sent; so a stream is the
finished answer in pieces: it never takes back what it said, and an error always has its HTTP status.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from evocluster.online.question import Rejected
from evocluster.records import Usage
from evocluster.redaction import redacted

PIECE = 24
"""Characters of a streamed piece at least; it ends with a word."""
TYPES = dict.fromkeys((400, 404, 405, 408, 413), "invalid_request_error") | {
    401: "authentication_error",
    429: "rate_limit_error",
}
"""HTTP status -> what OpenAI calls such an error; server_error else."""
DONE = b"data: [DONE]\n\n"
_PIECE = re.compile(rf"(?s).{{1,{PIECE}}}\S*\s*")
_quoted = json.encoder.encode_basestring
_dumped = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def uuid7(now: float) -> str:
    """A UUID of version 7 (RFC 9562, section 5.7): its first 48 bits are milliseconds, so names sort by time."""
    number = (int(now * 1000) & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    said = f"{number:032x}"
    return f"{said[:8]}-{said[8:12]}-{said[12:16]}-{said[16:20]}-{said[20:]}"


def completion(id: str, model: str, at: float, snapshot: str, text: str, finish: str, used: Usage) -> bytes:
    """A whole answer. Written out, for it is what is written most: a fifth of the time that a dict takes."""
    asked, said = used.prompt_tokens, used.completion_tokens
    return (
        f'{{"id":{_quoted(id)},"object":"chat.completion","created":{int(at)},"model":{_quoted(model)},'
        f'"system_fingerprint":{_quoted(snapshot)},"choices":[{{"index":0,"message":{{"role":"assistant",'
        f'"content":{_quoted(text)},"refusal":null}},"logprobs":null,"finish_reason":{_quoted(finish)}}}],'
        f'"usage":{{"prompt_tokens":{asked},"completion_tokens":{said},"total_tokens":{asked + said}}}}}'
    ).encode()


def chunks(
    id: str, model: str, at: float, snapshot: str, text: str, finish: str, used: Usage | None
) -> Iterator[bytes]:
    """The same as server-sent events; `used`: the last chunk tells it."""
    head = _head(id, "chat.completion.chunk", model, at, snapshot)
    if used is not None:
        head["usage"] = None

    def event(delta: dict[str, Any], ended: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
        return f"data: {_dumped(head | {'choices': [choice]})}\n\n".encode()

    yield event({"role": "assistant", "content": ""})
    for piece in pieces(text):
        yield event({"content": piece})
    yield event({}, finish)
    if used is not None:
        yield f"data: {_dumped(head | {'choices': [], 'usage': _tokens(used)})}\n\n".encode()
    yield DONE


def pieces(text: str) -> Iterable[str]:
    """The text cut after words; joined again they are the text."""
    return (found[0] for found in _PIECE.finditer(text))


def listed(models: Iterable[tuple[str, float]]) -> bytes:
    """Deployments and when they were made, as a list of models."""
    return _dumped({"object": "list", "data": [_model(name, at) for name, at in models]}).encode()


def one_model(name: str, at: float) -> bytes:
    """One of them."""
    return _dumped(_model(name, at)).encode()


def failure(error: Rejected) -> bytes:
    """An error, without the keys that its text may quote."""
    told = {
        "message": redacted(error.message),
        "type": TYPES.get(error.status, "server_error"),
        "param": None,
        "code": error.code,
    }
    return _dumped({"error": told}).encode()


def dumped(value: Any) -> bytes:
    """Any other JSON."""
    return _dumped(value).encode()


def _head(id: str, kind: str, model: str, at: float, snapshot: str) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": int(at), "model": model, "system_fingerprint": snapshot}


def _tokens(used: Usage) -> dict[str, int]:
    asked, said = used.prompt_tokens, used.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _model(name: str, at: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(at), "owned_by": "evocluster"}
