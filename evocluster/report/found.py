"""A run folder as it is read: run.json, front.json, and the rows of its table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evocluster.errors import RunDamaged
from evocluster.store.files import read_json
from evocluster.store.sums import Sums, read_sealed

EXCERPT = 80
"""Characters of an answer that a message shows."""


class Found:
    """A run folder, finished or not. Raises: errors.RunDamaged when it holds no readable run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.address = str(self.path)
        """Where the run is: `path`, or the object storage of which `path` is a copy."""
        if not (self.path / "run.json").exists():
            raise RunDamaged(
                f"{str(self.path)!r} holds no run (no run.json in it); give the folder that `evocluster run` printed"
            )
        self.run: dict[str, Any] = read_sealed(self.path / "run.json")
        """run.json: status, seed, spend, calls, stop reason, hypervolume."""
        front = self.path / "front.json"
        if front.exists() and (sums := Sums.read(self.path)) is not None and front.name in sums:
            sums.check(front.name)
        self.front: dict[str, Any] = _mapping(front) if front.exists() else {}
        """front.json; empty before the search has a front."""

    @property
    def place(self) -> str:
        """Where the run is, from wherever it is looked at."""
        return self.address if self.address != str(self.path) else str(self.path.absolute())

    @property
    def status(self) -> str:
        """'running', 'finished', 'interrupted' or 'failed'."""
        return str(self.run.get("status"))

    @property
    def members(self) -> list[dict[str, Any]]:
        """The members of the front, the recommended one first."""
        members: list[dict[str, Any]] = self.front.get("members", [])
        return sorted(members, key=lambda member: not member["recommended"])

    @property
    def start(self) -> dict[str, Any] | None:
        """The user's starting configuration, measured like the members."""
        return self.front.get("start")

    @property
    def recommended(self) -> dict[str, Any] | None:
        """The recommended member."""
        return next((member for member in self.members if member["recommended"]), None)

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives, in the config's order."""
        return list(self.front.get("objectives", []))

    @property
    def barren(self) -> str | None:
        """What to look at when no configuration got anything right on train; None when one did."""
        train = [(member.get("train") or {}).get("quality") for member in (self.start, *self.members) if member]
        measured = [quality["value"] for quality in train if quality]
        if not measured or any(measured):
            return None
        return (
            f"No configuration got anything right on train{self._answer()}. Compare the outputs in trials/*.parquet "
            "with what is expected: do the labels or the scorers fit them, does the rubric name the labels ({labels}), "
            "is max_tokens enough, can the model do it at all?"
        )

    @property
    def frontless(self) -> str:
        """Why a finished run has no front: what it might take, what it took, and what the check would have taken."""
        why = str(self.run.get("stop_reason"))
        limit = (self.run.get("budget") or {}).get(why)
        said = f"the run ended by {why!r} before it had a front; raise `budget:`"
        if limit is not None:
            said += f" (budget.{why} is {limit:g}, of which {self.run[why]:.3g} were spent"
            said += f"; the check of the finalists takes about {self.run['kept_usd']:.2g} more" * (why == "usd")
            said += "), or lower search.finalists or the number of validation and test examples"
        return f"{said}; see {str(self.path / 'run.json')!r}"

    def _answer(self) -> str:
        """The first answer in the table, to be read; or why there is none to show."""
        from evocluster.store.table import scan  # pyarrow: only where it is needed

        try:
            rows = (row for chunk in scan(self.path / "trials") for row in chunk)
            row = next((row for row in rows if row["kind"] == "evaluation" and row["output"] is not None), None)
        except RunDamaged as failure:
            return f" ({failure})"
        return f"; {row['example_id']!r} was answered {row['output'][:EXCERPT]!r}" if row else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.status}, {len(self.members)} on the front)"


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunDamaged(
            f"{str(path)!r} holds a {type(found).__name__}, not a JSON object; put the file back from a copy, "
            "or start a new run with --out FOLDER"
        )
    return found


def rows(found: Found) -> Iterator[dict[str, Any]]:
    """Every evaluation of a run as it is stored, in the order it was kept. Raises: RunDamaged."""
    from evocluster.store.table import scan  # pyarrow: only where it is needed

    if (found.path / "trials").exists():
        for chunk in scan(found.path / "trials"):
            yield from (row for row in chunk if row["kind"] == "evaluation")
