"""Whose code a config may run and where it may send keys: the user's own, what ran here before, or what was allowed.

A config's own Python lies in its folder, and its keys go where `allow_hosts` lets them. A run folder may come from
anybody: nothing its config.yaml names is trusted by itself, only what this user ran on this machine, unchanged.
That is remembered as digests in ~/.local/state/evocluster/ran (or under XDG_STATE_HOME), readable by the user alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from evocluster.config import Config
from evocluster.errors import ConfigError
from evocluster.llm.hosts import is_private, is_provider_own
from evocluster.records import digest
from evocluster.tasks.origin import origin, within
from evocluster.telemetry import log


def admit(config: Config, *, allow_code: bool = False, stranger: bool = False, calls: bool = True) -> bool:
    """Let a config run code and send keys; returns whether `allow_code` was needed for it.

    `stranger`: it was read from a run folder; `calls` False: no model will be called. Raises: errors.ConfigError
    naming all that is not trusted.
    """
    named = specs(config)
    if not named and not any(True for _ in _unusual(config)):
        return False
    grant = _grant(config, named)
    stranger = stranger or (config.root / "trials").is_dir()
    doubts = [*_code_doubts(config, named, stranger), *(_call_doubts(config) if stranger and calls else ())]
    if doubts and not allow_code and grant not in _remembered():
        raise ConfigError(
            "; ".join(doubts) + ". If you trust all of it, say so with --allow-code (Python: allow_code=True)"
        )
    if calls:
        _remember(grant)
    return bool(doubts) and allow_code


def specs(config: Config) -> list[str]:
    """All the code that a config names."""
    return list(dict.fromkeys(spec for task in config.every.values() for spec in task.code))


def files(config: Config) -> dict[str, str]:
    """Code -> the file it is in."""
    return {spec: str(origin(spec, config.python_path) or "built in") for spec in specs(config)}


def _code_doubts(config: Config, named: list[str], stranger: bool) -> Iterator[str]:
    """Code that is not trusted by itself."""
    root = config.root.resolve()
    for spec in named:
        path = origin(spec, config.python_path)
        if stranger:
            yield f"this run folder names the code {str(path or spec)!r}, which did not run here before as it is now"
        elif not within(path, root):
            yield f"{spec!r} is code in {str(path or 'no file')!r}, outside the config's folder {str(root)!r}"
    for folder in config.python_path if named and not stranger else ():
        if not (root / folder).resolve().is_relative_to(root):
            yield f"python_path {folder!r} lies outside the config's folder {str(root)!r}"


def _call_doubts(config: Config) -> Iterator[str]:
    """Calls of a run folder that are not trusted by themselves."""
    for variable, host in _unusual(config):
        what = f"send the value of {variable} to" if variable else "call"
        yield f"this run folder would {what} {host!r}, and it did not run here before"


def _unusual(config: Config) -> Iterator[tuple[str, str]]:
    """(variable, host) of calls that a stranger's config should not make: keys off their provider, private networks."""
    for reach in config.reaches.values():
        if not is_provider_own(reach) or is_private(reach.host):
            yield reach.variable or "", reach.host


def _grant(config: Config, named: list[str]) -> str:
    """What names exactly this code, as it is now, and these calls."""
    found = {spec: origin(spec, config.python_path) for spec in named}
    code = {spec: [str(path), _digest(path)] for spec, path in found.items()}
    folders = [str((config.root / folder).resolve()) for folder in config.python_path] if named else []
    return digest({"code": code, "python_path": folders, "calls": sorted(map(list, set(_unusual(config))))})


def _digest(path: Path | None) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
    except OSError:  # it is not there; who imports it says so
        return ""


def _path() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "evocluster" / "ran"


def _remembered() -> set[str]:
    try:
        return set(_path().read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return set()


def _remember(grant: str) -> None:
    if grant in _remembered():
        return
    path = _path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            os.write(handle, f"{grant}\n".encode())
        finally:
            os.close(handle)
    except OSError as error:
        log.warning("%s cannot be written (%s), so resuming this run will need --allow-code", path, error.strerror)
