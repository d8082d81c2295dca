"""Keys kept out of every text that leaves: errors, logs, records.

A key is what `noted` was told (every key read from the environment for a model), the value of a variable whose name
says that it holds a secret, or a text in the form in which providers give keys out. Texts of models and users are
records of what they said and are not touched; errors and log messages are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

HIDDEN = "[key]"
SHORTEST = 8
"""Characters; a shorter value is no key, and would hide words of any text."""
_NAMES = re.compile(
    r"(?:^|_)(?:api_?key|access_key|key|secret|token|password|passwd|credentials?|pat)(?:_id)?$|secret|password",
    re.IGNORECASE,
)
"""Variables that hold secrets, by their names: OPENAI_API_KEY, AWS_ACCESS_KEY_ID, RAY_AUTH_TOKEN, HF_TOKEN."""
_FORMS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (("bearer",), re.compile(r"\bbearer\s+[\w.~+/=*-]{6,}", re.IGNORECASE)),
    (("basic",), re.compile(r"\b(?i:basic)\s+(?=[A-Za-z]*[\d+/=])[A-Za-z0-9+/]{12,}={0,2}")),
    (
        ("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"),
        re.compile(r"\b(?:sk|pk|rk)[-_](?=[\w*-]*[\d*])[\w*-]{16,}"),
    ),
    (
        ("gho", "ghp", "ghs", "ghu", "github_pat", "hf-", "hf_", "gsk", "xai", "glpat", "xox"),
        re.compile(r"\b(?:gh[opsu]|github_pat|hf|gsk|xai|glpat|xox[abprs])[-_](?=\w*\d)[\w-]{16,}"),
    ),
    (("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    (("aiza",), re.compile(r"\bAIza[\w-]{30,}")),
    (("eyj",), re.compile(r"\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*")),
    (("ya29.", "sg."), re.compile(r"\bya29\.[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}")),
    (("npm_", "dop_v1_"), re.compile(r"\bnpm_\w{30,}|\bdop_v1_\w{32,}")),
    (
        ("-----begin",),
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"),
    ),
)
"""Texts in the forms that keys have, whoever they belong to, each with what stands in the lower-case text wherever it
does; a private key that is cut off goes to the end of the text."""
_noted: set[str] = set()


def noted(key: str) -> str:
    """The key itself, hidden from now on wherever this process redacts."""
    if len(key) >= SHORTEST:
        _noted.add(key)
    return key


def secret_name(name: str) -> bool:
    """A variable or a field of this name holds a secret."""
    return _NAMES.search(name) is not None


def keys_noted() -> set[str]:
    """Keys that this process was told."""
    return set(_noted)


def keys_known() -> set[str]:
    """Keys that this process was told, and values of its environment's variables that hold secrets."""
    return _noted | secrets_of(os.environ)


def keys_in(text: str, known: Iterable[str] = ()) -> Iterator[tuple[int, int]]:
    """Where these keys, and what has the form of one, begin and end in the text; the places may overlap."""
    for key in known:
        at = text.find(key)
        while at >= 0:
            yield at, at + len(key)
            at = text.find(key, at + 1)
    for form in _possible(text):
        for match in form.finditer(text):
            yield match.span()


def key_forms() -> list[str]:
    """The patterns that keys are found by."""
    return [form.pattern for _, form in _FORMS]


def _possible(text: str) -> list[re.Pattern[str]]:
    """The forms that may be in the text: looking for their words takes a hundredth of looking for them."""
    folded = text.lower()
    return [form for words, form in _FORMS if any(word in folded for word in words)]


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Values of the variables that hold secrets, by their names; paths are none."""
    return {
        value.strip()
        for name, value in environment.items()
        if secret_name(name) and len(value.strip()) >= SHORTEST and not value.startswith(("/", "~", "."))
    }


def redacted(text: str, *keys: str | None) -> str:
    """The text without these keys, without any that this process knows, and without what has the form of one."""
    known = {key for key in keys if key} | keys_known()
    for key in sorted(known, key=len, reverse=True):  # a key that begins with another one goes as a whole
        text = text.replace(key, HIDDEN)
    for form in _possible(text):
        text = form.sub(HIDDEN, text)
    return text
