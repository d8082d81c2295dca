"""The state of a deployment: swapped whole, acknowledged, kept while the ledger is away or names what cannot serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from gateway_world import SECRET, TEXT, Ledger, opened, rubric, snapshot, world

from evocluster.errors import ConfigError, StoreError
from evocluster.llm.scripted import Scripted
from evocluster.online.answer import Answerer
from evocluster.online.ledger import load
from evocluster.online.state import Follower, ServingState, push_token
from evocluster.records import Example
from evocluster.release.exchange import Exchange
from evocluster.release.snapshot import Note, Snapshot

A, B, C = snapshot("a"), snapshot("b"), snapshot("c")


@asynccontextmanager
async def following(
    ledger: Ledger, poll_s: float = 0.01, preload: int = 5, moved: Callable[[ServingState], object] | None = None
) -> AsyncIterator[Follower]:
    async with opened({"fake": Scripted.using(rubric)}) as llm:

        def build(found: Snapshot) -> Answerer:
            return Answerer(TEXT, found, llm, models=("fake", "default"))

        made = Follower(
            "support", ledger, build, replica="r1", url="http://here", poll_s=poll_s, preload=preload, moved=moved
        )
        async with made as follower:
            yield follower


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


def deployed(*others: Snapshot) -> Ledger:
    ledger = Ledger()
    ledger.serve("support", A, stable=A.id)
    ledger.keep(*others)
    return ledger


async def test_it_follows_the_pointer_and_acknowledges() -> None:
    ledger = deployed(B)
    async with following(ledger) as follower:
        first = follower.state
        assert (first.epoch, first.incumbent, dict(first.arms), first.secret) == (1, A.id, {}, SECRET)
        weights = {A.id: 0.8, B.id: 0.2, C.id: 0.0}
        ledger.point("support", 1, arms=weights, eligible=[A.id, B.id], experiment="e", stage="live", stable=A.id)
        await until(lambda: follower.state.epoch == 2)
        state = follower.state
        assert (dict(state.arms), state.experiment, state.stage) == ({A.id: 0.8, B.id: 0.2}, "e", "live")
        assert (state.eligible, state.stable, state.incumbent) == ((A.id, B.id), A.id, A.id)
        assert set(state.answerers) >= {A.id, B.id}
        assert first.epoch == 1
        assert set(first.answerers) == {A.id}
        await until(lambda: bool(ledger.find("replicas", {"epoch": 2})))
        (row,) = ledger.find("replicas")
        assert (row["id"], row["deployment"], row["url"]) == ("r1/support", "support", "http://here")
        assert row["seen_at"] > 1e9
    assert ledger.find("replicas") == []


async def test_a_nudge_does_not_wait_for_the_poll() -> None:
    ledger = deployed(B)
    async with following(ledger, poll_s=60) as follower:
        ledger.point("support", 1, B.id)
        follower.nudge()
        await until(lambda: follower.state.incumbent == B.id)
        await until(lambda: bool(ledger.find("replicas", {"epoch": 2})))


async def test_whoever_watches_is_told_before_requests_see_it() -> None:
    ledger, told = deployed(B), list[tuple[int, int]]()
    seen = [lambda: 0]
    async with following(ledger, moved=lambda state: told.append((state.epoch, seen[0]()))) as follower:
        seen[0] = lambda: follower.state.epoch
        ledger.point("support", 1, B.id)
        await until(lambda: follower.state.epoch == 2)
    assert told == [(1, 0), (2, 1)]


async def test_the_last_state_serves_while_the_ledger_is_away(caplog: pytest.LogCaptureFixture) -> None:
    ledger = deployed(B)
    async with following(ledger) as follower:
        assert follower.health()["ledger"] is True
        ledger.away = True
        with caplog.at_level(logging.ERROR, "evocluster"):
            await until(lambda: follower.health()["ledger"] is False)
            await asyncio.sleep(0.05)
        assert [one.levelname for one in caplog.records] == ["ERROR"]  # once, not at every poll
        assert "the ledger is away" in follower.health()["error"]
        got = await follower.state.answerers[A.id].answer(Example(id="q", input="?"))
        assert got.execution.output == "a"
        ledger.away = False
        ledger.point("support", 1, B.id)
        await until(lambda: follower.state.incumbent == B.id)
        await until(lambda: follower.health()["ledger"] is True)


UNFIT = snapshot("d", model="nobody")


@pytest.mark.parametrize(("to", "said"), [("feed" * 4, "is not in the ledger"), (UNFIT.id, "not configured")])
async def test_a_snapshot_that_cannot_be_loaded_changes_nothing(to: str, said: str) -> None:
    ledger = deployed(UNFIT, B)
    async with following(ledger) as follower:
        ledger.point("support", 1, to)
        await until(lambda: said in follower.health()["error"])
        assert (follower.state.epoch, follower.state.incumbent) == (1, A.id)
        assert follower.health()["ledger"] is True
        ledger.point("support", 2, B.id)
        await until(lambda: follower.health()["error"] == "")
        assert (follower.state.epoch, follower.state.incumbent) == (3, B.id)


async def test_one_arm_that_cannot_be_loaded_keeps_the_whole_epoch_out() -> None:
    ledger = deployed(B)
    async with following(ledger) as follower:
        ledger.point("support", 1, B.id, arms={B.id: 0.5, "feed" * 4: 0.5})
        await until(lambda: "is not in the ledger" in follower.health()["error"])
        assert (follower.state.incumbent, dict(follower.state.arms)) == (A.id, {})


async def test_an_older_copy_of_the_ledger_is_not_followed() -> None:
    ledger = deployed(B)
    async with following(ledger) as follower:
        ledger.point("support", 1, B.id)
        await until(lambda: follower.state.epoch == 2)
        ledger.serve("support", A)
        await until(lambda: "older copy" in follower.health()["error"])
        assert follower.state.incumbent == B.id


async def test_what_was_served_lately_stays_ready() -> None:
    many = [snapshot(f"s{number}") for number in range(6)]
    ledger = deployed(*many)
    for number, each in enumerate([A, *many]):
        ledger.put("versions", {"deployment": "support", "version": f"v{number}", "snapshot": each.id, "at": number})
    async with following(ledger, preload=2) as follower:
        assert set(follower.health()["ready"]) == {A.id, many[4].id, many[5].id}
        assert set(follower.state.answerers) == set(follower.health()["ready"])
        for epoch, each in enumerate(many[:4], 1):
            ledger.point("support", epoch, each.id)
            await until(lambda epoch=epoch: follower.state.epoch == epoch + 1)  # type: ignore[misc]
            await until(lambda: len(follower.health()["ready"]) <= 3)
        assert many[3].id in follower.health()["ready"]


async def test_another_snapshot_can_be_asked_beside_production() -> None:
    async with world(A) as made:
        made.ledger.keep(B)
        exchange = Exchange(request_id="r", episode_id="e", deployment="support", at=0.0)
        got = await made.follower.answer(B.id, Example(id="q", input="?"), exchange)
        assert got.execution.output == "b"
        with pytest.raises(ConfigError, match="not in the ledger"):
            await made.follower.answer("feed" * 4, Example(id="q", input="?"), exchange)


async def test_nothing_to_serve_is_an_error_at_once() -> None:
    with pytest.raises(StoreError, match="evocluster deploy"):
        async with following(Ledger()):
            pass
    ledger = Ledger()
    ledger.serve("support", UNFIT)
    with pytest.raises(ConfigError, match="not configured"):
        async with following(ledger):
            pass


def test_a_snapshot_is_what_its_name_says() -> None:
    ledger = Ledger()
    found = snapshot("x", (Note(id="n", text="a {note}"),), shares={"m": 0.5}, intents={"a": {"model": "m"}})
    ledger.keep(found)
    assert load(ledger, found.id) == found
    ledger.put(
        "layers", {"hash": found.layers["prompt"], "kind": "prompt", "body": A.bodies["prompt"], "erased": False}
    )
    with pytest.raises(StoreError, match="changed by hand"):
        load(ledger, found.id)
    ledger.put("layers", {"hash": found.layers["prompt"], "kind": "prompt", "body": {"genes": 3}, "erased": False})
    with pytest.raises(StoreError, match="cannot be read"):
        load(ledger, found.id)
    ledger.put("layers", {"hash": found.layers["memory"], "kind": "memory", "body": None, "erased": True})
    with pytest.raises(ConfigError, match=r"layer memory of .* was erased"):
        load(ledger, found.id)


def test_the_token_of_a_push_follows_from_the_secret_and_the_deployment() -> None:
    assert push_token("s", "a") == push_token("s", "a")
    assert len({push_token("s", "a"), push_token("s", "b"), push_token("t", "a")}) == 3
