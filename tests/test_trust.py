"""Whose code a config may run, and where it may send keys."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call
from small import write_config

from evocluster import build
from evocluster.config import load
from evocluster.errors import ConfigError
from evocluster.tasks.origin import origin, within
from evocluster.trust import admit

SCORER = """
from pathlib import Path
Path({mark!r}).write_text("it ran")

def polite(output, example):
    return True
"""


@pytest.fixture(autouse=True)
def nothing_ran_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def evil(path: Path, mark: Path) -> Path:
    """A scorer that leaves a mark when it is imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCORER.format(mark=str(mark)))
    return path


def project(folder: Path, function: str, **changes: Any) -> Path:
    """A config whose task is scored by this function too."""
    path = write_config(folder, budget={"generations": 1}, **changes)
    given = yaml.safe_load(path.read_text())
    given["task"]["scorers"] = [{"kind": "label"}, {"kind": "function", "function": function}]
    path.write_text(yaml.safe_dump(given))
    return path


def test_code_beside_the_config_runs_and_is_told(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = evil(tmp_path / "mine" / "lib" / "polite.py", mark)
    path = project(tmp_path / "mine", "lib/polite.py:polite")
    result = build.run(build.plan(path), tmp_path / "run")
    spec = f"{code}:polite"
    assert result.run["code_files"] == {spec: str(code)}
    assert list(result.run["code"]) == [spec]
    assert result.run["allow_code"] is False
    assert mark.exists()
    assert call("resume", tmp_path / "run").code == 0  # it ran here, and is as it was
    assert call("report", tmp_path / "run").code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert result.run["code"][spec][:16] in page


@pytest.mark.parametrize("verb", ["run", "check", "judge"])
def test_code_elsewhere_is_refused_by_name_and_not_touched(tmp_path: Path, verb: str) -> None:
    mark = tmp_path / "mark"
    code = evil(tmp_path / "elsewhere" / "evil.py", mark)
    path = project(tmp_path / "mine", f"{code}:polite")
    words = {
        "run": ["run", path, "--out", tmp_path / "run"],
        "check": ["check", path],
        "judge": ["judge", "check", path],
    }
    left = call(*words[verb])
    assert left.code == 2
    assert f"'{code}'" in left.err
    assert "outside the config's folder" in left.err
    assert "--allow-code" in left.err
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_allowed_code_runs_is_told_and_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = evil(tmp_path / "elsewhere" / "evil.py", mark)
    path = project(tmp_path / "mine", f"{code}:polite")
    assert call("run", path, "--out", tmp_path / "run", "--allow-code").code == 0
    assert mark.exists()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["allow_code"] is True
    assert run["code_files"] == {f"{code}:polite": str(code)}
    assert call("resume", tmp_path / "run").code == 0
    assert call("report", tmp_path / "run").code == 0
    assert "with --allow-code" in (tmp_path / "run" / "report.html").read_text()
    code.write_text(code.read_text() + "\n# another version\n")
    left = call("resume", tmp_path / "run")
    assert left.code == 2
    assert "did not run here before as it is now" in left.err


@pytest.mark.parametrize("spec", ["subprocess:run", "os.path:join", "builtins:eval", "yaml:safe_load"])
def test_installed_modules_are_elsewhere(tmp_path: Path, spec: str) -> None:
    path = project(tmp_path, spec)
    with pytest.raises(ConfigError, match=f"'{spec}' is code in .* outside the config's folder"):
        build.plan(path)


def test_a_package_is_not_run_to_see_where_it_lies(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil(tmp_path / "elsewhere" / "evilpackage" / "__init__.py", mark)
    evil(tmp_path / "elsewhere" / "evilpackage" / "inner.py", mark)
    path = project(tmp_path / "mine", "evilpackage.inner:polite", python_path=["../elsewhere"])
    with pytest.raises(ConfigError, match=r"python_path '.*elsewhere' lies outside"):
        build.plan(path)
    assert not mark.exists()
    assert "evilpackage" not in sys.modules
    assert str(tmp_path / "elsewhere") not in sys.path
    found = origin("evilpackage.inner:polite", [tmp_path / "elsewhere"])
    assert found == (tmp_path / "elsewhere" / "evilpackage" / "inner.py").resolve()
    assert not mark.exists()


def test_a_link_leads_outside(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = evil(tmp_path / "elsewhere" / "evil.py", mark)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "linked.py").symlink_to(code)
    with pytest.raises(ConfigError, match=r"elsewhere/evil\.py"):
        build.plan(project(tmp_path / "mine", "linked.py:polite"))
    assert not mark.exists()


@pytest.mark.parametrize("place", ["elsewhere", "run"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_run_folder_from_anybody_runs_none_of_its_code(tmp_path: Path, place: str, bare: bool) -> None:
    mark = tmp_path / "mark"
    code = evil(tmp_path / "theirs" / "evil.py", tmp_path / "theirs" / "mark")
    made = build.run(build.plan(project(tmp_path / "theirs", "evil.py:polite")), tmp_path / "theirs" / "run").path
    shutil.copytree(made, tmp_path / "run")
    shutil.rmtree(tmp_path / "state")  # another machine
    moved = evil(tmp_path / place / "moved.py", mark)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(code), "moved.py" if place == "run" else str(moved)))
    if bare:
        shutil.rmtree(tmp_path / "run" / "trials")
    (tmp_path / "run" / "SHA256SUMS").unlink()  # who changes a folder on purpose leaves no digests that tell of it
    for words in (["resume", tmp_path / "run"], ["export", tmp_path / "run", "--as", "json"]):
        left = call(*words)
        assert left.code == 2
        assert f"names the code '{moved}'" in left.err
        assert "--allow-code" in left.err
    for words in (["show", tmp_path / "run"], ["report", tmp_path / "run"], ["compare", tmp_path / "run"]):
        call(*words)
    assert not mark.exists()
    call("export", tmp_path / "run", "--as", "json", "--allow-code")
    assert mark.exists()


def test_a_run_folder_from_anybody_sends_no_key_and_calls_no_private_host(tmp_path: Path) -> None:
    price = {"prompt_usd_per_mtok": 1, "completion_usd_per_mtok": 1}
    for host, key_env, said in (
        ("evil.example", "MY_KEY", "send the value of MY_KEY to 'evil.example'"),
        ("192.168.0.1", None, "call '192.168.0.1'"),
    ):
        model = {"kind": "direct", "base_url": f"https://{host}/v1", "model": "m", "key_env": key_env, "price": price}
        space = {"rubric": ["Which colour?"], "model": ["fake"], "max_tokens": [8]}
        config = load(write_config(tmp_path / host, models={"fake": model}, space=space, start=[{}]))
        with pytest.raises(ConfigError, match=said):
            admit(config, stranger=True)
        assert admit(config, stranger=True, calls=False) is False
        with pytest.raises(ConfigError, match=said):
            admit(config, stranger=True)  # reading it was no leave to call
        assert admit(config) is False
        assert admit(config, stranger=True) is False  # it ran here by now
        assert admit(load(tmp_path / host / "small.yaml", ["models.fake.model=n"]), stranger=True) is False


def test_what_ran_is_known_to_its_user_alone(tmp_path: Path) -> None:
    code = evil(tmp_path / "mine" / "polite.py", tmp_path / "mark")
    path = project(tmp_path / "mine", f"{code.name}:polite")
    before = os.umask(0)
    try:
        admit(load(path))
        admit(load(path))
    finally:
        os.umask(before)
    held = tmp_path / "state" / "evocluster" / "ran"
    assert stat.S_IMODE(held.stat().st_mode) == 0o600
    assert stat.S_IMODE(held.parent.stat().st_mode) == 0o700
    assert len(held.read_text().split()) == 1


def test_where_nothing_can_be_remembered_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file in the way")
    code = evil(tmp_path / "mine" / "polite.py", tmp_path / "mark")
    assert admit(load(project(tmp_path / "mine", f"{code.name}:polite"))) is False
    assert "resuming this run will need --allow-code" in caplog.text


def test_installed_code_inside_the_project_is_no_code_of_the_project() -> None:
    import yaml as installed

    file = Path(str(installed.__file__))
    assert not within(file.resolve(), file.resolve().parents[1])
    assert within(Path(__file__).resolve(), Path(__file__).resolve().parent)
    assert not within(None, Path(__file__).parent)
