"""The search that faults are injected into, its processes, and what it left on disk.

`World` is a classification search against the endpoint that keeps a ledger and says itself how long it computed, so
that its front is a function of the seed alone. `start` and `resume` run the command line in a process of
its own; `stored` and `rows` read what is on disk as any stranger would.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chaos_judge as judge
import psutil
import yaml
from chaos_judge import Fault, Verdict
from chaos_ledger import LABELS, MARK, keeping, ledger

from evocluster.cluster.loopback import Latency

PRICE = {"prompt_usd_per_mtok": 0.15, "completion_usd_per_mtok": 0.60}
ROOT = Path(__file__).resolve().parents[1]
RUBRIC = "Which queue should this support message go to? Queues: {labels}."
TEXTS = (RUBRIC, "Name the queue. " + RUBRIC, "You sort post. " + RUBRIC)
DONE = (0,)
NO_RUN = 4
"""What `resume` leaves with where the kill came before there was a run."""
LONGEST_S = 300.0
"""No process of a row may take longer: it hangs."""


@dataclass(frozen=True)
class World:
    """One search."""

    calls: int = 150
    in_flight: int = 8
    seed: int = 7
    runner: str = "local"
    workers: int | None = None
    population: int = 6
    block: int = 4
    sizes: tuple[int, int, int] = (24, 8, 8)
    """Examples of train, validation and test."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the model's entry; with a `kind` it is the whole entry."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the config."""

    def write(self, folder: Path, url: str) -> Path:
        """The config file of this world in `folder`, its data beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, size in zip(("train", "validation", "test"), self.sizes, strict=True):
            lines = [json.dumps(_example(split, number)) for number in range(size)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        path = folder / "chaos.yaml"
        path.write_text(yaml.safe_dump(self._config(folder, url), sort_keys=False))
        return path

    def _config(self, folder: Path, url: str) -> dict[str, Any]:
        frozen = {"cot": False, "max_tokens": 16, "demo_style": "chat", "constrain": False}
        model = {"kind": "direct", "base_url": f"{url}/v1", "model": "loopback", "timeout_s": 60, "price": PRICE}
        return {
            "name": "chaos",
            "seed": self.seed,
            "task": {
                "kind": "classification",
                "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
                "labels": list(LABELS),
                "scorers": [{"kind": "label"}],
            },
            "models": {"loopback": {**({"price": PRICE} if "kind" in self.model else model), **self.model}},
            "space": {
                "rubric": {"texts": list(TEXTS), "fixed": True},
                "temperature": {"low": 0.0, "high": 1.0},
                "demos": {"max": 2},
                "model": ["loopback"],
                **frozen,
            },
            "start": [{"rubric": RUBRIC, "temperature": 0.5, "model": "loopback", "demos": [], **frozen}],
            "search": {"population": self.population, "block": self.block, "finalists": 2},
            "budget": {"calls": self.calls},
            "engine": {"in_flight": self.in_flight, "runner": self.runner, "workers": self.workers},
            "cache": {"path": str(folder / "cache")},
            **self.more,
        }


def _example(split: str, number: int) -> dict[str, Any]:
    label = LABELS[number % len(LABELS)]
    return {"id": f"{split}-{number}", "input": f"{split} message {number} of {label}", "expected": label}


def environment() -> dict[str, str]:
    """What every process of a row gets: this checkout, one BLAS thread."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


LIVE: set[Sitting] = set()
"""Those that may not be over: whoever ends early ends them first."""


class Sitting:
    """One `evocluster run` or `resume` in a process of its own, its output in a file."""

    def __init__(self, words: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "evocluster.cli.main", *words],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                env={**environment(), **(env or {})},
            )
        self.pid = self._process.pid
        LIVE.add(self)
        self.started_s = time.monotonic()

    def over(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float = LONGEST_S) -> int:
        """The exit code. Raises: subprocess.TimeoutExpired after killing it."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it and all that it had started are gone."""
        below = self.tree()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(below, timeout=15)

    def end(self) -> None:
        """Make sure that nothing of it is left, whatever happened."""
        below = self.tree()
        if self.over() is None:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(below, timeout=5)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def tree(self) -> list[psutil.Process]:
        """Every process below it."""
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.pid).children(recursive=True))
        return []

    def actors(self, kind: str) -> list[int]:
        """Pids of its Ray actors of one class."""
        return [process.pid for process in self.tree() if title(process).startswith(f"ray::{kind}")]

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]


def title(process: psutil.Process) -> str:
    """What a process calls itself ('ray::Puller.run'), or its program; '' when it is gone."""
    with suppress(psutil.Error):
        line = process.cmdline()
        return line[0] if line else ""
    return ""


def start(config: Path, out: Path, **how: Any) -> Sitting:
    """`evocluster run` on a new folder."""
    return Sitting(["run", str(config), "--out", str(out), "--json"], log_of(out), **how)


def resume(out: Path, **how: Any) -> Sitting:
    """`evocluster resume`."""
    return Sitting(["resume", str(out), "--json"], log_of(out), **how)


def log_of(out: Path) -> Path:
    """Where the processes of a run folder say what they say: beside its world, on a disk of another size."""
    return out.parent.with_suffix(".log")


def stored(cache: Path) -> frozenset[str]:
    """Digests of the requests whose answers are in the cache on disk: what was acknowledged."""
    if not (cache / "cache.db").exists():
        return frozenset()
    connection = sqlite3.connect(f"file:{cache / 'cache.db'}?mode=ro", uri=True, timeout=30)
    try:
        found = connection.execute("SELECT value FROM Cache").fetchall()
    except sqlite3.OperationalError:  # killed before it had a table
        return frozenset()
    finally:
        connection.close()
    return frozenset(name.decode() for (value,) in found for name in MARK.findall(bytes(value)))


def rows(out: Path) -> list[dict[str, Any]]:
    """Every row of the trials table, read without evocluster's resume."""
    from evocluster.store.table import scan

    return [row for chunk in scan(out / "trials") for row in chunk] if (out / "trials").exists() else []


def read(out: Path, name: str) -> Any:
    """A JSON file of the run folder; an empty object where there is none."""
    path = out / name
    return json.loads(path.read_text()) if path.exists() else {}


@dataclass
class Calm:
    """The undisturbed run of a world: what every disturbed one is held against."""

    front: Any
    rows: list[dict[str, Any]]
    calls: int


@dataclass
class Stage:
    """A world with its endpoint; a folder for each of its runs. Call order: construct by `staged`."""

    world: World
    folder: Path
    url: str
    random: random.Random
    calm: Calm | None = None
    made: int = 0

    def place(self) -> tuple[Path, Path]:
        """Config and run folder of one more run, its cache empty."""
        self.made += 1
        folder = self.folder / f"run-{self.made}"
        return self.world.write(folder, self.url), folder / "out"

    def ledger(self, since: int = 0) -> list[judge.Entry]:
        """What the endpoint was asked, from its entry number `since` on."""
        return ledger(self.url)[since:]

    def asked(self) -> int:
        """Entries in the endpoint's ledger so far."""
        return len(ledger(self.url))

    def settle(self, sitting: Sitting, out: Path) -> Calm:
        """The undisturbed run, carried out by this sitting. Raises: RuntimeError when it failed."""
        code = sitting.wait()
        if code:
            raise RuntimeError(f"the undisturbed run left with {code}: {sitting.said()}")
        self.calm = Calm(read(out, "front.json"), rows(out), read(out, "run.json")["calls"])
        return self.calm

    def judged(self, out: Path, entries: Sequence[judge.Entry], faults: Sequence[Fault]) -> Verdict:
        """The verdict on one finished run. The undisturbed one must be settled."""
        assert self.calm is not None
        status = read(out, "run.json").get("status")
        if status != "finished":
            return judge.complaint(f"{out.parent.name}: status {status!r} instead of 'finished'")
        kept = stored(out.parent / "cache")
        answered = {name for name, _, answered_s in entries if answered_s}
        unkept = (
            [f"{len(answered - kept)} answered requests are not in the cache at the end"] if answered - kept else []
        )
        return (
            judge.calls(entries, faults)
            + judge.table(rows(out), self.calm.rows)
            + judge.front(read(out, "front.json"), self.calm.front)
            + judge.complaint(*unkept)
        )


@contextmanager
def staged(world: World, folder: Path, seed: int, latency: str = "fixed:0.02") -> Iterator[Stage]:
    """A world on its stage: endpoint up, the undisturbed run done in this machine's own process."""
    with keeping(Latency.parse(latency), seed) as url, keeping(Latency.parse("fixed:0.002"), seed) as quick:
        stage = Stage(world, folder, url, random.Random(seed))
        config, out = world.write(folder / "calm", quick), folder / "calm" / "out"
        words = ["run", str(config), "--out", str(out), "--json", "--runner", "local", "--set", "engine.address=null"]
        stage.settle(Sitting(words, log_of(out)), out)
        yield stage


def finish(out: Path, config: Path, most: int = 5, go: Callable[[list[str]], int] | None = None) -> list[int]:
    """Resume until it is finished, or start anew where there was no run yet; the exit codes on the way."""
    codes: list[int] = []
    run_again = ["run", str(config), "--out", str(out), "--json"]
    while len(codes) < most and (not codes or codes[-1] not in DONE):
        words = ["resume", str(out), "--json"]
        if codes and codes[-1] == NO_RUN and not (out / "config.yaml").exists():
            words = run_again
        codes.append(go(words) if go else Sitting(words, log_of(out)).wait())
    return codes


def kill(pid: int) -> bool:
    """SIGKILL; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def grown(out: Path, trials: int, sitting: Sitting, timeout_s: float = 120) -> bool:
    """Wait until so many proposals are kept; False when the run was over before."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends and sitting.over() is None:
        with suppress(Exception):  # a table that is being sealed this instant is read on the next look
            if len({row["proposal"] for row in rows(out)}) >= trials:
                return True
        time.sleep(0.1)
    return False
