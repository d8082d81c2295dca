"""A run folder as the facts its page shows: one JSON-able dict, whatever state the run is in.

`facts` streams the table of trials for the sums of every genome and keeps whole rows of start and winner alone; a
second time only where front.json does not say yet who they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged
from evocluster.report import caveats, columns
from evocluster.report.aims import Aim, Ruler, aims, finite, setting, weights
from evocluster.report.board import GIVEN, Board, Bred, read_lines, trials
from evocluster.report.curves import Curves, operators
from evocluster.report.failures import failures
from evocluster.report.figures import best_split
from evocluster.report.found import Found
from evocluster.report.honest import honest_line
from evocluster.report.limits import limits
from evocluster.report.lineage import lineage
from evocluster.report.pairs import items, pairs
from evocluster.report.spend import Spend
from evocluster.report.texts import Texts

USUAL = ("quality", "latency_ms", "cost_usd", "robustness")
CONFIG_CHARS = 200_000
Row = dict[str, Any]


def facts(path: str | Path) -> dict[str, Any]:
    """Everything the page shows. Raises: errors.RunDamaged."""
    result = Found(path)
    config = _config(result.path)
    ruler = Ruler(aims(config, _names(result)), weights(config))
    given = {str(member["genome"]): str(member["operator"]) for member in (result.start, *result.members) if member}
    objectives = tuple(aim for aim in ruler.aims if aim.name in _objectives(result))
    board, spend = Board(result.path, ruler, given), Spend()
    curves = Curves(board, objectives, result.run, setting(config, "search", "population"))
    rows = _Rows(_known(result))
    for trial in trials(result.path):
        one = board.add(trial)
        spend.add(trial, one)
        curves.add(trial, one)
        rows.add(trial)
    start, winner = _start(board, result), _winner(board, result)
    texts = Texts()
    chosen, found = result.recommended, caveats.against_start(result)
    members = {str(member["genome"]): member for member in result.members}
    kept = [*members, *(one.id for one in (start, winner) if one)]
    table = columns.columns(board, texts, kept)
    both = [one for one in (start, winner) if one]
    whole = rows.of(result.path, [one.id for one in both])
    examples = _examples(result.path, whole, both)
    right = ruler.composite["accuracy"]
    mine = whole[winner.id] if winner else []
    return {
        "run": _run(result),
        "objectives": [aim.name for aim in objectives],
        "aims": [_aim(aim) for aim in ruler.aims],
        "constraints": limits(result),
        "caveats": caveats.caveats(
            result, found, board.errors, board.evaluations, (result.path / "examples.jsonl").exists()
        ),
        "tested": caveats.tested(found),
        "honest": honest_line(result),
        "start": columns.member(result.start, board) or _bare(start),
        "winner": columns.member(chosen, board) or _bare(winner),
        "split": best_split(chosen or (result.start or {})),
        "members": [shown for member in result.members if (shown := columns.member(member, board))],
        "genomes": table,
        "demos": _demos(examples, both, texts),
        "curves": curves.facts(),
        "operators": operators(board, result.run, members),
        "lineage": lineage(board, winner) if winner else None,
        "pairs": pairs(whole[start.id], mine, examples, texts, right)
        if start and winner and start is not winner
        else None,
        "failures": failures(mine, examples, texts, right),
        "spend": spend.facts(),
        "right": right,
        "config": config[:CONFIG_CHARS],
        "texts": texts.column(),
    }


def _config(path: Path) -> str:
    """config.yaml as text; empty when there is none."""
    try:
        return (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as failure:
        raise RunDamaged(f"{str(path / 'config.yaml')!r} cannot be read: {failure.strerror or failure}") from failure


def _objectives(result: Found) -> list[str]:
    return result.objectives or list(result.run.get("objectives") or USUAL)


def _names(result: Found) -> list[str]:
    """Objectives first, then the usual four, then whatever else the front was measured at."""
    measured = [name for member in (result.start, *result.members) if member for name in member.get("train") or ()]
    return list(dict.fromkeys([*_objectives(result), *USUAL, *measured]))


def _aim(aim: Aim) -> dict[str, str]:
    return {"name": aim.name, "source": aim.source, "direction": aim.direction, "aggregate": aim.aggregate}


def _start(board: Board, result: Found) -> Bred | None:
    """The start of front.json; before there is one, the first genome that was given."""
    if result.start is not None:
        return board.genomes.get(str(result.start["genome"]))
    return next((one for one in board.genomes.values() if one.operator in GIVEN), None)


def _winner(board: Board, result: Found) -> Bred | None:
    """The recommended one; before there is one, the best mean quality on train less one standard error."""
    if result.recommended is not None:
        return board.genomes.get(str(result.recommended["genome"]))

    def careful(one: Bred) -> float:
        values = list(one.tallies["train"].by_example.values())
        n, mean = len(values), sum(values) / max(1, len(values))
        return float(mean - ((mean * (1 - mean) * n + 0.25) / (n + 1) / n) ** 0.5) if n else -1.0

    tried = [one for one in board.genomes.values() if "train" in one.tallies]
    return max(tried, key=careful, default=None)


def _bare(one: Bred | None) -> dict[str, Any] | None:
    """A member that front.json does not hold: only its place on the board."""
    if one is None:
        return None
    bare: dict[str, Any] = {"splits": {}, "gap": {}, "tasks": {}}
    return {"genome": one.number, "recommended": False, "why": "", "feasible": True, **bare}


def _known(result: Found) -> set[str]:
    """Ids of start and recommended member, as far as front.json names them."""
    return {str(member["genome"]) for member in (result.start, result.recommended) if member}


class _Rows:
    """All evaluations of the few genomes whose rows are kept whole."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._kept: dict[str, list[Row]] = {id: [] for id in wanted}

    def add(self, trial: list[Row]) -> None:
        """Keep the trial's rows when its genome is wanted."""
        if trial[0]["genome_id"] in self._kept:
            self._kept[trial[0]["genome_id"]] += [row for row in trial if row["kind"] == "evaluation"]

    def of(self, path: Path, ids: Iterable[str]) -> dict[str, list[Row]]:
        """Id -> rows, each item once; what was not kept in passing is read again."""
        missing = _Rows(set(ids) - self._kept.keys())
        if missing._kept:
            for trial in trials(path):
                missing.add(trial)
        everything = {**self._kept, **missing._kept}
        return {id: list(items(everything[id]).values()) for id in ids}


def _examples(path: Path, rows: Mapping[str, list[Row]], ones: Iterable[Bred]) -> dict[tuple[str, str], Row]:
    """(Split, id) -> the example, of those that rows or demos name; empty where the folder holds none."""
    wanted = {(row["split"], row["example_id"]) for found in rows.values() for row in found}
    wanted |= {("train", str(demo)) for one in ones for demo in _listed(one)}
    return {
        key: row
        for _, row in read_lines(path / "examples.jsonl")
        if (key := (str(row.get("split")), str(row.get("id")))) in wanted
    }


def _listed(one: Bred) -> list[Any]:
    demos = one.genes.get("demos")
    return list(demos) if isinstance(demos, list | tuple) else []


def _demos(examples: Mapping[tuple[str, str], Row], ones: Iterable[Bred], texts: Texts) -> list[list[int]]:
    """[id, input, expected] of every demo of these genomes whose text is known."""
    named = dict.fromkeys(str(demo) for one in ones for demo in _listed(one))
    known = ((demo, examples.get(("train", demo))) for demo in named)
    return [[texts.add(part) for part in (demo, one.get("input"), one.get("expected"))] for demo, one in known if one]


def _run(result: Found) -> dict[str, Any]:
    run = result.run
    plain = ("seed", "versions", "models", "examples", "data", "started_at", "phase", "generation", "evaluations")
    spent = ("calls", "cached", "budget", "stop_reason")
    return {
        "name": str(run.get("name") or result.path.resolve().name),
        "folder": result.path.resolve().name,
        "status": result.status,
        **{name: run.get(name) for name in (*plain, *spent)},
        **{name: finite(run.get(name)) for name in ("usd", "paid_usd", "elapsed_s")},
        "ended_by": caveats.stop_reason(result),
        "code": _code(run),
    }


def _code(run: Mapping[str, Any]) -> dict[str, str]:
    """The user's Python that ran: what the config calls it and its file -> its digest, and by whose leave."""
    files, leave = run.get("code_files") or {}, ", with --allow-code" if run.get("allow_code") else ""
    return {
        name + f" ({files[name]})" * (name in files and not name.startswith(f"{files[name]}:")): f"{sha[:16]}{leave}"
        for name, sha in (run.get("code") or {}).items()
    }
