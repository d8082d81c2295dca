"""What a deployment's cycle works with: drift has one name, whoever finds it and whenever; layers evolve on traffic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from evocluster import config as configs
from evocluster.deploying import Home, first
from evocluster.improving import Improving, Opened, working
from evocluster.online.cycle import Trigger
from evocluster.records import Json
from evocluster.release.exchange import Exchange
from evocluster.release.snapshot import Layer, Prompt, Snapshot, Strategy
from evocluster.serving import Place

DAY = 86_400.0
GATES = ["scope", "syntax", "injection", "barred", "replay"]
NOW = 20_000 * DAY + 23 * 3600.0
"""An hour before midnight."""
CONFIG = {
    "name": "d",
    "task": {"kind": "classification", "data": {"train": "t.jsonl"}, "labels": ["yes", "no"]},
    "models": {
        "fake": {"kind": "scripted", "default": "yes", "latency_s": 0},
        "better": {"kind": "scripted", "default": "yes", "rules": [{"pattern": "^[a-h]", "text": "no"}]},
    },
    "space": {"rubric": ["Yes or no?"], "model": ["fake"], "max_tokens": 8},
    "start": [{"rubric": "Yes or no?", "model": "fake"}],
    "search": {"population": 4, "block": 8, "finalists": 2},
    "recommend": "best quality",
    "budget": {"calls": 100},
    "engine": {"runner": "local"},
    "online": {"evolution": {"calls": 800}},
}
GENES = {"model": "fake", "max_tokens": 8}
SERVES = Snapshot(prompt=Prompt(genes={"rubric": "Yes or no?"}), strategy=Strategy(genes=GENES))
WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch maple north otter pearl".split()  # noqa: SIM905


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    (tmp_path / "t.jsonl").write_text('{"id": "a", "input": "x", "expected": "yes"}\n', encoding="utf-8")
    config = configs.parse(CONFIG, tmp_path, "test")
    with Home.open(tmp_path / "home") as opened:
        first(opened, "d", config, SERVES, {"by": "user"}, NOW - DAY, {"text": True})
        yield opened


def answered(home: Home, start: int, right: list[bool], at: float, corrected: str = "") -> None:
    """Requests of a minute each, all with feedback."""
    for number, one in enumerate(right, start):
        id, moment = f"r{number:04d}", at + 60.0 * (number - start)
        text = f"{WORDS[number % 16]} {WORDS[number // 16 % 16]} {WORDS[(7 * number + 3) % 16]}?"
        exchange = Exchange(
            request_id=id, episode_id=id, deployment="d", at=moment, model="fake", arm=SERVES.id, snapshot_id=SERVES.id
        )
        home.ledger.add("exchanges", [exchange.model_dump(mode="json")])
        body = {"request_id": id, "deployment": "d", "user": "", "input": text, "output": "yes", "at": moment}
        home.ledger.add("bodies", [body])
        _say(home, id, "correct", one, moment)
        if corrected and not one:
            _say(home, id, "correction", corrected, moment)


def _say(home: Home, id: str, metric: str, value: Json, at: float) -> None:
    row: dict[str, Any] = {"feedback_id": f"{id}-{metric}", "deployment": "d", "request_id": id, "episode_id": ""}
    row |= {"metric": metric, "value": value, "source": "user", "observed_at": at, "received_at": at}
    home.ledger.add("feedback", [{**row, "supersedes": "", "state": "accepted"}])


async def test_an_alarm_has_one_name_on_both_sides_of_midnight(home: Home) -> None:
    answered(home, 0, [True] * 40, NOW - 4000)
    work = Improving(home)
    assert list(await work.drift("d", NOW)) == []
    answered(home, 40, [False] * 12, NOW)
    [alarm] = await work.drift("d", NOW + 1800)
    assert (alarm["kind"], alarm["severity"], alarm["layer"]) == ("drift", "high", "prompt")
    assert NOW <= alarm["at"] <= NOW + 1800
    [again] = await work.drift("d", NOW + 7200)  # tomorrow
    assert again == alarm
    analysed = [row for row in await work.analyze("d", NOW + 7200) if row["kind"] == "drift"]
    assert analysed == [alarm]
    await work.close()


async def test_an_alarm_of_some_days_ago_is_not_one_of_today(home: Home) -> None:
    answered(home, 0, [True] * 40, NOW - 4000)
    answered(home, 40, [False] * 12, NOW)
    work = Improving(home)
    [alarm] = await work.drift("d", NOW + 0.9 * DAY)
    assert list(await work.drift("d", NOW + 3 * DAY)) == []
    [known] = [row for row in await work.analyze("d", NOW + 3 * DAY) if row["kind"] == "drift"]
    assert known == alarm
    await work.close()


@pytest.mark.parametrize("layer", ["memory", "strategy"])
async def test_a_layer_evolves_on_traffic_and_goes_into_the_shadow(home: Home, layer: Layer) -> None:
    now = NOW + 7200
    answered(home, 0, [WORDS[number % 16] > "i" for number in range(96)], NOW, "no")
    async with working(Place(str(home.folder))) as (_, cycle):
        queued = await cycle.evolve("d", now, Trigger(kind="hand"), (layer,))
        await cycle.promote("d", now)
    row = home.ledger.first("experiments", {"id": queued[layer]})
    assert row is not None
    assert (row["stage"], row["baseline"]) == ("shadow", SERVES.id), row["why"]
    assert [name for name, passed, _ in row["work"]["gates"] if passed] == GATES
    made = home.snapshot(row["candidate"])
    changed = [name for name in ("prompt", "memory", "strategy") if made.layers[name] != SERVES.layers[name]]
    assert changed == [layer]
    if layer == "memory":
        assert made.memory
        assert all("right answer is: no" in note.text for note in made.memory)
    else:
        assert "better" in str(made.strategy.model_dump(mode="json"))


async def test_a_deployment_that_nearly_always_fails_may_improve_too(home: Home) -> None:
    now = NOW + 7200
    answered(home, 0, [number in (5, 50) for number in range(96)], NOW, "no")
    async with working(Place(str(home.folder))) as (_, cycle):
        queued = await cycle.evolve("d", now, Trigger(kind="hand"), ("memory",))
        await cycle.promote("d", now)
    row = home.ledger.first("experiments", {"id": queued["memory"]})
    assert row is not None
    assert row["stage"] == "shadow", row["why"]


async def test_few_successes_of_few_answers_show_nothing(home: Home) -> None:
    now = NOW + 7200
    answered(home, 0, [number < 6 for number in range(12)], NOW, "no")
    async with working(Place(str(home.folder))) as (_, cycle):
        queued = await cycle.evolve("d", now, Trigger(kind="hand"), ("memory",))
        await cycle.promote("d", now)
    row = home.ledger.first("experiments", {"id": queued["memory"]})
    assert row is not None
    assert (row["stage"], row["outcome"]) == ("done", "rejected")
    assert "6 successes were replayed; at least 10 are needed" in row["why"]


async def test_where_nobody_answers_nothing_was_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> dict[str, float]:
        return {}

    monkeypatch.setattr(Opened, "qualities", away)
    now = NOW + 7200
    answered(home, 0, [number in (5, 50) for number in range(96)], NOW, "no")
    async with working(Place(str(home.folder))) as (_, cycle):
        queued = await cycle.evolve("d", now, Trigger(kind="hand"), ("memory",))
        await cycle.promote("d", now)
    row = home.ledger.first("experiments", {"id": queued["memory"]})
    assert row is not None
    assert (row["stage"], row["outcome"]) == ("done", "rejected")
    assert "0 successes were replayed; at least 10 are needed" in row["why"]
