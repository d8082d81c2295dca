"""API keys: shown once, kept as digests, and good for nothing once revoked."""

from __future__ import annotations

import json

import pytest
from fake_ledger import FakeLedger

from evocluster.errors import ConfigError, StoreError
from evocluster.online import keys
from evocluster.online.keys import Keys


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def test_a_key_opens_for_its_tenant_and_is_kept_as_a_digest(ledger: FakeLedger) -> None:
    known = Keys(ledger)
    first, second = keys.create(ledger, "laptop", "acme", 1.0), keys.create(ledger, "server", "beta", 2.0)
    assert not known.any
    assert known.check(f"Bearer {first}") is None  # not refreshed yet
    known.refresh()
    assert known.any
    assert known.check(f"Bearer {first}") == "acme"
    assert known.check(f"bearer   {second} ") == "beta"
    assert first[4:] not in json.dumps(ledger.find("keys"))
    assert len(first) >= 47
    assert [key.name for key in keys.listed(ledger)] == ["laptop", "server"]


def test_nothing_else_opens(ledger: FakeLedger) -> None:
    key = keys.create(ledger, "laptop", "acme", 1.0)
    known = Keys(ledger)
    known.refresh()
    digest = ledger.find("keys")[0]["hash"]
    wrong = [
        None,
        "",
        key,
        "Bearer",
        "Bearer ",
        f"Basic {key}",
        f"Bearer {key[:-1]}",
        f"Bearer {key}x",
        f"Bearer {digest}",
    ]
    wrong += [f"Bearer {key.upper()}", f"Bearer evo-{'a' * 43}", "Bearer evo-\ud800", "Bearer evo-" + "a" * 10_000]
    assert [known.check(header) for header in wrong] == [None] * len(wrong)


def test_the_whole_digest_is_compared(ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.create(ledger, "laptop", "acme", 1.0)
    row = ledger.find("keys")[0]
    ledger.delete("keys", {})
    ledger.put("keys", {**row, "hash": row["hash"][:-1] + ("0" if row["hash"][-1] != "0" else "1")})
    known = Keys(ledger)
    known.refresh()
    assert known.check(f"Bearer {key}") is None


def test_a_revoked_key_opens_nothing_and_frees_its_name(ledger: FakeLedger) -> None:
    key = keys.create(ledger, "laptop", "acme", 1.0)
    known = Keys(ledger)
    with pytest.raises(ConfigError, match=r"a key 'laptop' is there; revoke it"):
        keys.create(ledger, "laptop", "acme", 2.0)
    assert keys.revoke(ledger, "laptop", 3.0)
    assert not keys.revoke(ledger, "laptop", 4.0)
    assert not keys.revoke(ledger, "other", 4.0)
    known.refresh()
    assert known.check(f"Bearer {key}") is None
    assert not known.any
    keys.create(ledger, "laptop", "acme", 5.0)
    assert [one.revoked_at for one in keys.listed(ledger)] == [3.0, None]


def test_while_the_ledger_is_away_what_was_known_holds(ledger: FakeLedger) -> None:
    key = keys.create(ledger, "laptop", "acme", 1.0)
    known = Keys(ledger)
    known.refresh()

    def away(method: str, table: str) -> None:
        raise StoreError("no connection")

    ledger.before = away
    with pytest.raises(StoreError):
        known.refresh()
    assert known.check(f"Bearer {key}") == "acme"


@pytest.mark.parametrize(("name", "tenant"), [("", "a"), ("a", ""), ("a\nb", "a"), ("a" * 65, "a")])
def test_odd_names_are_refused(ledger: FakeLedger, name: str, tenant: str) -> None:
    with pytest.raises(ConfigError, match="of a key"):
        keys.create(ledger, name, tenant, 1.0)
    assert ledger.find("keys") == []
