"""Deletion of a user: nothing below the home holds a text of theirs, and what serves goes on without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deployed_world import NAME, NOW, deployed

from evocluster.deploying import Home, erase
from evocluster.deploying import deployed as loaded
from evocluster.errors import ConfigError
from evocluster.online import erasure, memory
from evocluster.online.actuator import rollback, rows_of
from evocluster.online.recorder import Recorder
from evocluster.online.scrub import Scrubber
from evocluster.records import Example, FrozenDict
from evocluster.release.exchange import Exchange
from evocluster.release.settings import Recording
from evocluster.release.snapshot import Snapshot
from evocluster.store import sealed

PLANTED = "the violet zeppelin of aunt Ottilie"
DAY = 86_400.0


def found_in(folder: Path, text: str = PLANTED) -> list[str]:
    """Files below the folder that hold the text, as they are or as tables."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            if path.suffix == ".parquet":
                raw += json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False).encode()
            found += [str(path.relative_to(folder))] if text.encode() in raw else []
    return found


def exchange(id: str, at: float, **more: Any) -> Exchange:
    return Exchange(request_id=id, episode_id=f"e-{id}", deployment=NAME, at=at, **more)


def record(where: Home, user: str, ids: list[str], at: float, text: str, **more: Any) -> None:
    """Traffic of a user, as the gateway records it."""
    scrubber = Scrubber(bytes.fromhex(where.pointer(NAME)["secret"]))
    recorder = Recorder(where.ledger, scrubber, Recording(), where.folder / "journal" / NAME)
    for id in ids:
        recorder.record(exchange(id, at, **more), f"{text} {id}", f"answer to {text}", "", user)
    recorder.close()


def taught(where: Home, sources: list[str]) -> Snapshot:
    """What serves, with an example and two notes from traffic; the second note others said too."""
    serves = where.snapshot(where.pointer(NAME)["snapshot"])
    shown = Example(id="x1", input=PLANTED, expected="red", meta=FrozenDict({"source": sources[0]}))
    prompt = serves.prompt.model_copy(
        update={"examples": (shown,), "genes": FrozenDict({**serves.prompt.genes, "demos": ["x1"]})}
    )
    notes = (
        memory.noted(f'For questions like "{PLANTED}" the right answer is: red', "", sources[:1]),
        memory.noted("Blue things are blue.", "", [sources[1], "o1"]),
    )
    return serves.changed(prompt=prompt, memory=notes)


def keep(where: Home, snapshot: Snapshot, **origin: Any) -> None:
    for table, row in rows_of(where.ledger, snapshot, "", origin, NOW):
        where.ledger.put(table, row)


def point(where: Home, snapshot: str, **state: Any) -> None:
    pointer = where.pointer(NAME)
    audit = {"at": NOW, "actor": "controller", "action": "test", "why": {}}
    said = {"experiment": "", "arms": {}, "eligible": [snapshot], "stage": "", "holdout": "", "stable": snapshot}
    where.ledger.move(NAME, pointer["epoch"], audit=audit, snapshot=snapshot, state={**said, **state})


def experiment(id: str, candidate: str, baseline: str, stage: str) -> dict[str, Any]:
    return {
        "id": id,
        "deployment": NAME,
        "candidate": candidate,
        "baseline": baseline,
        "layer": "prompt",
        "trigger": {},
        "stage": stage,
        "stage_at": NOW,
        "started_at": NOW,
        "work": {"gates": [["injection", False, [PLANTED]]], "live_at": NOW},
    }


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Home]:
    with deployed(tmp_path) as home:
        yield home


@pytest.fixture
def planted(where: Home) -> Home:
    """Traffic of jane (r...) and of another (o...), in the ledger, sealed and in a journal, and what came of it."""
    record(where, "jane", ["r1", "r2"], NOW - 3 * DAY, PLANTED, pair_id="p1")
    record(where, "", ["s1"], NOW - 3 * DAY, PLANTED, pair_id="p1", is_shadow=True)
    record(where, "else", ["o1"], NOW - 3 * DAY, "ordinary things")
    sealed.seal(where.ledger, where.folder / "traffic", NAME, NOW - DAY)
    record(where, "jane", ["r3"], NOW, PLANTED)
    record(where, "else", ["o2"], NOW, "ordinary things")
    for id, target in (("f1", {"request_id": "r3"}), ("f2", {"episode_id": "e-r1"}), ("f3", {"request_id": "o2"})):
        said = {"metric": "correction", "source": "user", "value": PLANTED if id != "f3" else "ordinary", **target}
        row = {"feedback_id": id, "deployment": NAME, "observed_at": NOW, "received_at": NOW, "state": "accepted"}
        where.ledger.put("feedback", {**row, **said})
    finding = {"id": "g", "deployment": NAME, "at": NOW, "kind": "failures", "severity": "low", "title": PLANTED}
    where.ledger.put("findings", {**finding, "evidence": {"examples": [PLANTED]}, "state": "open"})
    where.ledger.put("findings", {**finding, "id": "h", "kind": "probe", "evidence": {}, "state": "open"})
    snapshot = taught(where, ["r1", "r2"])
    keep(where, snapshot, changes=[{"why": PLANTED, "sources": ["r1"]}])
    where.ledger.put(
        "barred",
        {"deployment": NAME, "hash": "b", "text": PLANTED, "snapshot": snapshot.id, "at": NOW, "incident": "i"},
    )
    journal = where.folder / "journal" / NAME
    scrubber = Scrubber(bytes.fromhex(where.pointer(NAME)["secret"]))
    lines = []
    for id, user, text in (("r4", "jane", PLANTED), ("o3", "else", "ordinary")):
        row = exchange(id, NOW).model_dump(mode="json") | {"user": scrubber.user_hash(user)}
        body = {"request_id": id, "deployment": NAME, "user": row["user"], "input": text, "output": text, "at": NOW}
        lines.append(json.dumps({"exchange": row, "body": body}))
    (journal / "0-left.jsonl").write_text("\n".join(lines) + "\n")
    runs = where.folder / "evolutions" / NAME
    for run, source, text in (("x-mine", "r3", PLANTED), ("x-other", "o2", "ordinary")):
        for end, name in (("", "trials.txt"), ("-cache", "replies.txt")):
            (runs / f"{run}{end}").mkdir(parents=True)
            (runs / f"{run}{end}" / name).write_text(text)
        (runs / f"{run}-examples").mkdir()
        example = {"id": f"t-{source}", "input": text, "meta": {"source": source}}
        (runs / f"{run}-examples" / "train.jsonl").write_text(json.dumps(example) + "\n")
    (where.folder / "intents").mkdir()
    (where.folder / "intents" / f"{NAME}.npz").write_text(PLANTED)
    return where


def test_nothing_of_the_user_is_left_below_the_home(planted: Home) -> None:
    snapshot = taught(planted, ["r1", "r2"])
    planted.ledger.put("experiments", experiment("x", snapshot.id, "", "done"))
    point(planted, snapshot.id)
    planted.ledger.compact()
    before = found_in(planted.folder)
    assert {Path(path).suffix for path in before} == {".db", ".parquet", ".jsonl", ".txt", ".npz"}
    told = erase(planted, NAME, "jane", now=NOW + 10)
    assert found_in(planted.folder) == []
    assert told["requests"] == 5  # r1 to r4, and the shadow of the first
    assert (told["evolutions"], told["journals"], told["moved"]) == (("x-mine",), 0, (NAME,))
    assert told["version"] == "v1.1"
    serves = planted.snapshot(planted.pointer(NAME)["snapshot"])
    assert serves.prompt.examples == ()
    assert serves.genome().genes["demos"] == ()
    assert [(note.text, note.sources) for note in serves.memory] == [("Blue things are blue.", ("o1",))]
    [audit] = planted.ledger.find("audit", {"action": "erase"})
    assert (audit["from_snapshot"], audit["to_snapshot"], audit["actor"]) == (snapshot.id, serves.id, "user")
    with pytest.raises(ConfigError, match="was erased with the data of a user"):
        planted.snapshot(snapshot.id)


def test_others_keep_what_is_theirs(planted: Home) -> None:
    erase(planted, NAME, "jane", now=NOW + 10)
    assert {row["request_id"] for row in planted.ledger.find("bodies")} == {"o2"}
    assert [row["feedback_id"] for row in planted.ledger.find("feedback")] == ["f3"]
    assert found_in(planted.folder, "ordinary things o1") != []
    left = (planted.folder / "journal" / NAME / "0-left.jsonl").read_text()
    assert [json.loads(line)["exchange"]["request_id"] for line in left.splitlines()] == ["o3"]
    runs = {path.name for path in (planted.folder / "evolutions" / NAME).iterdir()}
    assert runs == {"x-other", "x-other-cache", "x-other-examples"}
    assert [row["kind"] for row in planted.ledger.find("findings")] == ["probe"]  # evolution stays frozen
    first = planted.pointer(NAME)
    assert first["epoch"] == 1, "what served held nothing of the user"


def test_later_requests_are_recorded_without_their_texts(planted: Home) -> None:
    erase(planted, NAME, "jane", now=NOW + 10)
    record(planted, "jane", ["r9"], NOW + 20, PLANTED)
    assert found_in(planted.folder) == []


def test_a_user_of_whom_nothing_is_known_changes_nothing(planted: Home) -> None:
    told = erase(planted, NAME, "nobody", now=NOW + 10)
    assert (told["requests"], told["snapshots"], told["moved"]) == (0, (), ())
    assert planted.ledger.count("findings") == 2
    with pytest.raises(ConfigError, match="--user is empty"):
        erase(planted, NAME, "")


@pytest.mark.parametrize("stage", ["candidate", "shadow", "live", "watch"])
def test_an_experiment_on_an_erased_candidate_is_called_off(planted: Home, stage: str) -> None:
    first = planted.pointer(NAME)["snapshot"]
    snapshot = taught(planted, ["r1", "r2"])
    planted.ledger.put("experiments", experiment("x", snapshot.id, first, stage))
    if stage in ("live", "watch"):
        arms = {first: 0.8, snapshot.id: 0.2}
        point(planted, first if stage == "live" else snapshot.id, arms=arms, stage=stage, experiment="x", stable=first)
    told = erase(planted, NAME, "jane", now=NOW + 10)
    [row] = planted.ledger.find("experiments")
    outcome = "rolled_back" if stage in ("live", "watch") else "rejected"
    assert (told["experiments"], row["stage"], row["outcome"]) == (("x",), "done", outcome)
    pointer = planted.pointer(NAME)
    assert (pointer["snapshot"], pointer["state"].get("arms") or {}) == (first, {})
    assert found_in(planted.folder) == []


def test_an_experiment_whose_baseline_was_erased_goes_on_against_the_clean_one(planted: Home) -> None:
    snapshot = taught(planted, ["r1", "r2"])
    clean = planted.snapshot(planted.pointer(NAME)["snapshot"])
    clean = clean.changed(prompt=clean.prompt.model_copy(update={"genes": {**clean.prompt.genes, "rubric": "Other?"}}))
    keep(planted, clean)
    planted.ledger.put("experiments", experiment("x", clean.id, snapshot.id, "live"))
    arms = {snapshot.id: 0.8, clean.id: 0.2}
    point(planted, snapshot.id, arms=arms, eligible=sorted(arms), stage="live", experiment="x", stable=snapshot.id)
    told = erase(planted, NAME, "jane", now=NOW + 10)
    pointer, [row] = planted.pointer(NAME), planted.ledger.find("experiments")
    assert (told["experiments"], row["stage"], row["baseline"]) == ((), "live", pointer["snapshot"])
    assert pointer["state"]["arms"] == {pointer["snapshot"]: 0.8, clean.id: 0.2}
    assert pointer["state"]["stable"] == pointer["snapshot"]
    for id in pointer["state"]["arms"]:
        planted.snapshot(id)


def test_another_deployment_that_serves_it_is_moved_too(planted: Home, tmp_path: Path) -> None:
    from deployed_world import made

    from evocluster.deploying import deploy

    deploy(made(), "second", planted, genome="start", now=NOW)
    snapshot = taught(planted, ["r1", "r2"])
    audit = {"at": NOW, "actor": "hand", "action": "test", "why": {}}
    planted.ledger.move("second", 1, audit=audit, snapshot=snapshot.id)
    told = erase(planted, NAME, "jane", now=NOW + 10)
    assert told["moved"] == ("second",)
    planted.snapshot(planted.pointer("second")["snapshot"])


def test_what_is_erased_cannot_be_rolled_back_to(planted: Home) -> None:
    snapshot = taught(planted, ["r1", "r2"])
    point(planted, snapshot.id)
    planted.ledger.put(
        "versions", {"deployment": NAME, "version": "v1.1", "snapshot": snapshot.id, "at": NOW, "layer": "", "why": ""}
    )
    erase(planted, NAME, "jane", now=NOW + 10)
    with pytest.raises(ConfigError, match="was erased"):
        rollback(planted.ledger, NAME, NOW, version="v1.1")


class Killed(BaseException):
    """The process ended here."""


def test_killed_at_any_step_it_completes_when_said_again(
    where: Home, planted: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = taught(planted, ["r1", "r2"])
    planted.ledger.put("experiments", experiment("x", snapshot.id, snapshot.id, "shadow"))
    point(planted, snapshot.id)
    calls = 0

    def dying(real: Any, at: list[int]) -> Any:
        def work(*args: Any, **how: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at[0]:
                raise Killed
            return real(*args, **how)

        return work

    limit = [0]
    for name in ("put", "patch", "change", "delete", "move"):
        monkeypatch.setattr(planted.ledger, name, dying(getattr(planted.ledger, name), limit))
    monkeypatch.setattr(erasure, "_remove", dying(erasure._remove, limit))
    monkeypatch.setattr(sealed, "_rewrite", dying(sealed._rewrite, limit))
    kills = 0
    for number in range(1, 200):  # every attempt gets one step further than the last one
        calls, limit[0] = 0, number
        try:
            erase(planted, NAME, "jane", now=NOW + 10)
            break
        except Killed:
            kills += 1
    assert kills > 8
    assert found_in(planted.folder) == []
    [row] = planted.ledger.find("experiments")
    assert row["stage"] == "done"
    assert planted.ledger.count("audit", {"action": "erase"}) == 1


def test_a_file_that_a_gateway_has_in_hand_is_told_of(planted: Home) -> None:
    from evocluster.online.journal import Journal

    journal = Journal(planted.folder / "journal" / NAME, lambda: "9-held")
    journal.append([json.dumps({"exchange": {"request_id": "z", "user": ""}, "body": None})])
    assert erase(planted, NAME, "jane", now=NOW + 10)["journals"] == 1
    journal.rest()


def test_the_config_is_not_needed(planted: Home) -> None:
    """A deployment that runs code of its own is erased from without trusting it."""
    assert loaded(planted, NAME).config.name == "small"
    row = planted.ledger.first("deployments", {"name": NAME})
    assert row is not None
    told = erasure.erase(planted.ledger, planted.folder, NAME, "0" * 32, NOW, actor="user")
    assert told.requests == 0
