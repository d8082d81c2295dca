"""Faults of one driver in one process: killed anywhere, beside a second one, on a disk that is full or lies.

Each is a row of the fault table: `driver_killed`, `two_drivers`, `disk_failed`, `bytes_damaged`.
"""

from __future__ import annotations

import importlib
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import chaos_judge as judge
from chaos_child import Fault, Left, Nursery
from chaos_judge import Row, Verdict, complaint
from chaos_world import NO_RUN, Sitting, Stage, World, finish, grown, resume, staged, start, stored

TINY = World(calls=40, sizes=(8, 3, 3), population=4, block=2)
TAKEN = (3, 6, 9)
"""What a driver may leave with whose folder is another one's: it holds a run, it is locked, it was taken over."""
PLACES = 150
"""Of each file are damaged in short; else every byte."""
CLEAN = (0, 6)
"""What a run may leave with when its disk failed: it was not hit, or says so."""
POINTS: dict[str, Fault] = {
    "folder made": Fault("kill", 1, "mkdir", "out", side="after"),
    "lock taken": Fault("kill", 1, "truncate", ".lock", side="after"),
    "config.yaml half written": Fault("kill", 1, "text", ".config.yaml*", side="half"),
    "before config.yaml is in place": Fault("kill", 1, "rename", "config.yaml"),
    "config.yaml in place": Fault("kill", 1, "rename", "config.yaml", side="after"),
    "trials folder made": Fault("kill", 1, "mkdir", "trials", side="after"),
    "before examples.jsonl is in place": Fault("kill", 1, "rename", "examples.jsonl"),
    "before a cache put": Fault("kill", 3, call="evocluster.store.cache:DiskCache.put_many"),
    "in a cache transaction": Fault("kill", 3, "put", side="half"),
    "after a cache put": Fault("kill", 3, call="evocluster.store.cache:DiskCache.put_many", side="after"),
    "genome line half written": Fault("kill", 3, "write", "genomes.jsonl", side="half"),
    "after a genome line": Fault("kill", 3, "write", "genomes.jsonl", side="after"),
    "before a table append": Fault("kill", 4, call="evocluster.store.table:Table.append"),
    "rows half written": Fault("kill", 4, "write", "tail-*", side="half"),
    "rows written, not told": Fault("kill", 5, "write", "tail-*", side="after"),
    "told": Fault("kill", 5, call="evocluster.search.optimizer:Optimizer.tell", side="after"),
    "front.json half written": Fault("kill", 1, "text", ".front.json*", side="half"),
    "before front.json is in place": Fault("kill", 1, "rename", "front.json"),
    "front.json in place": Fault("kill", 1, "rename", "front.json", side="after"),
    "last run.json half written": Fault("kill", 2, "text", ".run.json*", side="half"),
    "before the last run.json is in place": Fault("kill", 2, "rename", "run.json"),
    "last run.json in place": Fault("kill", 2, "rename", "run.json", side="after"),
    "part half written": Fault("kill", 1, "part", ".part-*", side="half"),
    "before a part is in place": Fault("kill", 1, "rename", "part-*"),
    "part in place, its tail too": Fault("kill", 1, "rename", "part-*", side="after"),
    "tail removed": Fault("kill", 1, "remove", "tail-*", side="after"),
    "closed": Fault("kill", 1, call="evocluster.engine.folder:Folder.close", side="after"),
}
"""The named crash points: what has just happened on disk when the driver dies."""


@dataclass(frozen=True)
class Terms:
    """How a row is to be run."""

    folder: Path
    seed: int
    short: bool

    def draw(self) -> random.Random:
        """The row's own randomness."""
        return random.Random(self.seed)


@contextmanager
def bred(terms: Terms, world: World = TINY) -> Iterator[tuple[Stage, Nursery, Left]]:
    """A stage, the nursery for its children, and how an unbroken child left."""
    with staged(world, terms.folder, terms.seed) as stage, Nursery(terms.folder) as nursery:
        config, out = stage.place()
        whole = nursery.run(["run", str(config), "--out", str(out), "--json"], [config.parent])
        if whole.code:
            raise RuntimeError(f"an unbroken child left with {whole.code}: {whole.said}")
        yield stage, nursery, whole


def struck(stage: Stage, nursery: Nursery, fault: Fault) -> tuple[Verdict, Left, list[int]]:
    """A new run that meets the fault, then is gone on with to its end; the verdict, and the exit codes after it."""
    config, out = stage.place()
    since = stage.asked()
    left = nursery.run(["run", str(config), "--out", str(out), "--json"], [config.parent], fault)
    now = time.monotonic()
    places = stage.world.in_flight if fault.act == "kill" else None
    met = judge.Fault(now, now, stored(config.parent / "cache"), places)
    verdict = left_well(left, fault)
    last = left

    def go(words: list[str]) -> int:
        nonlocal last
        last = nursery.run(words, [config.parent])
        return last.code

    codes = finish(out, config, go=go)
    if codes[-1]:
        verdict += complaint(f"then left with {codes}: {last.said[-300:]}")
    else:
        verdict += resumed_well(codes) + stage.judged(out, stage.ledger(since), [met])
        shutil.rmtree(config.parent)
    return verdict.of(str(fault)), left, codes


def left_well(left: Left, fault: Fault) -> Verdict:
    """Whether a child left as the fault has it: killed, or cleanly with the code of a disk that failed."""
    if fault.act == "kill":
        # A moment drawn at random may lie beyond the end of a run that was faster than the one it was drawn from.
        ended = left.code == 0 and (fault.after_s > 0 or (fault.kind == "*" and not fault.call))
        return Verdict() if left.code == -signal.SIGKILL or ended else complaint("never reached")
    traced = "Traceback" in left.said
    if left.code in CLEAN and not traced:
        return Verdict()
    return complaint(f"left with {left.code}{', a traceback' * traced}: {left.said[-300:]}")


def resumed_well(codes: Sequence[int]) -> Verdict:
    """One resume, or, where there was no run yet, its refusal and a new run."""
    if list(codes) in ([0], [NO_RUN, 0]):
        return Verdict()
    return complaint(f"it took {list(codes)} to finish")


def driver_killed(terms: Terms) -> Row:
    """SIGKILL at every named crash point, at random operations on disk and at random times."""
    row, draw = Row("driver SIGKILL at named crash points and at random"), terms.draw()
    with bred(terms) as (stage, nursery, whole):
        faults = list(POINTS.values())
        sides = ("before", "half", "after")
        for _ in range(5 if terms.short else 160):
            faults.append(Fault("kill", draw.randint(1, len(whole.operations)), side=draw.choice(sides)))  # type: ignore[arg-type]
        for _ in range(3 if terms.short else 120):
            faults.append(Fault("kill", after_s=round(draw.uniform(0.05, whole.seconds), 3)))
        anew = 0
        for fault in faults:
            verdict, _, codes = struck(stage, nursery, fault)
            row.faults += 1
            row.verdict += verdict
            anew += codes[0] == NO_RUN
        row.seen = {"named": len(POINTS), "operations_of_a_run": len(whole.operations), "before_there_was_a_run": anew}
    return row


def disk_failed(terms: Terms) -> Row:
    """ENOSPC from the k-th operation on, and EIO at it, for every k; then a real disk of two megabytes."""
    row = Row("disk full or I/O error at the k-th write")
    with bred(terms) as (stage, nursery, whole):
        every = range(1, len(whole.operations) + 1)
        codes: dict[int, int] = {}
        for act, numbers in (("full", every), ("io", every[:: 4 if terms.short else 1])):
            for number in numbers:
                side = "half" if whole.operations[number - 1][0] in ("write", "text", "part") else "before"
                verdict, left, _ = struck(stage, nursery, Fault(act, number, side=side))  # type: ignore[arg-type]
                row.faults += 1
                row.verdict += verdict
                codes[left.code] = codes.get(left.code, 0) + 1
        row.seen = {"operations": len(whole.operations), "exit_codes": {str(key): codes[key] for key in sorted(codes)}}
        for size_kb in range(180, 321, 70 if terms.short else 10):
            row.seen[f"tmpfs of {size_kb} KiB"] = told = _tmpfs(stage, row, size_kb)
            if told.startswith("not run"):
                break
    return row


def _tmpfs(stage: Stage, row: Row, size_kb: int) -> str:
    """The same on a real file system that is too small, then enlarged; what came of it."""
    home = stage.folder / f"small-{size_kb}"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(home)], capture_output=True)
    if mounted.returncode:
        return "not run: no right to mount"
    try:
        config, out, since = stage.world.write(home, stage.url), home / "out", stage.asked()
        first = start(config, out)
        code = first.wait()
        now, kept = time.monotonic(), stored(home / "cache")
        verdict = Verdict()
        if code not in CLEAN or "Traceback" in first.said():
            verdict += complaint(f"left with {code}: {first.said()[-300:]}")
        subprocess.run(["mount", "-o", "remount,size=32m", str(home)], check=True)
        codes = finish(out, config)
        if codes[-1]:
            verdict += complaint(f"then left with {codes}: {first.said()[-300:]}")
        else:
            verdict += stage.judged(out, stage.ledger(since), [judge.Fault(now, now, kept)])
        row.faults += 1
        row.verdict += verdict.of(f"tmpfs of {size_kb} KiB")
        return f"left with {code}, then {codes}"
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def two_drivers(terms: Terms) -> Row:
    """Two drivers at once on one folder: both new, both going on, and one while the first is held still."""
    row = Row("two drivers, one folder")
    kinds = ("new", "new", "resume", "resume", "stopped")
    world = replace(TINY, calls=60, sizes=(12, 4, 4))
    with staged(world, terms.folder, terms.seed, "fixed:0.3") as stage:
        codes = []
        for number in range(5 if terms.short else 50):
            verdict, found = _twins(stage, kinds[number % len(kinds)])
            row.faults += 1
            row.verdict += verdict
            codes.append(found)
        row.seen = {"exit_codes": codes[:5]}
    return row


def _twins(stage: Stage, kind: str) -> tuple[Verdict, str]:
    config, out = stage.place()
    since, faults = stage.asked(), []
    if kind == "resume":
        first = start(config, out)
        grown(out, 3, first)
        first.kill()
        now = time.monotonic()
        faults.append(judge.Fault(now, now, stored(config.parent / "cache"), stage.world.in_flight))

    def make(again: bool) -> Sitting:
        return resume(out) if again else start(config, out)

    one = make(kind == "resume")
    if kind == "stopped":
        grown(out, 3, one)
        one.signal(signal.SIGSTOP)
    other = make(kind != "new")
    if kind == "stopped":
        try:
            other.wait(60)
        finally:
            one.signal(signal.SIGCONT)
    codes = sorted((one.wait(), other.wait()))
    verdict = stage.judged(out, stage.ledger(since), faults)
    said = one.said()
    if codes[0] != 0 or codes[1] not in TAKEN or "Traceback" in said:
        verdict += complaint(f"left with {codes}, not one with 0 and the other with one of {TAKEN}: {said[-300:]}")
    return verdict.of(kind), f"{kind}: {codes}"


def bytes_damaged(terms: Terms) -> Row:
    """Every file of a finished and of an interrupted run cut and flipped, at every byte or evenly spread ones."""
    row = Row("truncation at every byte, bit flips")
    if not (Path(__file__).parent / "damage.py").exists():
        row.not_run = "scripts/damage.py, which cuts and flips the files of a run folder, is not there"
        return row
    sweep = importlib.import_module("damage").sweep
    with bred(terms) as (stage, nursery, _):
        # Killed once a trial was told, so that nothing lies there that had not been acknowledged and may be lost.
        told = Fault("kill", 12, call="evocluster.search.optimizer:Optimizer.tell", side="after")
        for what, fault in (("finished", None), ("interrupted", told)):
            config, out = stage.place()
            nursery.run(["run", str(config), "--out", str(out), "--json"], [config.parent], fault)
            found: dict[str, dict[str, int]] = sweep(out, flips=PLACES if terms.short else None)
            ends = sum(map(Counter, found.values()), Counter[str]())
            row.faults += ends.total()
            row.seen[what] = dict(ends)
            for name, each in found.items():
                if missed := {end: count for end, count in each.items() if "unnoticed" in end and count}:
                    row.verdict += complaint(f"{what}, {name}: {missed}")
    return row
