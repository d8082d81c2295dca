"""Names that become files or folders: of runs, tasks and submitted jobs. One of these cannot lead anywhere else."""

from __future__ import annotations

import re

PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""For schemas and editors; `checked_name` refuses a little more."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
"""Devices on Windows, whatever stands after a dot."""


def checked_name(name: str) -> str:
    """The name. Raises: ValueError: it could leave its folder, or is none on some system."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} cannot name a folder; allowed: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit "
            "first, e.g. 'support-3'"
        )
    if _RESERVED.fullmatch(name) is not None:
        raise ValueError(f"{name!r} is a device on Windows and names no folder there; put something before it")
    if name.endswith("."):
        raise ValueError(f"{name!r} ends with a dot, which Windows drops; leave the dot out")
    return name
