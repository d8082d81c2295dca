"""Users' own code, named in the config as `file.py:name` or `package.module:name`.

`load` imports it, `call` runs it so that it can neither block nor end the run, `fingerprint` tells one version of
it from another. Whatever is wrong with naming or importing it is a ConfigError before anything is spent.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from evocluster.errors import ConfigError
from evocluster.tasks import lanes
from evocluster.tasks.words import nearest

_SPEC = re.compile(r"(?P<where>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)", re.DOTALL)
_SHAPE = "allowed: 'file.py:name' or 'package.module:name', e.g. 'evals.py:polite'"
_NAMES_SHOWN = 12
_ABSENT = object()
THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Plain functions that run at the same time; more would share the processors and pass their deadlines together."""
COROUTINES = 64
"""Async functions that run at the same time."""

_importing = threading.RLock()
_added: list[str] = []


def is_spec(text: str) -> bool:
    """The text names code: 'file.py:name' or 'package.module:name'."""
    return _SPEC.fullmatch(text) is not None


def extend_path(folders: Iterable[Path | str]) -> None:
    """Let code be imported from these folders too, after everything installed; a folder is added once."""
    for folder in folders:
        text = str(Path(folder).resolve())
        if text not in sys.path:
            sys.path.append(text)
        if text not in _added:
            _added.append(text)


@functools.lru_cache(maxsize=1024)
def load(spec: str) -> Any:
    """What the spec names, imported once a process. Raises: ConfigError."""
    where, name = _parts(spec)
    with _importing:
        module = _from_file(spec, _file(spec, where)) if where.endswith(".py") else _from_path(spec, where)
    found: Any = module
    for part in name.split("."):
        found = _member(spec, found, part)
    return found


def load_function(spec: str) -> Callable[..., Any]:
    """The function, class or other callable that the spec names. Raises: ConfigError."""
    found = load(spec)
    if not callable(found):
        raise ConfigError(f"{spec!r}: is {type(found).__name__} {_short(found)}; allowed: a function")
    return found  # type: ignore[no-any-return]


def fingerprint(spec: str) -> str:
    """sha256 (64 hex digits) of the source file; what it imports is not looked at. Raises: ConfigError."""
    where, _ = _parts(spec)
    path = _file(spec, where) if where.endswith(".py") else _origin(spec, where)
    if path is None:  # built into the interpreter
        return hashlib.sha256(f"{sys.version}:{where}".encode()).hexdigest()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{spec!r}: {path} cannot be read: {error.strerror}") from error


async def call(function: Callable[..., Any], *args: Any, timeout_s: float, apart: bool = True) -> Any:
    """What the function returns for these arguments, in this context's variables.

    Plain functions run in daemon threads. Async ones run on an event loop apart, where they cannot block ours;
    with `apart=False` (a pipeline that uses our `llm`) on the running loop, and nothing stands in line: the caller
    bounds how many run. The deadline counts from when the function starts.

    Raises: what the function raises, unchanged; SystemExit and its like as RuntimeError; TimeoutError past the
    deadline; RuntimeError while too many calls hang.
    """
    asynchronous = _is_async(function)
    bound = functools.partial(function, *args)
    if not apart:
        return await _run(bound, function, timeout_s, asynchronous, on_lane=False)
    async with _line(asynchronous):
        return await _run(bound, function, timeout_s, asynchronous, on_lane=True)


def where_raised(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """'evals.py:12 in polite': the user's innermost frame of a failure; '' where there is none."""
    tracebacks = []
    at = error.__traceback__
    while at is not None:
        tracebacks.append(at)
        at = at.tb_next
    return lanes.spot(tracebacks, _source(function) if function is not None else "")


async def _run(
    bound: Callable[[], Any], function: Callable[..., Any], timeout_s: float, asynchronous: bool, on_lane: bool
) -> Any:
    name, file = _named(function), _source(function)
    began = time.monotonic()
    if not asynchronous:
        value = await lanes.in_thread(bound, timeout_s, name, file)
        if not inspect.isawaitable(value):
            return value
        bound, timeout_s = functools.partial(_itself, value), timeout_s - (time.monotonic() - began)
    if on_lane:
        return await lanes.on_lane(bound, timeout_s, name, file)
    return await _here(bound, timeout_s, name)


async def _here(bound: Callable[[], Awaitable[Any]], timeout_s: float, name: str) -> Any:
    """On the running loop."""
    clock = asyncio.timeout(timeout_s)
    try:
        async with clock:
            return await bound()
    except TimeoutError:
        if not clock.expired():
            raise
        raise lanes.late(name, timeout_s) from None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return lanes.Outcome(error=error).get(name)
    except SystemExit as error:
        return lanes.Outcome(error=error).get(name)


def _itself(value: Awaitable[Any]) -> Awaitable[Any]:
    return value


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, asyncio.Semaphore]] = WeakKeyDictionary()


def _line(asynchronous: bool) -> asyncio.Semaphore:
    """Where calls of this loop wait for their turn."""
    loop = asyncio.get_running_loop()
    if loop not in _lines:
        _lines[loop] = (asyncio.Semaphore(THREADS), asyncio.Semaphore(COROUTINES))
    return _lines[loop][asynchronous]


def _unwrapped(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _named(function: Callable[..., Any]) -> str:
    plain = _unwrapped(function)
    return str(getattr(plain, "__qualname__", type(plain).__qualname__))


def _source(function: Callable[..., Any]) -> str:
    """The path of the file that holds the function, '' where there is none."""
    plain = _unwrapped(function)
    code = getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)
    return str(getattr(code, "co_filename", ""))


def _parts(spec: str) -> tuple[str, str]:
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ConfigError(f"{spec!r} names no code; {_SHAPE}")
    return found["where"], found["name"]


def _file(spec: str, where: str) -> Path:
    """Raises: ConfigError saying what the folder holds."""
    path = Path(where).resolve()
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise ConfigError(f"{spec!r}: no folder {path.parent}; paths are relative to the config file")
    held = sorted(each.name for each in path.parent.glob("*.py"))
    holds = f"it holds {_listed(held)}{nearest(path.name, held)}" if held else "it holds no .py file"
    raise ConfigError(f"{spec!r}: no file {path.name!r} in {path.parent}; {holds}")


def _from_file(spec: str, path: Path) -> ModuleType:
    """The file as a module whose name follows from its path, so that what it defines pickles by reference."""
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    stem = re.sub(r"\W", "_", path.stem)
    name = f"evocluster_user_{stem}_{tag}"
    if name in sys.modules:
        return sys.modules[name]
    extend_path([path.parent])
    made = importlib.util.spec_from_file_location(name, path)
    if made is None or made.loader is None:
        raise ConfigError(f"{spec!r}: {path} is no Python file; {_SHAPE}")
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module
    try:
        made.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _refused(spec, error, path.parent) from error
    return module


def _from_path(spec: str, where: str) -> ModuleType:
    with _looking(spec, where):
        return importlib.import_module(where)


def _origin(spec: str, where: str) -> Path | None:
    """The file of a module, None for one built into the interpreter."""
    loaded = sys.modules.get(where)
    with _looking(spec, where):
        found = loaded.__spec__ if loaded is not None else importlib.util.find_spec(where)
    if found is None and loaded is None:
        raise _no_module(spec, where)
    origin = found.origin if found is not None else getattr(loaded, "__file__", None)
    return Path(origin) if origin and Path(origin).is_file() else None


@contextmanager
def _looking(spec: str, where: str) -> Iterator[None]:
    """What may go wrong while a module is looked for, as ConfigError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not _within(where, error.name):
            raise _refused(spec, error) from error
        raise _no_module(spec, error.name) from error
    except (Exception, SystemExit) as error:
        raise _refused(spec, error) from error


def _within(module: str, missing: str) -> bool:
    """The missing module is the one named, or a package around it."""
    return module == missing or module.startswith(f"{missing}.")


def _no_module(spec: str, missing: str) -> ConfigError:
    near = sorted({found.stem for folder in _added for found in Path(folder).glob("*.py")})
    looked = f"the installed packages and {', '.join(_added)}" if _added else "the installed packages"
    remedy = "add its folder to python_path, or name the file: 'file.py:name'"
    return ConfigError(f"{spec!r}: no module {missing!r} in {looked}; {remedy}{nearest(missing, near)}")


def _refused(spec: str, error: BaseException, folder: Path | None = None) -> ConfigError:
    """Why code could not be imported."""
    if isinstance(error, SyntaxError) and error.filename:
        place, text = f"{Path(error.filename).name}:{error.lineno}", error.msg
    else:
        place, text = _raised_in(error, folder), str(error)
    hint = "; name it 'package.module:name' and add its folder to python_path" if "relative import" in text else ""
    return ConfigError(f"{spec!r}: importing it failed at {place}: {type(error).__name__}: {text}{hint}")


def _raised_in(error: BaseException, folder: Path | None) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if folder is not None and Path(frame.filename).parent == folder]
    if inside:
        return f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"
    return where_raised(error) or f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"


def _member(spec: str, owner: Any, name: str) -> Any:
    """Raises: ConfigError listing the public names."""
    found = getattr(owner, name, _ABSENT)
    if found is not _ABSENT:
        return found
    names = [each for each in vars(owner) if not each.startswith("_")] if hasattr(owner, "__dict__") else []
    home = getattr(owner, "__name__" if isinstance(owner, ModuleType) else "__module__", "")
    own = [each for each in names if getattr(getattr(owner, each), "__module__", home) == home]
    own = [each for each in own if not isinstance(getattr(owner, each), ModuleType)]
    holds = f"it holds {_listed(sorted(own))}" if own else "it holds no public name"
    raise ConfigError(f"{spec!r}: no {name!r} there; {holds}{nearest(name, own)}") from None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
