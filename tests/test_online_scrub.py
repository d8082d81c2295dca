"""Scrubbing: planted secrets of every kind are gone wherever they stood, and what is gone is said in our form only."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocluster.online import scrub
from evocluster.online.scrub import Scrubber, random_looking
from evocluster.records import Json
from evocluster.redaction import noted
from evocluster.tasks import pii

SCRUBBER = Scrubber(b"0123456789abcdef0123456789abcdef")
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA0Z3\n-----END RSA PRIVATE KEY-----"
SECRETS: dict[str, str] = {
    "email": "Jane.Doe+shop@mail.example.co.uk",
    "phone": "+1 415-555-2671",
    "card": "4111 1111 1111 1111",
    "amex": "3782 822463 10005",
    "iban": "DE89 3704 0044 0532 0130 00",
    "ssn": "536-90-4399",
    "ip": "81.2.69.142",
    "openai": "sk-proj-0123456789abcdefgh",
    "github": "ghp_0123456789abcdefghij0123",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIza" + "0aB" * 11,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "pem": PEM,
    "bearer": "Bearer abc.def-123456",
    "basic": "Basic dXNlcjpwYXNzd29yZA==",
    "sendgrid": "SG.abcdefghij012345.abcdefghij0123456789",
    "hex": "9f86d081884c7d659a2feaa0c55ad015",
    "random": "x7Kq2vTz9LmB4nWc8RfY",
    "aws secret": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzEXAMPLEKEY",
    "password": "password: hunter2!x",
    "login": "postgres://me:s3cr3tpw@db.example/x",
}
HIDDEN_PART = {"password": "hunter2!x", "login": "s3cr3tpw", "pem": "MIIEowIBAAKCAQEA0Z3"}
secrets = st.sampled_from(sorted(SECRETS))
words = st.lists(st.sampled_from(["the", "parcel", "came", "late", "why?", "ok.", "für", "数"]), max_size=6).map(
    " ".join
)


def gone(kind: str, kept: Json) -> bool:
    """Nothing of the secret stands in it, however it is written there."""
    told = json.dumps(kept, ensure_ascii=False)
    secret = HIDDEN_PART.get(kind, SECRETS[kind])
    return secret not in told and json.dumps(secret)[1:-1] not in told and secret not in json.dumps(kept)


def placed(secret: str) -> st.SearchStrategy[Json]:
    """The secret somewhere in a text, or in a JSON value, or in JSON in a text."""
    told = st.tuples(words, words).map(lambda around: f"{around[0]} {secret} {around[1]}")
    return st.recursive(
        told,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.dictionaries(st.sampled_from(["content", "note", "x"]), inner, min_size=1, max_size=3),
            inner.map(lambda value: {f"said {secret}": value}),
            inner.map(json.dumps),
            inner.map(lambda value: f"see {json.dumps(value)} there"),
        ),
        max_leaves=4,
    )


@pytest.mark.parametrize("kind", sorted(SECRETS))
def test_each_kind_goes_from_each_place(kind: str) -> None:
    secret = SECRETS[kind]
    for value in (secret, [secret], {"a": {"b": [1, secret]}}, {secret: 1}, json.dumps({"a": secret})):
        kept = SCRUBBER.scrub(value, f"so: {secret}", f"failed on {secret}")
        assert not kept.dropped
        assert gone(kind, [kept.input, kept.output, kept.error])


def test_a_social_security_number_goes_whatever_stands_before_it() -> None:
    kept = SCRUBBER.scrub("parcel 536-90-4399 came late", "order 536-90-4399")
    assert "536-90-4399" not in f"{kept.input} {kept.output}"
    assert str(kept.input).startswith("parcel [ssn:")


@settings(max_examples=60)
@given(st.data(), secrets)
def test_planted_secrets_never_survive_and_scrubbing_twice_changes_nothing(data: st.DataObject, kind: str) -> None:
    value = data.draw(placed(SECRETS[kind]))
    once = SCRUBBER.scrub(value, json.dumps(value))
    assert not gone(kind, value)
    assert not once.dropped
    assert gone(kind, [once.input, once.output])
    again = SCRUBBER.scrub(once.input, once.output)
    assert (again.input, again.output) == (once.input, once.output)


@settings(max_examples=60)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_any_value_is_scrubbed_and_then_stays(value: Json) -> None:
    once = SCRUBBER.scrub(value, "")
    again = SCRUBBER.scrub(once.input, "")
    assert not once.dropped
    assert again.input == once.input
    json.dumps(once.input, allow_nan=False).encode()


@settings(max_examples=100)
@given(st.text("ab@.:[]{}\"'0123456789+- \\nkey=/", max_size=60))
def test_texts_of_the_characters_that_rules_look_at_are_stable(text: str) -> None:
    once = SCRUBBER.scrub(text, "")
    assert SCRUBBER.scrub(once.input, "") == once


@settings(max_examples=200)
@given(st.text("0123456789abcdef", min_size=32, max_size=64))
def test_long_hex_is_a_token(text: str) -> None:
    assert random_looking(text) == (not text.isdigit() and not text.isalpha())


@pytest.mark.parametrize(
    "text",
    [
        "the internationalization of responsibilities",
        "/usr/lib/python3/site-packages/numpy/core/include",
        "getHTTPResponseFromTheServer",
        "my-long-url-slug-about-nothing-in-particular-2024",
        "request 018f4d3e-7b1a-7c3e-9a55-1234567890ab failed",
        "order 4155552671 shipped on 2024-05-12 for 12.50 EUR",
        "the secret of success; the key to it is: practice",
        "{'a': 1} and [1, 2, 3]",
        '{"key": "colour", "token": "running"}',
        "100% of \\users at http://example.com:8080/path",
    ],
)
def test_ordinary_texts_stay_as_they_are(text: str) -> None:
    assert SCRUBBER.scrub(text, text, text)[:3] == (text, text, text)


def test_equal_values_join_however_they_are_written_and_only_for_who_has_the_key() -> None:
    one, other = (SCRUBBER.scrub(text, "").input for text in ("mail JANE@b.io", "jane@B.io wrote"))
    assert one == f"mail {other.split()[0]}"
    assert re.fullmatch(r"mail \[email:[a-p]{14}\]", one)
    number = SCRUBBER.scrub("call 415-555-2671 or +1 (415) 555-2671", "").input
    assert len(set(re.findall(r"\[phone:\w+\]", number))) == 1
    assert Scrubber(b"f" * 32).scrub("mail jane@b.io", "").input != one


def test_what_a_user_writes_in_our_form_is_told_from_ours() -> None:
    ours = SCRUBBER.placeholder("email", "jane@b.io")
    forged = ours[:-2] + ("ab]"[1:] if ours[-2] != "b" else "a]")
    kept = SCRUBBER.scrub(f"{ours} [email:3f2a] [key:abcdefghijklmn] {forged}", "").input
    assert kept == f"{ours} [quoted email:3f2a] [quoted key:abcdefghijklmn] [quoted {forged[1:]}"
    assert SCRUBBER.scrub(kept, "").input == kept


def test_json_in_a_text_stays_json_and_escapes_hide_nothing() -> None:
    kept = SCRUBBER.scrub('{"mail": "jane\\u0040b.io", "n": 4111111111111111, "phone": 4155552671}', "").input
    told = json.loads(kept)
    assert [told[name].partition(":")[0] for name in ("mail", "n", "phone")] == ["[email", "[card", "[phone"]
    for text in ('see {"a": "call\\njane@b.io"}!', "jane%40b.io", "jane&#64;b.io", "jane&#x40;b.io", "jane\\u0040b.io"):
        kept = SCRUBBER.scrub(text, "").input
        assert "jane" not in kept
        assert "[email:" in kept
    inner = json.dumps({"a": json.dumps({"b": "call jane@b.io"})})
    assert json.loads(json.loads(SCRUBBER.scrub(inner, "").input)["a"])["b"].startswith("call [email:")


def test_a_name_that_stands_twice_hides_nothing() -> None:
    assert "jane" not in SCRUBBER.scrub('{"a": "jane@b.io", "a": "x"}', "").input


def test_fields_named_as_secrets_are() -> None:
    kept = SCRUBBER.scrub({"password": "blue house", "api_key": 12345678, "user": {"client_secret": "abcd"}}, "").input
    assert [kept["password"][:8], kept["api_key"][:8], kept["user"]["client_secret"][:8]] == ["[secret:"] * 3
    assert SCRUBBER.scrub(kept, "").input == kept


def test_keys_of_this_process_are_hidden_also_those_noted_later() -> None:
    noted("plain words that are a key")
    assert SCRUBBER.scrub("it is plain words that are a key.", "").input.startswith("it is [key:")


def test_values_keep_their_types_and_order() -> None:
    value = {"b": [1, 2.5, True, None, "x"], "a": {"n": 12}}
    kept = SCRUBBER.scrub(value, "out").input
    assert kept == value
    assert list(kept) == ["b", "a"]
    assert SCRUBBER.scrub({"n": float("nan"), "t": "a\0\ud800b"}, "").input == {"n": None, "t": "a\ufffd?b"}


def test_users_are_names_by_digest() -> None:
    assert SCRUBBER.scrub("", "").user_hash == ""
    hashed = SCRUBBER.scrub("", "", "", "jane").user_hash
    assert re.fullmatch(r"[0-9a-f]{32}", hashed)
    assert hashed == SCRUBBER.user_hash("jane") != Scrubber(b"f" * 32).user_hash("jane")


def nested(depth: int) -> Json:
    """A list in a list, so deep."""
    return [nested(depth - 1)] if depth else "deep"


def broken(text: str, *rest: object) -> list[pii.Found]:
    raise RecursionError("a rule that fails")


@pytest.mark.parametrize("value", ["[" * 50 + '"a"' + "]" * 50, {"a": object()}, nested(14)])
def test_what_cannot_be_looked_through_is_dropped(value: Json) -> None:
    kept = SCRUBBER.scrub(value, "jane@b.io", "jane@b.io", "jane")
    assert kept == (None, "", "", SCRUBBER.user_hash("jane"), SCRUBBER.version, True)


def test_a_rule_that_fails_drops_the_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pii, "personal", broken)
    kept = SCRUBBER.scrub("x", "y", "z", "jane")
    assert (kept.input, kept.output, kept.error, kept.dropped) == (None, "", "", True)
    assert kept.user_hash


def test_a_rule_that_takes_too_long_drops_the_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> list[pii.Found]:
        time.sleep(0.02)
        return []

    monkeypatch.setattr(pii, "personal", slow)
    clocked = Scrubber(b"k" * 32, budget_s=0.01, clock=time.monotonic)
    assert clocked.scrub("x", "").dropped
    assert not Scrubber(b"k" * 32, budget_s=9.0, clock=time.monotonic).scrub("x", "").dropped


def test_the_version_names_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scrubber(b"f" * 32).version == SCRUBBER.version
    assert Scrubber(b"k" * 32, region="DE").version != SCRUBBER.version
    for module, name in ((pii, "_CARD"), (scrub, "_ASSIGNED")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, re.compile("other"))
            assert Scrubber(b"k" * 32).version != SCRUBBER.version


@pytest.mark.parametrize("make", [lambda: Scrubber(b"short"), lambda: Scrubber(b"k" * 32, region="XX")])
def test_unusable_settings_are_refused(make: Callable[[], Scrubber]) -> None:
    with pytest.raises(ValueError, match=r"key of 5 bytes|region 'XX'"):
        make()


@pytest.mark.parametrize(
    "text", ["a@" * 5000, "{[" * 5000, "1 " * 5000, "[email:" * 2000, "-----BEGIN PRIVATE KEY-----" * 300]
)
def test_texts_made_to_be_slow_end(text: str) -> None:
    kept = SCRUBBER.scrub(text, "")
    assert kept.dropped or SCRUBBER.scrub(kept.input, "").input == kept.input
