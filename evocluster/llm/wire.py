"""What is said to an OpenAI-compatible endpoint, and how its answer is read without believing too much.

Shared by the two clients, direct (ours) and remote (litellm): URLs that may be called, keys, output
constraints, answers and refusals. Pure functions; nothing here opens a connection, and nothing here logs.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from evocluster.errors import (
    BadReply,
    DeadlinePassed,
    MissingModel,
    ModelError,
    Overloaded,
    RateLimited,
    Refused,
)
from evocluster.llm.client import Abilities, Request
from evocluster.redaction import HIDDEN, noted
from evocluster.redaction import redacted as hidden

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import ResolveResult

Choices = Literal["none", "grammar", "json_schema", "guided_choice", "structured_outputs"]
"""How an endpoint limits output to given strings: `grammar` llama.cpp, `json_schema` OpenAI's
response_format, `guided_choice` older vLLM, `structured_outputs` newer vLLM."""

SAID_BYTES = 2**16
"""Read of the body of a refusal."""
METADATA = ("metadata.google.internal", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")
"""Where clouds answer with credentials, besides the link-local addresses: Google, Amazon, Alibaba, Azure."""
WRAPPER_TOKENS = 12
"""Added to max_tokens when a choice travels inside {"answer": ...}: the wrapper must not eat the answer."""


class Answer(NamedTuple):
    """What an endpoint answered, checked."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    finish_reason: str
    seconds: float | None
    """Compute time that the endpoint itself reported (llama.cpp's `timings`), queueing left out."""


def checked_url(url: str) -> str:
    """The base URL without a slash at its end. Raises: ValueError: not http(s), credentials, link-local."""
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r} is not an http(s) URL; write for example http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of host {host!r} carries a user, password, query or fragment; "
            "keep it to http(s)://host:port/path and name the variable that holds the key in key_env"
        )
    if host.rstrip(".") in METADATA or _is_metadata(_address(host)):
        raise ValueError(f"{url!r} is a link-local (instance metadata) address; name the model's own host")
    return url.rstrip("/")


def resolver() -> aiohttp.abc.AbstractResolver:
    """For a session: looks names up as usual, and refuses those that lead to instance metadata."""
    from aiohttp.resolver import ThreadedResolver

    class Guarded(ThreadedResolver):
        async def resolve(self, host: str, *args: Any, **kwargs: Any) -> list[ResolveResult]:
            """Raises: OSError."""
            found = await super().resolve(host, *args, **kwargs)
            if any(_is_metadata(_address(one["host"])) for one in found):
                raise OSError(f"{host!r} leads to a link-local (instance metadata) address")
            return found

    return Guarded()


def _is_metadata(address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    return address is not None and (address.is_link_local or str(address) in METADATA)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The literal IP address a host stands for, in any spelling the resolver would take; None for a name."""
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def secret(key_env: str | None, model: str) -> str | None:
    """The key in that environment variable; None when none is named. Raises: errors.MissingModel."""
    if key_env is None:
        return None
    key = os.environ.get(key_env, "").strip()
    if not key:
        raise MissingModel(
            f"model {model!r} takes its key from the environment variable {key_env!r}, which is not set; "
            f"set it (export {key_env}=...) on every machine that calls the model, or change key_env"
        )
    return noted(key)


def admit(request: Request, abilities: Abilities, model: str) -> None:
    """Refuses what the endpoint is not configured for, rather than ask for something else in silence.

    Raises: errors.Refused.
    """
    if request.prompt is not None and not abilities.completion:
        _unable(model, "plain text completion (prompt)", "set completion: true if its endpoint has /completions")
    if request.choices and not abilities.choices:
        _unable(model, "output limited to choices", "set choices to what its endpoint understands")
    if request.json_schema is not None and not abilities.json_schema:
        _unable(model, "output limited to a JSON schema", "set json_schema: true if its endpoint takes one")


def _unable(model: str, what: str, remedy: str) -> None:
    raise Refused(f"model {model!r} is not configured for {what}; {remedy}, or keep the search from asking for it")


def sample_seed(request: Request) -> int:
    """The seed sent along: replicates of one request must differ, and replicate 0 keeps the seed as it is."""
    return (request.seed + 1_000_003 * request.replicate) % 2**31


def constraint(request: Request, mode: Choices) -> dict[str, Any]:
    """Body fields that limit the output as the request asks; {} when it asks for nothing.

    Raises: errors.Refused: `json_schema` choices need a chat.
    """
    if request.choices:
        if mode == "grammar":
            return {"grammar": grammar(request.choices)}
        if mode == "guided_choice":
            return {"guided_choice": list(request.choices)}
        if mode == "structured_outputs":
            return {"structured_outputs": {"choice": list(request.choices)}}
        if request.prompt is not None:
            raise Refused("choices: json_schema works in chat only; use grammar or structured_outputs for prompts")
        answer = {"type": "string", "enum": list(request.choices)}
        return response_format(
            {
                "type": "object",
                "properties": {"answer": answer},
                "required": ["answer"],
                "additionalProperties": False,
            }
        )
    return {} if request.json_schema is None else response_format(request.json_schema)


def response_format(schema: Any) -> dict[str, Any]:
    """OpenAI's structured outputs: the field that holds an answer to a JSON schema."""
    inner = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def grammar(choices: tuple[str, ...]) -> str:
    """A llama.cpp GBNF grammar whose only sentences are the choices."""
    return "root ::= " + " | ".join(f'"{_gbnf(choice)}"' for choice in choices)


def _gbnf(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(escapes.get(c, c if c >= " " else f"\\x{ord(c):02X}") for c in text)


def unwrapped(text: str, finish_reason: str, model: str) -> str:
    """The choice inside {"answer": ...}; a cut answer stays as it is. Raises: errors.BadReply."""
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError) as error:
        if finish_reason == "length":
            return text
        raise BadReply(
            f'model {model!r} was asked for {{"answer": one of the choices}} and answered something else; '
            "its endpoint does not do response_format json_schema: set choices: none"
        ) from error


def read(raw: bytes, chat: bool, model: str) -> Answer:
    """The answer inside the body of a 200. Raises: errors.BadReply, or what an error object in it means."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        what = "an HTML page" if raw.lstrip()[:1] == b"<" else f"{len(raw)} bytes that are not JSON"
        raise BadReply(f"model {model!r} answered with {what}; check that base_url is that of the API") from error
    if not isinstance(body, dict):
        raise BadReply(f"model {model!r} answered with a JSON {type(body).__name__}; an object was expected")
    _no_error(body, model)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply(f"model {model!r} answered without a choice (`choices` is empty or missing)")
    first = choices[0]
    message = first.get("message") if chat else first
    text = message.get("content" if chat else "text") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise BadReply(f"model {model!r} answered without text (content is {type(text).__name__})")
    finish = first.get("finish_reason")
    prompt, completion, cached = counted(body.get("usage"), text, model)
    return Answer(text, prompt, completion, cached, finish if isinstance(finish, str) else "stop", _compute(body))


def _no_error(body: Mapping[str, Any], model: str) -> None:
    """Some relays put an upstream failure into a 200: {"error": {"code": 429, ...}}."""
    inner = body.get("error")
    if not inner or body.get("choices"):
        return
    code = inner.get("code") if isinstance(inner, dict) else None
    if isinstance(code, int) and code >= 400:
        raise refusal(code, None, json.dumps(body).encode(), model, None)
    raise BadReply(f"model {model!r} answered 200 with an error inside: {redacted(_said(json.dumps(body)), None)}")


def counted(usage: object, text: str, model: str) -> tuple[int, int, int]:
    """Prompt, completion and cached prompt tokens of a usage. Raises: errors.BadReply: missing or zero."""
    found = usage if isinstance(usage, Mapping) else {}
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
    if not _count(prompt) or not _count(completion) or prompt == 0 or (completion == 0 and text):
        raise BadReply(
            f"model {model!r} answered without a usable usage (prompt_tokens {prompt!r}, completion_tokens "
            f"{completion!r}), so its cost is unknown; switch usage on at the endpoint"
        )
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    return int(prompt or 0), int(completion or 0), int(cached or 0) if _count(cached) else 0


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _compute(body: Mapping[str, Any]) -> float | None:
    timings = body.get("timings")
    if not isinstance(timings, dict):
        return None
    spent = [timings.get("prompt_ms"), timings.get("predicted_ms")]
    known = [float(ms) for ms in spent if isinstance(ms, int | float) and math.isfinite(ms) and ms >= 0]
    return sum(known) / 1000 if len(known) == 2 else None


def refusal(status: int, retry_after: str | None, raw: bytes, model: str, key: str | None) -> ModelError:
    """The error that an HTTP status other than 200 stands for; the key never appears in its text."""
    # Hidden before anything is cut: half a key is a key to whoever guesses the rest.
    said = redacted(_said(hidden(raw[:SAID_BYTES].decode("utf-8", "replace"), key)[:4000]), key)
    text = f"model {model!r} answered {status}: {said}"
    if status == 429:
        return RateLimited(text, retry_after_s(retry_after, datetime.now(UTC)))
    if status == 408:
        return DeadlinePassed(text)
    if status >= 500:
        return Overloaded(text)
    if 300 <= status < 400:
        return Refused(f"model {model!r} answered with a redirect ({status}), which is not followed; correct base_url")
    if status in (400, 413, 422):
        # Of this request (a prompt longer than the context, say), not of the endpoint: others may do better.
        unfit = BadReply(text)
        unfit.billable = False
        return unfit
    if status in (401, 403):
        text += "; check the key and the variable named in key_env"
    return Refused(text)


def _said(text: str) -> str:
    """The message of an OpenAI-style error body, or the body itself."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return "an HTML page" if text.lstrip().startswith("<") else text


_LIKE_KEYS = re.compile(r"(?i)\b(?:sk|pk|key|api)[-_][\w.*-]{6,}")
"""What an endpoint may quote of a key that is not ours, masked or cut."""


def redacted(text: str, key: str | None) -> str:
    """At most 200 characters of one line, without the key or anything that looks like one."""
    text = _LIKE_KEYS.sub(HIDDEN, hidden(" ".join(text.split()), key))
    return text if len(text) <= 200 else text[:200] + "..."


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (a number or an HTTP date); None when it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
