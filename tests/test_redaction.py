"""Keys kept out of texts: those this process knows, those variables hold, and what has the form of one."""

from __future__ import annotations

import logging

import pytest

from evocluster.redaction import HIDDEN, key_forms, keys_in, keys_known, noted, redacted, secret_name, secrets_of
from evocluster.telemetry import log


def test_a_key_that_was_read_is_hidden_whatever_it_looks_like() -> None:
    noted("correct horse battery staple")
    assert redacted("you sent 'correct horse battery staple'") == f"you sent '{HIDDEN}'"
    noted("short")
    assert redacted("a short text") == "a short text"


def test_known_keys_are_found_wherever_they_stand() -> None:
    noted("kept-key-1")
    assert "kept-key-1" in keys_known()
    assert list(keys_in("kept-key-1, kept-key-1", ["kept-key-1"])) == [(0, 10), (12, 22)]
    assert [name for name in ("api_key", "DB_PASSWORD", "keyboard", "max_tokens") if secret_name(name)] == [
        "api_key",
        "DB_PASSWORD",
    ]
    assert any("PRIVATE KEY" in form for form in key_forms())


def test_a_key_that_begins_with_another_goes_as_a_whole() -> None:
    assert redacted("given plain-key-1-and-more", "plain-key-1", "plain-key-1-and-more") == f"given {HIDDEN}"


def test_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCY")
    assert redacted("signed with wJalrXUtnFEMI/K7MDENG+bPxRfiCY.") == f"signed with {HIDDEN}."
    held = secrets_of(
        {
            "OPENAI_API_KEY": "first-value",
            "HF_TOKEN": " second-value\n",
            "DB_PASSWORD": "third-value",
            "SERVICE_KEY_ID": "fourth-value",
            "TOKENIZERS_PARALLELISM": "not-a-secret",
            "KEYBOARD": "not-a-secret",
            "SSH_KEY": "/home/user/.ssh/id",
            "API_KEY": "tiny",
        }
    )
    assert held == {"first-value", "second-value", "third-value", "fourth-value"}


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abc.def-123456",
        "sk-proj-0123456789abcdefgh",
        "ghp_0123456789abcdefghij0123",
        "AKIAIOSFODNN7EXAMPLE",
        "AIza" + "0aB" * 11,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "Basic dXNlcjpwYXNzd29yZA==",
        "ya29.a0AfH6SMBx-0123456789",
        "SG.abcdefghij012345.abcdefghij0123456789",
        "npm_0123456789abcdefghijABCDEFGHIJ0123",
        "dop_v1_0123456789abcdef0123456789abcdef",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nMIIEow and then it was cut",
    ],
)
def test_texts_in_the_form_of_a_key_are_hidden(text: str) -> None:
    assert text.rsplit(" ", 1)[-1] not in redacted(f"it said {text}!")
    ((start, end),) = keys_in(f"it said {text}")
    assert f"it said {text}"[start:end] in text
    assert end == len(f"it said {text}")


@pytest.mark.parametrize(
    "text",
    ["key_env", "api_base 'https://api-eu1.example.com'", "sk-learn 1.5", "the bearer of it", "basic understanding"],
)
def test_plain_words_stay(text: str) -> None:
    assert redacted(text) == text


def test_the_log_hides_keys_in_messages_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    key = noted("a-key-nobody-may-read-7")
    with caplog.at_level(logging.DEBUG, "evocluster"):
        log.debug("asked with %s at %d", key, 3)
        try:
            raise ValueError(f"no such key: {key}")
        except ValueError:
            log.exception("it failed")
    formatter = logging.Formatter("%(message)s")
    said = "\n".join(formatter.format(record) for record in caplog.records)
    assert key not in said
    assert f"asked with {HIDDEN} at 3" in said
    assert f"ValueError: no such key: {HIDDEN}" in said
