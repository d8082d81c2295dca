"""Planted keys: whatever a run leaves behind, however it ends, none of them is in it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from servers import Body, FaultServer, Mode
from small import LABELS, write_config

PLANTED = {
    "OPENAI_API_KEY": "sk-proj-plantedopenai0123456789abcdefXYZ",
    "HOUSE_KEY": "house.planted.0123456789.of-no-known-form",
    "RELAY_PASSWORD": "relay+planted+0123456789/of=no=form",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED012345678",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/0123456789abcdefghijkl",
    "AWS_SESSION_TOKEN": "plantedawssession0123456789abcdefghijklmnop",
    "RAY_AUTH_TOKEN": "plantedraytoken0123456789abcdef0123456789abcdef",
}
"""What lies in the environment. HOUSE_KEY is the one that is sent; the endpoint quotes all of them."""


class Leaky(FaultServer):
    """An endpoint, and a relay before it, that quote every key they know in whatever goes wrong."""

    def __init__(self) -> None:
        super().__init__(answer=_colour)
        self._turn = itertools.count()

    async def _respond(self, mode: Mode, request: web.Request, body: Body) -> web.StreamResponse:
        said = f"{request.headers.get('Authorization')} | " + " | ".join(PLANTED.values())
        if body["model"] == "denied":
            return web.json_response({"error": {"message": f"Incorrect API key provided: {said}"}}, status=401)
        if body["model"] == "padded":
            return web.Response(text=" " * 3990 + said, status=403)
        if body["model"] == "repeats":
            return web.json_response(self._completion("ok", True, {**body, "model": said}))
        if body["model"] == "flaky" and next(self._turn) % 3 == 0:
            headers = "\n".join(f"X-{name}: {key}" for name, key in PLANTED.items())
            return web.Response(text=f"Internal error while relaying\nAuthorization: {said}\n{headers}", status=500)
        return await super()._respond(mode, request, body)


def _colour(body: Body) -> str:
    asked = json.dumps(body)
    return next((label for label in LABELS if f"looks {label}" in asked), "no idea")


PROGRAM = '''
import logging, os, sys, traceback
from pathlib import Path
from unittest import mock

logging.basicConfig(level=logging.DEBUG, filename="debug.log")
from evocluster import build
from evocluster.cli.main import main

def call(*words):
    with mock.patch.object(sys, "argv", ["evocluster", *words]):
        try:
            main()
        except SystemExit as left:
            print(words, "->", left.code)
            return left.code
    return 0

def told(error):
    """Everything that a handler might write of an error: its text, its parts, all that it hangs on."""
    seen, todo = [], [error]
    while todo:
        link = todo.pop()
        if link is not None and link not in seen:
            seen.append(link)
            todo += [link.__cause__, link.__context__]
    for link in seen:
        print("LINK", type(link).__name__, str(link), repr(link), link.args, vars(link))
    print("".join(traceback.format_exception(error)))

runner, more = sys.argv[1], sys.argv[2:]
assert call("check", "works/small.yaml") in (0, 1)
assert call("run", "works/small.yaml", "--runner", runner, "--out", "kept") == 0
assert call("resume", "kept") == 0
for words in (["show", "kept"], ["report", "kept"], ["compare", "kept"], ["export", "kept", "--as", "json"]):
    assert call(*words) in ((0, 2) if words[0] == "compare" else (0,)), words  # 2: the start is recommended
for name in more:
    if runner == "local":
        assert call("check", f"{name}/small.yaml") == 7
        assert call("run", f"{name}/small.yaml", "--runner", runner, "--out", f"again-{name}") == 7
    try:
        build.run(build.plan(f"{name}/small.yaml", [f"engine.runner={runner}"]), Path(f"failed-{name}"))
    except Exception as error:
        told(error)
'''


def _model(url: str, name: str, **changes: Any) -> dict[str, Any]:
    price = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}
    made = {"kind": "direct", "base_url": url, "model": name, "key_env": "HOUSE_KEY", "retries": 0, "price": price}
    return {**made, **changes}


def _configs(folder: Path, url: str, remote: bool) -> list[str]:
    """A config that works although a third of its calls fail, and some that cannot; the names of the latter."""
    litellm = {"kind": "remote", "base_url": None, "api_base": url}
    models = {
        "works": _model(url, "flaky", retries=3),
        **{name: _model(url, name) for name in ("denied", "padded", "repeats")},
        **({"remote": {**_model(url, "openai/denied"), **litellm}} if remote else {}),
    }
    space = {"rubric": ["Which colour?", "Name the colour."], "temperature": {"low": 0.0, "high": 1.0}}
    for name, model in models.items():
        model = {key: value for key, value in model.items() if value is not None}
        write_config(
            folder / name,
            models={"fake": model},
            space={**space, "model": ["fake"], "max_tokens": [8]},
            start=[{"rubric": "Which colour?"}],
            engine={"runner": "local", "in_flight": 6, "workers": 2},
            budget={"generations": 2},
            cache={"path": str(folder / "cache")},
        )
    return [name for name in models if name != "works"]


def _texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every byte below a folder: names, files as they are, and tables as they are read."""
    for path in sorted(folder.rglob("*")):
        yield str(path), str(path.relative_to(folder)).encode()
        if path.is_symlink() or not path.is_file():
            continue
        yield str(path), path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"{path} read", repr((table.schema.metadata, table.to_pylist())).encode()
        if path.suffix == ".arrows":
            with pa.ipc.open_stream(path) as stream:
                yield f"{path} read", repr(stream.read_all().to_pylist()).encode()


def found_in(texts: Iterator[tuple[str, bytes]]) -> list[str]:
    """Where a planted key is, whole, in half, or encoded."""
    marks: dict[bytes, str] = {}
    for name, key in PLANTED.items():
        raw = key.encode()
        marks |= {raw: name, raw[:20]: f"begin of {name}", raw[-20:]: f"end of {name}"}
        marks[base64.b64encode(raw)] = f"{name} in base64"
    return [f"{name} in {where}" for where, text in texts for mark, name in marks.items() if mark in text]


def test_a_key_would_be_found(tmp_path: Path) -> None:
    key = PLANTED["HOUSE_KEY"]
    (tmp_path / "plain.txt").write_text(f"x{key}y")
    pq.write_table(pa.table({"error": [f"says {key}"]}), tmp_path / "t.parquet", compression="zstd")
    assert {found.split(" in ")[1].rsplit("/", 1)[1] for found in found_in(_texts(tmp_path))} == {
        "plain.txt",
        "t.parquet read",
    } | ({"t.parquet"} if key.encode() in (tmp_path / "t.parquet").read_bytes() else set())


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", "ray"])
async def test_no_planted_key_is_in_anything_that_is_left(runner: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ec", dir="/tmp"))
    try:
        async with Leaky() as server:
            names = _configs(folder, server.url, remote=runner == "local")
            failing = names if runner == "local" else names[:1]  # a cluster takes seconds to start
            (folder / "home").mkdir()
            (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                "HOME": str(folder / "home"),
                "RAY_TMPDIR": str(folder),
                "XDG_STATE_HOME": str(folder / "state"),
                "EVOCLUSTER_TRACEBACK": "1",
                "RAY_BACKEND_LOG_LEVEL": "debug",
                "COLUMNS": "100",
                **PLANTED,
            }
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "program.py", runner, *failing),
                cwd=folder,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said = (await child.communicate())[0]
            (folder / "said.txt").write_bytes(said)
            assert child.returncode == 0, said.decode()[-4000:]
            assert any(PLANTED["HOUSE_KEY"] in str(headers) for headers in server.headers)
        assert b"[key]" in said
        kept = json.loads((folder / "kept" / "run.json").read_text())
        assert kept["status"] == "finished"
        assert {json.loads((folder / f"failed-{name}" / "run.json").read_text())["status"] for name in failing} == {
            "failed"
        }
        assert (folder / "debug.log").stat().st_size > 0
        assert not (folder / "home" / ".ray").exists()
        assert found_in(_texts(folder)) == []
        if runner == "ray":
            assert list(folder.glob("**/session_*/logs/*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
