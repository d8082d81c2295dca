"""Who is told of promotions, rollbacks and alarms: the log always, and a webhook whose URL the environment holds.

A notice says which deployment, what happened and why, in numbers and short texts; never what anybody asked or was
answered. With a second variable, NAME_SECRET, each is signed: `x-evocluster-signature: t=<seconds>,v1=<hex>`, the
HMAC-SHA256 of "<seconds>.<body>". Receivers know one that comes twice by its id; what fails is logged, nothing more.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import field_validator

from evocluster.errors import ConfigError
from evocluster.records import FrozenDict, FrozenMap, Record, digest
from evocluster.redaction import noted, redacted
from evocluster.release.settings import Notify
from evocluster.telemetry import log

ATTEMPTS = 3
PAUSE_S = 0.5
"""Before the second attempt; twice that before the third."""
LONGEST = 300
"""Characters of a text in a notice."""


class Notice(Record):
    """Something that people should hear of."""

    at: float
    deployment: str
    event: str
    """live, promoted, rejected, rolled_back, inconclusive, alarm, frozen, failed."""
    text: str
    experiment: str = ""
    layer: str = ""
    snapshot: str = ""
    facts: FrozenMap = FrozenDict()
    """Numbers only."""

    @field_validator("text")
    @classmethod
    def _short(cls, text: str) -> str:
        return redacted(text)[:LONGEST]

    @field_validator("facts")
    @classmethod
    def _numbers(cls, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        odd = {name: value for name, value in facts.items() if not isinstance(value, int | float)}
        if odd:
            raise ValueError(f"facts {odd!r} are no numbers; a notice carries nothing that somebody wrote")
        return facts

    @property
    def id(self) -> str:
        """The same for the same notice."""
        return digest([self.deployment, self.event, self.experiment, self.text, self.at])[:16]


class Notifier:
    """Tells notices."""

    def __init__(
        self,
        settings: Notify,
        environment: Mapping[str, str] | None = None,
        *,
        attempts: int = ATTEMPTS,
        pause_s: float = PAUSE_S,
    ) -> None:
        """Raises: ConfigError: the variable is not set, or names no URL that may be called."""
        given = os.environ if environment is None else environment
        name = settings.webhook_env
        self._url = noted(_checked(name, given)) if name else None
        self._secret = noted(given.get(f"{name}_SECRET", "")) if name else ""
        self._timeout_s = settings.timeout_s
        self._attempts = attempts
        self._pause_s = pause_s

    async def __call__(self, notice: Notice) -> bool:
        """False where the webhook did not take it. Never raises but for a cancellation."""
        log.warning("%s: %s: %s", notice.deployment, notice.event, notice.text)
        if self._url is None:
            return True
        body = json.dumps({"id": notice.id, **notice.model_dump(mode="json")}, sort_keys=True).encode()
        why = ""
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(self._pause_s * 2 ** (attempt - 1))
            try:
                status = await self._post(self._url, body, int(notice.at))
            except Exception as error:  # whatever it is: who is told is never worth the loop
                why = f"{type(error).__name__}: {error}"
                continue
            if status < 300:
                return True
            why = f"status {status}"
            if status < 500 and status not in (408, 429):
                break
        log.error("the webhook at %s did not take notice %s: %s", urlsplit(self._url).hostname, notice.id, why)
        return False

    async def _post(self, url: str, body: bytes, at: int) -> int:
        import aiohttp

        headers = {"content-type": "application/json"}
        if self._secret:
            headers["x-evocluster-signature"] = f"t={at},v1={signature(self._secret, at, body)}"
        async with (
            asyncio.timeout(self._timeout_s),
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as reply,
        ):
            return reply.status


def signature(secret: str, at: int, body: bytes) -> str:
    """HMAC-SHA256, 64 hex digits."""
    return hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def _checked(name: str, environment: Mapping[str, str]) -> str:
    url = environment.get(name, "")
    if not url:
        raise ConfigError(f"notify.webhook_env names {name!r}, which is not set; export it, or remove the setting")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise ConfigError(f"the variable {name!r} holds no URL: {error}") from error
    if host and (parts.scheme == "https" or (parts.scheme == "http" and _loopback(host))):
        return url
    raise ConfigError(
        f"the variable {name!r} names a webhook with scheme {parts.scheme!r}; allowed: https, or http on this machine"
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
