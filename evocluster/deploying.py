"""Deployments: a configuration of a run becomes what serves, and what served before can come back.

    home = Home.open("deployments")          the ledger, and the folder of what is too long for it
    deploy("runs/triage", "triage", home)    the first version of a name, or a candidate for its place
    history(home, "triage"), status(home, "triage")

Part of the wiring: the rules are in `release/`, what is kept is in the ledger.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from evocluster import build
from evocluster import config as configs
from evocluster.address import found
from evocluster.config import Config
from evocluster.errors import ConfigError, LedgerConflict
from evocluster.names import checked_name
from evocluster.online import erasure
from evocluster.online.actuator import labelled, numbered, rollback, rows_of, wait_acknowledged
from evocluster.online.ledger import Row, load
from evocluster.online.question import Shape
from evocluster.online.scrub import Scrubber
from evocluster.online.state import push
from evocluster.records import Example, Genome
from evocluster.release import content
from evocluster.release.settings import Online
from evocluster.release.snapshot import LAYERS, Snapshot, Strategy
from evocluster.report.chosen import chosen, unchanged
from evocluster.report.result import Result
from evocluster.store.ledger import Ledger
from evocluster.tasks.code import is_spec
from evocluster.tasks.dataset import Splits
from evocluster.tasks.suite import one_of
from evocluster.tasks.task import Task
from evocluster.trust import admit

HOME = "deployments"
"""Folder of deployments, where nothing else is said."""


@dataclass(frozen=True)
class Home(AbstractContextManager["Home"]):
    """Where deployments are kept. Call order: open, anything, close."""

    folder: Path
    """Of recorded traffic by the day, journals and the runs that evolve candidates."""
    ledger: Ledger

    @classmethod
    def open(cls, folder: str | Path = HOME, ledger: str | None = None) -> Self:
        """`ledger`: URL of its database; None: a file in the folder. Raises: errors.StoreError."""
        path = Path(folder).absolute()
        return cls(path, Ledger.open(ledger or f"sqlite:///{path / 'ledger.db'}"))

    def close(self) -> None:
        """Let go of the database."""
        self.ledger.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pointer(self, name: str) -> dict[str, Any]:
        """The row that says what serves. Raises: errors.ConfigError naming the deployments there are."""
        row = self.ledger.first("deployments", {"name": name})
        if row is None:
            there = sorted(one["name"] for one in self.ledger.find("deployments"))
            raise ConfigError(
                f"no deployment {name!r} in {str(self.folder)!r}; there are: {', '.join(there) or 'none'}; make one "
                f"with `evocluster deploy RUN --as {name}`, or name another --home or --ledger"
            )
        return row

    def snapshot(self, id: str) -> Snapshot:
        """A snapshot by its id. Raises: errors.StoreError."""
        return load(self.ledger, id)


@dataclass(frozen=True)
class Deployed:
    """A deployment as it is loaded: its config, and the task that its snapshots answer."""

    name: str
    config: Config
    secret: bytes
    facts: Mapping[str, Any]
    made_at: float = 0.0

    @property
    def settings(self) -> Online:
        """Section `online:` of its config."""
        return self.config.online

    @cached_property
    def task(self) -> Task:
        """Settled: labels and schema are known without the data. Raises: errors.ConfigError."""
        assert self.config.task is not None
        return self.config.task.settled(Splits((), (), ()), self.config.root)


def deployed(home: Home, name: str, *, allow_code: bool = False) -> Deployed:
    """Load a deployment. Raises: errors.ConfigError: there is none, or it runs code that nobody trusted here."""
    row = home.pointer(name)
    config = configs.parse(json.loads(row["config"]), home.folder, f"deployment {name}")
    admit(config, allow_code=allow_code, stranger=True)
    return Deployed(name, config, bytes.fromhex(row["secret"]), row["facts"], row["at"])


def deploy(
    run: str | Path,
    name: str,
    home: Home,
    *,
    genome: str = "recommended",
    task: str | None = None,
    sets: Sequence[str] = (),
    live: bool = False,
    allow_code: bool = False,
    actor: str = "user",
    now: float | None = None,
) -> dict[str, Any]:
    """A configuration of a finished run as the first version of `name`, or as a candidate for its place.

    `genome`: recommended, start, or the beginning of an id; `task`: which, where the run has several; `sets`: settings
    of the deployment, e.g. online.shadow.hours=1; `live`: a candidate takes its share of the traffic at once, without
    gates and shadow, watched by the breaker alone. Raises: errors.ConfigError, errors.RunDamaged, errors.StoreError.
    """
    moment = time.time() if now is None else now
    try:
        checked_name(name)
    except ValueError as error:
        raise ConfigError(f"--as {error}") from error
    result = found(run)
    member = chosen(result, genome, task)
    config = configs.load(result.path / "config.yaml", sets)
    planned = build.plan(config, allow_code=allow_code, stranger=True)
    unchanged(result, planned.facts())
    evaluator = one_of(planned.evaluator, task)
    own = _own(config, evaluator.task)
    pool: dict[str, Example] = dict(evaluator.splits.by_id("train"))
    chosen_genes = Genome(genes=member["genes"])
    origin = {"run": str(result.address), "genome": member["genome"], "role": member["role"], "by": actor}
    row = home.ledger.first("deployments", {"name": name})
    if row is not None and _asks(own) != _asks(deployed(home, name, allow_code=allow_code).config):
        raise ConfigError(
            f"deployment {name!r} answers another task than {str(result.address)!r}: labels, schema or scorers differ; "
            "deploy it under another name"
        )
    shown = tuple(id for id in chosen_genes.genes.get("demos", ()) if id in pool)
    snapshot = Snapshot.of(chosen_genes.replace(demos=shown) if "demos" in chosen_genes.genes else chosen_genes, pool)
    genes = snapshot.strategy.genes
    current = home.snapshot(row["snapshot"]) if row is not None else None
    strategy = current.strategy if current else Strategy(timeout_s=_timeout(config))
    memory = current.memory if current else ()
    snapshot = snapshot.changed(memory=memory, strategy=strategy.model_copy(update={"genes": genes}))
    if row is None:
        shape = Shape.of(pool.values())._asdict()
        told = first(home, name, own, snapshot, origin, moment, shape)
    else:
        told = candidate(home, name, snapshot, layer="", trigger=origin, live=live, actor=actor, now=moment)
    _keep_variants(home, name, result, moment)
    return told


def _own(config: Config, settled: Task) -> Config:
    """The config of a deployment: the one task that it answers, with what its data said of it filled in."""
    task = settled
    given = next(one for one in config.every.values() if one.data == settled.data)
    if isinstance(given.json_schema, str) and is_spec(given.json_schema):
        task = settled.model_copy(update={"json_schema": given.json_schema})
    return config.model_copy(update={"task": task, "tasks": {}})


def _asks(config: Config) -> dict[str, Any]:
    """What a task asks and how it is judged, whatever data it was learnt from."""
    assert config.task is not None
    return config.task.model_dump(mode="json", exclude={"data", "twins"})


def _timeout(config: Config) -> float:
    """As long as the slowest of its models may take."""
    return max(30.0, *(model.timeout_s for model in config.resolved_models().values()))


def _keep_variants(home: Home, name: str, result: Result, now: float) -> None:
    """The front of a run: who else there is, where they came from, what they are worth."""
    for member in result.members:
        row = {
            "deployment": name,
            "genome": member["genome"],
            "generation": member.get("generation", 0),
            "parent": next(iter(member.get("parents") or ()), ""),
            "operator": member.get("operator", ""),
            "fitness": {split: member[split] for split in ("train", "validation", "test") if member.get(split)},
            "run": str(result.address),
            "at": now,
        }
        home.ledger.put("variants", row)


def first(
    home: Home,
    name: str,
    config: Config,
    snapshot: Snapshot,
    origin: Mapping[str, Any],
    now: float,
    shape: Mapping[str, Any],
) -> dict[str, Any]:
    """The first version of a deployment. Raises: errors.LedgerConflict: it is there."""
    row = {
        "name": name,
        "snapshot": snapshot.id,
        "state": {},
        "config": json.dumps(configs.resolved(config)),
        "facts": {"origin": dict(origin), "shape": dict(shape)},
        "secret": secrets.token_hex(32),
        "at": now,
    }
    audit = {"deployment": name, "at": now, "actor": origin["by"], "action": "deploy", "why": dict(origin)}
    version = labelled(home.ledger, name, snapshot.id, "", "first version", now, major=True)
    home.ledger.deploy(row, audit, also=[*rows_of(home.ledger, snapshot, "", origin, now), *version])
    told = {"deployment": name, "version": version[0][1]["version"], "snapshot": snapshot.id}
    return {**told, "stage": "serving", "epoch": 1}


def candidate(
    home: Home,
    name: str,
    snapshot: Snapshot,
    *,
    layer: str,
    trigger: Mapping[str, Any],
    live: bool = False,
    actor: str = "user",
    now: float,
) -> dict[str, Any]:
    """Enter a snapshot as a candidate for what serves: snapshot, version, experiment and audit in one move.

    Raises: errors.ConfigError: barred, it serves already, is under way, or cannot go live beside another one.
    """
    while True:
        pointer = home.pointer(name)
        _check_candidate(home, pointer, snapshot, live)
        rows = labelled(home.ledger, name, snapshot.id, layer, _why(trigger), now, major=not layer)
        experiment = _experiment(pointer, snapshot, layer, trigger, live, now)
        also = [*rows_of(home.ledger, snapshot, pointer["snapshot"], trigger, now), *rows, ("experiments", experiment)]
        stage = experiment["stage"]
        audit = {"at": now, "actor": actor, "action": stage, "why": {**trigger, "experiment": experiment["id"]}}
        routing = _live(home, pointer, experiment) if live else None
        try:
            epoch = home.ledger.move(name, pointer["epoch"], audit=audit, state=routing, also=also)
        except LedgerConflict:
            continue
        version = home.ledger.first("versions", {"deployment": name, "snapshot": snapshot.id}) or {}
        told = {"deployment": name, "version": version.get("version"), "snapshot": snapshot.id}
        return {**told, "experiment": experiment["id"], "stage": stage, "epoch": epoch}


def _check_candidate(home: Home, pointer: Row, snapshot: Snapshot, live: bool) -> None:
    """Raises: errors.ConfigError."""
    name, running = pointer["name"], pointer["state"].get("experiment")
    if pointer["snapshot"] == snapshot.id:
        raise ConfigError(f"deployment {name!r} serves exactly this already: snapshot {snapshot.id}; nothing to do")
    same = {"deployment": name, "candidate": snapshot.id, "stage": ("!=", "done")}
    if (other := home.ledger.first("experiments", same)) is not None:
        raise ConfigError(
            f"snapshot {snapshot.id} is a candidate of {name!r} already: experiment {other['id']!r}, in stage "
            f"{other['stage']!r}; evocluster status {name} tells how far it is"
        )
    if live and running:
        raise ConfigError(
            f"deployment {name!r} has experiment {running!r} under way; wait for it (evocluster status {name}), or end "
            f"it with `evocluster rollback {name}`"
        )
    _refuse_barred(home, pointer, snapshot)


def _experiment(
    pointer: Row, snapshot: Snapshot, layer: str, trigger: Mapping[str, Any], live: bool, now: float
) -> Row:
    """The row of a new one."""
    return {
        "id": secrets.token_hex(8),
        "deployment": pointer["name"],
        "candidate": snapshot.id,
        # One that is not live is compared with what serves when its turn comes.
        "baseline": pointer["snapshot"] if live else "",
        "layer": layer,
        "trigger": dict(trigger),
        "stage": "live" if live else "candidate",
        "stage_at": now,
        "started_at": now,
        "outcome": "",
        "why": "",
        "work": {"live_at": now, "weighed_at": now} if live else {},
    }


def _refuse_barred(home: Home, pointer: Mapping[str, Any], snapshot: Snapshot) -> None:
    """Raises: errors.ConfigError: this, or nearly this, was rolled back."""
    name = pointer["name"]
    rows = home.ledger.find("barred", {"deployment": name})
    near = _online(home, pointer).breaker.near
    gate = content.barred(snapshot, home.snapshot(pointer["snapshot"]), rows, near)
    if not gate.passed:
        raise ConfigError(f"snapshot {snapshot.id} for deployment {name!r} {'; '.join(gate.reasons)}")


def _online(home: Home, pointer: Mapping[str, Any]) -> Online:
    """The settings of a deployment."""
    return configs.parse(json.loads(pointer["config"]), home.folder, f"deployment {pointer['name']}").online


def _live(home: Home, pointer: Row, experiment: Row) -> Row:
    """Routing in which the candidate has its first share of the traffic, whoever asked for it without shadow."""
    share = _online(home, pointer).promotion.live
    arms = {pointer["snapshot"]: 1 - share, experiment["candidate"]: share}
    return {
        "experiment": experiment["id"],
        "arms": arms,
        "eligible": sorted(arms),
        "stage": "live",
        "holdout": "",
        "stable": pointer["snapshot"],
    }


def _why(trigger: Mapping[str, Any]) -> str:
    return f"from {trigger['run']}" if trigger.get("run") else str(trigger.get("why") or trigger.get("kind") or "")


def history(home: Home, name: str) -> list[dict[str, Any]]:
    """The versions of a deployment, the newest first: snapshot, layers, when, why, and which one serves."""
    pointer = home.pointer(name)
    arms = pointer["state"].get("arms") or {}
    told = []
    for row in home.ledger.find("versions", {"deployment": name}):
        snapshot = home.ledger.first("snapshots", {"id": row["snapshot"]}) or {}
        experiment = home.ledger.first("experiments", {"deployment": name, "candidate": row["snapshot"]}, "-started_at")
        shown: dict[str, Any] = {layer: snapshot.get(layer) for layer in LAYERS}
        shown["incumbent"] = row["snapshot"] == pointer["snapshot"]
        shown["weight"] = 1.0 if shown["incumbent"] and not arms else arms.get(row["snapshot"], 0.0)
        shown["outcome"] = (experiment or {}).get("outcome") or ""
        shown["stage"] = (experiment or {}).get("stage") or ""
        told.append({**row, **shown})
    return sorted(told, key=lambda row: numbered(row["version"]), reverse=True)


def status(home: Home, name: str, now: float | None = None) -> dict[str, Any]:
    """What serves, what is under way, what happened in the last day."""
    moment = time.time() if now is None else now
    pointer = home.pointer(name)
    day = {"deployment": name, "at": (">=", moment - 86400)}
    versions = {row["snapshot"]: row["version"] for row in home.ledger.find("versions", {"deployment": name})}
    arms = sorted((pointer["state"].get("arms") or {}).items(), key=lambda arm: -arm[1])
    return {
        "deployment": name,
        "epoch": pointer["epoch"],
        "snapshot": pointer["snapshot"],
        "version": versions.get(pointer["snapshot"]),
        "state": pointer["state"],
        "arms": {versions.get(id, id): share for id, share in arms},
        "requests": home.ledger.count("exchanges", {**day, "is_shadow": False}),
        "shadows": home.ledger.count("exchanges", {**day, "is_shadow": True}),
        "feedback": home.ledger.count("feedback", {"deployment": name, "received_at": (">=", moment - 86400)}),
        "experiments": home.ledger.find("experiments", {"deployment": name}, order="-started_at", limit=5),
        "incidents": home.ledger.find("incidents", {"deployment": name}, order="-at", limit=5),
        "findings": home.ledger.find("findings", {"deployment": name}, order="-at", limit=10),
        "replicas": home.ledger.find("replicas", {"deployment": name}),
    }


def roll_back(
    home: Home,
    name: str,
    version: str | None = None,
    *,
    layer: str | None = None,
    why: str = "",
    wait_s: float = 10.0,
    actor: str = "user",
) -> dict[str, Any]:
    """An old version serves again, or one layer of it; None: the version that served before this one.

    Waits until every live replica serves by it, at most `wait_s` seconds; `late` names those that do not.
    Raises: errors.ConfigError, errors.StoreError.
    """
    began = time.monotonic()
    pointer = home.pointer(name)
    wanted = version or _before(home, pointer)
    done = rollback(home.ledger, name, time.time(), version=wanted, layer=cast(Any, layer), actor=actor, why=why)
    pushed(home, name)
    late = asyncio.run(wait_acknowledged(home.ledger, name, done.epoch, timeout_s=wait_s)) if wait_s else ()
    versions = {row["snapshot"]: row["version"] for row in home.ledger.find("versions", {"deployment": name})}
    return {
        "deployment": name,
        "version": versions.get(done.snapshot),
        "snapshot": done.snapshot,
        "epoch": done.epoch,
        "late": list(late),
        "seconds": time.monotonic() - began,
    }


def _before(home: Home, pointer: Mapping[str, Any]) -> str:
    """The version that served before the one that does: what was taken back is not it. Raises: errors.ConfigError."""
    name = pointer["name"]
    versions = {row["snapshot"]: row["version"] for row in home.ledger.find("versions", {"deployment": name})}
    if pointer["state"].get("arms") and pointer["state"].get("stage") == "live":
        return str(versions[pointer["snapshot"]])
    served: list[str] = []
    for row in home.ledger.find("audit", {"deployment": name}, order="id"):
        after = row["to_snapshot"]
        # One that comes back takes those with it that served since.
        served = [*(served[: served.index(after)] if after in served else served), after]
    for earlier in reversed(served[:-1]):
        if earlier in versions:
            return str(versions[earlier])
    raise ConfigError(
        f"deployment {name!r} has served nothing before what serves now; name a version: evocluster history {name}"
    )


def pushed(home: Home, name: str) -> None:
    """Tell every replica that the pointer moved; those that cannot be told will see it by themselves."""
    row = home.pointer(name)
    urls = [one["url"] for one in home.ledger.find("replicas", {"deployment": name}) if one["url"]]
    push(urls, name, row["secret"])


def erase(home: Home, name: str, user: str, *, actor: str = "user", now: float | None = None) -> dict[str, Any]:
    """Delete everything of a user: what they asked and were told, and what was made of it; see online/erasure.py.

    `user`: as callers give it in their requests. Told again it does what is left. Raises: errors.ConfigError: no such
    deployment, or no user; errors.StoreError.
    """
    if not user:
        raise ConfigError("--user is empty; give the name that callers send as `user`")
    pointer = home.pointer(name)
    hashed = Scrubber(bytes.fromhex(pointer["secret"])).user_hash(user)
    erased = erasure.erase(home.ledger, home.folder, name, hashed, time.time() if now is None else now, actor=actor)
    for deployment in erased.moved:
        pushed(home, deployment)
    versions = {row["snapshot"]: row["version"] for row in home.ledger.find("versions", {"deployment": name})}
    serves = home.pointer(name)["snapshot"]
    return {"deployment": name, "version": versions.get(serves), "snapshot": serves, **erased._asdict()}
