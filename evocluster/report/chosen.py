"""One configuration of a run: which one is meant, what it scored, and how often its answers had to be repaired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evocluster.errors import ConfigError, RunDamaged
from evocluster.report.figures import BEST_SPLIT
from evocluster.report.found import Found

SHORT = 8
"""Digits of an id that are shown, and enough to name a configuration."""


def chosen(result: Found, wanted: str, task: str | None = None) -> dict[str, Any]:
    """`genome` (its id), `genes`, `role`, `why` and `scores` (split -> objective -> interval) of a configuration.

    `wanted`: recommended, start, or an id or its beginning; `task`: scores on that one of several.
    Raises: errors.ConfigError, errors.RunDamaged.
    """
    if wanted == "recommended":
        member = result.recommended
        if member is None:
            raise ConfigError(
                f"{result.address!r} has no recommended configuration (status: {result.status}); finish it with "
                f"evocluster resume {result.address}, or name one: --genome start, or an id of genomes.jsonl"
            )
        return _told(result, member, task)
    if wanted == "start":
        if result.start is None:
            raise ConfigError(
                f"{result.address!r} has not measured its start yet (status: {result.status}); finish it with "
                f"evocluster resume {result.address}, or name a configuration of genomes.jsonl by its id"
            )
        return _told(result, result.start, task)
    return _told(result, _by_id(result, wanted), task)


def unchanged(result: Found, facts: Mapping[str, Any]) -> None:
    """Raises: errors.RunDamaged when the data is not what the run was made with: examples of it are in prompts."""
    was, now = result.run.get("data") or {}, facts["data"]
    for split in ("train", "test"):
        if split in was and was[split] != now[split]:
            raise RunDamaged(
                f"{result.address!r}: the {split} data changed since the run, so what it found would not leave as it "
                "was measured; put the files back that its config.yaml names"
            )


def repairs(result: Found, genome: str) -> dict[str, int]:
    """`evaluations` of a configuration in the trials table, how many were `repaired`, and how many `failed`."""
    from evocluster.store.table import scan  # pyarrow: only where it is needed

    rows = [
        row
        for chunk in scan(result.path / "trials")
        for row in chunk
        if row["kind"] == "evaluation" and row["genome_id"] == genome
    ]
    return {
        "evaluations": len(rows),
        "repaired": sum(row["repairs"] > 0 for row in rows),
        "failed": sum(row["error"] is not None for row in rows),
    }


def _told(result: Found, member: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    start = result.start is not None and member["genome"] == result.start["genome"]
    scored = member if task is None else (member.get("tasks") or {}).get(task) or {}
    return {
        "genome": member["genome"],
        "genes": member["genes"],
        "role": "recommended" if member.get("recommended") else "start" if start else "",
        "why": member.get("why") or "",
        "scores": {split: scored[split] for split in BEST_SPLIT if scored.get(split)},
    }


def _by_id(result: Found, wanted: str) -> Mapping[str, Any]:
    measured = [*result.members, *([result.start] if result.start else [])]
    known = {member["genome"]: member for member in [*_genomes(result), *measured]}
    found = [id for id in known if wanted and id.startswith(wanted)]
    if len(found) == 1:
        return known[found[0]]
    if found:
        among = ", ".join(found[:5])
        raise ConfigError(f"--genome {wanted!r} is the beginning of {len(found)} ids ({among}); write more of it")
    front = ", ".join(member["genome"][:SHORT] for member in result.members[:8])
    raise ConfigError(
        f"--genome {wanted!r} is none of the {len(known)} configurations of {result.address!r}; allowed: "
        f"recommended, start, or the beginning of an id" + (f"; on the front: {front}" if front else "")
    )


def _genomes(result: Found) -> list[dict[str, Any]]:
    """Every configuration that was tried, without scores."""
    path = result.path / "genomes.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({"genome": row["id"], "genes": row["genes"]})
        except (ValueError, KeyError, TypeError) as failure:
            raise RunDamaged(f"{path}:{number}: not a genome: {failure}; restore this file from a copy") from failure
    return rows
