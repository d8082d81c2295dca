"""One side of a comparison: a configuration of a run, chosen by a word, with its evaluations.

    side = choose(result, "start" | "recommended" | the first digits of an id)
    gather([side, ...]) -> for each its evaluations by split

It only reads, so the run may be going on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from evocluster.errors import ConfigError, RunDamaged
from evocluster.report.found import Found, rows

NAMED = 8
"""Ids that a message names at most."""

Item = tuple[str, int, int]
"""Example id, twin, replicate."""
Rows = dict[Item, dict[str, Any]]


class Side(NamedTuple):
    """A configuration of a run."""

    result: Found
    genome: str
    genes: Mapping[str, Any]
    role: str
    """'start', 'recommended', 'on the front' or ''."""

    def __str__(self) -> str:
        return f"genome {self.genome[:8]} of {self.result.address!r}"


def choose(result: Found, word: str) -> Side:
    """The configuration that a word names. Raises: ConfigError, RunDamaged."""
    genomes = dict(_genomes(result))
    if word == "start":
        return _side(result, genomes, _start(result, genomes))
    if word == "recommended":
        if result.recommended is None:
            raise ConfigError(
                f"{result.address!r} ({result.status}) has no front yet, so nothing in it is 'recommended'; "
                f"name a genome of it by the first digits of its id: {_some(list(genomes))}"
            )
        return _side(result, genomes, str(result.recommended["genome"]))
    found = [genome for genome in genomes if word and genome.startswith(word.lower())]
    if len(found) == 1 or word in found:
        return _side(result, genomes, word if word in found else found[0])
    if found:
        raise ConfigError(
            f"{word!r} is the beginning of {len(found)} genomes of {result.address!r}: {_some(found)}; give more digits"
        )
    near = get_close_matches(word, [genome[: len(word)] for genome in genomes], n=1)
    meant = next((genome for genome in genomes if near and genome.startswith(near[0])), None)
    raise ConfigError(
        f"{result.address!r} has no genome {word!r}; allowed: start, recommended, or the first digits of an id, "
        f"e.g. of its front: {_some([str(member['genome']) for member in result.members]) or 'none yet'}"
        + (f"; did you mean {meant[: max(8, len(word))]!r}?" if meant else "")
    )


def _some(genomes: Sequence[str]) -> str:
    more = f" and {len(genomes) - NAMED} more" if len(genomes) > NAMED else ""
    return ", ".join(genome[:8] for genome in genomes[:NAMED]) + more


def _genomes(result: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every genome made so far: id, and its genes; of the front too, should genomes.jsonl be lost."""
    path = result.path / "genomes.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line feed is empty, or being written
        try:
            row = json.loads(line)
            yield str(row["id"]), dict(row["genes"])
        except (ValueError, KeyError, TypeError) as failure:
            raise RunDamaged(f"{path}:{number}: not a genome: {failure}; restore this file from a copy") from failure
    for member in (result.start, *result.members):
        if member:
            yield str(member["genome"]), dict(member["genes"])


def _start(result: Found, genomes: Mapping[str, Any]) -> str:
    """The first starting configuration: of the front, else what was evaluated first."""
    if result.start is not None:
        return str(result.start["genome"])
    first = min(
        (row for row in rows(result) if row["purpose"] == "seed" and row["genome_id"] in genomes),
        key=lambda row: row["proposal"],
        default=None,
    )
    if first is None:
        raise ConfigError(f"{result.address!r} ({result.status}) has evaluated nothing yet; wait for it")
    return str(first["genome_id"])


def _side(result: Found, genomes: Mapping[str, dict[str, Any]], genome: str) -> Side:
    return Side(result, genome, genomes[genome], role(result, genome))


def role(result: Found, genome: str) -> str:
    """What this genome is in its run, in words."""
    roles = {str(member["genome"]): "on the front" for member in result.members}
    if result.recommended:
        roles[str(result.recommended["genome"])] = "recommended"
    if result.start:
        start = str(result.start["genome"])
        roles[start] = "start, recommended" if roles.get(start) == "recommended" else "start"
    return roles.get(genome, "")


def gather(sides: Sequence[Side]) -> list[dict[str, Rows]]:
    """For each side its evaluations by split; an item that was kept twice counts once, the first time.

    Each run is read once. Raises: RunDamaged.
    """
    found: list[dict[str, Rows]] = [{} for _ in sides]
    for path in dict.fromkeys(side.result.path for side in sides):
        here = [(side.genome, found[at]) for at, side in enumerate(sides) if side.result.path == path]
        result = next(side.result for side in sides if side.result.path == path)
        for row in rows(result):
            for genome, splits in here:
                if row["genome_id"] == genome:
                    item = (row["example_id"], row["twin"], row["replicate"])
                    splits.setdefault(row["split"], {}).setdefault(item, row)
    return found


def examples(result: Found, split: str) -> dict[str, dict[str, Any]]:
    """Input and expected of each example of a split by its id; empty in a folder that does not keep them."""
    path = result.path / "examples.jsonl"
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if row["split"] == split:
                found[str(row["id"])] = {"input": row["input"], "expected": row["expected"], "meta": row.get("meta")}
        except (ValueError, KeyError, TypeError) as failure:
            raise RunDamaged(f"{path}:{number}: not an example: {failure}; restore this file from a copy") from failure
    return found
