"""Guards of the house: floors, one home per library, form of files. Each checker also meets a wrong tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOUNDATION = ("records", "errors", "redaction", "names", "telemetry")
FLOORS: dict[str, tuple[str, ...]] = {
    "records": (),
    "errors": (),
    "redaction": (),
    "names": (),
    "telemetry": ("redaction",),
    "parts": FOUNDATION,
    "llm": (*FOUNDATION, "parts"),
    "store": FOUNDATION,
    "release": ("records",),
    "tasks": (*FOUNDATION, "parts", "llm.client"),
    "search": (*FOUNDATION, "parts", "llm.client"),
    "engine": (*FOUNDATION, "search", "tasks", "llm.client", "store"),
    "complaints": ("records", "errors"),
    "document": (*FOUNDATION, "complaints"),
    "config": (*FOUNDATION, "complaints", "document", "search", "tasks", "release", "parts", "llm"),
    "report": (*FOUNDATION, "store", "search.nsga2"),
    "cluster": (*FOUNDATION, "engine", "llm", "store"),
    "online": (*FOUNDATION, "release", "tasks", "llm", "store", "engine"),
    "build": (
        *FOUNDATION,
        *(
            "parts",
            "llm",
            "store",
            "release",
            "tasks",
            "search",
            "engine",
            "config",
            "report",
            "cluster",
            "online",
            "running",
            "address",
            "trust",
        ),
    ),
    "trust": (*FOUNDATION, "config", "llm", "tasks"),
    "address": (*FOUNDATION, "store", "engine", "report"),
    "running": (*FOUNDATION, "llm", "store", "engine", "config", "cluster"),
    "shipping": (*FOUNDATION, "complaints", "config", "tasks.code"),
    "deploying": (
        *FOUNDATION,
        *("store", "release", "tasks", "config", "online", "build", "report", "address", "trust"),
    ),
    "serving": (*FOUNDATION, *("llm", "store", "release", "tasks", "online", "deploying", "cluster.replicas")),
    "evolving": (*FOUNDATION, *("release", "config", "deploying", "build", "report", "online", "tasks")),
    "improving": (
        *FOUNDATION,
        *("llm", "store", "release", "tasks", "online", "deploying", "serving", "evolving"),
    ),
    "submission": (*FOUNDATION, "build", "config", "shipping", "cluster", "report"),
    "scaling": (*FOUNDATION, "build", "config", "engine", "cluster"),
    "cli": (
        *FOUNDATION,
        "build",
        "scaling",
        *("deploying", "serving", "improving", "online.keys", "online.daemon"),
        "config",
        "document",
        "complaints",
        "report",
        "address",
        "shipping",
        "submission",
        "cluster.jobs",
    ),
    "__init__": (
        *("build", "deploying", "config", "records", "llm.client"),
        *("search.optimizer", "report.result", "tasks.calls", "tasks.execution"),
    ),
}
"""Room or file of `evocluster` -> what it may import of the house besides itself. Others do not exist."""

HOMES: dict[str, str] = {
    "ray": "cluster/",
    "psutil": "cluster/meter.py",
    "pymoo": "search/nsga2.py",
    "bm25s": "tasks/retrieval.py",
    "litellm": "llm/remote.py",
    "xllamacpp": "llm/local.py",
    "pyarrow": "store/",
    "sqlite3": "store/",
    "sqlalchemy": "store/",
    "alembic": "store/",
    "psycopg": "store/",
    "duckdb": "store/",
    "river": "release/drift.py",
    "sklearn": "online/",
    "croniter": "online/schedule.py",
    "diskcache": "store/",
    "aiohttp.web": "online/server.py",
    "fastapi": "online/server.py",
    "starlette": "online/server.py",
    "uvicorn": "online/server.py",
    "yaml": "document.py",
    "matplotlib": "report/",
    "plotly": "report/",
    "opentelemetry": "telemetry.py",
    "regex": "tasks/patterns.py",
    "jsonpath": "tasks/paths.py",
    "phonenumbers": "tasks/pii.py",
    "stdnum": "tasks/pii.py",
    "mlflow": "report/tracking.py",
    "pandas": "report/result.py",
}
"""Library -> the one file, or folder, of `evocluster` that imports it."""

ROOTS = ("evocluster", "evocluster.__version__")
"""What of the package itself every room may import: it loads nothing."""
LAZY = (
    *("ray", "pymoo", "litellm", "xllamacpp", "bm25s", "scipy", "mlflow", "pandas"),
    *("duckdb", "river", "sklearn", "alembic", "psycopg"),
)
"""Libraries so heavy that only functions may import them."""
PLAIN: dict[str, tuple[str, ...]] = {
    "records": ("pydantic",),
    "errors": (),
    "redaction": (),
    "names": (),
    "telemetry": ("opentelemetry",),
}
"""The whole third-party diet of floor 1."""

TOP = (
    *("pyproject.toml", "evocluster", "configs", "scripts", "tests", "cluster.yaml", "README.md", "LICENSE"),
    "requirements.lock",
)
VAGUE = {
    *("util", "utils", "helper", "helpers", "manager", "managers", "base", "data", "info", "process"),
    *("common", "misc"),
}
MAX_LINES = 500
MAX_FUNCTION = 80


class Import(NamedTuple):
    """One module that a file imports, wherever in the file it does so."""

    line: int
    module: str
    lazy: bool
    """Inside a function or under TYPE_CHECKING: it does not run when the file is imported."""


def _sources(root: Path) -> Iterator[tuple[Path, str]]:
    """Every Python file of the package, with its path below `evocluster` in POSIX form.

    Not the starting projects: they belong to users, who import the package's public names.
    """
    package = root / "evocluster"
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        if not path.startswith("cli/starters/"):
            yield file, path


def _room(path: str) -> str:
    return path.split("/", 1)[0].removesuffix(".py")


def _named(node: ast.AST, path: str) -> list[str]:
    """The modules one statement or call imports; relative imports are made absolute."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = ["evocluster", *path.split("/")[:-1]]
        start = parts[: len(parts) - node.level + 1] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def _imports(tree: ast.AST, path: str, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        for module in _named(node, path):
            yield Import(getattr(node, "lineno", 0), module, lazy)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from _imports(node, path, lazy or function or typing_only)


def _under(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


def check_floors(root: Path) -> list[str]:
    """Who imports whom inside the house."""
    wrong = []
    for file, path in _sources(root):
        room = _room(path)
        if room not in FLOORS:
            wrong.append(f"{file}:1: no room {room!r} in the house; allowed: {', '.join(FLOORS)}")
            continue
        for line, module, _ in _imports(ast.parse(file.read_text(encoding="utf-8")), path):
            inner = module.removeprefix("evocluster.")
            if (
                not _under(module, "evocluster")
                or module in ROOTS
                or any(_under(inner, name) for name in (room, *FLOORS[room]))
            ):
                continue
            allowed = ", ".join(FLOORS[room]) or "nothing of the house"
            wrong.append(f"{file}:{line}: {room} imports {module}; floors allow it: {allowed}")
    return wrong


def check_homes(root: Path) -> list[str]:
    """One home per library, heavy libraries inside functions, and floor 1 on its diet."""
    wrong = []
    for file, path in _sources(root):
        for line, module, lazy in _imports(ast.parse(file.read_text(encoding="utf-8")), path):
            for library, home in HOMES.items():
                if _under(module, library) and not (path == home or (home.endswith("/") and path.startswith(home))):
                    wrong.append(f"{file}:{line}: {library} is imported outside its one home; allowed: {home}")
            top = module.split(".")[0]
            if top in LAZY and not lazy:
                wrong.append(f"{file}:{line}: {top} is heavy; allowed: imports inside a function or TYPE_CHECKING")
            diet = PLAIN.get(_room(path))
            if diet is not None and top not in (*diet, "evocluster", *sys.stdlib_module_names):
                wrong.append(f"{file}:{line}: floor 1 imports {top}; allowed: {', '.join(diet) or 'stdlib only'}")
    return wrong


def check_form(root: Path) -> list[str]:
    """Length of files and functions, names of files, and `__init__.py` that are only a docstring."""
    wrong = []
    for file, path in _sources(root):
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            wrong.append(f"{file}:{lines}: {lines} lines; allowed: {MAX_LINES}; split it by idea")
        if vague := VAGUE & set(file.stem.split("_")) or VAGUE & set(path.split("/")[:-1]):
            wrong.append(f"{file}:1: {sorted(vague)[0]!r} names nothing; allowed: a noun that says what is inside")
        if file.name == "__init__.py" and "/" in path and (len(tree.body) != 1 or ast.get_docstring(tree) is None):
            wrong.append(f"{file}:1: the __init__.py of a room; allowed: a docstring and nothing else")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    wrong.append(f"{file}:{node.lineno}: {node.name} has {length} lines; allowed: {MAX_FUNCTION}")
    return wrong


def check_top(root: Path) -> list[str]:
    """The fixed entries of the repository; dotfiles and what .gitignore names do not count."""
    ignore = root / ".gitignore"
    patterns = ignore.read_text(encoding="utf-8").split() if ignore.exists() else []
    ignored = [pattern.strip("/") for pattern in patterns]
    return [
        f"{entry}:1: not a top-level entry; allowed: {', '.join(TOP)}"
        for entry in sorted(root.iterdir())
        if entry.name not in TOP
        and not entry.name.startswith(".")
        and not any(fnmatch(entry.name, pattern) for pattern in ignored)
    ]


CHECKS: tuple[Callable[[Path], list[str]], ...] = (check_floors, check_homes, check_form, check_top)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_house_stands(check: Callable[[Path], list[str]]) -> None:
    wrong = check(ROOT)
    assert not wrong, "\n" + "\n".join(wrong)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


RIGHT = {
    "evocluster/__init__.py": '"""The house."""\n__version__ = "1"\n',
    "evocluster/search/__init__.py": '"""Room."""\n',
    "evocluster/search/nsga2.py": (
        '"""x"""\nfrom evocluster.llm.client import LLM\n\ndef f() -> None:\n    import pymoo\n'
    ),
    "evocluster/cli/main.py": "from evocluster import __version__\n",
    "evocluster/online/server.py": '"""x"""\nfrom aiohttp import web\n',
    "evocluster/cluster/cell.py": (
        "from typing import TYPE_CHECKING\nfrom . import session\nif TYPE_CHECKING:\n    import ray\n"
    ),
    ".gitignore": "runs/\n",
    "runs/one.json": "{}",
    "README.md": "x",
}

WRONG: tuple[tuple[Callable[[Path], list[str]], str, str, str], ...] = (
    (
        check_floors,
        "evocluster/search/a.py",
        "from evocluster.tasks.task import Task\n",
        "a.py:1: search imports",
    ),
    (
        check_floors,
        "evocluster/search/a.py",
        "from evocluster.llm import remote\n",
        "search imports evocluster.llm.remote",
    ),
    (
        check_floors,
        "evocluster/search/a.py",
        "from ..tasks import task\n",
        "search imports evocluster.tasks.task",
    ),
    (
        check_floors,
        "evocluster/tasks/a.py",
        "def f():\n    import evocluster.search\n",
        "a.py:2: tasks imports",
    ),
    (
        check_floors,
        "evocluster/online/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from evocluster.search import space\n",
        "a.py:3: online imports evocluster.search",
    ),
    (
        check_floors,
        "evocluster/engine/a.py",
        "from importlib import import_module\nimport_module('evocluster.config')\n",
        "a.py:2: engine imports evocluster.config",
    ),
    (
        check_floors,
        "evocluster/release/a.py",
        "from evocluster.errors import StoreError\n",
        "allow it: records",
    ),
    (
        check_floors,
        "evocluster/store/a.py",
        "from evocluster.parts import Part\n",
        "store imports evocluster.parts",
    ),
    (check_floors, "evocluster/llm/a.py", "import evocluster.store.cache\n", "llm imports evocluster.store"),
    (check_floors, "evocluster/errors.py", "from evocluster.records import Usage\n", "nothing of the house"),
    (check_floors, "evocluster/attic/a.py", "", "no room 'attic'"),
    (
        check_homes,
        "evocluster/engine/a.py",
        "def f():\n    import ray.util\n",
        "a.py:2: ray is imported outside",
    ),
    (
        check_homes,
        "evocluster/search/space.py",
        "def f():\n    from pymoo import x\n",
        "allowed: search/nsga2.py",
    ),
    (check_homes, "evocluster/llm/direct.py", "def f():\n    import litellm\n", "allowed: llm/remote.py"),
    (check_homes, "evocluster/tasks/a.py", "import sqlite3\n", "allowed: store/"),
    (check_homes, "evocluster/cli/a.py", "import yaml\n", "allowed: document.py"),
    (check_homes, "evocluster/online/a.py", "from aiohttp import web\n", "allowed: online/server.py"),
    (check_homes, "evocluster/cluster/a.py", "import ray\n", "a.py:1: ray is heavy"),
    (check_homes, "evocluster/records.py", "import numpy\n", "floor 1 imports numpy; allowed: pydantic"),
    (check_homes, "evocluster/errors.py", "import pydantic\n", "stdlib only"),
    (check_form, "evocluster/search/a.py", "x = 1\n" * 501, "501 lines; allowed: 500"),
    (
        check_form,
        "evocluster/search/a.py",
        "def f():\n" + "    x = 1\n" * 80,
        "a.py:1: f has 81 lines; allowed: 80",
    ),
    (check_form, "evocluster/search/llm_utils.py", "", "'utils' names nothing"),
    (check_form, "evocluster/search/data/a.py", "", "'data' names nothing"),
    (
        check_form,
        "evocluster/llm/__init__.py",
        '"""Room."""\nfrom evocluster.llm import client\n',
        "a docstring and",
    ),
    (check_form, "evocluster/llm/__init__.py", "", "a docstring and nothing else"),
    (check_top, "notes.txt", "", "notes.txt:1: not a top-level entry"),
    (check_top, "docs/index.md", "", "docs:1: not a top-level entry"),
)


@pytest.mark.parametrize(("check", "path", "text", "said"), WRONG)
def test_guard_can_fail(tmp_path: Path, check: Callable[[Path], list[str]], path: str, text: str, said: str) -> None:
    _tree(tmp_path, RIGHT)
    assert [problem for each in CHECKS for problem in each(tmp_path)] == []
    wrong = check(_tree(tmp_path, {path: text}))
    assert len(wrong) == 1
    assert said in wrong[0]
    assert str(tmp_path / path.split("/")[0]) in wrong[0]
