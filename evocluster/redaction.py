"""Keys kept out of every text that leaves: errors, logs, records.

A key is what `noted` was told (every key read from the environment for a model), the value of a variable whose name
says that it holds a secret, or a text in the form in which providers give keys out. Texts of models and users are
records of what they said and are not touched; errors and log messages are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "[key]"
SHORTEST = 8
"""Characters; a shorter value is no key, and would hide words of any text."""
_NAMES = re.compile(
    r"(?:^|_)(?:api_?key|access_key|key|secret|token|password|passwd|credentials?|pat)(?:_id)?$|secret|password",
    re.IGNORECASE,
)
"""Variables that hold secrets, by their names: OPENAI_API_KEY, AWS_ACCESS_KEY_ID, RAY_AUTH_TOKEN, HF_TOKEN."""
_FORMS = re.compile(
    r"(?i:\bbearer\s+[\w.~+/=*-]{6,})|\b(?:sk|pk|rk)[-_](?=[\w*-]*[\d*])[\w*-]{16,}"
    r"|\b(?:gh[opsu]|github_pat|hf|gsk|xai|glpat|xox[abprs])[-_](?=\w*\d)[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*"
)
"""Texts in the forms that keys have, whoever they belong to."""
_noted: set[str] = set()


def noted(key: str) -> str:
    """The key itself, hidden from now on wherever this process redacts."""
    if len(key) >= SHORTEST:
        _noted.add(key)
    return key


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Values of the variables that hold secrets, by their names; paths are none."""
    return {
        value.strip()
        for name, value in environment.items()
        if _NAMES.search(name) and len(value.strip()) >= SHORTEST and not value.startswith(("/", "~", "."))
    }


def redacted(text: str, *keys: str | None) -> str:
    """The text without these keys, without any that this process knows, and without what has the form of one."""
    known = {key for key in keys if key} | _noted | secrets_of(os.environ)
    for key in sorted(known, key=len, reverse=True):  # a key that begins with another one goes as a whole
        text = text.replace(key, HIDDEN)
    return _FORMS.sub(HIDDEN, text)
