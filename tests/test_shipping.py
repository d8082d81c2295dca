"""What travels to a cluster: what is shipped and what stays, paths rewritten, secrets and sizes refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from small import settings, small_config, write_config

from evocluster import __version__, build, shipping
from evocluster import config as configs
from evocluster.config import SHIPPED
from evocluster.errors import ConfigError, RunDamaged
from evocluster.report.result import Result
from evocluster.shipping import CONFIG, Shipment, collect, own_code

MOST = 2**20
KEY = "planted-0123456789"


def scored(function: str = "evals.py:short") -> dict[str, Any]:
    """The small task with a scorer of the user's own."""
    scorers = [{"kind": "label"}, {"kind": "function", "function": function}]
    return {**settings()["task"], "scorers": scorers, "weights": {function.split(":")[1]: 0}}


def with_code(folder: Path, **changes: Any) -> configs.Config:
    """A small config whose scorer is in evals.py, which imports from beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evals.py").write_text(
        "from words import SHORT\n\ndef short(output, example):\n    return len(output) in SHORT\n"
    )
    (folder / "words.py").write_text("SHORT = {3, 4}\n")
    return small_config(folder, task=scored(), **changes)


def names(shipment: Shipment) -> set[str]:
    """The places in the package, below its folder."""
    return {place.removeprefix(f"{SHIPPED}/") for place in shipment.files}


def unpacked(shipment: Shipment, to: Path) -> Path:
    """The package, unpacked; its config."""
    with zipfile.ZipFile(io.BytesIO(shipment.packed(MOST))) as package:
        package.extractall(to)
    return to / shipment.config


def test_without_code_only_what_the_config_names_travels(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert names(collect(config)) == {"train.jsonl", "validation.jsonl", "test.jsonl"}


def test_code_travels_with_what_lies_beside_it_and_nothing_private_does(tmp_path: Path) -> None:
    config = with_code(tmp_path)
    for private in (".env", ".git/config", "venv/pyvenv.cfg", "venv/lib.py", "server.key", "__pycache__/a.pyc"):
        (tmp_path / private).parent.mkdir(exist_ok=True)
        (tmp_path / private).write_text("x")
    for kept in ("old/config.yaml", "old/trials/part-1.parquet", "prompts/long.txt"):
        (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / kept).write_text("x")
    (tmp_path / "elsewhere.py").symlink_to("/etc/hostname")
    shipment = collect(config)
    data = {"train.jsonl", "validation.jsonl", "test.jsonl"}
    assert names(shipment) == {*data, "evals.py", "words.py", "small.yaml", "prompts/long.txt"}
    assert any("server.key" in note and ".env" in note for note in shipment.notes)


def test_the_package_stands_by_itself_wherever_it_is_unpacked(tmp_path: Path) -> None:
    here = with_code(tmp_path / "here" / "project")
    away = configs.load(unpacked(collect(here), tmp_path / "there"))
    assert str(tmp_path / "here") not in (tmp_path / "there" / SHIPPED / CONFIG).read_text()
    plan = build.plan(away)
    assert plan.facts()["data"] == build.plan(here).facts()["data"]
    assert list(plan.facts()["code"]) == ["evals.py:short"]
    assert (away.engine.runner, away.engine.address) == ("ray", "auto")
    assert all(str(tmp_path / "there") in text for keys, text in configs.paths(away) if keys[-1] != "path")


def test_files_outside_the_folder_of_the_config_keep_their_place_beside_it(tmp_path: Path) -> None:
    write_config(tmp_path / "shared")
    (tmp_path / "lib" / "inner").mkdir(parents=True)
    (tmp_path / "lib" / "evals_of_lib.py").write_text("def short(output, example):\n    return True\n")
    (tmp_path / "lib" / "inner" / "more.py").write_text("")
    (tmp_path / "lib" / "notes.txt").write_text("stays")
    data = {split: f"../shared/{split}.jsonl" for split in ("train", "validation", "test")}
    task = {**scored("evals_of_lib:short"), "data": data}
    config = small_config(tmp_path / "project", task=task, python_path=["../lib"])
    shipment = collect(config)
    wanted = {f"shared/{split}.jsonl" for split in data} | {"lib/evals_of_lib.py", "lib/inner/more.py"}
    assert names(shipment) == wanted
    assert shipment.config == f"{SHIPPED}/project/{CONFIG}"
    away = configs.load(unpacked(shipment, tmp_path / "there"))
    assert away.python_path == (str(tmp_path / "there" / SHIPPED / "project" / ".." / "lib"),)
    build.plan(away, allow_code=True)


def test_modules_that_are_installed_are_named_and_do_not_travel(tmp_path: Path) -> None:
    config = small_config(tmp_path, task=scored("json:dumps"))
    shipment = collect(config)
    assert "json" in " ".join(shipment.notes)
    assert names(shipment) == {"train.jsonl", "validation.jsonl", "test.jsonl"}


def test_the_same_files_make_the_same_package(tmp_path: Path) -> None:
    config = with_code(tmp_path)
    before = collect(config).packed(MOST)
    os.utime(tmp_path / "evals.py", (1, 1))
    assert collect(config).packed(MOST) == before


def test_too_much_is_refused_with_the_largest_files_and_a_remedy(tmp_path: Path) -> None:
    config = with_code(tmp_path)
    (tmp_path / "video.bin").write_bytes(os.urandom(300_000))
    with pytest.raises(
        ConfigError, match=r"allowed: 97\.7 KiB.*largest files: \S+video\.bin \(293\.0 KiB\).*folder of"
    ):
        collect(config).packed(100_000)


def test_a_folder_of_very_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "MOST_FILES", 3)
    with pytest.raises(ConfigError, match="more than 3 files"):
        collect(with_code(tmp_path))


MODEL = {"kind": "direct", "base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "PLANTED_KEY"}
PRICED = {**MODEL, "price": {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}}


def keyed(folder: Path) -> configs.Config:
    """A config with code and a model that wants a key."""
    space = {"rubric": ["Which?"], "max_tokens": [1, 8], "model": ["fake"]}
    return with_code(folder, models={"fake": PRICED}, space=space, start=[{"rubric": "Which?"}])


def test_of_a_key_only_the_name_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    shipment = collect(keyed(tmp_path))
    assert shipment.needs == ("PLANTED_KEY",)
    with zipfile.ZipFile(io.BytesIO(shipment.packed(MOST))) as package:
        contents = b"".join(package.read(name) for name in package.namelist())
    assert b"PLANTED_KEY" in contents
    assert KEY.encode() not in contents


@pytest.mark.parametrize("place", ["settings.bin", "words.py", "train.jsonl"])
def test_a_file_that_holds_the_value_of_a_key_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    config = keyed(tmp_path)
    with (tmp_path / place).open("a") as file:
        file.write(f"# {KEY}\n")
    with pytest.raises(ConfigError, match=rf"{place}.*'PLANTED_KEY'.*os\.environ") as refused:
        collect(config).packed(MOST)
    assert KEY not in str(refused.value)


def test_the_token_of_the_cluster_does_not_travel_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", KEY)
    config = with_code(tmp_path)
    (tmp_path / "notes.txt").write_text(KEY)
    with pytest.raises(ConfigError, match=r"notes\.txt.*'RAY_AUTH_TOKEN'"):
        collect(config).packed(MOST)


def test_code_that_holds_what_looks_like_a_key_is_refused_by_line(tmp_path: Path) -> None:
    config = with_code(tmp_path)
    fake = "sk-" + "a1b2c3d4" * 4
    (tmp_path / "words.py").write_text(f"SHORT = {{3}}\nKEY = '{fake}'\n")
    with pytest.raises(ConfigError, match=r"words\.py:2: looks like a secret") as refused:
        collect(config).packed(MOST)
    assert fake not in str(refused.value)


def test_a_cache_of_this_machine_is_one_of_the_cluster_there(tmp_path: Path) -> None:
    inside = collect(small_config(tmp_path, cache={"path": "cache"}))
    assert configs.load(unpacked(inside, tmp_path / "a")).cache.path == shipping.CACHE
    assert any(shipping.CACHE in note for note in inside.notes)
    mounted = collect(small_config(tmp_path, cache={"path": "/mnt/shared/cache"}))
    assert configs.load(unpacked(mounted, tmp_path / "b")).cache.path == "/mnt/shared/cache"


def test_what_a_warm_start_reads_travels(tmp_path: Path) -> None:
    build.run(build.plan(small_config(tmp_path, budget={"generations": 1})), tmp_path / "first")
    config = small_config(tmp_path, warm_start="first")
    away = configs.load(unpacked(collect(config), tmp_path / "there"))
    assert build.plan(away).warm == build.plan(config).warm != ()


def test_a_shipped_config_is_moved_and_nothing_else_in_it_changes(tmp_path: Path) -> None:
    away = configs.load(unpacked(collect(with_code(tmp_path / "here")), tmp_path / "one"))
    again = configs.load(unpacked(collect(with_code(tmp_path / "here")), tmp_path / "two"))
    assert configs.moved(away, tmp_path / "two" / SHIPPED) == again
    assert configs.moved(away, tmp_path / "two" / SHIPPED) != away
    plain = small_config(tmp_path / "plain")
    assert configs.moved(plain, tmp_path / "two") == plain


def test_a_shipped_run_goes_on_from_another_place_and_only_with_the_same_files(tmp_path: Path) -> None:
    slow = {**settings()["models"]["fake"], "latency_s": 0.1, "time_scale": 1.0}
    config = with_code(tmp_path / "here", cache={"path": None}, models={"fake": slow})
    first = configs.load(unpacked(collect(config), tmp_path / "one"), ["engine.runner=local"])
    build.run(build.plan(first), tmp_path / "run", interrupted=lambda: True)
    assert Result(tmp_path / "run").status == "interrupted"
    (tmp_path / "one").rename(tmp_path / "two")
    with pytest.raises(ConfigError, match="one/"):
        build.resume(tmp_path / "run", "local")
    words = tmp_path / "two" / SHIPPED / "evals.py"
    before = words.read_text()
    words.write_text(f"{before}\n")
    with pytest.raises(RunDamaged, match=r"code 'evals\.py:short' changed"):
        build.resume(tmp_path / "run", "local", files=tmp_path / "two" / SHIPPED, allow_code=True)
    words.write_text(before)
    result = build.resume(tmp_path / "run", "local", files=tmp_path / "two" / SHIPPED, allow_code=True)
    build.run(build.plan(config), tmp_path / "whole")
    assert result.front == Result(tmp_path / "whole").front


def test_own_code_runs_without_an_installed_evocluster(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(own_code())) as package:
        package.extractall(tmp_path)
    asks = "import evocluster, importlib.metadata as m; print(evocluster.__file__, m.version('evocluster'))"
    words, environment = [sys.executable, "-c", asks], {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "evocluster" / "__init__.py"), __version__]
    assert own_code() == own_code()
