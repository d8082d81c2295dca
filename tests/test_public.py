"""The public list of the package, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import evocluster
from evocluster import config as configs

ROOT = Path(__file__).resolve().parents[1]

ONLINE = ("sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "duckdb", "sklearn", "river", "croniter")
HEAVY = ("ray", "litellm", "pymoo", "pyarrow", "xllamacpp", "diskcache", "pandas", "matplotlib", *ONLINE)


def _loaded(code: str) -> set[str]:
    """The modules a fresh interpreter holds after running the code."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(printed.stdout.split())


def test_import_of_config_is_light() -> None:
    assert not _loaded("import evocluster.config") & {*HEAVY}


def test_import_of_package_is_nearly_nothing() -> None:
    loaded = _loaded("import evocluster; evocluster.__version__; dir(evocluster)")
    assert not loaded & {*HEAVY, "pydantic", "numpy", "yaml", "aiohttp", "evocluster.config"}


def test_public_names() -> None:
    assert evocluster.load_config is configs.load
    assert {*dir(evocluster)} >= {"optimize", "Optimizer", "Result", "load_config", "Home", "deploy", "rollback"}
    assert all(getattr(evocluster, name) is not None for name in dir(evocluster))
    assert evocluster.Optimizer.__module__ == "evocluster.search.optimizer"
    with pytest.raises(AttributeError, match="evocluster has no 'optimise'; it has: Calls"):
        evocluster.optimise  # noqa: B018
    assert (ROOT / "evocluster/py.typed").exists()
