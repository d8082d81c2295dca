"""Keys kept out of texts: those this process knows, those variables hold, and what has the form of one."""

from __future__ import annotations

import logging

import pytest

from evocluster.redaction import HIDDEN, noted, redacted, secrets_of
from evocluster.telemetry import log


def test_a_key_that_was_read_is_hidden_whatever_it_looks_like() -> None:
    noted("correct horse battery staple")
    assert redacted("you sent 'correct horse battery staple'") == f"you sent '{HIDDEN}'"
    noted("short")
    assert redacted("a short text") == "a short text"


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
    ],
)
def test_texts_in_the_form_of_a_key_are_hidden(text: str) -> None:
    assert text.rsplit(" ", 1)[-1] not in redacted(f"it said {text}!")


@pytest.mark.parametrize(
    "text", ["key_env", "api_base 'https://api-eu1.example.com'", "sk-learn 1.5", "the bearer of it"]
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
