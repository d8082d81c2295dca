"""Whole runs by the command line: what they print, how they are interrupted, what is seen meanwhile."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import call, environment
from rich.console import Console
from small import LABELS, settings, write_config

from evocluster.cli.progress import PLAIN_EVERY_S, STILL_EVERY_S, Display, Speed, interruptible, line
from evocluster.errors import Interrupted

COMMAND = (sys.executable, "-m", "evocluster.cli.main")
ONLINE = ("sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn", "duckdb", "sklearn", "river", "croniter")
HEAVY = ("ray", "litellm", "pymoo", "pyarrow", "xllamacpp", "numpy", "pandas", "aiohttp", *ONLINE)
PROGRESS: dict[str, Any] = {
    "phase": "search",
    "generation": 2,
    "evaluations": 40,
    "calls": 50,
    "cached": 10,
    "handed_out": 8,
    "usd": 0.5,
    "budget": {"calls": 200, "usd": 1.0, "minutes": None, "generation": 8},
    "elapsed_s": 30.0,
    "best_quality": 0.75,
    "objectives": ["quality", "latency_ms", "cost_usd"],
    "front": [{"genome": "0123456789abcdef", "values": {"quality": 0.75, "latency_ms": None, "cost_usd": 3e-6}}],
}


def slow(latency_s: float = 0.08) -> dict[str, Any]:
    """Sections that make a run wait for its model really."""
    rules = [{"pattern": f"looks {label}", "text": label} for label in LABELS[:3]]
    model = {"kind": "scripted", "rules": rules, "default": "no idea", "latency_s": latency_s, "time_scale": 1}
    return {"models": {"fake": model}, "cache": {"path": None}}


def front(folder: Path) -> Any:
    return json.loads((folder / "front.json").read_text())


def wait_for_trials(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until some trials are kept."""
    genomes = folder / "genomes.jsonl"
    deadline = time.monotonic() + 30
    while not genomes.exists() or genomes.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("verb", [(), ("run",), ("resume",), ("show",), ("models",), ("models", "list")])
def test_every_help_has_an_example(verb: tuple[str, ...]) -> None:
    helped = call(*verb, "--help", columns=100)
    assert helped.code == 0
    assert re.search(r"Examples?:\s+evocluster", helped.out)
    assert "Usage: evocluster" in helped.out


def test_version() -> None:
    from evocluster import __version__

    assert call("--version").out.strip() == f"evocluster {__version__}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom evocluster.cli.main import main\nsys.argv = ['evocluster', '--help']\n"
        f"try:\n    main()\nfinally:\n    sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "evocluster run" in done.stdout
    assert done.stderr == ""


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = call("run", write_config(tmp_path), "--out", tmp_path / "run", "--json")
    assert done.code == 0
    assert done.err == ""
    found = json.loads(done.out)
    assert found["run"]["status"] == "finished"
    assert found["front"] == front(tmp_path / "run")
    assert json.loads(call("show", tmp_path / "run", "--json").out) == found


def test_set_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    changed = ("--set", "seed=11", "--set", "budget.generations=1")
    assert call("run", config, *changed, "--out", "there").code == 0
    resolved = yaml.safe_load((tmp_path / "there" / "config.yaml").read_text())
    assert resolved["seed"] == 11
    assert resolved["budget"]["generations"] == 1
    assert call("run", config, *changed).code == 0
    assert (tmp_path / "runs" / "small" / "front.json").exists()


def test_a_finished_run_says_where_it_is_and_what_is_next(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = call("run", write_config(tmp_path), "--out", run)
    assert f"run folder: {run}" in done.err.splitlines()
    assert "Front on test (12 examples), 95 % intervals" in done.out
    assert "Status: finished" in done.out
    assert "The search ended by: generations" in done.out
    assert f"Next: evocluster report {run}" in done.out.splitlines()
    again = call("resume", run)
    assert again.code == 0
    assert "is finished; nothing to do" in again.err
    assert again.out == done.out


def test_outputs_that_never_match_a_label_are_shown(tmp_path: Path) -> None:
    model = {"kind": "scripted", "default": "I am glad you asked.", "latency_s": 0}
    space = {**settings()["space"], "constrain": False}
    config = write_config(tmp_path, models={"fake": model}, space=space)
    run = tmp_path / "run"
    done = call("run", config, "--out", run)
    assert done.code == 0
    assert re.search(r"No configuration got anything right on train; 'train-\d+' was answered 'I am glad you", done.out)
    assert "do the labels or the scorers fit them" in call("show", run).out
    shutil.rmtree(run / "trials")
    assert re.search(r"right on train \(.*trials' cannot be read whole", call("show", run).out)
    assert "No configuration" not in call("run", write_config(tmp_path / "b"), "--out", tmp_path / "good").out


def test_what_models_and_configs_say_is_shown_inert(tmp_path: Path) -> None:
    wild = "[bold]Which[/bold] \x1b[31mcolour\x1b]0;title\x07?\x9b2J"
    model = {"kind": "scripted", "default": wild, "latency_s": 0}
    space = {**settings()["space"], "rubric": wild}
    config = write_config(tmp_path, models={"fake": model}, space=space, start=[{"rubric": wild}])
    run = tmp_path / "run"
    printed = call("run", config, "--out", run)
    assert printed.code == 0
    for text in (printed.out, printed.err, call("show", run, "--full").out, call("show", run, "--json").out):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "[bold]Which[/bold]" in printed.out


def test_interrupted_once_it_saves_and_resume_finds_the_same_front(tmp_path: Path) -> None:
    config, run, whole = write_config(tmp_path, **slow()), tmp_path / "run", tmp_path / "whole"
    process = subprocess.Popen(
        [*COMMAND, "run", str(config), "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        wait_for_trials(run, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted: finishing what is in flight" in err
    assert "Status: interrupted" in out
    assert f"Next: evocluster resume {run}" in out
    assert call("resume", run).code == 0
    assert call("run", config, "--out", whole, "--set", "models.fake.time_scale=0").code == 0
    assert front(run) == front(whole)


def test_interrupted_twice_it_leaves_at_once() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def sit_through(presses: int) -> None:
        with interruptible(said.append) as interrupted:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
                assert interrupted()
                assert interrupted()

    sit_through(1)
    assert len(said) == 1
    with pytest.raises(Interrupted, match="evocluster resume"):
        sit_through(2)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_on_a_terminal_shows_a_live_view(tmp_path: Path) -> None:
    config = write_config(tmp_path, **slow(), budget={"calls": 300})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "run", str(config), "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**environment(), "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    try:
        while True:
            try:
                seen += (got := os.read(ours, 65536))
            except OSError:  # Linux says EIO when the other end is closed
                break
            if not got:
                break
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(ours)
    text = seen.decode()
    assert "\x1b[" in text
    for sign in (r"evaluations \(\d+\.\d/s, \d+ handed out", "% from the cache", r"\$0\.\d{4}", r"about \d+ s left"):
        assert re.search(sign, text), sign
    assert "front so far (train)" in text


def shown(terminal: bool, quiet: bool = False) -> str:
    """What a display makes of the same progress at 0, 1 and 10 seconds."""
    now = [0.0]
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200, highlight=False, legacy_windows=False)
    with Display(quiet, lambda: now[0], console) as display:
        for second in (0.0, 1.0, 2 * PLAIN_EVERY_S):
            now[0] = second
            display({**PROGRESS, "evaluations": 40 + int(second) * 3})
    return file.getvalue()


def test_off_a_terminal_a_line_every_few_seconds() -> None:
    printed = shown(terminal=False).splitlines()
    assert len(printed) == 2
    assert "\x1b" not in "".join(printed)
    assert printed[1] == (
        "search | generation 2 | best train quality 0.75 | 70 evaluations (3.0/s, 8 handed out) | "
        "50 of 200 calls, 20% from the cache | $0.5000 of $1 | 30 s, about 30 s left"
    )


def test_off_a_terminal_the_same_is_said_again_once_a_minute() -> None:
    now = [0.0]
    file = io.StringIO()
    with Display(clock=lambda: now[0], console=Console(file=file, force_terminal=False, width=200)) as display:
        for second in (0.0, 2 * PLAIN_EVERY_S, STILL_EVERY_S - 1, STILL_EVERY_S, STILL_EVERY_S + 2 * PLAIN_EVERY_S):
            now[0] = second
            display({**PROGRESS, "elapsed_s": second})
        assert [line.split(" | ")[-1].split(",")[0] for line in file.getvalue().splitlines()] == ["0 s", "60 s"]
        display({**PROGRESS, "elapsed_s": 70.0, "phase": "test"})
    assert file.getvalue().splitlines()[-1].startswith("test | ")


def test_the_live_view_has_the_line_and_the_front() -> None:
    printed = shown(terminal=True)
    for text in ("evaluations (3.0/s", "20% from the cache", "$0.5000 of $1", "about 30 s left", "01234567"):
        assert text in printed
    assert shown(terminal=True, quiet=True) == ""


def test_texts_in_progress_are_inert() -> None:
    file = io.StringIO()
    with Display(console=Console(file=file, force_terminal=False, width=80)) as display:
        display({**PROGRESS, "phase": "\x1b[31m[bold]search"})
        display.say("\x1b]0;x\x07[red]hello")
    assert "\x1b" not in file.getvalue()
    assert "[bold]search" in file.getvalue()
    assert "[red]hello\n" in file.getvalue()


def test_speed_is_of_the_last_seconds() -> None:
    speed = Speed(window_s=10)
    assert speed.update(0.0, 0) == 0.0
    assert speed.update(5.0, 50) == 10.0
    assert speed.update(100.0, 50) == 0.0


def test_time_left_follows_the_budget_that_ends_first() -> None:
    budget = {"calls": 100, "usd": None, "minutes": 10.0, "generation": None}
    progress = {**PROGRESS, "budget": budget, "elapsed_s": 60.0}
    assert "about 60 s left" in line(progress, 1.0)
    assert "about 540 s left" in line({**progress, "calls": 1}, 1.0)
    assert "left" not in line({**progress, "budget": {}}, 1.0)


def driver(*words: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def test_of_two_drivers_on_one_folder_one_goes_on_and_the_other_leaves_with_code_9(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, **slow()), tmp_path / "run"
    with driver("run", config, "--out", run, "--runner", "local") as first:
        wait_for_trials(run, first)
        second = call("resume", run)
        assert (second.code, second.out) == (9, "")
        assert f"is in use by process {first.pid} on " in second.err
        assert "wait until that process ends, stop it, or choose another folder" in second.err
        first.kill()
    with driver("resume", run) as third, driver("resume", run) as fourth:
        codes = sorted([third.wait(60), fourth.wait(60)])
    assert codes in ([0, 0], [0, 9])  # the killed holder keeps nobody out; who comes after the end finds it finished
    assert front(run)["members"]
