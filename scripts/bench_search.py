"""How good a configuration every strategy of the search finds for the same number of LLM calls.

    python scripts/bench_search.py                 the embedded model on real tasks: 600 calls, 3 seeds; hours
    python scripts/bench_search.py --long          and 2,000 calls for those that matter most
    python scripts/bench_search.py --only trec:evolve:1     part of it; the table is of what is there
    python scripts/bench_search.py --landscape     recorded outcomes (tests/landscape): many seeds, about a minute
    python scripts/bench_search.py --short         seconds, no model: does all of this work?
    python scripts/bench_search.py --record trec   record a landscape (hours); --record FILE.jsonl only converts one
    python scripts/bench_search.py --long --kept --collect  nothing is run: the tables of all runs kept so far
    ... --json                                     the last line is one JSON object

The calls pay for everything a strategy decides with: train, validation, rewrites; cached answers count too. The bench
tests what is recommended afterwards, outside the budget. Runs are folders under --out: finished ones are skipped,
interrupted ones go on. Intervals of test quality are over seeds and examples, both resampled. The incumbent is the
configuration with the best mean on train less one deviation, as an onlooker believes who sees all trials, the same for
every strategy; at the end it is the recommended one. The gap is the quality reported (on validation, without the luck
of the choice) less that on test; `gap_points` of the line of JSON is the mean over tasks of the absolute value of each
task's mean gap over seeds. A folder that holds a run with other settings is never used. With --kept, what is kept in
scripts/bench_search.parquet (or the file given) counts as finished, and every run that finishes is kept there. The exit
status is 0 where no run failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import bench_landscape
import landscape
import numpy as np
import record_landscape
from bench_figures import Floats, alike, calls_ratio, calls_to_reach, crossed, figures, hypervolumes, mean, mean_curve
from bench_kept import Kept
from bench_picture import picture
from bench_runs import STRATEGIES, Case, Run, carry_out, read

from evocluster import config as configs
from evocluster.errors import ConfigError, EvoclusterError
from evocluster.search.objectives import Objective

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
LANDSCAPES = ROOT / "tests" / "landscape"
KEPT = ROOT / "scripts" / "bench_search.parquet"
TASKS = ("snips7", "trec", "sst2")
CALLS, LONG = 600, 2000
OURS = "evolve"
PAIR = (OURS, "generational")
LONGER = (*PAIR, "no-rewrite")
"""Strategies that `--long` gives more calls."""
LEGEND = """
Numbers: true quality of the incumbent after so many calls, of what is recommended at the end (mean, median). regret:
what the best of the grid has more. gap: reported (on validation) less test, in points. saved: of everybody on
everything; below 0 where known configurations were asked again. volume: hypervolume of the front, as a share of the
whole grid's. tried: configurations. Differences: in points after the same calls, with 95 % intervals over seeds.
gap_points, with --json: the mean over tasks of the absolute value of evolve's mean gap over seeds."""
NEAR = 0.9
"""The share of the best quality found that counts as there."""
Made = tuple[dict[str, object] | None, list[str]]
"""The watched line, None after a recording; and what failed, a text a run."""


def cases(given: argparse.Namespace) -> list[Case]:
    """Every run asked for, in order: all tasks and strategies of a seed before the next seed."""
    made = []
    for seed in range(1, given.seeds + 1):
        for task in given.tasks.split(","):
            sets = (*data_of(given.data, task), *laid_over(given))
            for strategy in given.strategies.split(","):
                budgets = [given.calls, *([LONG] if given.long and strategy in LONGER else [])]
                config = CONFIGS / "real" / f"{task}.yaml"
                made += [Case(given.out, config, task, strategy, seed, calls, sets) for calls in budgets]
    return made


def laid_over(given: argparse.Namespace) -> list[str]:
    """What of the command line is laid over every config."""
    return [*([f"objectives=[{given.objectives}]"] if given.objectives else []), *given.set]


def data_of(folder: Path, task: str) -> list[str]:
    """Where a task's data are, to be laid over its config."""
    return [f"task.data.{split}={(folder / task / split).absolute()}.jsonl" for split in landscape.SPLITS]


def known(option: str, value: object, right: bool, allowed: str) -> None:
    """Refuse a wrong value of an option; `allowed` says what is right, and the fix. Raises: ConfigError."""
    if not right:
        raise ConfigError(f"{option}: got {value!r}; allowed: {allowed}")


def checked(given: argparse.Namespace) -> None:
    """Look at what is given before anything is run. Raises: ConfigError for the first that cannot be meant."""
    for option, names, allowed in (("--tasks", given.tasks, TASKS), ("--strategies", given.strategies, STRATEGIES)):
        for name in names.split(","):
            known(option, name, name in allowed, f"{', '.join(allowed)}; separate several by commas")
    for option, count in (("--seeds", given.seeds), ("--calls", given.calls)):
        known(option, count, count >= 1, "1 or more; leave it out for the usual number")
    if given.landscape or given.short:
        right = any(name in bench_landscape.SELECTIONS for name in given.strategies.split(","))
        some = f"at least one of {', '.join(bench_landscape.SELECTIONS)}; a landscape has no model for others to ask"
        known("--strategies", given.strategies, right, some)
    elif given.record or not given.collect:
        home = f"a folder with one a task in it, such as {TASKS[0]}/train.jsonl; give the one that holds the data sets"
        known("--data", str(given.data), given.data.is_dir(), home)


def picked(todo: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases to be run. Raises: ConfigError for a text of `--only` that picks none of them."""
    parts = [dict.fromkeys(str(getattr(case, part)) for case in todo) for part in ("task", "strategy", "seed")]
    there = "; ".join(", ".join(part) for part in parts)
    for text in only:
        right = any(wanted(case, [text]) for case in todo)
        known("--only", text, right, f"TASK:STRATEGY:SEED of {there}; leave a part empty for all of them")
    return [case for case in todo if wanted(case, only)]


def wanted(case: Case, only: Sequence[str]) -> bool:
    """Whether a case is among those picked: TASK:STRATEGY:SEED, parts may be empty or missing."""
    own = (case.task, case.strategy, str(case.seed))
    asked = [text.split(":") for text in only]
    return not only or any(
        len(parts) <= len(own) and all(not part or part == mine for part, mine in zip(parts, own, strict=False))
        for parts in asked
    )


def by(runs: Sequence[Run], calls: int) -> dict[str, dict[str, list[Run]]]:
    """Task -> strategy -> runs; those with more calls than the usual stand by themselves, their calls in the name."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        name = run.strategy if run.calls == calls else f"{run.strategy} {run.calls}"
        found.setdefault(run.task, {}).setdefault(name, []).append(run)
    return found


def volumes(row: Mapping[str, Sequence[Run]], objectives: Sequence[Objective]) -> dict[str, float]:
    """Mean hypervolume of each strategy's fronts on validation, one reference for all fronts of the task."""
    fronts = {}
    for name, runs in row.items():
        for n, run in enumerate(runs):
            table = [[member.get(o.name, o.sign * np.inf) for o in objectives] for member in run.front]
            fronts[f"{name}/{n}"] = np.array(table).reshape(len(table), len(objectives))
    signs, ideal = np.array([o.sign for o in objectives]), np.array([o.ideal() for o in objectives])
    found = hypervolumes(fronts, signs, ideal)
    return {name: float(np.mean([found[f"{name}/{n}"] for n in range(len(runs))])) for name, runs in row.items()}


def show(task: str, row: Mapping[str, Sequence[Run]], objectives: Sequence[Objective]) -> None:
    """The table of one task."""
    some = next(iter(row.values()))[0]
    start = float(np.mean([*some.start.values()]))
    curves = {name: mean_curve([run.curve for run in runs], start) for name, runs in row.items()}
    best, volume = max(curve[-1][1] for curve in curves.values()), volumes(row, objectives)
    print(f"\n{task}: {len(some.tested)} test examples, the start answers {start:.3f}")
    print(f"  {'strategy':<18}{'seeds':>5}  {'test quality':<21}{'volume':>7}{'to 90%':>8}{'gap':>7}{'saved':>7}")
    for name, runs in row.items():
        value, low, high = crossed(outcomes(runs), np.random.default_rng(1))
        reached = calls_to_reach(curves[name], NEAR * best)
        gap, share = mean(run.gap for run in runs), mean(run.saved for run in runs)
        print(
            f"  {name:<18}{len(runs):>5}  {value:.3f} [{low:.3f} {high:.3f}]  {volume[name]:>7.3f}"
            + ("       -" if reached is None else f"{reached:>8}")
            + ("      -" if gap is None else f"{gap:>+7.1f}")
            + ("      -" if share is None else f"{100 * share:>6.0f}%")
        )
    differences(row)
    same = alike({name: [(run.seed, run.curve, run.tested) for run in runs] for name, runs in row.items()})
    if same:
        print(f"  the same search as another: {', '.join(same)}")


def differences(row: Mapping[str, Sequence[Run]]) -> None:
    """Ours less every other strategy after as many calls, on the same seeds and test examples, in points."""
    every = {(run.calls, run.seed): (name, run) for name, runs in row.items() for run in runs if run.strategy == OURS}
    for name, runs in row.items():
        shared = [run for run in runs if run.strategy != OURS and (run.calls, run.seed) in every]
        if shared:
            ours = [every[run.calls, run.seed] for run in shared]
            apart = outcomes([run for _, run in ours]) - outcomes(shared)
            value, low, high = crossed(100 * apart, np.random.default_rng(1))
            print(f"  {ours[0][0]} - {name}: {value:+.1f} points [{low:+.1f} {high:+.1f}], {len(shared)} seeds")
            if shared[0].strategy == "generational":
                print(f"  calls to the end of {name}, {ours[0][0]}: {reached([run for _, run in ours], shared)}")


def ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    """Calls of ours to where theirs end, over the calls theirs took to it; None: never."""
    return calls_ratio([run.curve for run in ours], [run.curve for run in theirs], 0.0, np.random.default_rng(1), 1)[0]


def reached(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    """For people: our calls to where theirs end, of all that theirs had, and over what theirs took to it."""
    curves = [mean_curve([run.curve for run in runs], 0.0) for runs in (ours, theirs)]
    calls, value = calls_to_reach(curves[0], curves[1][-1][1]), ratio(ours, theirs)
    if calls is None or value is None:
        return "never"
    return f"{calls} of {theirs[0].calls}, {value:.2f}x what it took"


def outcomes(runs: Sequence[Run]) -> Floats:
    """Quality of the recommended members, [seeds, examples of test]."""
    examples = sorted(runs[0].tested)
    return np.array([[run.tested[example] for example in examples] for run in runs])


def summed(runs: Sequence[Run], todo: Sequence[Case], calls: int) -> dict[str, object]:
    """The watched line: of the runs with the usual calls, and only where all seeds are there."""
    found, seeds = by(runs, calls), len({case.seed for case in todo})
    tasks, names = (list(dict.fromkeys(getattr(case, part) for case in todo)) for part in ("task", "strategy"))
    test: dict[str, dict[str, float | None]] = {}
    ratios, gaps, shares = [], [], []
    for task in tasks:
        row = {name: ones for name, ones in found.get(task, {}).items() if len(ones) == seeds}
        test[task] = {name: mean(run.quality for run in row.get(name, ())) for name in names}
        ours, theirs = row.get(OURS, []), row.get("generational", [])
        ratios.append(ratio(ours, theirs))
        gaps.append(mean(run.gap for run in ours))
        shares.append(mean(run.saved for run in ours))
    return figures(test, ratios, gaps, shares)


def carried_through(todo: Sequence[Case], kept: Kept | None = None) -> list[str]:
    """Carry out what is neither finished nor kept; what failed, and why."""

    def announced(case: Case) -> None:
        if kept is not None and not case.begun() and kept.read(case) is not None:
            return
        if not case.finished:
            print(f"{case.name} ...", flush=True)
        carry_out(case)
        if kept is not None and (run := read(case)) is not None:
            kept.keep(case, run)

    return each(announced, todo)[1]


def each(do: Callable[[Case], T], todo: Sequence[Case]) -> tuple[list[T], list[str]]:
    """What comes of the cases; and what failed, and why. One that fails does not stop the others."""
    made, failed = [], []
    for case in todo:
        try:
            made.append(do(case))
        except EvoclusterError as error:
            failed.append(f"failed: {case.name}: {error}")
    return made, failed


def real(given: argparse.Namespace, todo: Sequence[Case]) -> Made:
    """Carry out what is missing, then tables and picture of what is there. Raises: ConfigError."""
    some, kept = picked(todo, given.only), None if given.kept is None else Kept(given.kept)
    failed = [] if given.collect else carried_through(some, kept)
    there, unread = each(lambda case: read(case) or (None if kept is None else kept.read(case)), todo)
    failed = list(dict.fromkeys([*failed, *unread]))
    runs = [run for run in there if run is not None]
    found = by(runs, given.calls)
    for task, row in found.items():
        one = next(case for case in todo if case.task == task)
        show(task, row, configs.load(one.config, one.sets).objectives)
    aged = kept.aged(todo) if kept is not None else 0
    older = f"; {aged} of those kept were made with other code of the search than this" if aged else ""
    print("\n".join([f"\n{len(runs)} of {len(todo)} runs are there{older}", *failed]))
    if runs:
        panels = {
            task: {name: mean_curve([run.curve for run in ones], 0.0) for name, ones in row.items()}
            for task, row in found.items()
        }
        path = given.out / "curves.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(picture(panels, "LLM calls", "test quality of the incumbent"))
        print(f"curves: {path}")
    return summed(runs, todo, given.calls), failed


def recorded(given: argparse.Namespace, seeds: int) -> dict[str, object]:
    """The comparison on landscapes, with the settings of the real tasks."""
    asked = given.strategies.split(",")
    names = [name for name in asked if name in bench_landscape.SELECTIONS]
    found = {}
    for task in given.tasks.split(","):
        if not (LANDSCAPES / f"{task}.parquet").exists():
            print(f"\n{task}: not recorded")
            continue
        config = configs.load(CONFIGS / "real" / f"{task}.yaml", laid_over(given))
        where, wanted = landscape.read(LANDSCAPES / f"{task}.parquet"), config.objectives
        row = bench_landscape.compare(where, config.search, wanted, names, seeds, given.calls)
        bench_landscape.show(where, row, wanted, given.calls)
        found[task] = (where, row)
    left = [name for name in asked if name not in names]
    print(LEGEND)
    print("\nleft out, as a landscape has no model to ask: " + (", ".join(left) or "none"))
    return bench_landscape.figures(found)


def short(given: argparse.Namespace) -> Made:
    """Everything once, small: runs with the scripted model, and the landscapes."""
    sets = ("task.data.limit=24", "models.fake.latency_s=0", "space.cot=false", "search={population: 4, block: 8}")
    with tempfile.TemporaryDirectory(prefix="evocluster-bench-") as folder:
        given.out, given.calls, config = Path(folder), 400, CONFIGS / "scripted.yaml"
        todo = [Case(given.out, config, "scripted", name, 1, given.calls, sets) for name in PAIR]
        made = real(given, todo)
    given.tasks = TASKS[0]
    recorded(given, seeds=2)
    return made


def record(given: argparse.Namespace) -> None:
    """Record a task's landscape, or only convert what was recorded. Raises: errors.ConfigError."""
    path = Path(given.record)
    task = path.stem
    config, sets = CONFIGS / "real" / f"{task}.yaml", data_of(given.data, task)
    if path.suffix != ".jsonl":
        path = given.out / "landscape" / f"{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        record_landscape.record(config, path, given.label_names.split(","), sets)
    target = LANDSCAPES / f"{task}.parquet"
    count = record_landscape.convert(config, path, target, sets)
    print(f"{target}: {count} configurations, {target.stat().st_size / 1000:.0f} kB")


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="everything once, small: seconds")
    parser.add_argument("--long", action="store_true", help=f"{LONG} calls too, for {' and '.join(LONGER)}")
    parser.add_argument("--landscape", action="store_true", help="on recorded outcomes")
    parser.add_argument("--record", metavar="TASK", help="record a landscape, or convert TASK.jsonl")
    parser.add_argument("--label-names", default="as_is", help="with --record: ways of showing labels to record")
    parser.add_argument("--collect", action="store_true", help="run nothing, show what is there")
    parser.add_argument(
        "--kept",
        type=Path,
        nargs="?",
        const=KEPT,
        metavar="FILE",
        help="count what is kept there, and keep what is run",
    )
    parser.add_argument("--only", action="append", default=[], metavar="TASK:STRATEGY:SEED", help="run only these")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, help="how many: default 3, on landscapes 50")
    parser.add_argument("--calls", type=int, help=f"of a run: default {CALLS}, on landscapes 1000")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="laid over every config")
    parser.add_argument("--objectives", help="e.g. quality,cost: in place of the config's")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench_search")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def main(texts: Sequence[str] | None = None) -> None:
    """What the arguments ask for."""
    given = arguments().parse_args(texts)
    try:
        found, failed = carried_out(given)
    except EvoclusterError as error:
        sys.exit(f"bench_search: {error}")
    if given.json and found is not None:
        print(json.dumps(found))
    if failed:
        sys.exit(f"bench_search: runs failed: {len(failed)}, as said above; mend that and start again, others are kept")


def carried_out(given: argparse.Namespace) -> Made:
    """What is asked for. Raises: errors.EvoclusterError."""
    usual = 1000 if given.landscape or given.short else CALLS
    given.calls = usual if given.calls is None else given.calls
    given.seeds = (50 if given.landscape else 3) if given.seeds is None else given.seeds
    checked(given)
    if given.record:
        record(given)
        return None, []
    if given.short:
        return short(given)
    if given.landscape:
        return recorded(given, given.seeds), []
    return real(given, cases(given))


if __name__ == "__main__":
    main()
