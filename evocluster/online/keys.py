"""API keys of the gateway: shown once, kept as a keyed digest, compared in constant time.

A key is `evo-` and 256 random bits. Slow, salted hashes (scrypt) make guessing of passwords dear; nobody guesses 256
random bits, so one HMAC-SHA256 does, and a request is not kept waiting (OWASP Password Storage, "pre-hashing": slow
hashes are for secrets of low entropy; RFC 6750 for the header).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from evocluster.errors import ConfigError
from evocluster.online.ledger import Ledger

PREFIX = "evo-"
_DOMAIN = b"evocluster api key 1"
_NAME = re.compile(r"[\w.@ -]{1,64}")
_BUCKET = 8
"""Hex digits of a digest that are looked up; the rest is compared in constant time."""


class Key(NamedTuple):
    """One key as it is listed; nothing of it leads back to the key."""

    name: str
    tenant: str
    at: float
    revoked_at: float | None


def create(ledger: Ledger, name: str, tenant: str, now: float) -> str:
    """A new key for this tenant: the only time that it is shown. Raises: ConfigError; StoreError."""
    for what, said in (("name", name), ("tenant", tenant)):
        if not _NAME.fullmatch(said):
            raise ConfigError(f"{what} {said!r} of a key: 1 to 64 letters, digits, '.', '_', '-', '@' or spaces")
    if any(key.name == name and key.revoked_at is None for key in listed(ledger)):
        raise ConfigError(f"a key {name!r} is there; revoke it first, or choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    ledger.add("keys", [{"hash": _digest(key), "name": name, "tenant": tenant, "at": now, "revoked_at": None}])
    return key


def revoke(ledger: Ledger, name: str, now: float) -> bool:
    """The key of this name opens nothing any more; False where there is none. Raises: StoreError."""
    live = ledger.find("keys", {"name": name, "revoked_at": None})
    return any([ledger.patch("keys", {"hash": row["hash"]}, revoked_at=now) for row in live])


def listed(ledger: Ledger) -> list[Key]:
    """All keys, the oldest first. Raises: StoreError."""
    rows = ledger.find("keys", order="at")
    return [Key(row["name"], row["tenant"], row["at"], row["revoked_at"]) for row in rows]


class Keys:
    """Who may come in, as known at the last `refresh`; while the ledger is away that goes on to hold."""

    def __init__(self, ledger: Ledger) -> None:
        """Call `refresh` before anything is checked, and then every second or so, off the request path."""
        self._ledger = ledger
        self._tenants: Mapping[str, tuple[tuple[str, str], ...]] = {}

    @property
    def any(self) -> bool:
        """There is a key; where there is none, only loopback is served."""
        return bool(self._tenants)

    def refresh(self) -> None:
        """Read the table again. Raises: StoreError; what was known then stays."""
        tenants: dict[str, tuple[tuple[str, str], ...]] = {}
        for row in self._ledger.find("keys", {"revoked_at": None}):
            begin = row["hash"][:_BUCKET]
            tenants[begin] = (*tenants.get(begin, ()), (row["hash"], row["tenant"]))
        self._tenants = tenants

    def check(self, header: str | None) -> str | None:
        """The tenant of `Authorization: Bearer evo-...`, None where the key opens nothing."""
        scheme, _, key = (header or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key.startswith(PREFIX) or len(key) > 128:
            return None
        said, tenant = _digest(key), None
        for digest, owner in self._tenants.get(said[:_BUCKET], ()):
            if hmac.compare_digest(digest, said):
                tenant = owner
        return tenant


def _digest(key: str) -> str:
    return hmac.digest(_DOMAIN, key.encode(errors="replace"), hashlib.sha256).hex()
