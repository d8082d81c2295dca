"""The run folder: self-describing, readable by pandas or DuckDB without evocluster.

    config.yaml        as resolved
    run.json           status, seed, versions, spend, calls, cache hits, stop reason, hypervolume
    genomes.jsonl      one line a genome: id, generation, parents, operator, genes
    trials/*.parquet   one row an evaluation (and one for what an operator itself spent)
    examples.jsonl     one line an example: split, id, input, expected, meta
    front.json         the front with intervals
    SHA256SUMS         digests of what is written once, and in the end of everything: sha256sum -c SHA256SUMS
    .lock, .lease/     held by the one writer: on its machine, and wherever the folder is shared

A trial is durable before it counts: its genome's line first, then its rows as one batch. Resume is replay. Every byte
that a resume depends on is under a digest: run.json and each line of genomes.jsonl hold their own, the table's tail
has receipts. What does not fit is refused. A folder of a version without digests gets them when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged, RunExists
from evocluster.records import Evaluation, Example, Genome, Item, Proposal, Score, Trial, Usage, canonical, digest
from evocluster.store import table as tables
from evocluster.store.files import append_lines, lock, read_text, refuse_links, unwritable, write_atomic
from evocluster.store.lease import Lease, holding
from evocluster.store.sums import SUMS, Sums, changed, read_sealed, sealed, unsealed
from evocluster.store.table import Table
from evocluster.telemetry import log

COLUMNS: Mapping[str, str] = {
    "proposal": "int64",
    "recipe": "string",
    "purpose": "string",
    "kind": "string",
    "genome_id": "string",
    "generation": "int64",
    "parents": "list<string>",
    "operator": "string",
    "example_id": "string",
    "split": "string",
    "twin": "int64",
    "replicate": "int64",
    "output": "string",
    "quality": "float64",
    "validator": "float64",
    "schema_ok": "bool",
    "scores": "string",
    "latency_ms": "float64",
    "seconds": "float64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "cost_usd": "float64",
    "paid_usd": "float64",
    "calls": "int64",
    "cached_calls": "int64",
    "repairs": "int64",
    "flags": "list<string>",
    "error": "string",
    "judge_calls": "int64",
    "judge_cached": "int64",
    "judge_prompt_tokens": "int64",
    "judge_completion_tokens": "int64",
    "judge_usd": "float64",
    "judge_paid_usd": "float64",
    "judge_seconds": "float64",
    "trace": "string",
    "spend": "string",
    "notes": "string",
}
"""Columns of trials/*.parquet. `kind` is 'evaluation', or 'operator' for what making the genome itself cost or why it
failed. `scores` is JSON {scorer: {"value", "reason"}}; cost_usd is at list price, paid_usd leaves cached calls out;
`seconds` is the latency again, to the last bit, for replay. judge_*: what scoring took. `trace` is a JSON list of
{purpose, prompt, reply}, null where steps are not recorded. `spend`, on the first row of a trial, is a JSON list of
what the whole trial took by model and purpose; `notes`, there too, is JSON of what the operator tells besides the
genome, and of what was `lost` (records.Trial). New columns come last: folders of earlier versions lack them."""


LIVE = ("run.json", "genomes.jsonl")
"""What changes while a run goes on: SHA256SUMS lists it once the folder is closed."""
CHANGELESS = ("data", "code", "rubrics", "documents")
"""What run.json knows the digests of, and a resume must find as it was."""


@dataclass
class Stored:
    """A trial as read back, without its proposal: that is asked for again and compared by `recipe`."""

    number: int
    recipe: str
    genome_id: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def recipe(proposal: Proposal) -> str:
    """16 hex digits naming everything a proposal says; equal after a resume, or the run is refused."""
    return digest(proposal.model_dump(mode="json"))[:16]


_ANSWERING = {
    "calls": "calls",
    "cached": "cached_calls",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "usd": "cost_usd",
    "paid_usd": "paid_usd",
    "seconds": "seconds",
}
_JUDGING = {name: f"judge_{name}" for name in _ANSWERING}
"""Field of a usage -> its column."""


def _usage_row(usage: Usage, columns: Mapping[str, str]) -> dict[str, Any]:
    said = usage.__dict__
    return {column: said[name] for name, column in columns.items()}


def _usage(row: Mapping[str, Any], columns: Mapping[str, str]) -> Usage:
    """What was written; nothing where the folder is of a version without these columns."""
    if row.get(columns["calls"]) is None:
        return Usage()
    return Usage(**{name: row[column] for name, column in columns.items()})


def _answering_row(usage: Usage) -> dict[str, Any]:
    return {"latency_ms": usage.seconds * 1000, **_usage_row(usage, _ANSWERING)}


def _spend(trial: Trial) -> str | None:
    """What a trial took by model and purpose, as JSON; None where nothing was called."""
    lines = [
        {"model": one.model, "purpose": one.purpose, **one.usage.model_dump(exclude={"seconds"})} for one in trial.spend
    ]
    return json.dumps(lines) if lines else None


def rows(trial: Trial) -> list[dict[str, Any]]:
    """The rows of one trial: the operator's (when it spent or failed), then one an evaluation."""
    proposal = trial.proposal
    common: dict[str, Any] = {
        "proposal": proposal.number,
        "recipe": recipe(proposal),
        "purpose": proposal.purpose,
        "genome_id": trial.genome.id if trial.genome else None,
        "generation": proposal.generation,
        "parents": [parent.id for parent in proposal.parents],
        "operator": proposal.operator,
    }
    made: list[dict[str, Any]] = []
    if trial.usage.calls or trial.error or not trial.evaluations:
        made.append({**common, "kind": "operator", **_answering_row(trial.usage), "flags": [], "error": trial.error})
    for evaluation in trial.evaluations:
        item = evaluation.item
        made.append(
            {
                **common,
                "kind": "evaluation",
                "example_id": item.example,
                "split": item.split,
                "twin": item.twin,
                "replicate": item.replicate,
                "output": evaluation.output,
                "quality": evaluation.quality,
                "validator": evaluation.validator,
                "schema_ok": evaluation.schema_ok,
                "scores": canonical(
                    {name: {"value": score.value, "reason": score.reason} for name, score in evaluation.scores.items()}
                ),
                **_answering_row(evaluation.usage),
                **_usage_row(evaluation.judging, _JUDGING),
                "trace": canonical(evaluation.trace) if evaluation.trace else None,
                "repairs": evaluation.repairs,
                "flags": list(evaluation.flags),
                "error": evaluation.error,
            }
        )
    made[0]["spend"] = _spend(trial)
    made[0]["notes"] = canonical(trial.notes) if trial.notes else None
    return made


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        item=Item(split=row["split"], example=row["example_id"], twin=row["twin"], replicate=row["replicate"]),
        output=row["output"],
        scores={name: Score(**score) for name, score in json.loads(row["scores"]).items()},
        quality=row["quality"],
        validator=row["validator"],
        schema_ok=row["schema_ok"],
        usage=_usage(row, _ANSWERING),
        repairs=row["repairs"],
        flags=tuple(row["flags"] or ()),
        error=row["error"],
        judging=_usage(row, _JUDGING),
        trace=json.loads(row["trace"]) if row.get("trace") else (),
    )


def _stored(batch: Sequence[Mapping[str, Any]]) -> Stored:
    first = batch[0]
    stored = Stored(number=first["proposal"], recipe=first["recipe"], genome_id=first["genome_id"])
    stored.notes = json.loads(first["notes"]) if first.get("notes") else {}
    for row in batch:
        if row["kind"] == "operator":
            stored.usage, stored.error = _usage(row, _ANSWERING), row["error"]
        else:
            stored.evaluations.append(_evaluation(row))
    return stored


class Folder:
    """One run on disk. Call order: create or open, replay, append and write, close."""

    def __init__(
        self, path: Path, table: Table, genomes: dict[str, Genome], sums: Sums, lease: Lease, held: ExitStack
    ) -> None:
        self.path = path
        self.address = str(path)
        """What `evocluster resume` takes to go on with it."""
        self._lease = lease
        self._held = held
        self._table = table
        self._genomes = genomes
        self._written = set(genomes)
        self._sums = sums

    @staticmethod
    def check_new(path: Path) -> None:
        """Raises: errors.RunExists when a run cannot start there."""
        if (path / "config.yaml").exists() or (path / "trials").exists():
            raise RunExists(
                f"{str(path)!r} already holds a run; go on with it: evocluster resume {path}; "
                "or start another: --out FOLDER"
            )
        left = [one.name for one in path.iterdir() if not _leftover(one.name)] if path.is_dir() else [path.name]
        if path.is_symlink() or (path.exists() and left):
            raise RunExists(
                f"{str(path)!r} is not an empty folder (a link is none) and holds no run; choose another: --out FOLDER"
            )

    @staticmethod
    def check_old(path: Path) -> None:
        """Raises: errors.RunDamaged when there is no run to go on with, or its config is not what was written."""
        if not (path / "config.yaml").exists():
            raise RunDamaged(f"{str(path)!r} holds no run: there is no config.yaml in it; give the folder of a run")
        if (sums := Sums.read(path)) is not None:
            sums.check("config.yaml")

    @staticmethod
    def check(path: Path) -> None:
        """Compare a folder that nobody writes with its digests. Raises: errors.RunDamaged."""
        if (sums := Sums.read(path)) is not None:
            # Both are written again where a crash came between their digest and themselves.
            gone = [name for name in ("examples.jsonl", "front.json") if not (path / name).exists()]
            sums.verify(name for name in sums if name not in gone and not name.startswith("trials/"))
        if (path / "trials").exists():
            tables.check(path / "trials")

    @classmethod
    def create(cls, path: Path, config: str) -> Folder:
        """A new run folder. Raises: errors.RunExists, errors.StoreError."""
        cls.check_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        with ExitStack() as stack:
            stack.enter_context(lock(path))
            lease = stack.enter_context(holding(path))
            sums = Sums(path)
            sums.write("config.yaml", config)
            table = Table.create(path / "trials", COLUMNS, sums=sums, guard=lease.check)
            return cls(path, table, {}, sums, lease, stack.pop_all())

    @classmethod
    def open(cls, path: Path) -> Folder:
        """A run folder to go on with. Raises: errors.RunDamaged when it cannot be read whole, errors.StoreError."""
        cls.check_old(path)
        refuse_links(path)
        with ExitStack() as stack:
            stack.enter_context(lock(path))
            lease = stack.enter_context(holding(path))
            cls.check(path)
            genomes, good = _read_genomes(path / "genomes.jsonl")
            if good is not None:
                log.warning("%s: a half-written line was cut off", path / "genomes.jsonl")
                write_atomic(path / "genomes.jsonl", good)
            sums = Sums.read(path) or _first_sums(path)
            sums.forget(LIVE)
            trials = path / "trials"
            if trials.exists():
                table = Table.open(trials, COLUMNS, sums=sums, guard=lease.check, fresh=lease.doubtful)
            else:
                table = Table.create(trials, COLUMNS, sums=sums, guard=lease.check)
            return cls(path, table, genomes, sums, lease, stack.pop_all())

    async def apart(self, write: Callable[[], None]) -> None:
        """Take a step of writing; where that is slow, others go on meanwhile. Raises: what it raises."""
        write()

    def append_many(self, trials: Sequence[Trial]) -> None:
        """Keep trials in this order, all or none; they are on disk when this returns.

        Raises: errors.StoreError; errors.RunHeld when another process took the folder over.
        """
        self._lease.check()
        lines = self._new_lines(trials)
        if lines:
            append_lines(self.path / "genomes.jsonl", list(lines.values()))
            self._written.update(lines)
        self._table.append([row for trial in trials for row in rows(trial)])

    def _new_lines(self, trials: Sequence[Trial]) -> dict[str, str]:
        """Id -> line of each genome that is not in genomes.jsonl yet."""
        lines: dict[str, str] = {}
        for trial in trials:
            if trial.genome is not None and trial.genome.id not in self._written:
                lines.setdefault(trial.genome.id, _genome_line(trial.genome, trial.proposal))
        return lines

    def append(self, trial: Trial) -> None:
        """Keep one trial. Raises: errors.StoreError."""
        self.append_many([trial])

    def keep_examples(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Write what is evaluated, once, so that the folder can be read by itself. Raises: errors.StoreError."""
        path = self.path / "examples.jsonl"
        if not path.exists():
            lines = [
                json.dumps({"split": split, **example.model_dump(mode="json")}, ensure_ascii=False)
                for split, examples in splits.items()
                for example in examples
            ]
            self._sums.write("examples.jsonl", "".join(f"{line}\n" for line in lines))

    def unchanged(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """run.json as it is. Raises: errors.RunDamaged when what scores depend on is not what the run began with."""
        earlier = self.read("run.json")
        for kind in CHANGELESS:
            was, now = earlier.get(kind) or {}, facts.get(kind) or {}
            changed = sorted(name for name in was if name in now and was[name] != now[name])
            if changed:
                raise RunDamaged(
                    f"{str(self.path)!r}: {kind} {changed[0]!r} changed since the run began, so its scores would no "
                    "longer compare; put it back, or start a new run (`warm_start:` begins it with this one's front)"
                )
        return earlier

    def replay(self) -> Iterator[Stored]:
        """Every kept trial, in the order they were kept; streaming."""
        rows_in_order = (row for chunk in self._table.read() for row in chunk)
        for _, batch in groupby(rows_in_order, key=lambda row: row["proposal"]):
            yield _stored(list(batch))
        self._genomes = {}

    @property
    def checked(self) -> bool:
        """Whether an evaluation on validation or test is kept: the search was over by then."""
        return any(row["split"] in ("validation", "test") for chunk in self._table.read() for row in chunk)

    def reconfigure(self, config: str) -> None:
        """Replace config.yaml in one step. Raises: errors.StoreError."""
        self._lease.check()
        self._sums.write("config.yaml", config)

    def genome(self, genome_id: str) -> Genome:
        """The genome of a kept trial, while `replay` goes on. Raises: errors.RunDamaged."""
        if genome_id not in self._genomes:
            raise changed(self.path / "genomes.jsonl", f"it lacks genome {genome_id!r}, which a trial names")
        return self._genomes[genome_id]

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Replace a JSON file of the folder in one step. Raises: errors.StoreError."""
        self._lease.check()
        if name in LIVE:
            write_atomic(self.path / name, sealed(value, indent=1, ensure_ascii=False) + "\n")
        else:
            self._sums.write(name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder that holds its own digest. Raises: errors.RunDamaged."""
        return read_sealed(self.path / name)

    def seal(self) -> None:
        """Make the table Parquet only; nothing can be appended after it. Raises: errors.StoreError, errors.RunHeld."""
        self._lease.check()
        self._table.close()

    def close(self) -> None:
        """Seal the table, list the digest of every file, and let the folder go. Raises: errors.StoreError."""
        with self._held:
            try:
                self.seal()
                self._sums.finish(LIVE)
            finally:
                self._table.leave()


def _leftover(name: str) -> bool:
    return name in (".lock", ".lease", SUMS) or (name.startswith(".") and name.endswith(".tmp"))


def _genome_line(genome: Genome, proposal: Proposal) -> str:
    line = {
        "id": genome.id,
        "generation": proposal.generation,
        "parents": [parent.id for parent in proposal.parents],
        "operator": proposal.operator,
        "genes": genome.genes,
    }
    return sealed(line, sort_keys=True)


def _first_sums(path: Path) -> Sums:
    """Give a folder of an earlier version its digests, the list last. Raises: errors.StoreError."""
    if (path / "run.json").exists():
        write_atomic(path / "run.json", sealed(read_sealed(path / "run.json"), indent=1, ensure_ascii=False) + "\n")
    if (path / "genomes.jsonl").exists():
        lines = read_text(path / "genomes.jsonl").splitlines()
        again = (sealed(unsealed(line, required=False), sort_keys=True) for line in lines)
        write_atomic(path / "genomes.jsonl", "".join(f"{line}\n" for line in again))
    sums = Sums(path)
    parts = (str(part.relative_to(path)) for part in sorted((path / "trials").glob("part-*.parquet")))
    sums.finish(["config.yaml", "examples.jsonl", *parts])
    return sums


def _read_genomes(path: Path) -> tuple[dict[str, Genome], str | None]:
    """Genomes by id, and the text to keep when the last line was torn by a crash (its trial cannot have been kept)."""
    if not path.exists():
        return {}, None
    text, required = path.read_text(encoding="utf-8", errors="replace"), (path.parent / SUMS).exists()
    whole, _, torn = text.rpartition("\n")
    genomes: dict[str, Genome] = {}
    for number, line in enumerate(whole.split("\n") if whole else (), 1):
        try:
            row = unsealed(line, required=required)
            genome = Genome(genes=row["genes"])
        except (ValueError, KeyError, TypeError) as failure:
            raise RunDamaged(f"{path}:{number}: not a genome: {failure}; restore this file from a copy") from failure
        if genome.id != row["id"]:
            raise RunDamaged(
                f"{path}:{number}: genome {row['id']!r} does not match its genes (they name {genome.id!r})"
            )
        genomes[genome.id] = genome
    return genomes, (whole + "\n" if whole else "") if torn else None
