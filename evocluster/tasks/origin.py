"""Where users' code lies, found without running any of it: importing a package to look is running it."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

_INSTALLED = tuple({Path(path).resolve() for path in sysconfig.get_paths().values()})


def origin(spec: str, folders: Sequence[str | Path] = ()) -> Path | None:
    """The file of 'file.py:name' or 'package.module:name', links followed; None: built in, or not there.

    `folders` are looked through after everything installed, as they are when it is imported.
    """
    where = spec.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where).resolve()
    first, *inner = where.split(".")
    found = _top(first, [str(folder) for folder in folders])
    name = first
    for part in inner:
        if found is None:
            return None
        name = f"{name}.{part}"
        found = PathFinder.find_spec(name, list(found.submodule_search_locations or ()))
    if found is None or not found.has_location:
        return None
    return Path(str(found.origin)).resolve()


def within(path: Path | None, folder: Path) -> bool:
    """Whether a file lies in a folder, links followed, and not among what is installed there."""
    if path is None or not path.is_relative_to(folder.resolve()):
        return False
    return not any(path.is_relative_to(installed) for installed in _INSTALLED)


def _top(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    try:
        installed = find_spec(name)
    except ValueError:  # a module that was made by hand has no spec
        installed = None
    return installed or PathFinder.find_spec(name, folders)
