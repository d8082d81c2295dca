"""As many days as the config asks for."""

from __future__ import annotations

import json
from typing import Any


def complete(output: str, context: dict[str, Any]) -> bool:
    days: int = context["config"]["days"]
    return len(json.loads(output)) >= days
