"""Damage every file of a run folder in every way and see whether that is noticed: python scripts/damage.py FOLDER.

Each file is cut at every byte and gets a bit flipped in every byte (which bit: the byte's place modulo 8), one damage
at a time, on a copy. Then the run is opened and replayed as `evocluster resume` does it. Each damage must be refused
(errors.RunDamaged), or be what a crash leaves and come to the same replay. Prints one line a file, and ends with 1
where anything went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from evocluster.engine.folder import Folder
from evocluster.errors import RunDamaged
from evocluster.records import digest
from evocluster.report.found import Found

WAYS = ("cut", "flip")
ENDS = ("refused", "same", "unnoticed")
"""What became of a damage; `same`: recovered to the same replay."""
OURS = ("config.yaml", "run.json", "front.json", "genomes.jsonl", "examples.jsonl", "SHA256SUMS", "trials/*")


def replayed(path: Path) -> str:
    """A digest of everything that a resume would go on from. Raises: errors.RunDamaged."""
    told = [(path / "config.yaml").read_text(encoding="utf-8", errors="replace")]
    folder = Folder.open(path)
    try:
        told.append(json.dumps(folder.read("run.json")) if (path / "run.json").exists() else "")
        for stored in folder.replay():
            genome = folder.genome(stored.genome_id).id if stored.genome_id else ""
            told.append(f"{stored!r} {genome}")
        told.append((path / "examples.jsonl").read_text(encoding="utf-8", errors="replace"))
    finally:
        folder.close()
    found = Found(path) if (path / "run.json").exists() else None
    return digest([*told, found.front if found else {}])


def sweep(folder: Path, flips: int | None = None) -> dict[str, dict[str, int]]:
    """File -> how many damages ended how, as 'cut refused', 'flip same' and so on.

    `flips`: at most so many cuts and so many flips a file, evenly spread; None: every byte.
    """
    with tempfile.TemporaryDirectory(dir=memory()) as name, _quiet():
        whole = Path(name) / "whole"
        shutil.copytree(folder, whole, ignore=shutil.ignore_patterns(".lock"))
        kept = {path: path.read_bytes() for pattern in OURS for path in sorted(whole.glob(pattern))}
        calm = replayed(whole)
        counts = {}
        for path in kept:
            found: Counter[str] = Counter({f"{way} {end}": 0 for way in WAYS for end in ENDS})
            for way, content in _damages(kept[path], flips):
                _restore(whole, kept)
                path.write_bytes(content)
                found[f"{way} {_end(whole, calm)}"] += 1
            counts[str(path.relative_to(whole))] = dict(found)
    return counts


def memory() -> Path | None:
    """A folder in memory, where there is one: what is written a hundred thousand times need not reach a disk."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else None


def _damages(content: bytes, most: int | None) -> Iterator[tuple[str, bytes]]:
    step = max(1, -(-len(content) // most)) if most else 1
    last = max(0, len(content) - 1)
    places = sorted({*range(0, len(content), step), last}) if content else []
    for place in places:
        yield "cut", content[:place]
        yield "flip", content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


def _restore(folder: Path, kept: dict[Path, bytes]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def _end(folder: Path, calm: str) -> str:
    try:
        return "same" if replayed(folder) == calm else "unnoticed"
    except RunDamaged:
        return "refused"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without waiting for the disk, and without a log line for each damage."""
    logger = logging.getLogger("evocluster")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with patch.object(os, "fsync", lambda handle: None):
            yield
    finally:
        logger.setLevel(level)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a run folder; it stays as it is")
    parser.add_argument("--flips", type=int, help="at most so many cuts and flips a file (default: every byte)")
    args = parser.parse_args()
    counts = sweep(args.folder, args.flips)
    total: Counter[str] = Counter()
    for name, found in counts.items():
        print(f"{name:<32}" + "  ".join(f"{what} {count}" for what, count in found.items()))
        total.update(found)
    print(f"{'total':<32}" + "  ".join(f"{what} {count}" for what, count in total.items()))
    return int(any(total[f"{way} unnoticed"] for way in WAYS))


if __name__ == "__main__":
    sys.exit(main())
