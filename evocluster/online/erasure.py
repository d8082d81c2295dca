"""Deletion of a user: what they asked and were told goes, and so does what was made of it.

    tombstone -> requests -> journals -> snapshots, what serves, experiments -> evolutions -> findings -> traffic

Requests are what names a user's part in anything: notes of the memory and examples of prompts carry theirs as sources.
Traffic is deleted last, so that a kill on the way leaves enough to find the rest by, when it is done again. Snapshots
that hold something of the user are unreadable from then on; where one serves, the same without it takes its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evocluster.errors import ConfigError, LedgerConflict
from evocluster.online import memory
from evocluster.online.actuator import AGAIN, labelled, over, rows_of
from evocluster.online.journal import END, Journal
from evocluster.online.ledger import Pointer, Row, load, pointer
from evocluster.records import Example
from evocluster.release.lifecycle import SERVING, Outcome, restored
from evocluster.release.snapshot import Layer, Note, Prompt, Snapshot
from evocluster.store import query, sealed
from evocluster.store.files import write_atomic
from evocluster.store.ledger import Ledger

WHY = "without the data of a deleted user"
_TIMES = ("live_at", "paired_at", "weighed_at")
"""Of what an experiment noted on its way, all that is no text."""
EXAMPLES, CACHE = "-examples", "-cache"
"""Folders beside the run of an evolution, by the end of their names."""


class Erased(NamedTuple):
    """What was deleted, or changed because of it."""

    requests: int
    snapshots: tuple[str, ...]
    """That cannot be read any more."""
    moved: tuple[str, ...]
    """Deployments that serve something else since."""
    experiments: tuple[str, ...]
    """That were called off."""
    evolutions: tuple[str, ...]
    journals: int
    """Files of records that a gateway has in hand now: it drops those of the user as it reads them back."""


class _Made(NamedTuple):
    """What holds something of the user."""

    layers: frozenset[str]
    """Names of layers."""
    clean: dict[str, Snapshot]
    """Snapshot that holds one of them -> the same without it."""


def erase(ledger: Ledger, home: Path, deployment: str, user: str, now: float, *, actor: str) -> Erased:
    """Delete everything of a user's hash; told again after a kill, the rest. Raises: StoreError, ConfigError; RunHeld:
    traffic is being sealed now.
    """
    folder = home / "traffic"
    ledger.put("tombstones", {"deployment": deployment, "user": user, "at": now})
    gone = set(sealed.requests_of(ledger, folder, deployment, user))
    held = _journals(home / "journal" / deployment, user, gone)
    runs = _evolutions(home / "evolutions" / deployment, gone)
    made = _made(ledger, gone)
    names = sorted(row["name"] for row in ledger.find("deployments"))
    moved, ended = _moved(ledger, names, made, runs, actor, now)
    _scrub(ledger, made, gone)
    # Once more: what somebody pointed at one of them until it could not be read any more.
    late, more = _moved(ledger, names, made, runs, actor, now)
    for run in runs:
        _remove(home / "evolutions" / deployment, run)
    (home / "intents" / f"{deployment}.npz").unlink(missing_ok=True)
    _findings(ledger, folder, deployment, gone)
    _episodes(ledger, folder, deployment, gone)
    sealed.erase(ledger, folder, deployment, user, now)
    ledger.compact()
    both = tuple(dict.fromkeys([*moved, *late]))
    return Erased(len(gone), tuple(sorted(made.clean)), both, (*ended, *more), tuple(runs), held)


# ---------------------------------------------------------------- snapshots


def _made(ledger: Ledger, gone: Collection[str]) -> _Made:
    """Every snapshot with a note or an example from these requests, whichever deployment has it."""
    layers = set()
    for row in ledger.find("layers", {"kind": ("in", ["prompt", "memory"]), "erased": False}):
        if gone and any(text in gone for text in _texts(row["body"])):
            layers.add(row["hash"])
    clean = {}
    for row in ledger.find("snapshots"):
        if layers.intersection((row["prompt"], row["memory"])):
            try:
                found = load(ledger, row["id"])
            except ConfigError:  # another layer of it was erased before
                continue
            clean[row["id"]] = cleaned(found, gone)
    return _Made(frozenset(layers), clean)


def cleaned(snapshot: Snapshot, gone: Collection[str]) -> Snapshot:
    """The same without what came from these requests."""
    prompt = snapshot.prompt
    out = {each.id for each in prompt.examples if _of(each, gone)}
    if out:
        genes = dict(prompt.genes)
        if "demos" in genes:
            genes["demos"] = tuple(id for id in genes["demos"] if id not in out)
        prompt = Prompt(genes=genes, examples=tuple(each for each in prompt.examples if each.id not in out))
    notes: tuple[Note, ...] = memory.forget(snapshot.memory, gone).notes
    return snapshot.changed(prompt=prompt, memory=notes)


def _of(example: Example, gone: Collection[str]) -> bool:
    return str(example.meta.get("source") or example.id) in gone or example.id in gone


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _scrub(ledger: Ledger, made: _Made, gone: Collection[str]) -> None:
    """Nobody reads these layers any more, nor what was written about them."""
    for row in ledger.find("snapshots"):
        told = row["origin"] or {}
        if {"changes", "problems"} & set(told) and (row["id"] in made.clean or any(t in gone for t in _texts(told))):
            kept = {name: value for name, value in told.items() if name not in ("changes", "problems")}
            ledger.patch("snapshots", {"id": row["id"]}, origin=kept)
    for id in made.clean:
        ledger.change("barred", {"snapshot": id}, text="")
        for row in ledger.find("experiments", {"candidate": id}):
            noted = {name: value for name, value in row["work"].items() if name in _TIMES}
            ledger.patch("experiments", {"id": row["id"]}, work=noted)
    for hash in sorted(made.layers):  # the last: by them the rest is found
        ledger.patch("layers", {"hash": hash}, body=None, erased=True)


# ---------------------------------------------------------------- what serves


def _moved(
    ledger: Ledger, names: Collection[str], made: _Made, runs: Collection[str], actor: str, now: float
) -> tuple[list[str], list[str]]:
    """(deployments that serve something else now, experiments that were called off)."""
    moved, ended = [], []
    for name in names:
        for _ in range(AGAIN):
            at = pointer(ledger, name)
            over_now, changed = _experiments(ledger, name, made, runs, now)
            target, state = _routing(at, over_now, made)
            if not over_now and not changed and (target, state) == (at.snapshot, at.state):
                break
            also = [("experiments", row) for row in (*over_now, *changed)]
            named = _named(target, state)
            for old, new in made.clean.items():
                if new.id in named:
                    also += rows_of(ledger, new, old, {"erased": old}, now)
                if new.id == target != at.snapshot:
                    also += labelled(ledger, name, new.id, _layers(ledger, old, new), WHY, now)
            told = {"text": WHY, "experiments": [row["id"] for row in over_now]}
            audit = {"at": now, "actor": actor, "action": "erase", "why": told}
            try:
                ledger.move(name, at.epoch, audit=audit, snapshot=target, state=state, also=also)
            except LedgerConflict:
                continue
            moved += [name] if (target, state) != (at.snapshot, at.state) else []
            ended += [row["id"] for row in over_now]
            break
        else:
            raise LedgerConflict(f"deployment {name!r} changed {AGAIN} times meanwhile; erase again")
    return moved, ended


def _experiments(
    ledger: Ledger, name: str, made: _Made, runs: Collection[str], now: float
) -> tuple[list[Row], list[Row]]:
    """(those that end, those that go on against what takes the place of their baseline)."""
    ended, changed = [], []
    for row in ledger.find("experiments", {"deployment": name, "stage": ("!=", "done")}, order="started_at,id"):
        if row["candidate"] in made.clean or row["id"] in runs:
            outcome: Outcome = "rolled_back" if row["stage"] in SERVING else "rejected"
            ended.append(over({**row, "baseline": _after(row["baseline"], made)}, outcome, WHY, now))
        elif row["baseline"] in made.clean:
            changed.append({**row, "baseline": _after(row["baseline"], made)})
    return ended, changed


def _after(id: str, made: _Made) -> str:
    return made.clean[id].id if id in made.clean else id


def _routing(at: Pointer, ended: Collection[Row], made: _Made) -> tuple[str, Row]:
    """What is to serve: the same without the user's part; of an experiment that ends, its baseline."""
    for row in ended:
        if row["id"] == at.state.get("experiment"):
            return row["baseline"], restored(row["baseline"]).state
    state = dict(at.state)
    if not _named(at.snapshot, state) & set(made.clean):
        return at.snapshot, at.state
    arms = {_after(id, made): weight for id, weight in (state.get("arms") or {}).items()}
    state |= {"arms": arms, "eligible": sorted(_after(id, made) for id in state.get("eligible") or ())}
    state |= {name: _after(state.get(name) or "", made) for name in ("holdout", "stable")}
    return _after(at.snapshot, made), state


def _named(incumbent: str, state: Row) -> set[str]:
    """The snapshots that a routing speaks of."""
    said = [*(state.get("arms") or ()), *(state.get("eligible") or ()), state.get("holdout"), state.get("stable")]
    return {incumbent, *filter(None, said)}


def _layers(ledger: Ledger, old: str, new: Snapshot) -> str:
    before = ledger.first("snapshots", {"id": old}) or {}
    both: tuple[Layer, ...] = ("prompt", "memory")
    return ", ".join(layer for layer in both if before.get(layer) != new.layers[layer])


# ---------------------------------------------------------------- files, findings, episodes


def _journals(folder: Path, user: str, gone: set[str]) -> int:
    """Take the user's records out of files that wait to be read back; how many others have in hand. Adds to `gone`."""
    if not folder.is_dir():
        return 0
    journal, done = Journal(folder, str), set[str]()
    while (name := journal.claim(done)) is not None:
        done.add(name)
        lines = journal.lines(name)
        mine = {line["exchange"]["request_id"] for line in lines if line["exchange"]["user"] == user}
        gone |= mine
        kept = [line for line in lines if line["exchange"]["request_id"] not in gone]
        if len(kept) < len(lines):
            text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in kept)
            write_atomic(folder / name, text)
    journal.leave()
    return sum(path.name not in done for path in folder.glob(f"*{END}"))


def _evolutions(folder: Path, gone: Collection[str]) -> list[str]:
    """The runs that were made from one of these requests, by their experiment."""
    found = []
    for beside in sorted(folder.glob(f"*{EXAMPLES}")):
        for path in sorted(beside.iterdir()):
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(one in gone for line in text.splitlines() if line for one in _texts(_json(line))):
                found.append(beside.name.removesuffix(EXAMPLES))
                break
    return found


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _remove(folder: Path, run: str) -> None:
    """A run and what is beside it; the examples last, by which it is found again."""
    for end in ("", CACHE, EXAMPLES):
        if (folder / f"{run}{end}").exists():
            shutil.rmtree(folder / f"{run}{end}")


def _findings(ledger: Ledger, folder: Path, deployment: str, gone: Collection[str]) -> None:
    """What analyses found since the first of these requests quotes traffic: it goes, and comes again without them."""
    if not gone:
        return
    rows = _exchanges(ledger, folder, deployment, gone, 'min("at") AS first')
    if rows and rows[0]["first"] is not None:
        since = {"deployment": deployment, "at": (">=", rows[0]["first"])}
        ledger.delete("findings", {**since, "kind": ("!=", "probe")})
        ledger.change("findings", since, title="the judge takes answers that say nothing for good ones")


def _episodes(ledger: Ledger, folder: Path, deployment: str, gone: Collection[str]) -> None:
    """Delete what was said of whole episodes of the user."""
    rows = _exchanges(ledger, folder, deployment, gone, "DISTINCT episode_id") if gone else []
    for row in rows:
        if row["episode_id"]:
            ledger.delete("feedback", {"deployment": deployment, "episode_id": row["episode_id"]})


def _exchanges(ledger: Ledger, folder: Path, deployment: str, gone: Collection[str], columns: str) -> list[Row]:
    sql = f"SELECT {columns} FROM exchanges WHERE request_id IN (SELECT unnest($ids))"
    return query.rows(sql, {"ids": sorted(gone)}, folder=folder, deployment=deployment, ledger=ledger)
