"""Users' code: named, imported, run; what hangs, exits or is wrong never takes the run with it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
import inspect
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evocluster.errors import ConfigError
from evocluster.tasks import code, lanes
from evocluster.tasks.code import call, extend_path, fingerprint, is_spec, load, load_function, where_raised


@pytest.fixture(autouse=True)
def _own_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("evocluster_user_"):
            del sys.modules[name]
    load.cache_clear()
    code._added.clear()


def written(folder: Path, name: str, text: str) -> str:
    """A file of user code; its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


async def until(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes to hold."""
    for _ in range(int(seconds / 0.01)):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("evals.py:polite", True),
        ("/a b/evals.py:Class.method", True),
        ("package.module:Model", True),
        ("evals.py", False),
        ("schema.json", False),
        ("evals.py:", False),
        ("evals.py:not a name", False),
        ("http://host/x.json", False),
        ("", False),
    ],
)
def test_what_names_code(text: str, named: bool) -> None:
    assert is_spec(text) == named


def test_a_file_is_loaded_once_with_its_siblings_and_pickles_by_reference(tmp_path: Path) -> None:
    written(tmp_path, "siblings_word.py", "WORD = 'please'\n")
    path = written(
        tmp_path,
        "evals.py",
        "from dataclasses import dataclass\nfrom pydantic import BaseModel\nfrom siblings_word import WORD\n"
        "@dataclass\nclass Seat:\n    row: int\nclass Booking(BaseModel):\n    seats: 'list[Seat]'\n"
        "    @classmethod\n    def empty(cls): return cls(seats=[])\n"
        "def polite(text): return WORD in text\n",
    )
    assert load(f"{path}:polite")("yes please") is True
    assert load(f"{path}:Booking") is load(f"{path}:Booking")
    assert load(f"{path}:polite").__globals__["Booking"] is load(f"{path}:Booking")
    assert load_function(f"{path}:Booking.empty")().seats == []
    made = load(f"{path}:Booking")(seats=[{"row": 3}])
    assert pickle.loads(pickle.dumps(made)) == made
    assert sys.path[-1] == str(tmp_path)


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, "evals.py", f"WHO = {name!r}\n") for name in ("a", "b"))
    assert (load(f"{first}:WHO"), load(f"{second}:WHO")) == ("a", "b")


def test_installed_modules_come_before_the_folders_of_users(tmp_path: Path) -> None:
    written(tmp_path, "json.py", "raise SystemError('shadowed')\n")
    path = written(tmp_path, "evals.py", "import json\ndef f(): return json.dumps([1])\n")
    assert load(f"{path}:f")() == "[1]"


def test_a_module_under_a_given_path(tmp_path: Path) -> None:
    written(tmp_path, "user_evals_pack/inner/checks.py", "from ..words import WORD\ndef f(): return WORD\n")
    written(tmp_path, "user_evals_pack/words.py", "WORD = 'here'\n")
    with pytest.raises(ConfigError, match=r"no module 'user_evals_pack' in the installed packages; add its folder"):
        load("user_evals_pack.inner.checks:f")
    extend_path([tmp_path, tmp_path])
    assert sys.path.count(str(tmp_path)) == 1
    assert load("user_evals_pack.inner.checks:f")() == "here"
    with pytest.raises(ConfigError, match=r"no module 'user_evals_pack.iner'"):
        load("user_evals_pack.iner:f")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("evals.py", r"'evals.py' names no code; allowed: 'file.py:name' or 'package.module:name'"),
        (
            "{folder}/eval.py:polite",
            r"no file 'eval.py' in .*; it holds bad.py, deep.py, evals.py.*mean 'evals.py'",
        ),
        ("{folder}/lost/evals.py:polite", r"no folder .*lost; paths are relative to the config file"),
        ("{folder}/evals.py:polit", r"no 'polit' there; it holds Kind, LIMIT, polite; did you mean 'polite'\?"),
        ("{folder}/evals.py:Kind.polite", r"no 'polite' there; it holds formal"),
        ("{folder}/evals.py:LIMIT", r"is int 3; allowed: a function"),
        ("{folder}/bad.py:f", r"importing it failed at bad.py:2: KeyError: 'colour'"),
        ("{folder}/deep.py:f", r"importing it failed at bad.py:2: KeyError"),
        ("{folder}/exits.py:f", r"importing it failed at exits.py:1: SystemExit: 3"),
        ("{folder}/grammar.py:f", r"importing it failed at grammar.py:2: SyntaxError"),
        ("{folder}/needs.py:f", r"failed at needs.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("{folder}/inside.py:f", r"relative import.*name it 'package.module:name' and add its folder to python_path"),
        ("evocluster.tasks.wrods:plain", r"no module 'evocluster.tasks.wrods'"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(tmp_path: Path, spec: str, said: str) -> None:
    files = {
        "evals.py": "import re\nLIMIT = 3\nclass Kind:\n    def formal(self): ...\ndef polite(text): ...\n",
        "bad.py": "def f(): ...\n{}['colour']\n",
        "deep.py": "import bad\n",
        "exits.py": "raise SystemExit(3)\n",
        "grammar.py": "def f():\n    return 1 +\n",
        "needs.py": "import no_such_library\n",
        "inside.py": "from . import evals\n",
    }
    for name, text in files.items():
        written(tmp_path, name, text)
    with pytest.raises(ConfigError, match=said):
        load_function(spec.replace("{folder}", str(tmp_path)))


def test_a_file_that_failed_is_imported_anew_once_it_is_mended(tmp_path: Path) -> None:
    path = written(tmp_path, "evals.py", "{}['colour']\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="KeyError"):
            load(f"{path}:f")
    written(tmp_path, "evals.py", "def f(): return 'mended'\n")
    assert load(f"{path}:f")() == "mended"


def test_a_fingerprint_is_of_the_source(tmp_path: Path) -> None:
    path = written(tmp_path, "evals.py", "def f(): return 1\n")
    before = fingerprint(f"{path}:f")
    assert before == hashlib.sha256(b"def f(): return 1\n").hexdigest() == fingerprint(f"{path}:g")
    written(tmp_path, "evals.py", "def f(): return 2\n")
    assert fingerprint(f"{path}:f") != before
    words = Path(inspect.getfile(code)).with_name("words.py")
    assert fingerprint("evocluster.tasks.words:plain") == hashlib.sha256(words.read_bytes()).hexdigest()
    assert fingerprint("math:sqrt") == fingerprint("math:sqrt") != fingerprint("time:time")
    with pytest.raises(ConfigError, match=r"no file 'none\.py'"):
        fingerprint(f"{tmp_path}/none.py:f")
    with pytest.raises(ConfigError, match="no module 'no_such_library'"):
        fingerprint("no_such_library.part:f")


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def plain_function(text: str, times: int) -> tuple[str, str, str]:
    return text * times, VARIABLE.get(), threading.current_thread().name


async def async_function(text: str, times: int) -> tuple[str, str, str]:
    await asyncio.sleep(0)
    return plain_function(text, times)


class Callable2:
    async def __call__(self, text: str, times: int) -> tuple[str, str, str]:
        return await async_function(text, times)


KINDS: list[Callable[..., Any]] = [
    plain_function,
    async_function,
    Callable2(),
    functools.partial(async_function),
    lambda text, times: async_function(text, times),
]


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize("apart", [True, False])
async def test_every_kind_of_function_returns_in_the_callers_context(function: Callable[..., Any], apart: bool) -> None:
    VARIABLE.set("kept")
    text, variable, thread = await call(function, "ab", 2, timeout_s=5, apart=apart)
    assert (text, variable) == ("abab", "kept")
    here = threading.current_thread().name
    assert (thread == here) == (not apart and function is not plain_function)


async def test_async_functions_share_one_loop() -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    apart = {await call(loop, timeout_s=5) for _ in range(3)}
    assert len(apart) == 1
    assert apart != {await call(loop, timeout_s=5, apart=False)}


def raising(error: BaseException) -> None:
    raise error


async def raising_later(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("function", [raising, raising_later])
@pytest.mark.parametrize("apart", [True, False])
async def test_exceptions_travel_unchanged_with_their_place(
    function: Callable[[BaseException], Any], apart: bool
) -> None:
    for error in (KeyError("colour"), TimeoutError("mine"), ConfigError("whose?")):
        with pytest.raises(type(error)) as raised:
            await call(function, error, timeout_s=5, apart=apart)
        assert raised.value is error
        assert where_raised(error, function).startswith("test_tasks_code.py:")
        assert where_raised(error, function).endswith(f" in {function.__name__}")
        error.__traceback__ = None


@pytest.mark.parametrize("apart", [True, False])
async def test_what_would_end_the_run_ends_only_this_call(apart: bool) -> None:
    for function in (raising, raising_later):
        for error in (SystemExit(3), asyncio.CancelledError("own"), KeyboardInterrupt("stop")):
            if isinstance(error, KeyboardInterrupt) and function is raising_later and not apart:
                continue  # on our own loop it is a real Ctrl-C
            with pytest.raises(RuntimeError, match=rf"{function.__name__} raised {type(error).__name__}\("):
                await call(function, error, timeout_s=5, apart=apart)
    assert (await call(async_function, "a", 1, timeout_s=5))[0] == "a"


def spins() -> None:
    while True:
        pass


async def spins_apart() -> None:
    spins()


async def sleeps_apart() -> None:
    await asyncio.sleep(60)


def users_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("user: ")]


async def test_a_spinning_function_is_stopped_and_the_loop_stays_free() -> None:
    done: list[str] = []

    async def quick() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        done.append("quick")

    async def slow() -> None:
        with pytest.raises(
            TimeoutError, match=r"spins did not return within 0.2 s; it stood at test_tasks_code.py:\d+ in"
        ):
            await call(spins, timeout_s=0.2)
        done.append("slow")

    await asyncio.gather(slow(), quick())
    assert done == ["quick", "slow"]
    assert await until(lambda: not [thread for thread in users_threads() if "spins" in thread.name])


async def test_an_async_function_that_blocks_its_loop_is_stopped_and_others_go_on() -> None:
    late = asyncio.create_task(call(spins_apart, timeout_s=0.2))
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(call(async_function, "a", 1, timeout_s=3)) for _ in range(3)]
    with pytest.raises(TimeoutError, match=r"within 0.2 s; it stood at .* in spins, which blocks the event loop"):
        await late
    assert [(await task)[0] for task in waiting] == ["a"] * 3


async def test_one_that_blocks_within_its_deadline_is_let_finish_while_others_go_elsewhere() -> None:
    release = threading.Event()

    async def takes_its_time() -> str:
        release.wait(20)
        return "done"

    patient = asyncio.create_task(call(takes_its_time, timeout_s=60))
    await asyncio.sleep(0.1)
    assert (await call(async_function, "a", 1, timeout_s=0.2))[0] == "a"
    release.set()
    assert await patient == "done"


async def test_an_async_function_that_waits_too_long_is_cancelled() -> None:
    cancelled = threading.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    for apart in (True, False):
        cancelled.clear()
        with pytest.raises(TimeoutError, match=r"waits did not return within 0.1 s; make it faster or raise timeout_s"):
            await call(waits, timeout_s=0.1, apart=apart)
        assert await until(cancelled.is_set)


async def test_a_lane_that_cannot_be_freed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    before = lanes._current()

    async def stuck() -> None:
        for _ in range(2):  # the exception thrown into it is swallowed once
            try:
                release.wait(20)
            except BaseException:
                release.wait(20)

    with pytest.raises(TimeoutError, match="which blocks the event loop"):
        await call(stuck, timeout_s=0.1)
    assert before.retired
    assert (await call(async_function, "b", 1, timeout_s=3))[0] == "b"
    assert lanes._current() is not before
    release.set()
    assert await until(lambda: not before.thread.is_alive())


async def test_cancelling_the_caller_stops_the_function() -> None:
    for function in (spins, sleeps_apart):
        task = asyncio.create_task(call(function, timeout_s=60))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await until(lambda: not [thread for thread in users_threads() if "spins" in thread.name])
    assert await until(lambda: not lanes._current()._turns)


async def test_past_a_number_of_hanging_calls_further_ones_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_ABANDONED", 2)
    release = threading.Event()

    def hangs() -> None:
        release.wait(20)

    assert await until(lambda: not [thread for thread in lanes._abandoned if thread.is_alive()])
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await call(hangs, timeout_s=0.05)
    for function in (plain_function, async_function):
        with pytest.raises(RuntimeError, match=r"2 calls hang and cannot be stopped \(.*hangs\); give what they wait"):
            await call(function, "a", 1, timeout_s=5)
    release.set()
    assert await until(lambda: not [thread for thread in users_threads() if "hangs" in thread.name])
    assert (await call(plain_function, "a", 1, timeout_s=5))[0] == "a"


async def test_only_so_many_plain_functions_run_at_once() -> None:
    running = most = 0
    lock = threading.Lock()

    def counts() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    await asyncio.gather(*(call(counts, timeout_s=5) for _ in range(4 * code.THREADS)))
    assert 1 < most <= code.THREADS
    most = 0
    pipelines: list[Awaitable[Any]] = [call(counts, timeout_s=5, apart=False) for _ in range(4 * code.THREADS)]
    await asyncio.gather(*pipelines)
    assert most > code.THREADS


def test_a_process_with_hanging_calls_exits(tmp_path: Path) -> None:
    script = written(
        tmp_path,
        "main.py",
        "import asyncio, time\nfrom evocluster.tasks.code import call\n"
        "def hangs(): time.sleep(600)\nasync def blocks(): time.sleep(600)\n"
        "async def waits(): await asyncio.sleep(600)\n"
        "async def main():\n"
        "    made = [call(f, timeout_s=0.2) for f in (hangs, blocks, waits)]\n"
        "    print([type(e).__name__ for e in await asyncio.gather(*made, return_exceptions=True)])\n"
        "asyncio.run(main())\n",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['TimeoutError', 'TimeoutError', 'TimeoutError']\n", "")
