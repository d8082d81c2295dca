"""A prompt that a program makes: an import must not run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Path(__file__).with_name("was_run").touch()


def build(context: dict[str, Any]) -> str:
    return str(context["vars"]["question"])
